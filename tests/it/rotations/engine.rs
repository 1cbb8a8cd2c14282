//! The rotation itself, with the simplest secret: a random key, and files as its consumers.

use std::path::Path;
use std::time::Duration;

use schemas::JobState;
use secrets::vaults::{Label, Token};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::backup_world::has_the_names_of;
use tests::rotation_world::RotationWorld;
use tests::vaults::{TestVault, token};

use super::{on_every_vault, ring};

on_every_vault!(
    a_new_value_is_proven_then_current_and_the_old_one_is_known_for_the_overlap,
    what_an_earlier_attempt_put_into_the_vault_is_taken_up,
    a_consumer_that_refuses_has_everything_taken_back,
    a_change_by_another_hand_is_never_overwritten,
    a_version_that_was_left_behind_is_named_with_the_way_out,
);

/// A consumer for each file.
fn files(folder: &Path, names: &[&str]) -> Value {
    let consumer = |name: &&str| ((*name).to_owned(), json!({"file": {"path": folder.join(name), "key": "key"}}));
    Value::Object(names.iter().map(consumer).collect())
}

fn fields(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

async fn a_new_value_is_proven_then_current_and_the_old_one_is_known_for_the_overlap(t: TestVault) {
    let folder = TempDir::new().unwrap();
    let w = ring(t, files(folder.path(), &["one", "two"])).await;
    let job = w.start().await;
    let reason = w.waits(job).await;
    assert!(reason.contains("the old one stays valid until"), "{reason}");
    let new = fields(&w.current().await);
    assert_eq!(new, fields(&w.value_of(job).await));
    assert_eq!((&new["previous"], &new["use"]), (&json!("the-first-canary"), &json!("sessions")));
    let key = new["key"].as_str().unwrap();
    assert_eq!(key.len(), 43);
    // As long as the rotation may take, and the overlap after it.
    let until: schemas::Timestamp = new["previous_until"].as_str().unwrap().parse().unwrap();
    let left = until - w.world.queue.clock().now();
    assert!((175..=180).contains(&left.num_minutes()), "{new}");
    for name in ["one", "two"] {
        assert_eq!(std::fs::read_to_string(folder.path().join(name)).unwrap(), key);
    }
    w.world.pass(Duration::from_hours(1)).await;
    let output = w.world.completed(job).await;
    has_the_names_of("rotate", &output);
    assert_eq!((&output["version"], &output["previous"]), (&json!(job), &json!(w.first)));
    assert_eq!(w.holder(Label::Pending).await, None);
    assert_eq!(w.holder(Label::Previous).await.as_ref(), Some(&w.first));
    let ledger = w.ledger().await;
    assert!(!ledger.contains(key) && !ledger.contains("canary"), "{ledger}");

    let again = w.rotate().await;
    assert_eq!(again["previous"], json!(job), "a second one goes from the first");
    assert_eq!(fields(&w.current().await)["previous"], key);
    w.world.close().await;
}

async fn what_an_earlier_attempt_put_into_the_vault_is_taken_up(t: TestVault) {
    let folder = TempDir::new().unwrap();
    let mut w = ring(t, files(folder.path(), &["one"])).await;
    w.world.stop_worker().await;
    let begun = json!({"from": w.first, "at": w.world.queue.clock().now()});
    let steps = [("begin", Some(begun)), ("create", None)];
    let job = w.world.die_after("rotate", &RotationWorld::args(), &steps).await;
    // Its call had its effect, and nobody heard of it.
    let put = r#"{"key": "of-the-first-attempt"}"#;
    w.t.vault.put_pending(&w.secret, &Token::from(job.0), &put.into()).await.unwrap();
    w.world.start_worker();
    w.waits(job).await;
    assert_eq!(w.current().await, put);
    assert_eq!(w.t.vault.describe(&w.secret).await.unwrap().versions.len(), 2, "exactly one new version");
    assert_eq!(std::fs::read_to_string(folder.path().join("one")).unwrap(), "of-the-first-attempt");
    w.world.close().await;
}

async fn a_consumer_that_refuses_has_everything_taken_back(t: TestVault) {
    let folder = TempDir::new().unwrap();
    let consumers = files(folder.path(), &["one", "there/is/no/such/folder"]);
    let w = ring(t, consumers).await;
    let job = w.start().await;
    let reason = w.world.wait_discarded(job).await;
    assert!(
        reason.contains("publish there/is/no/such/folder") && reason.contains("everything was taken back"),
        "{reason}"
    );
    w.is_as_before().await;
    assert_eq!(
        std::fs::read_to_string(folder.path().join("one")).unwrap(),
        "the-first-canary",
        "it has the old one again"
    );
    assert!(!w.ledger().await.contains("canary"));
    // Retrying it does not begin it anew: that would be another rotation.
    w.world.retry(job).await;
    assert_eq!(w.world.wait_discarded(job).await, reason);
    w.world.close().await;
}

async fn a_change_by_another_hand_is_never_overwritten(t: TestVault) {
    let folder = TempDir::new().unwrap();
    let mut w = ring(t, files(folder.path(), &["one"])).await;
    w.world.stop_worker().await;
    let begun = json!({"from": w.first, "at": w.world.queue.clock().now()});
    let steps = [("begin", Some(begun)), ("create", Some(Value::Null)), ("publish one", None)];
    let job = w.world.die_after("rotate", &RotationWorld::args(), &steps).await;
    let ours = Token::from(job.0);
    w.t.vault.put_pending(&w.secret, &ours, &r#"{"key": "ours"}"#.into()).await.unwrap();
    // A person, meanwhile.
    w.t.vault.drop_pending(&w.secret, &ours).await.unwrap();
    let by_hand = token();
    w.t.vault.put_pending(&w.secret, &by_hand, &r#"{"key": "by-hand"}"#.into()).await.unwrap();
    w.t.vault.promote(&w.secret, &by_hand, &w.first).await.unwrap();
    w.world.start_worker();
    let reason = w.world.wait_discarded(job).await;
    assert!(reason.contains("somebody else has changed") && reason.contains(by_hand.as_str()), "{reason}");
    assert_eq!(fields(&w.current().await)["key"], "by-hand");
    assert_eq!(w.holder(Label::Pending).await, None);
    assert_eq!(std::fs::read_to_string(folder.path().join("one")).unwrap(), "by-hand");
    w.world.close().await;
}

async fn a_version_that_was_left_behind_is_named_with_the_way_out(t: TestVault) {
    let w = ring(t, json!({})).await;
    let left = token();
    w.t.vault.put_pending(&w.secret, &left, &"x".into()).await.unwrap();
    let reason = w.world.discarded("rotate", &RotationWorld::args()).await;
    let way_out = format!("nightporter secrets drop-pending {} {left}", w.secret);
    assert!(reason.contains(&way_out), "{reason}");
    assert_eq!(w.holder(Label::Pending).await.as_ref(), Some(&left));
    w.t.vault.drop_pending(&w.secret, &left).await.unwrap();
    w.rotate().await;
    w.world.close().await;
}

#[tokio::test]
async fn what_cannot_be_given_back_leaves_both_values_valid_and_is_told() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("shared");
    // Two that write the same file: the first finds that it does not hold what it was given.
    let consumers = json!({"a": {"file": {"path": path, "key": "key"}}, "b": {"file": {"path": path, "key": "use"}}});
    let w = ring(TestVault::file().await, consumers).await;
    let job = w.start().await;
    let reason = w.world.wait_discarded(job).await;
    assert!(reason.contains("prove a: ") && reason.contains("has been changed since"), "{reason}");
    assert!(reason.contains("not everything could be taken back: prove back a"), "{reason}");
    assert!(reason.contains(&format!("nightporter jobs retry {job}")), "{reason}");
    assert_eq!(w.holder(Label::Current).await.as_ref(), Some(&w.first));
    assert_eq!(w.holder(Label::Pending).await, Some(Token::from(job.0)), "whoever has it still can use it");
    // Nobody begins another one before that is settled.
    let refused = w.world.discarded("rotate", &RotationWorld::args()).await;
    assert!(refused.contains(&format!("nightporter jobs retry {job}")), "{refused}");
    w.world.close().await;
}

#[tokio::test]
async fn while_the_old_value_still_counts_a_second_rotation_is_refused() {
    let w = ring(TestVault::file().await, json!({})).await;
    let job = w.start().await;
    w.waits(job).await;
    let reason = w.world.discarded("rotate", &RotationWorld::args()).await;
    assert!(reason.contains("is under way") && reason.contains(&job.to_string()), "{reason}");
    w.world.pass(Duration::from_hours(1)).await;
    w.world.completed(job).await;
    w.rotate().await;
    w.world.close().await;
}

#[tokio::test]
async fn two_that_are_started_at_once_make_one_new_version_each_and_one_after_the_other() {
    let mut w = ring(TestVault::file().await, json!({})).await;
    w.world.stop_worker().await;
    let jobs = [w.start().await, w.start().await];
    w.world.start_worker();
    let ends = [JobState::Scheduled, JobState::Discarded];
    let [one, other] = [w.world.wait_for(jobs[0], &ends).await, w.world.wait_for(jobs[1], &ends).await];
    let states = [one.state, other.state];
    assert!(states.contains(&JobState::Scheduled) && states.contains(&JobState::Discarded), "{states:?}");
    assert_eq!(w.t.vault.describe(&w.secret).await.unwrap().versions.len(), 2);
    w.world.close().await;
}

#[tokio::test]
async fn a_change_by_hand_within_the_overlap_leaves_the_old_value_alone_and_is_told() {
    let w = ring(TestVault::file().await, json!({})).await;
    let job = w.start().await;
    w.waits(job).await;
    let by_hand = token();
    w.t.vault.put_pending(&w.secret, &by_hand, &r#"{"key": "by-hand"}"#.into()).await.unwrap();
    w.t.vault.promote(&w.secret, &by_hand, &Token::from(job.0)).await.unwrap();
    w.world.pass(Duration::from_hours(1)).await;
    let reason = w.world.wait_discarded(job).await;
    assert!(reason.contains("was left as it is"), "{reason}");
    assert_eq!(w.holder(Label::Current).await, Some(by_hand));
    w.world.close().await;
}

#[tokio::test]
async fn a_file_is_replaced_whole_and_keeps_its_mode_and_a_new_one_is_its_owners() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let (there, before) = (folder.path().join("there"), folder.path().join("before"));
    std::fs::write(&there, "as it was").unwrap();
    std::fs::set_permissions(&there, std::fs::Permissions::from_mode(0o640)).unwrap();
    // Another name of the file as it is now: who has it open reads it to its end.
    std::fs::hard_link(&there, &before).unwrap();
    let w = ring(TestVault::file().await, files(folder.path(), &["there", "new"])).await;
    w.rotate().await;
    let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("there"), mode("new")), (0o640, 0o600));
    assert_eq!(std::fs::read_to_string(&before).unwrap(), "as it was");
    assert_ne!(std::fs::read_to_string(&there).unwrap(), "as it was");
    w.world.close().await;
}

#[tokio::test]
async fn a_secret_that_is_plain_text_has_no_room_for_two_keys_unless_that_is_accepted() {
    for accepts in [false, true] {
        let rotation = json!({"random_key": {"accept_gap": accepts}});
        let w = RotationWorld::new(TestVault::file().await, "the-first-canary", rotation, None).await;
        if accepts {
            w.rotate().await;
            assert_eq!(w.current().await.len(), 43);
        } else {
            let reason = w.world.discarded("rotate", &RotationWorld::args()).await;
            assert!(reason.contains("no room for the old key") && reason.contains("accept_gap"), "{reason}");
            w.is_as_before().await;
        }
        w.world.close().await;
    }
}

#[tokio::test]
async fn one_that_was_given_up_and_killed_on_the_way_back_does_not_go_forward_again() {
    let folder = TempDir::new().unwrap();
    let mut w = ring(TestVault::file().await, files(folder.path(), &["one"])).await;
    w.world.stop_worker().await;
    let begun = json!({"from": w.first, "at": w.world.queue.clock().now()});
    let steps = [
        ("begin", Some(begun)),
        ("create", Some(Value::Null)),
        ("publish one", None),
        ("give up", Some(json!("because of a test"))),
    ];
    let job = w.world.die_after("rotate", &RotationWorld::args(), &steps).await;
    w.t.vault.put_pending(&w.secret, &Token::from(job.0), &r#"{"key": "new"}"#.into()).await.unwrap();
    w.world.start_worker();
    let reason = w.world.wait_discarded(job).await;
    assert!(reason.starts_with("because of a test; everything was taken back"), "{reason}");
    w.is_as_before().await;
    assert_eq!(std::fs::read_to_string(folder.path().join("one")).unwrap(), "the-first-canary");
    w.world.close().await;
}

#[tokio::test]
async fn what_is_current_is_not_taken_back_however_late_that_is_heard() {
    let mut w = ring(TestVault::file().await, json!({})).await;
    w.world.stop_worker().await;
    let begun = json!({"from": w.first, "at": w.world.queue.clock().now() - chrono::TimeDelta::hours(3)});
    let done = || Some(Value::Null);
    let steps = [("begin", Some(begun)), ("create", done()), ("set", done()), ("test", done()), ("finish", None)];
    let job = w.world.die_after("rotate", &RotationWorld::args(), &steps).await;
    let ours = Token::from(job.0);
    w.t.vault.put_pending(&w.secret, &ours, &r#"{"key": "new"}"#.into()).await.unwrap();
    w.t.vault.promote(&w.secret, &ours, &w.first).await.unwrap();
    // Its time is over, and the vault cannot be changed just now.
    let lock = std::fs::File::open(w.t.file.as_ref().unwrap().path().with_extension("age.lock")).unwrap();
    lock.lock().unwrap();
    w.world.start_worker();
    let view = w.world.wait_for(job, &[JobState::Retryable, JobState::Scheduled, JobState::Discarded]).await;
    let why = view.reason.unwrap_or_default();
    assert!(view.state == JobState::Retryable && why.contains("promoting the new version"), "{why}");
    lock.unlock().unwrap();
    w.world.pass(Duration::from_mins(10)).await;
    w.waits(job).await;
    assert_eq!(w.holder(Label::Current).await, Some(ours));
    w.world.close().await;
}

#[tokio::test]
async fn a_secret_that_the_vault_rotates_itself_is_refused_before_anything_is_done() {
    let w = ring(TestVault::aws().await, json!({})).await;
    let rules = json!({"SecretId": w.secret, "RotationRules": {"AutomaticallyAfterDays": 30}});
    tests::vaults::call_aws("RotateSecret", &rules).await;
    let reason = w.world.discarded("rotate", &RotationWorld::args()).await;
    assert!(reason.contains("RotationEnabled") && !reason.contains("taken back"), "{reason}");
    w.world.close().await;
}

#[tokio::test]
async fn one_rotation_of_a_secret_is_under_way_at_a_time() {
    let w = ring(TestVault::file().await, json!({})).await;
    let limits = w.world.new_job("rotate", &RotationWorld::args()).limits;
    assert_eq!(limits.len(), 1);
    assert_eq!(limits[0].at_once.map(std::num::NonZeroU32::get), Some(1));
    w.world.close().await;
}
