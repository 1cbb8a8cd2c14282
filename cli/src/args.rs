//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use url::Url;

use crate::commands::{
    audit, check, completions, events, jobs, queues, run, runs, schemas, serve, up, work,
};
use crate::exit_code;
use crate::output::Output;

/// Does a software team's operations work, from webhooks and by hand, and can show what was done.
#[derive(Debug, Parser)]
#[command(name = "nightporter", version, after_help = exit_code::HELP, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", env = "NIGHTPORTER_CONFIG", default_value = "nightporter.toml")]
    pub(crate) config: PathBuf,
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
    /// The operators' address of a running server, for commands that ask one; else the configuration says it.
    #[arg(long, global = true, value_name = "URL", env = "NIGHTPORTER_SERVER")]
    pub(crate) server: Option<Url>,
    /// A file that holds the server's token; else `NIGHTPORTER_TOKEN`, the configuration, or the file beside the ledger.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

impl Global {
    /// How data is printed.
    pub(crate) fn output(&self) -> Output {
        if self.json { Output::Json } else { Output::Table }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything in one process: webhooks in, jobs out, the API.
    Up(up::Args),
    /// Receive webhooks and serve the API; jobs are run elsewhere, by `work`.
    Serve(serve::Args),
    /// Run jobs.
    Work(work::Args),
    /// Say everything that is wrong with the configuration.
    Check(check::Args),
    /// Start a runbook or a single job.
    Run(run::Args),
    /// Events: what senders said.
    #[command(subcommand)]
    Events(events::Command),
    /// Jobs: units of work.
    #[command(subcommand)]
    Jobs(jobs::Command),
    /// Runs: executions of runbooks.
    #[command(subcommand)]
    Runs(runs::Command),
    /// Queues: how much waits and runs.
    #[command(subcommand)]
    Queues(queues::Command),
    /// The audit: who did what by hand, and why.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Print the published JSON schemas.
    Schemas(schemas::Args),
    /// Print a completion script for a shell.
    Completions(completions::Args),
}
