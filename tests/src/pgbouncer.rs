//! A `PgBouncer` of a test's own, in front of the server that `tests/run` started.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

use tempfile::TempDir;
use tokio::net::TcpStream;
use url::Url;

use crate::porter::eventually;
use crate::postgres::as_server;
use crate::rabbitmq::three_free_ports;

/// A running pooler. Ends with the test, however that ends.
pub struct PgBouncer {
    dir: TempDir,
    port: u16,
    child: Option<Child>,
}

impl PgBouncer {
    /// Starts one with this `pool_mode`, and waits until it takes connections.
    pub async fn start(pool_mode: &str) -> Self {
        let server = Url::parse(&crate::server(crate::postgres::SERVER)).expect("an address");
        let (host, port) = (server.host_str().expect("a host"), server.port().expect("a port"));
        let dir = tempfile::tempdir().expect("a temporary folder");
        let ours = three_free_ports();
        let users = dir.path().join("users.txt");
        let config = format!(
            "[databases]\n* = host={host} port={port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {ours}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = {pool_mode}\ndefault_pool_size = 40\n",
            users.display()
        );
        std::fs::write(&users, "\"postgres\" \"\"\n").expect("a file");
        std::fs::write(dir.path().join("pgbouncer.ini"), config).expect("a file");
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("the folder is ours");
        let mut pooler = Self { dir, port: ours, child: None };
        pooler.start_again().await;
        pooler
    }

    /// The address of a database, through it.
    pub fn url(&self, of: &str) -> String {
        let mut url = Url::parse(of).expect("an address");
        url.set_port(Some(self.port)).expect("it has a port");
        url.into()
    }

    /// Starts it again.
    pub async fn start_again(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log.txt")).expect("a log file");
        // Where Debian has it, which is not in everybody's PATH. It refuses to run as root.
        let child = as_server("/usr/sbin/pgbouncer")
            .arg(self.dir.path().join("pgbouncer.ini"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file"))
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("PgBouncer (tests/servers/install installs it)"));
        let address = ("127.0.0.1", self.port);
        eventually("PgBouncer listens", async || TcpStream::connect(address).await.ok()).await;
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.kill();
    }
}
