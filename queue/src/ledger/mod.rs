//! The ledger: the only truth. Six seams, by who calls them; one engine struct implements them all.
//!
//! Rules that hold for every method of every engine, each kept by the conformance suite:
//!
//! - Time is passed in as `now` ([`crate::LedgerClock`]).
//! - A method is one transaction. It either did all or, with [`LedgerError::Unavailable`], nothing; after
//!   [`LedgerError::Unknown`] nobody knows.
//! - Every write after a claim is fenced by the attempt's number; what is stale changes nothing.
//! - Whatever becomes `available` is told to the caller as [`Bells`], to be rung after the commit.
//! - Rows are written in the order of their keys, so that no two transactions wait for each other.

mod announcing;
mod asks;
mod cancel;
mod door;
mod firing;
mod postgres;
mod recovery;
mod replay;
mod rows;
mod silence;
mod snapshot;
mod sqlite;
mod storing;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use schemas::api::{
    ApprovalView, EventView, FiringView, JobView, PauseView, QueueView, RunView, SourceView, TokenView,
};
use schemas::{
    AttemptId, ClaimedJob, EventId, JobId, JobState, Key, NewJob, NewRun, Role, RunId, StepState, Timestamp, WorkerId,
};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::OpenError;
use crate::bell::Bells;
use crate::config::{NoticeOfDiscard, NoticeOfSilence};
use crate::forgetting::Waiting;

pub use announcing::*;
pub use asks::*;
use postgres::Postgres;
pub use recovery::{LastEvent, OpenJob, Recovered, Recovery};
pub use snapshot::{Snapped, Snapshot};
use sqlite::Sqlite;

/// For those who bring work: the producer, the scheduler, programs.
#[async_trait]
pub trait Intake: Send + Sync {
    /// Books deliveries together with the jobs and runs of their routes. A repeat changes nothing. The answers are in
    /// the order of the deliveries.
    async fn accept(&self, deliveries: &[NewDelivery], now: Timestamp) -> Result<(Vec<Receipt>, Bells), LedgerError>;

    /// Stores jobs. The answers are in the order of the jobs.
    async fn enqueue(&self, jobs: &[NewJob], now: Timestamp) -> Result<(Vec<Enqueued<JobId>>, Bells), LedgerError>;

    /// Stores a run with all its jobs.
    async fn start(&self, run: &NewRun, now: Timestamp) -> Result<(Enqueued<RunId>, Bells), LedgerError>;

    /// Says that a producer with this configuration is alive, and which schedules it has; how far each of them has come,
    /// or none where a producer with a newer configuration is alive: then they are that one's. A configuration is as new
    /// as its first announcement. Schedules that the newest one does not have are forgotten.
    async fn announce(
        &self,
        config_digest: &str,
        schedules: &[Announced],
        now: Timestamp,
    ) -> Result<Option<Vec<Progress>>, LedgerError>;

    /// Settles a schedule's nominal time, once, however many producers ask: its work is stored, or why it is not.
    async fn fire(&self, firing: &Firing, now: Timestamp) -> Result<Fired, LedgerError>;

    /// Says which sources a producer listens to and what it heard; which of them have gone silent by that, or speak again,
    /// each told once, however many producers listen: the notices of that are stored.
    async fn listen(
        &self,
        sources: &[Listened],
        notice: Option<&NoticeOfSilence>,
        now: Timestamp,
    ) -> Result<(Vec<Silence>, Bells), LedgerError>;
}

/// For workers.
#[async_trait]
pub trait Work: Send + Sync {
    /// Gives out available jobs, the first by (priority, `run_at`, id), each to one worker only.
    async fn claim(&self, claim: &Claim, now: Timestamp) -> Result<Vec<ClaimedJob>, LedgerError>;

    /// Renews the leases of running attempts until `lease_until`. The answers are in the order of the attempts.
    async fn heartbeat(
        &self,
        attempts: &[AttemptId],
        lease_until: Timestamp,
        now: Timestamp,
    ) -> Result<Vec<Beat>, LedgerError>;

    /// Writes that a step begins, unless it has finished before.
    async fn start_step(&self, attempt: AttemptId, name: &str, now: Timestamp) -> Result<StepState, LedgerError>;

    /// Writes that a step finished. The job has made progress: its crashes are forgotten.
    async fn finish_step(
        &self,
        attempt: AttemptId,
        name: &str,
        result: Option<&RawValue>,
        now: Timestamp,
    ) -> Result<(), LedgerError>;

    /// Takes a key for a running job, beside its own. Where another job holds it, that is written down in the same
    /// transaction, so that who holds a key knows exactly who else asked for it.
    async fn hold(&self, attempt: AttemptId, key: &Key, now: Timestamp) -> Result<Hold, LedgerError>;

    /// Records how attempts ended, and lets in or skips what waited for them in their runs.
    async fn finish(&self, ended: &[Ended], now: Timestamp) -> Result<Finished, LedgerError>;

    /// What the jobs of a run have put out so far: an object by the jobs' names.
    async fn outputs(&self, run: RunId) -> Result<Value, LedgerError>;
}

/// For the promoter and the rescuer, which run in every process.
#[async_trait]
pub trait Upkeep: Send + Sync {
    /// The database's time.
    async fn time(&self) -> Result<Timestamp, LedgerError>;

    /// Whether having it open proves that no other process does: then whatever runs in it when it is opened is orphaned.
    fn is_exclusive(&self) -> bool;

    /// What there is to do: one question, asked often, and answered by indexes that are empty as a rule.
    async fn chores(&self, now: Timestamp) -> Result<Chores, LedgerError>;

    /// Makes jobs available whose time has come, at most `limit`.
    async fn promote(&self, limit: u32, now: Timestamp) -> Result<Bells, LedgerError>;

    /// Cancels jobs whose approval did not come in time, and lets in what waits where there is room after all: a net
    /// below the transactions that let in themselves. At most `limit` of each.
    async fn review(&self, limit: u32, now: Timestamp) -> Result<Bells, LedgerError>;

    /// Takes back jobs whose lease ended before `before`, at most `limit`: available again, or discarded after the
    /// third crash without progress, or cancelled where that was asked for.
    async fn rescue(&self, before: Timestamp, limit: u32, now: Timestamp) -> Result<Rescued, LedgerError>;

    /// Forgets keys and delivery ids that have expired, at most `limit` of each; how many.
    async fn prune(&self, limit: u32, now: Timestamp) -> Result<u64, LedgerError>;

    /// Forgets what is older than it is to be kept, the oldest first, at most `limit` of each; how many of what there were
    /// most. Jobs and runs that have not ended are never forgotten, and neither are keys: what was done is not done again.
    async fn forget(&self, older_than: &Horizons, limit: u32) -> Result<u64, LedgerError>;

    /// The events that are held or in quarantine and were received from `since` (if any) until before `before`: how many,
    /// and the `named` oldest.
    async fn waiting_events(
        &self,
        since: Option<Timestamp>,
        before: Timestamp,
        named: u32,
    ) -> Result<Waiting, LedgerError>;

    /// The whole ledger as it stands now, where it is a file, unless nothing was written since that version. Whoever
    /// writes goes on.
    async fn snapshot(&self, since: Option<i64>) -> Result<Snapped, LedgerError> {
        let _ = since;
        Ok(Snapped::NoFile)
    }
}

/// For operators. Each verb takes who and why, and writes its audit row in the same transaction.
#[async_trait]
pub trait Desk: Send + Sync {
    /// Stores a job by hand.
    async fn start_job(
        &self,
        job: &NewJob,
        by: &Operator,
        now: Timestamp,
    ) -> Result<(Enqueued<JobId>, Bells), LedgerError>;

    /// Stores a run by hand.
    async fn start_run(
        &self,
        run: &NewRun,
        by: &Operator,
        now: Timestamp,
    ) -> Result<(Enqueued<RunId>, Bells), LedgerError>;

    /// Ends a job: at once where it waits, through its next heartbeat where it runs. The state it is in now.
    async fn cancel(&self, job: JobId, by: &Operator, now: Timestamp) -> Result<(JobState, Bells), LedgerError>;

    /// Ends a run: all its jobs that have not ended, each as [`Desk::cancel`] does.
    async fn cancel_run(&self, run: RunId, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError>;

    /// Makes a discarded or cancelled job available again: same id, next attempt, failures forgotten, steps and keys
    /// kept. What its run skipped because of it waits again.
    async fn retry(&self, job: JobId, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError>;

    /// Lets a held event have its work after all.
    async fn release(
        &self,
        event: EventId,
        jobs: &[NewJob],
        runs: &[NewRun],
        by: &Operator,
        now: Timestamp,
    ) -> Result<Bells, LedgerError>;

    /// Does work again under new ids: all of it, or nothing and [`LedgerError::Conflict`] where one of them no longer
    /// stands as it was looked at.
    async fn replay(&self, again: &[Replay], by: &Operator, now: Timestamp) -> Result<Bells, LedgerError>;

    /// Consents to a job that waits for it; the state it is in now. The same person's second consent changes nothing.
    async fn approve(
        &self,
        job: JobId,
        role: Role,
        by: &Operator,
        now: Timestamp,
    ) -> Result<(JobState, Bells), LedgerError>;

    /// Refuses a job that waits for consent: it is cancelled.
    async fn refuse(&self, job: JobId, role: Role, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError>;

    /// Pauses a queue, a kind, a key or a schedule. What runs goes on.
    async fn pause(&self, what: &Pausable, by: &Operator, now: Timestamp) -> Result<(), LedgerError>;

    /// Ends a pause.
    async fn resume(&self, what: &Pausable, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError>;

    /// Keeps a token. A name that another has or had is a conflict: the audit names who did what by it.
    async fn keep_token(&self, token: &NewToken, by: &Operator, now: Timestamp) -> Result<(), LedgerError>;

    /// Ends a token.
    async fn revoke_token(&self, name: &str, by: &Operator, now: Timestamp) -> Result<(), LedgerError>;
}

/// For readers.
#[async_trait]
pub trait Books: Send + Sync {
    /// One event.
    async fn event(&self, id: EventId) -> Result<Option<EventView>, LedgerError>;
    /// The sender's own bytes of one event.
    async fn body(&self, id: EventId) -> Result<Option<StoredBody>, LedgerError>;
    /// Which of these deliveries of a source are known, however long ago their events were forgotten.
    async fn known(&self, source: &str, delivery_ids: &[String]) -> Result<BTreeSet<String>, LedgerError>;
    /// One source, if a producer has listened to it.
    async fn source(&self, name: &str) -> Result<Option<SourceView>, LedgerError>;
    /// The newest events.
    async fn events(&self, limit: u32) -> Result<Vec<EventView>, LedgerError>;
    /// One job, with its attempts and steps.
    async fn job(&self, id: JobId) -> Result<Option<JobView>, LedgerError>;
    /// The keys of a scope that are held, by name, at most `limit`.
    async fn held(&self, scope: &str, limit: u32, now: Timestamp) -> Result<Vec<HeldKey>, LedgerError>;
    /// Jobs, without their attempts and steps.
    async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, LedgerError>;
    /// One run, with its jobs.
    async fn run(&self, id: RunId) -> Result<Option<RunView>, LedgerError>;
    /// The newest runs, with their jobs.
    async fn runs(&self, limit: u32) -> Result<Vec<RunView>, LedgerError>;
    /// How many jobs wait or run, by queue.
    async fn queues(&self) -> Result<Vec<QueueView>, LedgerError>;
    /// The approvals that jobs wait for, the oldest first.
    async fn approvals(&self, limit: u32) -> Result<Vec<ApprovalView>, LedgerError>;
    /// What is paused.
    async fn pauses(&self) -> Result<Vec<PauseView>, LedgerError>;
    /// What became of the newest nominal times of a schedule.
    async fn firings(&self, schedule: &str, limit: u32) -> Result<Vec<FiringView>, LedgerError>;
    /// All tokens, revoked ones included.
    async fn tokens(&self) -> Result<Vec<TokenView>, LedgerError>;
    /// The token with this SHA-256, if it lives.
    async fn token(&self, hash: &[u8; 32], now: Timestamp) -> Result<Option<TokenView>, LedgerError>;
    /// The newest lines of the audit.
    async fn audit(&self, limit: u32) -> Result<Vec<AuditRecord>, LedgerError>;
}

/// For those who announce to other programs what happens: accepted events, and how jobs ended.
///
/// While it is on, each is written down in the transaction in which it happens, by whoever does it: older binaries and
/// processes that know nothing of announcements do too. While it is off, nothing is written, and nothing costs anything.
#[async_trait]
pub trait Herald: Send + Sync {
    /// Has what happens written down from now on, or not any more, and what was not announced forgotten. The newest
    /// configuration decides; whether that is this one.
    async fn set_announcing(&self, on: bool, config_digest: &str, now: Timestamp) -> Result<bool, LedgerError>;

    /// Takes or keeps the turn until `until`, and gives what is to be announced next, in order, at most `limit`: the same
    /// again until it is said to be announced. Numbers are given here, to what is visible, so that nothing is skipped that
    /// is committed later under an earlier id.
    async fn next_announcements(
        &self,
        herald: WorkerId,
        limit: u32,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Turn, LedgerError>;

    /// These are announced, by their numbers: they are forgotten. Whether it is still this herald's turn.
    async fn announced(&self, herald: WorkerId, numbers: &[i64], now: Timestamp) -> Result<bool, LedgerError>;

    /// Gives the turn to whoever asks next.
    async fn pass_turn(&self, herald: WorkerId) -> Result<(), LedgerError>;

    /// Since when the oldest waits that is not announced yet.
    async fn oldest_unannounced(&self) -> Result<Option<Timestamp>, LedgerError>;
}

/// All six.
pub trait Ledger: Intake + Work + Upkeep + Desk + Books + Herald {}

impl<T: Intake + Work + Upkeep + Desk + Books + Herald> Ledger for T {}

/// What every engine is opened with.
#[derive(Clone)]
pub(crate) struct EngineConfig {
    pub(crate) url: String,
    pub(crate) notice: Option<NoticeOfDiscard>,
}

/// What a look at a ledger tells.
#[derive(Clone, Debug)]
pub struct Look {
    /// Its time; none where nothing tells it now.
    pub time: Option<Timestamp>,
    /// What is there, in words.
    pub text: String,
}

/// Looks at a ledger without making or changing anything in it.
pub async fn look(url: &str) -> Result<Look, OpenError> {
    match url.split(':').next().unwrap_or_default() {
        "sqlite" => sqlite::look(url),
        "postgres" | "postgresql" => postgres::look(url).await,
        other => Err(OpenError::UnknownLedger(other.to_owned())),
    }
}

/// Makes a ledger that goes on from a copy in a file which nobody uses: what ran is interrupted, and what the lost machine
/// may have done after the copy asks first.
pub async fn recover(file: &Path, recovery: &Recovery<'_>) -> Result<Recovered, OpenError> {
    sqlite::recover(file, recovery).await
}

/// Opens a ledger, making or migrating its tables. The one place that knows which engines there are.
pub async fn open(url: &str, notice: Option<NoticeOfDiscard>) -> Result<Arc<dyn Ledger>, OpenError> {
    let config = EngineConfig { url: url.to_owned(), notice };
    match url.split(':').next().unwrap_or_default() {
        "sqlite" => Ok(Arc::new(Sqlite::open(&config).await?)),
        "postgres" | "postgresql" => Ok(Arc::new(Postgres::open(&config).await?)),
        other => Err(OpenError::UnknownLedger(other.to_owned())),
    }
}
