//! `github`: workflows that are started at a stub of GitHub, and waited for.

use std::time::Duration;

use axum::http::StatusCode;
use schemas::JobState;
use schemas::api::JobView;
use secrets::SecretText;
use serde_json::{Value, json};
use tests::backup_world::{BackupWorld, has_the_names_of};
use tests::github_workflows::WORKFLOW;
use tests::migration_world::{Github, REPOSITORY, TOKEN};
use worker::WorldConfig;
use worker::world::{Connections, GithubConnection};

async fn world(github: &Github) -> BackupWorld {
    let (api_url, token) = (github.start().await, SecretText::parse(TOKEN).unwrap());
    let connections = Connections { github: Some(GithubConnection { token, api_url }), ..Connections::default() };
    BackupWorld::by_hand(WorldConfig { connections, ..WorldConfig::default() }).await
}

fn args(more: Value) -> Value {
    let mut args = json!({"repository": REPOSITORY, "workflow": WORKFLOW, "ref": "main", "inputs": {"target": "eu"}});
    args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    args
}

/// Waits until the job sleeps, with words of its reason.
async fn sleeps(world: &BackupWorld, job: schemas::JobId, attempts: usize) -> JobView {
    tests::porter::eventually("it sleeps", async || {
        let view = world.queue.ledger().job(job).await.unwrap().unwrap();
        let asleep = matches!(view.state, JobState::Scheduled | JobState::Retryable);
        assert!(!view.state.is_finished(), "{:?} {:?}", view.state, view.reason);
        (asleep && view.attempts.len() >= attempts).then_some(view)
    })
    .await
}

fn outcomes(view: &JobView) -> Vec<&str> {
    view.attempts.iter().filter_map(|attempt| attempt.outcome.as_deref()).collect()
}

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_workflow_is_started_once_waited_for_at_no_cost_and_its_conclusion_is_the_jobs() {
    for old in [false, true] {
        let github = Github::default();
        github.workflows(|it| it.old = old);
        let world = world(&github).await;
        let job = world.enqueue("github", &args(json!({"mark": "porter"}))).await;
        let view = sleeps(&world, job, 1).await;
        assert_eq!(outcomes(&view), ["snoozed"]);
        world.pass(SOON).await;
        sleeps(&world, job, 2).await;
        github.workflows(|it| it.conclude("success"));
        world.pass(SOON).await;
        let output = world.completed(job).await;
        assert_eq!((&output["conclusion"], &output["repository"]), (&json!("success"), &json!(REPOSITORY)));
        has_the_names_of("github", &output);
        assert_eq!(github.workflows(|it| it.taken.clone()), [json!({"target": "eu", "porter": job})]);
        world.close().await;
    }
}

#[tokio::test]
async fn a_workflow_that_fails_discards_the_job_and_says_where_to_look() {
    let github = Github::default();
    let world = world(&github).await;
    let job = world.enqueue("github", &args(json!({}))).await;
    sleeps(&world, job, 1).await;
    github.workflows(|it| it.conclude("failure"));
    world.pass(SOON).await;
    let reason = world.wait_discarded(job).await;
    assert!(reason.contains("ended with `failure`: https://github.test/runs/"), "{reason}");
    world.close().await;
}

#[tokio::test]
async fn a_dispatch_whose_answer_was_lost_is_not_made_again() {
    for (old, mark) in [(false, json!({"mark": "porter"})), (true, json!({}))] {
        let github = Github::default();
        github.workflows(|it| (it.old, it.lost, it.hidden) = (old, 1, true));
        let world = world(&github).await;
        let job = world.enqueue("github", &args(mark)).await;
        let view = sleeps(&world, job, 1).await;
        assert_eq!(outcomes(&view), ["failed"]);
        world.pass(Duration::from_mins(1)).await;
        let view = sleeps(&world, job, 2).await;
        assert_eq!(outcomes(&view), ["failed", "snoozed"], "its run is looked for, and not listed yet");
        github.workflows(tests::github_workflows::Workflows::list);
        github.workflows(|it| it.conclude("success"));
        world.pass(SOON).await;
        world.completed(job).await;
        assert_eq!(github.workflows(|it| it.taken.len()), 1);
        world.close().await;
    }
}

#[tokio::test]
async fn a_dispatch_that_never_arrived_is_made_again_once_no_run_has_come_of_it() {
    let github = Github::default();
    let mut world = world(&github).await;
    world.stop_worker().await;
    let before = json!({"newest": 0, "at": world.queue.clock().now()});
    let steps = [("look before", Some(before)), ("dispatch 1", None)];
    let job = world.die_after("github", &args(json!({"mark": "porter"})), &steps).await;
    world.start_worker();
    sleeps(&world, job, 2).await;
    assert_eq!(github.workflows(|it| it.taken.len()), 0);
    world.pass(Duration::from_mins(6)).await;
    sleeps(&world, job, 3).await;
    assert_eq!(github.workflows(|it| it.taken.len()), 1);
    world.close().await;
}

#[tokio::test]
async fn another_run_is_not_taken_for_ours() {
    let github = Github::default();
    github.workflows(tests::github_workflows::Workflows::begin_beside);
    github.workflows(|it| (it.old, it.hidden) = (true, true));
    let world = world(&github).await;
    let job = world.enqueue("github", &args(json!({"mark": "porter"}))).await;
    let unmarked = world.enqueue("github", &args(json!({}))).await;
    sleeps(&world, job, 1).await;
    sleeps(&world, unmarked, 1).await;
    github.workflows(tests::github_workflows::Workflows::begin_beside);
    github.workflows(tests::github_workflows::Workflows::list);
    world.pass(SOON).await;
    let reason = world.wait_discarded(unmarked).await;
    assert!(reason.contains("nobody can say which is this job's") && reason.contains("`mark`"), "{reason}");
    github.workflows(|it| it.conclude("success"));
    world.pass(SOON).await;
    world.completed(job).await;
    world.close().await;
}

#[tokio::test]
async fn limits_are_waited_out_and_refusals_say_what_to_check() {
    let github = Github::default();
    let world = world(&github).await;
    for headers in [[("retry-after", "37"), ("x-a", "b")], [("x-ratelimit-remaining", "0"), ("retry-after", "37")]] {
        github.answer_first(StatusCode::FORBIDDEN, &headers);
        let job = world.enqueue("github", &args(json!({}))).await;
        let view = sleeps(&world, job, 1).await;
        let wait = view.run_at.unwrap() - world.queue.clock().now();
        assert!(wait.num_seconds() >= 30, "{wait}");
    }
    let reason = world.discarded("github", &args(json!({"inputs": {"taget": "eu"}}))).await;
    assert!(reason.contains("422") && reason.contains("on: workflow_dispatch"), "{reason}");
    let reason = world.discarded("github", &args(json!({"workflow": "other.yml"}))).await;
    assert!(reason.contains("404") && !reason.contains("canary"), "{reason}");
    world.close().await;
}

#[tokio::test]
async fn when_its_time_is_up_the_run_is_cancelled_only_if_asked() {
    for (cancel_run, count) in [(false, 0), (true, 1)] {
        let github = Github::default();
        let world = world(&github).await;
        let job = world.enqueue("github", &args(json!({"within": "10m", "cancel_run": cancel_run}))).await;
        sleeps(&world, job, 1).await;
        world.pass(Duration::from_mins(11)).await;
        let reason = world.wait_discarded(job).await;
        assert!(reason.contains("no conclusion within 10m"), "{reason}");
        assert_eq!(github.workflows(|it| it.cancelled.len()), count);
        world.close().await;
    }
}
