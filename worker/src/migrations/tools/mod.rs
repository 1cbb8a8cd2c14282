//! What each tool makes of a folder's files.

pub(super) mod prisma;
pub(super) mod sql;
pub(super) mod sqlx;

use crate::databases::Tool;
use crate::migrations::Migration;
use crate::migrations::folder::{FolderError, SourceFile, has_suffix};

/// Migrations, and what was passed over, with the reason.
type Read = (Vec<Migration>, Vec<String>);

/// A file's path and text.
type Named<'f> = (&'f str, &'f str);

/// The first line of a file that must not run in a transaction, for sqlx and for plain SQL.
const NO_TRANSACTION: &str = "-- no-transaction";

/// The tool's name as the configuration file spells it.
pub(crate) fn name(tool: Tool) -> &'static str {
    match tool {
        Tool::Sql => "sql",
        Tool::Sqlx => "sqlx",
        Tool::Prisma => "prisma",
    }
}

/// Sorts a flat folder's files into those to run and those that are passed over; SQL that would not be run is refused.
fn flat(files: &[SourceFile], tool: Tool) -> Result<(Vec<Named<'_>>, Vec<String>), FolderError> {
    let tool = name(tool);
    let mut run = Vec::new();
    let mut ignored = Vec::new();
    for file in files {
        let path = file.path.as_str();
        let is_sql = has_suffix(path, ".sql");
        if is_sql && path.contains('/') {
            return Err(FolderError(format!(
                "`{path}` is in a folder of its own, where the tool `{tool}` does not look; check `path` and `tool` of the \
                 database's migrations, or move it"
            )));
        }
        match &file.text {
            Some(text) if is_sql => run.push((path, text.as_str())),
            _ if has_suffix(path, ".down.sql") => ignored.push(format!("{path}: the way back, not run")),
            _ => ignored.push(format!("{path}: not SQL")),
        }
    }
    Ok((run, ignored))
}

#[cfg(test)]
pub(super) fn file(path: &str, text: &str) -> SourceFile {
    let text = crate::migrations::folder::is_read(path).then(|| text.to_owned());
    SourceFile { path: path.to_owned(), text }
}
