//! What goes live past the gate: an operator's bypass, and promotions that nobody here let through.

use axum::http::Method;
use queue::ledger::Operator;
use schemas::JobState;
use serde_json::{Value, json};
use tests::backup_world::has_the_names_of;
use tests::gate_world::GateWorld;
use tests::vercel::{Fault, PROJECT};

const GOOD: [(&str, &str); 1] = [("1_t.sql", "create table t1 (id int);")];
const BAD: [(&str, &str); 1] = [("1_t.sql", "alter table t_missing add column id int;")];

fn promoted(deployment: &str) -> Value {
    json!({"deployment": deployment, "project": PROJECT})
}

#[tokio::test]
async fn a_bypass_lets_it_through_and_says_at_vercel_and_in_the_audit_who_and_why() {
    let it = GateWorld::start().await;
    let (deployment, _) = it.deploy(&BAD);
    let check = it.vercel.begin_check(&deployment);
    let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &json!({}))).await;
    it.ended(gate).await;
    assert_eq!(it.vercel.check_run(&check)["conclusion"], "failed");
    let by = Operator { actor: "ada".into(), reason: "the column is there already".into() };
    let bypass = it.world.start_job("bypass", &json!({"gate": gate}), &by).await;
    let output = it.world.completed(bypass).await;
    has_the_names_of("bypass", &output);
    let run = it.vercel.check_run(&check);
    assert_eq!(run["conclusion"], "succeeded");
    assert_eq!(run["conclusionText"], "bypassed by ada: the column is there already");
    let audit = it.world.queue.ledger().audit(10).await.unwrap();
    let line = audit.iter().find(|line| line.subject == bypass.to_string()).unwrap();
    assert_eq!((line.actor.as_str(), line.reason.as_str()), ("ada", "the column is there already"));
    // What was bypassed is no alarm when it goes live.
    it.vercel.promote(&deployment);
    assert_eq!(it.world.complete("promoted", &promoted(&deployment)).await["by"], "gate");
    it.world.close().await;
}

#[tokio::test]
async fn a_bypass_that_no_operator_started_is_refused() {
    let it = GateWorld::start().await;
    let (deployment, _) = it.deploy(&BAD);
    let check = it.vercel.begin_check(&deployment);
    let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &json!({}))).await;
    it.ended(gate).await;
    let by = Operator { actor: "ada".into(), reason: "x".into() };
    let noop = it.world.start_job("noop", &json!({}), &by).await; // What she started is another job.
    let reason = it.world.discarded("bypass", &json!({"gate": gate})).await;
    assert!(reason.contains("no operator started this job: nightporter jobs bypass"), "{reason}");
    assert_eq!(it.vercel.check_run(&check)["conclusion"], "failed");
    let other = it.world.start_job("bypass", &json!({"gate": noop}), &by).await;
    assert!(it.world.wait_discarded(other).await.contains("there is no gate"));
    it.world.close().await;
}

#[tokio::test]
async fn a_bypass_while_the_gate_waits_is_the_answer_and_the_gate_leaves_it() {
    let it = GateWorld::start().await;
    let (deployment, _) = it.deploy(&GOOD);
    let check = it.vercel.begin_check(&deployment);
    let by = Operator { actor: "ada".into(), reason: "in a hurry".into() };
    it.world.queue.pause(&queue::ledger::Pausable::Kind("migrate".into()), &by).await.unwrap();
    let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &json!({}))).await;
    it.world.wait_for(gate, &[JobState::Scheduled]).await;
    let bypass = it.world.start_job("bypass", &json!({"gate": gate}), &by).await;
    it.world.completed(bypass).await;
    let output = it.ended(gate).await.output.unwrap();
    assert_eq!(output["text"], "it was answered by somebody else: succeeded");
    assert_eq!(it.vercel.check_run(&check)["answers"], 1);
    it.world.close().await;
}

#[tokio::test]
async fn what_goes_live_without_our_word_is_an_alarm() {
    let it = GateWorld::start().await;
    let (good, _) = it.deploy(&GOOD);
    let check = it.vercel.begin_check(&good);
    let gate = it.world.enqueue("gate", &GateWorld::args(&good, &check, &json!({}))).await;
    it.ended(gate).await;
    it.vercel.promote(&good);
    for _ in 0..2 {
        let output = it.world.complete("promoted", &promoted(&good)).await;
        has_the_names_of("promoted", &output);
        assert_eq!(output["by"], "gate");
    }
    // Its check failed, and somebody forced it; Vercel's own word is not what counts.
    let (bad, commit) = it.deploy(&[GOOD[0], ("2_t.sql", "alter table t_missing add column id int;")]);
    let check = it.vercel.begin_check(&bad);
    let gate = it.world.enqueue("gate", &GateWorld::args(&bad, &check, &json!({}))).await;
    it.ended(gate).await;
    it.vercel.change(&bad, &json!({"checksConclusion": "skipped"}));
    it.vercel.hub(|hub| hub.check_runs.last_mut().unwrap()["conclusion"] = json!("succeeded"));
    it.vercel.promote(&bad);
    let reason = it.world.discarded("promoted", &promoted(&bad)).await;
    assert!(reason.contains("no gate let it through") && reason.contains(&commit), "{reason}");
    assert!(reason.contains("checks are `skipped`"), "{reason}");
    // Of previews and other projects nothing is said.
    let of_another = json!({"deployment": bad, "project": "prj_other"});
    assert_eq!(it.world.complete("promoted", &of_another).await["by"], "not watched");
    let preview = it.vercel.deploy(None, &commit);
    assert_eq!(it.world.complete("promoted", &promoted(&preview)).await["by"], "not watched");
    it.world.close().await;
}

#[tokio::test]
async fn what_a_gate_that_only_reports_let_pass_is_no_alarm() {
    let it = GateWorld::start().await;
    let (bad, _) = it.deploy(&BAD);
    let check = it.vercel.begin_check(&bad);
    let args = GateWorld::args(&bad, &check, &json!({"report_only": true}));
    let gate = it.world.enqueue("gate", &args).await;
    it.ended(gate).await;
    it.vercel.promote(&bad);
    assert_eq!(it.world.complete("promoted", &promoted(&bad)).await["by"], "gate");
    it.world.close().await;
}

#[tokio::test]
async fn a_bypass_of_a_gate_that_stands_before_another_project_says_nothing() {
    let it = GateWorld::start().await;
    let (deployment, _) = it.deploy(&GOOD);
    let check = it.vercel.begin_check(&deployment);
    let args = GateWorld::args(&deployment, &check, &json!({"project": "prj_other"}));
    let gate = it.world.enqueue("gate", &args).await;
    it.world.wait_discarded(gate).await;
    let by = Operator { actor: "ada".into(), reason: "in a hurry".into() };
    let bypass = it.world.start_job("bypass", &json!({"gate": gate}), &by).await;
    let reason = it.world.wait_discarded(bypass).await;
    assert!(reason.contains("this gate is for `prj_other`"), "{reason}");
    assert_eq!(it.vercel.check_run(&check)["status"], "queued");
    it.world.close().await;
}

#[tokio::test]
async fn what_goes_live_before_we_hear_that_our_answer_arrived_is_no_alarm() {
    let it = GateWorld::start().await;
    let (deployment, _) = it.deploy(&GOOD);
    let check = it.vercel.begin_check(&deployment);
    let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &json!({}))).await;
    it.world.wait_for(gate, &[JobState::Scheduled]).await;
    it.vercel.next(&Method::PATCH, "check-runs", Fault::Silence);
    tests::porter::eventually("the answer is on its way", async || {
        it.look_again(&it.world.queue.ledger().job(gate).await.unwrap().unwrap()).await;
        (it.vercel.silences() > 0).then_some(())
    })
    .await;
    it.vercel.promote(&deployment);
    assert_eq!(it.world.complete("promoted", &promoted(&deployment)).await["by"], "gate");
    it.world.close().await;
}

#[tokio::test]
async fn what_a_job_of_ours_deployed_is_no_alarm_and_what_only_says_so_is() {
    let it = GateWorld::start().await;
    let (deployment, _) = it.deploy(&GOOD);
    let maker = it.world.enqueue("noop", &json!({})).await;
    it.world.completed(maker).await;
    let now = it.world.queue.clock().now().timestamp_millis();
    let meta = json!({schemas::DEPLOYMENT_MARK: maker});
    it.vercel.change(&deployment, &json!({"meta": meta, "createdAt": now}));
    it.vercel.promote(&deployment);
    assert_eq!(it.world.complete("promoted", &promoted(&deployment)).await["by"], format!("job {maker}"));
    // Made when that job had long ended: whoever wrote the mark copied it.
    it.vercel.change(&deployment, &json!({"createdAt": now + 3_600_000}));
    let reason = it.world.discarded("promoted", &promoted(&deployment)).await;
    assert!(reason.contains("no gate let it through"), "{reason}");
    it.world.close().await;
}
