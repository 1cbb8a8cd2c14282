//! The command line, with the built binary: what it prints, what it exits with, how it starts and how it ends.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use tests::binary::{House, Running};

const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
[queue]
ledger = "sqlite:book.db"
[worker]
queues = { default = 1 }
grace = "0s"
[sources.vercel]
secrets = ["${file:vercel.secret}"]
[runbooks.greet]
inputs = { name = "string", times = "integer" }
[runbooks.greet.jobs]
hello = { job = "noop", with = { message = "hello {{ inputs.name }}", steps = "{{ inputs.times }}" } }
after = { job = "noop", needs = ["hello"], if = "jobs.hello.message != ''", with = { message = "bye" } }
[runbooks.broken]
[runbooks.broken.jobs]
first = { job = "noop", with = { message = "a text" } }
second = { job = "noop", needs = ["first"], if = "jobs.first.message > 5" }
[[routes]]
on = "vercel.deployment.succeeded"
when = "event.target == 'production'"
run = { runbook = "greet", with = { name = "{{ event.git.sha }}", times = 1 } }
[[routes]]
on = "vercel.deployment.error"
run = { job = "noop" }
"#;

fn house() -> House {
    let house = House::new(CONFIG);
    std::fs::write(house.path("vercel.secret"), "a secret of Vercel's\n").unwrap();
    house
}

/// Runs an operator's command against a running server.
fn ask(house: &House, running: &Running, arguments: &[&str]) -> tests::binary::Ended {
    let server = running.operators();
    let token = house.path("book.db.token");
    let to = ["--server", &server, "--token-file", token.to_str().unwrap()];
    house.run(&[arguments, &to].concat())
}

#[test]
fn check_says_all_that_is_wrong_at_once_with_line_column_and_suggestion() {
    let house = House::new(
        "\
[server]
lisen = '127.0.0.1:1'
[operators]
listen = 'nowhere'
token = 'hunter2hunter2hunter2'
[queue]
ledger = 'sqlite:x.db'
broker = 'amqp://rabbit'
[defaults]
on_failure = 'onkall'
[databses.main]
[databases.main]
environment = 3
[stores.nightly]
url = 's3://b'
credentials = '${vault:np/r2}'
[channels.oncall]
slack = '${env:SLACK'
[worker]
queues = { defualt = 2 }
grace = '20'
[sources.github]
secrets = []
[sources.vercel]
secrets = ['${env:V}']
[runbooks.deploy]
inputs = { ref = 'git-sah' }
[runbooks.greet.jobs]
a = { job = 'noop', with = { mesage = 'x' } }
b = { job = 'noop', needs = ['a'], if = 'jobs.a.mesage == 1' }
[[routes]]
on = 'vercel.deployment.succeeded'
when = \"event.targt == 'production'\"
run = { job = 'nop' }
[[routes]]
on = 'vercel.deployment.succeeded'
run = { runbook = 'deploy' }
",
    );
    let ended = house.run(&["check"]).exits(2);
    insta::assert_snapshot!(ended.stdout);
    assert_eq!(ended.stderr, "error: 18 errors in nightporter.toml\n");
    assert!(!ended.stdout.contains("hunter2"));
    let report = house.run(&["check", "--json"]).exits(2).json();
    assert_eq!(report["ok"], json!(false));
    assert_eq!(report["findings"].as_array().unwrap().len(), ended.stdout.lines().count());
    assert_eq!(report["findings"][0]["line"], json!(2));
}

#[test]
fn a_right_configuration_passes_and_a_literal_secret_is_only_a_warning() {
    let house = house();
    house.run(&["check"]).exits(0);
    let literal = House::new("[sources.github]\nsecrets = ['hunter2']\n");
    let ended = literal.run(&["check"]).exits(0);
    assert!(ended.stdout.contains("2:12: warning: sources.github.secrets.0: a secret stands in the file"));
    let missing = literal.run(&["check", "--config", "nowhere.toml"]).exits(2);
    assert!(missing.stderr.contains("cannot read the configuration nowhere.toml"), "{}", missing.stderr);
}

#[test]
fn a_signed_sample_becomes_a_run_and_its_outcome_is_shown() {
    let house = house();
    let up = house.start("up");
    let server = up.server();
    let arguments = ["trigger", "vercel", "deployment.succeeded", "--json", "--url", &server];
    let answer = house.run(&arguments).exits(0).json();
    assert_eq!(answer["jobs"].as_array().unwrap().len(), 2);
    let event = answer["event_id"].as_str().unwrap();
    let view = ask(&house, &up, &["events", "show", event, "--json"]).exits(0).json();
    assert_eq!(view["event"]["type"], "vercel.deployment.succeeded");
    assert_eq!(view["runs"].as_array().unwrap().len(), 1);
    let preview = [&arguments[..3], &["--set", "payload.target=staging", "--json", "--url", &server]].concat();
    assert_eq!(house.run(&preview).exits(0).json()["jobs"], Value::Null);
    assert!(up.stop().success());
}

#[test]
fn the_outcome_of_run_wait_is_its_exit_code() {
    let house = house();
    let up = house.start("up");
    let run = |what: &[&str], code| {
        let ended = ask(&house, &up, &[&["run"], what, &["--reason", "a test"]].concat());
        ended.exits(code)
    };
    let done = run(&["greet", "--with", "name=you", "--with", "times:=2", "--wait", "--json"], 0).json();
    assert_eq!((&done["state"], &done["reason"]), (&json!("completed"), &json!("a test")));
    assert_eq!(done["jobs"][0]["output"], json!({"message": "hello you"}));
    let failed = run(&["broken", "--wait"], 1);
    assert!(failed.stderr.contains("job `second` was discarded"), "{}", failed.stderr);
    let wrong = run(&["greet", "--with", "nam=you"], 2);
    assert!(wrong.stderr.contains("there is no input named `nam` (did you mean `name`?)"), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("input `times` is missing"), "{}", wrong.stderr);
    let unknown = run(&["gret"], 3);
    assert!(unknown.stderr.contains("did you mean `greet`?"), "{}", unknown.stderr);
    let slow = run(&["noop", "--with", "steps=10", "--with", "step_millis=60000", "--wait", "--timeout", "1s"], 124);
    assert!(slow.stderr.contains("it goes on"), "{}", slow.stderr);
    assert!(up.stop().success());
}

#[test]
fn what_waits_can_be_cancelled_and_retried_and_the_audit_says_who_and_why() {
    let house = house();
    let up = house.start("up");
    // One permit: the first job keeps the second one waiting.
    ask(&house, &up, &["run", "noop", "--with", "steps=10", "--with", "step_millis=60000", "--reason", "x"]).exits(0);
    let second = ask(&house, &up, &["run", "noop", "--reason", "x", "--key", "once", "--json"]).exits(0).json();
    let id = second["job"].as_str().unwrap();
    let again = ask(&house, &up, &["run", "noop", "--reason", "x", "--key", "once", "--json"]).exits(0).json();
    assert_eq!((&again["job"], &again["existing"]), (&second["job"], &json!(true)));
    let cancelled = ask(&house, &up, &["jobs", "cancel", id, "--reason", "no longer", "--json"]).exits(0).json();
    assert_eq!(cancelled["state"], "cancelled");
    ask(&house, &up, &["jobs", "cancel", id, "--reason", "again"]).exits(5);
    let retried = ask(&house, &up, &["jobs", "retry", id, "--reason", "after all", "--json"]).exits(0).json();
    assert_eq!((&retried["id"], &retried["state"]), (&second["job"], &json!("available")));
    let audit = ask(&house, &up, &["audit", "list", "--json"]).exits(0).json();
    let verbs: Vec<&Value> = audit.as_array().unwrap().iter().map(|line| &line["reason"]).collect();
    assert_eq!(verbs, [&json!("after all"), &json!("no longer"), &json!("x"), &json!("x")]);
    for list in ["jobs", "runs", "events", "queues"] {
        assert!(ask(&house, &up, &[list, "list", "--json"]).exits(0).json().is_array());
        ask(&house, &up, &[list, "list"]).exits(0);
    }
    ask(&house, &up, &["jobs", "show", "00000000-0000-7000-8000-000000000000"]).exits(3);
    assert!(up.stop().success());
}

#[test]
fn a_job_that_is_cancelled_while_it_is_waited_for_exits_with_a_code_of_its_own() {
    let house = house();
    let up = house.start("up");
    ask(&house, &up, &["run", "noop", "--with", "steps=10", "--with", "step_millis=60000", "--reason", "x"]).exits(0);
    let second = ask(&house, &up, &["run", "noop", "--reason", "x", "--key", "k", "--json"]).exits(0).json();
    ask(&house, &up, &["jobs", "cancel", second["job"].as_str().unwrap(), "--reason", "no"]).exits(0);
    // Cancelled jobs let go of their keys, so this is a new one; it is cancelled while the command waits for it.
    let waiting = std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| ask(&house, &up, &["run", "noop", "--reason", "x", "--wait", "--with", "message=third"]));
        let third = loop {
            let jobs = ask(&house, &up, &["jobs", "list", "--state", "available", "--json"]).exits(0).json();
            if let Some(job) = jobs.as_array().unwrap().iter().find(|job| job["args"]["message"] == "third") {
                break job["id"].as_str().unwrap().to_owned();
            }
        };
        ask(&house, &up, &["jobs", "cancel", &third, "--reason", "no longer wanted"]).exits(0);
        waiting.join().unwrap()
    });
    let waiting = waiting.exits(6);
    assert!(waiting.stderr.contains("no longer wanted"), "{}", waiting.stderr);
}

#[test]
fn without_the_token_nothing_is_told_and_without_a_server_it_is_said() {
    let house = house();
    let up = house.start("up");
    let mode = std::fs::metadata(house.path("book.db.token")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::write(house.path("wrong"), "np_wrong_wrong_wrong").unwrap();
    let operators = up.operators();
    let wrong = house.run(&["jobs", "list", "--server", &operators, "--token-file", "wrong"]).exits(4);
    assert!(wrong.stderr.contains("--token-file"), "{}", wrong.stderr);
    house.run(&["jobs", "list", "--server", &operators]).exits(4);
    let away = house.run(&["jobs", "list", "--server", "http://127.0.0.1:9", "--token-file", "wrong"]).exits(8);
    assert!(away.stderr.contains("start one with `nightporter up`"), "{}", away.stderr);
    assert!(up.stop().success());
}

#[test]
fn a_second_process_on_the_same_ledger_is_refused_and_the_first_goes_on() {
    let house = house();
    let up = house.start("up");
    let second = house.run(&["up"]).exits(5);
    assert!(second.stderr.contains("another process uses the ledger book.db"), "{}", second.stderr);
    assert!(second.stderr.contains("use PostgreSQL for several processes"), "{}", second.stderr);
    ask(&house, &up, &["jobs", "list"]).exits(0);
    assert!(up.stop().success());
    assert!(house.start("up").stop().success());
}

#[test]
fn serve_and_work_alone_on_sqlite_are_refused() {
    let house = house();
    for role in ["serve", "work"] {
        let ended = house.run(&[role]).exits(2);
        assert!(ended.stderr.contains("run `nightporter up`"), "{}", ended.stderr);
    }
    assert!(!house.path("book.db").exists());
}

#[test]
fn a_stop_gives_back_what_runs_and_the_next_start_runs_it_again() {
    let house = house();
    let up = house.start("up");
    let arguments = ["run", "noop", "--with", "steps=2", "--with", "step_millis=60000", "--reason", "x", "--json"];
    let id = ask(&house, &up, &arguments).exits(0).json()["job"].as_str().unwrap().to_owned();
    let show = |up: &Running| ask(&house, up, &["jobs", "show", &id, "--json"]).exits(0).json();
    while show(&up)["state"] != "running" {}
    assert!(up.stop().success());
    let up = house.start("up");
    while show(&up)["state"] != "running" {}
    let job = show(&up);
    assert_eq!((&job["failures"], &job["crashes"]), (&json!(0), &json!(0)), "{job}");
    assert_eq!(job["attempts"][0]["outcome"], "interrupted");
    // A second signal ends at once, whatever runs.
    up.signal("INT");
    up.stop();
}

#[test]
fn explain_says_which_routes_match_and_why_the_others_do_not() {
    let house = house();
    let body = include_str!("../fixtures/webhooks/vercel/deployment.succeeded.production.json");
    std::fs::write(house.path("body.json"), body).unwrap();
    let explained = house.run(&["explain", "body.json", "--source", "vercel", "--json"]).exits(0).json();
    let matched: Vec<&Value> = explained["routes"].as_array().unwrap().iter().map(|line| &line["matched"]).collect();
    assert_eq!(matched, [&json!(true), &json!(false)], "{explained}");
    assert_eq!(explained["runs"][0]["runbook"], "greet");
    let text = house.run(&["explain", "body.json", "--source", "vercel"]).exits(0).stdout;
    assert!(text.contains("the event is a `vercel.deployment.succeeded`"), "{text}");
    std::fs::write(house.path("event.json"), explained["event"].to_string()).unwrap();
    let again = house.run(&["explain", "event.json", "--json"]).exits(0).json();
    assert_eq!(again["runs"][0]["inputs"], explained["runs"][0]["inputs"]);
    std::fs::write(house.path("nonsense.json"), "{}").unwrap();
    house.run(&["explain", "nonsense.json"]).exits(2);
}

#[tokio::test]
async fn the_two_doors_answer_each_for_itself() {
    let house = house();
    let up = house.start("up");
    let http = worker::world::http_client();
    let get = async |address: String| {
        let response = http.get(address).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    assert_eq!(get(format!("{}/healthz", up.server())).await, (200, "ok\n".to_owned()));
    assert_eq!(get(format!("{}/readyz", up.server())).await, (200, "yes\n".to_owned()));
    let (status, reasons) = get(format!("{}/readyz", up.operators())).await;
    assert_eq!((status, reasons.contains(r#""ledger":"well""#)), (200, true), "{reasons}");
    assert_eq!(get(format!("{}/api/v1/jobs", up.server())).await.0, 404, "the API is not behind the public door");
    assert_eq!(get(format!("{}/api/v1/jobs", up.operators())).await.0, 401);
    let token = std::fs::read_to_string(house.path("book.db.token")).unwrap();
    let api = async |path: &str| {
        let request = http.get(format!("{}/api/v1/{path}", up.operators())).bearer_auth(token.trim());
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json::<Value>().await.unwrap())
    };
    for (path, status) in [
        ("jobs", 200),
        ("jobs/not-an-id", 404),
        ("runs/not-an-id", 404),
        ("events/%00", 404),
        ("jobs?state=nonsense", 400),
        ("jobs?limit=-1", 400),
        ("nothing", 404),
        ("jobs/0/cancel", 405),
    ] {
        let (answered, body) = api(path).await;
        assert_eq!(answered, status, "{path}: {body}");
        assert!(status == 200 || body["error"].as_str().is_some_and(|error| !error.is_empty()), "{path}: {body}");
    }
    let post = async |body: &'static str| {
        let request = http.post(format!("{}/api/v1/runs", up.operators())).bearer_auth(token.trim());
        let request = request.header("content-type", "application/json").body(body);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(post("{").await, 400);
    assert_eq!(post(r#"{"run":"noop","reason":" "}"#).await, 422);
    assert_eq!(post(r#"{"run":"noop","reason":"x","with":{"steps":"many"}}"#).await, 422);
    assert_eq!(post(r#"{"run":"none","reason":"x"}"#).await, 404);
    assert_eq!(post(r#"{"run":"noop","reason":"x","key":"k"}"#).await, 201);
    assert_eq!(post(r#"{"run":"noop","reason":"x","key":"k"}"#).await, 200);
    assert!(up.stop().success());
}

#[test]
fn backups_are_listed_from_the_store_alone() {
    let house = House::new(
        "\
[server]
listen = '127.0.0.1:0'
[operators]
listen = '127.0.0.1:0'
[queue]
ledger = 'sqlite:book.db'
[databases.app]
url = 'sqlite:app.db'
[stores.here]
url = 'file:backups'
",
    );
    // An empty file is an empty SQLite database.
    std::fs::write(house.path("app.db"), "").unwrap();
    let none = house.run(&["backups", "list", "--json"]).exits(0).json();
    assert_eq!(none, json!({"backups": [], "broken": []}));
    let up = house.start("up");
    let arguments = ["run", "backup", "--with", "database=app", "--with", "store=here", "--reason", "x", "--wait"];
    ask(&house, &up, &arguments).exits(0);
    assert!(up.stop().success());
    for name in ["book.db", "book.db-wal", "book.db-shm", "book.db.token"] {
        let _gone = std::fs::remove_file(house.path(name));
    }
    let found = house.run(&["backups", "list", "--database", "app", "--json"]).exits(0).json();
    let key = found["backups"][0]["key"].as_str().unwrap().to_owned();
    let data = found["backups"][0]["manifest"]["data"]["key"].as_str().unwrap().to_owned();
    assert!(house.run(&["backups", "list"]).exits(0).stdout.contains(&key));
    std::fs::remove_file(house.path("backups").join(data)).unwrap();
    let broken = house.run(&["backups", "list", "--json"]).exits(1);
    assert_eq!(broken.json()["broken"][0]["key"], json!(key));
    house.run(&["backups", "list", "--store", "her"]).exits(3);
}

#[test]
fn a_backup_is_shown_proven_restored_and_pinned_by_commands() {
    let house = House::new(
        "\
[server]
listen = '127.0.0.1:0'
[operators]
listen = '127.0.0.1:0'
[queue]
ledger = 'sqlite:book.db'
[databases.app]
url = 'sqlite:app.db'
[stores.here]
url = 'file:backups'
keep = { daily = '7d' }
",
    );
    std::fs::write(house.path("app.db"), "").unwrap();
    let up = house.start("up");
    let arguments = ["run", "backup", "--with", "database=app", "--with", "store=here", "--reason", "x", "--wait"];
    ask(&house, &up, &arguments).exits(0);
    let list = || house.run(&["backups", "list", "--json"]).exits(0).json();
    let key = list()["backups"][0]["key"].as_str().unwrap().to_owned();
    assert_eq!((&list()["backups"][0]["pinned"], &list()["backups"][0]["verdict"]), (&json!(false), &json!(null)));

    let shown = house.run(&["backups", "show", &key]).exits(0).stdout;
    for part in [&*key, "sqlite 3.", "proven     never", "sha256sum --check", "zstd -dc "] {
        assert!(shown.contains(part), "`{part}` is not shown:\n{shown}");
    }
    assert_eq!(house.run(&["backups", "show", &key, "--json"]).exits(0).json()["manifest"]["database"], json!("app"));
    house.run(&["backups", "show", "app/none.manifest.json"]).exits(3);
    house.run(&["backups", "show", "latest"]).exits(2);

    let latest = ["latest", "--database", "app", "--store", "here", "--reason", "a drill"];
    let verified = ask(&house, &up, &[&["backups", "verify"], &latest[..]].concat()).exits(0);
    assert!(verified.stderr.contains("started job"), "{}", verified.stderr);
    assert_eq!(list()["backups"][0]["verdict"]["proven"], json!(true));
    assert!(house.run(&["backups", "show", &key]).exits(0).stdout.contains("0 rows in 0 tables"));
    ask(&house, &up, &[&["backups", "restore", "--into", "copy.db"], &latest[..]].concat()).exits(0);
    assert!(house.path("copy.db").exists());
    ask(&house, &up, &[&["backups", "restore", "--into", "../copy.db"], &latest[..]].concat()).exits(2);

    house.run(&["backups", "pin", &key, "--reason", "the audit"]).exits(0);
    assert_eq!(list()["backups"][0]["pinned"], json!(true));
    assert!(house.run(&["backups", "pin", &key, "--reason", "again"]).exits(0).stdout.contains("already"));
    assert!(house.run(&["backups", "show", &key]).exits(0).stdout.contains("the audit"));
    assert!(house.run(&["backups", "list"]).exits(0).stdout.contains("pinned"));
    house.run(&["backups", "unpin", &key]).exits(0);
    assert_eq!(list()["backups"][0]["pinned"], json!(false));
    assert!(up.stop().success());
}

#[test]
fn the_demo_tells_its_whole_story_and_leaves_a_site_to_look_at() {
    let house = House::new("");
    let told = house.run(&["demo", "--once", "--dir", "."]).exits(0).stdout;
    for part in [
        "nightly, every day at 02:00 UTC: ",
        "restored into a scratch database: all 5000 rows are there",
        "github.push",
        "2 pending, additive",
        "read back, its digests right",
        "2 applied",
        "signature verified",
        "“http job discarded”",
        "$         nightporter jobs replay ",
        "made job ",
        "in the CRM, once",
        "the shop's file has the new key",
        "deleted, which no tier keeps",
        "Done",
    ] {
        assert!(told.contains(part), "`{part}` is not told:\n{told}");
    }
    let left: Vec<_> = std::fs::read_dir(house.path(".")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left.len(), 2, "beside what was there, the site and nothing else: {left:?}");
    let site = left.iter().find(|path| path.join("nightporter.toml").exists()).expect("the site");
    let config = site.join("nightporter.toml").display().to_string();
    assert!(house.run(&["check", "--config", &config]).exits(0).stdout.contains("is right"));
    let backups = house.run(&["backups", "list", "--json", "--config", &config]).exits(0).json();
    let backups = backups["backups"].as_array().unwrap();
    assert!(!backups.is_empty() && backups.iter().all(|backup| backup["verdict"]["proven"] == true), "{backups:?}");
    house.run(&["demo", "--once", "--dir", "no/such/folder"]).exits(1);
}

#[test]
fn the_example_of_the_documentation_is_right() {
    let page = include_str!("../../docs/getting-started.md");
    let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let house = House::new(example);
    assert_eq!(house.run(&["check"]).exits(0).stdout.trim(), "nightporter.toml is right");
}

#[test]
fn the_configurations_of_the_operations_guide_are_right() {
    let page = include_str!("../../docs/operations.md");
    let examples = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let ends: Vec<i32> = examples.map(|example| House::new(example).run(&["check"]).exits(0).code).collect();
    assert_eq!(ends.len(), 2, "one for each shape");
}
