//! `bench`: how fast this queue is on the machine, the database and the broker that it is pointed at.
//!
//! It measures with the code that works every day, on tables and a broker's queue of its own, which it removes at the end.

mod machine;
mod pinned;
mod probe;
mod raw;
mod report;
mod scenarios;
mod stage;

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use clap::ValueEnum;

use self::machine::Watch;
use self::report::{Report, Round, Scenario};
use self::stage::Stage;
use crate::args::Global;
use crate::failure::Failure;
use crate::telemetry;

/// The arguments of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to measure; everything but `pinned` where nothing is named.
    scenarios: Vec<Measure>,
    /// The ledger's server: `postgres://...`, as a user who may create databases (the run makes one of its own and drops
    /// it), or `sqlite:<folder>` for a file in that folder. A temporary SQLite file where none is given.
    #[arg(long, value_name = "URL", env = "NIGHTPORTER_BENCH_LEDGER", hide_env_values = true)]
    ledger: Option<String>,
    /// The broker: `amqp://...` or `in-process`.
    #[arg(
        long,
        value_name = "URL",
        env = "NIGHTPORTER_BENCH_BROKER",
        hide_env_values = true,
        default_value = "in-process"
    )]
    broker: String,
    /// Jobs in each round.
    #[arg(long, default_value = "50000")]
    jobs: NonZeroU64,
    /// A round ends after so many seconds, done or not.
    #[arg(long, value_name = "SECONDS", default_value = "20")]
    seconds: NonZeroU32,
    /// Rounds of each scenario; the median is printed.
    #[arg(long, default_value = "3")]
    rounds: NonZeroUsize,
    /// Callers that enqueue at once, one job for each call.
    #[arg(long, default_value = "64")]
    callers: NonZeroUsize,
    /// Attempts that run at once in each worker.
    #[arg(long, default_value = "256")]
    permits: NonZeroUsize,
    /// Lay so many finished jobs into the ledger first.
    #[arg(long, value_name = "COUNT", default_value = "0")]
    finished: u64,
    /// Count the CPU time of this process and its descendants too: a server on this machine. May be repeated.
    #[arg(long = "cpu-of", value_name = "PID")]
    cpu_of: Vec<u32>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// Jobs enqueued and drained at once.
    Jobs,
    /// Jobs enqueued while nobody works.
    Enqueue,
    /// A backlog drained, by one worker and (on a server) by three.
    Drain,
    /// One job each 10 ms on an idle system: from its commit to its handler.
    Pickup,
    /// 800 jobs a second for the given seconds while a snapshot is held open: how long claims take.
    Pinned,
}

/// How it is measured.
struct Plan {
    measures: Vec<Measure>,
    jobs: u64,
    limit: Duration,
    rounds: usize,
    callers: usize,
    permits: usize,
    watch: Watch,
}

pub(crate) async fn run(args: Args, global: &Global) -> Result<(), Failure> {
    telemetry::start_unexported()?;
    let mut measures = args.scenarios;
    if measures.is_empty() {
        measures = vec![Measure::Jobs, Measure::Enqueue, Measure::Drain, Measure::Pickup];
    }
    let plan = Plan {
        measures,
        jobs: args.jobs.get(),
        limit: Duration::from_secs(u64::from(args.seconds.get())),
        rounds: args.rounds.get(),
        callers: args.callers.get(),
        permits: args.permits.get(),
        watch: Watch::new(args.cpu_of),
    };
    let stage = Stage::set(args.ledger.as_deref(), &args.broker).await?;
    let outcome = tokio::select! {
        outcome = measure(&plan, &stage, args.finished) => outcome,
        _ = tokio::signal::ctrl_c() => Err(Failure::cancelled("interrupted")),
    };
    // Whatever happened: nothing of the run is left behind.
    let struck = stage.strike().await;
    let report = outcome?;
    struck?;
    global.output().print(&report, Report::table)
}

async fn measure(plan: &Plan, stage: &Stage, finished: u64) -> Result<Report, Failure> {
    if finished > 0 {
        eprintln!("laying {finished} finished jobs into the ledger");
        stage.lay(finished).await?;
    }
    let raw = rounds(plan, "raw", || raw::round(plan, stage)).await?;
    let mut scenarios = vec![raw];
    for measure in &plan.measures {
        match measure {
            Measure::Jobs => scenarios.push(rounds(plan, "jobs", || scenarios::jobs(plan, stage)).await?),
            Measure::Enqueue => scenarios.push(rounds(plan, "enqueue", || scenarios::enqueue(plan, stage)).await?),
            Measure::Pinned => scenarios.extend(pinned::measure(plan, stage).await?),
            Measure::Pickup => scenarios.push(rounds(plan, "pickup", || scenarios::pickup(plan, stage)).await?),
            Measure::Drain => {
                scenarios.push(rounds(plan, "drain, 1 worker", || scenarios::drain(plan, stage, 1)).await?);
                if stage.takes_several_processes() {
                    scenarios.push(rounds(plan, "drain, 3 workers", || scenarios::drain(plan, stage, 3)).await?);
                }
            }
        }
    }
    Ok(Report::new(plan, stage.settings().await?, scenarios))
}

/// Measures some rounds, each after the server has written down what the ones before left it to write.
async fn rounds<F>(plan: &Plan, name: &str, round: impl Fn() -> F) -> Result<Scenario, Failure>
where
    F: Future<Output = Result<Round, Failure>>,
{
    let mut rounds = Vec::with_capacity(plan.rounds);
    for number in 1..=plan.rounds {
        eprintln!("{name}, round {number} of {}", plan.rounds);
        rounds.push(round().await?);
    }
    Ok(Scenario::of(name, &rounds))
}
