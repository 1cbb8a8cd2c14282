//! Access keys of IAM users, at a real server of AWS's protocols.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use schemas::{JobId, JobState};
use secrets::vaults::Label;
use serde_json::{Value, json};
use tests::line::{Line, Wrong};
use tests::rotation_world::RotationWorld;
use tests::vaults::TestVault;
use uuid::Uuid;
use worker::world::Connections;

struct Scene {
    user: String,
    line: Line,
    /// The first key's id.
    first: String,
    w: RotationWorld,
}

/// Calls IAM, as a person does; what stands between such tags in its answer.
async fn iam(parameters: &[(&str, &str)], tag: &str) -> Vec<String> {
    let signed =
        "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=none";
    let body = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(parameters)
        .append_pair("Version", "2010-05-08")
        .finish();
    let called = tests::backup_world::http()
        .post(tests::server(tests::s3::SERVER))
        .header("content-type", "application/x-www-form-urlencoded")
        .header("authorization", signed)
        .body(body);
    let answer = called.send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    let text = answer.text().await.unwrap();
    let tag = format!("<{tag}>");
    text.split(&tag).skip(1).map(|part| part.split("</").next().unwrap().to_owned()).collect()
}

impl Scene {
    async fn new() -> Self {
        Self::with(json!({})).await
    }

    async fn with(more: Value) -> Self {
        let user = format!("np-{}", Uuid::new_v4().simple());
        iam(&[("Action", "CreateUser"), ("UserName", &user)], "UserName").await;
        let made = [("Action", "CreateAccessKey"), ("UserName", user.as_str())];
        let first = iam(&made, "AccessKeyId").await.remove(0);
        let line = Line::to(&tests::server(tests::s3::SERVER)).await;
        let mut key = json!({"user": user, "credentials": "test:test", "endpoint": line.url});
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let value = json!({"access_key_id": first, "secret_access_key": "the-first-canary", "bucket": "nightly"});
        let rotation = json!({"aws_access_key": key});
        let t = TestVault::file().await;
        let w = RotationWorld::connected(t, &value.to_string(), rotation, Connections::default()).await;
        Self { user, line, first, w }
    }

    /// The user's keys, and whether each is active.
    async fn keys(&self) -> BTreeMap<String, bool> {
        let list = [("Action", "ListAccessKeys"), ("UserName", self.user.as_str())];
        let ids = iam(&list, "AccessKeyId").await;
        let states = iam(&list, "Status").await;
        ids.into_iter().zip(states.iter().map(|state| state == "Active")).collect()
    }

    async fn set_active(&self, key: &str, status: &str) {
        let user = self.user.as_str();
        let set = [("Action", "UpdateAccessKey"), ("UserName", user), ("AccessKeyId", key), ("Status", status)];
        iam(&set, "RequestId").await;
    }

    async fn current(&self) -> Value {
        serde_json::from_str(&self.w.current().await).unwrap()
    }

    async fn drive(&self, job: JobId) -> schemas::api::JobView {
        self.w.drive(job, async || {}).await
    }
}

#[tokio::test]
async fn a_key_is_made_tried_and_current_and_the_old_one_inactive_and_then_deleted() {
    let scene = Scene::new().await;
    let job = scene.w.start().await;
    let mut states = Vec::new();
    let view = scene
        .w
        .drive(job, async || {
            let state = scene.keys().await;
            if states.last() != Some(&state) {
                states.push(state);
            }
        })
        .await;
    assert_eq!(view.state, JobState::Completed, "{:?}", view.reason);
    let current = scene.current().await;
    let new = current["access_key_id"].as_str().unwrap().to_owned();
    assert_eq!((&current["bucket"], new != scene.first), (&json!("nightly"), true));
    let both = |old: bool| BTreeMap::from([(scene.first.clone(), old), (new.clone(), true)]);
    assert_eq!(states, [both(true), both(false)]);
    assert_eq!(scene.keys().await, [(new, true)].into());
    let (ledger, secret) = (scene.w.ledger().await, current["secret_access_key"].as_str().unwrap());
    assert!(!ledger.contains(secret) && !ledger.contains("canary"), "{ledger}");
    scene.w.world.close().await;
}

#[tokio::test]
async fn killed_at_each_call_or_unanswered_or_throttled_it_leaves_one_key_and_that_is_the_vaults() {
    let scene = Scene::new().await;
    let job = scene.w.start().await;
    assert_eq!(scene.drive(job).await.state, JobState::Completed);
    let requests = scene.line.requests().len();
    scene.w.world.close().await;
    assert!(requests >= 6, "{requests}");
    let throttled = "<ErrorResponse><Error><Type>Sender</Type><Code>Throttling</Code><Message>Rate exceeded</Message>\
                     </Error></ErrorResponse>";
    let throttled = Wrong::Answered(StatusCode::BAD_REQUEST, vec![], throttled);
    for wrong in [Wrong::Held, Wrong::Lost, Wrong::Broken, throttled] {
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
            let current = scene.current().await["access_key_id"].as_str().unwrap().to_owned();
            assert_eq!(scene.keys().await, [(current, true)].into(), "{wrong:?} {number}");
            assert_eq!(scene.w.holder(Label::Pending).await, None);
            scene.w.world.close().await;
        }
    }
}

async fn killed_when_it_goes_wrong(scene: &mut Scene, job: JobId) {
    for _ in 0..600 {
        let wrong = scene.line.has_gone_wrong();
        let sleeps = scene.w.world.wait_for(job, &[JobState::Scheduled, JobState::Retryable]);
        tokio::select! {
            () = wrong => break,
            _ = sleeps => {}
        }
        scene.w.world.pass(std::time::Duration::from_secs(50)).await;
    }
    scene.w.world.stop_worker().await;
    scene.w.world.start_worker();
}

#[tokio::test]
async fn a_user_without_room_or_with_other_keys_than_the_vault_knows_is_refused_before_anything_happens() {
    let scene = Scene::new().await;
    let made = [("Action", "CreateAccessKey"), ("UserName", scene.user.as_str())];
    let other = iam(&made, "AccessKeyId").await.remove(0);
    let before = scene.keys().await;
    let reason = scene.w.world.discarded("rotate", &RotationWorld::args()).await;
    assert!(reason.contains("two keys already") && reason.contains(&other), "{reason}");
    assert_eq!(scene.keys().await, before);
    scene.w.is_as_before().await;

    let delete =
        [("Action", "DeleteAccessKey"), ("UserName", scene.user.as_str()), ("AccessKeyId", scene.first.as_str())];
    iam(&delete, "RequestId").await;
    let reason = scene.w.world.discarded("rotate", &RotationWorld::args()).await;
    assert!(reason.contains("none of the keys of"), "{reason}");
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_key_that_aws_does_not_know_yet_is_tried_again() {
    let scene = Scene::new().await;
    let unknown = "<ErrorResponse><Error><Type>Sender</Type><Code>InvalidClientTokenId</Code><Message>The security token \
                   included in the request is invalid.</Message></Error></ErrorResponse>";
    scene.line.next("GetCallerIdentity", Wrong::Answered(StatusCode::FORBIDDEN, vec![], unknown));
    let job = scene.w.start().await;
    let view = scene.w.world.wait_for(job, &[JobState::Scheduled, JobState::Discarded]).await;
    assert!(view.reason.unwrap_or_default().contains("does not know the new key everywhere yet"));
    assert_eq!(scene.drive(job).await.state, JobState::Completed);
    scene.w.world.close().await;
}

#[tokio::test]
async fn an_old_key_that_is_used_or_made_active_again_is_not_deleted() {
    let scene = Scene::new().await;
    let job = scene.w.start().await;
    // AWS says that the old key was used a minute before the overlap is over, as it does minutes later.
    let at = (scene.w.world.queue.clock().now() + chrono::TimeDelta::minutes(59)).to_rfc3339();
    let used = format!(
        "<GetAccessKeyLastUsedResponse><GetAccessKeyLastUsedResult><AccessKeyLastUsed><LastUsedDate>{at}</LastUsedDate>\
         <ServiceName>s3</ServiceName><Region>eu-central-1</Region></AccessKeyLastUsed></GetAccessKeyLastUsedResult>\
         </GetAccessKeyLastUsedResponse>"
    );
    scene.line.next("GetAccessKeyLastUsed", Wrong::Answered(StatusCode::OK, vec![], used.leak()));
    let mut reasons = Vec::new();
    let view = scene
        .w
        .drive(job, async || {
            let view = scene.w.world.queue.ledger().job(job).await.unwrap().unwrap();
            reasons.push(view.reason.unwrap_or_default());
            if scene.keys().await.get(&scene.first) == Some(&false) {
                scene.set_active(&scene.first, "Active").await;
            }
        })
        .await;
    assert!(reasons.iter().any(|reason| reason.contains("was used at") && reason.contains("s3")), "{reasons:?}");
    assert_eq!(view.state, JobState::Discarded);
    let reason = view.reason.unwrap_or_default();
    assert!(reason.contains("active again, so it was not deleted"), "{reason}");
    assert_eq!(scene.keys().await.len(), 2);

    scene.set_active(&scene.first, "Inactive").await;
    scene.w.world.retry(job).await;
    assert_eq!(scene.drive(job).await.state, JobState::Completed);
    assert_eq!(scene.keys().await.len(), 1);
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_new_key_that_cannot_be_tried_is_deleted_and_a_lost_one_too() {
    let scene = Scene::new().await;
    let denied = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User is not authorized\
                  </Message></Error></ErrorResponse>";
    scene.line.next("GetCallerIdentity", Wrong::Answered(StatusCode::FORBIDDEN, vec![], denied));
    // Somebody has switched off the one that the vault calls current: what is taken back ends with one that is valid.
    scene.set_active(&scene.first, "Inactive").await;
    let job = scene.w.start().await;
    let view = scene.drive(job).await;
    assert!(view.reason.unwrap_or_default().contains("everything was taken back"));
    assert_eq!(scene.keys().await, [(scene.first.clone(), true)].into());
    scene.w.is_as_before().await;

    // One whose answer is lost, and then nothing may be made any more.
    scene.line.next("CreateAccessKey", Wrong::Lost);
    scene.line.next("CreateAccessKey", Wrong::Answered(StatusCode::FORBIDDEN, vec![], denied));
    let job = scene.w.start().await;
    let view = scene.drive(job).await;
    let reason = view.reason.unwrap_or_default();
    assert!(reason.contains("iam:CreateAccessKey") && reason.contains("everything was taken back"), "{reason}");
    assert_eq!(scene.keys().await, [(scene.first.clone(), true)].into());
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_key_that_somebody_else_made_meanwhile_and_uses_is_not_deleted() {
    let scene = Scene::new().await;
    scene.line.next("CreateAccessKey", Wrong::Broken);
    let used = "<GetAccessKeyLastUsedResponse><GetAccessKeyLastUsedResult><AccessKeyLastUsed><LastUsedDate>\
                2026-11-01T00:00:00Z</LastUsedDate><ServiceName>s3</ServiceName><Region>eu-central-1</Region>\
                </AccessKeyLastUsed></GetAccessKeyLastUsedResult></GetAccessKeyLastUsedResponse>";
    for _ in 0..4 {
        scene.line.next("GetAccessKeyLastUsed", Wrong::Answered(StatusCode::OK, vec![], used));
    }
    let job = scene.w.start().await;
    scene.w.world.first_failure(job).await;
    let made = [("Action", "CreateAccessKey"), ("UserName", scene.user.as_str())];
    let theirs = iam(&made, "AccessKeyId").await.remove(0);
    let reason = scene.drive(job).await.reason.unwrap_or_default();
    assert!(reason.contains("made by somebody else") && reason.contains(&theirs), "{reason}");
    assert_eq!(scene.keys().await, [(scene.first.clone(), true), (theirs, true)].into());
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_new_key_that_is_somebody_elses_is_not_taken_for_the_users() {
    let scene = Scene::new().await;
    let other = "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/other</Arn>\
                 <UserId>AIDA</UserId><Account>123456789012</Account></GetCallerIdentityResult>\
                 </GetCallerIdentityResponse>";
    scene.line.next("GetCallerIdentity", Wrong::Answered(StatusCode::OK, vec![], other));
    let job = scene.w.start().await;
    let reason = scene.drive(job).await.reason.unwrap_or_default();
    assert!(reason.contains("user/other and not of") && reason.contains("everything was taken back"), "{reason}");
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_lost_key_that_is_not_listed_yet_and_takes_the_room_is_waited_for() {
    let scene = Scene::new().await;
    let no_room = "<ErrorResponse><Error><Type>Sender</Type><Code>LimitExceeded</Code><Message>Cannot exceed quota for \
                   AccessKeysPerUser: 2</Message></Error></ErrorResponse>";
    scene.line.next("CreateAccessKey", Wrong::Answered(StatusCode::CONFLICT, vec![], no_room));
    let job = scene.w.start().await;
    let view = scene.drive(job).await;
    assert_eq!(view.state, JobState::Completed, "{:?}", view.reason);
    assert_eq!(scene.keys().await.len(), 1);
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_lost_key_is_deleted_on_the_way_back_too() {
    let scene = Scene::new().await;
    scene.line.next("CreateAccessKey", Wrong::Lost);
    let job = scene.w.start().await;
    scene.w.world.first_failure(job).await;
    assert_eq!(scene.keys().await.len(), 2, "one whose secret nobody has");
    let denied = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User is not authorized\
                  </Message></Error></ErrorResponse>";
    scene.line.next("ListAccessKeys", Wrong::Answered(StatusCode::FORBIDDEN, vec![], denied));
    let reason = scene.drive(job).await.reason.unwrap_or_default();
    assert!(reason.contains("iam:ListAccessKeys") && reason.contains("everything was taken back"), "{reason}");
    assert_eq!(scene.keys().await, [(scene.first.clone(), true)].into());
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}
