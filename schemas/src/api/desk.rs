//! What operators ask of the desk, and what they are answered.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::TokenView;
use crate::{JobId, JobState, Role, RunId, Timestamp};

/// Does a finished job again: `POST /api/v1/jobs/{id}/replay`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayJobRequest {
    /// Why; kept in the audit.
    pub reason: String,
    /// The new job's arguments, whole; without them, those of the old one.
    #[serde(default)]
    pub args: Option<Map<String, Value>>,
}

/// Which finished jobs are to be done again.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReplayFilter {
    /// Those that ended in this state; without it, the discarded ones.
    pub state: Option<JobState>,
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only of this queue.
    pub queue: Option<String>,
    /// Only stored at this time or later.
    pub since: Option<Timestamp>,
    /// Only stored before this time.
    pub until: Option<Timestamp>,
}

/// Asks what a replay would do: `POST /api/v1/jobs/replay/preview`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PreviewRequest {
    /// Which jobs.
    pub filter: ReplayFilter,
}

/// What a replay would do.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReplayPreview {
    /// The digest of exactly these jobs as they stand now.
    pub set: String,
    /// The jobs that the filter names, the newest first.
    pub jobs: Vec<ReplayLine>,
}

/// One job of a preview.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReplayLine {
    /// Which.
    pub job: JobId,
    /// Its kind.
    pub kind: String,
    /// The state that it ended in.
    pub state: JobState,
    /// The number of its last attempt.
    pub attempt: i32,
    /// When it was stored.
    pub created_at: Timestamp,
    /// Why it is in its state.
    pub reason: Option<String>,
    /// Why it would be left out.
    pub left_out: Option<String>,
}

/// Does many finished jobs again, exactly those of a preview, or none: `POST /api/v1/jobs/replay`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// The filter of the preview.
    pub filter: ReplayFilter,
    /// The `set` of the preview. Where it no longer fits, nothing is replayed.
    pub set: String,
    /// Why; kept in the audit.
    pub reason: String,
}

/// What a replay made. Each has new ids; `replay_of` says what it does again.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ReplayAnswer {
    /// The new jobs, those of runs left out.
    pub jobs: Vec<JobId>,
    /// The new runs.
    pub runs: Vec<RunId>,
}

/// What can be paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PauseWhat {
    /// A queue: its jobs are not given out.
    Queue,
    /// A job kind: its jobs are not let in.
    Kind,
    /// A limit's key: jobs that name it are not let in.
    Key,
    /// A schedule: its nominal times are recorded as skipped.
    Schedule,
}

/// Begins or ends a pause: `POST /api/v1/pauses`, `POST /api/v1/pauses/resume`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PauseRequest {
    /// What it is.
    pub what: PauseWhat,
    /// Its name.
    pub name: String,
    /// Why; kept in the audit and with the pause.
    pub reason: String,
}

/// Makes a token: `POST /api/v1/tokens`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Its name, for ever: what is done with it is audited under it. Up to 64 letters, digits, `.`, `_`, `-` and `@`.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// After so many days it ends, at most 3,650; without it, never.
    #[serde(default)]
    pub days: Option<u32>,
    /// Why; kept in the audit.
    pub reason: String,
}

/// A token that was made.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct TokenAnswer {
    /// The token: shown now and never again. The ledger keeps its SHA-256 only.
    pub token: String,
    /// What is known about it.
    pub about: TokenView,
}
