//! `SQLite`: a backup is a compacted copy of the file, made in one transaction and checked before it is sent.

mod ask;
mod contents;
mod place;
mod upkeep;

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::program::not_read;
use super::{Answer, Contents, Database, Dump, DumpFacts, Question, Scratch, Tool, Upkeep};
use crate::examination::Remark;
use crate::handler::{Failure, OrFail};
use crate::migrations::History;
use crate::outside;
use crate::rows::{Named, Walk};
use tracing::Instrument;

/// As dumps name it.
const ENGINE: &str = "sqlite";
/// Waits so long for a writer of the application.
const BUSY: Duration = Duration::from_secs(30);
/// Copying and checking a file must be done within this.
const COPY_DEADLINE: Duration = Duration::from_hours(6);
/// Bytes of a dump are handed on in pieces of this size.
const PIECE: usize = 256 * 1024;

/// A `SQLite` database.
pub(super) struct Sqlite {
    path: PathBuf,
}

struct FileDump {
    file: File,
    bytes: u64,
    facts: DumpFacts,
}

impl Sqlite {
    pub(super) fn new(name: &str, address: &str) -> Result<Self, Failure> {
        let wrong = || Failure::Discard(anyhow::anyhow!("the address of the database `{name}` is not `sqlite:<path>`"));
        let options = SqliteConnectOptions::from_str(address).map_err(|_| wrong())?;
        let path = options.get_filename().to_owned();
        if path.file_name().is_none() || path.starts_with(":memory:") {
            return Err(wrong());
        }
        Ok(Self { path })
    }

    /// A hidden file beside the database, where there is room for another one.
    fn beside(&self, tag: &str) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}.{tag}.unfinished"))
    }

    /// The job that never finished the file of that name.
    fn unfinished_of(&self, name: &str) -> Option<Scratch> {
        let scratch = Scratch { job: name.strip_suffix(".unfinished")?.rsplit_once('.')?.1.parse().ok()? };
        self.beside(&scratch.job.to_string()).ends_with(name).then_some(scratch)
    }
}

#[async_trait]
impl Database for Sqlite {
    fn engine(&self) -> &'static str {
        ENGINE
    }

    async fn dump(&self, tag: &str) -> Result<Box<dyn Dump>, Failure> {
        let copy = self.beside(tag);
        remove(&copy).await?; // An earlier attempt's.
        let version = copy_into(&self.path, &copy).await;
        let counted = match version {
            Ok(version) => counted(&copy).await.map(|contents| (version, contents)),
            Err(failure) => Err(failure),
        };
        let opened = match counted {
            Ok(facts) => File::open(&copy).await.or_retry("opening the copy").map(|file| (facts, file)),
            Err(failure) => Err(failure),
        };
        remove(&copy).await?; // The open file stays readable; nothing is left if this process dies.
        let ((version, contents), file) = opened?;
        let bytes = file.metadata().await.or_retry("looking at the copy")?.len();
        let facts = DumpFacts {
            engine: ENGINE.to_owned(),
            server_version: version.clone(),
            format: "sqlite file".to_owned(),
            made_with: format!("SQLite {version} (VACUUM INTO)"),
            warnings: Vec::new(),
            contents: Some(contents),
        };
        Ok(Box::new(FileDump { file, bytes, facts }))
    }

    async fn read_through(&self, mut dump: Box<dyn AsyncRead + Send + Unpin>) -> Result<(), Failure> {
        // The copy was checked by SQLite before it was sent, and the reader proves that these are its bytes.
        tokio::io::copy(&mut dump, &mut tokio::io::sink()).await.map_err(not_read)?;
        Ok(())
    }

    async fn restore(&self, new_name: &str, tag: &str, dump: Box<dyn AsyncRead + Send + Unpin>) -> Result<(), Failure> {
        let target = self.path.with_file_name(new_name);
        if tokio::fs::try_exists(&target).await.or_retry("looking for the new database")? {
            return same_as(&target, dump).await;
        }
        let unfinished = self.beside(tag);
        let filled = match fill(&unfinished, dump).await {
            Ok(()) => check(&unfinished).await,
            Err(failure) => Err(failure),
        };
        let settled = match filled {
            Ok(()) => link(&unfinished, &target).await,
            Err(failure) => Err(failure),
        };
        remove(&unfinished).await?;
        settled
    }

    async fn restore_beside(&self, scratch: Scratch, dump: Box<dyn AsyncRead + Send + Unpin>) -> Result<bool, Failure> {
        if place::is_taken(&self.path, scratch) {
            return Ok(false);
        }
        self.restore(&scratch.name(), &scratch.job.to_string(), dump).await.map(|()| true)
    }

    async fn take_place(&self, scratch: Scratch) -> Result<String, Failure> {
        place::take(&self.path, scratch).await
    }

    async fn examine(&self) -> Result<Vec<Remark>, Failure> {
        let found = tokio::fs::metadata(&self.path).await;
        let path = self.path.display();
        Ok(vec![match found {
            Ok(found) => Remark::well(format!("{path} is there, {} bytes", found.len())),
            Err(error) => Remark::ill(format!("{path} cannot be read: {error}")),
        }])
    }

    async fn walk(&self, _named: Named<'_>) -> Result<Walk, Failure> {
        Err(Failure::Discard(anyhow::anyhow!(
            "rows of SQLite databases are not deleted by age yet; delete them in a program of yours (`exec`)"
        )))
    }

    async fn drop_scratch(&self, scratch: Scratch) -> Result<(), Failure> {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            remove(&self.path.with_file_name(format!("{}{suffix}", scratch.name()))).await?;
        }
        remove(&self.beside(&scratch.job.to_string())).await
    }

    async fn scratches(&self) -> Result<Vec<Scratch>, Failure> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut entries = tokio::fs::read_dir(folder).await.or_retry("listing the database's folder")?;
        let mut found = Vec::new();
        while let Some(entry) = entries.next_entry().await.or_retry("listing the database's folder")? {
            let name = entry.file_name().to_string_lossy().into_owned();
            found.extend(Scratch::named(&name).or_else(|| self.unfinished_of(&name)));
        }
        Ok(found)
    }

    async fn contents(&self, scratch: Scratch, _like: &Contents) -> Result<Contents, Failure> {
        let mut connection = open_alone(&self.path.with_file_name(scratch.name())).await?;
        contents::count(&mut connection).await
    }

    async fn ask_scratch(&self, scratch: Scratch, sql: &str) -> Result<Value, Failure> {
        let mut connection = open_alone(&self.path.with_file_name(scratch.name())).await?;
        contents::ask(&mut connection, sql).await
    }

    async fn ask(&self, question: &Question) -> Result<Answer, Failure> {
        self.answer(question).await
    }

    async fn upkeep(&self) -> Result<Box<dyn Upkeep>, Failure> {
        self.keep().await
    }

    async fn migrate_with(&self, tool: Tool) -> Result<Box<dyn History>, Failure> {
        crate::migrations::open_sqlite(&self.path, tool).await
    }
}

#[async_trait]
impl Dump for FileDump {
    fn estimate(&self) -> u64 {
        self.bytes
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let mut piece = BytesMut::with_capacity(PIECE);
        let read = self.file.read_buf(&mut piece).await.or_retry("reading the copy")?;
        Ok((read > 0).then(|| piece.freeze()))
    }

    async fn finish(self: Box<Self>) -> Result<DumpFacts, Failure> {
        Ok(self.facts)
    }
}

async fn open(path: &Path) -> Result<SqliteConnection, Failure> {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(false).busy_timeout(BUSY);
    options.disable_statement_logging().connect().await.or_retry("opening the SQLite database")
}

/// Opens a file that nobody else uses, to read it.
async fn open_alone(path: &Path) -> Result<SqliteConnection, Failure> {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(false).immutable(true).read_only(true);
    options.disable_statement_logging().connect().await.or_retry("opening the copy")
}

/// What the tables of a right copy hold.
async fn counted(path: &Path) -> Result<Contents, Failure> {
    check(path).await?;
    let mut connection = open_alone(path).await?;
    let contents = contents::count(&mut connection).await?;
    connection.close().await.or_retry("closing the copy")?;
    Ok(contents)
}

/// Makes a compacted copy in one read transaction; the version of `SQLite` that did it.
async fn copy_into(from: &Path, to: &Path) -> Result<String, Failure> {
    let mut connection = open(from).await?;
    let to = to.to_str().ok_or_else(|| Failure::discard(anyhow::anyhow!("the database's path is not text")))?;
    let copying = sqlx::query("VACUUM INTO ?").bind(to).execute(&mut connection);
    let copied = tokio::time::timeout(COPY_DEADLINE, copying.instrument(outside::database("sqlite", "copy")));
    copied
        .await
        .or_retry("copying the database took too long")?
        .or_retry("copying the database (is the disk full?)")?;
    let version = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut connection).await;
    let version = version.or_retry("asking SQLite for its version")?;
    connection.close().await.or_retry("closing the database")?;
    Ok(version)
}

/// That `SQLite` finds nothing wrong with a file that nobody else uses.
async fn check(path: &Path) -> Result<(), Failure> {
    let mut connection = open_alone(path).await?;
    let asked = sqlx::query_scalar::<_, String>("PRAGMA integrity_check(20)").fetch_all(&mut connection);
    let said = tokio::time::timeout(COPY_DEADLINE, asked).await.or_retry("checking the copy took too long")?;
    let said = said.or_retry("checking the copy")?;
    connection.close().await.or_retry("closing the copy")?;
    if said != ["ok"] {
        return Err(Failure::Discard(anyhow::anyhow!("SQLite finds the database damaged: {}", said.join("; "))));
    }
    Ok(())
}

async fn fill(path: &Path, mut dump: Box<dyn AsyncRead + Send + Unpin>) -> Result<(), Failure> {
    let mut file = File::create(path).await.or_retry("making the new database's file")?;
    let mut buffer = vec![0; PIECE];
    loop {
        let read = dump.read(&mut buffer).await.map_err(not_read)?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read]).await.or_retry("writing the new database's file (is the disk full?)")?;
    }
    file.sync_all().await.or_retry("writing the new database's file")
}

/// Gives the file its name unless one of that name is there.
async fn link(from: &Path, to: &Path) -> Result<(), Failure> {
    match tokio::fs::hard_link(from, to).await {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(exists(to)),
        linked => linked.or_retry("giving the new database its name"),
    }
}

/// An earlier attempt may have restored it and could not say so: then it has the same bytes.
async fn same_as(path: &Path, mut dump: Box<dyn AsyncRead + Send + Unpin>) -> Result<(), Failure> {
    let mut file = File::open(path).await.or_retry("opening the database that is there")?;
    let (mut wanted, mut found) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        let read = dump.read(&mut wanted).await.map_err(not_read)?;
        if read == 0 {
            let rest = file.read(&mut found).await.or_retry("reading the database that is there")?;
            return if rest == 0 { Ok(()) } else { Err(exists(path)) };
        }
        match file.read_exact(&mut found[..read]).await {
            Ok(_) if found[..read] == wanted[..read] => {}
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(error).or_retry("reading the database that is there");
            }
            _ => return Err(exists(path)),
        }
    }
}

fn exists(path: &Path) -> Failure {
    Failure::Discard(anyhow::anyhow!(
        "{} exists; a restore only fills a new database: choose another name",
        path.display()
    ))
}

async fn remove(path: &Path) -> Result<(), Failure> {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.or_retry("removing an unfinished copy"),
    }
}
