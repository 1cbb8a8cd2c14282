//! `audit`: who did what by hand, and why.

use clap::Subcommand;
use schemas::api::AuditView;

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{line, moment, table};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The newest lines.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let Command::List { limit } = command;
    let lines: Vec<AuditView> = Client::open(global).await?.get(&format!("audit?limit={limit}")).await?;
    global.output().print(&lines, |lines| {
        let row = |record: &AuditView| {
            let AuditView { at, actor, verb, subject, reason } = record;
            [moment(*at), actor.clone(), verb.clone(), subject.clone(), line(reason)]
        };
        table(["AT", "ACTOR", "VERB", "SUBJECT", "REASON"], lines.iter().map(row))
    })
}
