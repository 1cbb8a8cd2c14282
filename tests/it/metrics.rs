//! `/metrics` of the built binary: what it counts, that its series are bounded, and that its page says what there is.

use std::collections::BTreeSet;
use std::process::Command;

use chrono::Utc;
use producer::source_type;
use producer::sources::signed_sample;
use tests::binary::{House, Running};
use tests::porter::eventually;
use uuid::Uuid;

const SECRET: &str = "a-secret-of-the-source";

/// With something of everything that is counted.
const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
[queue]
ledger = "sqlite:book.db"
copy_to = "disk"
[sources.github]
secrets = ["a-secret-of-the-source"]
[[routes]]
on = "github.push"
run = { job = "noop", with = { message = "hello" } }
[schedules.yearly]
cron = "0 0 29 2 *"
timezone = "UTC"
run = { job = "noop", with = { message = "a leap year" } }
[databases.main]
url = "sqlite:app.db"
[stores.disk]
url = "file:backups"
[amqp]
url = "AMQP"
[amqp.jobs]
queue = "NAME"
kinds = ["noop"]
[amqp.announcements]
exchange = "NAME"
"#;

/// The configuration, with a queue and an exchange of its own.
fn configuration() -> (String, String) {
    let name = format!("test-metrics-{}", Uuid::new_v4());
    (CONFIG.replace("AMQP", &tests::server("NIGHTPORTER_TEST_AMQP")).replace("NAME", &name), name)
}

async fn scraped(up: &Running) -> String {
    let answer = worker::world::http_client().get(format!("{}/metrics", up.operators())).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    answer.text().await.unwrap()
}

/// Posts a push that nobody has sent before; what is answered.
async fn push(up: &Running, secret: &str) -> u16 {
    let github = source_type("github").unwrap();
    let sample = signed_sample(github, "push", &[], &secret.into(), Uuid::new_v4(), Utc::now()).unwrap();
    let request = worker::world::http_client().post(format!("{}/webhooks/github", up.server()));
    request.headers(sample.headers).body(sample.body).send().await.unwrap().status().as_u16()
}

/// The names of the metrics, without the endings by which the format marks counters.
fn names(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    types.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_counted_and_no_id_is_a_label() {
    let (config, name) = configuration();
    let house = House::new(&config);
    let rows = "create table t (a); insert into t values (1)";
    assert!(Command::new("sqlite3").arg(house.path("app.db")).arg(rows).status().expect("sqlite3").success());
    let up = house.start("up");
    back_up(&house, &up);
    let program = tests::program::Program::connect().await;
    program.send(&name, b"wrong", lapin::BasicProperties::default()).await;
    assert_eq!(push(&up, SECRET).await, 202);
    assert_eq!(push(&up, "another").await, 401);
    let done = |text: &str, jobs: u32| {
        text.contains(&format!("attempts_total{{kind=\"noop\",outcome=\"completed\"}} {jobs}\n"))
    };
    let whole = |text: &String| {
        let told = text.contains("announcements_total 3\n") && text.contains("messages_total{result=\"refused\"} 1\n");
        done(text, 1) && told && text.contains("newest_backup_age_seconds{")
    };
    let first = eventually("all is counted", async || Some(scraped(&up).await).filter(whole)).await;
    for line in [
        "nightporter_ledger_up 1",
        "nightporter_broker_up 1",
        "nightporter_deliveries_total{source=\"github\",result=\"booked\"} 1",
        "nightporter_deliveries_total{source=\"github\",result=\"rejected\"} 1",
        "nightporter_deliveries_rejected_total{source=\"github\",reason=\"mismatch\"} 1",
        "nightporter_deliveries_in_spool 0",
        "nightporter_jobs{queue=\"default\",state=\"available\"} 0",
        "nightporter_oldest_available_job_seconds{queue=\"default\"} 0.0",
        "nightporter_attempt_duration_seconds_count{kind=\"noop\"} 1",
        "nightporter_attempts_running{queue=\"default\"} 0",
        "nightporter_ledger_copy_superseded 0",
        "nightporter_schedule_times_total{schedule=\"yearly\",outcome=\"missed\"} 0",
        "nightporter_store_up{store=\"disk\"} 1",
        "nightporter_newest_proven_backup_age_seconds{database=\"main\",store=\"disk\"} inf",
        "nightporter_messages_total{result=\"booked\"} 0",
        "nightporter_announcements_failed_total 0",
        "nightporter_programs_up 1",
    ] {
        assert!(first.lines().any(|known| known == line), "{line} is not in:\n{first}");
    }
    for _ in 0..20 {
        assert_eq!(push(&up, SECRET).await, 202);
    }
    let last =
        eventually("all jobs are counted", async || Some(scraped(&up).await).filter(|text| done(text, 21))).await;
    assert_eq!(last.lines().count(), first.lines().count(), "ids have become labels:\n{last}");
    assert!(!last.contains(SECRET));
    assert_eq!(rows_of_the_page(), names(&last), "docs/metrics.md names every metric and no other");
}

/// The value of a metric.
fn value_of(text: &str, metric: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{metric} is not in:\n{text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_has_an_age() {
    let (config, _) = configuration();
    let house = House::new(&config.replace(&tests::server("NIGHTPORTER_TEST_AMQP"), "amqp://127.0.0.1:1"));
    let up = house.start("up");
    let (server, token) = (up.operators(), house.path("book.db.token"));
    let to = ["--server", &server, "--token-file", token.to_str().unwrap(), "--reason", "a test"];
    house.run(&[&["queues", "pause", "default"], &to[..]].concat()).exits(0);
    let log = || std::fs::read_to_string(house.path("up.log")).unwrap();
    eventually("announcing is on", async || log().contains("from now on events").then_some(())).await;
    assert_eq!(push(&up, SECRET).await, 202);
    // The first scrape asks the ledger.
    let text = scraped(&up).await;
    assert!(value_of(&text, "nightporter_oldest_available_job_seconds{queue=\"default\"}") > 0.0);
    assert!(value_of(&text, "nightporter_oldest_announcement_seconds") > 0.0);
    assert!(value_of(&text, "nightporter_ledger_copy_age_seconds") > 0.0);
    assert_eq!(value_of(&text, "nightporter_programs_up").to_string(), "0");
}

/// Makes a backup of the application's database.
fn back_up(house: &House, up: &Running) {
    let with = ["--with", "database=main", "--with", "store=disk", "--reason", "a test", "--wait"];
    let (server, token) = (up.operators(), house.path("book.db.token"));
    let to = ["--server", &server, "--token-file", token.to_str().unwrap()];
    house.run(&[&["run", "backup"], &with[..], &to].concat()).exits(0);
}

/// The metrics that the page names, without those endings.
fn rows_of_the_page() -> BTreeSet<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `nightporter_")?.split(['`', '{']).next());
    let bare = |row: &str| row.trim_end_matches("_total").trim_end_matches("_info").to_owned();
    rows.map(|row| format!("nightporter_{}", bare(row))).collect()
}
