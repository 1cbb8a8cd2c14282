//! `runs`: executions of runbooks.

use clap::Subcommand;
use schemas::api::{ReasonRequest, ReplayAnswer, RunView};
use schemas::{JobState, RunId};

use super::replay::made;
use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{facts, line, moment, table};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The newest runs.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// One run, with its jobs.
    Show {
        /// Its id.
        id: RunId,
    },
    /// End a run: its jobs that wait at once, those that run at their next heartbeat.
    Cancel {
        /// Its id.
        id: RunId,
        /// Why; kept in the audit.
        #[arg(long)]
        reason: String,
    },
    /// Do a run that has ended again: with the same inputs, planned anew from the server's present runbook.
    Replay {
        /// Its id.
        id: RunId,
        /// Why; kept in the audit.
        #[arg(long)]
        reason: String,
    },
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    match command {
        Command::List { limit } => {
            let runs: Vec<RunView> = client.get(&format!("runs?limit={limit}")).await?;
            global.output().print(&runs, |runs| rows(runs))
        }
        Command::Cancel { id, reason } => {
            let run: RunView = client.post(&format!("runs/{id}/cancel"), &ReasonRequest { reason }).await?;
            global.output().print(&run, details)
        }
        Command::Replay { id, reason } => {
            let answer: ReplayAnswer = client.post(&format!("runs/{id}/replay"), &ReasonRequest { reason }).await?;
            global.output().print(&answer, made)
        }
        Command::Show { id } => {
            let run: RunView = client.get(&format!("runs/{id}")).await?;
            global.output().print(&run, details)
        }
    }
}

/// How far a run is, in one line.
pub(crate) fn progress(run: &RunView) -> String {
    let ended = run.jobs.iter().filter(|job| job.state.is_finished()).count();
    let now: Vec<&str> =
        run.jobs.iter().filter(|job| job.state == JobState::Running).map(|job| job.name.as_str()).collect();
    let now = if now.is_empty() { String::new() } else { format!("; now {}", now.join(", ")) };
    format!("{}: {ended} of {} jobs ended{now}", run.runbook, run.jobs.len())
}

fn rows(runs: &[RunView]) -> String {
    let row = |run: &RunView| {
        let reason = run.reason.as_deref().map(line).unwrap_or_default();
        [run.id.to_string(), run.runbook.clone(), run.state.as_str().to_owned(), moment(run.created_at), reason]
    };
    table(["ID", "RUNBOOK", "STATE", "CREATED", "REASON"], runs.iter().map(row))
}

/// All about one run.
pub(crate) fn details(run: &RunView) -> String {
    let head = facts([
        ("id", Some(run.id.to_string())),
        ("runbook", Some(run.runbook.clone())),
        ("state", Some(run.state.as_str().to_owned())),
        ("inputs", Some(run.inputs.to_string())),
        ("created", Some(moment(run.created_at))),
        ("finished", run.finished_at.map(moment)),
        ("event", run.event.map(|id| id.to_string())),
        ("replay of", run.replay_of.map(|id| id.to_string())),
        ("actor", run.actor.clone()),
        ("reason", run.reason.clone()),
    ]);
    let jobs = run.jobs.iter().map(|job| {
        let why = job.reason.clone().or_else(|| job.output.as_ref().map(ToString::to_string)).unwrap_or_default();
        let ended = job.finished_at.map(moment).unwrap_or_default();
        [job.name.clone(), job.kind.clone(), job.state.as_str().to_owned(), ended, job.job.to_string(), line(&why)]
    });
    format!("{head}\n\n{}", table(["JOB", "KIND", "STATE", "ENDED", "ID", "REASON OR OUTPUT"], jobs))
}
