//! `/readyz` of the built binary while what it needs is away: who is ready still, and what is said to operators.

use serde_json::Value;
use tests::bell_world::{address_of, through};
use tests::binary::{House, Running};
use tests::porter::eventually;
use tests::proxy::{Line, Proxy};
use tests::server;
use worker::world::http_client;

/// What a process answers: to everybody, and to operators with the status.
async fn told(process: &Running) -> (u16, Value) {
    let answer = http_client().get(format!("{}/readyz", process.operators())).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Waits until a process says this of the ledger; what it says then.
async fn says_of_the_ledger(process: &Running, word: &str) -> (u16, Value) {
    eventually(&format!("the ledger is {word}"), async || {
        let (status, told) = told(process).await;
        (told["ledger"] == word).then_some((status, told))
    })
    .await
}

fn reason(told: &Value) -> &str {
    assert_eq!(told["reasons"].as_array().unwrap().len(), 1, "{told}");
    told["reasons"][0].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_ledger_a_worker_is_not_ready_and_a_producer_is_while_it_can_spool() {
    let (ledger, broker) = (tests::postgres::fresh_database().await, server("NIGHTPORTER_TEST_AMQP"));
    let (to_ledger, to_broker) = (Proxy::to(address_of(&ledger)).await, Proxy::to(address_of(&broker)).await);
    let house = House::new(&format!(
        r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
token = "not a secret not a secret"
[queue]
ledger = "{}"
broker = "{}"
[worker]
listen = "127.0.0.1:0"
[sources.github]
secrets = ["a-secret-of-the-source"]
"#,
        through(&to_ledger, &ledger, ""),
        through(&to_broker, &broker, "?heartbeat=1")
    ));
    let (serve, work) = (house.start("serve"), house.start("work"));
    for process in [&serve, &work] {
        let (status, told) = says_of_the_ledger(process, "well").await;
        assert_eq!((status, &told["ready"]), (200, &Value::Bool(true)), "{told}");
    }
    to_ledger.set(Line::Silent);
    let (status, told) = says_of_the_ledger(&work, "away").await;
    assert_eq!((status, &told["ready"]), (503, &Value::Bool(false)), "{told}");
    assert!(reason(&told).contains("no job can be claimed"), "{told}");
    let (status, told) = says_of_the_ledger(&serve, "away").await;
    assert_eq!((status, &told["deliveries"]), (200, &"accepted".into()), "{told}");
    assert!(reason(&told).contains("go to the spool"), "{told}");
    let public = http_client().get(format!("{}/readyz", serve.server())).send().await.unwrap();
    assert_eq!(public.text().await.unwrap(), "yes\n");
    to_ledger.set(Line::Good);
    says_of_the_ledger(&work, "well").await;

    to_broker.set(Line::Silent);
    let (status, told) = eventually("the broker is missed", async || {
        let (status, told) = self::told(&work).await;
        (told["broker"] == "away").then_some((status, told))
    })
    .await;
    assert_eq!((status, &told["ready"]), (200, &Value::Bool(true)), "{told}");
    assert!(reason(&told).contains("jobs are found by polling"), "{told}");
}
