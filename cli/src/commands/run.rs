//! `run`: starts a runbook or a single job and, if asked, waits for its end and takes its outcome as the exit code.

use std::time::Duration;

use schemas::api::{JobView, RunView, StartAnswer, StartRequest};
use schemas::{JobId, JobState, Names, RunId, RunState};
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout_at};

use super::{jobs, runs, with};
use crate::args::Global;
use crate::client::Client;
use crate::config::{Checked, Span};
use crate::exit_code;
use crate::failure::Failure;
use crate::output::{Output, print};

/// The server is asked so often for the end; less and less, up to the second one.
const ASK_EVERY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The arguments of `run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A runbook's name, or a job kind.
    what: String,
    /// An input of the runbook or argument of the job; `NAME:=JSON` for what is no text.
    #[arg(long, value_name = "NAME=VALUE")]
    with: Vec<with::With>,
    /// Why; kept with the run.
    #[arg(long)]
    reason: String,
    /// A name for this start: a second one with it starts nothing and answers the first one's id, for 24 hours.
    #[arg(long)]
    key: Option<String>,
    /// Wait for the end; the exit code is the outcome.
    #[arg(long)]
    wait: bool,
    /// How long to wait, such as 90s, 30m or 2h.
    #[arg(long, value_name = "TIME", default_value = "1h", requires = "wait")]
    timeout: Span,
}

pub(crate) async fn run(args: Args, global: &Global) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    // The file is of use where it is; a server elsewhere knows its runbooks itself.
    let config = Checked::file(&global.config).ok().and_then(|checked| checked.config);
    let catalog = worker::jobs::registry().catalog(Names::default());
    let with = with::values(&args.what, args.with, &catalog, config.as_ref())?;
    let request = StartRequest { run: args.what, with, reason: args.reason, key: args.key };
    let started: StartAnswer = client.post("runs", &request).await?;
    if !args.wait {
        return global.output().print(&started, say);
    }
    wait_for(&client, started, args.timeout, global.output()).await
}

/// Waits for the end of what was started; the outcome is the exit code.
pub(crate) async fn wait_for(
    client: &Client,
    started: StartAnswer,
    timeout: Span,
    output: Output,
) -> Result<(), Failure> {
    eprintln!("{}", say(&started));
    let deadline = Instant::now() + timeout.0;
    match started {
        StartAnswer { run: Some(id), .. } => wait_for_run(client, id, deadline, output).await,
        StartAnswer { job: Some(id), .. } => wait_for_job(client, id, deadline, output).await,
        StartAnswer { .. } => Err(Failure::failed("the server does not say what it started")),
    }
}

/// What was started, for people.
pub(crate) fn say(started: &StartAnswer) -> String {
    let (what, id) = match started {
        StartAnswer { run: Some(id), .. } => ("run", id.to_string()),
        StartAnswer { job: Some(id), .. } => ("job", id.to_string()),
        StartAnswer { .. } => return "nothing was started".to_owned(),
    };
    if started.existing {
        format!("nothing new was started: the key is held by {what} {id}")
    } else {
        format!("started {what} {id}\nlook at it with `nightporter {what}s show {id}`")
    }
}

async fn wait_for_run(client: &Client, id: RunId, deadline: Instant, output: Output) -> Result<(), Failure> {
    let mut said = String::new();
    let ended = wait(
        deadline,
        &format!("run {id}"),
        || async {
            let run: RunView = client.get(&format!("runs/{id}")).await?;
            Ok((run.state != RunState::Running, runs::progress(&run), run))
        },
        &mut said,
    )
    .await?;
    finish(output, &ended, runs::details)?;
    let reasons = ended.jobs.iter().filter(|job| matches!(job.state, JobState::Discarded | JobState::Cancelled));
    let why: Vec<String> = reasons
        .map(|job| format!("job `{}` was {}: {}", job.name, job.state.as_str(), job.reason.as_deref().unwrap_or("?")))
        .collect();
    match ended.state {
        RunState::Completed => Ok(()),
        RunState::Cancelled => Err(Failure::cancelled(format!("run {id} was cancelled\n{}", why.join("\n")))),
        RunState::Running | RunState::Failed => Err(Failure::failed(format!("run {id} failed\n{}", why.join("\n")))),
    }
}

/// Waits until a job has ended, prints it, and takes its outcome as this command's.
pub(crate) async fn wait_for_job(client: &Client, id: JobId, deadline: Instant, output: Output) -> Result<(), Failure> {
    let mut said = String::new();
    let ended = wait(
        deadline,
        &format!("job {id}"),
        || async {
            let job: JobView = client.get(&format!("jobs/{id}")).await?;
            Ok((job.state.is_finished(), jobs::progress(&job), job))
        },
        &mut said,
    )
    .await?;
    finish(output, &ended, jobs::details)?;
    let why = ended.reason.as_deref().unwrap_or("no reason is known");
    match ended.state {
        JobState::Completed => Ok(()),
        JobState::Cancelled => Err(Failure::cancelled(format!("job {id} was cancelled: {why}"))),
        other => Err(Failure::failed(format!("job {id} was {}: {why}", other.as_str()))),
    }
}

/// Asks until it has ended, and says on the way what changed. A server that is away for a while is waited for too.
pub(crate) async fn wait<T, F, Fut>(deadline: Instant, what: &str, ask: F, said: &mut String) -> Result<T, Failure>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(bool, String, T), Failure>>,
{
    let up = || {
        Failure::timeout(format!("the time was up before {what} ended; it goes on"))
            .help("wait longer with --timeout, or look at it with `show`")
    };
    let mut pause = ASK_EVERY.0;
    loop {
        let say = match timeout_at(deadline, ask()).await.map_err(|_| up())? {
            Ok((true, _, ended)) => return Ok(ended),
            Ok((false, progress, _)) => progress,
            Err(failure) if failure.code == exit_code::UNAVAILABLE => failure.to_string(),
            Err(failure) => return Err(failure),
        };
        if *said != say {
            eprintln!("{say}");
            *said = say;
        }
        timeout_at(deadline, sleep(pause)).await.map_err(|_| up())?;
        pause = (pause * 2).min(ASK_EVERY.1);
    }
}

fn finish<T: Serialize>(output: Output, ended: &T, details: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    match output {
        Output::Json => output.print(ended, |_| String::new()),
        Output::Table => print(&details(ended)),
    }
}
