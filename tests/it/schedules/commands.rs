//! Schedules by the built binary: what `check` says, what operators see and do, and processes that are killed as they fire.

use std::os::unix::process::ExitStatusExt;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use tests::binary::{Ended, House, Running};
use tests::porter::eventually;

const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
token = "np_a_token_of_the_tests"
[queue]
ledger = "LEDGER"
[runbooks.greet]
inputs = { name = "string" }
[runbooks.greet.jobs]
hello = { job = "noop", with = { message = "hello {{ inputs.name }}" } }
[schedules.greeting]
cron = "30 2 * * MON-FRI"
timezone = "Europe/Berlin"
run = { runbook = "greet", with = { name = "{{ schedule.name }}" } }
[schedules.yearly]
cron = "@yearly"
run = { job = "noop", with = { message = "{{ schedule.time }}" } }
"#;

fn house(ledger: &str) -> House {
    House::new(&CONFIG.replace("LEDGER", ledger)).with_environment(&[("NIGHTPORTER_TOKEN", "np_a_token_of_the_tests")])
}

fn ask(house: &House, up: &Running, arguments: &[&str]) -> Ended {
    let server = up.operators();
    house.run(&[arguments, &["--server", &server]].concat())
}

#[test]
fn check_refuses_what_could_never_fire_with_line_column_and_suggestion() {
    let house = House::new(
        "\
[schedules.a]
cron = '0 25 * * *'
timezone = 'Europe/Berln'
run = { job = 'nop' }
[schedules.b]
cron = '0 0 30 2 *'
run = { job = 'noop', with = { mesage = 'x' } }
[schedules.c]
cron = '0 2 * * *'
run = { runbook = 'wrong' }
catch_up = 'twice'
[schedules.d]
cron = '*/10 * * * *'
jitter = '10m'
catch_up_limit = 0
run = { job = 'noop', with = { message = '{{ schedule.tim }}' } }
[schedules.e]
run = { runbook = 'broken' }
cron = '@daily'
[runbooks.broken]
[runbooks.broken.jobs]
x = { job = 'nop' }
",
    );
    let ended = house.run(&["check"]).exits(2);
    let lines: Vec<&str> = ended.stdout.lines().map(|line| line.trim_start_matches("nightporter.toml:")).collect();
    let said = [
        "2:8: error: schedules.a.cron: `25` is no hour (it is a number from 0 to 23; `*` is every one)",
        "3:12: error: schedules.a.timezone: there is no time zone named `Europe/Berln` (did you mean `Europe/Berlin`?)",
        "4:15: error: schedules.a.run.job: there is no job kind named `nop` (did you mean `noop`?)",
        "6:8: error: schedules.b.cron: `0 0 30 2 *` never comes: no month that it names has such a day (`L` is the last day of each month)",
        "7:23: error: schedules.b.run.with: there is no key named `mesage` (did you mean `message`?)",
        "11:12: error: schedules.c.catch_up: `twice` is not one of the values it may have (known: skip, once, all)",
        "14:10: error: schedules.d.jitter: this is as long as the time between two of its times, or longer (its times come 10m after one another; write less)",
        "15:18: error: schedules.d.catch_up_limit: this must be between 1 and 100",
        "22:13: error: runbooks.broken.jobs.x.job: there is no job kind named `nop` (did you mean `noop`?)",
    ];
    for line in said {
        assert!(lines.contains(&line), "{line}\nis not in\n{}", ended.stdout);
    }
    assert!(ended.stdout.contains("`tim`"), "{}", ended.stdout);
    assert_eq!(lines.len(), said.len() + 1, "{}", ended.stdout);
}

#[test]
fn operators_see_what_comes_start_it_and_pause_it() {
    let house = house("sqlite:book.db");
    let up = house.start("up");
    let list = ask(&house, &up, &["schedules", "list", "--json"]).exits(0).json();
    let greeting = &list[0];
    assert_eq!(
        (&greeting["name"], &greeting["words"], &greeting["timezone"], &greeting["starts"]),
        (&json!("greeting"), &json!("Monday to Friday at 02:30"), &json!("Europe/Berlin"), &json!("runbook greet"))
    );
    assert_eq!(greeting["next"].as_array().unwrap().len(), 5);
    assert!(greeting["next"][0]["local"].as_str().unwrap().contains(" 02:30 CE"), "{greeting}");
    assert_eq!(greeting["last"], Value::Null);
    let shown = ask(&house, &up, &["schedules", "list"]).exits(0).stdout;
    assert!(shown.contains("on day 1 of January at 00:00 (UTC)"), "{shown}");
    let done =
        ask(&house, &up, &["schedules", "run", "greeting", "--reason", "a test", "--wait", "--json"]).exits(0).json();
    assert_eq!(done["jobs"][0]["output"]["message"], "hello greeting");
    assert_eq!((&done["actor"], &done["reason"]), (&json!("token"), &json!("schedule greeting, by hand: a test")));
    let job =
        ask(&house, &up, &["schedules", "run", "yearly", "--reason", "a test", "--wait", "--json"]).exits(0).json();
    assert_eq!(job["state"], "completed");
    let audit = ask(&house, &up, &["audit", "list", "--json"]).exits(0).json();
    assert_eq!((&audit[0]["verb"], &audit[0]["reason"]), (&json!("start"), &json!("schedule yearly, by hand: a test")));
    let unknown = ask(&house, &up, &["schedules", "run", "greting", "--reason", "x"]).exits(3);
    assert!(unknown.stderr.contains("did you mean `greeting`?"), "{}", unknown.stderr);
    ask(&house, &up, &["schedules", "pause", "greeting", "--reason", "a holiday"]).exits(0);
    ask(&house, &up, &["schedules", "pause", "greeting", "--reason", "twice"]).exits(5);
    ask(&house, &up, &["schedules", "pause", "nobody", "--reason", "x"]).exits(2);
    let shown = ask(&house, &up, &["schedules", "show", "greeting"]).exits(0).stdout;
    assert!(shown.contains("by token: a holiday"), "{shown}");
    let none = ask(&house, &up, &["schedules", "resume", "greeting", "--reason", "work"]).exits(0);
    assert_eq!(none.stdout, "nothing is paused\n");
    let run = done["id"].as_str().unwrap();
    let over = ask(&house, &up, &["runs", "cancel", run, "--reason", "late"]).exits(5);
    assert!(over.stderr.contains("this run has ended: it is completed"), "{}", over.stderr);
    assert!(up.stop().success());
}

/// Puts all schedules back by so many microseconds, as if nobody had been there since; how many there are.
async fn put_back(ledger: &str, folder: &House, by: i64) -> u64 {
    let statement = |table: &str| AssertSqlSafe(format!("update {table} set settled = settled - {by}"));
    if ledger.starts_with("sqlite:") {
        let url = format!("sqlite:{}", folder.path("book.db").display());
        let mut tables = SqliteConnection::connect(&url).await.unwrap();
        sqlx::query(statement("schedule")).execute(&mut tables).await.unwrap().rows_affected()
    } else {
        let mut tables = PgConnection::connect(ledger).await.unwrap();
        sqlx::query(statement("nightporter.schedule")).execute(&mut tables).await.unwrap().rows_affected()
    }
}

/// A process is killed right before it fires and right after; the next one finds each time settled, or settles it.
async fn killed_as_it_fires(ledger: &str) {
    let house = house(ledger);
    let up = house.start("up");
    let seen = async || (put_back(ledger, &house, 0).await == 2).then_some(());
    eventually("both schedules have been seen", seen).await;
    assert!(up.stop().success());
    put_back(ledger, &house, 5 * 366 * 86_400 * 1_000_000).await;
    // Two schedules, each with times that are recorded as missed and one that is made up for.
    for point in ["firing:1", "fired:1", "firing:3", "fired:1"] {
        let mut dying = house.start_to_end("up", &[("NIGHTPORTER_KILL_AT", point)]);
        let ended = eventually(&format!("it is killed at {point}"), async || dying.ended()).await;
        assert_eq!(ended.signal(), Some(9), "at {point}");
    }
    let up = house.start("up");
    let mut fired = 0;
    for name in ["greeting", "yearly"] {
        let shown = settled(&house, &up, name);
        let became: Vec<&Value> = shown["firings"].as_array().unwrap().iter().map(|one| &one["outcome"]).collect();
        assert_eq!(became, [&json!("fired"), &json!("missed")], "{shown}");
        fired += 1;
    }
    let list = |what: &str| ask(&house, &up, &[what, "list", "--json"]).exits(0).json();
    assert_eq!(list("runs").as_array().unwrap().len(), 1);
    assert_eq!(list("jobs").as_array().unwrap().len(), fired, "one of the run, one alone");
    let run = &list("runs")[0];
    assert_eq!(run["actor"], "schedule:greeting");
    assert!(run["reason"].as_str().unwrap().starts_with("its nominal time "), "{run}");
    assert!(up.stop().success());
}

/// Looks until the schedule has fired.
fn settled(house: &House, up: &Running, name: &str) -> Value {
    for _ in 0..1000 {
        let shown = ask(house, up, &["schedules", "show", name, "--json"]).exits(0).json();
        if shown["schedule"]["last"]["outcome"] == "fired" {
            return shown;
        }
    }
    panic!("{name} has not fired");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_as_it_fires_doubles_and_loses_nothing_on_sqlite() {
    killed_as_it_fires("sqlite:book.db").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_as_it_fires_doubles_and_loses_nothing_on_postgres() {
    killed_as_it_fires(&tests::postgres::fresh_database().await).await;
}
