//! sqlx: `<version>_<description>.sql`, or `.up.sql` with `.down.sql`. Contract: sqlx 0.9, `sqlx-core/src/migrate/`.

use sha2::{Digest, Sha384};

use super::{NO_TRANSACTION, Read, flat};
use crate::databases::Tool;
use crate::migrations::Migration;
use crate::migrations::folder::{FolderError, SourceFile, has_suffix};

pub(in crate::migrations) fn read(files: &[SourceFile]) -> Result<Read, FolderError> {
    let (run, ignored) = flat(files, Tool::Sqlx)?;
    let migrations = run.into_iter().map(|(path, text)| migration(path, text)).collect::<Result<Vec<_>, _>>()?;
    for down in files.iter().filter(|file| has_suffix(&file.path, ".down.sql")) {
        let (version, _) = version_of(&down.path)?;
        if !migrations.iter().any(|migration| migration.id == id_of(version)) {
            return Err(FolderError(format!("`{}` has no `.up.sql` beside it; put it back", down.path)));
        }
    }
    Ok((migrations, ignored))
}

fn migration(path: &str, text: &str) -> Result<Migration, FolderError> {
    let (version, rest) = version_of(path)?;
    let stem = rest.strip_suffix(".up.sql").or_else(|| rest.strip_suffix(".sql")).unwrap_or(rest);
    Ok(Migration {
        id: id_of(version),
        name: path.strip_suffix(&rest[stem.len()..]).unwrap_or(path).to_owned(),
        path: path.to_owned(),
        description: stem.replace('_', " "),
        checksum: hex::encode(Sha384::digest(text)),
        also_accepted: Vec::new(), // sqlx counts line breaks.
        in_transaction: !text.starts_with(NO_TRANSACTION),
        sql: text.to_owned(),
    })
}

/// The version as text that sorts as the number does.
pub(in crate::migrations) fn id_of(version: i64) -> String {
    format!("{version:020}")
}

/// The version that [`id_of`] wrote.
pub(in crate::migrations) fn version_in(id: &str) -> Option<i64> {
    id.parse().ok()
}

fn version_of(path: &str) -> Result<(i64, &str), FolderError> {
    let parts = path.split_once('_');
    let parsed = parts.and_then(|(version, rest)| Some((version.parse::<i64>().ok()?, rest)));
    parsed.filter(|(version, _)| *version >= 0).ok_or_else(|| {
        FolderError(format!(
            "`{path}` is not named as sqlx names migrations (`<version>_<description>.sql`), so that sqlx would pass it \
             over or fail; rename it, or set `tool = \"sql\"`"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;
    use crate::migrations::Engine;
    use crate::migrations::folder::Folder;

    #[test]
    fn versions_sort_as_numbers_and_descriptions_are_as_sqlx_writes_them() {
        let files = [
            file("10_add_users.up.sql", "select 10"),
            file("10_add_users.down.sql", ""),
            file("9_first.sql", "-- no-transaction\nselect 9"),
            file("README.md", ""),
        ];
        let folder = Folder::of(Tool::Sqlx, Engine::Postgres, &files).unwrap();
        let facts: Vec<(&str, &str, bool)> = folder
            .migrations
            .iter()
            .map(|migration| (migration.name.as_str(), migration.description.as_str(), migration.in_transaction))
            .collect();
        assert_eq!(facts, [("9_first", "first", false), ("10_add_users", "add users", true)]);
        assert_eq!(folder.migrations[0].checksum.len(), 96);
    }

    #[test]
    fn what_sqlx_would_pass_over_is_refused() {
        for name in ["init.sql", "x1_init.sql", "-1_init.sql"] {
            let error = read(&[file(name, "")]).unwrap_err().to_string();
            assert!(error.contains("rename it"), "{error}");
        }
        assert!(read(&[file("1_a.down.sql", "")]).unwrap_err().to_string().contains("no `.up.sql`"));
        let twice = Folder::of(Tool::Sqlx, Engine::Postgres, &[file("1_a.sql", ""), file("01_b.sql", "")]);
        assert!(twice.unwrap_err().to_string().contains("the same version"));
    }
}
