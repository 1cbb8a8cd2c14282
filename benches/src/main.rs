//! What `nightporter bench` does not measure, because it takes a whole process: deliveries coming in, and idling. Run by
//! `benches/run`; the published table is in `benches/README.md`.

mod door;
mod idle;
mod ingress;
mod load;
mod porter;
mod pushes;
mod raw;
mod server;

use std::path::PathBuf;

use clap::Parser;

/// The same as `nightporter` has: the raw limit is not to lose by it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures a built `nightporter`.
#[derive(Debug, Parser)]
enum Args {
    /// Signed GitHub pushes over kept-alive connections, beside the plainest server that does as little as can be.
    Ingress(ingress::Args),
    /// What a process takes while nothing happens.
    Idle(idle::Args),
    /// The plain server, as a process of its own.
    #[command(hide = true)]
    RawServer(raw::Args),
}

/// What every measurement needs.
#[derive(Debug, clap::Args)]
struct Servers {
    /// The binary that is measured.
    #[arg(long, default_value = "target/release/nightporter")]
    nightporter: PathBuf,
    /// PostgreSQL, as a user who may create databases and write checkpoints.
    #[arg(long, env = "NIGHTPORTER_BENCH_LEDGER", hide_env_values = true)]
    ledger: url::Url,
    /// RabbitMQ.
    #[arg(long, env = "NIGHTPORTER_BENCH_BROKER", hide_env_values = true)]
    broker: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Args::parse() {
        Args::Ingress(args) => ingress::run(args).await,
        Args::Idle(args) => idle::run(args).await,
        Args::RawServer(args) => raw::run(args).await,
    }
}
