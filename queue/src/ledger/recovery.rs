//! A copy of a ledger that is to go on, because the machine that wrote it is lost.

use schemas::{AttemptId, EventId, JobId, JobState, RunId, Timestamp};
use serde::Serialize;
use uuid::Uuid;

use super::{Announced, Operator, Progress};
use crate::config::MissedTimes;

/// What is to be known to go on from a copy.
pub struct Recovery<'a> {
    /// Who recovers it, and why.
    pub by: Operator,
    /// Where the copy is from, in words.
    pub from: String,
    /// The moment that the copy shows.
    pub shows: Timestamp,
    /// Whether what was open goes on without asking.
    pub go_on: bool,
    /// The schedules that are configured.
    pub schedules: Vec<Announced>,
    /// Of the configuration that they are from.
    pub config_digest: String,
    /// Which of a schedule's times came since; it is told how far the schedule had come, and what time it is.
    pub missed: &'a (dyn Fn(&Progress, Timestamp) -> Option<MissedTimes> + Send + Sync),
}

/// What was found in the copy, and what became of it.
#[derive(Debug)]
pub struct Recovered {
    /// Which ledger it is now: another one than the lost machine's.
    pub instance: Uuid,
    /// When it went on.
    pub at: Timestamp,
    /// Attempts that ran, as the copy shows it.
    pub interrupted: Vec<AttemptId>,
    /// Jobs that the lost machine may have done after the copy.
    pub open: Vec<OpenJob>,
    /// The last event of each source.
    pub sources: Vec<LastEvent>,
    /// Times of schedules since the copy; they are recorded as missed.
    pub missed: Vec<MissedTimes>,
}

/// A job that had not ended, as the copy shows it.
#[derive(Clone, Debug, Serialize)]
pub struct OpenJob {
    /// Which.
    pub job: JobId,
    /// Its kind.
    pub kind: String,
    /// Its queue.
    pub queue: String,
    /// Its state in the copy.
    pub was: JobState,
    /// The event that it was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<EventId>,
    /// The run that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
}

/// The last event that is known of a source.
#[derive(Clone, Debug, Serialize)]
pub struct LastEvent {
    /// Its source.
    pub source: String,
    /// When it was received.
    pub received_at: Timestamp,
    /// The sender's id of the delivery.
    pub delivery_id: String,
}
