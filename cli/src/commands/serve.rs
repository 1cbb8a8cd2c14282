//! `serve`: the producer and the console. Needs a ledger that several processes share.

use std::path::PathBuf;

use crate::args::Global;
use crate::failure::Failure;
use crate::server::{self, Roles};

/// The arguments of `serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write the addresses into this file, as JSON, when everything listens.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

pub(crate) async fn run(args: Args, global: &Global) -> Result<(), Failure> {
    Box::pin(server::run(&global.config, Roles::SERVE, args.ready_file)).await
}
