//! Vercel's deployments and check runs that no webhook told of.

use std::time::Duration;

use axum::http::{HeaderMap, Method, StatusCode};
use producer::source_type;
use schemas::Timestamp;
use serde_json::{Value, json};
use tests::backup_world::{has_the_names_of, http};
use tests::vercel::{Fault, OWN_COMMIT, PROJECT_NAME};

use super::{Site, VERCELS_SECRET};

const A_WHILE: Duration = Duration::from_mins(10);

fn args(more: Value) -> Value {
    let mut args = json!({"of": "vercel", "project": PROJECT_NAME});
    args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    args
}

impl Site {
    /// Sends a webhook; whether it was known.
    async fn webhook(&self, body: &Value) -> bool {
        let body = body.to_string();
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "application/json".parse().unwrap());
        let vercel = source_type("vercel").unwrap();
        vercel.sign(&VERCELS_SECRET.into(), &mut headers, body.as_bytes(), Timestamp::UNIX_EPOCH).unwrap();
        let sent = http().post(self.door.url("vercel")).headers(headers).body(body).send().await.unwrap();
        match sent.status() {
            StatusCode::OK => true,
            StatusCode::ACCEPTED => false,
            other => panic!("{other}"),
        }
    }

    /// A deployment to production that is served.
    async fn deployed(&self) -> String {
        let id = self.vercel.deploy(Some("production"), OWN_COMMIT);
        self.vercel.promote(&id);
        self.pass(A_WHILE).await;
        id
    }
}

#[tokio::test]
async fn what_no_webhook_told_is_booked_once_whether_the_webhook_comes_late_or_never() {
    let site = Site::open().await;
    let id = site.deployed().await;
    let output = site.reconcile(&args(json!({}))).await;
    has_the_names_of("reconcile", &output);
    assert_eq!((&output["deployments"], &output["missing"], &output["brought_in"]), (&json!(1), &json!(2), &json!(2)));
    let events = site.door.events().await;
    assert_eq!(site.kinds().await, ["vercel.deployment.created", "vercel.deployment.succeeded"]);
    assert_eq!(site.door.jobs_made().await, 2);
    let succeeded = &events.iter().find(|view| view.event.kind == "vercel.deployment.succeeded").unwrap().event;
    assert_eq!(succeeded.subject.as_deref(), Some(id.as_str()));
    assert_eq!(succeeded.data.git.sha.as_deref(), Some(OWN_COMMIT));
    assert_eq!(succeeded.data.target.as_deref(), Some("production"));
    assert_eq!(succeeded.data.project.name.as_deref(), Some(PROJECT_NAME));
    // The webhooks come after all, under ids of Vercel's own.
    for kind in ["deployment.created", "deployment.succeeded", "deployment-ready"] {
        assert!(site.webhook(&site.vercel.event(kind, &id, &json!({}))).await, "{kind}");
    }
    assert_eq!(site.reconcile(&args(json!({}))).await["missing"], 0);
    assert_eq!((site.kinds().await.len(), site.door.jobs_made().await), (2, 2));
    site.world.close().await;
}

#[tokio::test]
async fn what_a_webhook_told_is_not_missing_and_what_it_told_in_other_ways_neither() {
    let site = Site::open().await;
    let id = site.vercel.deploy(Some("production"), OWN_COMMIT);
    let run = site.vercel.begin_check(&id);
    for body in [
        site.vercel.event("deployment.created", &id, &json!({})),
        site.vercel.check_event("deployment.checkrun.start", &run),
    ] {
        assert!(!site.webhook(&body).await);
    }
    site.pass(A_WHILE).await;
    assert_eq!(site.reconcile(&args(json!({}))).await["missing"], 0);
    // Each promotion is one, however often the same deployment is promoted.
    for _ in 0..2 {
        assert!(!site.webhook(&site.vercel.event("deployment.promoted", &id, &json!({}))).await);
    }
    assert_eq!(site.door.jobs_made().await, 4);
    site.world.close().await;
}

#[tokio::test]
async fn of_a_webhook_and_a_job_at_the_same_moment_one_is_booked() {
    let site = Site::open().await;
    for round in 1..=8 {
        let id = site.deployed().await;
        let late = [1, 2].map(|_| site.vercel.event("deployment.succeeded", &id, &json!({})));
        let created = site.vercel.event("deployment.created", &id, &json!({}));
        let job = args(json!({}));
        let (output, ..) =
            tokio::join!(site.reconcile(&job), site.webhook(&late[0]), site.webhook(&created), site.webhook(&late[1]));
        assert!(output["brought_in"].as_u64().is_some());
        assert_eq!((site.kinds().await.len(), site.door.jobs_made().await), (round * 2, round * 2));
    }
    site.world.close().await;
}

#[tokio::test]
async fn an_open_check_run_is_to_begin_and_each_rerun_of_it() {
    let site = Site::open().await;
    let id = site.vercel.deploy(Some("production"), OWN_COMMIT);
    let run = site.vercel.begin_check(&id);
    site.pass(A_WHILE).await;
    let output = site.reconcile(&args(json!({}))).await;
    assert_eq!((&output["checks"], &output["brought_in"]), (&json!(1), &json!(2)));
    assert_eq!(site.kinds().await, ["vercel.deployment.checkrun.start", "vercel.deployment.created"]);
    assert!(site.webhook(&site.vercel.check_event("deployment.checkrun.start", &run)).await, "it is known");
    site.vercel.begin_check(&id);
    site.pass(A_WHILE).await;
    assert_eq!(site.reconcile(&args(json!({}))).await["brought_in"], 1);
    site.vercel.cancel(&id);
    site.pass(A_WHILE).await;
    site.reconcile(&args(json!({}))).await;
    assert!(site.kinds().await.contains(&"vercel.deployment.canceled".to_owned()));
    site.world.close().await;
}

#[tokio::test]
async fn what_has_just_happened_or_was_before_the_house_is_left() {
    let site = Site::open().await;
    site.vercel.hub(|hub| hub.now -= 3_600_000);
    let before = site.vercel.deploy(Some("production"), OWN_COMMIT);
    site.pass(Duration::from_secs(1)).await;
    let fresh = site.vercel.deploy(None, OWN_COMMIT);
    assert_eq!(site.reconcile(&args(json!({}))).await["looked_at"], 0);
    site.pass(A_WHILE).await;
    let from = site.world.queue.clock().now() - chrono::TimeDelta::hours(3);
    let output = site.reconcile(&args(json!({"target": "production", "from": from}))).await;
    assert_eq!(output["deployments"], 1);
    let subjects = |events: Vec<schemas::api::EventView>| -> Vec<String> {
        events.into_iter().filter_map(|view| view.event.subject).collect()
    };
    assert_eq!(subjects(site.door.events().await), [before.clone(), before]);
    site.pass(Duration::from_secs(1)).await;
    site.reconcile(&args(json!({}))).await;
    assert_eq!(subjects(site.door.events().await)[2..], [fresh.clone(), fresh]);
    site.world.close().await;
}

#[tokio::test]
async fn killed_at_any_point_it_books_each_thing_once() {
    let mut site = Site::open().await;
    // How far it came: steps that were begun, whether the first thing was booked, and whether that was noted.
    for (round, (begun, booked, noted)) in
        [(0, false, false), (1, false, false), (1, true, false), (2, true, true)].into_iter().enumerate()
    {
        site.world.stop_worker().await;
        let id = site.deployed().await;
        let names = ["created", "succeeded"].map(|kind| format!("bring in deployment.{kind} {id}"));
        let results = [noted.then_some(Value::Bool(true)), None];
        let steps: Vec<(&str, Option<Value>)> = names.iter().map(String::as_str).zip(results).take(begun).collect();
        let job = site.world.die_after("reconcile", &args(json!({})), &steps).await;
        if booked {
            assert!(!site.webhook(&site.vercel.event("deployment.created", &id, &json!({}))).await);
        }
        site.world.start_worker();
        site.world.completed(job).await;
        let expected = (round + 1) * 2;
        assert_eq!((site.kinds().await.len(), site.door.jobs_made().await), (expected, expected));
    }
    site.world.close().await;
}

#[tokio::test]
async fn refusals_say_what_to_check_and_a_vercel_that_is_away_is_asked_again() {
    let site = Site::open().await;
    site.deployed().await;
    let reason = site.world.discarded("reconcile", &args(json!({"project": "apq"}))).await;
    assert!(reason.contains("404") && reason.contains("check `project`"), "{reason}");
    site.vercel.next(&Method::GET, "deployments", Fault::Broken);
    let job = site.world.enqueue("reconcile", &args(json!({}))).await;
    assert!(site.world.first_failure(job).await.contains("listing the project's deployments"));
    site.pass(Duration::from_mins(1)).await;
    assert_eq!(site.world.completed(job).await["brought_in"], 2);
    site.world.close().await;
}

#[tokio::test]
async fn what_is_older_than_the_time_that_is_looked_back_is_left() {
    let site = Site::open().await;
    site.deployed().await;
    assert_eq!(site.reconcile(&args(json!({"within": "5m"}))).await["deployments"], 0);
    assert_eq!(site.reconcile(&args(json!({"within": "15m"}))).await["deployments"], 1);
    site.world.close().await;
}

#[tokio::test]
async fn a_list_that_goes_on_is_read_to_its_end() {
    let site = Site::open().await;
    for _ in 0..3 {
        site.deployed().await;
    }
    site.vercel.hub(|hub| hub.page = 1);
    let output = site.reconcile(&args(json!({}))).await;
    assert_eq!((&output["deployments"], &output["brought_in"]), (&json!(3), &json!(6)));
    site.world.close().await;
}

#[tokio::test]
async fn a_check_that_holds_nothing_is_to_begin_though_its_deployment_is_served() {
    let site = Site::open().await;
    let id = site.vercel.deploy(Some("production"), OWN_COMMIT);
    site.vercel.begin_check(&id);
    site.vercel.hub(|hub| hub.check_runs[0]["blocks"] = json!("none"));
    site.vercel.promote(&id);
    site.pass(A_WHILE).await;
    assert_eq!(site.reconcile(&args(json!({}))).await["brought_in"], 3);
    assert!(site.kinds().await.contains(&"vercel.deployment.checkrun.start".to_owned()));
    // Of one that was served long ago nobody asks any more.
    site.pass(Duration::from_hours(1)).await;
    site.vercel.begin_check(&id);
    site.pass(A_WHILE).await;
    let output = site.reconcile(&args(json!({}))).await;
    assert_eq!((&output["checks"], &output["brought_in"]), (&json!(0), &json!(0)));
    site.world.close().await;
}
