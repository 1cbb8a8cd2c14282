//! A team that is told of every push: effects are counted by who is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::http::StatusCode;
use chrono::Utc;
use producer::source_type;
use producer::sources::signed_sample;
use tests::binary::{House, Running};
use tests::load::{booked, done};
use tests::porter::eventually;
use tests::receiver::Receiver;
use tests::sender::{SECRET, Sender};
use uuid::Uuid;

/// 24 bytes in base64.
const TEAM_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Who sends, and who is told.
pub(crate) struct TeamsWorld {
    pub(crate) sender: Arc<Sender>,
    pub(crate) team: Receiver,
}

impl TeamsWorld {
    pub(crate) async fn new() -> Self {
        Self { sender: Arc::default(), team: Receiver::start().await }
    }

    /// A house whose processes tell the team of each push; `more` is added to its configuration.
    pub(crate) fn house(&self, ledger: &str, broker: &str, more: &str) -> House {
        let team = &self.team.url;
        House::new(&format!(
            r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
token = "{SECRET} {SECRET}"
[queue]
ledger = "{ledger}"
broker = "{broker}"
[worker]
grace = "5s"
[sources.github]
secrets = ["{SECRET}"]
[sources.vercel]
secrets = ["{SECRET}"]
[channels.team]
webhook = {{ url = "{team}/", secret = "{TEAM_SECRET}" }}
[[routes]]
on = "github.push"
run = {{ job = "notify", with = {{ channel = "team", text = "{{{{ event.git.sha }}}}" }} }}
[[routes]]
on = "vercel.*"
run = {{ job = "noop" }}
{more}"#
        ))
    }

    /// Waits until everything is booked and done; then checks that the team was told of each push once.
    pub(crate) async fn settle(&self, ledger: &str, what: &str) {
        booked(&self.sender, ledger).await;
        let jobs = done(ledger).await;
        let mut told: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for request in self.team.requests() {
            let commit = request.body["data"]["text"].as_str().unwrap_or_default().to_owned();
            told.entry(commit).or_default().insert(request.header("webhook-id").to_owned());
        }
        let twice: Vec<_> = told.iter().filter(|(_, messages)| messages.len() != 1).collect();
        assert!(twice.is_empty(), "told twice: {twice:?}");
        let pushes = tests::load::count(ledger, "select count(*) from nightporter.history where kind = 'notify'").await;
        assert_eq!(pushes.unwrap(), i64::try_from(told.len()).unwrap(), "completed is not what was done");
        let (acknowledged, spooled) = self.sender.acknowledged();
        assert!(told.len() >= acknowledged, "of {acknowledged} that were signed for, {} had their effect", told.len());
        println!(
            "{what}: {acknowledged} deliveries signed for, {spooled} of them by the spool; {jobs} jobs completed; the team \
             was told of {} pushes, of none twice; answers {}",
            told.len(),
            self.sender.answers()
        );
    }
}

/// Sends a deployment under this nonce, as a sender that sends again would; the status.
pub(crate) async fn deploy(serve: &Running, nonce: u128) -> StatusCode {
    let vercel = source_type("vercel").unwrap();
    let sample = signed_sample(vercel, "deployment.succeeded", &[], &SECRET.into(), Uuid::from_u128(nonce), Utc::now());
    let sample = sample.unwrap();
    let sent = worker::world::http_client().post(format!("{}/webhooks/vercel", serve.server()));
    sent.headers(sample.headers).body(sample.body).send().await.expect("an answer").status()
}

/// Sends a deployment until it is not refused.
pub(crate) async fn deploy_again(serve: &Running, nonce: u128) -> StatusCode {
    eventually("the deployment is taken", async || {
        let status = deploy(serve, nonce).await;
        (status != StatusCode::SERVICE_UNAVAILABLE).then_some(status)
    })
    .await
}
