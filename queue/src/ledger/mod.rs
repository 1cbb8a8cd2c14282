//! The ledger: the only truth. Five seams, by who calls them; one engine struct implements them all.
//!
//! Rules that hold for every method of every engine, each kept by the conformance suite:
//!
//! - Time is passed in as `now` ([`crate::LedgerClock`]).
//! - A method is one transaction. It either did all or, with [`LedgerError::Unavailable`], nothing; after
//!   [`LedgerError::Unknown`] nobody knows.
//! - Every write after a claim is fenced by the attempt's number; what is stale changes nothing.
//! - Whatever becomes `available` is told to the caller as [`Bells`], to be rung after the commit.
//! - Rows are written in the order of their keys, so that no two transactions wait for each other.

mod door;
mod postgres;
mod rows;
mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemas::api::{ApprovalView, EventView, JobView, PauseView, QueueView, RunView, TokenView};
use schemas::{
    AttemptId, ClaimedJob, Event, EventId, JobId, JobState, NewJob, NewRun, Outcome, Role, RunId, RunState, Standing,
    StepState, Timestamp, TraceContext, WorkerId,
};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::OpenError;
use crate::bell::Bells;
use crate::config::NoticeOfDiscard;

use postgres::Postgres;
use sqlite::Sqlite;

/// Why the ledger did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It is away; nothing was written.
    #[error("the ledger is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// The connection broke, or the deadline passed, while the transaction was being committed.
    #[error("the outcome of the ledger's commit is unknown")]
    Unknown(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It does not take this item, now or later; nothing was written.
    #[error("the ledger refuses it")]
    Refused(#[source] sqlx::Error),
    /// The attempt is over: rescued, finished or cancelled by someone else.
    #[error("this attempt no longer holds its job")]
    Stale,
    /// There is no such thing.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// This person may not do it.
    #[error("{0}")]
    Forbidden(String),
    /// It is in a state in which this cannot be done.
    #[error("{0}")]
    Conflict(String),
}

/// How long the ids, digests and bodies' fingerprints of deliveries are remembered: longer than any sender repeats.
pub const DELIVERY_MEMORY: Duration = Duration::from_hours(9600);

/// A verified delivery, ready to be booked.
#[derive(Clone, Debug)]
pub struct NewDelivery {
    /// What it says; with empty facts where it could not be read.
    pub event: Event,
    /// Why it could not be read as an event: it is quarantined.
    pub unreadable: Option<String>,
    /// The sender's own bytes.
    pub body: StoredBody,
    /// What a known body under a new delivery id means.
    pub repeats: Repeats,
    /// What its routes made of it.
    pub jobs: Vec<NewJob>,
    /// What its routes made of it.
    pub runs: Vec<NewRun>,
    /// What its routes could not make of it.
    pub route_errors: Vec<String>,
    /// Of the configuration that its routes are from.
    pub config_digest: String,
    /// The position in the trace of the request that brought it.
    pub trace: TraceContext,
}

/// A delivery's body as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBody {
    /// SHA-256 of the bytes as they came.
    pub digest: [u8; 32],
    /// The bytes, compressed (LZ4 block, length in front).
    pub compressed: Vec<u8>,
    /// The content type that they came with.
    pub content_type: String,
    /// The headers worth keeping, as a JSON object; no signatures.
    pub headers: String,
}

impl StoredBody {
    /// Compresses a body: what goes to disk is what limits the rate of deliveries.
    pub fn new(bytes: &[u8], digest: [u8; 32], content_type: String, headers: String) -> Self {
        Self { digest, compressed: lz4_flex::compress_prepend_size(bytes), content_type, headers }
    }

    /// The bytes as they came.
    pub fn bytes(&self) -> Result<Vec<u8>, lz4_flex::block::DecompressError> {
        lz4_flex::decompress_size_prepended(&self.compressed)
    }
}

/// What a known body under a new delivery id means. Only senders whose delivery id is not signed need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// Nothing: the id is signed with the body.
    AreNew,
    /// The signed body names its occurrence: a suspected replay.
    AreHeld,
    /// It may honestly repeat within this time; after it, a suspected replay.
    AreHeldAfter(Duration),
}

/// What the ledger made of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The event; of a repeat, the first one's.
    pub event: EventId,
    /// This delivery id was already committed; nothing was written.
    pub duplicate: bool,
    /// What became of it.
    pub standing: Standing,
    /// The jobs made for it, those of its runs included; where a key was taken, the job that holds it.
    pub jobs: Vec<JobId>,
}

/// Work that was asked for: stored now, or there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued<Id> {
    /// Stored.
    New(Id),
    /// Its key is held by this one; nothing was stored.
    Existing(Id),
}

impl<Id: Copy> Enqueued<Id> {
    /// The id, whichever it is.
    pub fn id(&self) -> Id {
        match self {
            Self::New(id) | Self::Existing(id) => *id,
        }
    }
}

/// What a worker asks for.
#[derive(Clone, Debug)]
pub struct Claim {
    /// From this queue.
    pub queue: String,
    /// Only these kinds: unknown ones wait for a newer worker.
    pub kinds: Vec<String>,
    /// At most so many.
    pub limit: u32,
    /// Who asks.
    pub worker: WorkerId,
    /// How long the lease lasts without a heartbeat.
    pub lease: Duration,
}

/// The ledger's answer to the heartbeat of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The lease is renewed.
    Alive,
    /// The lease is renewed; an operator wants the job cancelled, for this reason.
    Cancel(String),
    /// The attempt no longer holds its job.
    Lost,
}

/// An attempt that ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Which.
    pub attempt: AttemptId,
    /// How.
    pub outcome: Outcome,
}

/// What [`Work::finish`] did.
#[derive(Clone, Debug, Default)]
pub struct Finished {
    /// For each ended attempt, in order: whether it was recorded. False: it was stale, nothing was written for it.
    pub recorded: Vec<bool>,
    /// What became available by it.
    pub bells: Bells,
}

/// What the promoter did.
#[derive(Clone, Debug, Default)]
pub struct Promoted {
    /// What became available by it.
    pub bells: Bells,
    /// When the next job is due, if one waits.
    pub next: Option<Timestamp>,
}

/// What the rescuer did with one job whose lease had run out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RescuedJob {
    /// The attempt that held it.
    pub attempt: AttemptId,
    /// Its kind.
    pub kind: String,
    /// The state it is in now.
    pub state: JobState,
}

/// What the rescuer did.
#[derive(Clone, Debug, Default)]
pub struct Rescued {
    /// The jobs.
    pub jobs: Vec<RescuedJob>,
    /// What became available by it.
    pub bells: Bells,
}

impl Rescued {
    /// And what it did in another transaction.
    pub(crate) fn add(&mut self, more: Self) {
        self.jobs.extend(more.jobs);
        self.bells.merge(more.bells);
    }
}

/// Who does something by hand, and why. Written to the audit in the same transaction.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Operator {
    pub actor: String,
    pub reason: String,
}

/// Which jobs to list.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    /// Only in this state.
    pub state: Option<JobState>,
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only of this queue.
    pub queue: Option<String>,
    /// Only stored at this time or later.
    pub since: Option<Timestamp>,
    /// Only stored before this time.
    pub until: Option<Timestamp>,
    /// Only older than this one: the last of the page before.
    pub before: Option<JobId>,
    /// At most so many, the newest first.
    pub limit: u32,
}

/// A nominal time of a schedule, and the work that it starts.
#[derive(Clone, Debug)]
pub struct Firing {
    /// The schedule's name.
    pub schedule: String,
    /// The time that the schedule names, not the time at which somebody came round to it.
    pub nominal: Timestamp,
    /// Of the configuration that the schedule is from.
    pub config_digest: String,
    /// What it starts.
    pub jobs: Vec<NewJob>,
    /// What it starts.
    pub runs: Vec<NewRun>,
}

/// What became of a firing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fired {
    /// The work is stored. What became available by it.
    Now(Bells),
    /// This nominal time has fired before; nothing was stored.
    Before,
    /// A producer with a newer configuration is alive: schedules are its to fire; nothing was stored.
    Outdated,
}

/// A newer configuration counts for as long as one of its producers was heard of in this time.
pub const GENERATION_MEMORY: Duration = Duration::from_mins(5);

/// What can be paused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pausable {
    /// Its jobs are not claimed.
    Queue(String),
    /// Its jobs are not let in.
    Kind(String),
    /// Jobs that name it as a limit are not let in.
    Key(String),
}

impl Pausable {
    /// The word for what it is.
    pub const fn what(&self) -> &'static str {
        match self {
            Self::Queue(_) => "queue",
            Self::Kind(_) => "kind",
            Self::Key(_) => "key",
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Queue(name) | Self::Kind(name) | Self::Key(name) => name,
        }
    }
}

/// Work that is to be done again, and how it stood when the operator looked: if it stands differently now, nothing at all
/// is replayed.
#[derive(Clone, Debug)]
pub enum Replay {
    /// A job.
    Job {
        /// Which.
        of: JobId,
        /// Its state when it was looked at.
        state: JobState,
        /// The number of its last attempt when it was looked at.
        attempt: i32,
        /// The new job.
        again: Box<NewJob>,
    },
    /// A run.
    Run {
        /// Which.
        of: RunId,
        /// How it stood when it was looked at.
        state: RunState,
        /// The new run.
        again: Box<NewRun>,
    },
    /// What today's routes make of an event.
    Event {
        /// Which.
        of: EventId,
        /// The new jobs.
        jobs: Vec<NewJob>,
        /// The new runs.
        runs: Vec<NewRun>,
    },
}

/// A token that opens the API. The token itself is nowhere.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Its name, under which what it does is audited.
    pub name: String,
    /// SHA-256 of the token.
    pub hash: [u8; 32],
    /// What it may do.
    pub role: Role,
    /// When it ends, if it does.
    pub expires_at: Option<Timestamp>,
}

/// One line of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct AuditRecord {
    pub at: Timestamp,
    pub actor: String,
    pub verb: String,
    pub subject: String,
    pub reason: String,
}

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

    /// Says that a producer with this configuration is alive, and answers whether none with a newer one is. A
    /// configuration is as new as its first announcement.
    async fn announce(&self, config_digest: &str, now: Timestamp) -> Result<bool, LedgerError>;

    /// Stores the work of a schedule's nominal time, once, however many producers ask.
    async fn fire(&self, firing: &Firing, now: Timestamp) -> Result<Fired, LedgerError>;
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

    /// Makes jobs available whose time has come, at most `limit`.
    async fn promote(&self, limit: u32, now: Timestamp) -> Result<Promoted, LedgerError>;

    /// Cancels jobs whose approval did not come in time, and lets in what waits where there is room after all: a net
    /// below the transactions that let in themselves. At most `limit` of each.
    async fn review(&self, limit: u32, now: Timestamp) -> Result<Bells, LedgerError>;

    /// Takes back jobs whose lease ended before `before`, at most `limit`: available again, or discarded after the
    /// third crash without progress, or cancelled where that was asked for.
    async fn rescue(&self, before: Timestamp, limit: u32, now: Timestamp) -> Result<Rescued, LedgerError>;

    /// Forgets keys and delivery ids that have expired, at most `limit` of each; how many.
    async fn prune(&self, limit: u32, now: Timestamp) -> Result<u64, LedgerError>;
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

    /// Pauses a queue, a kind or a key. What runs goes on.
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
    /// The newest events.
    async fn events(&self, limit: u32) -> Result<Vec<EventView>, LedgerError>;
    /// One job, with its attempts and steps.
    async fn job(&self, id: JobId) -> Result<Option<JobView>, LedgerError>;
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
    /// All tokens, revoked ones included.
    async fn tokens(&self) -> Result<Vec<TokenView>, LedgerError>;
    /// The token with this SHA-256, if it lives.
    async fn token(&self, hash: &[u8; 32], now: Timestamp) -> Result<Option<TokenView>, LedgerError>;
    /// The newest lines of the audit.
    async fn audit(&self, limit: u32) -> Result<Vec<AuditRecord>, LedgerError>;
}

/// All five.
pub trait Ledger: Intake + Work + Upkeep + Desk + Books {}

impl<T: Intake + Work + Upkeep + Desk + Books> Ledger for T {}

/// What every engine is opened with.
#[derive(Clone)]
pub(crate) struct EngineConfig {
    pub(crate) url: String,
    pub(crate) notice: Option<NoticeOfDiscard>,
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
