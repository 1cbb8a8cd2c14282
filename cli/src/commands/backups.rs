//! `backups`: what lies in the stores. Lists, shows and pins work on the stores alone, without a server and without the
//! ledger; `verify` and `restore` start jobs.

mod pins;
mod show;
mod start;

use std::time::Duration;

use chrono::Utc;
use clap::Subcommand;
use schemas::{Problem, Timestamp};
use serde::Serialize;
use tokio::time::timeout;
use worker::backups::{Backup, Listing, Manifest, Marks};
use worker::stores::{Store, StoreConfig};

use crate::args::Global;
use crate::config::{Checked, Config};
use crate::failure::Failure;
use crate::output::table;
use crate::rooms;

/// A store that has not answered by then is away.
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
    /// One backup: all that is known of it, and how it is restored with stock programs.
    Show(Which),
    /// Prove a backup: restore it into a scratch database and compare that with what was dumped; waits for the end.
    Verify(start::Verify),
    /// Make a new database from a backup, or put it in the place of the live one; waits for the end.
    Restore(start::Restore),
    /// Keep a backup whatever its age.
    Pin(pins::Pin),
    /// Let a pinned backup go its way again.
    Unpin(Which),
}

/// Which backup.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// Its key, as `backups list` shows it, or `latest`.
    backup: String,
    /// The store; where nothing is said, all are looked through.
    #[arg(long)]
    store: Option<String>,
    /// The database whose `latest` is meant.
    #[arg(long)]
    database: Option<String>,
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    match command {
        Command::List { store, database } => list(store.as_deref(), database.as_deref(), global).await,
        Command::Show(which) => show::run(which, global).await,
        Command::Verify(args) => Box::pin(start::verify(args, global)).await,
        Command::Restore(args) => Box::pin(start::restore(args, global)).await,
        Command::Pin(args) => pins::pin(args, global).await,
        Command::Unpin(which) => pins::unpin(which, global).await,
    }
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
    #[serde(flatten)]
    marks: Marks,
    manifest: Manifest,
}

#[derive(Serialize)]
struct Broken {
    store: String,
    key: String,
    reason: String,
}

async fn list(store: Option<&str>, database: Option<&str>, global: &Global) -> Result<(), Failure> {
    let config = Checked::file(&global.config)?.config()?;
    let mut found = Found { backups: Vec::new(), broken: Vec::new() };
    for (name, store) in stores(&config, store)? {
        let store = open(&config, name, store).await?;
        let mut listing = within(name, worker::backups::list(&*store, database)).await?;
        for backup in std::mem::take(&mut listing.backups) {
            found.backups.push(line(name, backup, &listing));
        }
        let broken = listing.broken.into_iter();
        found.broken.extend(broken.map(|(key, reason)| Broken { store: name.to_owned(), key, reason }));
    }
    let now = Utc::now();
    global.output().print(&found, |found| say(found, now))?;
    match found.broken.len() {
        0 => Ok(()),
        count => Err(Failure::failed(format!("{count} backups cannot be used"))
            .help("the list says why; what is cut or missing in a store has to be found there")),
    }
}

fn line(store: &str, backup: Backup, listing: &Listing) -> Line {
    let marks = listing.marks(&backup.key);
    Line { store: store.to_owned(), key: backup.key, marks, manifest: backup.manifest }
}

pub(super) fn stores<'a>(config: &'a Config, wanted: Option<&str>) -> Result<Vec<(&'a str, &'a StoreConfig)>, Failure> {
    let all = &config.world.stores;
    let Some(name) = wanted else { return Ok(all.iter().map(|(name, store)| (name.as_str(), store)).collect()) };
    let unknown = || Failure::not_found(Problem::unknown("store", name, all.keys().map(String::as_str)).to_string());
    let (name, store) = all.get_key_value(name).ok_or_else(unknown)?;
    Ok(vec![(name.as_str(), store)])
}

pub(super) async fn open(config: &Config, name: &str, store: &StoreConfig) -> Result<Box<dyn Store>, Failure> {
    // The clients of AWS are large, and would be part of every future that asks for one.
    let resolver = Box::pin(rooms::resolver(config)).await;
    Box::pin(within(name, worker::stores::open(name, store, &resolver))).await
}

/// Asks a store, for so long.
pub(super) async fn within<T>(
    name: &str,
    asked: impl Future<Output = Result<T, worker::Failure>>,
) -> Result<T, Failure> {
    let away = || Failure::unavailable(format!("the store `{name}` did not answer in time"));
    timeout(DEADLINE, asked).await.map_err(|_| away())?.map_err(|failure| of_store(name, failure))
}

pub(super) fn of_store(name: &str, failure: worker::Failure) -> Failure {
    match failure {
        worker::Failure::Retry { error, .. } => Failure::unavailable(format!("the store `{name}`: {error:#}")),
        worker::Failure::Discard(error) => Failure::failed(format!("the store `{name}`: {error:#}")),
        worker::Failure::Snooze { reason, .. } | worker::Failure::Cancelled(reason) => {
            Failure::failed(format!("the store `{name}`: {reason}"))
        }
    }
}

/// A backup in an open store.
struct Lying {
    store_name: String,
    store: Box<dyn Store>,
    backup: Backup,
}

/// Finds a backup by its key in one store or in all, or the latest of a database.
async fn find(which: &Which, config: &Config) -> Result<Lying, Failure> {
    let among = stores(config, which.store.as_deref())?;
    let latest = which.backup == "latest";
    if latest && (which.database.is_none() || among.len() > 1) {
        return Err(Failure::usage("`latest` of what is not said").help("give --database and --store"));
    }
    for (name, store_config) in among {
        let store = open(config, name, store_config).await?;
        let found = match &which.database {
            Some(database) if latest => Some(within(name, worker::backups::latest(&*store, database)).await?),
            _ => within(name, worker::backups::find(&*store, &which.backup)).await?,
        };
        if let Some(backup) = found {
            return Ok(Lying { store_name: name.to_owned(), store, backup });
        }
    }
    Err(Failure::not_found(format!("there is no backup `{}`", which.backup))
        .help("`nightporter backups list` shows those that there are"))
}

fn say(found: &Found, now: Timestamp) -> String {
    let rows = found.backups.iter().map(|line| {
        let manifest = &line.manifest;
        let called = [manifest.tier.as_deref(), manifest.name.as_deref()];
        [
            line.store.clone(),
            manifest.database.clone(),
            age(manifest.started_at, now),
            size(manifest.data.stored.bytes),
            called.into_iter().flatten().collect::<Vec<_>>().join(", "),
            if line.marks.pinned { "pinned".to_owned() } else { String::new() },
            proven(&line.marks, now),
            line.key.clone(),
        ]
    });
    let list = table(["STORE", "DATABASE", "AGE", "SIZE", "NAME", "PIN", "PROVEN", "KEY"], rows);
    let broken =
        found.broken.iter().map(|broken| format!("cannot be used: {} {}: {}", broken.store, broken.key, broken.reason));
    std::iter::once(list).chain(broken).collect::<Vec<_>>().join("\n")
}

fn proven(marks: &Marks, now: Timestamp) -> String {
    match marks.verdict {
        None => "never".to_owned(),
        Some(verdict) if verdict.proven => format!("{} ago", age(verdict.at, now)),
        Some(verdict) => format!("WRONG, {} ago", age(verdict.at, now)),
    }
}

/// How long ago, in the largest unit of which there are two.
pub(super) fn age(at: Timestamp, now: Timestamp) -> String {
    let seconds = (now - at).num_seconds().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// In the largest unit of which there is one, with a decimal.
pub(super) fn size(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes_are_said_in_a_unit_that_fits() {
        let ago = |seconds: i64| age(Utc::now(), Utc::now() + chrono::Duration::seconds(seconds));
        assert_eq!([ago(-5), ago(3700), ago(90_000), ago(200_000)], ["0s", "61m", "25h", "2d"]);
        assert_eq!([size(12), size(1536), size(5 << 30)], ["12 B", "1.5 KiB", "5.0 GiB"]);
    }
}
