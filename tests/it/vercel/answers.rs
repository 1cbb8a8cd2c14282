//! How the answer arrives: lost replies, limits, refusals, and answers that somebody else gave.

use axum::http::{Method, StatusCode};
use schemas::JobState;
use serde_json::{Value, json};
use tests::gate_world::GateWorld;
use tests::vercel::Fault;

const GOOD: [(&str, &str); 1] = [("1_t.sql", "create table t1 (id int);")];

/// How often the check run was completed.
fn answers(it: &GateWorld, check: &str) -> u64 {
    it.vercel.check_run(check)["answers"].as_u64().unwrap_or(0)
}

#[tokio::test]
async fn a_reply_that_is_lost_is_asked_about_and_the_answer_is_given_once() {
    for fault in [Fault::Lost, Fault::Broken, limit(), refused(502)] {
        for at_the_answer in [false, true] {
            let it = GateWorld::start().await;
            let (deployment, _) = it.deploy(&GOOD);
            let check = it.vercel.begin_check(&deployment);
            if !at_the_answer {
                it.vercel.next(&Method::PATCH, "check-runs", fault.clone());
            }
            let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &json!({}))).await;
            if at_the_answer {
                it.world.wait_for(gate, &[JobState::Scheduled, JobState::Completed]).await;
                it.vercel.next(&Method::PATCH, "check-runs", fault.clone());
            }
            assert_eq!(it.ended(gate).await.output.unwrap()["conclusion"], "succeeded");
            assert_eq!(it.vercel.check_run(&check)["conclusion"], "succeeded", "{fault:?}");
            assert_eq!(answers(&it, &check), 1, "{fault:?}");
            assert_eq!(it.runs().await.len(), 1);
            it.world.close().await;
        }
    }
}

fn limit() -> Fault {
    Fault::Refused(StatusCode::TOO_MANY_REQUESTS, vec![("retry-after", "7".to_owned())], Value::Null)
}

fn refused(status: u16) -> Fault {
    Fault::Refused(StatusCode::from_u16(status).unwrap(), vec![], Value::Null)
}

#[tokio::test]
async fn a_check_that_is_gone_is_no_error_and_nothing_is_run_for_it() {
    for status in [404, 410] {
        let it = GateWorld::start().await;
        let (deployment, _) = it.deploy(&GOOD);
        let check = it.vercel.begin_check(&deployment);
        it.vercel.next(&Method::GET, "check-runs", refused(status));
        let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &json!({}))).await;
        assert_eq!(it.ended(gate).await.state, JobState::Cancelled);
        assert!(it.runs().await.is_empty());
        it.world.close().await;
    }
}

#[tokio::test]
async fn what_somebody_else_answered_stands() {
    for (conclusion, state) in
        [("succeeded", JobState::Completed), ("failed", JobState::Completed), ("canceled", JobState::Cancelled)]
    {
        let it = GateWorld::start().await;
        let (deployment, _) = it.deploy(&GOOD);
        let check = it.vercel.begin_check(&deployment);
        let ada = queue::ledger::Operator { actor: "ada".into(), reason: "a test".into() };
        it.world.queue.pause(&queue::ledger::Pausable::Kind("migrate".into()), &ada).await.unwrap();
        let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &json!({}))).await;
        it.world.wait_for(gate, &[JobState::Scheduled]).await;
        it.vercel.hub(|hub| {
            hub.check_runs[0]["status"] = json!("completed");
            hub.check_runs[0]["conclusion"] = json!(conclusion);
            hub.check_runs[0]["externalId"] = json!("somebody");
        });
        let view = it.ended(gate).await;
        assert_eq!(view.state, state);
        assert!(view.output.is_none_or(|output| output["conclusion"] == conclusion), "{conclusion}");
        let run = it.vercel.check_run(&check);
        assert_eq!((&run["conclusion"], &run["externalId"]), (&json!(conclusion), &json!("somebody")));
        it.world.close().await;
    }
}

#[tokio::test]
async fn a_check_run_has_one_gate_however_often_it_is_asked_for() {
    let it = GateWorld::start().await;
    let (deployment, _) = it.deploy(&GOOD);
    let check = it.vercel.begin_check(&deployment);
    let args = GateWorld::args(&deployment, &check, &json!({}));
    let first = it.world.enqueue("gate", &args).await;
    assert_eq!(it.world.enqueue("gate", &args).await, first);
    it.ended(first).await;
    assert_eq!(it.world.enqueue("gate", &args).await, first, "and when it has ended too");
    it.world.close().await;
}

#[tokio::test]
async fn what_is_decided_is_not_decided_again_and_what_somebody_answers_meanwhile_stands() {
    for theirs in [None, Some("failed")] {
        let mut it = GateWorld::start().await;
        it.world.stop_worker().await;
        let (deployment, _) = it.deploy(&GOOD);
        let check = it.vercel.begin_check(&deployment);
        let until = it.world.queue.clock().now() + chrono::TimeDelta::minutes(10);
        let decided = json!({
            "conclusion": "succeeded", "text": "decided before", "run": null, "is_told": true, "is_given": false,
        });
        let steps = [("open", Some(json!({"until": until}))), ("decide", Some(decided))];
        let gate = it.world.die_after("gate", &GateWorld::args(&deployment, &check, &json!({})), &steps).await;
        if let Some(theirs) = theirs {
            it.vercel.hub(|hub| {
                hub.check_runs[0]["status"] = json!("completed");
                hub.check_runs[0]["conclusion"] = json!(theirs);
                hub.check_runs[0]["externalId"] = json!("somebody");
            });
        }
        it.world.start_worker();
        assert_eq!(it.ended(gate).await.state, JobState::Completed);
        let run = it.vercel.check_run(&check);
        assert_eq!(run["conclusion"], theirs.unwrap_or("succeeded"));
        assert_eq!(answers(&it, &check), u64::from(theirs.is_none()));
        assert!(it.runs().await.is_empty(), "nothing is run for what is decided");
        it.world.close().await;
    }
}

#[tokio::test]
async fn a_lost_reply_to_our_own_canceled_is_not_taken_for_vercels() {
    let mut it = GateWorld::start().await;
    it.world.stop_worker().await;
    let ((older, _), (newer, _)) = (it.deploy(&GOOD), it.deploy(&GOOD));
    it.vercel.promote(&newer);
    let check = it.vercel.begin_check(&older);
    let compared = json!({"repository": tests::migration_world::REPOSITORY});
    // What goes wrong with the first, which says that it is being worked at, is another test's.
    let until = it.world.queue.clock().now() + chrono::TimeDelta::minutes(10);
    it.vercel.next(&Method::PATCH, "check-runs", Fault::Lost);
    let opened = [("open", Some(json!({"until": until})))];
    let gate = it.world.die_after("gate", &GateWorld::args(&older, &check, &compared), &opened).await;
    it.world.start_worker();
    assert_eq!(it.ended(gate).await.state, JobState::Discarded, "people are told");
    assert_eq!((it.vercel.check_run(&check)["conclusion"].as_str(), answers(&it, &check)), (Some("canceled"), 1));
    it.world.close().await;
}
