//! The built binary, killed at every step of a rotation, right before and right after each step is written down: it goes on,
//! makes exactly one new version, and at no moment is anybody locked out.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use secrets::ExposeSecret;
use secrets::vaults::{Label, Token};
use tests::binary::House;
use tests::postgres::PostgresServer;
use tests::vaults::TestVault;

use super::on_every_vault;
use super::postgres::{refused, server};

on_every_vault!(
    killed_when_a_step_has_begun_and_before_its_end_is_written_it_goes_on,
    killed_before_a_step_begins_and_when_its_end_is_written_it_goes_on,
);

/// begin, create, set, test, publish, prove, finish, retire.
const STEPS: usize = 8;

/// What the commands show.
const TOKEN: &str = "of the operators of this test";

struct KillWorld {
    house: House,
    server: PostgresServer,
    t: TestVault,
    secret: String,
    first: Token,
}

impl KillWorld {
    async fn new(t: TestVault) -> Self {
        let server = server().await;
        let address = server.url().replace("postgres@", "app_a:canary-the-first@");
        let (secret, first) = t.secret(&address).await;
        let house = House::new("").with_environment(&[
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("NIGHTPORTER_TOKEN", TOKEN),
        ]);
        let config = format!(
            r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
token = "{TOKEN}"
[vault]
{vault}
[databases.main]
url = "{porter}"
[rotations.app]
secret = "{secret}"
overlap = "0s"
postgres = {{ database = "main", roles = ["app_a", "app_b"], test = "SELECT count(*) FROM guest" }}
[rotations.app.consumers.program]
file = {{ path = "{file}" }}
"#,
            vault = t.config,
            porter = server.url().replace("postgres@", "porter:of-the-porter@"),
            file = house.path("program.secret").display(),
        );
        std::fs::write(house.path("nightporter.toml"), config).unwrap();
        Self { house, server, t, secret, first }
    }

    /// Has the porter die at a point, where the job comes to it; starts the job if there is none.
    async fn die(&self, point: &str) {
        let mut dying = self.house.start_to_end("up", &[("NIGHTPORTER_KILL_AT", point)]);
        let deadline = Instant::now() + Duration::from_mins(2);
        let mut started = self.house.path("started").exists();
        let status = loop {
            if let Some(status) = dying.ended() {
                break status;
            }
            assert!(Instant::now() < deadline, "it never came to `{point}`");
            if let (false, Some(operators)) = (started, dying.operators()) {
                // It may die before it answers; the job is stored by then.
                self.house.run(&[
                    "run",
                    "rotate",
                    "--with",
                    "rotation=app",
                    "--reason",
                    "a test",
                    "--server",
                    &operators,
                ]);
                std::fs::write(self.house.path("started"), "").unwrap();
                started = true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert_eq!(status.signal(), Some(9), "it ended otherwise than by our hand at `{point}`");
        let current = self.t.vault.current(&self.secret).await.unwrap();
        assert_eq!(refused(current.expose_secret()).await, None, "locked out after `{point}`");
        if let Ok(told) = std::fs::read_to_string(self.house.path("program.secret")) {
            assert_eq!(refused(&told).await, None, "the consumer is locked out after `{point}`");
        }
    }

    /// Lets the job end, and looks at what is there then.
    async fn settle(&self) {
        let up = self.house.start("up");
        let job = tests::porter::eventually("the rotation has ended", async || {
            let jobs = self.house.run(&["jobs", "list", "--json", "--server", &up.operators()]).exits(0).json();
            let jobs = jobs.as_array().cloned().unwrap_or_default();
            assert_eq!(jobs.len(), 1, "{jobs:?}");
            let state = jobs[0]["state"].as_str().unwrap_or_default().to_owned();
            ["completed", "discarded", "cancelled"].contains(&state.as_str()).then(|| jobs[0].clone())
        })
        .await;
        assert_eq!(job["state"], "completed", "{job}");
        assert!(up.stop().success());
        let described = self.t.vault.describe(&self.secret).await.unwrap();
        let token: Token = job["id"].as_str().unwrap().parse().unwrap();
        assert_eq!(described.holder(Label::Current), Some(&token));
        assert_eq!(described.holder(Label::Previous), Some(&self.first));
        assert_eq!((described.versions.len(), described.holder(Label::Pending)), (2, None));
        let new = self.t.vault.current(&self.secret).await.unwrap();
        assert_eq!(std::fs::read_to_string(self.house.path("program.secret")).unwrap(), new.expose_secret());
        assert_eq!(refused(new.expose_secret()).await, None);
        let old = self.server.url().replace("postgres@", "app_a:canary-the-first@");
        assert_eq!(refused(&old).await.as_deref(), Some("28000"), "the old value is dead");
        let password = new.expose_secret().split([':', '@']).nth(2).unwrap().to_owned();
        self.holds_no(&password);
        self.holds_no("canary-the-first");
    }

    /// That nothing that the porter wrote, but for the consumer's file and the vault, holds a text.
    fn holds_no(&self, text: &str) {
        for entry in std::fs::read_dir(self.house.path("")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() && !path.ends_with("program.secret") {
                let bytes = std::fs::read(&path).unwrap();
                let found = bytes.windows(text.len()).any(|window| window == text.as_bytes());
                assert!(!found, "{} holds a secret", path.display());
            }
        }
    }
}

/// How many steps are visited up to the n-th: what is past `finish` is not visited again.
fn visits(step: usize, finish_is_written: bool) -> usize {
    match step {
        // begin, (finish, which is looked at once more where it is not written), retire.
        STEPS if finish_is_written => 2,
        STEPS => 3,
        step => step,
    }
}

async fn killed_when_a_step_has_begun_and_before_its_end_is_written_it_goes_on(t: TestVault) {
    let w = KillWorld::new(t).await;
    for step in 1..=STEPS {
        w.die(&format!("step started:{}", visits(step, false))).await;
        w.die("step finishing:1").await;
    }
    w.settle().await;
}

async fn killed_before_a_step_begins_and_when_its_end_is_written_it_goes_on(t: TestVault) {
    let w = KillWorld::new(t).await;
    for step in 1..=STEPS {
        w.die(&format!("step starting:{}", visits(step, true))).await;
        w.die("step finished:1").await;
    }
    w.settle().await;
}
