//! `queues`: how much waits and runs, and pausing it; kinds and limits' keys are paused here too.

use clap::Subcommand;
use schemas::api::{JobView, PauseRequest, PauseView, PauseWhat, QueueView};
use tokio::time::Instant;
use url::form_urlencoded::Serializer;

use super::run::wait;
use crate::args::Global;
use crate::client::Client;
use crate::config::Span;
use crate::failure::Failure;
use crate::output::{line, moment, table};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All queues, with how many jobs are in each state.
    List,
    /// All that is paused: queues, kinds, keys and schedules.
    Pauses,
    /// Pause a queue, a kind or a key: nothing of it begins, what runs goes on.
    Pause {
        #[command(flatten)]
        what: What,
        /// Why; kept in the audit and with the pause.
        #[arg(long)]
        reason: String,
    },
    /// End a pause.
    Resume {
        #[command(flatten)]
        what: What,
        /// Why; kept in the audit.
        #[arg(long)]
        reason: String,
    },
    /// Pause, and wait until nothing of it runs any more. It stays paused.
    Drain {
        #[command(flatten)]
        what: What,
        /// Why; kept in the audit and with the pause.
        #[arg(long)]
        reason: String,
        /// How long to wait, such as 90s, 30m or 2h.
        #[arg(long, value_name = "TIME", default_value = "1h")]
        timeout: Span,
    },
}

/// What is paused: exactly one of these.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct What {
    /// A queue.
    queue: Option<String>,
    /// A job kind, in all queues.
    #[arg(long)]
    kind: Option<String>,
    /// A limit's key, such as database:main: all jobs that work on it.
    #[arg(long)]
    key: Option<String>,
}

impl What {
    fn request(self, reason: String) -> Result<PauseRequest, Failure> {
        let (what, name) = match self {
            Self { queue: Some(name), .. } => (PauseWhat::Queue, name),
            Self { kind: Some(name), .. } => (PauseWhat::Kind, name),
            Self { key: Some(name), .. } => (PauseWhat::Key, name),
            Self { .. } => return Err(Failure::usage("name a queue, --kind or --key")),
        };
        Ok(PauseRequest { what, name, reason })
    }
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    let pauses: Vec<PauseView> = match command {
        Command::List => {
            let queues: Vec<QueueView> = client.get("queues").await?;
            return global.output().print(&queues, |queues| rows(queues));
        }
        Command::Pauses => client.get("pauses").await?,
        Command::Pause { what, reason } => client.post("pauses", &what.request(reason)?).await?,
        Command::Resume { what, reason } => client.post("pauses/resume", &what.request(reason)?).await?,
        Command::Drain { what, reason, timeout } => drain(&client, &what.request(reason)?, timeout).await?,
    };
    global.output().print(&pauses, |pauses| paused(pauses))
}

/// Pauses, unless it is paused already, and waits for the end of what runs.
async fn drain(client: &Client, request: &PauseRequest, limit: Span) -> Result<Vec<PauseView>, Failure> {
    let deadline = Instant::now() + limit.0;
    let word = word(request.what);
    let pauses: Vec<PauseView> = client.get("pauses").await?;
    let pauses = if pauses.iter().any(|pause| pause.what == word && pause.name == request.name) {
        pauses
    } else {
        client.post("pauses", request).await?
    };
    let what = format!("the draining of the {word} `{}`", request.name);
    let mut said = String::new();
    let ask = || async {
        let running = running(client, request).await?;
        Ok((running == 0, format!("the {word} `{}` is paused; {running} of its jobs run", request.name), ()))
    };
    wait(deadline, &what, ask, &mut said).await?;
    eprintln!("nothing of the {word} `{}` runs; it stays paused until `nightporter queues resume`", request.name);
    Ok(pauses)
}

/// How many jobs of it run, at most a page of them.
async fn running(client: &Client, request: &PauseRequest) -> Result<usize, Failure> {
    let mut query = Serializer::new(String::new());
    query.append_pair("state", "running").append_pair("limit", "500");
    if matches!(request.what, PauseWhat::Queue | PauseWhat::Kind) {
        query.append_pair(word(request.what), &request.name);
    }
    let jobs: Vec<JobView> = client.get(&format!("jobs?{}", query.finish())).await?;
    if request.what != PauseWhat::Key {
        return Ok(jobs.len());
    }
    let mut count = 0;
    for job in jobs {
        // Lists leave limits out.
        let job: JobView = client.get(&format!("jobs/{}", job.id)).await?;
        let names_it = job.limits.iter().any(|limit| limit.key == request.name && limit.inside);
        count += usize::from(names_it);
    }
    Ok(count)
}

const fn word(what: PauseWhat) -> &'static str {
    match what {
        PauseWhat::Queue => "queue",
        PauseWhat::Kind => "kind",
        PauseWhat::Key => "key",
        PauseWhat::Schedule => "schedule",
    }
}

fn rows(queues: &[QueueView]) -> String {
    let row = |queue: &QueueView| {
        let jobs = queue.jobs.iter().map(|(state, count)| format!("{state} {count}"));
        let oldest = queue.oldest_available.map(moment).unwrap_or_default();
        let paused = queue.paused.as_ref().map(|pause| line(&format!("by {}: {}", pause.actor, pause.reason)));
        [queue.queue.clone(), jobs.collect::<Vec<_>>().join(", "), oldest, paused.unwrap_or_default()]
    };
    table(["QUEUE", "JOBS", "OLDEST AVAILABLE", "PAUSED"], queues.iter().map(row))
}

/// All that is paused.
pub(crate) fn paused(pauses: &[PauseView]) -> String {
    if pauses.is_empty() {
        return "nothing is paused".to_owned();
    }
    let row = |pause: &PauseView| {
        let PauseView { what, name, at, actor, reason } = pause;
        [what.clone(), name.clone(), moment(*at), actor.clone(), line(reason)]
    };
    table(["PAUSED", "NAME", "SINCE", "BY", "REASON"], pauses.iter().map(row))
}
