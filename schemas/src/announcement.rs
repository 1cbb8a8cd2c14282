//! What is announced to other programs: events and how jobs ended, as `CloudEvents` 1.0.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{EventId, Facts, JobId, JobState, RunId, Timestamp};

/// An announcement, a `CloudEvents` 1.0 event in its JSON form. It comes at least once, and those of one `source` in the
/// order of their `sequence`: whoever has seen one leaves what is not higher aside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Announcement {
    /// `1.0`.
    pub specversion: String,
    /// The same each time that this comes.
    pub id: String,
    /// The configured source of the event; `nightporter/jobs/<kind>` of a job.
    pub source: String,
    /// The event's type; `nightporter.job.<state>` of a job.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the event is about; the job's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// When the event happened; when the job ended.
    pub time: Timestamp,
    /// `application/json`.
    pub datacontenttype: String,
    /// Its place among all announcements of this ledger: 20 digits, so that texts compare as the numbers do. A gap between
    /// two of one source says nothing: those of other sources are counted too.
    pub sequence: String,
    /// The sender's name for the event's delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deliveryid: Option<String>,
    /// Where in a trace it came about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What is announced.
    pub data: AnnouncedData,
}

/// What is announced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum AnnouncedData {
    /// How a job ended.
    Job(Box<JobEnd>),
    /// What a sender said.
    Event(Box<SaidEvent>),
}

/// What a sender said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SaidEvent {
    /// What it says, in names that are the same whoever sends.
    #[serde(flatten)]
    pub facts: Facts,
    /// The sender's own body, where `bodies = true` is configured, it is still kept, is JSON and no larger than 256 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<Value>,
}

/// How a job ended. One that is retried ends again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobEnd {
    /// The job.
    pub job: JobId,
    /// Its kind.
    pub kind: String,
    /// Its queue.
    pub queue: String,
    /// The state that it ended in: `completed`, `skipped`, `cancelled` or `discarded`.
    pub state: JobState,
    /// The number of its last attempt.
    pub attempt: i32,
    /// How many attempts failed.
    pub failures: i32,
    /// Why it ended so.
    pub reason: Option<String>,
    /// When it was stored.
    pub created_at: Timestamp,
    /// When its last attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// The run that it belongs to.
    pub run: Option<RunId>,
    /// The event that it was made for.
    pub event: Option<EventId>,
    /// What it has put out, where `outputs = true` is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
}
