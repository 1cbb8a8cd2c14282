//! A migrations folder as data: its files, and what the tool that it belongs to makes of them.

use std::path::{Path, PathBuf};

use crate::databases::Tool;
use crate::handler::Failure;
use crate::migrations::{Engine, Migration, tools};

/// Deeper than this no known tool keeps anything.
const DEEPEST: usize = 4;

/// A file that is larger than this is not a migration but a mistake, in bytes.
pub(crate) const LARGEST_FILE: u64 = 16 * 1024 * 1024;

/// A file of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Its path in the folder, with `/`.
    pub path: String,
    /// Its text; none where no tool reads it.
    pub text: Option<String>,
}

/// A folder, as its tool reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// Its tool.
    pub tool: Tool,
    /// Its migrations, in the tool's own order.
    pub migrations: Vec<Migration>,
    /// What is in it and is not run, with the reason: nothing is passed over in silence.
    pub ignored: Vec<String>,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FolderError(pub(crate) String);

impl Folder {
    /// Reads files as the tool would.
    ///
    /// # Errors
    ///
    /// Where the files are not such a folder, or one of them would be passed over.
    pub fn of(tool: Tool, engine: Engine, files: &[SourceFile]) -> Result<Self, FolderError> {
        let (mut migrations, ignored) = match tool {
            Tool::Sql => tools::sql::read(files)?,
            Tool::Sqlx => tools::sqlx::read(files)?,
            Tool::Prisma => tools::prisma::read(files, engine)?,
        };
        migrations.sort_by(|left, right| left.id.cmp(&right.id));
        if let Some([first, second]) =
            migrations.windows(2).find(|two| two[0].id == two[1].id).map(|two| [&two[0], &two[1]])
        {
            return Err(FolderError(format!(
                "`{}` and `{}` have the same version; give one of them another",
                first.path, second.path
            )));
        }
        if migrations.is_empty() {
            return Err(FolderError(format!(
                "the folder holds no migration of the tool `{}`; check `path` and `tool` of the database's migrations",
                tools::name(tool)
            )));
        }
        Ok(Self { tool, migrations, ignored })
    }
}

/// Whether any tool reads the text of the file at this path.
pub(crate) fn is_read(path: &str) -> bool {
    path == "migration_lock.toml" || (has_suffix(path, ".sql") && !has_suffix(path, ".down.sql"))
}

pub(crate) fn has_suffix(path: &str, suffix: &str) -> bool {
    path.len() > suffix.len() && path.ends_with(suffix)
}

/// The text of a file.
pub(crate) fn text_of(path: &str, bytes: Vec<u8>) -> Result<String, FolderError> {
    String::from_utf8(bytes).map_err(|_| FolderError(format!("`{path}` is not UTF-8; save it as UTF-8")))
}

/// The files of a folder on this machine.
pub async fn local(path: &str) -> Result<Vec<SourceFile>, Failure> {
    let root = PathBuf::from(path);
    let read = tokio::task::spawn_blocking(move || {
        let mut files = Vec::new();
        read_into(&mut files, &root, "", 0).map(|()| files)
    });
    let files = read.await.map_err(Failure::retry)?;
    files.map_err(|error| Failure::discard(error).context(format!("reading the migrations folder `{path}`")))
}

fn read_into(files: &mut Vec<SourceFile>, folder: &Path, within: &str, depth: usize) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            anyhow::bail!("the name of {} is not UTF-8; rename it", entry.path().display());
        };
        let path = if within.is_empty() { name.to_owned() } else { format!("{within}/{name}") };
        let facts = std::fs::metadata(entry.path())?;
        if facts.is_dir() {
            anyhow::ensure!(depth < DEEPEST, "`{path}` lies deeper than any migration; check the folder's `path`");
            read_into(files, &entry.path(), &path, depth + 1)?;
        } else if !is_read(&path) {
            files.push(SourceFile { path, text: None });
        } else if facts.len() > LARGEST_FILE {
            anyhow::bail!("`{path}` has {} bytes; a migration may have {LARGEST_FILE}", facts.len());
        } else {
            let text = text_of(&path, std::fs::read(entry.path())?)?;
            files.push(SourceFile { path, text: Some(text) });
        }
    }
    Ok(())
}
