//! Plain SQL: every `*.sql`, in the order of the names. The history table is our own.

use sha2::{Digest, Sha256};

use super::{NO_TRANSACTION, Read, flat};
use crate::databases::Tool;
use crate::migrations::Migration;
use crate::migrations::folder::{FolderError, SourceFile};

pub(in crate::migrations) fn read(files: &[SourceFile]) -> Result<Read, FolderError> {
    let (run, ignored) = flat(files, Tool::Sql)?;
    let migrations = run.into_iter().map(|(path, text)| migration(path, text)).collect();
    Ok((migrations, ignored))
}

fn migration(path: &str, text: &str) -> Migration {
    let digest = |text: &str| hex::encode(Sha256::digest(text));
    let unix = text.replace("\r\n", "\n");
    Migration {
        id: path.to_owned(),
        name: path.to_owned(),
        path: path.to_owned(),
        description: String::new(),
        checksum: digest(text),
        // A checkout may have changed the line breaks.
        also_accepted: vec![digest(&unix), digest(&unix.replace('\n', "\r\n"))],
        in_transaction: !text.starts_with(NO_TRANSACTION),
        sql: text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    #[test]
    fn every_sql_file_is_run_in_the_order_of_its_name_and_the_rest_is_named() {
        let files = [file("2_b.sql", "b"), file("10_a.sql", "a"), file("2_b.down.sql", ""), file("README.md", "")];
        let (migrations, ignored) = read(&files).unwrap();
        let names: Vec<&str> = migrations.iter().map(|migration| migration.name.as_str()).collect();
        assert_eq!(names, ["2_b.sql", "10_a.sql"]);
        assert_eq!(ignored, ["2_b.down.sql: the way back, not run", "README.md: not SQL"]);
    }

    #[test]
    fn sql_in_a_subfolder_is_refused_and_not_passed_over() {
        let error = read(&[file("1.sql", ""), file("old/0.sql", "")]).unwrap_err();
        assert!(error.to_string().starts_with("`old/0.sql` is in a folder of its own"), "{error}");
    }

    #[test]
    fn other_line_breaks_are_the_same_file() {
        let (unix, windows) = (migration("1.sql", "a\nb\n"), migration("1.sql", "a\r\nb\r\n"));
        assert_ne!(unix.checksum, windows.checksum);
        assert!(unix.also_accepted.contains(&windows.checksum) && windows.also_accepted.contains(&unix.checksum));
    }
}
