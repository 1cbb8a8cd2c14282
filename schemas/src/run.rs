//! Runs: one execution of a runbook. Graph and arguments are fixed when it starts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{EventId, Key, NewJob, RunId, TraceContext};

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// Some job of it has not ended.
    Running,
    /// Every job completed, or was skipped by its own `if`.
    Completed,
    /// Some job was discarded, or skipped because another failed. A later `always()` job does not mend that.
    Failed,
    /// Some job was cancelled, and none discarded.
    Cancelled,
}

impl RunState {
    const ALL: [Self; 4] = [Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    /// The small number that the ledgers store.
    pub const fn code(self) -> i16 {
        self as i16
    }

    /// The inverse of [`RunState::code`].
    pub fn from_code(code: i16) -> Option<Self> {
        usize::try_from(code).ok().and_then(|index| Self::ALL.get(index)).copied()
    }

    /// The word that people and JSON see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A run to be stored, whole. Made by [`crate::Runbook::plan`].
#[derive(Clone, Debug)]
pub struct NewRun {
    /// Ours.
    pub id: RunId,
    /// The runbook's name.
    pub runbook: String,
    /// The inputs that it was planned with.
    pub inputs: Value,
    /// Its jobs, each after those it needs.
    pub jobs: Vec<PlannedJob>,
    /// The event that it was started for.
    pub event: Option<EventId>,
    /// Who started it, where a person or a program did.
    pub actor: Option<String>,
    /// Why, in their words.
    pub reason: Option<String>,
    /// What it is the only one of.
    pub key: Option<Key>,
    /// The run that it does again.
    pub replay_of: Option<RunId>,
    /// The position in the trace that it was started at.
    pub trace: TraceContext,
}

/// A job in a run.
#[derive(Clone, Debug)]
pub struct PlannedJob {
    /// Its name in the runbook.
    pub name: String,
    /// The names of the jobs that must have ended before it is looked at.
    pub needs: Vec<String>,
    /// Its `if`, as CEL text.
    pub condition: Option<String>,
    /// The job itself.
    pub job: NewJob,
}
