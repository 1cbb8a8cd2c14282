//! Prisma up to 7: `<name>/migration.sql` and `migration_lock.toml`. Contract: prisma-engines, `schema-engine`.

use std::collections::BTreeSet;
use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::Read;
use crate::migrations::folder::{FolderError, SourceFile, has_suffix};
use crate::migrations::{Engine, Migration};

pub(in crate::migrations) fn read(files: &[SourceFile], engine: Engine) -> Result<Read, FolderError> {
    if let Some(file) = files.iter().find(|file| is_of_prisma_8(&file.path)) {
        return Err(FolderError(format!(
            "`{}` belongs to a Prisma 8 package, which keeps another history; run Prisma's own command line for it",
            file.path
        )));
    }
    if let Some(lock) = files.iter().find(|file| file.path == "migration_lock.toml") {
        check_provider(lock.text.as_deref().unwrap_or_default(), engine)?;
    }
    let mut migrations = Vec::new();
    let mut ignored = Vec::new();
    for file in files {
        match (file.path.split_once('/'), &file.text) {
            (Some((name, "migration.sql")), Some(text)) => migrations.push(migration(name, &file.path, text)),
            (None, _) if file.path == "migration_lock.toml" => {}
            _ if has_suffix(&file.path, ".down.sql") || !has_suffix(&file.path, ".sql") => {
                ignored.push(format!("{}: not a migration", file.path));
            }
            _ => {
                return Err(FolderError(format!(
                    "`{}` is not where Prisma looks (`<name>/migration.sql`); check `path` and `tool` of the database's \
                     migrations, or move it",
                    file.path
                )));
            }
        }
    }
    refuse_empty_folders(files, &migrations)?;
    Ok((migrations, ignored))
}

/// A folder without its file is a migration that was lost (Prisma's P3015).
fn refuse_empty_folders(files: &[SourceFile], migrations: &[Migration]) -> Result<(), FolderError> {
    let known: BTreeSet<&str> = migrations.iter().map(|migration| migration.name.as_str()).collect();
    let mut folders = files.iter().filter_map(|file| file.path.split_once('/')).map(|(folder, _)| folder);
    match folders.find(|folder| !known.contains(folder)) {
        Some(folder) => Err(FolderError(format!(
            "the folder `{folder}` has no `migration.sql`; put the file back or delete the folder"
        ))),
        None => Ok(()),
    }
}

fn is_of_prisma_8(path: &str) -> bool {
    path.starts_with("app/") || path.starts_with("snapshots/") || path.ends_with("/migration.json")
}

fn check_provider(lock: &str, engine: Engine) -> Result<(), FolderError> {
    let line = lock.lines().find_map(|line| line.trim().strip_prefix("provider")?.trim_start().strip_prefix('='));
    let Some(provider) = line.map(|value| value.trim().trim_matches('"')) else {
        return Err(FolderError("`migration_lock.toml` names no provider; make it anew with Prisma".into()));
    };
    let fits = match engine {
        Engine::Postgres => matches!(provider, "postgresql" | "postgres"),
        Engine::Sqlite => provider == "sqlite",
    };
    if fits {
        return Ok(());
    }
    Err(FolderError(format!(
        "`migration_lock.toml` says that these migrations are for `{provider}`, but the database is another ({engine:?}); \
         check which database this folder belongs to"
    )))
}

fn migration(name: &str, path: &str, text: &str) -> Migration {
    let unix = text.replace("\r\n", "\n");
    let windows = unix.replace('\n', "\r\n");
    let texts = [text, unix.as_str(), windows.as_str()];
    let also_accepted = texts.iter().flat_map(|text| [checksum(text), unpadded(text)]).collect();
    Migration {
        id: name.to_owned(),
        name: name.to_owned(),
        path: path.to_owned(),
        description: String::new(),
        checksum: checksum(text),
        also_accepted,
        in_transaction: false,
        sql: text.to_owned(),
    }
}

fn checksum(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

/// As very old versions wrote it: without the leading zero of a byte.
fn unpadded(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut digits, byte| {
        // Writing into a string cannot fail.
        let _ = write!(digits, "{byte:x}");
        digits
    })
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    fn error_of(files: &[SourceFile]) -> String {
        read(files, Engine::Postgres).unwrap_err().to_string()
    }

    #[test]
    fn a_folder_is_read_as_prisma_reads_it() {
        let files = [
            file("migration_lock.toml", "# comment\nprovider = \"postgresql\"\n"),
            file("20240101000000_init/migration.sql", "CREATE TABLE a (id int);\n"),
            file("20240101000000_init/README.md", ""),
        ];
        let (migrations, ignored) = read(&files, Engine::Postgres).unwrap();
        assert_eq!(migrations[0].name, "20240101000000_init");
        // sha256sum of the same text.
        assert_eq!(migrations[0].checksum, "c2de7559380e5ebf65caa7d59e166558e80243cf7e70006cc98d1593d94203c1");
        assert_eq!(ignored, ["20240101000000_init/README.md: not a migration"]);
    }

    #[test]
    fn digests_of_other_line_breaks_and_of_old_versions_are_accepted() {
        let migration = migration("a", "a/migration.sql", "x\r\ny\r\n");
        assert!(migration.also_accepted.contains(&checksum("x\ny\n")));
        assert!(migration.also_accepted.iter().any(|digest| digest.len() < 64), "{:?}", migration.also_accepted);
        assert!(!migration.also_accepted.contains(&checksum("x\ny")));
    }

    #[test]
    fn another_provider_and_prisma_8_and_wrong_shapes_are_refused() {
        let mysql = [file("migration_lock.toml", "provider = \"mysql\""), file("1/migration.sql", "")];
        assert!(error_of(&mysql).contains("for `mysql`"));
        assert!(error_of(&[file("app/20260101T0000_x/migration.json", "")]).contains("Prisma 8"));
        assert!(error_of(&[file("0001_init.sql", "")]).contains("not where Prisma looks"));
        assert!(error_of(&[file("1_init/notes.md", "")]).contains("no `migration.sql`"));
    }
}
