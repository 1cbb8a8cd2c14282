//! `schedules`: what the clock starts.

use clap::Subcommand;
use schemas::api::{
    FiringView, NextTime, PauseRequest, PauseView, PauseWhat, ReasonRequest, ScheduleDetails, ScheduleView, StartAnswer,
};
use url::form_urlencoded::byte_serialize;

use super::queues::paused;
use super::run::{say, wait_for};
use crate::args::Global;
use crate::client::Client;
use crate::config::Span;
use crate::failure::Failure;
use crate::output::{facts, line, moment, table};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All schedules, with their next time and what became of the last.
    List,
    /// One schedule, with its next five times and what became of the last twenty.
    Show {
        /// Its name.
        name: String,
    },
    /// Start a schedule's work now, beside its own times.
    Run {
        /// Its name.
        name: String,
        /// Why; kept with the work and in the audit.
        #[arg(long)]
        reason: String,
        /// Wait for the end; the exit code is the outcome.
        #[arg(long)]
        wait: bool,
        /// How long to wait, such as 90s, 30m or 2h.
        #[arg(long, value_name = "TIME", default_value = "1h", requires = "wait")]
        timeout: Span,
    },
    /// Pause a schedule: its times are recorded as skipped, what runs goes on.
    Pause {
        /// Its name.
        name: String,
        /// Why; kept in the audit and with the pause.
        #[arg(long)]
        reason: String,
    },
    /// End a pause. Times that passed meanwhile are not made up for.
    Resume {
        /// Its name.
        name: String,
        /// Why; kept in the audit.
        #[arg(long)]
        reason: String,
    },
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    let pauses: Vec<PauseView> = match command {
        Command::List => {
            let schedules: Vec<ScheduleView> = client.get("schedules").await?;
            return global.output().print(&schedules, |schedules| rows(schedules));
        }
        Command::Show { name } => {
            let schedule: ScheduleDetails = client.get(&path(&name, "")).await?;
            return global.output().print(&schedule, details);
        }
        Command::Run { name, reason, wait, timeout } => {
            let started: StartAnswer = client.post(&path(&name, "/run"), &ReasonRequest { reason }).await?;
            if !wait {
                return global.output().print(&started, say);
            }
            return wait_for(&client, started, timeout, global.output()).await;
        }
        Command::Pause { name, reason } => client.post("pauses", &request(name, reason)).await?,
        Command::Resume { name, reason } => client.post("pauses/resume", &request(name, reason)).await?,
    };
    global.output().print(&pauses, |pauses| paused(pauses))
}

fn path(name: &str, verb: &str) -> String {
    // In a path a space is no `+`.
    let name = byte_serialize(name.as_bytes()).collect::<String>().replace('+', "%20");
    format!("schedules/{name}{verb}")
}

fn request(name: String, reason: String) -> PauseRequest {
    PauseRequest { what: PauseWhat::Schedule, name, reason }
}

fn rows(schedules: &[ScheduleView]) -> String {
    let row = |schedule: &ScheduleView| {
        let next = schedule.next.first().map(|next| moment(next.at)).unwrap_or_default();
        let next = if schedule.paused.is_some() { "paused".to_owned() } else { next };
        let last = schedule.last.as_ref().map(became).unwrap_or_default();
        [schedule.name.clone(), when(schedule), schedule.starts.clone(), next, last]
    };
    table(["SCHEDULE", "WHEN", "STARTS", "NEXT", "LAST"], schedules.iter().map(row))
}

fn when(schedule: &ScheduleView) -> String {
    format!("{} ({})", schedule.words, schedule.timezone)
}

/// A nominal time and what became of it, in one line.
fn became(firing: &FiringView) -> String {
    let what = firing.state.clone().unwrap_or_else(|| firing.outcome.as_str().to_owned());
    format!("{} {what}", moment(firing.nominal))
}

fn details(shown: &ScheduleDetails) -> String {
    let ScheduleDetails { schedule, firings } = shown;
    let word = |value: serde_json::Result<serde_json::Value>| value.ok()?.as_str().map(str::to_owned);
    let head = facts([
        ("name", Some(schedule.name.clone())),
        ("when", Some(when(schedule))),
        ("cron", Some(schedule.cron.clone())),
        ("starts", Some(schedule.starts.clone())),
        ("catch up", word(serde_json::to_value(schedule.catch_up))),
        ("overlap", word(serde_json::to_value(schedule.overlap))),
        ("paused", schedule.paused.as_ref().map(|pause| format!("by {}: {}", pause.actor, pause.reason))),
    ]);
    let next = schedule.next.iter().map(|NextTime { at, local }| [moment(*at), local.clone()]);
    let past = firings.iter().map(|firing| {
        let times = if firing.times > 1 {
            format!("{} ({} times)", firing.outcome.as_str(), firing.times)
        } else {
            firing.outcome.as_str().to_owned()
        };
        let made = match (firing.job, firing.run) {
            (Some(job), _) => format!("job {job}"),
            (None, Some(run)) => format!("run {run}"),
            (None, None) => String::new(),
        };
        let why = firing.reason.as_deref().map(line).unwrap_or_default();
        [moment(firing.nominal), times, firing.state.clone().unwrap_or_default(), made, why]
    });
    let past = table(["TIME", "BECAME", "STATE", "WORK", "REASON"], past);
    format!("{head}\n\n{}\n\n{past}", table(["NEXT (UTC)", "THERE"], next))
}
