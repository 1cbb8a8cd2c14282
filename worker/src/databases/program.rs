//! A stock program as a child process: found by version, killed with its group when dropped, its complaints kept.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tracing::Span;

use crate::handler::{Failure, OrFail};
use crate::outside;

/// So much of what a program complains about is kept: its beginning, where the cause stands.
const COMPLAINTS: usize = 8 * 1024;
/// A program that has closed its output must end within this.
const LAST_BREATH: Duration = Duration::from_mins(5);
/// A program must say its version within this.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// An installed `PostgreSQL` client program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Installed {
    pub(super) path: PathBuf,
    pub(super) major: u32,
    /// As it says itself: `pg_dump (PostgreSQL) 15.18 ...`.
    pub(super) version: String,
}

/// A running program. Dropped, it is killed with all it started.
pub(super) struct Program {
    name: &'static str,
    child: Child,
    group: Group,
    complaints: JoinHandle<String>,
    hidden: Option<String>,
    /// From its start to its end.
    _span: Span,
}

/// A process group, killed when dropped.
pub(crate) struct Group(Option<Pid>);

impl Group {
    /// Starts a program as the leader of a group of its own.
    pub(crate) fn start(command: &mut Command) -> std::io::Result<(Child, Self)> {
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        let leader = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok((child, Self(leader)))
    }

    /// Its leader has ended and was waited for: its number may be another's now.
    pub(crate) fn let_go(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // Gone already: nothing to do. Anything else: the child is killed by its own handle.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Program {
    /// Starts it. `environment` replaces all `PG*` variables of this process; `hidden` is cut out of its complaints.
    pub(super) fn start(
        name: &'static str,
        path: &Path,
        arguments: &[&str],
        environment: &[(String, String)],
        hidden: Option<String>,
    ) -> Result<Self, Failure> {
        let mut command = Command::new(path);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (inherited, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(inherited);
        }
        command.envs(environment.iter().map(|(name, value)| (name, value))).env("LC_ALL", "C");
        let (mut child, group) = Group::start(&mut command).or_retry(&format!("starting {}", path.display()))?;
        let complaints = tokio::spawn(keep_beginning(child.stderr.take()));
        Ok(Self { name, child, group, complaints, hidden, _span: outside::program(name) })
    }

    pub(super) fn take_output(&mut self) -> Result<ChildStdout, Failure> {
        self.child.stdout.take().ok_or_else(|| Failure::discard(anyhow::anyhow!("the output is taken already")))
    }

    pub(super) fn take_input(&mut self) -> Result<ChildStdin, Failure> {
        self.child.stdin.take().ok_or_else(|| Failure::discard(anyhow::anyhow!("the input is taken already")))
    }

    /// How it ended, and what it complained about.
    pub(super) async fn end(mut self) -> Result<(ExitStatus, String), Failure> {
        drop(self.child.stdin.take());
        let waited = tokio::time::timeout(LAST_BREATH, self.child.wait()).await;
        let status = waited.or_retry(&format!("{} did not end", self.name))?.or_retry("waiting for a program")?;
        self.group.let_go();
        let complaints = self.complaints.await.or_retry("reading what a program complains about")?;
        let complaints = match &self.hidden {
            Some(hidden) if !hidden.is_empty() => complaints.replace(hidden, "…"),
            _ => complaints,
        };
        Ok((status, complaints))
    }

    /// That it ended well; what it complained about nevertheless.
    pub(super) async fn end_well(self) -> Result<Vec<String>, Failure> {
        let name = self.name;
        let (status, complaints) = self.end().await?;
        if !status.success() {
            return Err(Failure::retry(anyhow::anyhow!("{name} failed ({status}): {}", complaints.trim())));
        }
        Ok(complaints.lines().map(str::to_owned).collect())
    }

    /// Gives it all bytes of the reader, to the end even where the program stops reading, so that whoever checks them
    /// sees them all.
    pub(super) async fn feed(&mut self, mut reader: impl AsyncRead + Unpin) -> Result<(), Failure> {
        let mut input = Some(self.take_input()?);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let read = reader.read(&mut buffer).await.map_err(not_read)?;
            if read == 0 {
                return Ok(()); // Only now is the program's input closed: it never takes a torn dump for a whole one.
            }
            if let Some(open) = &mut input
                && open.write_all(&buffer[..read]).await.is_err()
            {
                input = None; // It has stopped reading; its exit status says why.
            }
        }
    }
}

/// Bytes that are not those of the manifest stay wrong, and so does a key that does not open them; a store that does not
/// answer may answer later.
pub(super) fn not_read(error: std::io::Error) -> Failure {
    let stays = matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::PermissionDenied);
    let error = anyhow::Error::new(error).context("reading the dump");
    if stays { Failure::Discard(error) } else { Failure::retry(error) }
}

async fn keep_beginning(output: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut output) = output else { return String::new() };
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = output.read(&mut buffer).await {
        let room = COMPLAINTS - kept.len();
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// The installed program that suits a server best: of the server's own major version, else of the next newer one. An
/// older one is refused by the server; a newer one may write settings into a restore that the server does not know.
pub(super) async fn suited(program: &'static str, server_major: u32) -> Result<Installed, Failure> {
    let mut found: Vec<Installed> = Vec::new();
    for path in candidates(program) {
        found.extend(version_of(path).await);
    }
    choose(found.clone(), server_major).ok_or_else(|| {
        let versions: Vec<String> = found.iter().map(|found| found.major.to_string()).collect();
        let have = if versions.is_empty() { "none is".to_owned() } else { format!("only {} is", versions.join(", ")) };
        Failure::Discard(anyhow::anyhow!(
            "{program} {server_major} or newer is needed for this server, and {have} installed: install \
             `postgresql-client-{server_major}` (Debian, Ubuntu, from apt.postgresql.org) or put it into the PATH"
        ))
    })
}

fn choose(mut found: Vec<Installed>, server_major: u32) -> Option<Installed> {
    found.retain(|found| found.major >= server_major);
    found.sort_by_key(|found| found.major);
    found.into_iter().next()
}

/// Versioned folders first: what is in the PATH may be a wrapper that picks a version of its own.
fn candidates(program: &str) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for (parent, below) in [("/usr/lib/postgresql", "bin"), ("/opt/homebrew/opt", "bin"), ("/usr", "bin")] {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        let versioned = entries.filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            parent == "/usr/lib/postgresql" || name.starts_with("postgresql@") || name.starts_with("pgsql-")
        });
        folders.extend(versioned.map(|entry| entry.path().join(below)));
    }
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    folders.into_iter().map(|folder| folder.join(program)).filter(|path| path.is_file()).collect()
}

async fn version_of(path: PathBuf) -> Option<Installed> {
    let asked = Command::new(&path).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let said = tokio::time::timeout(VERSION_DEADLINE, asked).await.ok()?.ok()?;
    let version = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    let major = parse_major(&version)?;
    Some(Installed { path, major, version })
}

/// Of `pg_dump (PostgreSQL) 15.18 (Debian 15.18-1)` or `pg_dump (PostgreSQL) 18beta1`: 15, 18.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.split_once("(PostgreSQL) ")?.1;
    let digits = number.find(|c: char| !c.is_ascii_digit()).map_or(number, |end| &number[..end]);
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(major: u32) -> Installed {
        Installed { path: format!("/usr/lib/postgresql/{major}/bin/pg_dump").into(), major, version: String::new() }
    }

    #[test]
    fn the_servers_own_version_is_chosen_else_the_next_newer_never_an_older() {
        let all = || vec![installed(17), installed(14), installed(15)];
        assert_eq!(choose(all(), 15), Some(installed(15)));
        assert_eq!(choose(all(), 16), Some(installed(17)));
        assert_eq!(choose(all(), 18), None);
    }

    #[tokio::test]
    async fn a_missing_client_is_refused_with_what_to_install() {
        let Err(Failure::Discard(error)) = suited("pg_dump", 99).await else { panic!("found one") };
        assert!(error.to_string().contains("postgresql-client-99"), "{error}");
    }

    #[test]
    fn versions_are_read_from_what_programs_say() {
        assert_eq!(parse_major("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(parse_major("pg_dump (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(parse_major("something else"), None);
    }
}
