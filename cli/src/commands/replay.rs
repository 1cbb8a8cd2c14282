//! `jobs replay`: does finished jobs again as new ones: one, or exactly those that were shown before.

use std::io::{BufRead, IsTerminal, stdin};

use schemas::api::{
    JobView, PreviewRequest, ReplayAnswer, ReplayFilter, ReplayJobRequest, ReplayLine, ReplayPreview, ReplayRequest,
};
use schemas::{JobId, Names};

use super::filter::Filter;
use super::with::{self, With};
use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{line, moment, table};

/// The arguments of `jobs replay`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One job; without it, all that the filter names: the discarded ones, unless it names a state.
    id: Option<JobId>,
    /// An argument that is changed; `NAME:=JSON` for what is no text.
    #[arg(long, value_name = "NAME=VALUE", requires = "id")]
    with: Vec<With>,
    #[command(flatten)]
    filter: Filter,
    /// Only show what would be replayed.
    #[arg(long, visible_alias = "dry-run", conflicts_with_all = ["id", "set", "yes"])]
    preview: bool,
    /// Replay exactly this set, of an earlier preview with the same filter, or nothing.
    #[arg(long, conflicts_with = "id")]
    set: Option<String>,
    /// Replay what is found without asking.
    #[arg(long, conflicts_with = "set")]
    yes: bool,
    /// Why; kept in the audit.
    #[arg(long, required_unless_present = "preview")]
    reason: Option<String>,
}

pub(crate) async fn run(args: Args, global: &Global) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    let Args { id, with, filter, preview, set, yes, reason } = args;
    let reason = reason.unwrap_or_default();
    let answer = match id {
        Some(_) if !filter.is_empty() => return Err(Failure::usage("name one job, or a filter, not both")),
        Some(id) => one(&client, id, with, reason).await?,
        None => {
            let filter = filter.for_replay();
            if preview {
                return global.output().print(&look(&client, &filter).await?, shown);
            }
            let set = match set {
                Some(set) => set,
                None => consented(&look(&client, &filter).await?, yes)?,
            };
            client.post("jobs/replay", &ReplayRequest { filter, set, reason }).await?
        }
    };
    global.output().print(&answer, made)
}

async fn one(client: &Client, id: JobId, with: Vec<With>, reason: String) -> Result<ReplayAnswer, Failure> {
    let args = if with.is_empty() {
        None
    } else {
        let job: JobView = client.get(&format!("jobs/{id}")).await?;
        let catalog = worker::jobs::registry().catalog(Names::default());
        let mut args = job.args.as_object().cloned().unwrap_or_default();
        args.extend(with::values(&job.kind, with, &catalog, None)?);
        Some(args)
    };
    client.post(&format!("jobs/{id}/replay"), &ReplayJobRequest { reason, args }).await
}

async fn look(client: &Client, filter: &ReplayFilter) -> Result<ReplayPreview, Failure> {
    client.post("jobs/replay/preview", &PreviewRequest { filter: filter.clone() }).await
}

/// The set, once a person has seen it and said yes.
fn consented(preview: &ReplayPreview, yes: bool) -> Result<String, Failure> {
    eprintln!("{}", shown(preview));
    if yes {
        return Ok(preview.set.clone());
    }
    if !stdin().is_terminal() {
        return Err(Failure::usage("nobody can be asked here, and nothing was replayed")
            .help("give --yes to replay what is found, or --set with the set of a --preview"));
    }
    eprint!("Replay {} jobs? [y/N] ", count(preview));
    let mut answer = String::new();
    let read = stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::failed(format!("cannot read the answer: {error}")))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(preview.set.clone());
    }
    Err(Failure::cancelled("nothing was replayed"))
}

fn count(preview: &ReplayPreview) -> usize {
    preview.jobs.iter().filter(|line| line.left_out.is_none()).count()
}

fn shown(preview: &ReplayPreview) -> String {
    let row = |job: &ReplayLine| {
        let reason = job.reason.as_deref().map(line).unwrap_or_default();
        let left_out = job.left_out.as_deref().map(line).unwrap_or_default();
        [job.job.to_string(), job.kind.clone(), job.state.as_str().to_owned(), moment(job.created_at), reason, left_out]
    };
    let rows = table(["ID", "KIND", "STATE", "CREATED", "REASON", "LEFT OUT BECAUSE"], preview.jobs.iter().map(row));
    format!("{rows}\n\n{} of {} jobs would be replayed; set {}", count(preview), preview.jobs.len(), preview.set)
}

/// What a replay made, for people.
pub(crate) fn made(answer: &ReplayAnswer) -> String {
    let jobs = answer.jobs.iter().map(|id| format!("made job {id}"));
    let runs = answer.runs.iter().map(|id| format!("made run {id}, by today's runbook"));
    jobs.chain(runs).collect::<Vec<_>>().join("\n")
}
