//! Databases on the PostgreSQL server that `tests/run` started, and servers of a test's own.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tempfile::TempDir;
use uuid::Uuid;

use crate::porter::eventually;
use crate::rabbitmq::three_free_ports;

/// The variable with the server's address: a superuser's, to the database `postgres`.
pub const SERVER: &str = "NIGHTPORTER_TEST_POSTGRES";

/// The address of a new, empty database.
pub async fn fresh_database() -> String {
    let server = crate::server(SERVER);
    let name = format!("test_{}", Uuid::new_v4().simple());
    let mut connection = PgConnection::connect(&server).await.expect("the server answers");
    connection.execute(AssertSqlSafe(format!("create database {name}"))).await.expect("a database is made");
    let mut url = url::Url::parse(&server).expect("an address");
    url.set_path(&name);
    url.into()
}

/// A server of a test's own, for tests that stop it. Ends with the test, however that ends.
pub struct PostgresServer {
    dir: TempDir,
    port: u16,
    /// The port of the server whose standby it is at first.
    primary: Option<u16>,
    child: Option<Child>,
}

impl PostgresServer {
    /// Starts an empty server and waits until it answers.
    pub async fn start() -> Self {
        Self::start_of(None).await
    }

    /// Starts a standby of this server, which streams from it, and waits until it answers.
    pub async fn start_standby(&self) -> Self {
        Self::start_of(Some(self.port)).await
    }

    async fn start_of(primary: Option<u16>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711); // The server is another user's.
        std::fs::set_permissions(dir.path(), open).expect("the folder is ours");
        let mut server = Self { dir, port: three_free_ports(), primary, child: None };
        server.start_again().await;
        server
    }

    /// Its database.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Its socket.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Has it ask everybody for a password from now on, the superuser too: this one. His address then.
    pub async fn ask_for_passwords(&self, password: &str) -> String {
        let mut session = PgConnection::connect(&self.url()).await.expect("it lets us in");
        let hba: String = sqlx::query_scalar("show hba_file").fetch_one(&mut session).await.expect("a path");
        for sql in [
            format!("alter role postgres password '{password}'"),
            format!("copy (select 'host all all 127.0.0.1/32 scram-sha-256') to '{hba}'"),
            "select pg_reload_conf()".to_owned(),
        ] {
            session.execute(AssertSqlSafe(sql)).await.expect("a superuser may");
        }
        eventually("nobody gets in without a password", async || PgConnection::connect(&self.url()).await.err()).await;
        let mut url = url::Url::parse(&self.url()).expect("an address");
        url.set_password(Some(password)).expect("it has a host");
        url.into()
    }

    /// What it wrote down since its start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log.txt")).expect("a log file")
    }

    /// Starts it again, with the data that it had.
    pub async fn start_again(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log.txt")).expect("a log file");
        let child = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/servers/postgres"))
            .arg(self.dir.path().join("data"))
            .arg(self.port.to_string())
            .args(self.primary.map(|port| port.to_string()))
            .stdin(Stdio::piped()) // held open: the server ends with it
            .stdout(log.try_clone().expect("the log file"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("tests/servers/postgres");
        self.child = Some(child);
        // One that asks for a password answers too.
        let answers = async || match PgConnection::connect(&self.url()).await {
            Err(error)
                if error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() != Some("28P01") =>
            {
                None
            }
            _ => Some(()),
        };
        eventually("PostgreSQL answers", answers).await;
    }

    /// Stops all its processes where they stand.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets them go on.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// Lets none of its files grow beyond so many bytes, those of processes that it starts later neither: to it the disk
    /// is full. None: there is room again.
    pub fn limit_files(&self, most: Option<u64>) {
        let Some(child) = &self.child else { return };
        let most = most.map_or("unlimited".to_owned(), |most| most.to_string());
        for pid in [vec![child.id()], children_of(child.id())].concat() {
            // Only processes of the same user may be told so.
            let mut command = as_server("prlimit");
            command.args(["--pid", &pid.to_string(), &format!("--fsize={most}:")]).stderr(Stdio::null());
            let set = command.status().expect("prlimit and setpriv");
            // Any but the server itself may have ended meanwhile.
            assert!(set.success() || pid != child.id(), "its files cannot be limited");
        }
    }

    /// Kills all its processes, as a crash of the machine would.
    pub fn kill(&mut self) {
        self.signal("KILL");
        if let Some(mut child) = self.child.take() {
            let _reaped = child.wait();
        }
    }

    fn signal(&self, signal: &str) {
        let Some(child) = &self.child else { return };
        // The server first, so that it starts no more of them; each of its processes is a group of its own.
        for pids in [vec![child.id()], children_of(child.id())] {
            let pids = pids.iter().map(ToString::to_string);
            // One that has ended by itself is no matter.
            let _sent = Command::new("kill").arg(format!("-{signal}")).args(pids).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A command of the user that servers run as, which is not root.
pub fn as_server(program: &str) -> Command {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    if !is_root {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--", program]);
    command
}

fn children_of(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
