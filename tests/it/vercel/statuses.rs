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
