//! `jobs`: units of work.

use clap::Subcommand;
use schemas::JobId;
use schemas::api::{JobView, LimitView, ReasonRequest, StartAnswer};
use url::form_urlencoded::Serializer;

use super::filter::Filter;
use super::{approvals, replay};
use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{facts, line, moment, table};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The newest jobs.
    List {
        #[command(flatten)]
        filter: Filter,
        /// Only older than this job: the last of the page before.
        #[arg(long, value_name = "ID")]
        before: Option<JobId>,
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
    /// Let a deployment go live though its gate did not open: makes a job that answers for it, and shows that.
    Bypass {
        /// The gate's id: a job of the kind `gate`.
        id: JobId,
        /// Why; kept in the audit, and shown at Vercel.
        #[arg(long)]
        reason: String,
    },
    /// Do finished jobs again as new ones: one, with other arguments if wanted, or many.
    Replay(replay::Args),
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    let one: JobView = match command {
        Command::Replay(args) => return replay::run(args, global).await,
        Command::List { filter, before, limit } => {
            let mut query = Serializer::new(String::new());
            query.append_pair("limit", &limit.to_string());
            query.extend_pairs(filter.pairs()).extend_pairs(before.map(|id| ("before", id.to_string())));
            let jobs: Vec<JobView> = client.get(&format!("jobs?{}", query.finish())).await?;
            return global.output().print(&jobs, |jobs| rows(jobs));
        }
        Command::Show { id } => client.get(&format!("jobs/{id}")).await?,
        Command::Cancel { id, reason } => client.post(&format!("jobs/{id}/cancel"), &ReasonRequest { reason }).await?,
        Command::Bypass { id, reason } => {
            let made: StartAnswer = client.post(&format!("jobs/{id}/bypass"), &ReasonRequest { reason }).await?;
            let job = made.job.ok_or_else(|| Failure::failed("the server did not say which job it made"))?;
            client.get(&format!("jobs/{job}")).await?
        }
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

/// Where one job stands, in a line.
pub(crate) fn progress(job: &JobView) -> String {
    let open = job.steps.iter().rev().find(|step| step.finished_at.is_none());
    let at = open.map(|step| format!(", at `{}`", step.name)).unwrap_or_default();
    format!("{} is {}{at}", job.kind, job.state.as_str())
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
        ("schedule", job.schedule.as_ref().map(|of| format!("{}, {}", of.name, moment(of.nominal)))),
        ("replay of", job.replay_of.map(|id| id.to_string())),
        ("limits", (!job.limits.is_empty()).then(|| limits(&job.limits))),
        ("approval", job.approval.as_ref().map(approvals::details)),
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

/// What the job must find room at, and whether it has.
fn limits(limits: &[LimitView]) -> String {
    let say = |limit: &LimitView| {
        let at_once = limit.at_once.map(|number| format!("{number} at once"));
        let rate = limit.rate.map(|rate| format!("rate {rate}"));
        let inside = limit.inside.then(|| "inside".to_owned());
        let said: Vec<String> = [at_once, rate, inside].into_iter().flatten().collect();
        if said.is_empty() { limit.key.clone() } else { format!("{} ({})", limit.key, said.join(", ")) }
    };
    limits.iter().map(say).collect::<Vec<_>>().join("; ")
}
