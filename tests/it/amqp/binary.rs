//! The built binary and other programs: it dies between any two things that it does for them, and both are done.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use chrono::Utc;
use producer::source_type;
use producer::sources::signed_sample;
use serde_json::{Value, json};
use tests::binary::House;
use tests::porter::eventually;
use tests::program::Program;
use tests::server;
use uuid::Uuid;

const SECRET: &str = "a-secret-of-the-source";
const TOKEN: &str = "not a secret not a secret";

fn configuration(ledger: &str, broker: &str, name: &str, amqp: &str) -> String {
    format!(
        r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
token = "{TOKEN}"
[queue]
ledger = "{ledger}"
broker = "{broker}"
[sources.github]
secrets = ["{SECRET}"]
[amqp]
url = "{amqp}"
[amqp.jobs]
queue = "{name}"
kinds = ["noop"]
[amqp.announcements]
exchange = "{name}"
"#
    )
}

/// A house with its own inbox and exchange.
fn house(ledger: &str, broker: &str) -> (House, String) {
    let name = format!("test-{}", Uuid::new_v4());
    let config = configuration(ledger, broker, &name, &server("NIGHTPORTER_TEST_AMQP"));
    (House::new(&config), name)
}

/// Posts a push under this delivery id, as GitHub would, until it is taken.
async fn push(door: &str, nonce: Uuid) -> bool {
    let github = source_type("github").unwrap();
    let sample = signed_sample(github, "push", &[], &SECRET.into(), nonce, Utc::now()).unwrap();
    let request = worker::world::http_client().post(format!("{door}/webhooks/github"));
    let sent = request.headers(sample.headers).body(sample.body).send().await;
    sent.is_ok_and(|answer| answer.status().is_success())
}

/// The jobs that were asked for, by what they say.
async fn jobs(operators: &str) -> Vec<String> {
    let request = worker::world::http_client().get(format!("{operators}/api/v1/jobs?limit=500")).bearer_auth(TOKEN);
    let jobs: Vec<Value> = request.send().await.unwrap().json().await.unwrap();
    jobs.iter().map(|job| job["args"]["message"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Starts a role that dies at a point, by what is done meanwhile.
async fn die(house: &House, role: &str, point: &str, mut meanwhile: impl AsyncFnMut(Option<String>)) {
    let mut dying = house.start_to_end(role, &[("NIGHTPORTER_KILL_AT", &format!("{point}:1"))]);
    let deadline = Instant::now() + Duration::from_mins(2);
    let status = loop {
        if let Some(status) = dying.ended() {
            break status;
        }
        assert!(Instant::now() < deadline, "`{role}` never came to `{point}`");
        meanwhile(dying.server()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(status.signal(), Some(9), "`{role}` ended otherwise than by our hand at `{point}`");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_porter_that_dies_at_any_point_books_each_message_once_and_announces_everything() {
    let (house, name) = house("sqlite:book.db", "in-process");
    dies_at_every_point(&house, "up", &name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_dies_at_any_point_books_each_message_once_and_announces_everything() {
    let ledger = tests::postgres::fresh_database().await;
    let (house, name) = house(&ledger, &server("NIGHTPORTER_TEST_AMQP"));
    dies_at_every_point(&house, "serve", &name).await;
}

async fn dies_at_every_point(house: &House, role: &str, name: &str) {
    let program = Program::connect().await;
    let first = house.start(role); // makes the queues, and turns announcing on
    let mut ear = program.listen(name, &["event.#"]).await;
    program.ask(name, "warm", &json!({"kind": "noop", "args": {"message": "warm"}})).await;
    let warm = async || Some(jobs(&first.operators()).await).filter(|jobs| jobs.len() == 1);
    eventually("the first message is booked", warm).await;
    assert_eq!(ear.next().await.1["deliveryid"], "id:warm");
    assert!(first.stop().success());

    program.ask(name, "m-1", &json!({"kind": "noop", "args": {"message": "booked"}})).await;
    die(house, role, "message booked", async |_| {}).await;
    program.send(name, b"wrong", lapin::BasicProperties::default()).await;
    for point in ["message refused", "message laid aside"] {
        die(house, role, point, async |_| {}).await;
    }
    let mut pushed = Vec::new();
    for point in ["published", "announced"] {
        die(house, role, point, async |door| {
            let Some(door) = door else { return };
            let nonce = Uuid::new_v4();
            if push(&door, nonce).await {
                pushed.push(nonce);
            }
        })
        .await;
    }
    let last = house.start(role);
    pushed.push(Uuid::new_v4());
    assert!(push(&last.server(), *pushed.last().unwrap()).await);
    program.ask(name, "m-2", &json!({"kind": "noop", "args": {"message": "last"}})).await;
    let all = async || Some(jobs(&last.operators()).await).filter(|jobs| jobs.contains(&"last".to_owned()));
    let mut found = eventually("the last message is booked", all).await;
    found.sort_unstable();
    assert_eq!(found, ["booked", "last", "warm"], "each once");
    let aside = program.take(&format!("{name}.dead")).await;
    assert_eq!(aside.data, b"wrong");

    let ids = pushed.iter().map(ToString::to_string);
    let mut missing: BTreeSet<String> = ids.chain(["id:m-1", "id:m-2"].map(str::to_owned)).collect();
    let (mut known, mut order) = (BTreeSet::new(), Vec::new());
    while !missing.is_empty() {
        let (_, event) = ear.next().await;
        missing.remove(event["deliveryid"].as_str().unwrap());
        if known.insert(event["id"].to_string()) && event["source"] == "github" {
            order.push(event["sequence"].to_string());
        }
    }
    assert!(order.is_sorted_by(|a, b| a < b), "{order:?}");
    assert!(last.stop().success());
    println!("5 kills; {} pushes, all announced", pushed.len());
    for queue in [name.to_owned(), format!("{name}.dead")] {
        program.delete(&queue).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_other_programs_that_is_away_holds_up_nothing_and_is_said() {
    let config = configuration("sqlite:book.db", "in-process", "test-nobody", "amqp://guest:guest@127.0.0.1:1/%2f");
    let house = House::new(&config);
    let up = house.start("up");
    assert!(push(&up.server(), Uuid::new_v4()).await);
    let get = async |address: String| worker::world::http_client().get(address).send().await.unwrap();
    assert_eq!(get(format!("{}/readyz", up.server())).await.text().await.unwrap(), "yes\n");
    let told: Value = get(format!("{}/readyz", up.operators())).await.json().await.unwrap();
    assert_eq!((&told["ready"], &told["programs"]), (&json!(true), &json!("away")));
    assert_eq!(told["reasons"].as_array().unwrap().len(), 1, "{told}");
    assert!(told["reasons"][0].as_str().unwrap().contains("[amqp]"), "{told}");
    let metrics = get(format!("{}/metrics", up.operators())).await.text().await.unwrap();
    assert!(metrics.contains("nightporter_programs_up 0\n"), "{metrics}");
    let doctor = house.run(&["doctor"]);
    assert!(doctor.stdout.contains("other programs"), "{}", doctor.stdout);
    assert!(up.stop().success());
}

#[test]
fn check_finds_mistakes_in_every_key_of_amqp() {
    let wrong = |amqp: &str| House::new(amqp).run(&["check"]).exits(2).stdout;
    for (config, line, said) in [
        ("[amqp]\n", 1, "`url` is missing: the broker of [queue] is in this process"),
        ("[amqp]\nurl = \"amqp://h/%2f\"\n", 1, "nothing is taken in and nothing is announced"),
        ("[amqp]\nurl = \"http://h\"\n[amqp.announcements]\n", 2, "no address of an AMQP server"),
        ("[amqp]\nurl = \"amqp://h/%2f\"\n[amqp.jobs]\n", 3, "`kinds` is missing"),
        ("[amqp]\nurl = \"amqp://h/%2f\"\n[amqp.jobs]\nkinds = []\n", 4, "no kind of job may be asked for"),
        ("[amqp]\nurl = \"amqp://h/%2f\"\n[amqp.jobs]\nkinds = [\"bakcup\"]\n", 4, "did you mean `backup`?"),
        (
            "[amqp]\nurl = \"amqp://h/%2f\"\n[amqp.jobs]\nkinds = [\"noop\"]\nqueue = \"nightporter.a\"\n",
            5,
            "for bells alone",
        ),
        ("[amqp]\nurl = \"amqp://h/%2f\"\n[amqp.announcements]\nexchange = \"amq.topic\"\n", 4, "the broker's own"),
        ("[amqp]\nurl = \"amqp://h/%2f\"\n[amqp.announcements]\nbodys = true\n", 4, "did you mean `bodies`?"),
    ] {
        let found = wrong(config);
        assert!(found.contains(said) && found.contains(&format!("nightporter.toml:{line}:")), "{config}\n{found}");
    }
    let literal = "[amqp]\nurl = \"amqp://a:b@h/%2f\"\n[amqp.announcements]\nbodies = true\n";
    assert!(House::new(literal).run(&["check"]).exits(0).stdout.contains("a secret stands in the file"));
}
