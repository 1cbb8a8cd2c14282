//! From a signed delivery to the answered check, with the built binary and a real database; it is killed on the way.

use std::os::unix::process::ExitStatusExt;

use axum::http::HeaderMap;
use chrono::Utc;
use producer::source_type;
use serde_json::{Value, json};
use tests::binary::House;
use tests::migration_world::{Github, REPOSITORY, Target};
use tests::porter::eventually;
use tests::vercel::{PROJECT, Vercel};
use url::Url;

const SECRET: &str = "not a secret";

struct Site {
    house: House,
    vercel: Vercel,
    github: Github,
    target: Target,
}

impl Site {
    async fn new() -> Self {
        let (vercel, github, target) = (Vercel::default(), Github::default(), Target::postgres().await);
        let (at_vercel, at_github) = (vercel.start().await, github.start().await);
        let ledger = tests::postgres::fresh_database().await;
        let house = House::new(&configuration(&ledger, &at_vercel, &at_github, &target.url()));
        Self { house, vercel, github, target }
    }

    fn deploy(&self, files: &[(&str, &str)]) -> String {
        self.vercel.deploy(Some("production"), &self.github.commit(files))
    }

    /// What the check was answered, when it is.
    async fn answered(&self, check: &str) -> String {
        eventually("the check is answered", async || {
            self.vercel.check_run(check)["conclusion"].as_str().map(str::to_owned)
        })
        .await
    }
}

fn configuration(ledger: &str, vercel: &Url, github: &Url, database: &str) -> String {
    let (vercel_token, github_token) = (tests::vercel::TOKEN, tests::migration_world::TOKEN);
    format!(
        r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
token = "{SECRET} {SECRET}"
[queue]
ledger = "{ledger}"
[worker]
lease = "3s"
[sources.vercel]
secrets = ["{SECRET}"]
[connections.vercel]
token = "{vercel_token}"
team = "acme"
api_url = "{vercel}"
[connections.github]
token = "{github_token}"
api_url = "{github}"
[databases.main]
url = "{database}"
migrations = {{ tool = "sql", repository = "{REPOSITORY}", path = "db/migrations" }}
[stores.nightly]
url = "file:backups"
[runbooks.deploy]
inputs = {{ ref = "git-sha" }}
[runbooks.deploy.jobs]
plan = {{ job = "plan", with = {{ database = "main", ref = "{{{{ inputs.ref }}}}" }} }}
backup = {{ job = "backup", needs = ["plan"], if = "jobs.plan.pending > 0", with = {{ database = "main", store = "nightly", tier = "before_migration" }} }}
migrate = {{ job = "migrate", needs = ["plan", "backup"], with = {{ database = "main", ref = "{{{{ inputs.ref }}}}" }} }}
[[routes]]
on = "vercel.deployment.checkrun.start"
when = "event.project.id == '{PROJECT}'"
run = {{ job = "gate", with = {{ runbook = "deploy", deployment = "{{{{ event.subject }}}}", project = "{PROJECT}", check_run = "{{{{ event.raw.payload.checkRun.id }}}}", repository = "{REPOSITORY}" }} }}
[[routes]]
on = "vercel.deployment.promoted"
when = "event.project.id == '{PROJECT}'"
run = {{ job = "promoted", with = {{ deployment = "{{{{ event.subject }}}}", project = "{PROJECT}" }} }}
"#
    )
}

/// Delivers a webhook as Vercel signs it; the status.
async fn deliver(door: &str, body: &Value) -> u16 {
    let (mut headers, body) = (HeaderMap::new(), body.to_string());
    headers.insert("content-type", "application/json".parse().unwrap());
    source_type("vercel").unwrap().sign(&SECRET.into(), &mut headers, body.as_bytes(), Utc::now()).unwrap();
    let http = worker::world::http_client();
    http.post(format!("{door}/webhooks/vercel")).headers(headers).body(body).send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_delivery_becomes_an_answered_check_and_a_failed_one_is_rerun_or_bypassed() {
    let site = Site::new().await;
    site.house.run(&["check"]).exits(0);
    let up = site.house.start("up");
    let (door, operators) = (up.server(), up.operators());
    let token = site.house.path("token");
    std::fs::write(&token, format!("{SECRET} {SECRET}")).unwrap();
    let to = ["--server", &operators, "--token-file", token.to_str().unwrap()];
    let asks = |what: &[&str]| site.house.run(&[what, &to].concat());
    let files = [("1_t.sql", "create table t1 (id int);"), ("2_t.sql", "alter table t_missing add column id int;")];
    let deployment = site.deploy(&files[..1]);
    let check = site.vercel.begin_check(&deployment);
    let event = site.vercel.check_event("deployment.checkrun.start", &check);
    assert_eq!([deliver(&door, &event).await, deliver(&door, &event).await], [202, 200]);
    assert_eq!(site.answered(&check).await, "succeeded");
    assert_eq!(site.vercel.check_run(&check)["answers"], 1);
    let run = asks(&["runs", "list", "--json"]).exits(0).json();
    assert_eq!(run.as_array().unwrap().len(), 1, "delivered twice, run once");
    let backed_up =
        run[0]["jobs"].as_array().unwrap().iter().any(|job| job["name"] == "backup" && job["state"] == "completed");
    assert!(backed_up, "{run}");
    site.vercel.promote(&deployment);
    deliver(&door, &site.vercel.event("deployment.promoted", &deployment, &json!({}))).await;

    let failing = site.deploy(&files);
    let check = site.vercel.begin_check(&failing);
    deliver(&door, &site.vercel.check_event("deployment.checkrun.start", &check)).await;
    assert_eq!(site.answered(&check).await, "failed");
    let gates = asks(&["jobs", "list", "--kind", "gate", "--json"]).exits(0).json();
    let gate = gates[0]["id"].as_str().unwrap().to_owned();

    site.target.run("create table t_missing ()").await;
    let rerun = site.vercel.begin_check(&failing);
    deliver(&door, &site.vercel.check_event("deployment.checkrun.start", &rerun)).await;
    assert_eq!(site.answered(&rerun).await, "succeeded");

    asks(&["jobs", "bypass", &gate]).exits(2); // Without a reason.
    asks(&["jobs", "bypass", &gate, "--reason", "known to be well"]).exits(0);
    eventually("it is bypassed", async || (site.vercel.check_run(&check)["conclusion"] == "succeeded").then_some(()))
        .await;
    let text = site.vercel.check_run(&check)["conclusionText"].as_str().unwrap().to_owned();
    assert!(text.starts_with("bypassed by ") && text.ends_with(": known to be well"), "{text}");
    let audit = asks(&["audit", "list", "--json"]).exits(0).json();
    assert!(audit.as_array().unwrap().iter().any(|line| line["reason"] == "known to be well"), "{audit}");
    assert!(up.stop().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_porter_that_is_killed_before_it_writes_what_it_did_answers_once() {
    let site = Site::new().await;
    // The steps that finish, in their order: the gate opens, starts the run, decides, answers; the jobs of the run between.
    for visit in 1..=6 {
        let files: Vec<(String, String)> =
            (1..=visit).map(|it| (format!("{it}_t.sql"), format!("create table t{it} (id int);"))).collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let deployment = site.deploy(&files);
        let check = site.vercel.begin_check(&deployment);
        let event = site.vercel.check_event("deployment.checkrun.start", &check);
        let mut dying = site.house.start_to_end("up", &[("NIGHTPORTER_KILL_AT", &format!("step finishing:{visit}"))]);
        let door = eventually("it listens", async || dying.server()).await;
        deliver(&door, &event).await;
        let status = eventually("it dies or answers", async || {
            let answered = site.vercel.check_run(&check)["status"] == "completed";
            dying.ended().map(Some).or_else(|| (answered && visit > 4).then_some(None))
        })
        .await;
        if let Some(status) = status {
            assert_eq!(status.signal(), Some(9), "it ended otherwise than by our hand at step {visit}");
        }
        drop(dying);
        let up = site.house.start("up");
        assert_eq!(site.answered(&check).await, "succeeded", "killed at step {visit}");
        assert_eq!(deliver(&up.server(), &event).await, 200, "it was booked");
        assert!(up.stop().success());
        assert_eq!(site.vercel.check_run(&check)["answers"], 1, "killed at step {visit}");
        let applied =
            site.target.texts("select tablename::text from pg_tables where tablename ~ '^t[0-9]' order by 1").await;
        assert_eq!(applied.len(), visit, "killed at step {visit}: {applied:?}");
    }
}
