//! What a process takes while nothing happens: queries, memory, and the time to its readiness.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::time::sleep;

use crate::porter::Porter;
use crate::server::{self, Database};
use crate::{Servers, pushes};

/// What follows from the start alone is over by then.
const SETTLED: Duration = Duration::from_secs(5);

/// All but what is asked here. What the server counts as transactions holds its own vacuum as well.
const CALLS: &str = "select coalesce(sum(calls), 0)::bigint from pg_stat_statements s
                     join pg_database d on d.oid = s.dbid where d.datname = current_database()
                       and s.query not like '%pg_stat_statements%'";

/// The arguments of `idle`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    servers: Servers,
    /// How long to look.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    println!("| idle | start to ready ms | resident MB | queries per second |\n|---|---|---|---|");
    let database = Database::make(&args.servers.ledger).await?;
    let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
    let program = std::fs::canonicalize(&args.servers.nightporter).context("--nightporter")?;
    embedded(&args, &program, folders[0].path()).await?;
    distributed(&args, &program, &database, folders[1].path()).await?;
    database.drop().await
}

async fn embedded(args: &Args, program: &Path, folder: &Path) -> anyhow::Result<()> {
    write_config(folder, "sqlite:nightporter.db", "in-process")?;
    let starts = starts(program, folder).await?;
    let porter = Porter::start(program, &["up"], folder).await?;
    sleep(Duration::from_secs(u64::from(args.seconds.min(10)))).await;
    println!("| `up`, SQLite | {} | {:.1} | - |", starts.as_millis(), megabytes(porter.resident()?));
    porter.end().await
}

async fn distributed(args: &Args, program: &Path, database: &Database, folder: &Path) -> anyhow::Result<()> {
    write_config(folder, database.url.as_str(), &args.servers.broker)?;
    let starts = starts(program, folder).await?;
    let porter = Porter::start(program, &["up"], folder).await?;
    server::execute(&database.url, "create extension if not exists pg_stat_statements").await?;
    sleep(SETTLED).await;
    let before = server::number(&database.url, CALLS).await?;
    sleep(Duration::from_secs(u64::from(args.seconds))).await;
    let after = server::number(&database.url, CALLS).await?;
    let queries = f64::from(u32::try_from(after - before)?) / f64::from(args.seconds);
    println!(
        "| `up`, PostgreSQL and RabbitMQ | {} | {:.1} | {queries:.2} |",
        starts.as_millis(),
        megabytes(porter.resident()?)
    );
    porter.end().await
}

/// The median of five starts; the first of all, which makes the tables, is left out.
async fn starts(program: &Path, folder: &Path) -> anyhow::Result<Duration> {
    let mut starts = Vec::new();
    for _ in 0..6 {
        let porter = Porter::start(program, &["up"], folder).await?;
        starts.push(porter.start);
        porter.end().await?;
    }
    let mut starts = starts.split_off(1);
    starts.sort_unstable();
    Ok(starts[starts.len() / 2])
}

fn write_config(folder: &Path, ledger: &str, broker: &str) -> anyhow::Result<()> {
    std::fs::write(folder.join("github"), pushes::SECRET)?;
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[operators]\nlisten = \"127.0.0.1:0\"\ntoken = \"${{file:github}}\"\n\
         [queue]\nledger = \"{ledger}\"\nbroker = \"{broker}\"\n[telemetry]\nlevel = \"warn\"\n\
         [sources.github]\nsecrets = [\"${{file:github}}\"]\n"
    );
    Ok(std::fs::write(folder.join("nightporter.toml"), config)?)
}

#[allow(clippy::cast_precision_loss)] // megabytes
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
