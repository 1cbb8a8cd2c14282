//! A machine is lost with its embedded ledger, and another one goes on from the copies in a store. Nothing that was
//! acknowledged before the last copy is lost or done twice, and what the lost machine may have done since asks first.

mod alarms;
mod damage;
mod held;
mod killed;
mod kills;
mod ledger;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use chrono::Utc;
use producer::source_type;
use producer::sources::signed_sample;
use serde_json::Value;
use tempfile::TempDir;
use tests::binary::{House, Running};
use tests::porter::eventually;
use tests::s3::{Bucket, CREDENTIALS};
use uuid::Uuid;

const SECRET: &str = "not a secret";
/// 24 bytes in base64.
const TEAM_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A receiver of effects, and a configuration that every machine of a team is given.
struct Team {
    effects: Effects,
    configuration: String,
}

impl Team {
    /// One whose ledger is copied to this store; `more` stands in the store's table.
    async fn copying_to(store: &str, more: &str) -> Self {
        let effects = Effects::default();
        let receiver = receive(effects.clone()).await;
        let configuration = format!(
            r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
token = "{SECRET} {SECRET}"
[queue]
ledger = "sqlite:book.db"
copy_to = "safe"
copy_every = "1s"
[worker]
queues = {{ default = 1 }}
grace = "0s"
[stores.safe]
url = "{store}"
{more}
[sources.github]
secrets = ["{SECRET}"]
[channels.team]
webhook = {{ url = "http://{receiver}/", secret = "{TEAM_SECRET}" }}
[[routes]]
on = "github.push"
run = {{ job = "notify", with = {{ channel = "team", text = "{{{{ event.git.sha }}}}" }} }}
"#
        );
        Self { effects, configuration }
    }

    /// An empty machine with the configuration.
    fn machine(&self) -> House {
        let token = format!("{SECRET} {SECRET}");
        House::new(&self.configuration).with_environment(&[("NIGHTPORTER_TOKEN", &token)])
    }

    /// Waits until a copy shows this delivery, and no open job.
    async fn copied(&self, delivery: &str) {
        let other = self.machine();
        eventually("the delivery is in a copy", async || {
            let told = other.run(&["recover", "--dry-run", "--json"]);
            if told.code != 0 {
                return None;
            }
            let told = told.json();
            let is_there = told["sources"][0]["last"]["delivery_id"] == delivery;
            (is_there && told["open"].as_array()?.is_empty()).then_some(())
        })
        .await;
        assert!(!other.path("book.db").exists(), "a dry run leaves nothing");
    }

    /// Waits until these commits have had their effect, and none had it twice.
    async fn all_done(&self, commits: &[String]) {
        for commit in commits {
            let done = async || self.effects.has(commit).then_some(());
            eventually(&format!("{commit} is done"), done).await;
        }
        assert_eq!(self.effects.twice(), [""; 0], "done twice");
    }
}

fn commits(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| format!("{number:040x}")).collect()
}

/// The id of the delivery that tells of a commit.
fn delivery_of(commit: &str) -> Uuid {
    Uuid::from_u128(u128::from_str_radix(&commit[8..], 16).unwrap())
}

/// Delivers a push; the answer, if there is one.
async fn deliver(door: &str, commit: &str) -> Option<(StatusCode, Value)> {
    let github = source_type("github").unwrap();
    let changes = [("after".to_owned(), commit.to_owned())];
    let sample = signed_sample(github, "push", &changes, &SECRET.into(), delivery_of(commit), Utc::now()).unwrap();
    let http = worker::world::http_client();
    let sent = http.post(format!("{door}/webhooks/github")).headers(sample.headers).body(sample.body).send().await;
    let answer = sent.ok()?;
    Some((answer.status(), answer.json().await.ok()?))
}

async fn deliver_all(up: &Running, commits: &[String]) {
    for commit in commits {
        let (status, _) = deliver(&up.server(), commit).await.expect("an answer");
        assert!(status.is_success(), "{status}");
    }
}

/// What came to the receiver: the message ids that brought each commit.
#[derive(Clone, Default)]
struct Effects(Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>);

impl Effects {
    fn has(&self, commit: &str) -> bool {
        self.0.lock().unwrap().contains_key(commit)
    }

    fn twice(&self) -> Vec<String> {
        let seen = self.0.lock().unwrap();
        seen.iter().filter(|(_, ids)| ids.len() > 1).map(|(commit, _)| commit.clone()).collect()
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
    let body: Value = serde_json::from_slice(&body).unwrap();
    let commit = body["data"]["text"].as_str().unwrap().to_owned();
    let id = headers["webhook-id"].to_str().unwrap().to_owned();
    effects.0.lock().unwrap().entry(commit).or_default().insert(id);
    StatusCode::NO_CONTENT
}

/// A key of `age-keygen`: the file's text and the recipient in it.
fn age_key() -> (String, String) {
    let made = std::process::Command::new("age-keygen").output().expect("tests/servers/install brings age");
    let text = String::from_utf8(made.stdout).unwrap();
    let recipient = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned();
    (text, recipient)
}

/// The whole way: work, the copy, the loss, another machine, and the same deliveries again.
async fn is_lost_and_recovered(team: &Team) {
    let before = commits(1..21);
    let lost = team.machine();
    let up = lost.start("up");
    deliver_all(&up, &before).await;
    team.all_done(&before).await;
    let newest = delivery_of(&before[19]).to_string();
    team.copied(&newest).await;
    up.kill();
    drop(lost);

    let machine = team.machine();
    let refused = machine.run(&["up"]).exits(5);
    assert!(refused.stderr.contains("nightporter recover"), "{}", refused.stderr);
    assert!(!machine.path("book.db").exists(), "an empty ledger must not take the place of the copies");
    let told = machine.run(&["recover", "--json"]).exits(0).json();
    assert_eq!(told["sources"][0]["last"]["delivery_id"].as_str(), Some(newest.as_str()), "{told}");
    assert!(told["open"].as_array().unwrap().is_empty() && told["claimed_line"].as_u64() > told["line"].as_u64());
    let again = machine.run(&["recover"]).exits(5);
    assert!(again.stderr.contains("nothing is recovered over it"), "{}", again.stderr);
    let left: Vec<_> = std::fs::read_dir(machine.path("")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("recovering")), "{left:?}");

    let up = machine.start("up");
    for commit in &before {
        let (status, answer) = deliver(&up.server(), commit).await.unwrap();
        assert_eq!((status, &answer["duplicate"]), (StatusCode::OK, &Value::Bool(true)), "{answer}");
    }
    let after = commits(21..26);
    deliver_all(&up, &after).await;
    team.all_done(&[before, after].concat()).await;
    let audit = machine.run(&["audit", "list", "--server", &up.operators(), "--json"]).exits(0).stdout;
    assert!(audit.contains("recover"), "{audit}");
    assert!(up.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_machine_is_recovered_from_a_folder_and_nothing_is_lost_or_done_twice() {
    let safe = TempDir::new().unwrap();
    is_lost_and_recovered(&Team::copying_to(&format!("file:{}", safe.path().display()), "").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_machine_is_recovered_from_encrypted_copies_in_s3() {
    let (bucket, (key, recipient)) = (Bucket::on_server().await, age_key());
    let key = key.lines().find(|line| line.starts_with("AGE-SECRET-KEY")).unwrap();
    let more = format!("credentials = \"{CREDENTIALS}\"\nencrypt_to = [\"{recipient}\"]\nidentity = \"{key}\"");
    let team = Team::copying_to(&bucket.store_url(), &more).await;
    is_lost_and_recovered(&team).await;
    // Without the key nothing is recovered, and nothing is called damaged.
    let keyless = House::new(&team.configuration.replace(&format!("identity = \"{key}\""), ""));
    let refused = keyless.run(&["recover", "--dry-run"]).exits(1);
    assert!(refused.stderr.contains("`identity`"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_last_before_an_orderly_end_is_in_a_copy() {
    let safe = TempDir::new().unwrap();
    let mut team = Team::copying_to(&format!("file:{}", safe.path().display()), "").await;
    // One copy at the start, and the next is far away.
    team.configuration = team.configuration.replace("copy_every = \"1s\"", "copy_every = \"1h\"");
    let machine = team.machine();
    let up = machine.start("up");
    deliver_all(&up, &commits(1..2)).await;
    team.all_done(&commits(1..2)).await;
    assert!(up.stop().success());
    let told = team.machine().run(&["recover", "--dry-run", "--json"]).exits(0).json();
    assert_eq!(told["sources"][0]["last"]["delivery_id"], delivery_of(&commits(1..2)[0]).to_string(), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_porters_from_one_ledger_the_later_one_is_copied_and_the_other_shouts() {
    let safe = TempDir::new().unwrap();
    let team = Team::copying_to(&format!("file:{}", safe.path().display()), "").await;
    let (old, new) = (team.machine(), team.machine());
    let first = old.start("up");
    deliver_all(&first, &commits(1..3)).await;
    team.copied(&delivery_of(&commits(2..3)[0]).to_string()).await;
    // It only seemed to be lost.
    new.run(&["recover", "--from", "safe"]).exits(0);
    let second = new.start("up");
    eventually("the old one shouts", async || superseded(&first).await.then_some(())).await;
    deliver_all(&second, &commits(3..5)).await;
    team.copied(&delivery_of(&commits(4..5)[0]).to_string()).await;
    // Started anew, it does not take the word back by itself.
    let in_use = old.run(&["recover", "--this-ledger"]).exits(5);
    assert!(in_use.stderr.contains("another process uses the ledger"), "{}", in_use.stderr);
    assert!(first.stop().success());
    let first = old.start("up");
    eventually("the old one shouts again", async || superseded(&first).await.then_some(())).await;
    assert!(!superseded(&second).await);
    assert!(first.stop().success());
    let log = std::fs::read_to_string(old.path("up.log")).unwrap();
    assert!(log.contains("this ledger is copied no more"), "{log}");
    // A person decides that it is the one.
    old.run(&["recover", "--this-ledger", "--json"]).exits(0);
    let first = old.start("up");
    eventually("the other one shouts", async || superseded(&second).await.then_some(())).await;
    assert!(!superseded(&first).await);
}

async fn superseded(up: &Running) -> bool {
    let metrics = worker::world::http_client().get(format!("{}/metrics", up.operators())).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.contains("nightporter_ledger_copy_age_seconds"), "{metrics}");
    metrics.lines().any(|line| line == "nightporter_ledger_copy_superseded 1")
}

#[test]
fn what_cannot_be_recovered_is_said_with_what_to_do() {
    let empty = House::new("[stores.safe]\nurl = \"file:safe\"\n");
    let unsaid = empty.run(&["recover"]).exits(2);
    assert!(unsaid.stderr.contains("--from STORE"), "{}", unsaid.stderr);
    let nothing = empty.run(&["recover", "--from", "safe"]).exits(3);
    assert!(nothing.stderr.contains("has no copy of a ledger"), "{}", nothing.stderr);
    assert!(empty.run(&["recover", "--from", "saef"]).exits(3).stderr.contains("did you mean `safe`?"));
    let server = House::new(
        "[queue]\nledger = \"postgres://np@127.0.0.1:1/np\"\n[operators]\ntoken = \"not a secret at all\"\n[stores.safe]\nurl = \"file:safe\"\n",
    );
    let refused = server.run(&["recover", "--from", "safe"]).exits(2);
    assert!(refused.stderr.contains("docs/recover.md"), "{}", refused.stderr);
    let wrong = House::new("[queue]\ncopy_to = \"saef\"\ncopy_every = \"2h\"\n[stores.safe]\nurl = \"file:safe\"\n");
    let told = wrong.run(&["check"]).exits(2).stdout;
    assert!(told.contains("2:11: error: queue.copy_to") && told.contains("did you mean `safe`?"), "{told}");
    assert!(told.contains("3:14: error: queue.copy_every"), "{told}");
}
