//! The commands, a file for each.

pub(crate) mod approvals;
pub(crate) mod audit;
pub(crate) mod backups;
pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod filter;
pub(crate) mod jobs;
pub(crate) mod queues;
pub(crate) mod recover;
pub(crate) mod replay;
pub(crate) mod run;
pub(crate) mod runs;
pub(crate) mod schedules;
pub(crate) mod schemas;
pub(crate) mod secrets;
pub(crate) mod serve;
pub(crate) mod token;
pub(crate) mod trigger;
pub(crate) mod up;
pub(crate) mod with;
pub(crate) mod work;

use crate::args::{Command, Global};
use crate::failure::Failure;

/// Runs a command.
pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    match command {
        Command::Demo(args) => demo::run(args).await,
        Command::Up(args) => up::run(args, global).await,
        Command::Serve(args) => serve::run(args, global).await,
        Command::Work(args) => work::run(args, global).await,
        Command::Check(args) => check::run(&args, global),
        Command::Doctor(args) => doctor::run(args, global).await,
        Command::Explain(args) => explain::run(&args, global),
        Command::Trigger(args) => trigger::run(args, global).await,
        Command::Run(args) => run::run(args, global).await,
        Command::Events(command) => events::run(command, global).await,
        Command::Jobs(command) => jobs::run(command, global).await,
        Command::Runs(command) => runs::run(command, global).await,
        Command::Schedules(command) => schedules::run(command, global).await,
        Command::Queues(command) => queues::run(command, global).await,
        Command::Recover(args) => Box::pin(recover::run(args, global)).await,
        Command::Backups(command) => Box::pin(backups::run(command, global)).await,
        Command::Secrets(command) => secrets::run(command, global).await,
        Command::Approvals(command) => approvals::run(command, global).await,
        Command::Audit(command) => audit::run(command, global).await,
        Command::Bench(args) => Box::pin(bench::run(args, global)).await,
        Command::Token(command) => token::run(command, global).await,
        Command::Schemas(args) => schemas::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}
