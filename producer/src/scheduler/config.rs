//! Schedules as the configuration file spells them, and their checks: what is wrong is found when the file is read, not
//! at night.

use std::time::Duration;

use schemas::runbook::check_arguments;
use schemas::{CatchUp, Overlap, Problem, Schedule, Starts, Template, Timestamp, Timetable, period};
use serde::Deserialize;
use serde_json::Value;

use crate::routes::{RunConfig, Startable, Target, target_of};

/// No more missed times are made up for.
const MOST_CAUGHT_UP: usize = 100;

/// So many times of a schedule are looked at for the shortest time between two.
const LOOKED_AT: usize = 400;

/// A schedule as the configuration file spells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// When its time comes: minute, hour, day of the month, month, weekday.
    pub cron: String,
    /// The IANA zone of the clock that it goes by.
    #[serde(default = "utc")]
    pub timezone: String,
    /// What it starts.
    pub run: RunConfig,
    /// What becomes of missed times.
    #[serde(default)]
    pub catch_up: CatchUp,
    /// At most so many are made up for where `catch_up` is `all`.
    #[serde(default = "some")]
    pub catch_up_limit: usize,
    /// What becomes of a time that comes while earlier work has not ended.
    #[serde(default)]
    pub overlap: Overlap,
    /// It fires within this after its nominal time.
    #[serde(default, with = "period")]
    pub jitter: Duration,
}

fn utc() -> String {
    "UTC".to_owned()
}

const fn some() -> usize {
    24
}

impl ScheduleConfig {
    /// Checks it whole.
    pub fn build(&self, name: &str, startable: &Startable) -> Result<Schedule, Vec<Problem>> {
        let mut problems = Vec::new();
        let timetable = Timetable::read(&self.cron, &self.timezone).map_err(|found| problems.extend(found)).ok();
        let target = target_of(&self.run, startable).map_err(|found| problems.push(found.within("run"))).ok();
        let with = Template::parse(Value::Object(self.run.with.clone()));
        let with = with.map_err(|found| problems.push(found.within("with").within("run"))).ok();
        if let (Some(target), Some(with)) = (&target, &with) {
            problems.extend(check_with(name, target, with, startable).into_iter().map(|found| found.within("run")));
        }
        if !(1..=MOST_CAUGHT_UP).contains(&self.catch_up_limit) {
            let problem = Problem::new(format!("this must be between 1 and {MOST_CAUGHT_UP}"));
            problems.push(problem.within("catch_up_limit"));
        }
        problems.extend(timetable.as_ref().and_then(|timetable| self.check_jitter(timetable)));
        match (timetable, target, with) {
            (Some(timetable), Some(target), Some(with)) if problems.is_empty() => Ok(Schedule {
                name: name.to_owned(),
                timetable,
                catch_up: self.catch_up,
                catch_up_limit: self.catch_up_limit,
                overlap: self.overlap,
                jitter: self.jitter,
                starts: match target {
                    Target::Job(kind) => Starts::Job(kind),
                    Target::Runbook(runbook) => Starts::Runbook(runbook),
                },
                with,
            }),
            _ => Err(problems),
        }
    }

    /// A time that comes before the one before it has fired would be late each time.
    fn check_jitter(&self, timetable: &Timetable) -> Option<Problem> {
        if self.jitter.is_zero() {
            return None;
        }
        let times: Vec<Timestamp> = timetable.times_after(Timestamp::UNIX_EPOCH).take(LOOKED_AT).collect();
        let shortest = times.windows(2).filter_map(|pair| (pair[1] - pair[0]).to_std().ok()).min()?;
        (self.jitter >= shortest).then(|| {
            let help = format!("its times come {} after one another; write less", period::write(shortest));
            Problem::new("this is as long as the time between two of its times, or longer").help(help).within("jitter")
        })
    }
}

fn check_with(name: &str, target: &Target, with: &Template, startable: &Startable) -> Vec<Problem> {
    let examples = Schedule::variables(name, Timestamp::UNIX_EPOCH);
    let below = |problems: Vec<Problem>| problems.into_iter().map(|problem| problem.within("with")).collect();
    match target {
        Target::Job(kind) => check_arguments(with, kind, &startable.catalog, &examples),
        Target::Runbook(runbook) => {
            let problems = with.check(&examples);
            let Some(runbook) = startable.runbooks.get(runbook).filter(|_| problems.is_empty()) else {
                return below(problems);
            };
            below(match with.render(&examples) {
                Ok(Value::Object(inputs)) => runbook.check_inputs(&inputs),
                Ok(_) => Vec::new(),
                Err(error) => vec![Problem::new(error.to_string())],
            })
        }
    }
}
