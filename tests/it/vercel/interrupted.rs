//! The gate is interrupted at each of its steps, before and after what it does: one run, one answer.

use std::time::Duration;

use axum::http::Method;
use queue::ledger::Operator;
use schemas::JobState;
use serde_json::{Value, json};
use tests::gate_world::GateWorld;
use tests::vercel::Fault;

const GOOD: [(&str, &str); 1] = [("1_t.sql", "create table t1 (id int);")];

/// One run, one answer, one migration.
async fn settled(it: GateWorld, gate: schemas::JobId, check: &str, what: &str) {
    let view = it.ended(gate).await;
    assert_eq!(view.state, JobState::Completed, "{what}: {:?}", view.reason);
    let run = it.vercel.check_run(check);
    assert_eq!((&run["conclusion"], &run["answers"]), (&json!("succeeded"), &json!(1)), "{what}");
    assert_eq!(it.runs().await.len(), 1, "{what}");
    assert_eq!(it.tables().await, ["t1"], "{what}");
    it.world.close().await;
}

/// A gate that has begun to start its run.
struct Started {
    gate: schemas::JobId,
    deployment: String,
    check: String,
    commit: String,
}

/// No worker runs, and nothing says whether the run was started.
async fn died_at_the_start() -> (GateWorld, Started) {
    let mut it = GateWorld::start().await;
    it.world.stop_worker().await;
    let (deployment, commit) = it.deploy(&GOOD);
    let check = it.vercel.begin_check(&deployment);
    let until = it.world.queue.clock().now() + Duration::from_mins(10);
    let steps = [("open", Some(json!({"until": until}))), ("decide", None), ("start", None)];
    let gate = it.world.die_after("gate", &GateWorld::args(&deployment, &check, &json!({})), &steps).await;
    (it, Started { gate, deployment, check, commit })
}

#[tokio::test]
async fn it_dies_before_what_each_step_does() {
    for steps in [vec!["open"], vec!["open", "decide"], vec!["open", "decide", "start"]] {
        let mut it = GateWorld::start().await;
        it.world.stop_worker().await;
        let (deployment, _) = it.deploy(&GOOD);
        let check = it.vercel.begin_check(&deployment);
        let until = it.world.queue.clock().now() + Duration::from_mins(10);
        // All but the last had finished; the decision stays open until it is made.
        let result = |name: &str, last: bool| match name {
            "open" if !last => Some(json!({"until": until})),
            _ => None,
        };
        let count = steps.len();
        let steps: Vec<(&str, Option<Value>)> =
            steps.into_iter().enumerate().map(|(at, name)| (name, result(name, at + 1 == count))).collect();
        let gate = it.world.die_after("gate", &GateWorld::args(&deployment, &check, &json!({})), &steps).await;
        it.world.start_worker();
        settled(it, gate, &check, &format!("{steps:?}")).await;
    }
}

#[tokio::test]
async fn it_dies_after_the_run_was_started_and_before_that_is_written() {
    let (mut it, Started { gate, check, commit, .. }) = died_at_the_start().await;
    it.start_run_of(gate, &json!({"ref": commit, "url": "https://app.example.com"})).await;
    it.world.start_worker();
    settled(it, gate, &check, "after the start").await;
}

#[tokio::test]
async fn it_dies_while_vercel_takes_what_it_says() {
    // The call is made, and whoever made it is stopped before its answer comes.
    for is_answer in [false, true] {
        let mut it = GateWorld::start().await;
        let (deployment, _) = it.deploy(&GOOD);
        let check = it.vercel.begin_check(&deployment);
        let silence = || it.vercel.next(&Method::PATCH, "check-runs", Fault::Silence);
        if !is_answer {
            silence();
        }
        let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &json!({}))).await;
        if is_answer {
            it.world.wait_for(gate, &[JobState::Scheduled]).await;
            silence();
        }
        tests::porter::eventually("the call is made", async || {
            it.look_again(&it.world.queue.ledger().job(gate).await.unwrap().unwrap()).await;
            (it.vercel.silences() > 0).then_some(())
        })
        .await;
        it.world.stop_worker().await;
        it.world.start_worker();
        settled(it, gate, &check, if is_answer { "the answer" } else { "the beginning" }).await;
    }
}

#[tokio::test]
async fn a_gate_that_is_replayed_has_a_run_of_its_own() {
    let it = GateWorld::start().await;
    let (deployment, _) = it.deploy(&[("1_t.sql", "alter table t_missing add column id int;")]);
    let check = it.vercel.begin_check(&deployment);
    let args = GateWorld::args(&deployment, &check, &json!({}));
    let gate = it.world.enqueue("gate", &args).await;
    it.ended(gate).await;
    it.target.run("create table t_missing ()").await;
    it.vercel.hub(|hub| hub.check_runs[0]["status"] = json!("queued"));
    let again = it.world.replay(gate, &Operator { actor: "ada".into(), reason: "mended".into() }).await;
    assert_eq!(it.ended(again).await.output.unwrap()["conclusion"], "succeeded");
    assert_eq!(it.runs().await.len(), 2);
    it.world.close().await;
}

#[tokio::test]
async fn a_run_that_was_started_and_not_written_down_is_cancelled_with_its_deployment() {
    let (mut it, Started { gate, deployment, commit, .. }) = died_at_the_start().await;
    let ada = Operator { actor: "ada".into(), reason: "a test".into() };
    it.world.queue.pause(&queue::ledger::Pausable::Kind("plan".into()), &ada).await.unwrap();
    it.start_run_of(gate, &json!({"ref": commit, "url": "https://app.example.com"})).await;
    it.vercel.cancel(&deployment);
    it.world.start_worker();
    assert_eq!(it.ended(gate).await.state, JobState::Cancelled);
    let states: Vec<_> = it.runs().await.iter().map(|run| run.state).collect();
    assert_eq!(states, [schemas::RunState::Cancelled]);
    it.world.close().await;
}
