//! The vaults' conformance suite: one suite, a line for each vault.

mod file;

use secrets::ExposeSecret;
use secrets::vaults::{Label, Token, VaultError};
use serde_json::json;
use tests::vaults::{TestVault, call_aws, token};

/// Runs each check on each vault.
macro_rules! on_every_vault {
    ($($check:ident),* $(,)?) => {
        mod in_aws {
            $(#[tokio::test] async fn $check() { super::$check(tests::vaults::TestVault::aws().await).await; })*
        }
        mod in_a_file {
            $(#[tokio::test] async fn $check() { super::$check(tests::vaults::TestVault::file().await).await; })*
        }
    };
}

on_every_vault!(
    a_secret_is_made_once_and_its_first_version_is_current,
    a_pending_version_changes_nothing_for_readers_until_it_is_promoted,
    a_token_has_one_value_for_ever,
    one_version_is_pending_at_a_time,
    a_promotion_is_a_compare_and_swap_and_may_be_repeated,
    a_pending_version_may_be_dropped_and_nothing_else,
    a_previous_version_may_be_dropped_and_nothing_else,
    a_version_that_was_left_behind_gives_way_to_the_next,
    what_is_not_there_is_not_found,
    a_list_has_every_secret_with_its_labels,
);

async fn current(t: &TestVault, name: &str) -> String {
    t.vault.current(name).await.unwrap().expose_secret().to_owned()
}

async fn labels(t: &TestVault, name: &str, version: &Token) -> Vec<Label> {
    let described = t.vault.describe(name).await.unwrap();
    described.versions.get(version).into_iter().flatten().copied().collect()
}

fn is_conflict<T>(answer: Result<T, VaultError>) -> bool {
    matches!(answer, Err(VaultError::Conflict(_)))
}

async fn a_secret_is_made_once_and_its_first_version_is_current(t: TestVault) {
    let (name, first) = t.secret("one").await;
    assert_eq!(current(&t, &name).await, "one");
    assert_eq!(labels(&t, &name, &first).await, [Label::Current]);
    t.vault.create(&name, &first, &"one".into()).await.expect("the same again");
    assert!(is_conflict(t.vault.create(&name, &first, &"two".into()).await));
    assert!(is_conflict(t.vault.create(&name, &token(), &"one".into()).await));
    assert_eq!(current(&t, &name).await, "one");
}

async fn a_pending_version_changes_nothing_for_readers_until_it_is_promoted(t: TestVault) {
    let (name, first) = t.secret("one").await;
    let second = token();
    t.vault.put_pending(&name, &second, &"two".into()).await.unwrap();
    assert_eq!(current(&t, &name).await, "one");
    assert_eq!(labels(&t, &name, &second).await, [Label::Pending]);
    assert_eq!(t.vault.value(&name, &second).await.unwrap().expose_secret(), "two");
    t.vault.promote(&name, &second, &first).await.unwrap();
    assert_eq!(current(&t, &name).await, "two");
    assert_eq!(labels(&t, &name, &second).await, [Label::Current]);
    assert_eq!(labels(&t, &name, &first).await, [Label::Previous]);
    assert_eq!(t.vault.value(&name, &first).await.unwrap().expose_secret(), "one");
    // The one before the previous has no label, and its value is not to be had.
    let third = token();
    t.vault.put_pending(&name, &third, &"three".into()).await.unwrap();
    t.vault.promote(&name, &third, &second).await.unwrap();
    assert!(matches!(t.vault.value(&name, &first).await, Err(VaultError::NotFound)));
    assert_eq!(t.vault.describe(&name).await.unwrap().versions.len(), 2);
}

async fn a_token_has_one_value_for_ever(t: TestVault) {
    let (name, first) = t.secret("one").await;
    let second = token();
    t.vault.put_pending(&name, &second, &"two".into()).await.unwrap();
    t.vault.put_pending(&name, &second, &"two".into()).await.expect("the same again");
    assert!(is_conflict(t.vault.put_pending(&name, &second, &"other".into()).await));
    assert_eq!(t.vault.value(&name, &second).await.unwrap().expose_secret(), "two");
    t.vault.promote(&name, &second, &first).await.unwrap();
    t.vault.put_pending(&name, &second, &"two".into()).await.expect("the same again");
    assert!(is_conflict(t.vault.put_pending(&name, &second, &"other".into()).await));
    assert_eq!(labels(&t, &name, &second).await, [Label::Current], "it is pending no more");
    assert_eq!(t.vault.describe(&name).await.unwrap().versions.len(), 2);
}

async fn one_version_is_pending_at_a_time(t: TestVault) {
    let (name, _) = t.secret("one").await;
    let (second, third) = (token(), token());
    t.vault.put_pending(&name, &second, &"two".into()).await.unwrap();
    let refused = t.vault.put_pending(&name, &third, &"three".into()).await.unwrap_err();
    assert!(refused.to_string().contains(second.as_str()), "{refused}");
    assert_eq!(t.vault.describe(&name).await.unwrap().holder(Label::Pending), Some(&second));
    assert!(matches!(t.vault.value(&name, &third).await, Err(VaultError::NotFound)));
}

async fn a_promotion_is_a_compare_and_swap_and_may_be_repeated(t: TestVault) {
    let (name, first) = t.secret("one").await;
    let (second, third) = (token(), token());
    assert!(is_conflict(t.vault.promote(&name, &second, &first).await), "it was never put");
    t.vault.put_pending(&name, &second, &"two".into()).await.unwrap();
    assert!(is_conflict(t.vault.promote(&name, &second, &third).await), "another one is current");
    assert_eq!(current(&t, &name).await, "one");
    for _ in 0..2 {
        t.vault.promote(&name, &second, &first).await.unwrap();
        assert_eq!(current(&t, &name).await, "two");
    }
    t.vault.put_pending(&name, &third, &"three".into()).await.unwrap();
    assert!(is_conflict(t.vault.promote(&name, &third, &first).await), "the first is current no more");
    assert_eq!(current(&t, &name).await, "two");
    assert_eq!(labels(&t, &name, &first).await, [Label::Previous]);
}

async fn a_pending_version_may_be_dropped_and_nothing_else(t: TestVault) {
    let (name, first) = t.secret("one").await;
    let second = token();
    t.vault.put_pending(&name, &second, &"two".into()).await.unwrap();
    t.vault.drop_pending(&name, &first).await.expect("it is not pending");
    assert_eq!(t.vault.describe(&name).await.unwrap().holder(Label::Pending), Some(&second));
    for _ in 0..2 {
        t.vault.drop_pending(&name, &second).await.unwrap();
        assert_eq!(t.vault.describe(&name).await.unwrap().holder(Label::Pending), None);
    }
    assert!(matches!(t.vault.value(&name, &second).await, Err(VaultError::NotFound)));
    assert_eq!((current(&t, &name).await.as_str(), labels(&t, &name, &first).await), ("one", vec![Label::Current]));
    assert!(is_conflict(t.vault.promote(&name, &second, &first).await), "it was dropped");
}

async fn a_previous_version_may_be_dropped_and_nothing_else(t: TestVault) {
    let (name, first) = t.secret("one").await;
    let second = token();
    t.vault.put_pending(&name, &second, &"two".into()).await.unwrap();
    t.vault.promote(&name, &second, &first).await.unwrap();
    assert_eq!(labels(&t, &name, &first).await, [Label::Previous]);
    for _ in 0..2 {
        t.vault.drop_previous(&name, &second).await.expect("it is not the previous one");
        t.vault.drop_previous(&name, &first).await.expect("twice is as once");
        assert!(labels(&t, &name, &first).await.is_empty());
        assert_eq!((current(&t, &name).await, labels(&t, &name, &second).await), ("two".into(), vec![Label::Current]));
    }
}

async fn a_version_that_was_left_behind_gives_way_to_the_next(t: TestVault) {
    let (name, first) = t.secret("one").await;
    let (second, third) = (token(), token());
    t.vault.put_pending(&name, &second, &"two".into()).await.unwrap();
    t.vault.drop_pending(&name, &second).await.unwrap();
    t.vault.put_pending(&name, &third, &"three".into()).await.unwrap();
    t.vault.promote(&name, &third, &first).await.unwrap();
    assert_eq!(current(&t, &name).await, "three");
}

async fn what_is_not_there_is_not_found(t: TestVault) {
    let (name, token) = (t.name(), token());
    let not_found = |error: VaultError| assert!(matches!(error, VaultError::NotFound), "{error:?}");
    not_found(t.vault.current(&name).await.map(drop).unwrap_err());
    not_found(t.vault.describe(&name).await.map(drop).unwrap_err());
    not_found(t.vault.value(&name, &token).await.map(drop).unwrap_err());
    not_found(t.vault.put_pending(&name, &token, &"x".into()).await.unwrap_err());
    not_found(t.vault.promote(&name, &token, &token).await.unwrap_err());
    not_found(t.vault.drop_pending(&name, &token).await.unwrap_err());
}

async fn a_list_has_every_secret_with_its_labels(t: TestVault) {
    let ((one, first), (other, _)) = (t.secret("one").await, t.secret("other").await);
    let second = token();
    t.vault.put_pending(&one, &second, &"two".into()).await.unwrap();
    let list = t.vault.list().await.unwrap();
    let found = list.iter().find(|secret| secret.name == one).expect("it is listed");
    assert_eq!((found.holder(Label::Current), found.holder(Label::Pending)), (Some(&first), Some(&second)));
    assert!(list.iter().any(|secret| secret.name == other) && !format!("{list:?}").contains("\"one\""));
    assert!(list.is_sorted_by_key(|secret| secret.name.clone()));
}

#[tokio::test]
async fn a_secret_that_aws_rotates_itself_is_left_to_it() {
    let t = TestVault::aws().await;
    let (name, first) = t.secret("one").await;
    call_aws("RotateSecret", &json!({"SecretId": name, "RotationRules": {"AutomaticallyAfterDays": 30}})).await;
    let described = t.vault.describe(&name).await.unwrap();
    assert!(described.managed);
    let second = token();
    assert!(matches!(t.vault.put_pending(&name, &second, &"two".into()).await, Err(VaultError::Managed)));
    assert!(matches!(t.vault.promote(&name, &second, &first).await, Err(VaultError::Managed)));
    assert_eq!(t.vault.describe(&name).await.unwrap(), described, "nothing was changed");
}

#[tokio::test]
async fn a_promotion_that_was_cut_off_half_way_in_aws_is_gone_on_with() {
    let t = TestVault::aws().await;
    let (name, first) = t.secret("one").await;
    let second = token();
    t.vault.put_pending(&name, &second, &"two".into()).await.unwrap();
    let moved = json!({"SecretId": name, "VersionStage": "AWSCURRENT", "MoveToVersionId": second, "RemoveFromVersionId": first});
    call_aws("UpdateSecretVersionStage", &moved).await;
    assert_eq!(labels(&t, &name, &second).await, [Label::Pending, Label::Current]);
    t.vault.promote(&name, &second, &first).await.unwrap();
    assert_eq!(labels(&t, &name, &second).await, [Label::Current]);
    assert_eq!(labels(&t, &name, &first).await, [Label::Previous]);
}

#[tokio::test]
async fn a_pending_label_that_was_left_at_the_current_version_in_aws_is_no_rotation_under_way() {
    let t = TestVault::aws().await;
    let (name, first) = t.secret("one").await;
    let (second, third) = (token(), token());
    t.vault.put_pending(&name, &second, &"two".into()).await.unwrap();
    let moved = json!({"SecretId": name, "VersionStage": "AWSCURRENT", "MoveToVersionId": second, "RemoveFromVersionId": first});
    call_aws("UpdateSecretVersionStage", &moved).await;
    t.vault.put_pending(&name, &third, &"three".into()).await.unwrap();
    assert_eq!(t.vault.describe(&name).await.unwrap().holder(Label::Pending), Some(&third));
    assert_eq!(current(&t, &name).await, "two");
}
