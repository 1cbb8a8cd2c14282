//! Requests and responses of the HTTP API, and the views that operators read.

mod desk;
mod schedules;
mod sources;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    AttemptRecord, Event, EventId, JobId, JobState, Priority, Rate, Role, RunId, RunState, Standing, StepRecord,
    Timestamp,
};

pub use desk::{
    PauseRequest, PauseWhat, PreviewRequest, ReplayAnswer, ReplayFilter, ReplayJobRequest, ReplayLine, ReplayPreview,
    ReplayRequest, TokenAnswer, TokenRequest,
};
pub use schedules::{FiringOutcome, FiringView, NextTime, ScheduleDetails, ScheduleView, ScheduledView};
pub use sources::SourceView;

/// The answer to a delivery.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DeliveryAnswer {
    /// The event; none while the delivery lies in the spool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<EventId>,
    /// The jobs that it made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<JobId>,
    /// This delivery is already committed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub duplicate: bool,
    /// Verified, but not readable as an event.
    #[serde(default, skip_serializing_if = "is_false")]
    pub quarantined: bool,
    /// A suspected replay, kept without jobs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub held: bool,
    /// The ledger is away: the delivery is on disk and will be read into it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub spooled: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// An error, as every API answers it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ErrorAnswer {
    /// What went wrong and what to do.
    pub error: String,
}

/// Starts a runbook or a single job: `POST /api/v1/runs`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartRequest {
    /// A runbook's name, or a job kind.
    pub run: String,
    /// The runbook's inputs, or the job's arguments.
    #[serde(default)]
    pub with: Map<String, Value>,
    /// Why; kept with the run.
    pub reason: String,
    /// A name for this start, up to 200 characters: a second request with it starts nothing and answers the first one's
    /// id, for 24 hours.
    #[serde(default)]
    pub key: Option<String>,
}

/// What was started.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StartAnswer {
    /// The run, where a runbook was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The job, where a single one was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// The key was taken: this is what holds it, and nothing was started.
    #[serde(default)]
    pub existing: bool,
}

/// Why an operator does something: the body of every verb on a job or event.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReasonRequest {
    /// Why; kept in the audit.
    pub reason: String,
}

/// An event, for people.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EventView {
    /// The event; in quarantine its facts are empty.
    pub event: Event,
    /// What became of the delivery.
    pub standing: Standing,
    /// Why it is held or quarantined.
    pub reason: Option<String>,
    /// When we received it.
    pub received_at: Timestamp,
    /// What the routes said that could not be evaluated.
    pub route_errors: Vec<String>,
    /// The jobs made for it, those of runs left out.
    pub jobs: Vec<JobId>,
    /// The runs started for it.
    pub runs: Vec<RunId>,
}

/// A job, for people.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// Its kind.
    pub kind: String,
    /// Its queue.
    pub queue: String,
    /// Its priority.
    pub priority: Priority,
    /// Its state.
    pub state: JobState,
    /// Its arguments.
    pub args: Value,
    /// When it may run next, where it waits for that.
    pub run_at: Option<Timestamp>,
    /// When it was stored.
    pub created_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// The number of its last attempt; 0 where it had none.
    #[serde(default)]
    pub attempt: i32,
    /// How many attempts failed.
    pub failures: i32,
    /// How many processes died under it without progress.
    pub crashes: i32,
    /// Why it is in its state: the error, the condition that was false, who cancelled it.
    pub reason: Option<String>,
    /// What it put out.
    pub output: Option<Value>,
    /// The event that it was made for.
    pub event: Option<EventId>,
    /// The run that it belongs to.
    pub run: Option<RunId>,
    /// The trace that it was made in, in hex.
    pub trace_id: Option<String>,
    /// The job that it does again.
    #[serde(default)]
    pub replay_of: Option<JobId>,
    /// The schedule that started it, and for which nominal time.
    #[serde(default)]
    pub schedule: Option<ScheduledView>,
    /// What it must find room at.
    #[serde(default)]
    pub limits: Vec<LimitView>,
    /// Whose consent it waits for, or had.
    #[serde(default)]
    pub approval: Option<ApprovalView>,
    /// Its attempts, first to last.
    pub attempts: Vec<AttemptRecord>,
    /// Its steps, in the order of their start.
    pub steps: Vec<StepRecord>,
}

/// What a job must find room at, for people.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LimitView {
    /// The name that jobs share.
    pub key: String,
    /// At most so many at once.
    pub at_once: Option<u32>,
    /// How often they may start.
    pub rate: Option<Rate>,
    /// Whether the job has its room there now.
    pub inside: bool,
}

/// Whose consent a job waits for, or had, for people.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalView {
    /// The job.
    pub job: JobId,
    /// Its kind.
    pub kind: String,
    /// The run that it belongs to.
    pub run: Option<RunId>,
    /// Its arguments, which the consent binds to.
    pub args: Value,
    /// How many people must consent.
    pub needed: u32,
    /// The role that each of them must have at least.
    pub role: Role,
    /// Whether who started the work may consent to it.
    pub own: bool,
    /// Who started the work, where a person or a program did.
    pub requested_by: Option<String>,
    /// Since when it waits for consent; none where its needs have not ended.
    pub requested_at: Option<Timestamp>,
    /// When it is cancelled without it.
    pub expires_at: Option<Timestamp>,
    /// When the last consent came.
    pub granted_at: Option<Timestamp>,
    /// Who consented.
    pub consents: Vec<ConsentView>,
}

/// One consent, for people.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ConsentView {
    /// Who.
    pub actor: String,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
    /// Whether they consented to what they had started.
    pub own: bool,
}

/// A pause, for people.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PauseView {
    /// `queue`, `kind`, `key` or `schedule`.
    pub what: String,
    /// Its name.
    pub name: String,
    /// Since when.
    pub at: Timestamp,
    /// Who paused it.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// A token, for people. The token itself was shown once, to who made it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TokenView {
    /// Its name: the actor of what it does.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// When it was ended.
    pub revoked_at: Option<Timestamp>,
}

/// A run, for people.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RunView {
    /// Its id.
    pub id: RunId,
    /// The runbook's name.
    pub runbook: String,
    /// How it stands.
    pub state: RunState,
    /// What it was started with.
    pub inputs: Value,
    /// When it was started.
    pub created_at: Timestamp,
    /// When its last job ended.
    pub finished_at: Option<Timestamp>,
    /// The event that it was started for.
    pub event: Option<EventId>,
    /// Who started it.
    pub actor: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// The run that it does again.
    #[serde(default)]
    pub replay_of: Option<RunId>,
    /// Its jobs, each after those it needs.
    pub jobs: Vec<RunJobView>,
}

/// A job in a run, for people.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RunJobView {
    /// Its name in the runbook.
    pub name: String,
    /// Its id.
    pub job: JobId,
    /// Its kind.
    pub kind: String,
    /// Its state.
    pub state: JobState,
    /// The jobs that it needs.
    pub needs: Vec<String>,
    /// Why it is in its state.
    pub reason: Option<String>,
    /// What it put out.
    pub output: Option<Value>,
    /// When its first attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// How many jobs of a queue are in each state that is not finished.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct QueueView {
    /// Its name.
    pub queue: String,
    /// Jobs by state.
    pub jobs: BTreeMap<String, u64>,
    /// When the job was made available that has waited longest.
    pub oldest_available: Option<Timestamp>,
    /// The pause, where it is paused.
    #[serde(default)]
    pub paused: Option<PauseView>,
}

/// One line of the audit, for people.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AuditView {
    /// When it was done.
    pub at: Timestamp,
    /// Who did it.
    pub actor: String,
    /// What was done.
    pub verb: String,
    /// What it was done to.
    pub subject: String,
    /// Why.
    pub reason: String,
}
