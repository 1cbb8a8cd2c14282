//! Why a job does not run, from what the server says about it and around it.

use std::time::Duration;

use schemas::api::{JobView, PauseView, QueueView, RunView};
use schemas::{JobState, Timestamp};

use crate::output::moment;

/// A due job that is not promoted within this is not being looked after.
const PROMOTED_WITHIN: Duration = Duration::from_secs(30);

/// What is known around a job.
pub(super) struct Around {
    /// The run that it belongs to.
    pub(super) run: Option<RunView>,
    /// What is paused.
    pub(super) pauses: Vec<PauseView>,
    /// The queues.
    pub(super) queues: Vec<QueueView>,
    /// This machine's time.
    pub(super) now: Timestamp,
}

/// The reasons, the nearest first; never none.
pub(super) fn reasons(job: &JobView, around: &Around) -> Vec<String> {
    match job.state {
        JobState::Pending => pending(job, around),
        JobState::Scheduled | JobState::Retryable => vec![put_off(job, around.now)],
        JobState::Available => available(job, around),
        JobState::Running => vec![running(job)],
        ended => vec![ended_so(job, ended)],
    }
}

fn pending(job: &JobView, around: &Around) -> Vec<String> {
    let mut reasons = needs(job, around);
    if !reasons.is_empty() {
        return reasons; // Approvals and room are asked for when the needs have ended.
    }
    if let Some(approval) = job.approval.as_ref().filter(|approval| approval.granted_at.is_none()) {
        let missing = approval.needed.saturating_sub(u32::try_from(approval.consents.len()).unwrap_or(u32::MAX));
        let until = approval.expires_at.map(|at| format!(", until {}", moment(at))).unwrap_or_default();
        return vec![format!(
            "it waits for {missing} more to approve it ({} or above{until}): nightporter approvals approve {}",
            approval.role.as_str(),
            job.id
        )];
    }
    reasons.extend(paused(around, "kind", &job.kind));
    for limit in &job.limits {
        reasons.extend(paused(around, "key", &limit.key));
        if !limit.inside
            && let Some(at_once) = limit.at_once
        {
            reasons.push(format!(
                "it waits for room at `{}`, which takes {at_once} at once: nightporter jobs list --state running",
                limit.key
            ));
        }
    }
    if reasons.is_empty() {
        reasons.push(job.reason.clone().unwrap_or_else(|| {
            "nothing holds it back that is known here: it should be let in within ten seconds, while any process of \
             nightporter runs"
                .to_owned()
        }));
    }
    reasons
}

/// The jobs of its run that it waits for.
fn needs(job: &JobView, around: &Around) -> Vec<String> {
    let Some(run) = &around.run else { return Vec::new() };
    let Some(own) = run.jobs.iter().find(|other| other.job == job.id) else { return Vec::new() };
    let needed = run.jobs.iter().filter(|other| own.needs.contains(&other.name) && !other.state.is_finished());
    needed
        .map(|other| {
            let state = other.state.as_str();
            format!("it needs `{}`, which is {state}: nightporter doctor {}", other.name, other.job)
        })
        .collect()
}

fn put_off(job: &JobView, now: Timestamp) -> String {
    let after = match (job.state, job.failures) {
        (JobState::Retryable, failures) => format!("it has failed {failures} times and is tried again"),
        _ => "it runs".to_owned(),
    };
    let reason = job.reason.as_deref().map(|reason| format!("; {reason}")).unwrap_or_default();
    match job.run_at {
        Some(at) if now - at < chrono::TimeDelta::from_std(PROMOTED_WITHIN).unwrap_or_default() => {
            format!("{after} at {}{reason}", moment(at))
        }
        Some(at) => format!(
            "it was due at {}, and no process has made it available: does any (`up`, `serve`, `work`) run?{reason}",
            moment(at)
        ),
        None => format!("{after} later{reason}"),
    }
}

fn available(job: &JobView, around: &Around) -> Vec<String> {
    if let Some(reason) = paused(around, "queue", &job.queue) {
        return vec![reason];
    }
    let queue = around.queues.iter().find(|queue| queue.queue == job.queue);
    let running = queue.and_then(|queue| queue.jobs.get("running")).copied().unwrap_or(0);
    let before = queue.and_then(|queue| queue.jobs.get("available")).copied().unwrap_or(0).saturating_sub(1);
    vec![match running {
        0 => format!(
            "it may run, and nothing of the queue `{}` does: does a `work` or `up` run whose version knows the kind `{}`?",
            job.queue, job.kind
        ),
        running => format!(
            "it may run; {running} jobs of the queue `{}` do, and {before} others wait for a place: [worker] queues, or \
             another `work`",
            job.queue
        ),
    }]
}

fn running(job: &JobView) -> String {
    let since = job.attempts.last().map(|attempt| format!(" since {}", moment(attempt.started_at)));
    let step = job.steps.iter().rev().find(|step| step.finished_at.is_none());
    let step = step.map(|step| format!(", in the step `{}` since {}", step.name, moment(step.started_at)));
    format!("it runs: attempt {}{}{}", job.attempt, since.unwrap_or_default(), step.unwrap_or_default())
}

fn ended_so(job: &JobView, state: JobState) -> String {
    let reason = job.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let next = match state {
        JobState::Discarded | JobState::Cancelled => {
            format!("\nmend the cause, then: nightporter jobs retry {} --reason ...", job.id)
        }
        _ => String::new(),
    };
    format!("it has ended, {}{reason}{next}", state.as_str())
}

fn paused(around: &Around, what: &str, name: &str) -> Option<String> {
    let pause = around.pauses.iter().find(|pause| pause.what == what && pause.name == name)?;
    let PauseView { actor, reason, at, .. } = pause;
    Some(format!("the {what} `{name}` is paused by {actor} since {} ({reason})", moment(*at)))
}

#[cfg(test)]
mod tests {
    use schemas::JobId;
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-11-20T12:00:00Z";

    fn id(number: u128) -> JobId {
        JobId(uuid::Uuid::from_u128(number))
    }

    /// A job of kind `backup` in the queue `databases`, in this state, with more said of it.
    fn job(state: JobState, more: Value) -> JobView {
        let mut view = json!({
            "id": id(1), "kind": "backup", "queue": "databases", "priority": "normal", "state": state, "args": {},
            "created_at": NOW, "failures": 0, "crashes": 0, "attempts": [], "steps": [],
        });
        view.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(view).unwrap()
    }

    fn around() -> Around {
        Around { run: None, pauses: Vec::new(), queues: Vec::new(), now: NOW.parse().unwrap() }
    }

    fn paused(what: &str, name: &str) -> Around {
        let pause = json!({"what": what, "name": name, "at": NOW, "actor": "ada", "reason": "a move"});
        Around { pauses: vec![serde_json::from_value(pause).unwrap()], ..around() }
    }

    fn busy(jobs: Value) -> Around {
        let queue = json!({"queue": "databases", "jobs": jobs, "oldest_available": null});
        Around { queues: vec![serde_json::from_value(queue).unwrap()], ..around() }
    }

    fn only(job: &JobView, around: &Around) -> String {
        let mut reasons = reasons(job, around);
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        reasons.remove(0)
    }

    #[test]
    fn what_is_pending_waits_first_for_its_needs_then_for_consent_and_only_then_for_room() {
        let other = |number, name: &str, state: JobState, needs: &[&str]| json!({"name": name, "job": id(number), "kind": "noop", "state": state, "needs": needs});
        let run = json!({
            "id": schemas::RunId(uuid::Uuid::nil()), "runbook": "deploy", "state": "running", "inputs": {}, "created_at": NOW,
            "jobs": [
                other(2, "plan", JobState::Running, &[]), other(3, "look", JobState::Completed, &[]),
                other(4, "other", JobState::Available, &[]), other(1, "backup", JobState::Pending, &["plan", "look"]),
            ],
        });
        let approval = |granted: Value| {
            json!({
                "job": id(1), "kind": "backup", "args": {}, "needed": 2, "role": "admin", "own": false,
                "expires_at": "2026-11-20T13:00:00Z", "granted_at": granted,
                "consents": [{"actor": "ada", "at": NOW, "reason": "yes", "own": false}],
            })
        };
        let limits = json!([
            {"key": "database:main", "at_once": 1, "inside": false}, {"key": "kind:backup", "at_once": 4, "inside": true},
            {"key": "channel:team", "inside": false},
        ]);
        let pending = |approval: Value| job(JobState::Pending, json!({"approval": approval, "limits": limits}));
        let in_run = Around { run: Some(serde_json::from_value(run).unwrap()), ..around() };
        let said = only(&pending(approval(Value::Null)), &in_run);
        assert_eq!(said, format!("it needs `plan`, which is running: nightporter doctor {}", id(2)));
        let said = only(&pending(approval(Value::Null)), &around());
        assert!(
            said.starts_with("it waits for 1 more to approve it (admin or above, until 2026-11-20 13:00:00Z)"),
            "{said}"
        );
        let said = only(&pending(approval(json!(NOW))), &around());
        assert!(said.starts_with("it waits for room at `database:main`, which takes 1 at once"), "{said}");
    }

    #[test]
    fn what_is_pending_is_held_back_by_pauses_of_its_kind_and_keys_or_by_what_the_ledger_says() {
        let pending = job(JobState::Pending, json!({"limits": [{"key": "database:main", "inside": true}]}));
        let said = "is paused by ada since 2026-11-20 12:00:00Z (a move)";
        assert_eq!(only(&pending, &paused("kind", "backup")), format!("the kind `backup` {said}"));
        assert_eq!(only(&pending, &paused("key", "database:main")), format!("the key `database:main` {said}"));
        for other in [paused("kind", "restore"), paused("queue", "backup"), around()] {
            assert!(only(&pending, &other).starts_with("nothing holds it back that is known here"));
        }
        let waits = job(JobState::Pending, json!({"reason": "waits for the moon"}));
        assert_eq!(only(&waits, &around()), "waits for the moon");
    }

    #[test]
    fn what_was_put_off_says_until_when_and_what_is_overdue_asks_who_looks_after_it() {
        let at = |state, run_at: &str| job(state, json!({"run_at": run_at, "failures": 3, "reason": "no route"}));
        assert_eq!(
            only(&at(JobState::Scheduled, "2026-11-20T12:05:00Z"), &around()),
            "it runs at 2026-11-20 12:05:00Z; no route"
        );
        assert_eq!(
            only(&at(JobState::Retryable, "2026-11-20T11:59:31Z"), &around()),
            "it has failed 3 times and is tried again at 2026-11-20 11:59:31Z; no route"
        );
        let overdue = only(&at(JobState::Retryable, "2026-11-20T11:59:30Z"), &around());
        assert!(
            overdue.starts_with("it was due at 2026-11-20 11:59:30Z, and no process has made it available"),
            "{overdue}"
        );
        assert_eq!(only(&job(JobState::Scheduled, json!({})), &around()), "it runs later");
    }

    #[test]
    fn what_is_available_waits_for_its_queue_for_a_place_or_for_a_worker_that_knows_it() {
        let available = job(JobState::Available, json!({}));
        assert!(only(&available, &paused("queue", "databases")).starts_with("the queue `databases` is paused by ada"));
        let nobody = "it may run, and nothing of the queue `databases` does: does a `work` or `up` run whose version knows the \
                      kind `backup`?";
        for none in [around(), busy(json!({"available": 4})), paused("queue", "default")] {
            assert_eq!(only(&available, &none), nobody);
        }
        let said = only(&available, &busy(json!({"available": 4, "running": 2})));
        assert!(
            said.starts_with("it may run; 2 jobs of the queue `databases` do, and 3 others wait for a place"),
            "{said}"
        );
    }

    #[test]
    fn what_runs_says_in_which_step_and_what_has_ended_how_it_is_brought_back() {
        let attempts = json!([{"number": 2, "started_at": NOW}]);
        let steps = json!([
            {"name": "upload", "attempt": 1, "started_at": NOW, "finished_at": NOW},
            {"name": "manifest", "attempt": 2, "started_at": "2026-11-20T12:01:00Z", "finished_at": null},
        ]);
        let running = job(JobState::Running, json!({"attempt": 2, "attempts": attempts, "steps": steps}));
        assert_eq!(
            only(&running, &around()),
            "it runs: attempt 2 since 2026-11-20 12:00:00Z, in the step `manifest` since 2026-11-20 12:01:00Z"
        );
        let bring_back = format!("\nmend the cause, then: nightporter jobs retry {} --reason ...", id(1));
        for state in [JobState::Discarded, JobState::Cancelled] {
            let said = only(&job(state, json!({"reason": "no room"})), &around());
            assert_eq!(said, format!("it has ended, {}: no room{bring_back}", state.as_str()));
        }
        assert_eq!(only(&job(JobState::Completed, json!({})), &around()), "it has ended, completed");
    }
}
