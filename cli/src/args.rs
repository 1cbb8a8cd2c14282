//! The command line.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use url::Url;

use crate::commands::{
    approvals, audit, backups, bench, check, completions, demo, doctor, events, explain, jobs, queues, recover, run,
    runs, schedules, schemas, secrets, serve, token, trigger, up, work,
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
    /// For a configuration that this process made itself.
    pub(crate) fn of(config: &Path) -> Self {
        Self { config: config.to_owned(), json: false, server: None, token_file: None }
    }

    /// How data is printed.
    pub(crate) fn output(&self) -> Output {
        if self.json { Output::Json } else { Output::Table }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the main job on samples: everything in one process, told step by step.
    Demo(demo::Args),
    /// Run everything in one process: webhooks in, jobs out, the API.
    Up(up::Args),
    /// Receive webhooks and serve the API; jobs are run elsewhere, by `work`.
    Serve(serve::Args),
    /// Run jobs.
    Work(work::Args),
    /// Say everything that is wrong with the configuration.
    Check(check::Args),
    /// Try out the setup from this machine, or say why a job does not run.
    Doctor(doctor::Args),
    /// Say which jobs an event would make, and why.
    Explain(explain::Args),
    /// Send a signed sample event to the running server.
    Trigger(trigger::Args),
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
    /// Schedules: what the clock starts.
    #[command(subcommand)]
    Schedules(schedules::Command),
    /// Queues: how much waits and runs; pausing and draining.
    #[command(subcommand)]
    Queues(queues::Command),
    /// Backups: what lies in the stores.
    #[command(subcommand)]
    Backups(backups::Command),
    /// Rebuild the ledger of a lost machine from its copies in a store.
    Recover(recover::Args),
    /// Secrets: what lies in the vault; their values are never shown.
    #[command(subcommand)]
    Secrets(secrets::Command),
    /// Approvals: jobs that wait for a person's word.
    #[command(subcommand)]
    Approvals(approvals::Command),
    /// The audit: who did what by hand, and why.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Tokens: who may call the API, as what.
    #[command(subcommand)]
    Token(token::Command),
    /// Measure how fast the queue is on this machine, with your database and broker.
    Bench(bench::Args),
    /// Print the published JSON schemas and the API's OpenAPI document (`openapi`).
    Schemas(schemas::Args),
    /// Print a completion script for a shell.
    Completions(completions::Args),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn walk(command: &clap::Command, path: &str, visit: &mut impl FnMut(&clap::Command, &str)) {
        let path = format!("{path} {}", command.get_name()).trim().to_owned();
        visit(command, &path);
        command.get_subcommands().for_each(|inner| walk(inner, &path, visit));
    }

    #[test]
    fn every_command_and_every_argument_says_what_it_is_for() {
        let mut root = Args::command();
        root.build();
        let mut seen = 0;
        walk(&root, "", &mut |command, path| {
            seen += 1;
            assert!(command.get_about().is_some_and(|about| !about.to_string().is_empty()), "`{path}` says nothing");
            for argument in command.get_arguments() {
                let help = argument.get_help().is_some_and(|help| !help.to_string().is_empty());
                assert!(help, "`{}` of `{path}` says nothing", argument.get_id());
            }
        });
        assert!(seen > 20, "only {seen} commands were seen");
    }

    #[test]
    fn every_command_can_print_json_and_take_another_configuration() {
        let mut root = Args::command();
        root.build();
        walk(&root, "", &mut |command, path| {
            for wanted in ["json", "config"] {
                // clap's own `help` command takes nothing.
                let there = command.get_arguments().any(|argument| argument.get_id() == wanted);
                assert!(there || path.contains(" help"), "`{path}` has no --{wanted}");
            }
        });
    }
}
