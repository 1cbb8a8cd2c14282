//! The configuration file: read once, checked whole, resolved to the types that the rooms work with.

mod document;
mod finding;
#[cfg(test)]
mod fuzz;
mod literals;
mod programs;
mod read;
mod sections;

use std::path::{Path, PathBuf};

use producer::{Routes, Sources, Startable};
use schemas::Schedule;
use worker::WorldConfig;
use worker::heartbeat::HeartbeatConfig;

pub(crate) use finding::Finding;
pub(crate) use programs::AmqpSection;
pub(crate) use sections::{
    Address, DefaultsSection, LogFormat, LogLevel, OperatorsSection, QueueSection, ServerSection, Span,
    TelemetrySection, VaultAddress, VaultSection, WorkerSection, sqlite_path,
};

use crate::failure::Failure;

/// What is configured, checked.
pub(crate) struct Config {
    /// A short digest of the file's bytes: which configuration events and runs are from.
    pub(crate) digest: String,
    pub(crate) server: ServerSection,
    pub(crate) operators: OperatorsSection,
    pub(crate) queue: QueueSection,
    pub(crate) defaults: DefaultsSection,
    pub(crate) vault: Option<VaultSection>,
    pub(crate) worker: WorkerSection,
    pub(crate) telemetry: TelemetrySection,
    pub(crate) heartbeat: Option<HeartbeatConfig>,
    pub(crate) amqp: Option<AmqpSection>,
    pub(crate) world: WorldConfig,
    pub(crate) sources: Sources,
    pub(crate) startable: Startable,
    pub(crate) routes: Routes,
    pub(crate) schedules: Vec<Schedule>,
}

/// A file that was read: what it says, unless an error is among the findings.
pub(crate) struct Checked {
    pub(crate) path: PathBuf,
    pub(crate) config: Option<Config>,
    pub(crate) findings: Vec<Finding>,
}

impl Checked {
    /// Reads and checks a file.
    pub(crate) fn file(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!("cannot read the configuration {}: {error}", path.display()))
                .help("name the file with --config or NIGHTPORTER_CONFIG; docs/getting-started.md has one to begin with, and `nightporter demo` writes one that works")
        })?;
        let (config, findings) = read::read(&text);
        Ok(Self { path: path.to_owned(), config, findings })
    }

    /// The configuration, or all that is wrong with it.
    pub(crate) fn config(self) -> Result<Config, Failure> {
        let said = self.lines(Finding::is_error);
        let path = self.path.display().to_string();
        self.config.ok_or_else(|| Failure::usage(format!("the configuration {path} is wrong\n{said}")))
    }

    /// The findings, a line for each: `file:line:column: error: ...`.
    pub(crate) fn lines(&self, wanted: impl Fn(&Finding) -> bool) -> String {
        let path = self.path.display();
        let found = self.findings.iter().filter(|finding| wanted(finding));
        let separator = |finding: &Finding| if finding.place.is_some() { "" } else { " " };
        found.map(|finding| format!("{path}:{}{finding}", separator(finding))).collect::<Vec<_>>().join("\n")
    }
}
