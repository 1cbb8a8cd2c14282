//! What operators do, as the ledger's contract: approvals, replays, tokens; each with its audit row.

use std::num::NonZeroU32;
use std::time::Duration;

use queue::clock::later;
use queue::ledger::{JobFilter, LedgerError, NewToken, Operator, Replay};
use schemas::{ApprovalPolicy, JobId, JobState, Limit, NewJob, Role, RunState, Timestamp};
use tests::ledgers::{TestLedger, ada, completed, discarded};

on_every_engine![
    a_job_waits_for_consent_and_then_runs,
    nobody_approves_what_they_started_unless_the_policy_says_so,
    one_person_consents_once_however_often_they_say_it,
    a_weaker_role_than_the_policy_asks_for_is_refused,
    a_refusal_cancels_the_job_and_its_run_goes_on,
    a_consent_that_does_not_come_in_time_cancels_the_job,
    a_retry_asks_again_but_not_for_what_was_granted,
    after_its_approval_a_job_waits_for_room,
    a_cancelled_job_waits_for_no_approval,
    a_replay_makes_a_new_job_and_leaves_the_old_one,
    a_replay_of_many_is_all_or_nothing,
    what_has_not_ended_is_not_replayed,
    a_run_is_replayed_whole,
    a_token_opens_until_it_is_revoked_or_ends,
    every_verb_leaves_its_line_in_the_audit,
];

/// A moment later, so that the audit has an order.
fn tick(t: &TestLedger) -> Timestamp {
    t.clock.advance(Duration::from_millis(1));
    t.now()
}

fn by(actor: &str) -> Operator {
    Operator { actor: actor.into(), reason: "looked at it".into() }
}

fn policy(count: u32) -> ApprovalPolicy {
    let count = NonZeroU32::new(count).unwrap();
    ApprovalPolicy { count, role: Role::Operator, within: Duration::from_hours(24), own: false }
}

fn asking(t: &TestLedger, policy: ApprovalPolicy) -> NewJob {
    NewJob { approval: Some(policy), ..t.job() }
}

/// A job that ada started and that waits for consent.
async fn started(t: &TestLedger, policy: ApprovalPolicy) -> JobId {
    let job = asking(t, policy);
    t.ledger.start_job(&job, &ada(), tick(t)).await.unwrap();
    job.id
}

async fn verbs(t: &TestLedger) -> Vec<String> {
    let mut audit = t.ledger.audit(50).await.unwrap();
    audit.reverse();
    audit.into_iter().map(|line| format!("{} {}", line.actor, line.verb)).collect()
}

async fn a_job_waits_for_consent_and_then_runs(t: TestLedger) {
    let job = started(&t, policy(2)).await;
    assert_eq!(t.state(job).await, JobState::Pending);
    assert!(t.claim(10).await.is_empty());
    let asked = t.ledger.approvals(10).await.unwrap().remove(0);
    assert_eq!((asked.job, asked.needed, asked.requested_by.as_deref()), (job, 2, Some("ada")));
    assert_eq!(asked.expires_at, Some(later(t.now(), Duration::from_hours(24))));
    let (state, bells) = t.ledger.approve(job, Role::Operator, &by("bob"), tick(&t)).await.unwrap();
    assert!(state == JobState::Pending && bells.is_empty(), "one of two");
    let (state, bells) = t.ledger.approve(job, Role::Admin, &by("eve"), tick(&t)).await.unwrap();
    assert!(state == JobState::Available && !bells.is_empty());
    assert_eq!(t.complete_next(None).await, job);
    let approval = t.view(job).await.approval.unwrap();
    assert_eq!(approval.consents.iter().map(|one| one.actor.as_str()).collect::<Vec<_>>(), ["bob", "eve"]);
    assert!(approval.granted_at.is_some() && approval.consents.iter().all(|one| !one.own));
    assert!(t.ledger.approvals(10).await.unwrap().is_empty());
    assert_eq!(verbs(&t).await, ["ada start", "bob approve", "eve approve"]);
}

async fn nobody_approves_what_they_started_unless_the_policy_says_so(t: TestLedger) {
    let strict = started(&t, policy(1)).await;
    let refused = t.ledger.approve(strict, Role::Admin, &ada(), tick(&t)).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Forbidden(_)), "{refused}");
    assert_eq!(t.state(strict).await, JobState::Pending);
    let lenient = started(&t, ApprovalPolicy { own: true, ..policy(1) }).await;
    let (state, _) = t.ledger.approve(lenient, Role::Operator, &ada(), tick(&t)).await.unwrap();
    assert_eq!(state, JobState::Available);
    assert!(t.view(lenient).await.approval.unwrap().consents[0].own, "it is recorded as their own");
    assert_eq!(verbs(&t).await.last().unwrap(), "ada approve own");
    // Of a run the starter is who started the run.
    let mut run = t.run(&[("migrate", &[], None)]);
    run.jobs[0].job.approval = Some(policy(1));
    t.ledger.start_run(&run, &ada(), tick(&t)).await.unwrap();
    let refused = t.ledger.approve(run.jobs[0].job.id, Role::Admin, &ada(), tick(&t)).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Forbidden(_)), "{refused}");
}

async fn one_person_consents_once_however_often_they_say_it(t: TestLedger) {
    let job = started(&t, policy(2)).await;
    for _ in 0..3 {
        let (state, _) = t.ledger.approve(job, Role::Operator, &by("bob"), tick(&t)).await.unwrap();
        assert_eq!(state, JobState::Pending);
    }
    assert_eq!(t.view(job).await.approval.unwrap().consents.len(), 1);
}

async fn a_weaker_role_than_the_policy_asks_for_is_refused(t: TestLedger) {
    let job = started(&t, ApprovalPolicy { role: Role::Admin, ..policy(1) }).await;
    for attempt in [
        t.ledger.approve(job, Role::Operator, &by("bob"), tick(&t)).await.map(drop),
        t.ledger.refuse(job, Role::Operator, &by("bob"), tick(&t)).await.map(drop),
    ] {
        assert!(matches!(attempt, Err(LedgerError::Forbidden(_))));
    }
    assert_eq!(t.state(job).await, JobState::Pending);
    assert_eq!(verbs(&t).await, ["ada start"], "what was not done is not in the audit");
}

async fn a_refusal_cancels_the_job_and_its_run_goes_on(t: TestLedger) {
    let mut run = t.run(&[("migrate", &[], None), ("tell", &["migrate"], Some("always()"))]);
    run.jobs[0].job.approval = Some(policy(1));
    t.ledger.start(&run, t.now()).await.unwrap();
    let bells = t.ledger.refuse(run.jobs[0].job.id, Role::Operator, &by("bob"), tick(&t)).await.unwrap();
    assert!(!bells.is_empty());
    let view = t.view(run.jobs[0].job.id).await;
    assert_eq!((view.state, view.reason.as_deref()), (JobState::Cancelled, Some("refused by bob: looked at it")));
    assert_eq!(t.complete_next(None).await, run.jobs[1].job.id);
    assert_eq!(t.ledger.run(run.id).await.unwrap().unwrap().state, RunState::Cancelled);
}

async fn a_consent_that_does_not_come_in_time_cancels_the_job(t: TestLedger) {
    let mut run = t.run(&[("plan", &[], None), ("migrate", &["plan"], None)]);
    run.jobs[1].job.approval = Some(policy(1));
    t.ledger.start(&run, t.now()).await.unwrap();
    t.clock.advance(Duration::from_hours(48));
    t.ledger.review(100, t.now()).await.unwrap();
    assert_eq!(t.state(run.jobs[1].job.id).await, JobState::Pending, "it has not been asked for yet");
    t.complete_next(None).await;
    t.clock.advance(Duration::from_hours(23));
    t.ledger.review(100, t.now()).await.unwrap();
    assert_eq!(t.state(run.jobs[1].job.id).await, JobState::Pending);
    t.clock.advance(Duration::from_hours(1));
    t.ledger.review(100, t.now()).await.unwrap();
    let view = t.view(run.jobs[1].job.id).await;
    assert_eq!(view.state, JobState::Cancelled);
    assert_eq!(view.reason.as_deref(), Some("its approval did not come in time"));
    assert_eq!(t.ledger.run(run.id).await.unwrap().unwrap().state, RunState::Cancelled);
    let late = t.ledger.approve(view.id, Role::Admin, &by("bob"), tick(&t)).await;
    assert!(late.is_err(), "it is too late");
}

async fn a_retry_asks_again_but_not_for_what_was_granted(t: TestLedger) {
    let job = started(&t, policy(1)).await;
    t.ledger.refuse(job, Role::Operator, &by("bob"), tick(&t)).await.unwrap();
    t.clock.advance(Duration::from_hours(72));
    t.ledger.retry(job, &ada(), tick(&t)).await.unwrap();
    t.ledger.review(100, t.now()).await.unwrap();
    assert_eq!(t.state(job).await, JobState::Pending, "it asks anew, for the whole time");
    t.ledger.approve(job, Role::Operator, &by("bob"), tick(&t)).await.unwrap();
    let claimed = t.claim_one().await;
    assert!(t.finish(claimed.id, discarded("no")).await);
    t.ledger.retry(job, &ada(), tick(&t)).await.unwrap();
    assert_eq!(t.complete_next(None).await, job, "the consent was to these arguments, and they are the same");
}

async fn after_its_approval_a_job_waits_for_room(t: TestLedger) {
    let holder = t.enqueue(&[NewJob { limits: vec![Limit::one("a")], ..t.job() }]).await[0];
    let job = NewJob { limits: vec![Limit::one("a")], ..asking(&t, policy(1)) };
    t.ledger.start_job(&job, &ada(), tick(&t)).await.unwrap();
    assert_eq!(t.view(job.id).await.reason.as_deref(), Some("waits for an approval"));
    let (state, _) = t.ledger.approve(job.id, Role::Operator, &by("bob"), tick(&t)).await.unwrap();
    assert_eq!(state, JobState::Pending);
    assert_eq!(t.view(job.id).await.reason.as_deref(), Some("waits for room at `a`"));
    assert_eq!(t.complete_next(None).await, holder);
    assert_eq!(t.complete_next(None).await, job.id);
}

async fn a_cancelled_job_waits_for_no_approval(t: TestLedger) {
    let job = started(&t, policy(1)).await;
    t.ledger.cancel(job, &by("bob"), tick(&t)).await.unwrap();
    assert!(t.ledger.approvals(10).await.unwrap().is_empty());
    assert!(t.ledger.approve(job, Role::Admin, &by("bob"), tick(&t)).await.is_err());
    assert_eq!(t.state(job).await, JobState::Cancelled);
}

/// A job again, as the catalog would make it.
fn again(t: &TestLedger, of: JobId) -> Box<NewJob> {
    Box::new(NewJob { replay_of: Some(of), ..t.job() })
}

async fn a_replay_makes_a_new_job_and_leaves_the_old_one(t: TestLedger) {
    t.enqueue(&[t.job()]).await;
    let old = t.complete_next(None).await;
    let new = again(&t, old);
    let id = new.id;
    let replay = Replay::Job { of: old, state: JobState::Completed, attempt: 1, again: new };
    let bells = t.ledger.replay(&[replay], &ada(), tick(&t)).await.unwrap();
    assert_eq!(bells.iter().map(|bell| bell.count).sum::<u32>(), 1);
    assert_eq!(t.complete_next(None).await, id);
    assert_eq!(t.view(id).await.replay_of, Some(old));
    assert_eq!(t.view(old).await.attempts.len(), 1);
    let line = t.ledger.audit(1).await.unwrap().remove(0);
    assert_eq!((line.verb.as_str(), line.subject), ("replay", old.to_string()));
}

async fn a_replay_of_many_is_all_or_nothing(t: TestLedger) {
    let jobs = t.enqueue(&[t.job(), t.job()]).await;
    for _ in &jobs {
        let claimed = t.claim_one().await;
        assert!(t.finish(claimed.id, discarded("no")).await);
    }
    let looked_at = |job: JobId| Replay::Job { of: job, state: JobState::Discarded, attempt: 1, again: again(&t, job) };
    let set = [looked_at(jobs[0]), looked_at(jobs[1])];
    // Between the look and the replay somebody retries one of them, and it fails again.
    t.ledger.retry(jobs[1], &by("bob"), tick(&t)).await.unwrap();
    let claimed = t.claim_one().await;
    assert!(t.finish(claimed.id, discarded("no")).await);
    let refused = t.ledger.replay(&set, &ada(), tick(&t)).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Conflict(_)), "{refused}");
    assert!(t.claim(10).await.is_empty(), "nothing at all was replayed");
    let all = t.ledger.jobs(&JobFilter { limit: 10, ..JobFilter::default() }).await.unwrap();
    assert_eq!(all.len(), 2);
    assert!(!verbs(&t).await.contains(&"ada replay".to_owned()));
}

async fn what_has_not_ended_is_not_replayed(t: TestLedger) {
    let job = t.enqueue(&[t.job()]).await[0];
    let replay = Replay::Job { of: job, state: JobState::Available, attempt: 0, again: again(&t, job) };
    let refused = t.ledger.replay(&[replay], &ada(), tick(&t)).await.unwrap_err();
    assert!(refused.to_string().contains("has not ended"), "{refused}");
    let unknown = t.job().id;
    let replay = Replay::Job { of: unknown, state: JobState::Completed, attempt: 1, again: again(&t, unknown) };
    assert!(matches!(t.ledger.replay(&[replay], &ada(), tick(&t)).await, Err(LedgerError::NotFound(_))));
}

async fn a_run_is_replayed_whole(t: TestLedger) {
    let old = t.run(&[("plan", &[], None), ("migrate", &["plan"], None)]);
    t.ledger.start(&old, t.now()).await.unwrap();
    let mut new = t.run(&[("plan", &[], None), ("migrate", &["plan"], None)]);
    new.replay_of = Some(old.id);
    let replay = |state| Replay::Run { of: old.id, state, again: Box::new(new.clone()) };
    assert!(t.ledger.replay(&[replay(RunState::Running)], &ada(), tick(&t)).await.is_err(), "it runs");
    t.complete_next(None).await;
    t.complete_next(None).await;
    assert!(t.ledger.replay(&[replay(RunState::Failed)], &ada(), tick(&t)).await.is_err(), "it stands differently");
    t.ledger.replay(&[replay(RunState::Completed)], &ada(), tick(&t)).await.unwrap();
    assert_eq!(t.complete_next(None).await, new.jobs[0].job.id);
    assert_eq!(t.complete_next(None).await, new.jobs[1].job.id);
    let view = t.ledger.run(new.id).await.unwrap().unwrap();
    assert_eq!((view.state, view.replay_of), (RunState::Completed, Some(old.id)));
}

async fn a_token_opens_until_it_is_revoked_or_ends(t: TestLedger) {
    let token = |name: &str, byte: u8, expires_at| NewToken {
        name: name.into(),
        hash: [byte; 32],
        role: Role::Operator,
        expires_at,
    };
    let soon = later(t.now(), Duration::from_hours(1));
    t.ledger.keep_token(&token("ci", 1, None), &ada(), tick(&t)).await.unwrap();
    t.ledger.keep_token(&token("guest", 2, Some(soon)), &ada(), tick(&t)).await.unwrap();
    let again = t.ledger.keep_token(&token("ci", 3, None), &ada(), tick(&t)).await;
    assert!(matches!(again, Err(LedgerError::Conflict(_))));
    let found = t.ledger.token(&[1; 32], t.now()).await.unwrap().unwrap();
    assert_eq!((found.name.as_str(), found.role, found.created_by.as_str()), ("ci", Role::Operator, "ada"));
    assert!(t.ledger.token(&[9; 32], t.now()).await.unwrap().is_none());
    assert!(t.ledger.token(&[2; 32], t.now()).await.unwrap().is_some());
    t.clock.advance(Duration::from_hours(1));
    assert!(t.ledger.token(&[2; 32], t.now()).await.unwrap().is_none(), "it has ended");
    t.ledger.revoke_token("ci", &ada(), tick(&t)).await.unwrap();
    assert!(t.ledger.token(&[1; 32], t.now()).await.unwrap().is_none(), "it is revoked");
    assert!(matches!(t.ledger.revoke_token("ci", &ada(), tick(&t)).await, Err(LedgerError::NotFound(_))));
    assert!(t.ledger.keep_token(&token("ci", 4, None), &ada(), tick(&t)).await.is_err(), "the audit would mix them up");
    assert_eq!(t.ledger.tokens().await.unwrap().len(), 2);
}

async fn every_verb_leaves_its_line_in_the_audit(t: TestLedger) {
    use queue::ledger::Pausable;
    let job = t.enqueue(&[t.job()]).await[0];
    t.ledger.cancel(job, &ada(), tick(&t)).await.unwrap();
    t.ledger.retry(job, &ada(), tick(&t)).await.unwrap();
    let claimed = t.claim_one().await;
    assert!(t.finish(claimed.id, completed(None)).await);
    let replay = Replay::Job { of: job, state: JobState::Completed, attempt: 1, again: again(&t, job) };
    t.ledger.replay(&[replay], &ada(), tick(&t)).await.unwrap();
    for what in [Pausable::Queue("q".into()), Pausable::Kind("k".into()), Pausable::Key("l".into())] {
        t.ledger.pause(&what, &ada(), tick(&t)).await.unwrap();
        t.ledger.resume(&what, &ada(), tick(&t)).await.unwrap();
    }
    let token = NewToken { name: "ci".into(), hash: [1; 32], role: Role::Viewer, expires_at: None };
    t.ledger.keep_token(&token, &ada(), tick(&t)).await.unwrap();
    t.ledger.revoke_token("ci", &ada(), tick(&t)).await.unwrap();
    let mut lines = t.ledger.audit(50).await.unwrap();
    lines.reverse();
    let lines: Vec<String> = lines.into_iter().map(|line| format!("{} {}", line.verb, line.subject)).collect();
    let job = job.to_string();
    let expected = [
        &format!("cancel {job}"),
        &format!("retry {job}"),
        &format!("replay {job}"),
        "pause queue q",
        "resume queue q",
        "pause kind k",
        "resume kind k",
        "pause key l",
        "resume key l",
        "make token ci",
        "revoke token ci",
    ];
    assert_eq!(lines, expected);
}
