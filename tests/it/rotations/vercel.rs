//! Environment variables at a stub of Vercel: set, deployed, and proven by the app that was deployed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{Method, StatusCode};
use axum::routing::get;
use schemas::{JobId, JobState};
use secrets::SecretText;
use secrets::vaults::Label;
use serde_json::{Value, json};
use tests::line::{Line, Wrong};
use tests::rotation_world::RotationWorld;
use tests::vaults::TestVault;
use tests::vercel::{OWN_COMMIT, PROJECT_NAME, TOKEN, Vercel};
use tokio_util::task::AbortOnDropHandle;
use worker::world::{Connections, VercelConnection};

/// The app, at its production domain: it answers well if the deployment that serves has a value that it may have.
struct App {
    host: String,
    /// The values with which it was asked for its health.
    asked_with: Arc<Mutex<Vec<String>>>,
    /// Whether it works with new values.
    works: Arc<Mutex<bool>>,
    _serving: AbortOnDropHandle<()>,
}

const FIRST: &str = "the-first-canary";

impl App {
    async fn start(vercel: &Vercel) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (asked_with, works) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(true)));
        let (asked, working, vercel, own) = (Arc::clone(&asked_with), Arc::clone(&works), vercel.clone(), host.clone());
        let health = get(move || async move {
            let serving = vercel.hub(|hub| {
                let serves = |it: &&Value| it["alias"].as_array().is_some_and(|all| all.contains(&json!(own)));
                hub.deployments.iter().find(serves).and_then(|it| it["id"].as_str().map(str::to_owned))
            });
            let value = serving.and_then(|id| vercel.built_with(&id, "APP_KEY")).unwrap_or_default();
            let well = value == format!("key={FIRST}") || (!value.is_empty() && *working.lock().unwrap());
            asked.lock().unwrap().push(value);
            if well { (StatusCode::OK, "works") } else { (StatusCode::SERVICE_UNAVAILABLE, "does not work") }
        });
        let router = Router::new().route("/health", health);
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { host, asked_with, works, _serving: AbortOnDropHandle::new(serving) }
    }

    fn asked_with(&self) -> Vec<String> {
        self.asked_with.lock().unwrap().clone()
    }
}

struct Scene {
    vercel: Vercel,
    app: App,
    line: Line,
    w: RotationWorld,
}

impl Scene {
    async fn new() -> Self {
        Self::with(json!({})).await
    }

    async fn with(more: Value) -> Self {
        let vercel = Vercel::default();
        let served = vercel.deploy(Some("production"), OWN_COMMIT);
        vercel.set_variable(&json!({
            "key": "APP_KEY", "value": format!("key={FIRST}"), "type": "sensitive", "target": ["production"],
            "comment": "used by sessions",
        }));
        let app = App::start(&vercel).await;
        let line = Line::to(vercel.start().await.as_str()).await;
        let mut consumer = json!({
            "project": PROJECT_NAME, "variables": {"APP_KEY": "key={{ key }}"},
            "health": {"url": format!("http://{}/health", app.host), "tries": 1, "expect": {"contains": "works"}},
        });
        consumer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let rotation = json!({"random_key": {}, "consumers": {"app": {"vercel": consumer}}, "within": "30m"});
        let token = SecretText::parse(TOKEN).unwrap();
        let connection = VercelConnection { token, team: Some("acme".to_owned()), api_url: line.url.clone() };
        let connections = Connections { vercel: Some(connection), ..Connections::default() };
        let value = json!({"key": FIRST}).to_string();
        let w = RotationWorld::connected(TestVault::file().await, &value, rotation, connections).await;
        let scene = Self { vercel, app, line, w };
        scene.serve(&served);
        scene
    }

    /// The production domain leads to a deployment.
    fn serve(&self, deployment: &str) {
        self.vercel.promote(deployment);
        self.vercel.change(deployment, &json!({"alias": [self.app.host]}));
    }

    /// Whatever is ready and waits gets the domain, as Vercel does it.
    fn serve_newest(&self) {
        let newest = self.vercel.hub(|hub| hub.deployments.last().and_then(|it| it["id"].as_str().map(str::to_owned)));
        let newest = newest.unwrap();
        if self.vercel.deployment(&newest)["readySubstate"] == "STAGED" {
            self.serve(&newest);
        }
    }

    async fn drive(&self, job: JobId) -> schemas::api::JobView {
        self.w.drive(job, async || self.serve_newest()).await
    }

    /// The same, in steps that are shorter than the time within which a new deployment is listed.
    async fn drive_slowly(&self, job: JobId) -> schemas::api::JobView {
        self.w.drive_by(Duration::from_secs(10), job, async || self.serve_newest()).await
    }

    fn redeployments(&self) -> Vec<Value> {
        let marked = |it: &&Value| it["meta"]["nightporterPublication"].is_string();
        self.vercel.hub(|hub| hub.deployments.iter().filter(marked).cloned().collect())
    }

    fn comment(&self) -> String {
        self.vercel.variable("APP_KEY").unwrap()["comment"].as_str().unwrap().to_owned()
    }

    fn value(&self) -> String {
        self.vercel.variable("APP_KEY").unwrap()["value"].as_str().unwrap().to_owned()
    }

    async fn key_of(&self, job: JobId) -> String {
        let value: Value = serde_json::from_str(&self.w.value_of(job).await).unwrap();
        format!("key={}", value["key"].as_str().unwrap())
    }
}

/// Waits until the job sleeps.
async fn sleeps(scene: &Scene, job: JobId) -> String {
    let ends = [JobState::Scheduled, JobState::Completed, JobState::Discarded, JobState::Retryable];
    let view = scene.w.world.wait_for(job, &ends).await;
    assert_eq!(view.state, JobState::Scheduled, "{:?}", view.reason);
    view.reason.unwrap_or_default()
}

#[tokio::test]
async fn a_variable_is_set_deployed_and_current_only_when_the_app_that_has_it_answers_well() {
    let scene = Scene::new().await;
    let job = scene.w.start().await;
    let reason = sleeps(&scene, job).await;
    assert!(reason.contains("promote it"), "{reason}");
    let new = scene.key_of(job).await;
    assert_eq!(scene.value(), new);
    assert!(scene.comment().starts_with(&format!("used by sessions [nightporter {job} ")), "{}", scene.comment());
    let made = scene.redeployments();
    assert_eq!(made.len(), 1);
    assert_eq!(made[0]["meta"]["nightporterJob"], json!(job));
    assert_eq!((&made[0]["gitSource"]["sha"], &made[0]["target"]), (&json!(OWN_COMMIT), &json!("production")));
    assert!(scene.app.asked_with().is_empty(), "the older deployment would answer well too");
    assert_eq!(scene.w.holder(Label::Current).await.as_ref(), Some(&scene.w.first));

    scene.serve_newest();
    scene.w.world.pass(Duration::from_secs(20)).await;
    let reason = sleeps(&scene, job).await;
    assert!(reason.contains("the new value is current and proven"), "{reason}");
    assert_eq!(scene.app.asked_with(), std::slice::from_ref(&new));
    scene.w.world.pass(Duration::from_hours(1)).await;
    scene.w.world.completed(job).await;
    let ledger = scene.w.ledger().await;
    assert!(!ledger.contains(&new[4..]) && !ledger.contains("canary"), "{ledger}");
    assert_eq!(scene.redeployments().len(), 1);
    scene.w.world.close().await;
}

#[tokio::test]
async fn an_app_that_does_not_work_with_the_new_value_gets_the_old_one_back() {
    let scene = Scene::new().await;
    *scene.app.works.lock().unwrap() = false;
    let job = scene.w.start().await;
    let view = scene.drive(job).await;
    let reason = view.reason.unwrap_or_default();
    assert_eq!(view.state, JobState::Discarded);
    assert!(reason.contains("503") && reason.contains("everything was taken back"), "{reason}");
    assert_eq!(scene.value(), format!("key={FIRST}"));
    let made = scene.redeployments();
    assert_eq!(made.len(), 2, "it was deployed again with the old value");
    assert_eq!(made[1]["meta"]["nightporterPublication"], format!("{job}-back"));
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_deployment_that_fails_or_a_domain_that_never_comes_has_everything_taken_back() {
    for fails in [true, false] {
        let scene = Scene::new().await;
        let job = scene.w.start().await;
        sleeps(&scene, job).await;
        let made = scene.redeployments()[0]["id"].as_str().unwrap().to_owned();
        if fails {
            scene.vercel.change(&made, &json!({"readyState": "ERROR", "readySubstate": null}));
        } else {
            scene.vercel.hub(|hub| {
                hub.project(PROJECT_NAME).unwrap()["autoAssignCustomDomains"] = json!(false);
            });
        }
        let back = async || {
            let newest = scene.redeployments().last().unwrap()["id"].as_str().unwrap().to_owned();
            if newest != made {
                scene.serve_newest();
            }
        };
        let view = scene.w.drive(job, back).await;
        let reason = view.reason.unwrap_or_default();
        let why = if fails { "ended with `ERROR`" } else { "a rollback is in force" };
        assert!(reason.contains(why) && reason.contains("everything was taken back"), "{reason}");
        assert_eq!(scene.value(), format!("key={FIRST}"));
        scene.w.is_as_before().await;
        scene.w.world.close().await;
    }
}

#[tokio::test]
async fn killed_at_each_request_it_ends_as_if_it_had_not_been() {
    let scene = Scene::new().await;
    let job = scene.w.start().await;
    assert_eq!(scene.drive(job).await.state, JobState::Completed);
    let requests = scene.line.requests().len();
    scene.w.world.close().await;
    assert!(requests >= 8, "{requests}");
    for wrong in [Wrong::Held, Wrong::Lost, Wrong::Broken, too_many()] {
        for number in 1..=requests {
            let mut scene = Scene::new().await;
            scene.line.at(number, wrong.clone());
            let job = scene.w.start().await;
            if matches!(wrong, Wrong::Held) {
                killed_when_it_goes_wrong(&mut scene, job).await;
            }
            let view = scene.drive(job).await;
            assert!(scene.line.went_wrong(), "{wrong:?} {number}");
            assert_eq!(view.state, JobState::Completed, "{wrong:?} {number}: {:?}", view.reason);
            assert_eq!(scene.value(), scene.key_of(job).await, "{wrong:?} {number}");
            assert_eq!(scene.redeployments().len(), 1, "{wrong:?} {number}: {:#?}", scene.line.requests());
            assert_eq!(scene.w.t.vault.describe(&scene.w.secret).await.unwrap().versions.len(), 2);
            scene.w.world.close().await;
        }
    }
}

fn too_many() -> Wrong {
    let body = r#"{"error": {"code": "rate_limited", "message": "Too many requests"}}"#;
    Wrong::Answered(StatusCode::TOO_MANY_REQUESTS, vec![("retry-after", "7")], body)
}

/// Lets the job go on until the line has it wait for ever, and kills it there.
async fn killed_when_it_goes_wrong(scene: &mut Scene, job: JobId) {
    for _ in 0..600 {
        let wrong = scene.line.has_gone_wrong();
        let sleeps = scene.w.world.wait_for(job, &[JobState::Scheduled, JobState::Retryable]);
        tokio::select! {
            () = wrong => break,
            _ = sleeps => {}
        }
        scene.serve_newest();
        scene.w.world.pass(Duration::from_secs(50)).await;
    }
    scene.w.world.stop_worker().await;
    scene.w.world.start_worker();
}

#[tokio::test]
async fn what_is_there_in_another_form_is_refused_before_anything_is_changed() {
    let scene = Scene::with(json!({"type": "encrypted"})).await;
    let job = scene.w.start().await;
    let view = scene.drive(job).await;
    let reason = view.reason.unwrap_or_default();
    assert!(reason.contains("`APP_KEY`") && reason.contains("sensitive for production"), "{reason}");
    assert!(reason.contains("everything was taken back"), "{reason}");
    assert_eq!(scene.vercel.count(&Method::POST, "/env"), 0);
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_variable_that_somebody_changes_meanwhile_is_not_taken_for_proven() {
    let scene = Scene::new().await;
    let job = scene.w.start().await;
    sleeps(&scene, job).await;
    scene.vercel.hub(|hub| {
        hub.other.get_mut("variables").unwrap()[0]["comment"] = json!("by hand");
    });
    scene.serve_newest();
    let view = scene.drive(job).await;
    let reason = view.reason.unwrap_or_default();
    assert!(reason.contains("changed or removed by somebody else"), "{reason}");
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_variable_that_is_not_there_is_made_for_all_its_environments_and_those_of_branches_stay() {
    let more = json!({"variables": {"NEW_KEY": "{{ key }}"}, "targets": ["production", "preview"]});
    let scene = Scene::with(more).await;
    scene.vercel.set_variable(&json!({
        "key": "NEW_KEY", "value": "of-a-branch", "type": "encrypted", "target": ["preview"], "gitBranch": "next",
    }));
    let job = scene.w.start().await;
    let view = scene.drive(job).await;
    assert_eq!(view.state, JobState::Completed, "{:?}", view.reason);
    let variables = scene.vercel.hub(|hub| hub.other["variables"].as_array().unwrap().clone());
    let new: Vec<&Value> = variables.iter().filter(|it| it["key"] == "NEW_KEY").collect();
    assert_eq!((new.len(), &new[0]["value"]), (2, &json!("of-a-branch")));
    assert_eq!(new[1]["target"], json!(["production", "preview"]));
    assert_eq!(format!("key={}", new[1]["value"].as_str().unwrap()), scene.key_of(job).await);
    scene.w.world.close().await;
}

#[tokio::test]
async fn where_one_of_several_cannot_be_set_none_is() {
    let scene = Scene::with(json!({"variables": {"APP_KEY": "key={{ key }}", "OTHER": "{{ key }}"}})).await;
    scene.vercel.set_variable(&json!({
        "key": "OTHER", "value": "x", "type": "encrypted", "target": ["production"], "comment": "",
    }));
    let job = scene.w.start().await;
    let reason = scene.drive(job).await.reason.unwrap_or_default();
    assert!(reason.contains("`OTHER`") && reason.contains("everything was taken back"), "{reason}");
    assert_eq!((scene.vercel.count(&Method::POST, "/env"), scene.value()), (0, format!("key={FIRST}")));
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_refusal_within_an_answer_that_says_created_is_a_refusal() {
    let scene = Scene::new().await;
    let failed = r#"{"created": {}, "failed": [{"error": {"code": "ENV_CONFLICT", "message": "canary"}}]}"#;
    scene.line.next("/env?", Wrong::Answered(StatusCode::CREATED, vec![], failed));
    scene.line.next("upsert", Wrong::Answered(StatusCode::CREATED, vec![], failed));
    let job = scene.w.start().await;
    let reason = scene.drive(job).await.reason.unwrap_or_default();
    assert!(reason.contains("ENV_CONFLICT") && !reason.contains("canary"), "{reason}");
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_deployment_whose_answer_was_lost_and_that_is_listed_late_is_not_made_twice() {
    let scene = Scene::new().await;
    scene.line.next("POST /v13/deployments", Wrong::Lost);
    scene.vercel.hub(|hub| hub.late = 1);
    let job = scene.w.start().await;
    let view = scene.drive_slowly(job).await;
    assert_eq!(view.state, JobState::Completed, "{:?}", view.reason);
    assert_eq!(scene.redeployments().len(), 1);
    assert_eq!(scene.vercel.hub(|hub| hub.late), 0, "it was looked for before it was listed");
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_deployment_that_is_being_built_or_does_not_have_the_domain_proves_nothing() {
    let scene = Scene::new().await;
    let job = scene.w.start().await;
    sleeps(&scene, job).await;
    let made = scene.redeployments()[0]["id"].as_str().unwrap().to_owned();
    for (state, substate, alias, why) in [
        ("BUILDING", Value::Null, scene.app.host.as_str(), "is BUILDING"),
        ("READY", json!("PROMOTED"), "other.example.com", "does not lead to"),
    ] {
        scene.vercel.change(&made, &json!({"readyState": state, "readySubstate": substate, "alias": [alias]}));
        scene.w.world.pass(Duration::from_secs(20)).await;
        let reason = sleeps(&scene, job).await;
        assert!(reason.contains(why), "{reason}");
        assert!(scene.app.asked_with().is_empty(), "another deployment would answer");
    }
    scene.serve(&made);
    scene.w.world.pass(Duration::from_secs(20)).await;
    assert!(sleeps(&scene, job).await.contains("the new value is current and proven"));
    scene.w.world.close().await;
}

#[tokio::test]
async fn who_refuses_after_an_attempt_that_may_have_changed_something_is_given_the_old_value_back() {
    let scene = Scene::new().await;
    scene.line.next("POST /v10", Wrong::Lost);
    let job = scene.w.start().await;
    scene.w.world.first_failure(job).await;
    assert_ne!(scene.value(), format!("key={FIRST}"), "it was set, and nobody heard of it");
    scene.line.next("GET /v10", Wrong::Answered(StatusCode::FORBIDDEN, vec![], r#"{"error": {"code": "forbidden"}}"#));
    let view = scene.drive(job).await;
    let reason = view.reason.unwrap_or_default();
    assert!(reason.contains("may not change") && reason.contains("everything was taken back"), "{reason}");
    assert_eq!(scene.value(), format!("key={FIRST}"));
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}
