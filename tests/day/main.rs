//! A week of a real team, by real processes on real servers, with the clock set forward; it ends with a report that is
//! checked. Run by `tests/run-day`, which says how.

mod checks;
mod clock;
mod gate;
mod lodge;
mod patience;
mod report;
mod rotation;
mod senders;
mod shop;
mod team;
mod vault;
mod week;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::report::Report;
use crate::week::Week;

/// What was asked for.
struct Options {
    size: String,
    bytes: i64,
    days: i64,
    report: PathBuf,
}

impl Options {
    fn of_the_command_line() -> Result<Self> {
        let mut options =
            Self { size: String::new(), bytes: 0, days: 7, report: PathBuf::from("target/day-report.json") };
        let mut size = "1GB".to_owned();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{argument} needs a value"))?;
            match argument.as_str() {
                "--size" => size = value,
                "--days" => options.days = value.parse().context("--days takes a number")?,
                "--report" => options.report = value.into(),
                _ => bail!("there is no {argument}: --size SIZE, --days N and --report FILE are known"),
            }
        }
        options.bytes = bytes(&size).with_context(|| format!("--size takes 20MB or 1GB, not {size}"))?;
        options.size = size;
        // Wherever this was started: beside what the build leaves.
        options.report = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(options.report);
        if !(1..=7).contains(&options.days) {
            bail!("--days takes 1 to 7");
        }
        Ok(options)
    }
}

fn bytes(size: &str) -> Option<i64> {
    let (number, unit) = size.split_at(size.find(|character: char| !character.is_ascii_digit())?);
    let unit = match unit {
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(unit)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the day did not come to its end: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<bool> {
    let options = Options::of_the_command_line()?;
    let mut report = Report::of(&options.size, options.days);
    let mut week = Week::begin(options.days, options.bytes, &mut report).await?;
    week.pass(&mut report).await?;
    checks::all(&week, &mut report).await?;
    report.end(&options.report)
}
