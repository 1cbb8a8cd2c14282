//! The same by the built binary: its producer listens, and its worker has the way in.

use serde_json::{Value, json};
use tests::binary::{House, Running};
use tests::migration_world::{Github, REPOSITORY, TOKEN};
use tests::porter::eventually;
use tests::vercel::{OWN_COMMIT, PROJECT_NAME, TEAM};

fn ask(house: &House, up: &Running, arguments: &[&str]) -> Value {
    let (server, token) = (up.operators(), house.path("book.db.token"));
    let to = ["--server", &server, "--token-file", token.to_str().unwrap(), "--json"];
    house.run(&[arguments, &to].concat()).exits(0).json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_house_gets_what_it_missed() {
    let (github, vercel) = (Github::default(), tests::vercel::Vercel::default());
    let (github_url, vercel_url) = (github.start().await, vercel.start().await);
    let house = House::new(&format!(
        r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
[queue]
ledger = "sqlite:book.db"
[sources.github]
secrets = ["{}"]
silent_after = "2d"
[sources.vercel]
secrets = ["a secret of Vercel's"]
[connections.github]
token = "{TOKEN}"
api_url = "{github_url}"
[connections.vercel]
token = "{}"
team = "{TEAM}"
api_url = "{vercel_url}"
[[routes]]
on = "vercel.deployment.succeeded"
run = {{ job = "noop" }}
"#,
        tests::github_hooks::SECRET,
        tests::vercel::TOKEN,
    ));
    let up = house.start("up");
    let hour_ago = chrono::Utc::now() - chrono::TimeDelta::hours(1);
    github.at(hour_ago);
    github.hooks(|hooks| hooks.url = Some("http://127.0.0.1:9/webhooks/github".to_owned()));
    assert_eq!(github.tell("ping", "missed", &json!({"zen": "z", "hook_id": 1, "hook": {}})).await, 502);
    github.hooks(|hooks| hooks.url = Some(format!("{}/webhooks/github", up.server())));
    vercel.hub(|hub| hub.now = hour_ago.timestamp_millis());
    let deployment = vercel.deploy(Some("production"), OWN_COMMIT);
    vercel.promote(&deployment);
    let from = format!("from={}", (hour_ago - chrono::TimeDelta::hours(1)).to_rfc3339());
    let repository = format!("repository={REPOSITORY}");
    let project = format!("project={PROJECT_NAME}");
    for with in [["of=github", &repository], ["of=vercel", &project]] {
        let run =
            ["run", "reconcile", "--with", with[0], "--with", with[1], "--with", &from, "--reason", "x", "--wait"];
        ask(&house, &up, &run);
    }
    let kinds = eventually("both have come", async || {
        let events = ask(&house, &up, &["events", "list"]);
        let kinds: Vec<String> = events.as_array().unwrap().iter().map(|it| it["event"]["type"].to_string()).collect();
        (kinds.len() >= 3).then_some(kinds)
    })
    .await;
    for kind in ["github.ping", "vercel.deployment.created", "vercel.deployment.succeeded"] {
        assert!(kinds.iter().any(|known| known.contains(kind)), "{kind}: {kinds:?}");
    }
    assert!(up.stop().success());
}
