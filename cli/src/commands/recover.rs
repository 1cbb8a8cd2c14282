//! `recover`: rebuilds the ledger of a lost machine from its copies in a store. It needs the configuration and its secrets,
//! and nothing else of that machine.
//!
//! Twice is safe: the ledger gets its name when it is whole; an attempt that was stopped leaves a claim in the store, which
//! the next one goes beyond, and hidden files.

mod report;

use std::path::{Path, PathBuf};

use queue::OpenError;
use queue::kill_point::reached;
use queue::ledger::{self, Announced, Operator, Progress, Recovered, Recovery, Snapped};
use schemas::Timestamp;
use secrets::{ExposeSecret, Resolver};
use tempfile::TempPath;
use worker::backups::{Seal, is_damage};
use worker::ledger_copies::{Claimant, Rebuilt, Taken, lines, rebuild, take};
use worker::stores::Store;

use self::report::Report;
use super::backups::{of_store, open, stores, within};
use crate::args::Global;
use crate::config::{Checked, Config, sqlite_path};
use crate::failure::{Failure, with_causes};
use crate::rooms;

/// Why a schedule's times since the copy are not fired.
const GAP: &str = "the machine was lost: what it did after the ledger's last copy is not known";

/// The arguments of `recover`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The store that holds the copies; else the one that `copy_to` of [queue] names.
    #[arg(long, value_name = "STORE")]
    from: Option<String>,
    /// Why; kept in the audit.
    #[arg(long, default_value = "the machine was lost")]
    reason: String,
    /// Let open jobs go on without asking. Only where the lost machine did nothing after the copy.
    #[arg(long)]
    run_open_jobs: bool,
    /// Only say what would be recovered. Nothing is left behind.
    #[arg(long)]
    dry_run: bool,
    /// Rebuild nothing: the ledger that is here goes on, and whichever took over from it is copied no more.
    #[arg(long, conflicts_with_all = ["run_open_jobs", "dry_run"])]
    this_ledger: bool,
}

/// What is asked of the store.
struct Place<'a> {
    name: &'a str,
    store: Box<dyn Store>,
    seal: Seal,
}

pub(crate) async fn run(args: Args, global: &Global) -> Result<(), Failure> {
    let config = Checked::file(&global.config)?.config()?;
    let resolver = rooms::resolver(&config).await;
    let address = rooms::resolve_address(&config.queue.ledger, &resolver, "ledger").await?;
    let path = sqlite_path(address.expose_secret()).ok_or_else(no_file)?;
    let place = place(&args, &config, &resolver).await?;
    if args.this_ledger {
        return stay(address.expose_secret(), &path, &place, global).await;
    }
    must_not_be_there(&path)?;
    let (file, rebuilt, recovered, passed_over) = restore(&args, &config, &path, &place).await?;
    let claimed = if args.dry_run { None } else { Some(settle(&file, &path, &recovered, &place).await?) };
    reached("ledger claimed");
    if args.dry_run {
        drop(file);
    } else {
        put_in_place(file, &path)?;
    }
    reached("ledger in its place");
    let report =
        Report::new(&config, place.name, &path, (rebuilt, recovered, passed_over), claimed, args.run_open_jobs);
    global.output().print(&report, Report::say)
}

/// Refuses to begin an empty ledger where there are copies of one: it would take the other's place without a word.
pub(crate) async fn must_not_begin_anew(config: &Config, resolver: &Resolver) -> Result<(), Failure> {
    let Some(name) = config.queue.copy_to.as_deref() else { return Ok(()) };
    let address = rooms::resolve_address(&config.queue.ledger, resolver, "ledger").await?;
    let Some(path) = sqlite_path(address.expose_secret()).filter(|path| !path.exists()) else { return Ok(()) };
    let [(name, store)] = stores(config, Some(name))?[..] else { return Ok(()) };
    let store = open(config, name, store).await?;
    if within(name, lines(&*store)).await?.is_empty() {
        return Ok(());
    }
    Err(Failure::conflict(format!(
        "the ledger {} is not there, and the store `{name}` has copies of one",
        path.display()
    ))
    .help(
        "rebuild it with `nightporter recover`; to begin with an empty one, name another store in `copy_to` of [queue]",
    ))
}

async fn place<'a>(args: &'a Args, config: &'a Config, resolver: &Resolver) -> Result<Place<'a>, Failure> {
    let name = args.from.as_deref().or(config.queue.copy_to.as_deref());
    let name = name.ok_or_else(|| Failure::usage("which store has the copies? Give --from STORE"))?;
    let [(name, store)] = stores(config, Some(name))?[..] else { return Err(Failure::not_found("no such store")) };
    let seal = Seal::of(name, store, resolver).await.map_err(|failure| of_store(name, failure))?;
    Ok(Place { name, store: open(config, name, store).await?, seal })
}

fn no_file() -> Failure {
    Failure::usage("the ledger is PostgreSQL's, and nothing is to be rebuilt here")
        .help("bring PostgreSQL back by its own means (a standby, its backups) and start the processes again: docs/recover.md")
}

fn must_not_be_there(path: &Path) -> Result<(), Failure> {
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    match ["", "-wal", "-journal"].map(beside).into_iter().find(|file| file.exists()) {
        None => Ok(()),
        Some(there) => Err(Failure::conflict(format!("{} is there: nothing is recovered over it", there.display()))
            .help("move it away, if it is not the ledger that is to go on; if it is, start `nightporter up`")),
    }
}

/// Rebuilds the newest ledger that can be: its file, and why newer copies were passed over.
async fn restore(
    args: &Args,
    config: &Config,
    path: &Path,
    place: &Place<'_>,
) -> Result<(TempPath, Rebuilt, Recovered, Vec<String>), Failure> {
    let found = within(place.name, lines(&*place.store)).await?;
    if found.is_empty() {
        return Err(Failure::not_found(format!("the store `{}` has no copy of a ledger", place.name))
            .help("is it the store that `copy_to` of [queue] named on the lost machine, with the same prefix?"));
    }
    let mut passed_over = Vec::new();
    for line in found {
        let file = beside(path)?;
        let rebuilt = match rebuild(&*place.store, &place.seal, &line, &file).await {
            Err(failure) if is_damage(&failure) => {
                passed_over.push(format!("line {}: {}", line.number, failure.words()));
                continue;
            }
            rebuilt => rebuilt.map_err(|failure| of_store(place.name, failure))?,
        };
        reached("ledger rebuilt");
        match recover(args, config, &file, place, &rebuilt).await {
            Err(OpenError::Damaged(why)) => passed_over.push(format!("line {}: {why}", line.number)),
            recovered => {
                passed_over.extend(rebuilt.passed_over.clone());
                reached("ledger goes on");
                return Ok((file, rebuilt, recovered?, passed_over));
            }
        }
    }
    Err(Failure::failed(format!("no copy of the ledger can be used: {}", passed_over.join("; "))))
}

async fn recover(
    args: &Args,
    config: &Config,
    file: &Path,
    place: &Place<'_>,
    rebuilt: &Rebuilt,
) -> Result<Recovered, OpenError> {
    let missed = |progress: &Progress, now: Timestamp| {
        let schedule = config.schedules.iter().find(|schedule| schedule.name == progress.schedule)?;
        producer::scheduler::since(schedule, progress.settled, now, GAP)
    };
    let announced = config
        .schedules
        .iter()
        .map(|schedule| Announced { schedule: schedule.name.clone(), timetable: schedule.timetable.to_string() });
    let recovery = Recovery {
        by: Operator { actor: rooms::user(), reason: args.reason.clone() },
        from: format!("copy {} of line {} in the store {}", rebuilt.number, rebuilt.line, place.name),
        shows: rebuilt.shows,
        go_on: args.run_open_jobs,
        schedules: announced.collect(),
        config_digest: config.digest.clone(),
        missed: &missed,
    };
    ledger::recover(file, &recovery).await
}

/// Has the store know that this ledger goes on from now on; the line that it may write next.
async fn settle(file: &Path, path: &Path, recovered: &Recovered, place: &Place<'_>) -> Result<u32, Failure> {
    // Before the ledger has its name: one that goes on and is not claimed would be copied nowhere.
    let cannot = |error| Failure::failed(format!("{} cannot be written: {error}", path.display()));
    std::fs::File::open(file).and_then(|file| file.sync_all()).map_err(cannot)?;
    claim(recovered.instance, recovered.at, place).await
}

async fn claim(instance: uuid::Uuid, now: Timestamp, place: &Place<'_>) -> Result<u32, Failure> {
    let claimant = Claimant { instance, machine: rooms::machine(), takes_over: true };
    match within(place.name, take(&*place.store, &claimant, now)).await? {
        Taken::Mine(line) => Ok(line),
        Taken::Others(claim) => Err(Failure::conflict(format!("the machine `{}` claims the copies", claim.machine))),
    }
}

/// A hidden file in the folder where the ledger is to lie.
fn beside(path: &Path) -> Result<TempPath, Failure> {
    let folder = folder_of(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let made = std::fs::create_dir_all(folder)
        .and_then(|()| tempfile::Builder::new().prefix(&format!(".{name}.")).suffix(".recovering").tempfile_in(folder));
    let cannot = |error| Failure::failed(format!("no file can be made in {}: {error}", folder.display()));
    Ok(made.map_err(cannot)?.into_temp_path())
}

fn put_in_place(file: TempPath, path: &Path) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| {
        Failure::failed(format!("the ledger cannot be put in its place {}: {error}", path.display()))
            .help("nothing is lost; run `nightporter recover` again when that is mended")
    };
    file.persist_noclobber(path).map_err(|error| cannot(error.error))?;
    std::fs::File::open(folder_of(path)).and_then(|folder| folder.sync_all()).map_err(cannot)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Has the ledger that is here go on, whoever took over from it.
async fn stay(address: &str, path: &Path, place: &Place<'_>, global: &Global) -> Result<(), Failure> {
    if !path.exists() {
        return Err(Failure::not_found(format!("there is no ledger {}", path.display()))
            .help("without --this-ledger one is rebuilt from the copies"));
    }
    let ledger = ledger::open(address, None).await?;
    let snapped = ledger.snapshot(None).await.map_err(|error| Failure::unavailable(with_causes(&error)))?;
    let Snapped::Taken(snapshot) = snapped else { return Err(no_file()) };
    let line = claim(snapshot.instance, snapshot.at, place).await?;
    let said = serde_json::json!({"ledger": path, "store": place.name, "claimed_line": line});
    global.output().print(&said, |_| {
        format!("{} goes on; its next copy in the store `{}` is of line {}", path.display(), place.name, line + 1)
    })
}
