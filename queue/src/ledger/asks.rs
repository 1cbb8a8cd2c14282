//! What the ledger is asked, and what it answers.

use std::time::Duration;

use schemas::{
    AttemptId, Event, EventId, JobId, JobState, NewJob, NewRun, NewWork, Outcome, Overlap, Role, RunId, RunState,
    Standing, Timestamp, TraceContext, WorkerId,
};

use crate::bell::Bells;

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

/// Stands among the kept headers of a delivery: the version, in the vault, of the secret that signed it.
pub const SIGNED_WITH: &str = "nightporter-signed-with";

/// A delivery's body as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBody {
    /// SHA-256 of the bytes as they came.
    pub digest: [u8; 32],
    /// The bytes, compressed (LZ4 block, length in front).
    pub compressed: Vec<u8>,
    /// The content type that they came with.
    pub content_type: String,
    /// The headers worth keeping, as a JSON object; no signatures. [`SIGNED_WITH`] may stand beside them.
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

/// Whose a key is that a running job asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The job's own.
    Mine,
    /// Another job's. That this one stands behind it was written in the same transaction: [`behind`].
    Behind(JobId),
}

/// The scope of the keys by which it is known who stands behind a job: each is the id of one of them.
pub fn behind(owner: JobId) -> String {
    format!("behind {owner}")
}

/// How long it is known who stood behind a job.
pub const BEHIND_MEMORY: Duration = Duration::from_hours(24 * 30);

/// A key that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldKey {
    /// Its name in its scope.
    pub key: String,
    /// The job that holds it.
    pub owner: JobId,
    /// Whether that job has not ended.
    pub under_way: bool,
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

/// What [`super::Work::finish`] did.
#[derive(Clone, Debug, Default)]
pub struct Finished {
    /// For each ended attempt, in order: whether it was recorded. False: it was stale, nothing was written for it.
    pub recorded: Vec<bool>,
    /// What became available by it.
    pub bells: Bells,
}

/// What there is for the upkeep to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chores {
    /// The database's time.
    pub time: Timestamp,
    /// When the next job is due, or was, if one waits for its time.
    pub next_due: Option<Timestamp>,
    /// Whether the lease of a running job has run out.
    pub has_orphans: bool,
    /// Whether something waits at the door, or for an approval whose time is over.
    pub has_waiting: bool,
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

/// A nominal time of a schedule, and what is to become of it.
#[derive(Clone, Debug)]
pub struct Firing {
    /// The schedule's name.
    pub schedule: String,
    /// The time that the schedule names, not the time at which somebody came round to it.
    pub nominal: Timestamp,
    /// Of the configuration that the schedule is from.
    pub config_digest: String,
    /// What is to become of it.
    pub due: Due,
}

/// What is to become of a nominal time. While the schedule is paused it is recorded as skipped, whatever it is.
#[derive(Clone, Debug)]
pub enum Due {
    /// Its work is to be stored.
    Work {
        /// What it starts.
        work: NewWork,
        /// What becomes of it where earlier work has not ended.
        overlap: Overlap,
    },
    /// It is recorded as missed, with those before it.
    Missed {
        /// The first that was missed; the firing's own is the last.
        first: Timestamp,
        /// How many there are; where counting them would take too long, at least so many.
        times: u32,
        /// Why, for people.
        reason: String,
        /// Tells people.
        notice: Option<Box<NewJob>>,
    },
}

/// What became of a firing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fired {
    /// The work is stored. What became available by it.
    Now(Bells),
    /// Earlier work has not ended: it waits, and is to be fired again. What became available by what was cancelled.
    Waits(Bells),
    /// It is recorded as skipped, for this reason.
    Skipped(String),
    /// It is recorded as missed. What became available by the notice.
    Missed(Bells),
    /// This nominal time was settled before; nothing was stored.
    Before,
    /// A producer with a newer configuration is alive: schedules are its to fire; nothing was stored.
    Outdated,
}

impl Fired {
    /// What is to be rung.
    pub fn bells(&self) -> Option<&Bells> {
        match self {
            Self::Now(bells) | Self::Waits(bells) | Self::Missed(bells) => Some(bells),
            Self::Skipped(_) | Self::Before | Self::Outdated => None,
        }
    }
}

/// A schedule that a producer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Its name.
    pub schedule: String,
    /// Its whole timetable as text: where it changes, the schedule begins anew.
    pub timetable: String,
}

/// How far a schedule has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Its name.
    pub schedule: String,
    /// All nominal times up to this one are settled. At first sight that is now: nothing is made up for from before.
    pub settled: Timestamp,
    /// Nominal times that wait for the end of earlier work, the oldest first.
    pub waiting: Vec<Timestamp>,
}

/// A source that a producer listens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listened {
    /// Its name.
    pub source: String,
    /// When this producer last took a verified delivery of it.
    pub heard_at: Option<Timestamp>,
    /// For how long it may be silent; none: for ever.
    pub silent_after: Option<Duration>,
}

/// A source has gone silent, or its silence is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Its name.
    pub source: String,
    /// When it was last heard; none: never.
    pub heard_at: Option<Timestamp>,
    /// For how long somebody has listened since then.
    pub quiet: Duration,
    /// It speaks again, or nobody is to be told any more that it is silent.
    pub is_over: bool,
    /// Whether anybody is to be told when it is silent: it is configured, and may not be silent for ever.
    pub is_watched: bool,
}

/// More nominal times of a schedule than this do not wait: who never keeps up would wait for ever.
pub const MOST_WAITING: usize = 100;

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
    /// Its nominal times are recorded as skipped.
    Schedule(String),
}

impl Pausable {
    /// The word for what it is.
    pub const fn what(&self) -> &'static str {
        match self {
            Self::Queue(_) => "queue",
            Self::Kind(_) => "kind",
            Self::Key(_) => "key",
            Self::Schedule(_) => "schedule",
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Queue(name) | Self::Kind(name) | Self::Key(name) | Self::Schedule(name) => name,
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

/// What is older is forgotten; none is kept for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Horizons {
    /// Senders' own bytes, by when they were received.
    pub bodies: Option<Timestamp>,
    /// Events, with their bodies, by when they were received.
    pub events: Option<Timestamp>,
    /// Jobs and whole runs with all that belongs to them, by when they ended.
    pub jobs: Option<Timestamp>,
    /// Of events that are held or in quarantine, and their bodies, only what was received before this; none: all alike.
    pub waiting: Option<Timestamp>,
}
