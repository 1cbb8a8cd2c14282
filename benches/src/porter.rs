//! A process that is measured: started, waited for, ended.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// A loaded machine takes its time.
const READY_WITHIN: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(2);

/// Ends with the measurement, however that ends.
pub(crate) struct Porter {
    child: Child,
    /// Where it listens.
    pub(crate) host: String,
    /// From its start until it was ready.
    pub(crate) start: Duration,
}

#[derive(Deserialize)]
struct Ready {
    server: Option<String>,
}

impl Porter {
    /// Starts a program that says in a file where it listens.
    pub(crate) async fn start(program: &Path, arguments: &[&str], folder: &Path) -> anyhow::Result<Self> {
        let ready_file = folder.join("ready.json");
        let _not_there = std::fs::remove_file(&ready_file);
        let began = Instant::now();
        let mut child = Command::new(program)
            .args(arguments)
            .arg("--ready-file")
            .arg(&ready_file)
            .current_dir(folder)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        loop {
            let text = std::fs::read(&ready_file).unwrap_or_default();
            if let Ok(ready) = serde_json::from_slice::<Ready>(&text) {
                return Ok(Self { child, host: ready.server.unwrap_or_default(), start: began.elapsed() });
            }
            if let Some(status) = child.try_wait()? {
                bail!("{} ended at its start: {status}", program.display());
            }
            if began.elapsed() > READY_WITHIN {
                bail!("{} was not ready in time", program.display());
            }
            sleep(LOOK).await;
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> anyhow::Result<u32> {
        self.child.id().context("it has ended")
    }

    /// The CPU time that it has taken, in microseconds.
    pub(crate) fn cpu_micros(&self) -> anyhow::Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id()?))?;
        let fields = stat.rsplit_once(") ").context("a stat line")?.1;
        let ticks: u64 = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap_or(0)).sum();
        Ok(ticks * 10_000)
    }

    /// The memory that it holds now, in bytes.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }

    /// Kills it.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}
