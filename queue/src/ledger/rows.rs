//! What both engines share: conversions between rows and types, and the decisions that no engine makes differently.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use chrono::DateTime;
use schemas::api::{EventView, JobView, QueueView, RunJobView, RunView, TokenView};
use schemas::{
    AttemptId, AttemptRecord, ClaimedJob, Event, EventId, Facts, JobId, JobState, Priority, RunId, RunState, Standing,
    StepRecord, Timestamp, TraceContext, WorkerId,
};
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::FromRow;
use uuid::Uuid;

use super::door::role;
use super::{LedgerError, Repeats};
use crate::advance::Node;
use crate::forgetting::Waiting;

/// A moment as the tables hold it.
pub(super) fn micros(moment: Timestamp) -> i64 {
    moment.timestamp_micros()
}

/// A moment from the tables.
pub(super) fn moment(micros: i64) -> Timestamp {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

/// A value in a table that this binary does not understand: written by a newer one, or by hand.
pub(super) fn unreadable(what: &str, value: impl std::fmt::Display) -> LedgerError {
    LedgerError::Refused(sqlx::Error::Decode(
        format!("{what} {value} in the ledger is not known to this binary").into(),
    ))
}

pub(super) fn state(code: i16) -> Result<JobState, LedgerError> {
    JobState::from_code(code).ok_or_else(|| unreadable("the job state", code))
}

pub(super) fn json(text: &str) -> Result<Value, LedgerError> {
    serde_json::from_str(text).map_err(|error| unreadable("the JSON", error))
}

fn optional_json(text: Option<&String>) -> Result<Option<Value>, LedgerError> {
    text.map(|text| json(text)).transpose()
}

pub(super) fn raw(text: String) -> Result<Box<RawValue>, LedgerError> {
    RawValue::from_string(text).map_err(|error| unreadable("the JSON", error))
}

/// Text as every engine can store it: `PostgreSQL` has no NUL. What is stored as JSON has none either, it is escaped there.
pub(super) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// What a known body under a new delivery id means, by when it was first seen.
pub(super) fn standing_of_repeat(repeats: Repeats, first_seen: Option<Timestamp>, now: Timestamp) -> Standing {
    match (repeats, first_seen) {
        (Repeats::AreNew, _) | (_, None) => Standing::Accepted,
        (Repeats::AreHeld, Some(_)) => Standing::Held,
        (Repeats::AreHeldAfter(time), Some(seen)) => {
            let old = (now - seen).to_std().unwrap_or(Duration::ZERO) >= time;
            if old { Standing::Held } else { Standing::Accepted }
        }
    }
}

/// Why a held delivery is held, for people.
pub(super) const HELD: &str = "a body that was delivered before, under a new delivery id: a suspected replay";

/// How long a retried job's key, or its run's, is held: what was first asked for is not kept with it.
pub(super) const KEY_OF_RETRY: Duration = Duration::from_hours(24);

/// At the third crash without progress a job is given up.
const MOST_CRASHES: i32 = 3;

/// What the rescuer does with a job whose lease has run out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Available again.
    Again { crashes: i32 },
    /// An operator asked for its end while it ran.
    Cancel(String),
    /// Given up.
    Discard { crashes: i32 },
}

/// What crashed, as a discarded job's reason.
pub(super) const CRASHED: &str = "crashed: its process died three times under it, without progress";

pub(super) fn verdict(cancel: Option<String>, crashes: i32, progressed: bool) -> Verdict {
    let crashes = if progressed { 0 } else { crashes + 1 };
    match cancel {
        Some(reason) => Verdict::Cancel(reason),
        None if crashes >= MOST_CRASHES => Verdict::Discard { crashes },
        None => Verdict::Again { crashes },
    }
}

#[derive(FromRow)]
pub(super) struct ClaimedRow {
    pub(super) id: Uuid,
    pub(super) attempt: i32,
    kind: String,
    args: String,
    queue: String,
    pub(super) priority: i16,
    failures: i32,
    crashes: i32,
    created_at: i64,
    event_id: Option<Uuid>,
    run_id: Option<Uuid>,
    traceparent: Option<String>,
    tracestate: Option<String>,
}

impl ClaimedRow {
    /// The claimed job; `attempt` is the number of the attempt that begins.
    pub(super) fn into_claimed(self, attempt: i32) -> Result<ClaimedJob, LedgerError> {
        Ok(ClaimedJob {
            id: AttemptId { job: JobId(self.id), number: attempt },
            kind: self.kind,
            args: raw(self.args)?,
            queue: self.queue,
            priority: Priority::from_code(self.priority).unwrap_or_default(),
            failures: self.failures,
            crashes: self.crashes,
            created_at: moment(self.created_at),
            event: self.event_id.map(EventId),
            run: self.run_id.map(RunId),
            trace: TraceContext { traceparent: self.traceparent, tracestate: self.tracestate },
        })
    }
}

/// A job of a run, with what is needed to admit it.
#[derive(FromRow)]
pub(super) struct NodeRow {
    name: String,
    job_id: Uuid,
    needs: String,
    condition: Option<String>,
    state: i16,
    for_failure: bool,
    output: Option<String>,
    pub(super) queue: String,
    pub(super) kind: String,
    pub(super) gated: bool,
    traceparent: Option<String>,
    tracestate: Option<String>,
}

impl NodeRow {
    pub(super) fn node(&self) -> Result<Node, LedgerError> {
        Ok(Node {
            name: self.name.clone(),
            job: JobId(self.job_id),
            needs: serde_json::from_str(&self.needs).map_err(|error| unreadable("the needs", error))?,
            condition: self.condition.clone(),
            state: state(self.state)?,
            for_failure: self.for_failure,
            output: optional_json(self.output.as_ref())?,
        })
    }

    pub(super) fn job(&self) -> JobId {
        JobId(self.job_id)
    }

    pub(super) fn trace(&self) -> TraceContext {
        TraceContext { traceparent: self.traceparent.clone(), tracestate: self.tracestate.clone() }
    }
}

#[derive(FromRow)]
pub(super) struct EventRow {
    pub(super) id: Uuid,
    source: String,
    kind: String,
    delivery_id: String,
    subject: Option<String>,
    time: i64,
    data: String,
    standing: i16,
    reason: Option<String>,
    received_at: i64,
    route_errors: Option<String>,
}

impl EventRow {
    pub(super) fn into_view(self, jobs: Vec<Uuid>, runs: Vec<Uuid>) -> Result<EventView, LedgerError> {
        let data: Facts = serde_json::from_str(&self.data).map_err(|error| unreadable("the event", error))?;
        let route_errors = optional_json(self.route_errors.as_ref())?;
        Ok(EventView {
            event: Event {
                id: EventId(self.id),
                source: self.source,
                kind: self.kind,
                delivery_id: self.delivery_id,
                subject: self.subject,
                time: moment(self.time),
                data,
            },
            standing: Standing::from_code(self.standing).ok_or_else(|| unreadable("the standing", self.standing))?,
            reason: self.reason,
            received_at: moment(self.received_at),
            route_errors: route_errors.and_then(|value| serde_json::from_value(value).ok()).unwrap_or_default(),
            jobs: jobs.into_iter().map(JobId).collect(),
            runs: runs.into_iter().map(RunId).collect(),
        })
    }
}

/// A job from either table: `finished_at` is null in the hot one.
#[derive(FromRow)]
pub(super) struct JobRow {
    pub(super) id: Uuid,
    kind: String,
    queue: String,
    priority: i16,
    state: i16,
    run_at: Option<i64>,
    attempt: i32,
    failures: i32,
    crashes: i32,
    created_at: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    worker: Option<Uuid>,
    run_id: Option<Uuid>,
    reason: Option<String>,
    output: Option<String>,
    args: String,
    event_id: Option<Uuid>,
    traceparent: Option<String>,
    replay_of: Option<Uuid>,
}

impl JobRow {
    pub(super) fn into_view(self, past: Vec<AttemptRow>, steps: Vec<StepRow>) -> Result<JobView, LedgerError> {
        let state = state(self.state)?;
        let waits = matches!(state, JobState::Scheduled | JobState::Retryable);
        let mut attempts: Vec<AttemptRecord> = past.into_iter().map(AttemptRow::into_record).collect();
        attempts.extend(self.last_attempt(state, attempts.last().map_or(0, |attempt| attempt.number)));
        let trace = TraceContext { traceparent: self.traceparent, tracestate: None };
        Ok(JobView {
            id: JobId(self.id),
            kind: self.kind,
            queue: self.queue,
            priority: Priority::from_code(self.priority).unwrap_or_default(),
            state,
            args: json(&self.args)?,
            run_at: self.run_at.filter(|_| waits).map(moment),
            created_at: moment(self.created_at),
            finished_at: self.finished_at.map(moment),
            attempt: self.attempt,
            failures: self.failures,
            crashes: self.crashes,
            reason: self.reason,
            output: optional_json(self.output.as_ref())?,
            event: self.event_id.map(EventId),
            run: self.run_id.map(RunId),
            trace_id: trace.trace_id().map(str::to_owned),
            replay_of: self.replay_of.map(JobId),
            schedule: None,
            limits: Vec::new(),
            approval: None,
            attempts,
            steps: steps.into_iter().map(StepRow::into_record).collect::<Result<_, _>>()?,
        })
    }

    /// The attempt that runs, or that ended the job: it has no row of its own.
    fn last_attempt(&self, state: JobState, recorded: i32) -> Option<AttemptRecord> {
        let started_at = self.started_at.filter(|_| self.attempt > recorded)?;
        let ended = state.is_finished();
        (ended || state == JobState::Running).then(|| AttemptRecord {
            number: self.attempt,
            worker: self.worker.map(WorkerId),
            started_at: moment(started_at),
            ended_at: self.finished_at.map(moment),
            outcome: ended.then(|| state.as_str().to_owned()),
            error: self.reason.clone().filter(|_| ended),
        })
    }
}

#[derive(FromRow)]
pub(super) struct AttemptRow {
    number: i32,
    worker: Option<Uuid>,
    started_at: i64,
    ended_at: i64,
    outcome: String,
    error: Option<String>,
}

impl AttemptRow {
    fn into_record(self) -> AttemptRecord {
        AttemptRecord {
            number: self.number,
            worker: self.worker.map(WorkerId),
            started_at: moment(self.started_at),
            ended_at: Some(moment(self.ended_at)),
            outcome: Some(self.outcome),
            error: self.error,
        }
    }
}

#[derive(FromRow)]
pub(super) struct StepRow {
    name: String,
    attempt: i32,
    started_at: i64,
    finished_at: Option<i64>,
    result: Option<String>,
}

impl StepRow {
    fn into_record(self) -> Result<StepRecord, LedgerError> {
        Ok(StepRecord {
            name: self.name,
            attempt: self.attempt,
            started_at: moment(self.started_at),
            finished_at: self.finished_at.map(moment),
            result: optional_json(self.result.as_ref())?,
        })
    }
}

#[derive(FromRow)]
pub(super) struct RunRow {
    pub(super) id: Uuid,
    runbook: String,
    state: i16,
    inputs: String,
    created_at: i64,
    finished_at: Option<i64>,
    event_id: Option<Uuid>,
    actor: Option<String>,
    reason: Option<String>,
    replay_of: Option<Uuid>,
}

impl RunRow {
    pub(super) fn into_view(self, jobs: Vec<RunJobRow>) -> Result<RunView, LedgerError> {
        Ok(RunView {
            id: RunId(self.id),
            runbook: self.runbook,
            state: RunState::from_code(self.state).ok_or_else(|| unreadable("the run state", self.state))?,
            inputs: json(&self.inputs)?,
            created_at: moment(self.created_at),
            finished_at: self.finished_at.map(moment),
            event: self.event_id.map(EventId),
            actor: self.actor,
            reason: self.reason,
            replay_of: self.replay_of.map(RunId),
            jobs: jobs.into_iter().map(RunJobRow::into_view).collect::<Result<_, _>>()?,
        })
    }
}

#[derive(FromRow)]
pub(super) struct RunJobRow {
    pub(super) run_id: Uuid,
    name: String,
    job_id: Uuid,
    needs: String,
    kind: String,
    state: i16,
    reason: Option<String>,
    output: Option<String>,
    started_at: Option<i64>,
    finished_at: Option<i64>,
}

impl RunJobRow {
    fn into_view(self) -> Result<RunJobView, LedgerError> {
        Ok(RunJobView {
            name: self.name,
            job: JobId(self.job_id),
            kind: self.kind,
            state: state(self.state)?,
            needs: serde_json::from_str(&self.needs).map_err(|error| unreadable("the needs", error))?,
            reason: self.reason,
            output: optional_json(self.output.as_ref())?,
            started_at: self.started_at.map(moment),
            finished_at: self.finished_at.map(moment),
        })
    }
}

#[derive(FromRow)]
pub(super) struct TokenRow {
    name: String,
    role: i16,
    created_at: i64,
    created_by: String,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
}

impl TokenRow {
    pub(super) fn into_view(self) -> Result<TokenView, LedgerError> {
        Ok(TokenView {
            name: self.name,
            role: role(self.role)?,
            created_at: moment(self.created_at),
            created_by: self.created_by,
            expires_at: self.expires_at.map(moment),
            revoked_at: self.revoked_at.map(moment),
        })
    }
}

/// Groups the jobs of several runs by their run.
pub(super) fn by_run(rows: Vec<RunJobRow>) -> HashMap<Uuid, Vec<RunJobRow>> {
    let mut grouped: HashMap<Uuid, Vec<RunJobRow>> = HashMap::new();
    for row in rows {
        grouped.entry(row.run_id).or_default().push(row);
    }
    grouped
}

/// Groups the work of several events by their event.
pub(super) fn by_event(rows: Vec<(Uuid, Uuid)>) -> HashMap<Uuid, Vec<Uuid>> {
    let mut grouped: HashMap<Uuid, Vec<Uuid>> = HashMap::new();
    for (event, work) in rows {
        grouped.entry(event).or_default().push(work);
    }
    grouped
}

/// Folds (queue, state, how many, since when) into a view for each queue; the rows are in the order of the queues.
pub(super) fn queue_views(rows: Vec<(String, i16, i64, i64)>) -> Result<Vec<QueueView>, LedgerError> {
    let mut views: Vec<QueueView> = Vec::new();
    for (queue, code, count, since) in rows {
        if views.last().is_none_or(|view| view.queue != queue) {
            views.push(QueueView { queue, ..QueueView::default() });
        }
        let state = state(code)?;
        if let Some(view) = views.last_mut() {
            view.jobs.insert(state.as_str().to_owned(), count.unsigned_abs());
            if state == JobState::Available {
                view.oldest_available = Some(moment(since));
            }
        }
    }
    Ok(views)
}

/// Events that wait for a person.
pub(super) fn waiting(held: i64, quarantined: i64, oldest: Vec<Uuid>) -> Waiting {
    Waiting {
        held: held.unsigned_abs(),
        quarantined: quarantined.unsigned_abs(),
        oldest: oldest.into_iter().map(EventId).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_crash_without_progress_gives_a_job_up() {
        assert_eq!(verdict(None, 0, false), Verdict::Again { crashes: 1 });
        assert_eq!(verdict(None, 1, false), Verdict::Again { crashes: 2 });
        assert_eq!(verdict(None, 2, false), Verdict::Discard { crashes: 3 });
        assert_eq!(verdict(None, 2, true), Verdict::Again { crashes: 0 });
        assert_eq!(verdict(Some("enough".into()), 0, false), Verdict::Cancel("enough".into()));
    }

    #[test]
    fn a_known_body_is_held_by_the_rule_of_its_type() {
        let (seen, hour) = (moment(0), moment(3_600_000_000));
        let after = Repeats::AreHeldAfter(Duration::from_mins(10));
        assert_eq!(standing_of_repeat(Repeats::AreNew, Some(seen), hour), Standing::Accepted);
        assert_eq!(standing_of_repeat(Repeats::AreHeld, Some(seen), hour), Standing::Held);
        assert_eq!(standing_of_repeat(Repeats::AreHeld, None, hour), Standing::Accepted);
        assert_eq!(standing_of_repeat(after, Some(seen), moment(599_000_000)), Standing::Accepted);
        assert_eq!(standing_of_repeat(after, Some(seen), hour), Standing::Held);
    }
}
