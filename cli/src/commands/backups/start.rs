//! `backups verify` and `backups restore`: start the jobs and wait for their ends.

use schemas::api::{StartAnswer, StartRequest};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{Which, find};
use crate::args::Global;
use crate::client::Client;
use crate::commands::run::{say, wait_for_job};
use crate::config::{Checked, Span};
use crate::failure::Failure;

/// The arguments of `backups verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    which: Which,
    /// The database on whose server the scratch database is made; else the backup's own.
    #[arg(long, value_name = "DATABASE")]
    scratch: Option<String>,
    #[command(flatten)]
    how: How,
}

/// The arguments of `backups restore`.
#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    #[command(flatten)]
    which: Which,
    /// The new database's name.
    #[arg(long, value_name = "NAME", required_unless_present = "replace")]
    into: Option<String>,
    /// Put it in the place of the live database instead, when somebody else has approved that.
    #[arg(long, conflicts_with = "into")]
    replace: bool,
    #[command(flatten)]
    how: How,
}

/// Why, and for how long.
#[derive(Debug, clap::Args)]
struct How {
    /// Why; kept in the audit.
    #[arg(long)]
    reason: String,
    /// How long to wait, such as 90s, 30m or 2h; the job goes on afterwards.
    #[arg(long, value_name = "TIME", default_value = "12h")]
    timeout: Span,
}

pub(super) async fn verify(args: Verify, global: &Global) -> Result<(), Failure> {
    let scratch = args.scratch.map(|scratch| ("scratch", json!(scratch)));
    Box::pin(start("verify", &args.which, scratch, args.how, global)).await
}

pub(super) async fn restore(args: Restore, global: &Global) -> Result<(), Failure> {
    let where_to = match args.into {
        Some(name) => ("into", json!(name)),
        None => ("replace", json!(args.replace)),
    };
    Box::pin(start("restore", &args.which, Some(where_to), args.how, global)).await
}

async fn start(
    kind: &str,
    which: &Which,
    more: Option<(&str, Value)>,
    how: How,
    global: &Global,
) -> Result<(), Failure> {
    let config = Checked::file(&global.config)?.config()?;
    let lying = find(which, &config).await?;
    let database = lying.backup.manifest.database;
    let args = [("backup", lying.backup.key), ("database", database), ("store", lying.store_name)];
    let with: Map<String, Value> = args
        .map(|(name, value)| (name, json!(value)))
        .into_iter()
        .chain(more)
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    let asks = with.contains_key("replace");
    let client = Client::open(global).await?;
    let request = StartRequest { run: kind.to_owned(), with, reason: how.reason, key: None };
    let started: StartAnswer = client.post("runs", &request).await?;
    eprintln!("{}", say(&started));
    let id = started.job.ok_or_else(|| Failure::failed("the server does not say what it started"))?;
    if asks {
        eprintln!("it waits until somebody else has run: nightporter approvals approve {id} --reason '...'");
    }
    wait_for_job(&client, id, Instant::now() + how.timeout.0, global.output()).await
}
