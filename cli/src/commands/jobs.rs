//! `jobs`: units of work.

use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use schemas::api::{JobView, ReasonRequest};
use schemas::{JobId, JobState};
use url::form_urlencoded::Serializer;

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{facts, line, moment, table};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The newest jobs.
    List {
        /// Only in this state.
        #[arg(long, value_parser = PossibleValuesParser::new(JobState::ALL.map(JobState::as_str)))]
        state: Option<String>,
        /// Only of this kind.
        #[arg(long)]
        kind: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// One job, with its attempts and steps.
    Show {
        /// Its id.
        id: JobId,
    },
    /// End a job: at once where it waits, at its next heartbeat where it runs.
    Cancel {
        /// Its id.
        id: JobId,
        /// Why; kept in the audit.
        #[arg(long)]
        reason: String,
    },
    /// Make a discarded or cancelled job available again: same id, its steps and keys kept.
    Retry {
        /// Its id.
        id: JobId,
        /// Why; kept in the audit.
        #[arg(long)]
        reason: String,
    },
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    let one: JobView = match command {
        Command::List { state, kind, limit } => {
            let mut query = Serializer::new(String::new());
            query.append_pair("limit", &limit.to_string());
            for (name, value) in [("state", state), ("kind", kind)] {
                query.extend_pairs(value.map(|value| (name, value)));
            }
            let jobs: Vec<JobView> = client.get(&format!("jobs?{}", query.finish())).await?;
            return global.output().print(&jobs, |jobs| rows(jobs));
        }
        Command::Show { id } => client.get(&format!("jobs/{id}")).await?,
        Command::Cancel { id, reason } => client.post(&format!("jobs/{id}/cancel"), &ReasonRequest { reason }).await?,
        Command::Retry { id, reason } => client.post(&format!("jobs/{id}/retry"), &ReasonRequest { reason }).await?,
    };
    global.output().print(&one, details)
}

fn rows(jobs: &[JobView]) -> String {
    let row = |job: &JobView| {
        let reason = job.reason.as_deref().map(line).unwrap_or_default();
        [job.id.to_string(), job.kind.clone(), job.state.as_str().to_owned(), moment(job.created_at), reason]
    };
    table(["ID", "KIND", "STATE", "CREATED", "REASON"], jobs.iter().map(row))
}

/// All about one job.
pub(crate) fn details(job: &JobView) -> String {
    let head = facts([
        ("id", Some(job.id.to_string())),
        ("kind", Some(job.kind.clone())),
        ("state", Some(job.state.as_str().to_owned())),
        ("reason", job.reason.clone()),
        ("queue", Some(job.queue.clone())),
        ("args", Some(job.args.to_string())),
        ("output", job.output.as_ref().map(ToString::to_string)),
        ("created", Some(moment(job.created_at))),
        ("due", job.run_at.map(moment)),
        ("finished", job.finished_at.map(moment)),
        ("failures", (job.failures > 0).then(|| job.failures.to_string())),
        ("crashes", (job.crashes > 0).then(|| job.crashes.to_string())),
        ("event", job.event.map(|id| id.to_string())),
        ("run", job.run.map(|id| id.to_string())),
        ("trace", job.trace_id.clone()),
    ]);
    let attempts = job.attempts.iter().map(|attempt| {
        let outcome = attempt.outcome.clone().unwrap_or_else(|| "running".into());
        let ended = attempt.ended_at.map(moment).unwrap_or_default();
        let error = attempt.error.as_deref().map(line).unwrap_or_default();
        [attempt.number.to_string(), moment(attempt.started_at), ended, outcome, error]
    });
    let steps = job.steps.iter().map(|step| {
        let finished = step.finished_at.map_or_else(|| "not known".into(), moment);
        let result = step.result.as_ref().map(|result| line(&result.to_string())).unwrap_or_default();
        [step.name.clone(), step.attempt.to_string(), moment(step.started_at), finished, result]
    });
    let mut parts = vec![head];
    if !job.attempts.is_empty() {
        parts.push(table(["ATTEMPT", "STARTED", "ENDED", "OUTCOME", "ERROR"], attempts));
    }
    if !job.steps.is_empty() {
        parts.push(table(["STEP", "ATTEMPT", "STARTED", "FINISHED", "RESULT"], steps));
    }
    parts.join("\n\n")
}
