//! `backups`: what lies in the stores. Reads them directly: it works without a server and without the ledger.

use std::time::Duration;

use clap::Subcommand;
use schemas::Problem;
use serde::Serialize;
use tokio::time::timeout;
use worker::backups::{Listing, Manifest};
use worker::stores::StoreConfig;

use crate::args::Global;
use crate::config::{Checked, Config};
use crate::failure::Failure;
use crate::output::{moment, table};
use crate::rooms;

/// A store that has not told all it holds by then is away.
const DEADLINE: Duration = Duration::from_mins(2);

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All backups, the oldest first, and the manifests that cannot be used.
    List {
        /// Only in this store.
        #[arg(long)]
        store: Option<String>,
        /// Only of this database.
        #[arg(long)]
        database: Option<String>,
    },
}

/// What programs read.
#[derive(Serialize)]
struct Found {
    backups: Vec<Line>,
    broken: Vec<Broken>,
}

#[derive(Serialize)]
struct Line {
    store: String,
    /// What `restore` calls it.
    key: String,
    manifest: Manifest,
}

#[derive(Serialize)]
struct Broken {
    store: String,
    key: String,
    reason: String,
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let Command::List { store, database } = command;
    let config = Checked::file(&global.config)?.config()?;
    let wanted = stores(&config, store.as_deref())?;
    let mut found = Found { backups: Vec::new(), broken: Vec::new() };
    for (name, store) in wanted {
        let Listing { backups, broken } = list(&config, name, store, database.as_deref()).await?;
        let line = |backup: worker::backups::Backup| Line {
            store: name.to_owned(),
            key: backup.key,
            manifest: backup.manifest,
        };
        found.backups.extend(backups.into_iter().map(line));
        found.broken.extend(broken.into_iter().map(|(key, reason)| Broken { store: name.to_owned(), key, reason }));
    }
    global.output().print(&found, say)?;
    match found.broken.len() {
        0 => Ok(()),
        count => Err(Failure::failed(format!("{count} backups cannot be used"))
            .help("the list says why; what is cut or missing in a store has to be found there")),
    }
}

fn stores<'a>(config: &'a Config, wanted: Option<&str>) -> Result<Vec<(&'a str, &'a StoreConfig)>, Failure> {
    let all = &config.world.stores;
    let Some(name) = wanted else { return Ok(all.iter().map(|(name, store)| (name.as_str(), store)).collect()) };
    let unknown = || Failure::not_found(Problem::unknown("store", name, all.keys().map(String::as_str)).to_string());
    let (name, store) = all.get_key_value(name).ok_or_else(unknown)?;
    Ok(vec![(name.as_str(), store)])
}

async fn list(config: &Config, name: &str, store: &StoreConfig, database: Option<&str>) -> Result<Listing, Failure> {
    let resolver = rooms::resolver(config).await;
    let reading = async {
        let store = worker::stores::open(name, store, &resolver).await?;
        worker::backups::list(&*store, database).await
    };
    let away = || Failure::unavailable(format!("the store `{name}` did not answer in time"));
    timeout(DEADLINE, reading).await.map_err(|_| away())?.map_err(|failure| of_store(name, failure))
}

fn of_store(name: &str, failure: worker::Failure) -> Failure {
    match failure {
        worker::Failure::Retry { error, .. } => Failure::unavailable(format!("the store `{name}`: {error:#}")),
        worker::Failure::Discard(error) => Failure::failed(format!("the store `{name}`: {error:#}")),
        worker::Failure::Snooze { reason, .. } | worker::Failure::Cancelled(reason) => {
            Failure::failed(format!("the store `{name}`: {reason}"))
        }
    }
}

fn say(found: &Found) -> String {
    let rows = found.backups.iter().map(|line| {
        let manifest = &line.manifest;
        let size = manifest.data.stored.bytes.to_string();
        [line.store.clone(), manifest.database.clone(), moment(manifest.started_at), size, line.key.clone()]
    });
    let list = table(["STORE", "DATABASE", "STARTED", "BYTES", "KEY"], rows);
    let broken =
        found.broken.iter().map(|broken| format!("cannot be used: {} {}: {}", broken.store, broken.key, broken.reason));
    std::iter::once(list).chain(broken).collect::<Vec<_>>().join("\n")
}
