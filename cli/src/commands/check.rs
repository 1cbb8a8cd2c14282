//! `check`: all that is wrong with the configuration, at once. Touches nothing but the file.

use serde::Serialize;

use crate::args::Global;
use crate::config::{Checked, Finding};
use crate::failure::Failure;
use crate::output::{Output, json, print};

/// The arguments of `check`: none of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// What programs read.
#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    findings: &'a [Finding],
}

pub(crate) fn run(_: &Args, global: &Global) -> Result<(), Failure> {
    let checked = Checked::file(&global.config)?;
    let errors = checked.findings.iter().filter(|finding| finding.is_error()).count();
    match global.output() {
        Output::Json => print(&json(&Report { ok: errors == 0, findings: &checked.findings })?)?,
        Output::Table if !checked.findings.is_empty() => print(&checked.lines(|_| true))?,
        Output::Table => {}
    }
    if errors > 0 {
        let plural = if errors == 1 { "error" } else { "errors" };
        return Err(Failure::usage(format!("{errors} {plural} in {}", checked.path.display())));
    }
    if global.output() == Output::Table {
        print(&format!("{} is right", checked.path.display()))?;
    }
    Ok(())
}
