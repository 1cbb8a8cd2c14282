//! A secret of GitHub's Actions at a stub of GitHub: sealed, put, and proven.

use axum::http::StatusCode;
use schemas::{JobId, JobState};
use secrets::SecretText;
use serde_json::{Value, json};
use tests::github_workflows::WORKFLOW;
use tests::line::{Line, Wrong};
use tests::migration_world::{Github, REPOSITORY, TOKEN};
use tests::rotation_world::RotationWorld;
use tests::vaults::TestVault;
use worker::world::{Connections, GithubConnection};

const PLACE: &str = "environments/production/secrets/APP_KEY";

struct Scene {
    github: Github,
    line: Line,
    w: RotationWorld,
}

impl Scene {
    async fn new(more: Value) -> Self {
        let github = Github::default();
        let line = Line::to(github.start().await.as_str()).await;
        let mut secret = json!({
            "repository": REPOSITORY, "environment": "production", "secret": "APP_KEY", "value": "key={{ key }}",
        });
        secret.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let rotation = json!({"random_key": {}, "consumers": {"ci": {"github_secret": secret}}, "within": "2h"});
        let connection = GithubConnection { token: SecretText::parse(TOKEN).unwrap(), api_url: line.url.clone() };
        let connections = Connections { github: Some(connection), ..Connections::default() };
        let value = r#"{"key": "the-first-canary"}"#;
        let w = RotationWorld::connected(TestVault::file().await, value, rotation, connections).await;
        Self { github, line, w }
    }

    fn value(&self, place: &str) -> Option<String> {
        self.github.secrets(|it| it.values.get(place).map(|value| String::from_utf8(value.clone()).unwrap()))
    }

    async fn key_of(&self, job: JobId) -> String {
        let value: Value = serde_json::from_str(&self.w.value_of(job).await).unwrap();
        format!("key={}", value["key"].as_str().unwrap())
    }

    async fn drive(&self, job: JobId) -> schemas::api::JobView {
        self.w.drive(job, async || {}).await
    }
}

#[tokio::test]
async fn a_value_is_sealed_put_and_proven_by_when_github_changed_it() {
    for (environment, place) in [(json!("production"), PLACE), (Value::Null, "actions/secrets/APP_KEY")] {
        let scene = Scene::new(json!({"environment": environment})).await;
        for _ in 0..2 {
            let job = scene.w.start().await;
            assert_eq!(scene.drive(job).await.state, JobState::Completed);
            let new = scene.key_of(job).await;
            assert_eq!(scene.value(place).as_ref(), Some(&new), "there is none first, then an older one");
            let requests = scene.line.requests().concat();
            assert!(!requests.contains(&new[4..]), "it is never sent but sealed");
            assert!(!scene.w.ledger().await.contains(&new[4..]));
        }
        scene.w.world.close().await;
    }
}

#[tokio::test]
async fn what_github_does_not_show_as_changed_is_not_taken_for_put() {
    let scene = Scene::new(json!({})).await;
    let job = scene.w.start().await;
    assert_eq!(scene.drive(job).await.state, JobState::Completed);
    scene.github.secrets(|it| it.passes = 0);
    let job = scene.w.start().await;
    let view = scene.w.world.wait_for(job, &[JobState::Scheduled, JobState::Completed]).await;
    let reason = view.reason.unwrap_or_default();
    assert!(reason.contains("does not show yet that it changed"), "{reason}");
    scene.github.secrets(|it| it.passes = 1);
    assert_eq!(scene.drive(job).await.state, JobState::Completed);
    scene.w.world.close().await;
}

#[tokio::test]
async fn killed_at_each_request_or_unanswered_or_limited_it_ends_as_if_it_had_not_been() {
    let scene = Scene::new(json!({})).await;
    let job = scene.w.start().await;
    assert_eq!(scene.drive(job).await.state, JobState::Completed);
    let requests = scene.line.requests().len();
    scene.w.world.close().await;
    assert!(requests >= 5, "{requests}");
    let limited = Wrong::Answered(StatusCode::FORBIDDEN, vec![("retry-after", "7")], r#"{"message": "secondary"}"#);
    for wrong in [Wrong::Held, Wrong::Lost, Wrong::Broken, limited] {
        for number in 1..=requests {
            let mut scene = Scene::new(json!({})).await;
            scene.line.at(number, wrong.clone());
            let job = scene.w.start().await;
            if matches!(wrong, Wrong::Held) {
                scene.line.has_gone_wrong().await;
                scene.w.world.stop_worker().await;
                scene.w.world.start_worker();
            }
            let view = scene.drive(job).await;
            assert!(scene.line.went_wrong(), "{wrong:?} {number}");
            assert_eq!(view.state, JobState::Completed, "{wrong:?} {number}: {:?}", view.reason);
            assert_eq!(scene.value(PLACE), Some(scene.key_of(job).await), "{wrong:?} {number}");
            scene.w.world.close().await;
        }
    }
}

#[tokio::test]
async fn a_workflow_that_is_named_must_end_well_with_the_new_value() {
    for conclusion in ["success", "failure"] {
        let workflow = json!({"file": WORKFLOW, "ref": "main", "mark": "porter", "within": "1h"});
        let scene = Scene::new(json!({"workflow": workflow})).await;
        let job = scene.w.start().await;
        let mut conclude = 0;
        let view = scene
            .w
            .drive(job, async || {
                conclude += 1;
                // The run with the old value, on the way back, ends well.
                scene.github.workflows(|it| it.conclude(if conclude == 1 { conclusion } else { "success" }));
            })
            .await;
        let runs = scene.github.workflows(|it| it.taken.len());
        if conclusion == "success" {
            assert_eq!((view.state, runs), (JobState::Completed, 1));
            assert_eq!(scene.value(PLACE), Some(scene.key_of(job).await));
        } else {
            let reason = view.reason.unwrap_or_default();
            assert!(reason.contains("ended with `failure`") && reason.contains("was taken back"), "{reason}");
            assert_eq!(runs, 2);
            assert_eq!(scene.value(PLACE).as_deref(), Some("key=the-first-canary"));
            scene.w.is_as_before().await;
        }
        scene.w.world.close().await;
    }
}

#[tokio::test]
async fn a_refusal_says_which_right_is_missing_and_nothing_is_left_behind() {
    let scene = Scene::new(json!({})).await;
    scene.line.next("PUT", Wrong::Answered(StatusCode::FORBIDDEN, vec![], r#"{"message": "Resource not accessible"}"#));
    let job = scene.w.start().await;
    let view = scene.drive(job).await;
    let reason = view.reason.unwrap_or_default();
    assert!(reason.contains("`environments: write`") && reason.contains("everything was taken back"), "{reason}");
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_secret_that_somebody_changes_while_it_is_proven_is_not_taken_for_proven() {
    let workflow = json!({"file": WORKFLOW, "ref": "main", "mark": "porter", "within": "1h"});
    let scene = Scene::new(json!({"workflow": workflow})).await;
    let job = scene.w.start().await;
    let mut changed = false;
    let view = scene
        .w
        .drive(job, async || {
            if !std::mem::replace(&mut changed, true) {
                scene.github.secrets(|it| it.change_by_hand(PLACE));
            }
            scene.github.workflows(|it| it.conclude("success"));
        })
        .await;
    let reason = view.reason.unwrap_or_default();
    assert!(reason.contains("somebody has changed or removed it") && reason.contains("was taken back"), "{reason}");
    assert_eq!(scene.value(PLACE).as_deref(), Some("key=the-first-canary"));
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_value_that_github_would_not_take_is_not_sent() {
    let scene = Scene::new(json!({"value": format!("{}{{{{ key }}}}", "x".repeat(48 * 1024))})).await;
    let job = scene.w.start().await;
    let reason = scene.drive(job).await.reason.unwrap_or_default();
    assert!(reason.contains("more than 48 KB") && reason.contains("everything was taken back"), "{reason}");
    assert_eq!(scene.line.count("PUT"), 0);
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}
