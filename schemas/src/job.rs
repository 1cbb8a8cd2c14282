//! Jobs: stored units of work, their states, and what is needed to make one.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{ApprovalPolicy, EventId, JobId, Limit, Timestamp, TraceContext};

/// Where a job is in its life. [`TRANSITIONS`] says how each state is entered and left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for the jobs that it needs, for an approval, for room at its limits, or for the end of a pause.
    Pending,
    /// Waits for its time.
    Scheduled,
    /// May be claimed now. This state is the outbox: there is no mark that says "announced".
    Available,
    /// Claimed by a worker that holds its lease.
    Running,
    /// Failed; waits for its next attempt.
    Retryable,
    /// Done.
    Completed,
    /// Not done, because its `if` was false or a need of it failed.
    Skipped,
    /// Ended by an operator.
    Cancelled,
    /// Given up: the dead letter.
    Discarded,
}

impl JobState {
    /// All states, in the order of their codes.
    pub const ALL: [Self; 9] = [
        Self::Pending,
        Self::Scheduled,
        Self::Available,
        Self::Running,
        Self::Retryable,
        Self::Completed,
        Self::Skipped,
        Self::Cancelled,
        Self::Discarded,
    ];

    /// The small number that the ledgers store.
    pub const fn code(self) -> i16 {
        self as i16
    }

    /// The inverse of [`JobState::code`].
    pub fn from_code(code: i16) -> Option<Self> {
        usize::try_from(code).ok().and_then(|index| Self::ALL.get(index)).copied()
    }

    /// Whether no attempt will follow by itself.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Completed | Self::Skipped | Self::Cancelled | Self::Discarded)
    }

    /// The word that people and JSON see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Scheduled => "scheduled",
            Self::Available => "available",
            Self::Running => "running",
            Self::Retryable => "retryable",
            Self::Completed => "completed",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
            Self::Discarded => "discarded",
        }
    }
}

/// One way from a state to another.
#[derive(Clone, Copy, Debug)]
pub struct Transition {
    /// None where the job begins.
    pub from: Option<JobState>,
    /// The state after it.
    pub to: JobState,
    /// Who does it.
    pub by: &'static str,
    /// Under which condition.
    pub when: &'static str,
}

const fn way(from: Option<JobState>, to: JobState, by: &'static str, when: &'static str) -> Transition {
    Transition { from, to, by, when }
}

/// Every transition there is. The table in `docs/job-states.md` is printed from it, and the
/// conformance suite refuses a ledger that makes any other.
pub const TRANSITIONS: &[Transition] = {
    use JobState::{Available, Cancelled, Completed, Discarded, Pending, Retryable, Running, Scheduled, Skipped};
    &[
        way(None, Available, "accept, enqueue", "its time is now and it needs nothing"),
        way(None, Scheduled, "accept, enqueue", "its time is later"),
        way(
            None,
            Pending,
            "accept, enqueue",
            "it needs other jobs of its run, an approval, room or the end of a pause",
        ),
        way(
            Some(Pending),
            Available,
            "whoever ended its wait",
            "its needs have ended, its condition holds, it is approved and finds room",
        ),
        way(Some(Pending), Scheduled, "whoever ended its wait", "the same, and its turn in a rate comes later"),
        way(Some(Pending), Skipped, "finish", "its condition is false, or it has none and a need failed"),
        way(Some(Pending), Discarded, "finish", "its condition could not be evaluated"),
        way(Some(Pending), Cancelled, "operator", "cancel, or an approval refused"),
        way(Some(Pending), Cancelled, "accept, enqueue", "a newer job took its place"),
        way(Some(Pending), Cancelled, "promoter", "its approval did not come in time"),
        way(Some(Scheduled), Available, "promoter", "its time has come"),
        way(Some(Scheduled), Pending, "promoter", "its time has come, and there is no room or a pause"),
        way(Some(Scheduled), Cancelled, "operator", "cancel"),
        way(Some(Available), Running, "worker", "claim"),
        way(Some(Available), Pending, "operator", "pause of its kind or key, or recover"),
        way(Some(Available), Cancelled, "operator", "cancel"),
        way(Some(Running), Completed, "worker", "the handler succeeded"),
        way(Some(Running), Retryable, "worker", "the handler failed and may be tried again"),
        way(Some(Running), Scheduled, "worker", "the handler asked to be called later (snooze)"),
        way(Some(Running), Available, "worker, rescuer, operator", "the worker stops, its lease ran out, or recover"),
        way(Some(Running), Cancelled, "worker, rescuer", "an operator asked for it while the job ran"),
        way(Some(Running), Discarded, "worker", "the handler gave up, or too many failures, or too old"),
        way(Some(Running), Discarded, "rescuer", "the third crash without progress"),
        way(Some(Running), Pending, "operator", "recover: the lost machine may have done it, so it asks first"),
        way(Some(Scheduled), Pending, "operator", "recover, where its time has come"),
        way(Some(Retryable), Pending, "operator", "recover, where its time has come"),
        way(Some(Retryable), Available, "promoter", "its time has come"),
        way(Some(Retryable), Pending, "promoter", "its time has come, and there is no room or a pause"),
        way(Some(Retryable), Scheduled, "promoter", "its time has come, and its turn in a rate comes later"),
        way(Some(Retryable), Cancelled, "operator", "cancel"),
        way(Some(Discarded), Available, "operator", "retry"),
        way(Some(Cancelled), Available, "operator", "retry"),
        way(Some(Discarded), Pending, "operator", "retry, and it waits for an approval, room or the end of a pause"),
        way(Some(Cancelled), Pending, "operator", "retry, and it waits for an approval, room or the end of a pause"),
        way(Some(Skipped), Pending, "operator", "retry of what it was skipped for"),
    ]
};

/// Which jobs go first. Few and fixed: each is a scan of its own in the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Priority {
    Urgent,
    High,
    #[default]
    Normal,
    Low,
}

impl Priority {
    /// All priorities, first served first.
    pub const ALL: [Self; 4] = [Self::Urgent, Self::High, Self::Normal, Self::Low];

    /// The small number that the ledgers store; the lower is served first.
    pub const fn code(self) -> i16 {
        self as i16
    }

    /// The inverse of [`Priority::code`].
    pub fn from_code(code: i16) -> Option<Self> {
        usize::try_from(code).ok().and_then(|index| Self::ALL.get(index)).copied()
    }
}

/// What may exist only once: while the key is held, the same work is not made again, and its maker is told which one
/// holds it. A job or run that ends discarded or cancelled lets go of its key at once; one that succeeds holds it for
/// `hold`, however long its row is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Key {
    /// What the name is unique in: a job's kind, a runbook's name.
    pub scope: String,
    /// The name.
    pub key: String,
    /// How long the key is held, counted from when it is taken.
    #[serde(with = "seconds")]
    #[schemars(with = "u64")]
    pub hold: Duration,
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.as_secs())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_secs)
    }
}

/// A job to be stored. Made by [`crate::Catalog::job`], which knows the kinds.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Ours.
    pub id: JobId,
    /// Which handler runs it.
    pub kind: String,
    /// The handler's arguments, as JSON text.
    pub args: Box<RawValue>,
    /// The queue that it waits in.
    pub queue: String,
    /// Its place in that queue.
    pub priority: Priority,
    /// When it may run; now where none is given.
    pub run_at: Option<Timestamp>,
    /// What it is the only one of. A job of a run has none: the run has it.
    pub key: Option<Key>,
    /// What it must find room at, each key once.
    pub limits: Vec<Limit>,
    /// Whose consent it waits for.
    pub approval: Option<ApprovalPolicy>,
    /// The job that it does again.
    pub replay_of: Option<JobId>,
    /// The event that it was made for.
    pub event: Option<EventId>,
    /// The position in the trace that it was made at.
    pub trace: TraceContext,
}

impl NewJob {
    /// Whether it may have to wait for more than its time and its needs.
    pub fn is_gated(&self) -> bool {
        !self.limits.is_empty() || self.approval.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_states_and_priorities_round_trip() {
        for state in JobState::ALL {
            assert_eq!(JobState::from_code(state.code()), Some(state));
        }
        for priority in Priority::ALL {
            assert_eq!(Priority::from_code(priority.code()), Some(priority));
        }
        assert_eq!(JobState::from_code(99), None);
        assert_eq!(Priority::from_code(-1), None);
    }

    #[test]
    fn every_state_is_entered_and_only_finished_ones_may_be_the_end() {
        for state in JobState::ALL {
            assert!(TRANSITIONS.iter().any(|way| way.to == state), "{state:?} is never entered");
            let left = TRANSITIONS.iter().any(|way| way.from == Some(state) && way.by != "operator");
            assert_eq!(left, !state.is_finished(), "{state:?}");
        }
    }

    /// The page that people read. `UPDATE_DOCS=1 cargo test -p schemas` writes it.
    #[test]
    fn the_page_of_job_states_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/job-states.md");
        let page = states_page();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(kept == page, "docs/job-states.md is not current: run `UPDATE_DOCS=1 cargo test -p schemas`");
    }

    fn states_page() -> String {
        let head = "\
# Job states

Made from `schemas/src/job.rs` by a test. These are all the ways there are from one state to another; no ledger makes any
other.

| from | to | who | when |
|---|---|---|---|
";
        let row = |way: &Transition| {
            let from = way.from.map_or("(new)", JobState::as_str);
            format!("| {from} | {} | {} | {} |\n", way.to.as_str(), way.by, way.when)
        };
        head.to_owned() + &TRANSITIONS.iter().map(row).collect::<String>()
    }
}
