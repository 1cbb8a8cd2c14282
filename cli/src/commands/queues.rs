//! `queues`: how much waits and runs.

use clap::Subcommand;
use schemas::api::QueueView;

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{moment, table};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All queues, with how many jobs are in each state.
    List,
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let Command::List = command;
    let queues: Vec<QueueView> = Client::open(global).await?.get("queues").await?;
    global.output().print(&queues, |queues| {
        let row = |queue: &QueueView| {
            let jobs = queue.jobs.iter().map(|(state, count)| format!("{state} {count}"));
            let oldest = queue.oldest_available.map(moment).unwrap_or_default();
            [queue.queue.clone(), jobs.collect::<Vec<_>>().join(", "), oldest]
        };
        table(["QUEUE", "JOBS", "OLDEST AVAILABLE"], queues.iter().map(row))
    })
}
