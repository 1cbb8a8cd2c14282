//! `nightporter bench`, with the built binary and real servers.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection as Amqp, ConnectionProperties};
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tests::binary::House;

fn names(report: &Value) -> Vec<&str> {
    report["scenarios"].as_array().unwrap().iter().map(|scenario| scenario["name"].as_str().unwrap()).collect()
}

#[test]
fn bench_measures_sqlite_without_any_server_or_configuration() {
    let house = House::new("");
    let report = house.run(&["bench", "--jobs", "300", "--rounds", "1", "--finished", "10", "--json"]).exits(0).json();
    assert_eq!(names(&report), ["raw", "jobs", "enqueue", "drain, 1 worker", "pickup"]);
    for scenario in report["scenarios"].as_array().unwrap().iter().filter(|scenario| scenario["name"] != "pickup") {
        assert!(scenario["rate"].as_f64().unwrap() > 0.0, "{scenario}");
    }
    assert!(report["scenarios"][4]["p99_millis"].as_f64().is_some());
    assert_eq!(report["servers"]["ledger"], "SQLite, journal_mode wal, synchronous full");
}

#[tokio::test]
async fn bench_leaves_nothing_behind_at_the_servers() {
    let (ledger, broker) = (tests::server("NIGHTPORTER_TEST_POSTGRES"), tests::server("NIGHTPORTER_TEST_AMQP"));
    let house = House::new("");
    let arguments = ["bench", "jobs", "drain", "pinned", "--jobs", "300", "--rounds", "1", "--seconds", "3", "--json"];
    let servers = ["--ledger", &ledger, "--broker", &broker];
    let report = house.run(&[&arguments[..], &servers[..]].concat()).exits(0).json();
    assert_eq!(names(&report)[..4], ["raw", "jobs", "drain, 1 worker", "drain, 3 workers"]);
    assert_eq!(names(&report).len(), 10);
    assert_eq!(report["servers"]["synchronous_commit"], "on");
    let mut server = PgConnection::connect(&ledger).await.unwrap();
    let left = "select count(*) from pg_database where datname like 'nightporter\\_bench\\_%'";
    assert_eq!(sqlx::query_scalar::<_, i64>(left).fetch_one(&mut server).await.unwrap(), 0);
    let rabbit = Amqp::connect(&broker, ConnectionProperties::default()).await.unwrap();
    let channel = rabbit.create_channel().await.unwrap();
    let only_look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let there = channel.queue_declare("nightporter.bench".into(), only_look, FieldTable::default()).await;
    assert!(there.is_err(), "the queue is left at the broker");
}

#[test]
fn bench_says_what_it_needs_where_it_may_not_make_a_database() {
    let house = House::new("");
    let nobody = "postgres://porter:geheim@127.0.0.1:9/postgres";
    let ended = house.run(&["bench", "--ledger", nobody]).exits(8);
    assert!(ended.stderr.contains("may create databases") && !ended.stderr.contains("geheim"), "{}", ended.stderr);
}
