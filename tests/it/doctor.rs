//! `doctor` with the built binary: a setup that is right, one in which everything is wrong, and why jobs do not run.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tests::binary::{House, Site};
use tests::s3::{Bucket, CREDENTIALS, Door, Passage};
use tests::vercel::Vercel;
use url::Url;
use uuid::Uuid;

/// A configuration with one of everything that is looked at.
fn configuration(ledger: &str, broker: &str, database: &str, store: &str) -> String {
    format!(
        r#"
[queue]
ledger = "{ledger}"
broker = "{broker}"
[operators]
token = "${{env:TOKEN}}"
[sources.github]
secrets = ["${{env:GITHUB_SECRET}}"]
[databases.shop]
url = "{database}"
[stores.nightly]
url = "{store}"
credentials = "${{env:CREDENTIALS}}"
[channels.team]
slack = "${{env:SLACK}}"
[credentials.app]
to = ["https://app.example.com"]
headers = {{ authorization = "${{env:GITHUB_SECRET}}" }}
[heartbeat]
url = "${{env:GITHUB_SECRET}}"
"#
    )
}

/// What was said of a subject: the verdicts and the words.
fn said(report: &Value, subject: &str) -> Vec<(String, String)> {
    let lines = report.as_array().unwrap().iter().filter(|line| line["subject"] == subject);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    lines.map(|line| (text(&line["verdict"]), text(&line["text"]))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setup_that_is_right_is_found_right_and_left_as_it_was() {
    let (ledger, shop) = (tests::postgres::fresh_database().await, tests::postgres::fresh_database().await);
    let bucket = Bucket::on_server().await;
    let broker = tests::server("NIGHTPORTER_TEST_AMQP");
    let vercel = format!(
        "[connections.vercel]\ntoken = \"${{env:VERCEL}}\"\nteam = \"acme\"\napi_url = \"{}\"\n",
        Vercel::default().start().await
    );
    let config = configuration(&ledger, &broker, &shop, &bucket.store_url()) + &vercel;
    let house = House::new(&config).with_environment(&[
        ("TOKEN", "a-token-of-the-operators"),
        ("GITHUB_SECRET", "a-secret"),
        ("CREDENTIALS", CREDENTIALS),
        ("SLACK", "https://hooks.slack.example/services/x"),
        ("VERCEL", tests::vercel::TOKEN),
    ]);
    let report = house.run(&["doctor", "--json"]).exits(0).json();
    for subject in [
        "ledger",
        "broker",
        "clock",
        "source github",
        "database shop",
        "store nightly",
        "channel team",
        "credentials app",
        "heartbeat",
        "vercel",
    ] {
        let found = said(&report, subject);
        assert!(!found.is_empty() && found.iter().all(|(verdict, _)| verdict == "well"), "{subject}: {found:?}");
    }
    let words = house.run(&["doctor"]).exits(0).stdout;
    assert!(words.contains("pg_dump (PostgreSQL)") && !words.contains("a-secret"), "{words}");
    let mut connection = PgConnection::connect(&ledger).await.unwrap();
    let made: bool = sqlx::query_scalar("select to_regnamespace('nightporter') is not null")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert!(!made, "looking made the ledger's schema");
    let left = worker::world::http_client().get(format!("{}/{}", bucket.endpoint, bucket.name)).send().await.unwrap();
    let left = left.text().await.unwrap();
    assert!(!left.contains("<Key>"), "the probe stayed: {left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_is_wrong_is_said_at_once_with_what_to_do() {
    let shop = tests::postgres::fresh_database().await;
    let bucket = Bucket::on_server().await;
    let forgets = Door::before(&bucket.endpoint, |_, _| Passage::Unconditional).await;
    let store = bucket.store_url_through(&forgets.endpoint);
    let config = configuration("sqlite:book.db", "in-process", &weak_user_of(&shop).await, &store);
    let house = House::new(&config).with_environment(&[
        ("TOKEN", "a-token-of-the-operators"),
        ("CREDENTIALS", CREDENTIALS),
        ("SLACK", "https://hooks.slack.example/services/x"),
    ]);
    let ended = house.run(&["doctor", "--json"]).exits(1);
    assert!(ended.stderr.contains("6 things are wrong"), "{}", ended.stderr);
    let report = ended.json();
    let has = |subject: &str, verdict: &str, words: &str| {
        let found = said(&report, subject);
        assert!(found.iter().any(|(said, text)| said == verdict && text.contains(words)), "{subject}: {found:?}");
    };
    has("source github", "ill", "GITHUB_SECRET");
    has("credentials app", "ill", "nothing can be called with them");
    has("heartbeat", "ill", "GITHUB_SECRET");
    has("database shop", "ill", "cannot read 1 tables or sequences, such as secrets");
    has("database shop", "ill", "row security hides rows of 1 tables");
    has("database shop", "doubtful", "CREATEDB");
    has("store nightly", "ill", "If-None-Match");
    has("ledger", "well", "the first start makes it");
    assert!(!house.path("book.db").exists(), "looking made the ledger");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_answer_is_said() {
    let store = "s3://bucket/x?region=us-east-1&endpoint=http://127.0.0.1:1";
    let nobody = "postgres://np:hunter2@127.0.0.1:1/x";
    let config = configuration(nobody, "amqp://np:hunter2@127.0.0.1:1/%2f", nobody, store);
    let house = House::new(&config).with_environment(&[
        ("TOKEN", "a-token-of-the-operators"),
        ("GITHUB_SECRET", "a-secret"),
        ("CREDENTIALS", CREDENTIALS),
        ("SLACK", "https://hooks.slack.example/services/x"),
    ]);
    let ended = house.run(&["doctor", "--json"]).exits(1);
    for subject in ["ledger", "broker", "database shop", "store nightly"] {
        let found = said(&ended.json(), subject);
        assert!(found.iter().any(|(verdict, _)| verdict == "ill"), "{subject}: {found:?}");
    }
    assert!(!(ended.stdout + &ended.stderr).contains("hunter2"));
}

/// The address of the database for a user who may do next to nothing in it.
async fn weak_user_of(database: &str) -> String {
    let mut connection = PgConnection::connect(database).await.unwrap();
    let user = format!("weak_{}", Uuid::new_v4().simple());
    let tables = format!(
        "create role {user} login password 'x';
         create table secrets (id integer); revoke all on secrets from public;
         create table rows (id integer); grant select on rows to {user}; alter table rows enable row level security"
    );
    connection.execute(sqlx::raw_sql(AssertSqlSafe(tables))).await.unwrap();
    let mut url = Url::parse(database).unwrap();
    url.set_username(&user).unwrap();
    url.set_password(Some("x")).unwrap();
    url.into()
}

const HOUSE: &str = r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
[queue]
ledger = "sqlite:book.db"
[worker]
queues = { default = 1 }
grace = "0s"
[runbooks.guarded]
[runbooks.guarded.jobs]
first = { job = "noop", approval = { within = "1h" } }
second = { job = "noop", needs = ["first"] }
"#;

/// What the doctor says of a job, once it says these words.
fn doctor_says(site: &Site, job: &str, words: &str) -> String {
    let mut said = String::new();
    for _ in 0..200 {
        said = site.ask(&["doctor", job]).exits(0).stdout;
        if said.contains(words) {
            return said;
        }
    }
    panic!("`{words}` is not said of the job, but: {said}");
}

#[test]
fn why_a_job_does_not_run_is_said_with_what_to_do_next() {
    let site = Site::open(HOUSE);
    let run = site.ask(&["run", "guarded", "--reason", "x", "--json"]).exits(0).json();
    let run = site.ask(&["runs", "show", run["run"].as_str().unwrap(), "--json"]).exits(0).json();
    let [first, second] = [0, 1].map(|index| run["jobs"][index]["job"].as_str().unwrap().to_owned());
    doctor_says(&site, &first, "waits for 1 more to approve it (operator or above, until");
    doctor_says(&site, &first, &format!("nightporter approvals approve {first}"));
    doctor_says(&site, &second, &format!("it needs `first`, which is pending: nightporter doctor {first}"));

    let json = site.ask(&["doctor", &first, "--json"]).exits(0);
    assert_eq!(json.json()["job"], first);
    for said in [json.stdout, site.ask(&["doctor", &first]).exits(0).stdout] {
        assert!(!said.ends_with("\n\n"), "an empty line at its end: {said:?}");
    }

    let long = site.start(&["--with", "steps=10", "--with", "step_millis=60000"]);
    doctor_says(&site, &long, "it runs: attempt 1 since");
    let waiting = site.start(&[]);
    doctor_says(&site, &waiting, "it may run; 1 jobs of the queue `default` do");
    site.ask(&["queues", "pause", "default", "--reason", "a flood"]).exits(0);
    doctor_says(&site, &waiting, "the queue `default` is paused by");
    site.ask(&["jobs", "cancel", &waiting, "--reason", "enough"]).exits(0);
    let ended = doctor_says(&site, &waiting, "it has ended, cancelled: ");
    assert!(ended.contains(&format!("nightporter jobs retry {waiting}")), "{ended}");
}
