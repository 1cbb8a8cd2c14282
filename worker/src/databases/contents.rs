//! What the tables of a database held: so many rows, and which. Taken in a dump's own snapshot and again in what was
//! restored from it, so that both can be compared exactly.
//!
//! A digest is the sum of one hash for each row, which no order of rows changes. Which row a hash is of, its text says, and
//! that is the same wherever the settings are that [`super::postgres`] pins; columns come by name, because a restore may
//! order those of inherited tables anew, and generated ones are left out, because a dump leaves them out. It differs
//! falsely, and so never in silence, where a type writes its values in another way: types of extensions in another version,
//! another encoding of the database, a machine with the other byte order.

use std::collections::BTreeMap;

use schemas::JobId;
use serde::{Deserialize, Serialize};

/// How the digests of this binary are made. Two that were made differently say nothing about each other.
pub(crate) const SUM_OF_HASHES: &str = "sum of hashtextextended over rows, columns by name";
/// Rows are counted and not digested: the file's own digest covers them.
pub(crate) const COUNTS: &str = "counts";
/// So many differences are named.
const NAMED: usize = 20;

/// What the tables of a database held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// How the digests were made.
    pub method: String,
    /// The tables that a dump holds the rows of, by name with its schema.
    pub tables: BTreeMap<String, Table>,
}

/// What one table held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// How many rows.
    pub rows: u64,
    /// Which; none where the table was too large for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// Of which tables digests are taken.
#[derive(Clone, Copy, Debug)]
pub enum Digests<'a> {
    /// Of those that are no larger than so many bytes.
    UpTo(u64),
    /// Of those that have one here.
    As(&'a Contents),
}

impl Digests<'_> {
    /// Whether this table gets one.
    pub(super) fn wanted(&self, name: &str, bytes: u64) -> bool {
        match self {
            Self::UpTo(limit) => bytes <= *limit,
            Self::As(other) => other.tables.get(name).is_some_and(|table| table.digest.is_some()),
        }
    }
}

impl Contents {
    /// How many rows in all.
    pub fn rows(&self) -> u64 {
        self.tables.values().map(|table| table.rows).sum()
    }

    /// How many tables have a digest.
    pub fn digested(&self) -> usize {
        self.tables.values().filter(|table| table.digest.is_some()).count()
    }

    /// In what `found` is not this, in words; empty where it is the same.
    pub fn differences(&self, found: &Self) -> Vec<String> {
        if self.method != found.method {
            return vec![format!("the digests are of another kind: `{}` and `{}`", self.method, found.method)];
        }
        let missing = self.tables.iter().filter_map(|(name, table)| differs(name, table, found.tables.get(name)));
        let added = found.tables.keys().filter(|name| !self.tables.contains_key(*name));
        let added = added.map(|name| format!("the table {name} was not there"));
        let mut all: Vec<String> = missing.chain(added).collect();
        if all.len() > NAMED {
            let more = all.len() - NAMED;
            all.truncate(NAMED);
            all.push(format!("and {more} more"));
        }
        all
    }
}

fn differs(name: &str, table: &Table, found: Option<&Table>) -> Option<String> {
    let Some(found) = found else { return Some(format!("the table {name} is missing")) };
    if table.rows != found.rows {
        return Some(format!("the table {name} has {} rows instead of {}", found.rows, table.rows));
    }
    match (&table.digest, &found.digest) {
        (Some(digest), Some(other)) if digest != other => Some(format!("the table {name} holds other rows")),
        (Some(_), None) => Some(format!("the rows of the table {name} were not digested")),
        _ => None,
    }
}

/// A table's name with its schema, quoted where it must be; by rules of our own, because a server's change with its words.
pub(super) fn table_name(schema: &str, table: &str) -> String {
    let plain = |name: &str| {
        let first = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        first && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let quoted = |name: &str| if plain(name) { name.to_owned() } else { super::identifier(name) };
    format!("{}.{}", quoted(schema), quoted(table))
}

/// A database that a job makes to look at a backup, and drops. Its name holds the job, so that what a killed attempt left
/// is found again; nothing else can be dropped by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// The job that it belongs to.
    pub job: JobId,
}

impl Scratch {
    const PREFIX: &str = "nightporter_scratch_";

    /// The name of the database.
    pub fn name(self) -> String {
        format!("{}{}", Self::PREFIX, self.job.0.simple())
    }

    /// The scratch database of that name, if it is one's.
    pub(super) fn named(name: &str) -> Option<Self> {
        let job = name.strip_prefix(Self::PREFIX)?.parse().ok()?;
        let scratch = Self { job };
        (scratch.name() == name).then_some(scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(tables: &[(&str, u64, Option<&str>)]) -> Contents {
        let table = |(name, rows, digest): &(&str, u64, Option<&str>)| {
            ((*name).to_owned(), Table { rows: *rows, digest: digest.map(str::to_owned) })
        };
        Contents { method: SUM_OF_HASHES.to_owned(), tables: tables.iter().map(table).collect() }
    }

    #[test]
    fn a_row_less_another_row_a_table_less_and_a_table_more_are_each_named() {
        let whole = contents(&[("public.a", 3, Some("7")), ("public.b", 2, None)]);
        assert_eq!(whole.differences(&whole), Vec::<String>::new());
        let said = |found: &Contents| whole.differences(found).join("; ");
        let one_less = contents(&[("public.a", 2, Some("5")), ("public.b", 2, None)]);
        assert_eq!(said(&one_less), "the table public.a has 2 rows instead of 3");
        let another = contents(&[("public.a", 3, Some("8")), ("public.b", 2, None)]);
        assert_eq!(said(&another), "the table public.a holds other rows");
        let undigested = contents(&[("public.a", 3, None), ("public.b", 2, None)]);
        assert_eq!(said(&undigested), "the rows of the table public.a were not digested");
        let other_tables = contents(&[("public.a", 3, Some("7")), ("public.c", 2, None)]);
        assert_eq!(said(&other_tables), "the table public.b is missing; the table public.c was not there");
        let other_method = Contents { method: "xor".to_owned(), ..whole.clone() };
        assert!(said(&other_method).contains("another kind"));
    }

    #[test]
    fn two_tables_never_have_one_name() {
        assert_eq!(table_name("public", "order"), "public.order");
        assert_eq!(table_name("a.b", "c"), "\"a.b\".c");
        assert_eq!(table_name("a", "b.c"), "a.\"b.c\"");
        assert_eq!(table_name("A", "x\"y"), "\"A\".\"x\"\"y\"");
    }

    #[test]
    fn only_a_name_of_our_own_making_is_a_scratch_databases() {
        let scratch = Scratch { job: "0198c0de-0000-7000-8000-000000000001".parse().unwrap() };
        assert_eq!(scratch.name(), "nightporter_scratch_0198c0de000070008000000000000001");
        assert_eq!(Scratch::named(&scratch.name()), Some(scratch));
        for other in ["shop", "nightporter_scratch_", "nightporter_scratch_0198c0de-0000-7000-8000-000000000001"] {
            assert_eq!(Scratch::named(other), None, "{other}");
        }
    }
}
