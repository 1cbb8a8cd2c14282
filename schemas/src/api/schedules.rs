//! Schedules, for people.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PauseView;
use crate::{CatchUp, JobId, Overlap, RunId, Timestamp};

/// A schedule, for people.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleView {
    /// Its name.
    pub name: String,
    /// When its time comes, in plain words.
    pub words: String,
    /// The same, as a cron expression.
    pub cron: String,
    /// The time zone that it is in.
    pub timezone: String,
    /// What it starts: `job backup`, `runbook deploy`.
    pub starts: String,
    /// What becomes of missed times.
    pub catch_up: CatchUp,
    /// What becomes of times that come before the work of an earlier one has ended.
    pub overlap: Overlap,
    /// Its next nominal times.
    pub next: Vec<NextTime>,
    /// What became of its newest nominal time.
    pub last: Option<FiringView>,
    /// The pause, where it is paused.
    pub paused: Option<PauseView>,
}

/// A schedule with what became of its nominal times, for people.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleDetails {
    /// The schedule.
    pub schedule: ScheduleView,
    /// What became of its nominal times, the newest first.
    pub firings: Vec<FiringView>,
}

/// A nominal time that is to come.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NextTime {
    /// When.
    pub at: Timestamp,
    /// The same on the clocks of the schedule's zone.
    pub local: String,
}

/// What became of a nominal time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FiringOutcome {
    /// Its work was started.
    Fired,
    /// It waits for the end of earlier work.
    Waiting,
    /// Not done: the schedule was paused, or earlier work had not ended.
    Skipped,
    /// Not done: nobody was there to fire it.
    Missed,
}

impl FiringOutcome {
    /// The word that people and JSON see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fired => "fired",
            Self::Waiting => "waiting",
            Self::Skipped => "skipped",
            Self::Missed => "missed",
        }
    }
}

/// What became of a nominal time, for people.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FiringView {
    /// The time that the schedule names.
    pub nominal: Timestamp,
    /// When this was recorded.
    pub at: Timestamp,
    /// What became of it.
    pub outcome: FiringOutcome,
    /// How many nominal times this stands for, up to this one.
    pub times: u32,
    /// Why it was not done.
    pub reason: Option<String>,
    /// The job that it started.
    pub job: Option<JobId>,
    /// The run that it started.
    pub run: Option<RunId>,
    /// The state of that job or run.
    pub state: Option<String>,
}

/// Where scheduled work comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduledView {
    /// The schedule's name.
    pub name: String,
    /// The nominal time.
    pub nominal: Timestamp,
}
