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
