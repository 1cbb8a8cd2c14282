//! What commands print: data on standard output, a table for people or JSON for programs; talk on standard error.

use std::io::{self, Write};

use schemas::Timestamp;
use serde::Serialize;

use crate::failure::Failure;

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl Output {
    /// Prints a thing: as JSON, or as `table` says.
    pub(crate) fn print<T: Serialize>(self, thing: &T, table: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        match self {
            Self::Json => print(&json(thing)?),
            Self::Table => print(&table(thing)),
        }
    }
}

/// A thing as JSON, over several lines.
pub(crate) fn json<T: Serialize>(thing: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(thing).map_err(|error| Failure::failed(error.to_string()))
}

/// Prints a text and a line break. A reader that has gone away (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Rows under a head, in columns.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    if rows.len() == 1 {
        return "nothing there".to_owned();
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Names and values, one for each line; what has no value is left out.
pub(crate) fn facts<const N: usize>(facts: [(&str, Option<String>); N]) -> String {
    let known: Vec<(&str, String)> = facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let width = known.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    known.iter().map(|(name, value)| format!("{name:<width$}  {value}")).collect::<Vec<_>>().join("\n")
}

/// A moment, to the second.
pub(crate) fn moment(at: Timestamp) -> String {
    at.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// The first line of a text, shortened.
pub(crate) fn line(text: &str) -> String {
    const LONGEST: usize = 60;
    let first = text.lines().next().unwrap_or_default();
    if first.chars().count() <= LONGEST {
        return first.to_owned();
    }
    first.chars().take(LONGEST - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "long".to_owned()], ["wide one".to_owned(), String::new()]];
        assert_eq!(table(["ID", "X"], rows), "ID        X\na         long\nwide one");
        assert_eq!(table(["ID"], []), "nothing there");
    }
}
