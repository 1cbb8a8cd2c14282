//! The team's whole world: servers, accounts, secrets in the vault, and the machines that Nightporter runs on.

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tests::binary::{House, Running};
use tests::migration_world::{Github, TOKEN};
use tests::receiver::Receiver;
use tests::s3::{Bucket, CREDENTIALS};
use tests::vercel::Vercel;
use uuid::Uuid;

use crate::clock::{AHEAD, Clock};
use crate::patience::wait_for;
use crate::shop::Shop;
use crate::vault;

/// 24 bytes in base64: the team's, and Clerk's.
pub(crate) const WEBHOOK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// GitHub's.
pub(crate) const GITHUB_SECRET: &str = "a secret that GitHub and the porter share";

/// Vercel's.
pub(crate) const VERCEL_SECRET: &str = "a secret that Vercel and the porter share";

/// A job of a gigabyte takes its time on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(30);

/// Everything there is.
pub(crate) struct Team {
    pub(crate) clock: Clock,
    pub(crate) shop: Shop,
    pub(crate) github: Github,
    pub(crate) vercel: Vercel,
    /// Where the team reads its messages.
    pub(crate) chat: Receiver,
    pub(crate) bucket: Bucket,
    pub(crate) ledger: String,
    pub(crate) http: reqwest::Client,
    pub(crate) porter: Machine,
    pub(crate) workers: Vec<Machine>,
    /// How many machines were lost.
    pub(crate) lost: usize,
    /// What the names of its secrets begin with.
    pub(crate) prefix: String,
    token: String,
    config: String,
}

/// A machine with a folder of its own, on which one process of Nightporter runs.
pub(crate) struct Machine {
    pub(crate) house: House,
    pub(crate) process: Running,
}

impl Team {
    /// Sets everything up at that moment, and starts a porter and two workers.
    pub(crate) async fn open(now: DateTime<Utc>) -> Result<Self> {
        let clock = Clock::of_the_environment(&tests::server(tests::postgres::SERVER))?;
        // Before anybody looks at it: what passed until then is no downtime.
        clock.advance_to(now).await?;
        let shop = Shop::open().await?;
        let (github, vercel) = (Github::default(), Vercel::default());
        let (chat, bucket) = (Receiver::start().await, Bucket::on_server().await);
        let ledger = tests::postgres::fresh_database().await;
        let token = format!("np_{}", Uuid::new_v4().simple());
        let prefix = format!("day-{}", Uuid::new_v4().simple());
        let secrets = [
            ("operators", json!({"token": token})),
            ("webhooks", webhook_secrets()),
            ("tokens", json!({"github": TOKEN, "vercel": tests::vercel::TOKEN})),
            ("database", json!({"url": shop.url})),
            ("shop", json!({"url": shop.first_address()})),
            ("store", json!({"credentials": CREDENTIALS})),
        ];
        for (name, value) in secrets {
            vault::keep(&bucket.endpoint, &format!("{prefix}/{name}"), &value).await?;
        }
        let config = include_str!("nightporter.toml")
            .replace("{prefix}", &prefix)
            .replace("{ledger}", &ledger)
            .replace("{broker}", &tests::server("NIGHTPORTER_TEST_AMQP"))
            .replace("{aws}", &bucket.endpoint)
            .replace("{github}", github.start().await.as_str())
            .replace("{vercel}", vercel.start().await.as_str())
            .replace("{project}", tests::vercel::PROJECT)
            .replace("{store}", &bucket.store_url())
            .replace("{team}", &chat.url)
            .replace("{role}", &shop.role);
        let [porter, one, two] = ["serve", "work", "work"].map(|role| Machine::start(&config, &token, &clock, role));
        let http = worker::world::http_client();
        let workers = vec![one, two];
        Ok(Self {
            clock,
            shop,
            github,
            vercel,
            chat,
            bucket,
            ledger,
            http,
            porter,
            workers,
            lost: 0,
            prefix,
            token,
            config,
        })
    }

    /// What the operators' API answers.
    pub(crate) async fn ask(&self, path: &str) -> Result<Value> {
        let url = format!("{}/api/v1/{path}", self.porter.process.operators());
        let answer = self.http.get(url).bearer_auth(&self.token).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }

    /// A command, as an operator or CI gives it; what it printed as JSON. It must succeed.
    pub(crate) fn command(&self, arguments: &[&str]) -> Value {
        let server = self.porter.process.operators();
        let arguments = [arguments, &["--json", "--server", &server]].concat();
        self.porter.house.run(&arguments).exits(0).json()
    }

    /// Starts a runbook, as CI does, and waits until its run has ended; it.
    pub(crate) async fn run(&self, runbook: &str, reference: &str) -> Result<Value> {
        let reference = format!("ref={reference}");
        let started = self.command(&["run", runbook, "--with", &reference, "--reason", "deploy from CI"]);
        let run = started["run"].as_str().context("no run was started")?;
        wait_for("the run has ended", PATIENCE, async || {
            let run = self.ask(&format!("runs/{run}")).await?;
            Ok((run["state"] != "running").then_some(run))
        })
        .await
    }

    /// Waits until no job is to be done and none is being done. Where all that is left waits for its time, as the first
    /// message of a storm does for others of its kind, that comes sooner.
    pub(crate) async fn at_rest(&self) -> Result<()> {
        wait_for("all work is done", PATIENCE, async || {
            let all = self.count("select count(*) from nightporter.job").await?;
            let scheduled = self.count("select count(*) from nightporter.job where state = 1").await?;
            if all > 0 && all == scheduled {
                let first = self.count("select coalesce(min(run_at), 0) from nightporter.job").await?;
                let first = DateTime::from_timestamp_micros(first).context("a time")?;
                if self.clock.now() < first - AHEAD {
                    self.clock.advance_to(first - AHEAD).await?;
                }
            }
            Ok((all == 0).then_some(()))
        })
        .await
    }

    /// A number that the ledger knows.
    pub(crate) async fn count(&self, question: &str) -> Result<i64> {
        let mut ledger = PgConnection::connect(&self.ledger).await?;
        Ok(sqlx::query_scalar(AssertSqlSafe(question.to_owned())).fetch_one(&mut ledger).await?)
    }

    /// Loses the porter's machine, with all that is on its disk, and sets up another.
    pub(crate) fn lose_porter(&mut self) {
        self.porter.process.signal("KILL");
        self.porter = Machine::start(&self.config, &self.token, &self.clock, "serve");
        self.lost += 1;
    }

    /// Loses a worker's machine in the midst of whatever it does, and sets up another.
    pub(crate) fn lose_worker(&mut self, number: usize) {
        self.workers[number].process.signal("KILL");
        self.workers[number] = Machine::start(&self.config, &self.token, &self.clock, "work");
        self.lost += 1;
    }
}

impl Machine {
    fn start(config: &str, token: &str, clock: &Clock, role: &str) -> Self {
        let environment = environment(clock);
        let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
        let house = House::new(config).with_environment(&environment).with_environment(&[("NIGHTPORTER_TOKEN", token)]);
        let process = house.start(role);
        Self { house, process }
    }
}

fn webhook_secrets() -> Value {
    json!({"github": GITHUB_SECRET, "vercel": VERCEL_SECRET, "clerk": WEBHOOK_SECRET, "team": WEBHOOK_SECRET})
}

/// What each of Nightporter's processes is started with.
pub(crate) fn environment(clock: &Clock) -> Vec<(String, String)> {
    let aws = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_EC2_METADATA_DISABLED", "true")];
    let aws = aws.map(|(name, value)| (name.to_owned(), value.to_owned()));
    clock.environment().into_iter().chain(aws).collect()
}
