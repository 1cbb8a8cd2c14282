//! A restored file takes the place of the live one, by names: the old one gets a second name, and then the new one is renamed
//! over the first, so that a crash leaves the old one or the new one. Who has the old file open would go on in it, so nobody
//! may: the application is stopped first, and who is found with it open is in the way.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteLockingMode};
use sqlx::{ConnectOptions, Connection};
use tokio::fs;

use super::{link, remove};
use crate::databases::Scratch;
use crate::handler::{Failure, OrFail};

/// Waits so long for others to let go of it.
const BUSY: Duration = Duration::from_secs(5);

/// Where the old file is kept.
fn kept(path: &Path, scratch: Scratch) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.before-{}", scratch.job))
}

/// Whether the new file has taken its place already.
pub(super) fn is_taken(path: &Path, scratch: Scratch) -> bool {
    kept(path, scratch).exists() && !path.with_file_name(scratch.name()).exists()
}

pub(super) async fn take(path: &Path, scratch: Scratch) -> Result<String, Failure> {
    let (new, kept) = (path.with_file_name(scratch.name()), kept(path, scratch));
    let said = kept.display().to_string();
    if is_taken(path, scratch) {
        return Ok(said);
    }
    if !new.exists() {
        return Err(Failure::Discard(anyhow::anyhow!(
            "the restored file {} is gone: somebody removed it; the live one was not touched",
            new.display()
        )));
    }
    keep_log(path, &new).await?;
    // Held until the end: whoever opens the old file meanwhile cannot write to it.
    let held = alone(path).await?;
    if let Some(who) = others_with(path) {
        return Err(in_the_way(&format!("the process {who} has it open")));
    }
    if !kept.exists() {
        link(path, &kept).await?;
    }
    fs::rename(&new, path).await.or_retry("putting the restored file in the place of the live one")?;
    for suffix in ["-journal", "-wal", "-shm"] {
        let mut left = new.as_os_str().to_owned();
        left.push(suffix);
        remove(Path::new(&left)).await?;
    }
    sync_folder(path).await.or_retry("writing the database's folder")?;
    held.close().await.or_retry("closing the old database")?;
    Ok(said)
}

/// A database with a log (WAL) is to have one afterwards, too: a copy has none.
async fn keep_log(live: &Path, new: &Path) -> Result<(), Failure> {
    let options = |path: &Path| {
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(false).busy_timeout(BUSY);
        options.disable_statement_logging()
    };
    let mut connection = options(live).connect().await.or_retry("opening the live database")?;
    let mode = sqlx::query_scalar::<_, String>("PRAGMA journal_mode").fetch_one(&mut connection).await;
    let mode = mode.or_retry("asking for the live database's journal")?;
    connection.close().await.or_retry("closing the live database")?;
    if mode == "wal" {
        let connection = options(new).journal_mode(SqliteJournalMode::Wal).connect().await;
        let connection = connection.or_retry("giving the restored database a log")?;
        connection.close().await.or_retry("closing the restored database")?;
    }
    Ok(())
}

/// The live database, and nobody else in it; all that its log holds is in its file then.
async fn alone(path: &Path) -> Result<SqliteConnection, Failure> {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(false).busy_timeout(BUSY);
    let options = options.locking_mode(SqliteLockingMode::Exclusive).disable_statement_logging();
    let mut connection = options.connect().await.or_retry("opening the live database")?;
    // Where it has a log, that is given up only by who is alone.
    for statement in ["PRAGMA journal_mode = DELETE", "BEGIN EXCLUSIVE", "COMMIT"] {
        let done = sqlx::query(statement).execute(&mut connection).await;
        done.map_err(|error| in_the_way(&error.to_string()))?;
    }
    Ok(connection)
}

fn in_the_way(who: &str) -> Failure {
    Failure::retry(anyhow::anyhow!(
        "others use the live database ({who}): stop the application, so that it does not go on in the old file; nothing was \
         changed"
    ))
}

/// Another process that has the file open, as far as this one may see that.
fn others_with(path: &Path) -> Option<String> {
    let wanted = std::fs::metadata(path).ok()?;
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.file_name());
    let processes = processes.filter_map(|name| name.into_string().ok()).filter(|name| *name != own);
    processes.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).find(|process| {
        let handles = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        let files = handles.filter_map(|handle| std::fs::metadata(handle.path()).ok());
        files.into_iter().any(|file| (file.dev(), file.ino()) == (wanted.dev(), wanted.ino()))
    })
}

async fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(folder).await?.sync_all().await
}
