//! Processes are killed at any moment: what was acknowledged is done, and done once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use chrono::Utc;
use futures_util::stream::{self, StreamExt};
use producer::source_type;
use producer::sources::signed_sample;
use serde_json::Value;
use tests::binary::House;
use tests::porter::eventually;
use uuid::Uuid;

const SECRET: &str = "not a secret";
/// 24 bytes in base64.
const TEAM_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// How many deliveries are sent in each round, and in how many of them processes are killed.
const DELIVERIES: usize = 40;
const ROUNDS: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_porter_that_is_killed_loses_nothing_and_does_nothing_twice() {
    let world = KillWorld::new("sqlite:ledger.db", "in-process").await;
    for round in 0..ROUNDS {
        let up = world.house.start("up");
        let door = up.server();
        world.deliver_and_stop(&door, round, move || up.kill()).await;
    }
    let up = world.house.start("up");
    world.settle(&up.server()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_and_workers_that_are_killed_lose_nothing_and_do_nothing_twice() {
    let ledger = tests::postgres::fresh_database().await;
    let world = KillWorld::new(&ledger, &tests::server("NIGHTPORTER_TEST_AMQP")).await;
    for round in 0..ROUNDS {
        let (serve, work) = (world.house.start("serve"), world.house.start("work"));
        let door = serve.server();
        // One dies, the other is asked to end: in turn.
        let (killed, asked) = if round % 2 == 0 { (serve, work) } else { (work, serve) };
        let stop = move || {
            killed.kill();
            assert!(asked.stop().success());
        };
        world.deliver_and_stop(&door, round, stop).await;
    }
    let (serve, _work) = (world.house.start("serve"), world.house.start("work"));
    world.settle(&serve.server()).await;
}

/// A receiver that counts effects, and knows what was acknowledged.
struct KillWorld {
    house: House,
    /// The commits of the deliveries that were answered with a 2xx.
    acknowledged: Mutex<BTreeSet<String>>,
    /// The message ids that brought each commit: more than one is an effect that happened twice.
    effects: Effects,
}

impl KillWorld {
    async fn new(ledger: &str, broker: &str) -> Self {
        let effects = Effects::default();
        let receiver = receive(Arc::clone(&effects)).await;
        let house = House::new(&configuration(ledger, broker, receiver));
        Self { house, acknowledged: Mutex::default(), effects }
    }

    /// Delivers, eight at a time, and stops processes when some of the answers have come.
    async fn deliver_and_stop(&self, door: &str, round: usize, stop: impl FnOnce() + Send + 'static) {
        let mut answers = stream::iter(0..DELIVERIES)
            .map(|number| self.deliver(door, format!("{:020x}{number:020x}", round + 1)))
            .buffer_unordered(8);
        for _ in 0..DELIVERIES / 3 + round * 3 {
            answers.next().await;
        }
        let stopping = tokio::task::spawn_blocking(stop);
        while answers.next().await.is_some() {}
        stopping.await.unwrap();
    }

    /// Sends one push; notes whether it was acknowledged. The delivery id is the commit's, so that sending again is a
    /// redelivery.
    async fn deliver(&self, door: &str, commit: String) {
        let github = source_type("github").unwrap();
        let changes = [("after".to_owned(), commit.clone())];
        let nonce = Uuid::from_u128(u128::from_str_radix(&commit[8..], 16).unwrap());
        let sample = signed_sample(github, "push", &changes, &SECRET.into(), nonce, Utc::now()).unwrap();
        let http = worker::world::http_client();
        let sent = http.post(format!("{door}/webhooks/github")).headers(sample.headers).body(sample.body);
        if let Ok(answer) = sent.send().await
            && answer.status().is_success()
        {
            self.acknowledged.lock().unwrap().insert(commit);
        }
    }

    /// Waits until everything that was acknowledged has had its effect; then checks that nothing had it twice.
    async fn settle(&self, door: &str) {
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        assert!(acknowledged.len() > ROUNDS * 5, "only {} deliveries were acknowledged", acknowledged.len());
        for commit in acknowledged.iter().take(10) {
            self.deliver(door, commit.clone()).await; // a redelivery changes nothing
        }
        for commit in &acknowledged {
            let done = async || self.effects.lock().unwrap().contains_key(commit).then_some(());
            eventually(&format!("{commit}, which was acknowledged, is done"), done).await;
        }
        let effects = self.effects.lock().unwrap();
        let twice: Vec<_> = effects.iter().filter(|(_, ids)| ids.len() > 1).collect();
        assert!(twice.is_empty(), "done twice: {twice:?}");
        println!("{ROUNDS} kills, {} acknowledged, {} done, none twice", acknowledged.len(), effects.len());
    }
}

fn configuration(ledger: &str, broker: &str, receiver: SocketAddr) -> String {
    format!(
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
[channels.team]
webhook = {{ url = "http://{receiver}/", secret = "{TEAM_SECRET}" }}
[[routes]]
on = "github.push"
run = {{ job = "notify", with = {{ channel = "team", text = "{{{{ event.git.sha }}}}" }} }}
"#
    )
}

type Effects = Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>;

async fn receive(effects: Effects) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", post(note)).with_state(effects);
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn note(State(effects): State<Effects>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let commit = body["data"]["text"].as_str().unwrap().to_owned();
    let id = headers["webhook-id"].to_str().unwrap().to_owned();
    effects.lock().unwrap().entry(commit).or_default().insert(id);
    StatusCode::NO_CONTENT
}
