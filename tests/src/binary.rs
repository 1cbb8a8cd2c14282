//! The built binary, run in a folder of its own.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// What does not happen within this does not happen.
const DEADLINE: Duration = Duration::from_mins(1);

/// So much of a log is said where a test fails.
const LAST_LINES: usize = 30;

/// A folder with a configuration, in which commands are run.
pub struct House {
    folder: TempDir,
    environment: Vec<(String, String)>,
    /// What a shell does before it becomes the binary.
    prelude: Option<String>,
    binary: PathBuf,
}

/// A running process of ours; killed when it is dropped.
pub struct Running {
    child: Child,
    /// What its ready file says.
    pub ready: Value,
}

impl House {
    /// A folder that holds this `nightporter.toml`.
    pub fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("nightporter.toml"), config).expect("the configuration is written");
        Self { folder, environment: Vec::new(), prelude: None, binary: binary() }
    }

    /// Runs another binary in it, an older one.
    #[must_use]
    pub fn with_binary(mut self, binary: impl Into<PathBuf>) -> Self {
        self.binary = binary.into();
        self
    }

    /// Sets variables for all commands that are run in it.
    #[must_use]
    pub fn with_environment(mut self, variables: &[(&str, &str)]) -> Self {
        self.environment.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self
    }

    /// Runs its processes under these limits, in the words of `ulimit`.
    #[must_use]
    pub fn with_limit(self, limit: &str) -> Self {
        self.with_prelude(&format!("ulimit {limit}"))
    }

    /// Has a shell run this first, in the process that becomes the binary.
    #[must_use]
    pub fn with_prelude(mut self, commands: &str) -> Self {
        self.prelude = Some(commands.to_owned());
        self
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command of the binary, with nothing of ours in its environment but what the tests set.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.prelude {
            None => Command::new(&self.binary),
            Some(prelude) => {
                let mut shell = Command::new("bash");
                shell.args(["-c", &format!("{prelude} && exec \"$0\" \"$@\"")]).arg(&self.binary);
                shell
            }
        };
        command.current_dir(self.folder.path()).args(arguments);
        for name in ["NIGHTPORTER_CONFIG", "NIGHTPORTER_SERVER", "NIGHTPORTER_TOKEN", "NIGHTPORTER_LOG"] {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end, which comes before the deadline or fails the test.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        let [out, err] = [(); 2].map(|()| tempfile::tempfile().expect("a temporary file"));
        let clone = |file: &File| file.try_clone().expect("a second handle");
        let mut command = self.command(arguments);
        let mut child = command.stdout(clone(&out)).stderr(clone(&err)).spawn().expect("the binary starts");
        let status = until(|| child.try_wait().expect("it can be waited for")).unwrap_or_else(|| {
            let _gone = child.kill();
            let _reaped = child.wait();
            panic!("`{}` did not end in time:\n{}", arguments.join(" "), text_of(err.try_clone().expect("a handle")));
        });
        let code = status.code().unwrap_or(-1);
        Ended { code, stdout: text_of(out), stderr: text_of(err), command: arguments.join(" ") }
    }

    /// Starts a role that is to end by itself, and waits for that; it never needs to be ready.
    pub fn start_to_end(&self, role: &str, variables: &[(&str, &str)]) -> Ending {
        let file = self.path(&format!("{role}.ready.json"));
        let _gone = std::fs::remove_file(&file);
        let log = File::create(self.path(&format!("{role}.log"))).expect("a log file");
        let mut command = self.command(&[role, "--ready-file", &file.display().to_string()]);
        command.envs(variables.iter().copied()).stdout(Stdio::null()).stderr(log);
        Ending { child: command.spawn().expect("the binary starts"), file }
    }

    /// Starts a role (`up`, `serve`, `work`) and waits until it listens.
    pub fn start(&self, role: &str) -> Running {
        let file = self.path(&format!("{role}.ready.json"));
        let _gone = std::fs::remove_file(&file);
        let log = File::create(self.path(&format!("{role}.log"))).expect("a log file");
        let mut command = self.command(&[role, "--ready-file", &file.display().to_string()]);
        let mut child = command.stdout(Stdio::null()).stderr(log).spawn().expect("the binary starts");
        let log = || std::fs::read_to_string(self.path(&format!("{role}.log"))).unwrap_or_default();
        let ready = until(|| {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("`{role}` ended with {status} before it was ready:\n{}", log());
            }
            std::fs::read_to_string(&file).ok()
        });
        let ready = ready.unwrap_or_else(|| panic!("`{role}` was not ready in time:\n{}", log()));
        Running { child, ready: serde_json::from_str(&ready).expect("the ready file is JSON") }
    }
}

/// Says what its processes said last, where a test fails.
impl Drop for House {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let files = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten().map(|entry| entry.path());
        for log in files.filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let last: Vec<&str> = said.lines().rev().take(LAST_LINES).collect();
            eprintln!("{}, its last lines:", log.display());
            last.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// A process that is to end by itself; killed when it is dropped.
pub struct Ending {
    child: Child,
    file: PathBuf,
}

impl Ending {
    /// The base address of the public door, if it has one by now.
    pub fn server(&self) -> Option<String> {
        let ready: Value = serde_json::from_str(&std::fs::read_to_string(&self.file).ok()?).ok()?;
        Some(format!("http://{}", ready["server"].as_str()?))
    }

    /// The base address of the operators' house, if it has one by now.
    pub fn operators(&self) -> Option<String> {
        let ready: Value = serde_json::from_str(&std::fs::read_to_string(&self.file).ok()?).ok()?;
        Some(format!("http://{}", ready["operators"].as_str()?))
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it can be waited for")
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Running {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The base address of the public door.
    pub fn server(&self) -> String {
        format!("http://{}", self.ready["server"].as_str().expect("it has a public door"))
    }

    /// The base address of the operators' house.
    pub fn operators(&self) -> String {
        format!("http://{}", self.ready["operators"].as_str().expect("it has an operators' address"))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs still.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The most memory that it has ever held, in bytes.
    pub fn most_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel says it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// How many files, sockets and the like it has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").count()
    }

    /// Tells it to stop, and waits for its end.
    pub fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        until(|| self.child.try_wait().expect("it can be waited for")).expect("it did not end after SIGTERM")
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it can be waited for");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success(), "the process is gone");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A command that ended.
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said beside.
    pub stderr: String,
    command: String,
}

impl Ended {
    /// Checks the exit code.
    #[allow(clippy::must_use_candidate, clippy::return_self_not_must_use)] // Often the code is all that is asked.
    pub fn exits(self, code: i32) -> Self {
        let Self { command, stdout, stderr, .. } = &self;
        assert_eq!(self.code, code, "`{command}`\nstdout: {stdout}\nstderr: {stderr}");
        self
    }

    /// What it printed, as JSON: nothing else may stand there.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

/// A house whose porter is up, with a ledger in the file `book.db`.
pub struct Site {
    /// The porter.
    pub up: Running,
    /// Its house.
    pub house: House,
}

impl Site {
    /// A house with this configuration, and its porter.
    pub fn open(config: &str) -> Self {
        let house = House::new(config);
        Self { up: house.start("up"), house }
    }

    /// Runs an operator's command with the token in a file of the house.
    pub fn ask_as(&self, token: &str, arguments: &[&str]) -> Ended {
        let (server, token) = (self.up.operators(), self.house.path(token));
        let to = ["--server", &server, "--token-file", token.to_str().expect("UTF-8")];
        self.house.run(&[arguments, &to].concat())
    }

    /// Runs an operator's command with the token that `up` left.
    pub fn ask(&self, arguments: &[&str]) -> Ended {
        self.ask_as("book.db.token", arguments)
    }

    /// Makes a token, and keeps it in a file of its name.
    pub fn make_token(&self, name: &str, role: &str) -> String {
        let made = self.ask(&["token", "create", name, "--role", role, "--reason", "a test"]).exits(0);
        assert!(made.stderr.contains("it is not shown again"), "{}", made.stderr);
        std::fs::write(self.house.path(name), &made.stdout).expect("the token is kept");
        made.stdout.trim().to_owned()
    }

    /// Starts a job; its id.
    pub fn start(&self, arguments: &[&str]) -> String {
        let started = self.ask(&[&["run", "noop", "--reason", "x", "--json"], arguments].concat()).exits(0).json();
        started["job"].as_str().expect("an id").to_owned()
    }

    /// A job, as it is shown.
    pub fn job(&self, id: &str) -> Value {
        self.ask(&["jobs", "show", id, "--json"]).exits(0).json()
    }

    /// Looks until the job is in a state; [`House::run`] bounds each look, and the harness the whole.
    pub fn wait(&self, id: &str, state: &str) -> Value {
        for _ in 0..1000 {
            let job = self.job(id);
            if job["state"] == state {
                return job;
            }
        }
        panic!("job {id} is still not {state}: {}", self.job(id));
    }
}

/// Lets a running process make no file longer than this (in bytes, or `unlimited`).
pub fn limit_files(pid: u32, most: &str) {
    // The soft limit alone, so that it can be lifted.
    let limit = format!("--fsize={most}:");
    let set = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status();
    assert!(set.expect("prlimit").success(), "its files cannot be limited");
}

/// Looks again and again until there is something, or the deadline has passed.
fn until<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        if let Some(found) = look() {
            return Some(found);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

fn text_of(mut file: File) -> String {
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("UTF-8");
    text
}

fn binary() -> PathBuf {
    if let Some(other) = std::env::var_os("NIGHTPORTER_TEST_BINARY") {
        return other.into();
    }
    let tests = std::env::current_exe().expect("the test's own path");
    let path = tests.ancestors().nth(2).unwrap_or(Path::new("")).join("nightporter");
    assert!(path.exists(), "there is no {}: run `cargo build -p cli`, as `tests/run` does", path.display());
    path
}
