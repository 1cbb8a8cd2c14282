//! What holds for every channel, whatever its target: one suite, a line for each.

use std::time::Duration;

use async_trait::async_trait;
use schemas::{JobId, Timestamp};
use secrets::Resolver;
use serde_json::{Value, json};
use tests::mail::{MailServer, PASSWORD};
use tests::receiver::{Receiver, Reply};
use tests::services::{Fault, RESEND_KEY, ROUTING_KEY, Services};
use worker::Failure;
use worker::channels::{Channel, Fate, Message, NotSent, Posting, Repeats, Severity, open};

use super::{CANARY, SECRET, config, heartbeat, slack, webhook};

/// A target in this process, and the channel that leads to it.
#[async_trait]
trait Target {
    /// The channel's configuration.
    fn config(&self) -> Value;
    /// Next it is too busy; whether it then says for how long: 36 to 37 s.
    async fn is_busy(&mut self) -> bool;
    /// Next it refuses for good.
    async fn refuses(&mut self);
    /// Next it takes the message, and its answer is lost.
    async fn loses_its_answer(&mut self);
    /// How often it took a message.
    async fn taken(&self) -> usize;
    /// How many messages people saw, where it knows them by their id.
    fn effects(&self) -> Option<usize>;
    /// What people read of the last message.
    fn last(&self) -> String;
    /// What is nowhere but in the message's own request.
    fn secret(&self) -> &'static str;
}

struct Posted {
    receiver: Receiver,
    config: fn(&str) -> Value,
    dedupes: bool,
    gone: Reply,
}

#[async_trait]
impl Target for Posted {
    fn config(&self) -> Value {
        (self.config)(&self.receiver.url)
    }

    async fn is_busy(&mut self) -> bool {
        self.receiver.then([Reply::TooMany("37")]);
        true
    }

    async fn refuses(&mut self) {
        self.receiver.then([self.gone.clone()]);
    }

    async fn loses_its_answer(&mut self) {
        self.receiver.then([Reply::Lost]);
    }

    async fn taken(&self) -> usize {
        self.receiver.taken()
    }

    fn effects(&self) -> Option<usize> {
        self.dedupes.then(|| self.receiver.effects())
    }

    fn last(&self) -> String {
        let last = self.receiver.requests().pop();
        last.map(|request| String::from_utf8_lossy(&request.raw).into_owned()).unwrap_or_default()
    }

    fn secret(&self) -> &'static str {
        if self.config()["webhook"].is_object() { SECRET } else { CANARY }
    }
}

#[derive(Clone, Copy)]
enum Service {
    Discord,
    Pagerduty,
    Resend,
}

struct Served(Services, Service);

#[async_trait]
impl Target for Served {
    fn config(&self) -> Value {
        match self.1 {
            Service::Discord => self.0.discord(),
            Service::Pagerduty => self.0.pagerduty(),
            Service::Resend => self.0.resend(),
        }
    }

    async fn is_busy(&mut self) -> bool {
        self.0.then([Fault::TooMany]);
        !matches!(self.1, Service::Pagerduty)
    }

    async fn refuses(&mut self) {
        self.0.then([Fault::Refused(404, "{}")]);
    }

    async fn loses_its_answer(&mut self) {
        self.0.then([Fault::Lost]);
    }

    async fn taken(&self) -> usize {
        match self.1 {
            Service::Discord => self.0.posts().len(),
            Service::Pagerduty => self.0.events().len(),
            Service::Resend => self.0.mail_requests(),
        }
    }

    fn effects(&self) -> Option<usize> {
        match self.1 {
            Service::Discord => None,
            Service::Pagerduty => Some(self.0.alerts().values().map(|alert| alert.incidents).sum()),
            Service::Resend => Some(self.0.mails().len()),
        }
    }

    fn last(&self) -> String {
        let all = match self.1 {
            Service::Discord => self.0.posts(),
            Service::Pagerduty => self.0.events(),
            Service::Resend => self.0.mails(),
        };
        all.last().map(Value::to_string).unwrap_or_default()
    }

    fn secret(&self) -> &'static str {
        match self.1 {
            Service::Discord => CANARY,
            Service::Pagerduty => ROUTING_KEY,
            Service::Resend => RESEND_KEY,
        }
    }
}

struct Mailed {
    server: MailServer,
    expected: usize,
}

#[async_trait]
impl Target for Mailed {
    fn config(&self) -> Value {
        json!({"mail": self.server.config("tls")})
    }

    async fn is_busy(&mut self) -> bool {
        self.server.fail("recipient", "451 4.3.0 busy").await;
        false
    }

    async fn refuses(&mut self) {
        self.server.fail("message", "554 5.7.1 refused").await;
    }

    async fn loses_its_answer(&mut self) {
        self.server.lose_the_answer().await;
    }

    async fn taken(&self) -> usize {
        self.server.letters(self.expected).await.len()
    }

    fn effects(&self) -> Option<usize> {
        None
    }

    fn last(&self) -> String {
        self.server.last()
    }

    fn secret(&self) -> &'static str {
        PASSWORD
    }
}

async fn opened(config: Value) -> Box<dyn Channel> {
    let http = worker::world::http_client();
    open("ops", &super::config(config), &Resolver::default(), &http).await.expect("a channel")
}

fn message() -> Message {
    Message { title: "deploy failed".into(), text: "see above".into(), severity: Severity::Critical, alarm: None }
}

fn posting(may_repeat: bool) -> Posting {
    Posting { job: JobId(uuid::Uuid::from_u128(7)), created_at: Timestamp::UNIX_EPOCH, may_repeat }
}

async fn send(channel: &dyn Channel, may_repeat: bool) -> Result<(), NotSent> {
    channel.send(&message(), &posting(may_repeat), Timestamp::UNIX_EPOCH).await
}

fn judged(sent: Result<(), NotSent>) -> (Fate, &'static str, Option<Duration>, String) {
    let NotSent { fate, failure } = sent.expect_err("it was not delivered");
    match failure {
        Failure::Retry { error, after } => (fate, "retry", after, format!("{error:#}")),
        Failure::Discard(error) => (fate, "discard", None, format!("{error:#}")),
        other => panic!("{other:?}"),
    }
}

/// The suite.
async fn conforms(mut target: impl Target) {
    let channel = opened(target.config()).await;
    let mut said = Vec::new();

    // Too busy: nothing was delivered, and it is left alone for as long as it asks.
    let says_how_long = target.is_busy().await;
    let (fate, done, after, text) = judged(send(&*channel, false).await);
    assert_eq!((fate, done), (Fate::NotDelivered, "retry"), "{text}");
    assert_eq!(after.is_some_and(|after| (36..=37).contains(&after.as_secs())), says_how_long, "{after:?}");
    said.push(text);

    // Refused for good: nothing was delivered, and a person is told what to do.
    target.refuses().await;
    let (fate, done, _, text) = judged(send(&*channel, false).await);
    assert_eq!((fate, done), (Fate::NotDelivered, "discard"), "{text}");
    said.push(text);

    // A lost answer: nobody knows.
    target.loses_its_answer().await;
    let (fate, done, _, text) = judged(send(&*channel, false).await);
    assert_eq!((fate, done), (Fate::Unknown, "retry"), "{text}");
    said.push(text);

    // What a repeat looks like is what the channel says of itself.
    send(&*channel, true).await.unwrap();
    assert_eq!(target.taken().await, 2);
    match channel.repeats() {
        Repeats::Dedupe => assert_eq!(target.effects(), Some(1), "people saw it twice"),
        Repeats::Mark => assert!(target.last().contains("(possibly repeated) "), "{}", target.last()),
        Repeats::Report => panic!("nobody asked for that"),
    }
    assert!(target.last().contains("deploy failed"), "{}", target.last());

    // Nobody there: nothing was delivered.
    drop(channel);
    let channel = opened(unreachable(target.config())).await;
    let (fate, done, _, text) = judged(send(&*channel, false).await);
    assert_eq!((fate, done), (Fate::NotDelivered, "retry"), "{text}");
    said.push(text);

    let said = said.join("\n");
    assert!(!said.contains(target.secret()), "{said}");
    assert!(!said.contains("4.3.0") && !said.contains("5.7.1"), "what a stranger says is not repeated: {said}");
}

/// The same channel, to a port at which nobody listens.
fn unreachable(config: Value) -> Value {
    let nowhere = tests::receiver::nowhere();
    let port = nowhere.rsplit(':').next().unwrap().to_owned();
    let mut mail = config.clone();
    if let Some(mail) = mail.get_mut("mail") {
        mail["port"] = port.parse::<u16>().unwrap().into();
    }
    let text = mail.to_string();
    let (before, after) = text.split_once("http://127.0.0.1:").unwrap_or((&text, ""));
    if after.is_empty() {
        return mail;
    }
    let after = after.trim_start_matches(|digit: char| digit.is_ascii_digit());
    serde_json::from_str(&format!("{before}{nowhere}{after}")).unwrap()
}

async fn posted(config: fn(&str) -> Value, dedupes: bool, gone: Reply) -> Posted {
    Posted { receiver: Receiver::start().await, config, dedupes, gone }
}

#[tokio::test]
async fn slack_conforms() {
    conforms(posted(slack, false, Reply::Refused(404, "no_service")).await).await;
}

#[tokio::test]
async fn a_signed_webhook_conforms() {
    conforms(posted(webhook, true, Reply::Refused(410, "")).await).await;
}

#[tokio::test]
async fn a_heartbeat_conforms() {
    conforms(posted(heartbeat, true, Reply::Refused(200, "OK (not found)")).await).await;
}

#[tokio::test]
async fn discord_conforms() {
    conforms(Served(Services::start().await, Service::Discord)).await;
}

#[tokio::test]
async fn pagerduty_conforms() {
    conforms(Served(Services::start().await, Service::Pagerduty)).await;
}

#[tokio::test]
async fn resend_conforms() {
    conforms(Served(Services::start().await, Service::Resend)).await;
}

#[tokio::test]
async fn mail_conforms() {
    conforms(Mailed { server: MailServer::start().await, expected: 2 }).await;
}

#[test]
fn a_canary_is_configured_for_each_of_them() {
    assert!(config(slack("http://x.test")).slack.is_some() && config(heartbeat("http://x.test")).heartbeat.is_some());
    assert!(tests::services::WEBHOOK.contains(CANARY));
}
