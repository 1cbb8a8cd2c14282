//! Ledgers to test: one of each engine, empty, with a clock that is moved by hand.

use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use queue::LedgerClock;
use queue::bell::Bells;
use queue::ledger::{self, Claim, Ended, Ledger, NewDelivery, Operator, Repeats, StoredBody};
use schemas::{
    AttemptId, ClaimedJob, Event, EventId, Facts, JobId, JobState, NewJob, NewRun, Outcome, PlannedJob, Priority,
    RunId, Timestamp, TraceContext, WorkerId,
};
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use tempfile::TempDir;

use crate::transitions::Watch;

/// How long leases last in these tests.
pub const LEASE: Duration = Duration::from_secs(30);

/// An empty ledger and the means to act on it in short words.
pub struct TestLedger {
    /// The ledger.
    pub ledger: Arc<dyn Ledger>,
    /// Its clock, moved by hand.
    pub clock: LedgerClock,
    url: String,
    folder: Option<Arc<TempDir>>,
}

impl TestLedger {
    /// A `SQLite` ledger in a folder of its own.
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
        Self::open(&url, Some(folder)).await
    }

    /// A `PostgreSQL` ledger in a database of its own.
    pub async fn postgres() -> Self {
        Self::postgres_at(&crate::postgres::fresh_database().await).await
    }

    /// A `PostgreSQL` ledger in the given database.
    pub async fn postgres_at(url: &str) -> Self {
        Self::open(url, None).await
    }

    async fn open(url: &str, folder: Option<TempDir>) -> Self {
        let notice = Arc::new(|job: JobId, kind: &str, error: &str, now: Timestamp| {
            (kind != "notify").then(|| new_job("notify", &format!(r#"{{"job":"{job}","error":"{error}"}}"#), now))
        });
        let ledger = ledger::open(url, Some(notice)).await.expect("the ledger opens");
        let clock = LedgerClock::by_hand(DateTime::from_timestamp(1_800_000_000, 0).expect("a moment"));
        Self { ledger, clock, url: url.to_owned(), folder: folder.map(Arc::new) }
    }

    /// Begins to watch the ways that jobs go; the watch outlives this.
    pub async fn watch(&self) -> Watch {
        Watch::begin(&self.url, self.folder.clone()).await
    }

    /// Does something to the tables behind the ledger's back.
    pub async fn raw(&self, statement: &'static str) {
        if self.url.starts_with("sqlite:") {
            let mut ledger = SqliteConnection::connect(&self.url).await.expect("the ledger's file");
            sqlx::raw_sql(statement).execute(&mut ledger).await.expect("done");
        } else {
            let mut ledger = PgConnection::connect(&self.url).await.expect("the ledger's database");
            sqlx::raw_sql("set search_path = nightporter").execute(&mut ledger).await.expect("the schema");
            sqlx::raw_sql(statement).execute(&mut ledger).await.expect("done");
        }
    }

    /// How many rows a table has.
    pub async fn count(&self, table: &str) -> i64 {
        let question = format!("select count(*) from {table}");
        if self.url.starts_with("sqlite:") {
            let mut ledger = SqliteConnection::connect(&self.url).await.expect("the ledger's file");
            sqlx::query_scalar(AssertSqlSafe(question)).fetch_one(&mut ledger).await.expect("a number")
        } else {
            let mut ledger = PgConnection::connect(&self.url).await.expect("the ledger's database");
            sqlx::raw_sql("set search_path = nightporter").execute(&mut ledger).await.expect("the schema");
            sqlx::query_scalar(AssertSqlSafe(question)).fetch_one(&mut ledger).await.expect("a number")
        }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A job of kind `noop`, not stored yet.
    pub fn job(&self) -> NewJob {
        self.clock.advance(Duration::from_millis(1)); // so that ids rise
        new_job("noop", "{}", self.now())
    }

    /// Stores jobs.
    pub async fn enqueue(&self, jobs: &[NewJob]) -> Vec<JobId> {
        let (enqueued, _) = self.ledger.enqueue(jobs, self.now()).await.expect("enqueued");
        enqueued.iter().map(ledger::Enqueued::id).collect()
    }

    /// Claims up to `limit` jobs of the kinds `noop`, `other` and `notify`.
    pub async fn claim(&self, limit: u32) -> Vec<ClaimedJob> {
        self.claim_kinds(&["noop", "other", "notify"], limit).await
    }

    /// Claims up to `limit` jobs of these kinds.
    pub async fn claim_kinds(&self, kinds: &[&str], limit: u32) -> Vec<ClaimedJob> {
        let claim = Claim {
            queue: "default".into(),
            kinds: kinds.iter().map(ToString::to_string).collect(),
            limit,
            worker: WorkerId::at(self.now()),
            lease: LEASE,
        };
        self.ledger.claim(&claim, self.now()).await.expect("claimed")
    }

    /// Claims one job.
    pub async fn claim_one(&self) -> ClaimedJob {
        self.claim(1).await.pop().expect("a job is available")
    }

    /// Ends an attempt; whether that was recorded.
    pub async fn finish(&self, attempt: AttemptId, outcome: Outcome) -> bool {
        self.finish_ringing(attempt, outcome).await.0
    }

    /// Ends an attempt; whether that was recorded, and what it made available.
    pub async fn finish_ringing(&self, attempt: AttemptId, outcome: Outcome) -> (bool, Bells) {
        let finished = self.ledger.finish(&[Ended { attempt, outcome }], self.now()).await.expect("finished");
        (finished.recorded[0], finished.bells)
    }

    /// Claims the next job and completes it with an output.
    pub async fn complete_next(&self, output: Option<Value>) -> JobId {
        let job = self.claim_one().await;
        assert!(self.finish(job.id, completed(output)).await);
        job.id.job
    }

    /// Promotes what is due; how many jobs.
    pub async fn promote(&self) -> u32 {
        let bells = self.ledger.promote(100, self.now()).await.expect("promoted");
        bells.iter().map(|bell| bell.count).sum()
    }

    /// Rescues what has no lease any more.
    pub async fn rescue(&self) -> Vec<(JobId, JobState)> {
        let rescued = self.ledger.rescue(self.now(), 100, self.now()).await.expect("rescued");
        rescued.jobs.iter().map(|job| (job.attempt.job, job.state)).collect()
    }

    /// A job's state.
    pub async fn state(&self, job: JobId) -> JobState {
        self.view(job).await.state
    }

    /// A job as operators see it.
    pub async fn view(&self, job: JobId) -> schemas::api::JobView {
        self.ledger.job(job).await.expect("read").expect("the job exists")
    }

    /// A run of `noop` jobs: (name, needs, condition).
    pub fn run(&self, jobs: &[(&str, &[&str], Option<&str>)]) -> NewRun {
        let planned = jobs.iter().map(|(name, needs, condition)| PlannedJob {
            name: (*name).into(),
            needs: needs.iter().map(ToString::to_string).collect(),
            condition: condition.map(Into::into),
            job: self.job(),
        });
        NewRun {
            id: RunId::at(self.now()),
            runbook: "deploy".into(),
            inputs: serde_json::json!({"ref": "abc"}),
            jobs: planned.collect(),
            event: None,
            actor: Some("ada".into()),
            reason: Some("because".into()),
            key: None,
            replay_of: None,
            trace: TraceContext::default(),
        }
    }

    /// The states of a run's jobs, by name.
    pub async fn run_states(&self, run: RunId) -> Vec<(String, JobState)> {
        let view = self.ledger.run(run).await.expect("read").expect("the run exists");
        view.jobs.into_iter().map(|job| (job.name, job.state)).collect()
    }

    /// A readable delivery with this id and body, and one job.
    pub fn delivery(&self, delivery_id: &str, body: &[u8]) -> NewDelivery {
        let job = self.job();
        let id = EventId::at(self.now());
        let mut digest = [0; 32];
        digest[..body.len().min(32)].copy_from_slice(&body[..body.len().min(32)]);
        NewDelivery {
            event: Event {
                id,
                source: "github".into(),
                kind: "github.push".into(),
                delivery_id: delivery_id.into(),
                subject: Some("refs/heads/main".into()),
                time: self.now(),
                data: Facts::default(),
            },
            unreadable: None,
            body: StoredBody::new(body, digest, "application/json".into(), "{}".into()),
            repeats: Repeats::AreNew,
            jobs: vec![job.made_for(id, TraceContext::default())],
            runs: Vec::new(),
            route_errors: Vec::new(),
            config_digest: "test".into(),
            trace: TraceContext::default(),
        }
    }

    /// Books one delivery.
    pub async fn accept(&self, delivery: &NewDelivery) -> ledger::Receipt {
        let (mut receipts, _) = self.ledger.accept(std::slice::from_ref(delivery), self.now()).await.expect("accepted");
        receipts.pop().expect("a receipt")
    }
}

/// A job in the default queue.
pub fn new_job(kind: &str, args: &str, now: Timestamp) -> NewJob {
    NewJob {
        id: JobId::at(now),
        kind: kind.into(),
        args: RawValue::from_string(args.into()).expect("JSON"),
        queue: "default".into(),
        priority: Priority::Normal,
        run_at: None,
        key: None,
        limits: Vec::new(),
        approval: None,
        replay_of: None,
        event: None,
        trace: TraceContext::default(),
    }
}

/// A good end.
pub fn completed(output: Option<Value>) -> Outcome {
    let output = output.map(|output| RawValue::from_string(output.to_string()).expect("JSON"));
    Outcome::Completed { output, notice: None }
}

/// An end as a dead letter, without a notice.
pub fn discarded(error: &str) -> Outcome {
    Outcome::Discarded { error: error.into(), notice: None }
}

/// Ada, who has her reasons.
pub fn ada() -> Operator {
    Operator { actor: "ada".into(), reason: "it must".into() }
}
