//! The other way to answer: commit statuses at GitHub.

use schemas::JobState;
use serde_json::{Value, json};
use tests::gate_world::GateWorld;
use tests::migration_world::REPOSITORY;
use tests::vercel::PROJECT;

const CONTEXT: &str = "nightporter (app - production)";
const GOOD: [(&str, &str); 1] = [("1_t.sql", "create table t1 (id int);")];
const BAD: [(&str, &str); 1] = [("1_t.sql", "alter table t_missing add column id int;")];

fn args(deployment: &str) -> Value {
    json!({"runbook": "deploy", "deployment": deployment, "project": PROJECT, "repository": REPOSITORY})
}

#[tokio::test]
async fn a_status_is_pending_first_and_then_says_how_it_went() {
    for (files, states) in [(&GOOD, ["pending", "success"]), (&BAD, ["pending", "failure"])] {
        let it = GateWorld::start().await;
        let (deployment, commit) = it.deploy(files);
        let gate = it.world.enqueue("gate", &args(&deployment)).await;
        it.ended(gate).await;
        assert_eq!(it.github.statuses(|them| them.states(&commit, CONTEXT)), states);
        it.world.close().await;
    }
}

#[tokio::test]
async fn a_status_whose_reply_was_lost_is_not_set_again() {
    let it = GateWorld::start().await;
    let (deployment, commit) = it.deploy(&GOOD);
    let gate = it.world.enqueue("gate", &args(&deployment)).await;
    it.world.wait_for(gate, &[JobState::Scheduled]).await;
    it.github.statuses(|them| them.lost = 1);
    assert_eq!(it.ended(gate).await.state, JobState::Completed);
    assert_eq!(it.github.statuses(|them| them.states(&commit, CONTEXT)), ["pending", "success"]);
    it.world.close().await;
}

#[tokio::test]
async fn a_second_deployment_of_the_commit_takes_the_status_over() {
    let it = GateWorld::start().await;
    let (first, commit) = it.deploy(&GOOD);
    let second = it.vercel.deploy(Some("production"), &commit);
    let ada = queue::ledger::Operator { actor: "ada".into(), reason: "a test".into() };
    let paused = queue::ledger::Pausable::Kind("migrate".into());
    it.world.queue.pause(&paused, &ada).await.unwrap();
    let mut gates = Vec::new();
    for deployment in [&first, &second] {
        let gate = it.world.enqueue("gate", &args(deployment)).await;
        it.world.wait_for(gate, &[JobState::Scheduled]).await;
        gates.push(gate);
    }
    assert_eq!(it.ended(gates[0]).await.state, JobState::Cancelled, "the status is the second one's now");
    it.world.queue.resume(&paused, &ada).await.unwrap();
    assert_eq!(it.ended(gates[1]).await.state, JobState::Completed);
    assert_eq!(it.github.statuses(|them| them.states(&commit, CONTEXT)), ["pending", "pending", "success"]);
    it.world.close().await;
}

#[tokio::test]
async fn what_only_reports_sets_a_status_that_stops_nothing() {
    let it = GateWorld::start().await;
    let (deployment, commit) = it.deploy(&BAD);
    let mut args = args(&deployment);
    args["report_only"] = json!(true);
    let gate = it.world.enqueue("gate", &args).await;
    it.ended(gate).await;
    let set = it.github.statuses(|them| them.set.last().cloned().unwrap());
    assert_eq!((&set["state"], &set["sha"]), (&json!("success"), &json!(commit)));
    assert!(set["description"].as_str().unwrap().starts_with("report only; it would have been failed"), "{set}");
    it.world.close().await;
}

#[tokio::test]
async fn a_commit_that_comes_too_late_has_an_error_for_its_status() {
    let it = GateWorld::start().await;
    let (older, commit) = it.deploy(&GOOD);
    let (newer, _) = it.deploy(&GOOD);
    it.vercel.promote(&newer);
    let gate = it.world.enqueue("gate", &args(&older)).await;
    it.ended(gate).await;
    assert_eq!(it.github.statuses(|them| them.states(&commit, CONTEXT)), ["pending", "error"]);
    it.world.close().await;
}

#[tokio::test]
async fn what_somebody_sets_under_that_name_in_whatever_case_stands() {
    let it = GateWorld::start().await;
    let (deployment, commit) = it.deploy(&GOOD);
    let ada = queue::ledger::Operator { actor: "ada".into(), reason: "a test".into() };
    it.world.queue.pause(&queue::ledger::Pausable::Kind("migrate".into()), &ada).await.unwrap();
    let gate = it.world.enqueue("gate", &args(&deployment)).await;
    it.world.wait_for(gate, &[JobState::Scheduled]).await;
    // At GitHub a context is the same in small letters and in capitals.
    let theirs =
        json!({"state": "success", "context": CONTEXT.to_uppercase(), "sha": commit, "description": "by hand"});
    it.github.statuses(|them| them.set.push(theirs));
    let output = it.ended(gate).await.output.unwrap();
    assert_eq!(output["text"], "it was answered by somebody else: success");
    assert_eq!(it.github.statuses(|them| them.states(&commit, CONTEXT)), ["pending"]);
    it.world.close().await;
}
