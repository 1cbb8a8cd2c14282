//! One run of a program, from its start to its end.

use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrets::ExposeSecret;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::context::Context;
use crate::databases::program::Group;
use crate::handler::{Failure, OrFail};
use crate::mask::Mask;
use crate::programs::{OURS, ProgramConfig};

/// So long after its end what it started may hold its output open.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// So much of what it complains about stands in an error.
const SHOWN: usize = 2000;

/// A program that can be started.
pub(super) struct Prepared {
    command: Command,
    place: String,
    input: Vec<u8>,
    time_limit: Duration,
    output_limit: usize,
    mask: Mask,
}

/// How a run ended and what it said, without secrets.
pub(super) struct Said {
    /// The exit code; none where it was killed.
    pub(super) code: Option<i32>,
    /// How it ended, for people.
    pub(super) how: String,
    /// The end of its output.
    pub(super) output: String,
    /// The end of its complaints.
    pub(super) complaints: String,
}

impl Said {
    /// The same behind an error.
    pub(super) fn words(&self) -> String {
        let said = self.complaints_end();
        if said.is_empty() { String::new() } else { format!(": {said}") }
    }

    /// The end of what it complains about, or else of what it says.
    pub(super) fn complaints_end(&self) -> String {
        let complaints = self.complaints.trim();
        let said = if complaints.is_empty() { self.output.trim() } else { complaints };
        last(said, SHOWN).to_owned()
    }
}

impl Prepared {
    /// Resolves its secrets and puts its environment together.
    pub(super) async fn of(
        name: &str,
        config: &ProgramConfig,
        with: &Map<String, Value>,
        cx: &Context,
    ) -> Result<Self, Failure> {
        let wrong = || Failure::Discard(anyhow::anyhow!("the program `{name}` has no command"));
        let (program, arguments) = config.command.split_first().ok_or_else(wrong)?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(folder) = &config.folder {
            command.current_dir(folder);
        }
        for variable in &config.inherit {
            command.envs(std::env::var_os(variable).map(|value| (variable, value)));
        }
        let mut mask = Mask::default();
        for (variable, text) in &config.env {
            let secret = cx.world().secret(text, &format!("resolving `{variable}` of the program `{name}`")).await?;
            command.env(variable, secret.expose_secret());
            if !text.is_literal() {
                mask.add(&secret);
            }
        }
        let attempt = cx.job().attempt;
        command.env(OURS[0], attempt.job.to_string()).env(OURS[1], attempt.number.to_string());
        let input = serde_json::to_vec(with).or_discard("writing its input")?;
        let (place, time_limit, output_limit) = (program.clone(), config.time_limit, config.output_limit);
        Ok(Self { command, place, input, time_limit, output_limit, mask })
    }

    /// Runs it. An error says that it never began.
    pub(super) async fn run(mut self) -> Result<Said, Failure> {
        let started = Group::start(&mut self.command).map_err(|error| self.not_started(error));
        let (mut child, group) = started?;
        // A secret that is cut in its middle would not be found.
        let room = self.output_limit + self.mask.longest();
        let mut output = Kept::reading(child.stdout.take(), room);
        let mut complaints = Kept::reading(child.stderr.take(), room);
        let ended = tokio::time::timeout(self.time_limit, feed_and_wait(&mut child, &self.input)).await;
        let (code, how) = match &ended {
            Ok(Ok(status)) => (status.code(), signal_of(*status)),
            Ok(Err(error)) => (None, format!("it could not be waited for: {error}")),
            Err(_) => (None, format!("after its time limit of {}", schemas::period::write(self.time_limit))),
        };
        let mut group = Some(group);
        if ended.is_err() {
            drop(group.take());
        }
        let last_words = async { tokio::join!(output.ends(), complaints.ends()) };
        match (tokio::time::timeout(LAST_WORDS, last_words).await, group) {
            (Ok(_), Some(group)) => group.let_go(),
            // Something that it started holds its output open: it belongs to the group, whose number is still its own.
            (Err(_), group) => drop(group),
            (Ok(_), None) => {}
        }
        let said = |kept: Kept| last(&self.mask.apply(&kept.text()), self.output_limit).to_owned();
        Ok(Said { code, how, output: said(output), complaints: said(complaints) })
    }

    fn not_started(&self, error: std::io::Error) -> Failure {
        let for_good =
            matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::InvalidInput);
        let error = anyhow::Error::new(error).context(format!("starting {}", self.place));
        if for_good { Failure::Discard(error) } else { Failure::retry(error) }
    }
}

/// Gives it its input, and waits for its end. Whether it reads the input is its own affair.
async fn feed_and_wait(child: &mut Child, input: &[u8]) -> std::io::Result<ExitStatus> {
    let stdin = child.stdin.take();
    let feeding = async {
        if let Some(mut stdin) = stdin
            && let Err(error) = stdin.write_all(input).await
        {
            debug!("it does not read its input: {error}");
        }
    };
    tokio::select! {
        status = child.wait() => return status,
        () = feeding => {}
    }
    child.wait().await
}

fn signal_of(status: ExitStatus) -> String {
    status.signal().map_or_else(|| status.to_string(), |signal| format!("by signal {signal}"))
}

/// The end of a text.
fn last(text: &str, bytes: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..]
}

/// What a program says, read to its end so that it never waits for us; the last of it is kept.
struct Kept {
    reading: AbortOnDropHandle<()>,
    bytes: Arc<Mutex<Vec<u8>>>,
    room: usize,
}

impl Kept {
    fn reading(from: Option<impl AsyncRead + Unpin + Send + 'static>, room: usize) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let reading = tokio::spawn(keep_last(from, Arc::clone(&bytes), room));
        Self { reading: AbortOnDropHandle::new(reading), bytes, room }
    }

    /// Waits until there is no more.
    async fn ends(&mut self) {
        if let Err(error) = (&mut self.reading).await {
            debug!("what it said could not be read: {error}");
        }
    }

    fn text(self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(self.room)..]).into_owned()
    }
}

async fn keep_last(from: Option<impl AsyncRead + Unpin>, kept: Arc<Mutex<Vec<u8>>>, room: usize) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&buffer[..read]);
        // Only now and then, so that not all is moved for each few bytes.
        if kept.len() > 2 * room + buffer.len() {
            let surplus = kept.len() - room;
            kept.drain(..surplus);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_of_what_is_said_is_kept_and_the_rest_read_away() {
        let lines: Vec<String> = (0..20_000).map(|number| number.to_string()).collect();
        let text = lines.join("\n");
        let (mut writer, reader) = tokio::io::duplex(1000);
        let mut kept = Kept::reading(Some(reader), 30);
        writer.write_all(text.as_bytes()).await.unwrap();
        drop(writer);
        kept.ends().await;
        assert_eq!(kept.text(), &text[text.len() - 30..]);
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        assert_eq!(last("aäb", 2), "b");
        assert_eq!(last("aäb", 3), "äb");
        assert_eq!(last("ab", 9), "ab");
    }
}
