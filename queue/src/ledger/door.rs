//! The door, as both engines stand at it: rows of jobs whose needs have ended, the decision about each, and what is to be
//! written about it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::num::NonZeroU32;
use std::time::Duration;

use schemas::api::{ApprovalView, ConsentView, LimitView};
use schemas::{JobId, JobState, Limit, NewJob, Rate, Role, RunId, Timestamp, TraceContext};
use sqlx::FromRow;
use uuid::Uuid;

use super::rows::{json, micros, moment, unreadable};
use super::{LedgerError, Operator, Pausable};
use crate::admission::{Entry, House, Waiter};
use crate::bell::Bells;

/// What a pending job waits for, as the tables hold it.
pub(super) const FOR_NEEDS: i16 = 0;
pub(super) const FOR_ROOM: i16 = 1;
pub(super) const FOR_APPROVAL: i16 = 2;

/// Where a job stands at a limit, as the tables hold it.
pub(super) const OUTSIDE: i16 = 0;
pub(super) const WAITING: i16 = 1;
pub(super) const INSIDE: i16 = 2;

/// Of those who wait at one key, so many are looked at when room is made. Where they all wait at another key as well, those
/// behind them are found by the next review.
pub(super) const LOOKED_AT: u32 = 256;

/// Why the older of two waiting jobs was cancelled.
pub(super) const SUPERSEDED: &str = "a newer one took its place while it waited";

/// Why a job whose approval did not come was cancelled.
pub(super) const EXPIRED: &str = "its approval did not come in time";

/// What follows from a change, until nothing follows any more: runs to look at, jobs that have come to the door, keys
/// where room was made, and what is to be rung after the commit.
#[derive(Default)]
pub(super) struct Aftermath {
    pub(super) bells: Bells,
    pub(super) runs: BTreeSet<Uuid>,
    pub(super) arrived: BTreeSet<Uuid>,
    pub(super) freed: BTreeSet<String>,
}

/// The state that a new job begins in, and what it waits for there. Whoever must come to the door waits for room until the
/// same transaction has looked at it.
pub(super) fn first_state(job: &NewJob, needs_nothing: bool, now: Timestamp) -> (JobState, i16) {
    if !needs_nothing {
        (JobState::Pending, FOR_NEEDS)
    } else if job.run_at.is_some_and(|at| at > now) {
        (JobState::Scheduled, FOR_NEEDS)
    } else if job.is_gated() {
        (JobState::Pending, FOR_ROOM)
    } else {
        (JobState::Available, FOR_NEEDS)
    }
}

/// A job at the door, once for each of its limits.
#[derive(FromRow)]
pub(super) struct DoorRow {
    id: Uuid,
    kind: String,
    queue: String,
    traceparent: Option<String>,
    tracestate: Option<String>,
    unapproved: bool,
    key: Option<String>,
    at_once: Option<i32>,
    starts: Option<i32>,
    period: Option<i64>,
    newest: Option<bool>,
    has_turn: Option<bool>,
}

impl DoorRow {
    fn limit(&self) -> Option<Limit> {
        Some(limit(self.key.as_ref()?, self.at_once, self.starts, self.period, self.newest.unwrap_or(false)))
    }
}

fn limit(key: &str, at_once: Option<i32>, starts: Option<i32>, period: Option<i64>, newest: bool) -> Limit {
    let count = |number: i32| u32::try_from(number).ok().and_then(NonZeroU32::new);
    let rate = starts
        .and_then(count)
        .zip(period)
        .map(|(starts, period)| Rate { starts, period: Duration::from_micros(period.unsigned_abs()) });
    Limit { key: key.to_owned(), at_once: at_once.and_then(count), rate, newest }
}

/// The jobs that have come to the door, in the order in which they are let in.
pub(super) struct Door {
    jobs: Vec<AtDoor>,
}

struct AtDoor {
    waiter: Waiter,
    queue: String,
    trace: TraceContext,
    unapproved: bool,
}

impl Door {
    /// Folds the rows; those of one job stand together.
    pub(super) fn of(rows: Vec<DoorRow>) -> Self {
        let mut jobs: Vec<AtDoor> = Vec::new();
        for row in rows {
            let limit = row.limit();
            if jobs.last().is_none_or(|job| job.waiter.job.0 != row.id) {
                jobs.push(AtDoor {
                    waiter: Waiter { job: JobId(row.id), kind: row.kind, limits: Vec::new(), has_turn: false },
                    queue: row.queue,
                    trace: TraceContext { traceparent: row.traceparent, tracestate: row.tracestate },
                    unapproved: row.unapproved,
                });
            }
            if let Some(job) = jobs.last_mut() {
                job.waiter.limits.extend(limit);
                job.waiter.has_turn |= row.has_turn.unwrap_or(false);
            }
        }
        Self { jobs }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// The keys that they name.
    pub(super) fn keys(&self) -> Vec<String> {
        let limits = self.jobs.iter().flat_map(|job| &job.waiter.limits);
        limits.map(|limit| limit.key.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Decides about each in turn.
    pub(super) fn decide(&self, house: &mut House, now: Timestamp, bells: &mut Bells) -> Vec<Place> {
        self.jobs
            .iter()
            .map(|job| {
                let id = job.waiter.job.0;
                if job.unapproved {
                    return Place::asks(id);
                }
                match house.enter(&job.waiter, now) {
                    Entry::Now => {
                        bells.add(&job.queue, job.waiter.job, &job.trace);
                        Place::inside(id, now)
                    }
                    Entry::At(turn) => {
                        bells.put_off();
                        Place::later(id, turn)
                    }
                    Entry::Wait(reason) => Place::waits(id, reason),
                }
            })
            .collect()
    }

    /// The keys at which only the newest may wait, of those jobs that were not let in.
    pub(super) fn keys_of_newest(&self, places: &[Place]) -> Vec<String> {
        let waiting: HashSet<Uuid> =
            places.iter().filter(|place| place.standing == WAITING).map(|place| place.job).collect();
        let jobs = self.jobs.iter().filter(|job| waiting.contains(&job.waiter.job.0));
        let keys = jobs.flat_map(|job| &job.waiter.limits).filter(|limit| limit.newest);
        keys.map(|limit| limit.key.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// Where a job stands after it came to the door: what is written about it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) job: Uuid,
    pub(super) state: i16,
    pub(super) waits_for: i16,
    /// When it may run; unchanged where none.
    pub(super) run_at: Option<i64>,
    pub(super) reason: Option<String>,
    pub(super) standing: i16,
    /// Unchanged where none.
    pub(super) has_turn: Option<bool>,
}

impl Place {
    fn inside(job: Uuid, now: Timestamp) -> Self {
        Self {
            job,
            state: JobState::Available.code(),
            waits_for: FOR_NEEDS,
            run_at: Some(micros(now)),
            reason: None,
            standing: INSIDE,
            has_turn: Some(false),
        }
    }

    fn later(job: Uuid, turn: Timestamp) -> Self {
        Self {
            job,
            state: JobState::Scheduled.code(),
            waits_for: FOR_NEEDS,
            run_at: Some(micros(turn)),
            reason: Some("its turn in a rate comes later".to_owned()),
            standing: OUTSIDE,
            has_turn: Some(true),
        }
    }

    fn waits(job: Uuid, reason: String) -> Self {
        Self {
            job,
            state: JobState::Pending.code(),
            waits_for: FOR_ROOM,
            run_at: None,
            reason: Some(reason),
            standing: WAITING,
            has_turn: None,
        }
    }

    fn asks(job: Uuid) -> Self {
        Self {
            job,
            state: JobState::Pending.code(),
            waits_for: FOR_APPROVAL,
            run_at: None,
            reason: Some("waits for an approval".to_owned()),
            standing: OUTSIDE,
            has_turn: None,
        }
    }
}

/// The rates that turns were taken from, to be written back.
pub(super) fn rates_taken(house: &House, before: &HashMap<String, Timestamp>) -> Vec<(String, i64)> {
    let changed = house.full_at.iter().filter(|(key, full_at)| before.get(*key) != Some(*full_at));
    let mut taken: Vec<(String, i64)> = changed.map(|(key, full_at)| (key.clone(), micros(*full_at))).collect();
    taken.sort_unstable();
    taken
}

/// What is paused, of (what, name).
pub(super) fn note_pauses(house: &mut House, pauses: Vec<(String, String)>) {
    for (what, name) in pauses {
        match what.as_str() {
            "kind" => house.paused_kinds.insert(name),
            "key" => house.paused_keys.insert(name),
            _ => false,
        };
    }
}

/// A job's limit as its tables hold it.
#[derive(FromRow)]
pub(super) struct LimitRow {
    key: String,
    at_once: Option<i32>,
    starts: Option<i32>,
    period: Option<i64>,
    standing: i16,
}

impl LimitRow {
    pub(super) fn into_view(self) -> LimitView {
        let limit = limit(&self.key, self.at_once, self.starts, self.period, false);
        LimitView {
            key: self.key,
            at_once: limit.at_once.map(NonZeroU32::get),
            rate: limit.rate,
            inside: self.standing == INSIDE,
        }
    }
}

/// An approval with its job.
#[derive(FromRow)]
pub(super) struct ApprovalRow {
    pub(super) job_id: Uuid,
    kind: String,
    run_id: Option<Uuid>,
    args: String,
    needed: i32,
    role: i16,
    own: bool,
    requested_by: Option<String>,
    requested_at: Option<i64>,
    expires_at: Option<i64>,
    granted_at: Option<i64>,
}

impl ApprovalRow {
    pub(super) fn into_view(self, consents: Vec<ConsentRow>) -> Result<ApprovalView, LedgerError> {
        Ok(ApprovalView {
            job: JobId(self.job_id),
            kind: self.kind,
            run: self.run_id.map(RunId),
            args: json(&self.args)?,
            needed: self.needed.unsigned_abs(),
            role: role(self.role)?,
            own: self.own,
            requested_by: self.requested_by,
            requested_at: self.requested_at.map(moment),
            expires_at: self.expires_at.map(moment),
            granted_at: self.granted_at.map(moment),
            consents: consents.into_iter().map(ConsentRow::into_view).collect(),
        })
    }
}

#[derive(FromRow)]
pub(super) struct ConsentRow {
    pub(super) job_id: Uuid,
    actor: String,
    at: i64,
    reason: String,
    own: bool,
}

impl ConsentRow {
    fn into_view(self) -> ConsentView {
        ConsentView { actor: self.actor, at: moment(self.at), reason: self.reason, own: self.own }
    }
}

/// Adds to approvals who has consented to each.
pub(super) fn with_consents(
    rows: Vec<ApprovalRow>,
    consents: Vec<ConsentRow>,
) -> Result<Vec<ApprovalView>, LedgerError> {
    let mut by_job: HashMap<Uuid, Vec<ConsentRow>> = HashMap::new();
    for consent in consents {
        by_job.entry(consent.job_id).or_default().push(consent);
    }
    let view = |row: ApprovalRow| {
        let consents = by_job.remove(&row.job_id).unwrap_or_default();
        row.into_view(consents)
    };
    rows.into_iter().map(view).collect()
}

/// What an approval asks of who decides about it.
#[derive(FromRow)]
pub(super) struct Asked {
    role: i16,
    own: bool,
    requested_by: Option<String>,
    state: i16,
    waits_for: i16,
}

impl Asked {
    /// Whether this person may decide: whether it is their own work that they decide about.
    pub(super) fn may_decide(&self, role_of: Role, by: &Operator, consents: bool) -> Result<bool, LedgerError> {
        if self.state != JobState::Pending.code() || self.waits_for != FOR_APPROVAL {
            return Err(LedgerError::Conflict("this job does not wait for an approval".into()));
        }
        let asked = role(self.role)?;
        if role_of < asked {
            return Err(LedgerError::Forbidden(format!("this approval is for the role {asked}, not for {role_of}")));
        }
        let own = self.requested_by.as_deref() == Some(by.actor.as_str());
        if own && consents && !self.own {
            return Err(LedgerError::Forbidden(
                "nobody approves what they started themselves; ask somebody else".into(),
            ));
        }
        Ok(own)
    }
}

pub(super) fn role(code: i16) -> Result<Role, LedgerError> {
    Role::from_code(code).ok_or_else(|| unreadable("the role", code))
}

/// Why a token was not kept.
pub(super) fn name_taken(name: &str) -> LedgerError {
    LedgerError::Conflict(format!(
        "there is or was a token named `{name}`, and the audit must not mix them up; choose another name"
    ))
}

/// What was paused or resumed, as the audit has it.
pub(super) fn subject(what: &Pausable) -> String {
    format!("{} {}", what.what(), what.name())
}
