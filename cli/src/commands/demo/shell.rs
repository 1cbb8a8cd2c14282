//! Commands of this binary that the demo runs as a person would, and shows.

use schemas::JobId;
use tokio::process::Command;

use super::telling::Telling;
use super::words::fell_short;
use crate::failure::Failure;

impl Telling<'_> {
    /// Shows a command and runs it, in a process of its own; what it printed.
    pub(super) async fn command(&self, arguments: &[&str]) -> Result<String, Failure> {
        self.line("$", &format!("nightporter {}", quoted(arguments)))?;
        let own = std::env::current_exe().map_err(|error| fell_short(&format!("where is this program? {error}")))?;
        let mut command = Command::new(own);
        command.args(arguments).env("NIGHTPORTER_CONFIG", &self.site.config).kill_on_drop(true);
        // The demo's own server is meant, not one that the terminal is set up for.
        command.env_remove("NIGHTPORTER_SERVER").env_remove("NIGHTPORTER_TOKEN");
        let ended =
            command.output().await.map_err(|error| fell_short(&format!("the command did not start: {error}")))?;
        if !ended.status.success() {
            return Err(fell_short(&format!("the command failed: {}", String::from_utf8_lossy(&ended.stderr))));
        }
        let printed = String::from_utf8_lossy(&ended.stdout).into_owned();
        if !arguments.contains(&"--json") {
            printed.lines().try_for_each(|line| self.line("", line))?;
        }
        Ok(printed)
    }
}

/// The job that a replay says it made.
pub(super) fn made(printed: &str) -> Result<JobId, Failure> {
    let id = printed.trim().strip_prefix("made job ").and_then(|id| id.parse().ok());
    id.ok_or_else(|| fell_short(&format!("the replay made no job: {printed}")))
}

/// As a person would type it.
fn quoted(arguments: &[&str]) -> String {
    let word = |argument: &&str| {
        if argument.contains(' ') { format!("\"{argument}\"") } else { (*argument).to_owned() }
    };
    arguments.iter().map(word).collect::<Vec<_>>().join(" ")
}
