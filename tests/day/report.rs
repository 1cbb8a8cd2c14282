//! What the day ends with: figures, and checks of what must be so.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

/// The report.
#[derive(Serialize)]
pub(crate) struct Report {
    #[serde(skip)]
    began: Instant,
    /// How large the database was asked to be, and how many days were asked for.
    size: String,
    days: i64,
    /// Whether all checks hold.
    well: bool,
    checks: Vec<Check>,
    figures: BTreeMap<&'static str, Value>,
}

/// Something that must be so.
#[derive(Serialize)]
struct Check {
    what: &'static str,
    expected: Value,
    found: Value,
    well: bool,
}

impl Report {
    pub(crate) fn of(size: &str, days: i64) -> Self {
        let (checks, figures) = (Vec::new(), BTreeMap::new());
        Self { began: Instant::now(), size: size.to_owned(), days, well: true, checks, figures }
    }

    /// Tells what is going on.
    pub(crate) fn say(&self, what: &str) {
        println!("{:>7.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// Something that was measured.
    pub(crate) fn figure(&mut self, name: &'static str, value: impl Into<Value>) {
        self.figures.insert(name, value.into());
    }

    /// Something that must be exactly so.
    pub(crate) fn check(&mut self, what: &'static str, expected: impl Into<Value>, found: impl Into<Value>) {
        let (expected, found) = (expected.into(), found.into());
        let well = expected == found;
        self.well &= well;
        self.checks.push(Check { what, expected, found, well });
    }

    /// Prints it, writes it, and says whether all is well.
    pub(crate) fn end(mut self, file: &Path) -> Result<bool> {
        self.figure("seconds", self.began.elapsed().as_secs());
        println!("\n{:<58}  {:>24}  {:>24}", "CHECK", "EXPECTED", "FOUND");
        for Check { what, expected, found, well } in &self.checks {
            let mark = if *well { "" } else { "  <-- not so" };
            println!("{what:<58}  {:>24}  {:>24}{mark}", expected.to_string(), found.to_string());
        }
        println!("\nFIGURE");
        for (name, value) in &self.figures {
            println!("{name:<34}  {value}");
        }
        let text = serde_json::to_string_pretty(&self)?;
        std::fs::write(file, text).with_context(|| format!("{} cannot be written", file.display()))?;
        println!(
            "\n{}; the report as JSON: {}",
            if self.well { "all is well" } else { "NOT all is well" },
            file.display()
        );
        Ok(self.well)
    }
}
