//! A `RabbitMQ` node of a test's own, for tests that kill it.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// A loaded machine takes its time to start one.
const START_WITHIN: Duration = Duration::from_mins(2);

/// A running, or killed, node. Ends with the test, however that ends.
pub struct RabbitNode {
    dir: TempDir,
    port: u16,
    /// Of all nodes of its cluster; none, where it is alone.
    nodes: Vec<u16>,
    child: Option<Child>,
}

impl RabbitNode {
    /// Starts a node and waits until it takes connections.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut node = Self { dir, port: three_free_ports(), nodes: Vec::new(), child: None };
        node.start_again().await;
        node
    }

    /// A node of a cluster; it has not been started yet.
    pub(crate) fn of_cluster(port: u16, nodes: &[u16]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        Self { dir, port, nodes: nodes.to_vec(), child: None }
    }

    /// Its name among Erlang nodes.
    pub fn name(&self) -> String {
        format!("np{}@localhost", self.port)
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Starts it again, with the data that it had.
    pub async fn start_again(&mut self) {
        self.spawn();
        self.answering().await;
    }

    /// Starts it, and does not wait.
    pub(crate) fn spawn(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log.txt")).expect("a log file");
        let child = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/servers/rabbitmq"))
            .arg(self.dir.path())
            .arg(self.port.to_string())
            .args(self.nodes.iter().map(ToString::to_string))
            .stdin(Stdio::piped()) // held open: the node ends with it
            .stdout(log.try_clone().expect("the log file"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("tests/servers/rabbitmq");
        self.child = Some(child);
    }

    /// Waits until it takes connections.
    pub(crate) async fn answering(&self) {
        let deadline = Instant::now() + START_WITHIN;
        while !self.answers().await {
            assert!(Instant::now() < deadline, "RabbitMQ did not start; its log:\n{}", self.log());
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let group = format!("-{}", child.id());
            let killed = Command::new("bash").args(["-c", "kill -KILL -- \"$0\"", &group]).status();
            assert!(killed.is_ok_and(|status| status.success()), "RabbitMQ could not be killed");
            child.wait().expect("the killed node");
        }
    }

    /// Forgets everything that it kept; it is not running.
    pub fn wipe(&self) {
        assert!(self.child.is_none(), "it is running");
        std::fs::remove_dir_all(self.dir.path().join("mnesia")).expect("its data are there");
    }

    /// Runs `rabbitmqctl` on it; what that prints.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        let ran = tokio::process::Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl")
            .args(["-q", "-n", &self.name()])
            .args(arguments)
            .env("HOME", self.dir.path().join("home"))
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", (self.nodes.first().unwrap_or(&self.port) + 2).to_string())
            .env("LC_ALL", "C.UTF-8")
            .output();
        let ran = timeout(START_WITHIN, ran).await.expect("rabbitmqctl ends").expect("rabbitmqctl starts");
        let [out, err] = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(ran.status.success(), "rabbitmqctl {arguments:?}: {out}{err}");
        out
    }

    /// What it has said since it was started.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log.txt")).unwrap_or_default()
    }

    /// Whether it answers the protocol's greeting.
    async fn answers(&self) -> bool {
        let greet = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
            stream.read_u8().await
        };
        matches!(timeout(Duration::from_secs(5), greet).await, Ok(Ok(_)))
    }
}

impl Drop for RabbitNode {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The first of three free ports in a row, outside of those that the system and `tests/run` give out.
pub(crate) fn three_free_ports() -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let candidates = std::iter::repeat_with(|| 12_000 + u16::from_be_bytes(random_bytes()) % 2_600 * 3);
    let mut found = candidates.take(1_000).filter(|first| (*first..first + 3).all(free));
    found.next().expect("three free ports")
}

fn random_bytes() -> [u8; 2] {
    let bytes = uuid::Uuid::new_v4().into_bytes();
    [bytes[0], bytes[1]]
}
