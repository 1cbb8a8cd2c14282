//! What operators do by the command line, with the built binary: replays, pauses, approvals, tokens.

use serde_json::json;
use tests::binary::{House, Site};

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
[limits."kind:noop"]
rate = "1000/1s"
[runbooks.guarded]
[runbooks.guarded.jobs]
hello = { job = "noop", approval = { within = "1h" }, with = { message = "hello" } }
[runbooks.doomed]
[runbooks.doomed.jobs]
first = { job = "noop", with = { message = "a text" } }
second = { job = "noop", needs = ["first"], if = "jobs.first.message > 5" }
"#;

/// A long job, which only ends when it is cancelled.
const LONG: [&str; 4] = ["--with", "steps=10", "--with", "step_millis=60000"];

/// What people read, without what differs each time.
fn plain(text: &str) -> String {
    let is_id = |word: &str| word.len() == 36 && word.matches('-').count() == 4;
    let is_digest = |word: &str| word.len() == 64 && word.chars().all(|c| c.is_ascii_hexdigit());
    let is_date = |word: &str| word.len() == 10 && word.matches('-').count() == 2;
    let is_time = |word: &str| word.len() == 9 && word.ends_with('Z') && word.matches(':').count() == 2;
    let stands = |word: &str| {
        let bare = word.trim_end_matches(|c: char| c.is_whitespace() || ",;:".contains(c));
        let instead = match bare {
            _ if is_id(bare) => "00000000-0000-7000-0000-000000000000",
            _ if is_digest(bare) => "(digest)",
            _ if is_date(bare) => "YYYY-MM-DD",
            _ if is_time(bare) => "HH:MM:SSZ",
            other => other,
        };
        format!("{instead}{}", &word[bare.len()..])
    };
    text.split_inclusive(char::is_whitespace).map(stands).collect()
}

#[test]
fn a_guarded_run_waits_for_a_second_person() {
    let site = Site::open(CONFIG);
    let started = site.ask(&["run", "guarded", "--reason", "a release", "--json"]).exits(0).json();
    let waiting = site.ask(&["approvals", "list", "--json"]).exits(0).json();
    let job = waiting[0]["job"].as_str().unwrap().to_owned();
    insta::assert_snapshot!("approvals", plain(&site.ask(&["approvals", "list"]).exits(0).stdout));
    let own = site.ask(&["approvals", "approve", &job, "--reason", "me too"]).exits(4);
    assert!(own.stderr.contains("nobody approves what they started themselves"), "{}", own.stderr);
    site.make_token("vic", "viewer");
    let weak = site.ask_as("vic", &["approvals", "approve", &job, "--reason", "x"]).exits(4);
    assert!(weak.stderr.contains("needs the role operator"), "{}", weak.stderr);
    assert_eq!(site.job(&job)["state"], "pending");
    site.make_token("ann", "operator");
    site.ask_as("ann", &["approvals", "approve", &job, "--reason", "looks right"]).exits(0);
    let done = site.wait(&job, "completed");
    assert_eq!(done["approval"]["consents"][0]["actor"], "ann");
    insta::assert_snapshot!("approved_job", plain(&site.ask(&["jobs", "show", &job]).exits(0).stdout));
    let again = site.ask(&["approvals", "approve", &job, "--reason", "late"]);
    assert!(matches!(again.code, 3 | 5), "{}", again.stderr);
    let run = started["run"].as_str().unwrap();
    let view = site.ask(&["runs", "show", run, "--json"]).exits(0).json();
    assert_eq!(view["state"], "completed");
    // A replay of the run asks again; a refusal cancels it.
    let made = site.ask(&["runs", "replay", run, "--reason", "once more", "--json"]).exits(0).json();
    let second = site.ask(&["approvals", "list", "--json"]).exits(0).json()[0]["job"].as_str().unwrap().to_owned();
    site.ask_as("ann", &["approvals", "refuse", &second, "--reason", "not at night"]).exits(0);
    let refused = site.job(&second);
    assert_eq!((&refused["state"], &refused["reason"]), (&json!("cancelled"), &json!("refused by ann: not at night")));
    let run = made["runs"][0].as_str().unwrap().to_owned();
    assert_eq!(site.ask(&["runs", "show", &run, "--json"]).exits(0).json()["state"], "cancelled");
    assert!(site.up.stop().success());
}

#[test]
fn a_token_is_shown_once_and_lies_nowhere() {
    let site = Site::open(CONFIG);
    let token = site.make_token("ci", "operator");
    let id = site.start(&[]);
    site.ask_as("ci", &["jobs", "show", &id]).exits(0);
    let denied = site.ask_as("ci", &["token", "list"]).exits(4);
    assert!(denied.stderr.contains("needs the role admin"), "{}", denied.stderr);
    insta::assert_snapshot!("tokens", plain(&site.ask(&["token", "list"]).exits(0).stdout));
    let audit = site.ask(&["audit", "list", "--json"]).exits(0).json();
    assert!(audit.as_array().unwrap().iter().any(|line| line["verb"] == "make token" && line["subject"] == "ci"));
    site.ask(&["token", "revoke", "ci", "--reason", "no longer"]).exits(0);
    let ended = site.ask_as("ci", &["jobs", "list"]).exits(4);
    assert!(ended.stderr.contains("has expired or was revoked"), "{}", ended.stderr);
    site.ask(&["token", "revoke", "ci", "--reason", "no longer"]).exits(3);
    site.ask(&["token", "create", "ci", "--role", "viewer", "--reason", "again"]).exits(5);
    let Site { up, house } = site;
    assert!(up.stop().success());
    std::fs::remove_file(house.path("ci")).unwrap();
    let mut looked_at = 0;
    for entry in std::fs::read_dir(house.path(".")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = if path.is_file() { std::fs::read(&path).unwrap() } else { continue };
        looked_at += 1;
        for piece in [&token[3..19], &token[token.len() - 16..]] {
            let found = bytes.windows(piece.len()).any(|window| window == piece.as_bytes());
            assert!(!found, "a part of the token stands in {}", path.display());
        }
    }
    assert!(looked_at >= 4, "only {looked_at} files: ledger, first token, configuration, log");
}

#[test]
fn a_paused_queue_gives_nothing_out_and_a_drained_one_runs_nothing() {
    let site = Site::open(CONFIG);
    let long = site.start(&LONG);
    site.wait(&long, "running");
    let up = site.ask(&["queues", "drain", "default", "--reason", "an update", "--timeout", "1s"]).exits(124);
    assert!(up.stderr.contains("the queue `default` is paused; 1 of its jobs run"), "{}", up.stderr);
    let waiting = site.start(&["--with", "message=later"]);
    insta::assert_snapshot!("paused_queue", plain(&site.ask(&["queues", "list"]).exits(0).stdout));
    site.ask(&["jobs", "cancel", &long, "--reason", "enough"]).exits(0);
    // Paused already: it only waits.
    let drained = site.ask(&["queues", "drain", "default", "--reason", "an update"]).exits(0);
    assert!(drained.stderr.contains("it stays paused"), "{}", drained.stderr);
    site.wait(&long, "cancelled");
    let job = site.job(&waiting);
    assert_eq!((&job["state"], &job["reason"]), (&json!("available"), &json!("the queue `default` is paused")));
    insta::assert_snapshot!("pauses", plain(&site.ask(&["queues", "pauses"]).exits(0).stdout));
    site.ask(&["queues", "pause", "default", "--reason", "x"]).exits(5);
    let none = site.ask(&["queues", "resume", "default", "--reason", "updated"]).exits(0);
    assert_eq!(none.stdout, "nothing is paused\n");
    site.wait(&waiting, "completed");
    let typo = site.ask(&["queues", "pause", "--kind", "nop", "--reason", "x"]).exits(2);
    assert!(typo.stderr.contains("did you mean `noop`?"), "{}", typo.stderr);
    for arguments in
        [&["queues", "pause", "--reason", "x"][..], &["queues", "pause", "a", "--kind", "b", "--reason", "x"]]
    {
        site.ask(arguments).exits(2);
    }
    site.ask(&["queues", "pause", "--key", "kind:noop", "--reason", "the limit's key"]).exits(0);
    let held = site.start(&[]);
    let job = site.job(&held);
    assert_eq!((&job["state"], &job["reason"]), (&json!("pending"), &json!("the key `kind:noop` is paused")), "{job}");
    site.ask(&["queues", "drain", "--key", "kind:noop", "--reason", "x", "--timeout", "30s"]).exits(0);
    site.ask(&["queues", "resume", "--key", "kind:noop", "--reason", "x"]).exits(0);
    site.wait(&held, "completed");
    assert!(site.up.stop().success());
}

#[test]
fn what_failed_is_replayed_as_it_was_shown() {
    let site = Site::open(CONFIG);
    site.ask(&["run", "doomed", "--reason", "x", "--wait"]).exits(1);
    let shown = site.ask(&["jobs", "replay", "--preview"]).exits(0);
    insta::assert_snapshot!("replay_preview", plain(&shown.stdout));
    let set = shown.stdout.trim().rsplit(' ').next().unwrap().to_owned();
    let asked = site.ask(&["jobs", "replay", "--reason", "x"]).exits(2);
    assert!(asked.stderr.contains("give --yes"), "{}", asked.stderr);
    site.ask(&["jobs", "replay"]).exits(2);
    let made = site.ask(&["jobs", "replay", "--set", &set, "--reason", "as shown", "--json"]).exits(0).json();
    let job = site.wait(made["jobs"][0].as_str().unwrap(), "completed");
    assert!(job["replay_of"].is_string() && job["run"].is_null(), "{job}");
    site.ask(&["jobs", "replay", "--set", "an old one", "--reason", "x"]).exits(5);
    let all = site.ask(&["jobs", "replay", "--state", "completed", "--since", "1h", "--yes", "--reason", "x"]).exits(0);
    assert_eq!(all.stdout.lines().filter(|line| line.starts_with("made job ")).count(), 2, "{}", all.stdout);
    let id = job["id"].as_str().unwrap();
    let other = site.ask(&["jobs", "replay", id, "--with", "message=other", "--reason", "x", "--json"]).exits(0).json();
    assert_eq!(site.job(other["jobs"][0].as_str().unwrap())["args"]["message"], "other");
    site.ask(&["jobs", "replay", id, "--kind", "noop", "--reason", "x"]).exits(2);
    assert!(site.up.stop().success());
}

#[test]
fn limits_and_approvals_that_can_never_count_are_found_by_check() {
    let house = House::new(
        "\
[databases.main]
url = 'sqlite:main.db'
[limits.\"database:mian\"]
at_once = 2
[limits.\"kind:backup\"]
rate = '3/1w'
[limits.\"database:main\"]
at_once = 0
[runbooks.deploy.jobs.go]
job = 'noop'
approval = { cuont = 2 }
[runbooks.other.jobs.go]
job = 'noop'
approval = { role = 'viewer', within = '2w' }
[runbooks.third.jobs.go]
job = 'noop'
approval = { role = 'viewer' }
",
    );
    let ended = house.run(&["check"]).exits(2);
    insta::assert_snapshot!("check_limits", ended.stdout);
    let right = House::new("[limits.'kind:backup']\nat_once = 1\nrate = '30/1m'\nnewest = true\n");
    right.run(&["check"]).exits(0);
}
