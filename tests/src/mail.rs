//! A mail server of a test's own (`tests/servers/smtp`): aiosmtpd, which keeps what it gets and fails by a script.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// Only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_mins(1);

/// The one login that it accepts.
pub const PASSWORD: &str = "CANARY-PASSWORD";

/// A running mail server. It ends when it is dropped.
pub struct MailServer {
    ports: Ports,
    stdin: ChildStdin,
    said: watch::Receiver<Said>,
    _reading: AbortOnDropHandle<()>,
    _child: Child,
    _folder: TempDir,
}

#[derive(Deserialize)]
struct Ports {
    none: u16,
    starttls: u16,
    tls: u16,
    ca: String,
}

#[derive(Clone, Default)]
struct Said {
    letters: Vec<Letter>,
    /// How many faults it has heard of.
    told: usize,
}

/// A message that it took.
#[derive(Clone, Debug, Deserialize)]
pub struct Letter {
    /// From whom, by the envelope.
    pub from: String,
    /// To whom, by the envelope.
    pub to: Vec<String>,
    /// As whom the sender had logged in.
    pub user: Option<String>,
    /// Whether it came through TLS.
    pub tls: bool,
    /// Headers and text.
    pub letter: String,
}

impl Letter {
    /// A header's text, its lines joined; empty where there is none.
    pub fn header(&self, name: &str) -> String {
        let head = self.letter.split("\r\n\r\n").next().unwrap_or_default().replace("\r\n ", " ");
        let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_default().to_owned()
    }
}

impl MailServer {
    /// Starts one that takes everything.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/servers/smtp");
        let mut child = Command::new(crate::server("NIGHTPORTER_TEST_PYTHON"))
            .arg(script)
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python");
        let stdin = child.stdin.take().expect("its input");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let ports = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("it starts").expect("a line");
        let ports = serde_json::from_str(&ports.expect("aiosmtpd (tests/servers/install installs it)")).expect("ports");
        let (sender, said) = watch::channel(Said::default());
        let reading = AbortOnDropHandle::new(tokio::spawn(read(lines, sender)));
        Self { ports, stdin, said, _reading: reading, _child: child, _folder: folder }
    }

    /// A channel's `mail`, with this protection, logged in where there is TLS.
    pub fn config(&self, tls: &str) -> Value {
        let port = match tls {
            "none" => self.ports.none,
            "starttls" => self.ports.starttls,
            _ => self.ports.tls,
        };
        json!({
            "host": "localhost", "port": port, "tls": tls, "ca": self.ports.ca,
            "login": {"user": "np", "password": PASSWORD},
            "from": "Nightporter <np@example.com>", "to": ["ops@example.com"],
        })
    }

    /// Fails next at this point of the dialogue, by this reply.
    pub async fn fail(&mut self, at: &str, reply: &str) {
        self.tell(json!({"at": at, "reply": reply})).await;
    }

    /// Takes the next message, and breaks off before the answer.
    pub async fn lose_the_answer(&mut self) {
        self.tell(json!({"at": "message", "lost": true})).await;
    }

    async fn tell(&mut self, what: Value) {
        let told = self.said.borrow().told;
        self.stdin.write_all(format!("{what}\n").as_bytes()).await.expect("it listens");
        let heard = tokio::time::timeout(PATIENCE, self.said.wait_for(|said| said.told > told)).await;
        assert!(heard.is_ok_and(|heard| heard.is_ok()), "the mail server was not told");
    }

    /// Waits until so many messages have come, and gives them.
    ///
    /// # Panics
    ///
    /// If that takes too long.
    pub async fn letters(&self, count: usize) -> Vec<Letter> {
        let mut said = self.said.clone();
        let waited = tokio::time::timeout(PATIENCE, said.wait_for(|said| said.letters.len() >= count)).await;
        let letters = self.said.borrow().letters.clone();
        assert!(waited.is_ok_and(|said| said.is_ok()), "only {} of {count} letters came", letters.len());
        letters
    }

    /// The last message's headers and text; empty where none came.
    pub fn last(&self) -> String {
        self.said.borrow().letters.last().map(|letter| letter.letter.clone()).unwrap_or_default()
    }

    /// How many different messages came, known by their `Message-ID`.
    pub fn effects(&self) -> usize {
        let said = self.said.borrow();
        said.letters.iter().map(|letter| letter.header("Message-ID")).collect::<BTreeSet<_>>().len()
    }
}

async fn read(mut lines: Lines<BufReader<ChildStdout>>, said: watch::Sender<Said>) {
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<Letter>(&line) {
            Ok(letter) => said.send_modify(|said| said.letters.push(letter)),
            Err(_) => said.send_modify(|said| said.told += 1),
        }
    }
}
