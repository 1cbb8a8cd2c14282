//! Schedules: what starts a job or a runbook when its time comes, once for each nominal time.

mod cron;
mod timetable;
mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chrono::{SecondsFormat, TimeDelta};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::runbook::Start;
use crate::{Catalog, JobId, NewJob, NewRun, Problem, RunId, Runbook, Template, Timestamp};

pub use timetable::Timetable;

/// What becomes of nominal times that passed while nobody was there to fire them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// They are recorded as missed, and people are told.
    Skip,
    /// The newest is made up for; the others are recorded as missed.
    #[default]
    Once,
    /// The newest ones are made up for, each, up to the schedule's limit; older ones are recorded as missed, and people
    /// are told.
    All,
}

/// What becomes of a nominal time that comes while the work of an earlier one has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// It is recorded as skipped.
    #[default]
    Skip,
    /// It waits for the end of the earlier one.
    Queue,
    /// The earlier one is cancelled; when that has ended, it fires. A newer one takes the place of those that wait.
    CancelRunning,
}

/// What a schedule starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Starts {
    /// A job of this kind.
    Job(String),
    /// A run of this runbook.
    Runbook(String),
}

impl fmt::Display for Starts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(kind) => write!(f, "job {kind}"),
            Self::Runbook(name) => write!(f, "runbook {name}"),
        }
    }
}

/// Work that is to be stored.
#[derive(Clone, Debug)]
pub enum NewWork {
    /// A job.
    Job(Box<NewJob>),
    /// A run.
    Run(Box<NewRun>),
}

/// Work that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkId {
    /// A job.
    Job(JobId),
    /// A run.
    Run(RunId),
}

impl fmt::Display for WorkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(id) => write!(f, "job {id}"),
            Self::Run(id) => write!(f, "run {id}"),
        }
    }
}

/// A schedule, checked.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Its name.
    pub name: String,
    /// When its time comes.
    pub timetable: Timetable,
    /// What becomes of missed times.
    pub catch_up: CatchUp,
    /// At most so many missed times are made up for, where all are.
    pub catch_up_limit: usize,
    /// What becomes of times that come too early.
    pub overlap: Overlap,
    /// It fires within this after its nominal time, at a moment that the nominal time alone decides.
    pub jitter: Duration,
    /// What it starts.
    pub starts: Starts,
    /// The arguments or inputs, over `schedule.name` and `schedule.time`.
    pub with: Template,
}

impl Schedule {
    /// Who does what a schedule does: the actor of its runs, and in the audit.
    pub fn actor(name: &str) -> String {
        format!("schedule:{name}")
    }

    /// When a nominal time fires: the same moment, whichever producer asks.
    pub fn due(&self, nominal: Timestamp) -> Timestamp {
        let most = u64::try_from(self.jitter.as_millis()).unwrap_or(u64::MAX);
        let late = spread(&self.name, nominal).checked_rem(most).unwrap_or(0);
        let late = TimeDelta::milliseconds(i64::try_from(late).unwrap_or(0));
        nominal.checked_add_signed(late).unwrap_or(nominal)
    }

    /// What its templates see.
    pub fn variables(name: &str, nominal: Timestamp) -> Value {
        json!({"schedule": {"name": name, "time": nominal.to_rfc3339_opts(SecondsFormat::Secs, true)}})
    }

    /// The work of a nominal time; without an actor in `start`, the schedule's own.
    pub fn make(
        &self,
        nominal: Timestamp,
        start: Start,
        catalog: &Catalog,
        runbooks: &BTreeMap<String, Runbook>,
        now: Timestamp,
    ) -> Result<NewWork, Problem> {
        let with = self.with.render(&Self::variables(&self.name, nominal));
        let with = with.map_err(|error| Problem::new(error.to_string()).within("with"))?;
        match &self.starts {
            Starts::Job(kind) => {
                let job = catalog.job(kind, &with, now)?;
                Ok(NewWork::Job(Box::new(NewJob { trace: start.trace, ..job })))
            }
            Starts::Runbook(name) => {
                let unknown = || Problem::unknown("runbook", name, runbooks.keys().map(String::as_str));
                let runbook = runbooks.get(name).ok_or_else(unknown)?;
                let inputs = with.as_object().cloned().unwrap_or_default();
                let time = nominal.to_rfc3339_opts(SecondsFormat::Secs, true);
                let start = Start {
                    actor: start.actor.or_else(|| Some(Self::actor(&self.name))),
                    reason: start.reason.or_else(|| Some(format!("its nominal time {time}"))),
                    ..start
                };
                Ok(NewWork::Run(Box::new(runbook.plan(&inputs, start, catalog, now)?)))
            }
        }
    }
}

/// A number that a name and a moment always have (FNV-1a, then mixed): not the standard library's hash, which may differ
/// between two releases that run together.
fn spread(name: &str, nominal: Timestamp) -> u64 {
    let bytes = name.bytes().chain(nominal.timestamp().to_le_bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(jitter: Duration) -> Schedule {
        Schedule {
            name: "nightly".into(),
            timetable: Timetable::read("@daily", "UTC").unwrap(),
            catch_up: CatchUp::default(),
            catch_up_limit: 1,
            overlap: Overlap::default(),
            jitter,
            starts: Starts::Job("noop".into()),
            with: Template::parse(json!({})).unwrap(),
        }
    }

    #[test]
    fn jitter_is_decided_by_the_nominal_time_alone_and_uses_its_whole_room() {
        let (none, some) = (schedule(Duration::ZERO), schedule(Duration::from_mins(10)));
        let mut late = Vec::new();
        for time in none.timetable.times_after(Timestamp::UNIX_EPOCH).take(1000) {
            assert_eq!(none.due(time), time);
            assert_eq!(some.due(time), some.clone().due(time));
            late.push((some.due(time) - time).num_seconds());
        }
        assert!(late.iter().all(|late| (0..600).contains(late)));
        for quarter in 0..4 {
            let here = late.iter().filter(|late| **late / 150 == quarter).count();
            assert!((150..350).contains(&here), "{here} of 1000 in quarter {quarter}");
        }
        assert_eq!(some.due(Timestamp::UNIX_EPOCH).timestamp_millis(), DUE_AT_THE_EPOCH, "old and new releases agree");
    }

    /// Changing this makes two releases that run together fire at different moments.
    const DUE_AT_THE_EPOCH: i64 = 269_151;
}
