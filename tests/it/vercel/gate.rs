//! What the gate decides: with a real database, stubs of Vercel and GitHub, and a clock by hand.

use std::time::Duration;

use schemas::event::DEPLOYMENT_MARK;
use schemas::{JobState, RunState};
use serde_json::{Value, json};
use tests::backup_world::has_the_names_of;
use tests::gate_world::GateWorld;
use tests::vercel::{PROJECT, Vercel};

const GOOD: [(&str, &str); 1] = [("1_t.sql", "create table t1 (id int);")];
const BAD: [(&str, &str); 2] =
    [("1_t.sql", "create table t1 (id int);"), ("2_t.sql", "alter table t_missing add column id int;")];

fn answer(vercel: &Vercel, run: &str) -> (Value, String) {
    let run = vercel.check_run(run);
    (run["conclusion"].clone(), run["conclusionText"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_deployment_is_let_through_when_its_migrations_are_applied() {
    let it = GateWorld::start().await;
    let (deployment, commit) = it.deploy(&GOOD);
    let check = it.vercel.begin_check(&deployment);
    let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &json!({}))).await;
    let view = it.ended(gate).await;
    let output = view.output.unwrap();
    has_the_names_of("gate", &output);
    assert_eq!((&output["conclusion"], &output["ref"]), (&json!("succeeded"), &json!(commit)));
    assert_eq!(answer(&it.vercel, &check), (json!("succeeded"), "`deploy` succeeded".to_owned()));
    let run = it.vercel.check_run(&check);
    assert_eq!((&run["status"], &run["externalId"]), (&json!("completed"), &json!(gate)));
    assert_eq!(it.tables().await, ["t1"]);
    let runs = it.runs().await;
    assert_eq!((runs.len(), runs[0].inputs["ref"].as_str()), (1, Some(commit.as_str())));
    let patched: Vec<Value> = it.vercel.requests().into_iter().map(|it| it.body).filter(|it| !it.is_null()).collect();
    assert_eq!(patched[0]["status"], "running", "it says first that it is being worked at");
    it.world.close().await;
}

#[tokio::test]
async fn a_failing_migration_keeps_it_shut_and_a_rerun_of_the_check_opens_it_once_mended() {
    let it = GateWorld::start().await;
    let (deployment, _) = it.deploy(&BAD);
    let check = it.vercel.begin_check(&deployment);
    let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &json!({}))).await;
    let view = it.ended(gate).await;
    assert_eq!(view.state, JobState::Completed, "the run's own job tells of it");
    let (conclusion, text) = answer(&it.vercel, &check);
    assert_eq!(conclusion, "failed");
    assert!(
        text.contains("`migrate` was discarded; why: nightporter runs show") && !text.contains("t_missing"),
        "{text}"
    );
    it.target.run("create table t_missing ()").await;
    let again = it.vercel.begin_check(&deployment);
    let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &again, &json!({}))).await;
    assert_eq!(it.ended(gate).await.output.unwrap()["conclusion"], "succeeded");
    assert_eq!((answer(&it.vercel, &again).0, answer(&it.vercel, &check).0), (json!("succeeded"), json!("failed")));
    let states: Vec<RunState> = it.runs().await.iter().map(|run| run.state).collect();
    assert_eq!(states, [RunState::Failed, RunState::Completed]);
    it.world.close().await;
}

#[tokio::test]
async fn when_the_time_is_up_it_fails_closed_and_says_that_it_still_runs() {
    // The shorter time counts, the check's own or ours; before the check's own is up, for then Vercel itself answers.
    for (within, timeout, least, most) in
        [("1m", json!(1_800_000), 60, 90), ("25m", json!(60_000), 40, 59), ("25m", json!(60), 40, 59)]
    {
        let it = GateWorld::start().await;
        let (deployment, _) = it.deploy(&GOOD);
        let check = it.vercel.begin_check(&deployment);
        it.vercel.hub(|hub| hub.check_runs[0]["timeout"] = timeout);
        let paused = queue::ledger::Pausable::Kind("migrate".into());
        let ada = queue::ledger::Operator { actor: "ada".into(), reason: "a test".into() };
        it.world.queue.pause(&paused, &ada).await.unwrap();
        let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &json!({"within": within}))).await;
        let before = it.world.queue.clock().now();
        let view = it.ended(gate).await;
        let waited = it.world.queue.clock().now() - before;
        assert!((least..=most).contains(&waited.num_seconds()), "{waited} of {within}");
        assert_eq!(view.state, JobState::Discarded, "nobody else tells of it");
        let (conclusion, text) = answer(&it.vercel, &check);
        assert_eq!(conclusion, "failed");
        assert!(text.contains("still running") && text.contains("rerun the check"), "{text}");
        assert_eq!(it.runs().await[0].state, RunState::Running, "the run goes on");
        it.world.close().await;
    }
}

#[tokio::test]
async fn what_is_not_proven_is_not_let_through() {
    let it = GateWorld::start().await;
    let (deployment, commit) = it.deploy(&GOOD);
    let by_hand = it.vercel.deploy_by_hand(&commit);
    let check = it.vercel.begin_check(&by_hand);
    let reason = it.world.discarded("gate", &GateWorld::args(&by_hand, &check, &json!({}))).await;
    assert!(reason.contains("not built from a commit that Vercel fetched itself"), "{reason}");
    assert_eq!(answer(&it.vercel, &check).0, "failed");
    // Of others nothing is answered at all.
    for (more, words) in [
        (json!({"project": "prj_other"}), "this gate is for `prj_other`"),
        (json!({"target": "staging"}), "this gate is for `staging`"),
    ] {
        let check = it.vercel.begin_check(&deployment);
        let reason = it.world.discarded("gate", &GateWorld::args(&deployment, &check, &more)).await;
        assert!(reason.contains(words), "{reason}");
        assert_eq!(it.vercel.check_run(&check)["status"], "queued");
    }
    it.vercel.change(&deployment, &json!({"stranger": true}));
    let check = it.vercel.begin_check(&deployment);
    let reason = it.world.discarded("gate", &GateWorld::args(&deployment, &check, &json!({}))).await;
    assert!(reason.contains("no access to its project"), "{reason}");
    assert!(it.runs().await.is_empty() && it.tables().await.is_empty());
    it.world.close().await;
}

#[tokio::test]
async fn a_run_that_leaves_migrations_pending_is_no_success() {
    let plan_alone = json!({
        "inputs": {"ref": "git-sha"},
        "jobs": {"plan": {"job": "plan", "with": {"database": "main", "ref": "{{ inputs.ref }}"}}},
    });
    let it = GateWorld::with(&plan_alone).await;
    let (deployment, _) = it.deploy(&GOOD);
    let check = it.vercel.begin_check(&deployment);
    let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &json!({}))).await;
    assert_eq!(it.ended(gate).await.state, JobState::Discarded);
    let (conclusion, text) = answer(&it.vercel, &check);
    assert_eq!(conclusion, "failed");
    assert!(text.contains("1 migrations of `main` are pending, and no job of the run applied them"), "{text}");
    it.world.close().await;
}

#[tokio::test]
async fn what_only_reports_says_what_it_would_have_answered_and_stops_nothing() {
    let it = GateWorld::start().await;
    let (deployment, _) = it.deploy(&BAD);
    let check = it.vercel.begin_check(&deployment);
    let args = GateWorld::args(&deployment, &check, &json!({"report_only": true}));
    let gate = it.world.enqueue("gate", &args).await;
    let output = it.ended(gate).await.output.unwrap();
    assert_eq!((&output["conclusion"], &output["report_only"]), (&json!("failed"), &json!(true)));
    let (conclusion, text) = answer(&it.vercel, &check);
    assert_eq!(conclusion, "neutral");
    assert!(text.starts_with("report only; it would have been failed: `deploy` did not succeed"), "{text}");
    it.world.close().await;
}

#[tokio::test]
async fn a_commit_that_is_older_than_the_live_one_is_superseded_and_one_beside_it_is_a_persons_to_judge() {
    let it = GateWorld::start().await;
    let (older, _) = it.deploy(&GOOD);
    let (newer, _) = it.deploy(&[GOOD[0], ("2_t.sql", "create table t2 (id int);")]);
    let beside = it.vercel.deploy(Some("production"), &it.github.commit_beside(&GOOD));
    let compared = json!({"repository": tests::migration_world::REPOSITORY});
    let check = it.vercel.begin_check(&newer);
    let gate = it.world.enqueue("gate", &GateWorld::args(&newer, &check, &compared)).await;
    assert_eq!(it.ended(gate).await.output.unwrap()["conclusion"], "succeeded", "nothing is live yet");
    it.vercel.promote(&newer);
    for (deployment, conclusion, words) in [
        (&older, "canceled", "superseded: production serves a newer commit"),
        (&beside, "failed", "is no descendant of what production serves"),
    ] {
        let check = it.vercel.begin_check(deployment);
        let gate = it.world.enqueue("gate", &GateWorld::args(deployment, &check, &compared)).await;
        assert_eq!(it.ended(gate).await.state, JobState::Discarded);
        let (answered, text) = answer(&it.vercel, &check);
        assert_eq!(answered, conclusion);
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(it.runs().await.len(), 1, "for those nothing was run");
    // A revert is a descendant without the newest migration.
    let (revert, _) = it.deploy(&GOOD);
    for (more, conclusion) in [(&json!({}), "canceled"), (&compared, "succeeded")] {
        let check = it.vercel.begin_check(&revert);
        let gate = it.world.enqueue("gate", &GateWorld::args(&revert, &check, more)).await;
        it.ended(gate).await;
        assert_eq!(answer(&it.vercel, &check).0, conclusion, "{more}");
    }
    it.world.close().await;
}

#[tokio::test]
async fn a_commit_that_becomes_old_while_its_run_goes_on_is_superseded() {
    let it = GateWorld::start().await;
    let (older, _) = it.deploy(&GOOD);
    let (newer, _) = it.deploy(&GOOD);
    let compared = json!({"repository": tests::migration_world::REPOSITORY});
    let check = it.vercel.begin_check(&older);
    let ada = queue::ledger::Operator { actor: "ada".into(), reason: "a test".into() };
    let paused = queue::ledger::Pausable::Kind("migrate".into());
    it.world.queue.pause(&paused, &ada).await.unwrap();
    let gate = it.world.enqueue("gate", &GateWorld::args(&older, &check, &compared)).await;
    it.world.wait_for(gate, &[JobState::Scheduled]).await;
    it.vercel.promote(&newer);
    it.world.queue.resume(&paused, &ada).await.unwrap();
    it.ended(gate).await;
    assert_eq!(answer(&it.vercel, &check).0, "canceled");
    it.world.close().await;
}

#[tokio::test]
async fn a_deployment_that_is_cancelled_has_its_run_cancelled_and_gets_no_answer() {
    let it = GateWorld::start().await;
    let (deployment, _) = it.deploy(&GOOD);
    let check = it.vercel.begin_check(&deployment);
    let ada = queue::ledger::Operator { actor: "ada".into(), reason: "a test".into() };
    let paused = queue::ledger::Pausable::Kind("migrate".into());
    it.world.queue.pause(&paused, &ada).await.unwrap();
    let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &json!({}))).await;
    it.waits(gate).await;
    it.vercel.cancel(&deployment);
    assert_eq!(it.ended(gate).await.state, JobState::Cancelled);
    assert_eq!(it.runs().await[0].state, RunState::Cancelled);
    assert_eq!(it.vercel.check_run(&check)["conclusion"], Value::Null);
    it.world.queue.resume(&paused, &ada).await.unwrap();
    assert!(it.tables().await.is_empty(), "what was not wanted was not migrated");
    it.world.close().await;
}

#[tokio::test]
async fn a_redeploy_by_a_job_of_ours_belongs_to_that_job_and_starts_no_run() {
    let it = GateWorld::start().await;
    let (deployment, commit) = it.deploy(&GOOD);
    let check = it.vercel.begin_check(&deployment);
    let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &json!({}))).await;
    it.ended(gate).await;
    it.vercel.promote(&deployment);
    let maker = it.world.enqueue("noop", &json!({})).await;
    it.world.completed(maker).await;
    let now = it.world.queue.clock().now().timestamp_millis();
    let hour = i64::try_from(Duration::from_hours(1).as_millis()).unwrap();
    for (mark, at, commit, runs, words) in [
        (json!(maker), now, commit.clone(), 1, "part of its run"),
        // Marks that are no proof: of nobody's job, of a job that was over, of a gate, whose id Vercel shows and which
        // makes no deployment, of another commit than the live one.
        (json!(schemas::JobId::at(it.world.queue.clock().now())), now, commit.clone(), 2, "`deploy` succeeded"),
        (json!(maker), now + hour, commit.clone(), 3, "`deploy` succeeded"),
        (json!(gate), now, commit, 4, "`deploy` succeeded"),
        (json!(maker), now, it.github.commit(&GOOD), 5, "`deploy` succeeded"),
    ] {
        let redeploy = it.vercel.deploy(Some("production"), &commit);
        it.vercel.change(&redeploy, &json!({"meta": {DEPLOYMENT_MARK: mark}, "createdAt": at}));
        let check = it.vercel.begin_check(&redeploy);
        let gate = it.world.enqueue("gate", &GateWorld::args(&redeploy, &check, &json!({}))).await;
        it.ended(gate).await;
        let (conclusion, text) = answer(&it.vercel, &check);
        assert_eq!((conclusion, it.runs().await.len()), (json!("succeeded"), runs), "{text}");
        assert!(text.contains(words), "{text}");
    }
    it.world.close().await;
}

#[tokio::test]
async fn the_own_address_is_smoked_with_a_header_that_goes_to_deployments_of_the_project_alone() {
    let smoke = json!({
        "inputs": {"url": "string", "path": "string"},
        "jobs": {"smoke": {"job": "http", "with": {"url": "{{ inputs.url }}{{ inputs.path }}", "credentials": "bypass"}}},
    });
    let it = GateWorld::with(&smoke).await;
    let site = tests::receiver::Receiver::start().await;
    let host = site.url.trim_start_matches("http://").to_owned();
    let (deployment, _) = it.deploy(&GOOD);
    let path = json!({"with": {"path": "/health"}});
    for (changes, conclusion, requests) in [
        (json!({"url": host}), "succeeded", 1),
        // Nobody is there.
        (json!({"url": tests::receiver::nowhere().trim_start_matches("http://")}), "failed", 1),
    ] {
        it.vercel.change(&deployment, &changes);
        let check = it.vercel.begin_check(&deployment);
        let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &path)).await;
        it.ended(gate).await;
        assert_eq!((answer(&it.vercel, &check).0, site.requests().len()), (json!(conclusion), requests));
    }
    assert_eq!(site.requests()[0].header("x-vercel-protection-bypass"), "canary-of-the-bypass");
    // A stranger's deployment at the very address gets nothing.
    let stranger = it.vercel.deploy(Some("production"), tests::vercel::OWN_COMMIT);
    it.vercel.change(&stranger, &json!({"url": host, "projectId": "prj_stranger"}));
    it.vercel.change(&deployment, &json!({"url": "elsewhere.vercel.app"}));
    let args = json!({"url": format!("{}/health", site.url), "credentials": "bypass"});
    let reason = it.world.discarded("http", &args).await;
    assert!(reason.contains("may not be sent to") && !reason.contains("canary"), "{reason}");
    assert_eq!(site.requests().len(), 1);
    assert_ne!(PROJECT, "prj_stranger");
    it.world.close().await;
}

#[tokio::test]
async fn what_production_serves_does_not_hold_up_another_environment() {
    let it = GateWorld::start().await;
    let older = it.github.commit(&GOOD);
    let (newer, _) = it.deploy(&GOOD);
    it.vercel.promote(&newer);
    let staging = it.vercel.deploy(Some("staging"), &older);
    let check = it.vercel.begin_check(&staging);
    let more = json!({"target": "staging", "repository": tests::migration_world::REPOSITORY});
    let gate = it.world.enqueue("gate", &GateWorld::args(&staging, &check, &more)).await;
    it.ended(gate).await;
    assert_eq!(answer(&it.vercel, &check), (json!("succeeded"), "`deploy` succeeded".to_owned()));
    it.world.close().await;
}

#[tokio::test]
async fn what_cannot_be_found_out_keeps_it_shut_and_is_answered() {
    let it = GateWorld::start().await;
    let (live, _) = it.deploy(&GOOD);
    it.vercel.promote(&live);
    let (deployment, _) = it.deploy(&GOOD);
    let check = it.vercel.begin_check(&deployment);
    it.github.answer_first(axum::http::StatusCode::FORBIDDEN, &[]);
    let more = json!({"repository": tests::migration_world::REPOSITORY});
    let gate = it.world.enqueue("gate", &GateWorld::args(&deployment, &check, &more)).await;
    assert_eq!(it.ended(gate).await.state, JobState::Discarded, "nobody else tells of it");
    let (conclusion, text) = answer(&it.vercel, &check);
    assert_eq!(conclusion, "failed");
    assert!(text.contains("GitHub") && text.contains("403"), "{text}");
    assert!(it.runs().await.is_empty());
    it.world.close().await;
}
