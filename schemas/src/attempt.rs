//! Attempts: one execution of a job, what it may answer, and the steps inside it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{EventId, JobId, JobState, NewJob, Priority, RunId, Timestamp, TraceContext, WorkerId};

/// One execution of a job. The number only ever rises; every write after a claim carries it, so that a stale attempt
/// changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub struct AttemptId {
    pub job: JobId,
    pub number: i32,
}

/// What a worker gets when it claims a job.
#[derive(Clone, Debug)]
pub struct ClaimedJob {
    /// The job and the number of this attempt, the first being 1.
    pub id: AttemptId,
    /// Which handler runs it.
    pub kind: String,
    /// The handler's arguments, as JSON text.
    pub args: Box<RawValue>,
    /// The queue that it waited in.
    pub queue: String,
    /// Its place there.
    pub priority: Priority,
    /// How many attempts failed before this one; interrupted ones do not count.
    pub failures: i32,
    /// How often a process died under this job without progress. From the second on it runs alone.
    pub crashes: i32,
    /// When the job was stored: its age counts against the maximum.
    pub created_at: Timestamp,
    /// The event that it was made for.
    pub event: Option<EventId>,
    /// The run that it belongs to.
    pub run: Option<RunId>,
    /// The position in the trace that it was made at.
    pub trace: TraceContext,
}

/// How an attempt ended, as the ledger records it.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Done, with what other jobs of the run may read.
    Completed {
        /// A JSON object, at most a few KB, without secrets.
        output: Option<Box<RawValue>>,
        /// The job that tells people that it is done after all, stored in the same transaction.
        notice: Option<Box<NewJob>>,
    },
    /// Failed; to be tried again at that time. Counts as a failure.
    Retry {
        /// When.
        at: Timestamp,
        /// What went wrong, for people.
        error: String,
    },
    /// To be called again at that time, without a failure.
    Snoozed {
        /// When.
        at: Timestamp,
        /// Why, for people.
        reason: String,
    },
    /// The worker stops: available again at once, without a failure.
    Released,
    /// An operator asked for it.
    Cancelled {
        /// Who and why, for people.
        reason: String,
    },
    /// Given up.
    Discarded {
        /// What went wrong, for people.
        error: String,
        /// The job that tells people about it, stored in the same transaction.
        notice: Option<Box<NewJob>>,
    },
}

impl Outcome {
    /// The state that the job is in after it.
    pub const fn state(&self) -> JobState {
        match self {
            Self::Completed { .. } => JobState::Completed,
            Self::Retry { .. } => JobState::Retryable,
            Self::Snoozed { .. } => JobState::Scheduled,
            Self::Released => JobState::Available,
            Self::Cancelled { .. } => JobState::Cancelled,
            Self::Discarded { .. } => JobState::Discarded,
        }
    }

    /// The word under which the attempt is recorded.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Completed { .. } => "completed",
            Self::Retry { .. } => "failed",
            Self::Snoozed { .. } => "snoozed",
            Self::Released => "interrupted",
            Self::Cancelled { .. } => "cancelled",
            Self::Discarded { .. } => "discarded",
        }
    }

    /// What people should read about it, if anything.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Retry { error, .. } | Self::Discarded { error, .. } => Some(error),
            Self::Snoozed { reason, .. } | Self::Cancelled { reason } => Some(reason),
            Self::Completed { .. } | Self::Released => None,
        }
    }
}

/// What the ledger knows of a step when a handler comes to it.
#[derive(Clone, Debug)]
pub enum StepState {
    /// Never begun. It is now recorded as started.
    Fresh,
    /// An earlier attempt began it and did not say that it finished: its effect may or may not have happened.
    Unknown,
    /// Finished earlier, with this result.
    Finished(Option<Box<RawValue>>),
}

/// A past attempt, for people.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AttemptRecord {
    /// 1 for the first.
    pub number: i32,
    /// The worker process that ran it.
    pub worker: Option<WorkerId>,
    /// When it was claimed.
    pub started_at: Timestamp,
    /// When it ended; none while it runs.
    pub ended_at: Option<Timestamp>,
    /// `completed`, `failed`, `snoozed`, `interrupted`, `cancelled`, `discarded`, `crashed`; none while it runs.
    pub outcome: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

/// A step of a job, for people.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StepRecord {
    /// Its name, unique in the job.
    pub name: String,
    /// The attempt that began it last.
    pub attempt: i32,
    /// When.
    pub started_at: Timestamp,
    /// When it finished; none where that is not known.
    pub finished_at: Option<Timestamp>,
    /// Its result.
    pub result: Option<serde_json::Value>,
}
