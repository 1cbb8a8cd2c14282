//! `doctor`: whether the setup is as the work needs it, tried out from this machine; or why one job does not run.

mod setup;
mod why;

use schemas::JobId;
use schemas::api::{JobView, PauseView, QueueView, RunView};
use serde::Serialize;
use worker::examination::Verdict;

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::table;

/// The arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Say why this job does not run, instead of looking at the setup.
    job: Option<JobId>,
}

/// What was found about one thing.
#[derive(Debug, Serialize)]
struct Line {
    verdict: Verdict,
    subject: String,
    text: String,
}

/// Why a job does not run.
#[derive(Debug, Serialize)]
struct Explanation {
    job: JobId,
    reasons: Vec<String>,
}

pub(crate) async fn run(args: Args, global: &Global) -> Result<(), Failure> {
    match args.job {
        Some(job) => explain(job, global).await,
        None => examine(global).await,
    }
}

async fn examine(global: &Global) -> Result<(), Failure> {
    let lines = setup::examine(&global.config).await?;
    let row = |line: &Line| [word(line.verdict).to_owned(), line.subject.clone(), line.text.clone()];
    global.output().print(&lines, |lines| table(["", "WHAT", "FOUND"], lines.iter().map(row)))?;
    match lines.iter().filter(|line| line.verdict == Verdict::Ill).count() {
        0 => Ok(()),
        1 => Err(Failure::failed("one thing is wrong")),
        many => Err(Failure::failed(format!("{many} things are wrong"))),
    }
}

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Well => "ok",
        Verdict::Doubtful => "note",
        Verdict::Ill => "WRONG",
    }
}

async fn explain(id: JobId, global: &Global) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    let job: JobView = client.get(&format!("jobs/{id}")).await?;
    let run: Option<RunView> = match job.run {
        Some(run) => Some(client.get(&format!("runs/{run}")).await?),
        None => None,
    };
    let pauses: Vec<PauseView> = client.get("pauses").await?;
    let queues: Vec<QueueView> = client.get("queues").await?;
    let around = why::Around { run, pauses, queues, now: chrono::Utc::now() };
    let explanation = Explanation { job: id, reasons: why::reasons(&job, &around) };
    global.output().print(&explanation, |explanation| explanation.reasons.join("\n"))
}
