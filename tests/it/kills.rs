//! Processes are killed: at any moment, and at every point right before and after something is persisted. What was
//! acknowledged is done, and done once; nothing else is.
//!
//! 46 kills, of them 36 at named points; `NIGHTPORTER_TEST_LONG=1` makes some four hundred.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

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

/// Where a producer dies: see `queue::kill_point`.
const POINTS_OF_PRODUCERS: [&str; 4] = ["accepting", "accepted", "ringing", "rung"];
/// Where a worker dies. `rescued` needs an orphan, and `promoted` a job that failed before.
const POINTS_OF_WORKERS: [&str; 9] = [
    "claimed",
    "rescued",
    "step starting",
    "step started",
    "step finishing",
    "step finished",
    "finishing",
    "finished",
    "promoted",
];

/// Which visits of a point are deadly, one after the other.
fn visits() -> std::ops::RangeInclusive<usize> {
    1..=if std::env::var_os("NIGHTPORTER_TEST_LONG").is_some() { 12 } else { 1 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_porter_that_dies_at_any_point_loses_nothing_and_does_nothing_twice() {
    let world = KillWorld::new("sqlite:ledger.db", "in-process").await;
    let mut kills = 0;
    for visit in visits() {
        for point in POINTS_OF_PRODUCERS.into_iter().chain(POINTS_OF_WORKERS) {
            // A start rescues once, and what waits for one moment is promoted at once.
            let visits = if ["rescued", "promoted"].contains(&point) { 1..=1 } else { visit..=visit + 1 };
            for visit in visits {
                match point {
                    "rescued" => kills += world.die("up", "claimed", 1, None).await,
                    "promoted" => world.effects.refuse_next(),
                    _ => {}
                }
                kills += world.die("up", point, visit, None).await;
                let up = world.house.start("up");
                world.all_done(&up.server()).await;
                assert!(up.stop().success());
            }
        }
    }
    let up = world.house.start("up");
    world.settle(&up.server()).await;
    println!("{kills} kills at named points of an embedded porter");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_and_workers_that_die_at_any_point_lose_nothing_and_do_nothing_twice() {
    let ledger = tests::postgres::fresh_database().await;
    let world = KillWorld::new(&ledger, &tests::server("NIGHTPORTER_TEST_AMQP")).await;
    let mut kills = 0;
    for visit in visits() {
        for point in POINTS_OF_PRODUCERS {
            kills += world.die("serve", point, visit, None).await;
        }
        // The producer promotes and rescues as well: it is to leave that to the worker that is to die of it.
        let points = POINTS_OF_WORKERS.into_iter().filter(|point| !["promoted", "rescued"].contains(point));
        let serve = world.house.start("serve");
        for point in points {
            kills += world.die("work", point, visit, Some(&serve.server())).await;
            // All is done before the next one dies: a job that three processes died of is given up, and rightly.
            let work = world.house.start("work");
            world.all_done(&serve.server()).await;
            assert!(work.stop().success());
        }
    }
    let (serve, _work) = (world.house.start("serve"), world.house.start("work"));
    world.settle(&serve.server()).await;
    println!("{kills} kills at named points of producers and workers");
}

/// A receiver that counts effects, and knows what was acknowledged.
struct KillWorld {
    house: House,
    /// The commits of all deliveries.
    sent: Mutex<BTreeSet<String>>,
    /// The commits of the deliveries that were answered with a 2xx.
    acknowledged: Mutex<BTreeSet<String>>,
    /// The message ids that brought each commit: more than one is an effect that happened twice.
    effects: Effects,
}

impl KillWorld {
    async fn new(ledger: &str, broker: &str) -> Self {
        let effects = Effects::default();
        let receiver = receive(effects.clone()).await;
        let house = House::new(&configuration(ledger, broker, receiver));
        Self { house, sent: Mutex::default(), acknowledged: Mutex::default(), effects }
    }

    /// Has a role die at the nth visit of a point, by deliveries through its own door or another's: one kill.
    async fn die(&self, role: &str, point: &str, visit: usize, door: Option<&str>) -> usize {
        let mut dying = self.house.start_to_end(role, &[("NIGHTPORTER_KILL_AT", &format!("{point}:{visit}"))]);
        let deadline = Instant::now() + Duration::from_mins(2);
        let status = loop {
            if let Some(status) = dying.ended() {
                break status;
            }
            assert!(Instant::now() < deadline, "`{role}` never came to `{point}` for the {visit}. time");
            match door.map(str::to_owned).or_else(|| dying.server()) {
                // One at a time, so that each is a commit, a bell and a claim of its own.
                Some(door) => self.deliver(&door, self.next_commit()).await,
                None => tokio::task::yield_now().await,
            }
        };
        assert_eq!(status.signal(), Some(9), "`{role}` ended otherwise than by our hand at `{point}`");
        1
    }

    fn next_commit(&self) -> String {
        format!("{:040x}", self.sent.lock().unwrap().len() + 0xf_0000)
    }

    /// Waits until everything that was acknowledged has had its effect.
    async fn all_done(&self, door: &str) {
        let unanswered: Vec<String> = {
            let acknowledged = self.acknowledged.lock().unwrap();
            self.sent.lock().unwrap().difference(&acknowledged).cloned().collect()
        };
        for commit in unanswered {
            self.deliver(door, commit).await; // as a sender delivers again what was not answered
        }
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        for commit in &acknowledged {
            let done = async || self.effects.has(commit).then_some(());
            eventually(&format!("{commit}, which was acknowledged, is done"), done).await;
        }
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
        self.sent.lock().unwrap().insert(commit.clone());
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
        self.all_done(door).await;
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        let effects = self.effects.seen.lock().unwrap();
        let twice: Vec<_> = effects.iter().filter(|(_, ids)| ids.len() > 1).collect();
        assert!(twice.is_empty(), "done twice: {twice:?}");
        let done: BTreeSet<String> = effects.keys().cloned().collect();
        assert_eq!(done, acknowledged, "the acknowledged set is exactly the completed set");
        println!("{} acknowledged, {} done, none twice", acknowledged.len(), effects.len());
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
lease = "3s"
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

/// What came to the receiver.
#[derive(Clone, Default)]
struct Effects {
    /// The message ids that brought each commit.
    seen: Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>,
    refuses: Arc<AtomicBool>,
}

impl Effects {
    fn refuse_next(&self) {
        self.refuses.store(true, Ordering::SeqCst);
    }

    fn has(&self, commit: &str) -> bool {
        self.seen.lock().unwrap().contains_key(commit)
    }
}

async fn receive(effects: Effects) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", post(note)).with_state(effects);
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn note(State(effects): State<Effects>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if effects.refuses.swap(false, Ordering::SeqCst) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    let commit = body["data"]["text"].as_str().unwrap().to_owned();
    let id = headers["webhook-id"].to_str().unwrap().to_owned();
    effects.seen.lock().unwrap().entry(commit).or_default().insert(id);
    StatusCode::NO_CONTENT
}
