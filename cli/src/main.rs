//! `nightporter`: the one binary. It reads the command line, opens the rooms and closes them again.

mod args;
mod client;
mod commands;
mod config;
mod descriptors;
mod exit_code;
mod failure;
mod health;
mod listener;
mod metrics;
mod output;
mod rooms;
mod server;
mod talk;
mod telemetry;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Args;

/// A fifth more jobs per second than with the system's own. Only for what is Rust: C keeps its `malloc`, which others preload.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    // One TLS stack, chosen here once. Err only if it was chosen already, and nobody else does.
    let _chosen = rustls::crypto::ring::default_provider().install_default();
    let Args { global, command } = Args::parse();
    match Box::pin(commands::run(command, &global)).await {
        Ok(()) => ExitCode::from(exit_code::OK),
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.code)
        }
    }
}
