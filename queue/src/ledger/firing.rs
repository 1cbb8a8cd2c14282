//! What becomes of a nominal time, as both engines decide it.

use async_trait::async_trait;
use schemas::api::{FiringOutcome, FiringView};
use schemas::{JobId, JobState, NewWork, Overlap, RunId, RunState, Schedule, Timestamp, WorkId};
use sqlx::FromRow;
use uuid::Uuid;

use super::cancel::{Cancels, cancel};
use super::door::Aftermath;
use super::rows::{micros, moment, state, unreadable};
use super::{Announced, Due, Enqueued, Fired, Firing, LedgerError, MOST_WAITING, Operator, Progress};
use crate::bell::Bells;

/// Outcomes, as the tables hold them.
const FIRED: i16 = 0;
const WAITS: i16 = 1;
pub(super) const SKIPPED: i16 = 2;
const MISSED: i16 = 3;

/// Of what a schedule has fired, so many are looked at for whether they have ended: older ones that an operator brings
/// back are not in the way. Times that were skipped or missed do not count: work may outlast any number of them.
pub(super) const LOOKED_BACK: i64 = 16;

/// Why a time that waited does not any more.
pub(super) const REPLACED: &str = "a newer one took its place while it waited";
pub(super) const FORGOTTEN: &str = "its schedule is no longer configured";

/// How the ledger stands towards a firing.
#[derive(Debug)]
pub(super) struct Situation {
    /// The outcome that is recorded for this nominal time.
    pub(super) recorded: Option<i16>,
    /// Up to where the schedule is settled; none where it is not known.
    pub(super) settled: Option<i64>,
    /// Who paused it, and why.
    pub(super) paused: Option<(String, String)>,
    /// Work of earlier times that has not ended.
    pub(super) unfinished: Vec<Unfinished>,
    /// Earlier times that wait.
    pub(super) waiting: usize,
}

/// Work of an earlier nominal time that has not ended.
#[derive(Debug, FromRow)]
pub(super) struct Unfinished {
    nominal: i64,
    job_id: Option<Uuid>,
    run_id: Option<Uuid>,
}

impl Unfinished {
    fn work(&self) -> Option<WorkId> {
        self.job_id.map(|id| WorkId::Job(JobId(id))).or(self.run_id.map(|id| WorkId::Run(RunId(id))))
    }

    fn words(&self) -> String {
        let work = self.work().map_or_else(|| "its work".to_owned(), |work| work.to_string());
        format!("{work} of {} has not ended", said(moment(self.nominal)))
    }
}

/// What becomes of a nominal time.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It was settled before.
    Before,
    /// Its work is stored.
    Fire,
    /// It waits. `cancel`: what it waits for is cancelled, now.
    Wait { cancel: bool },
    /// It is recorded as skipped.
    Skip(String),
    /// It is recorded as missed.
    Miss,
}

impl Situation {
    /// Decides. What waited already is decided anew each time it is asked for.
    fn decide(&self, firing: &Firing) -> Verdict {
        let first = match &firing.due {
            Due::Missed { first, .. } => *first,
            Due::Work { .. } => firing.nominal,
        };
        match self.recorded {
            Some(WAITS) => {}
            Some(_) => return Verdict::Before,
            None if self.settled.is_some_and(|settled| settled >= micros(first)) => return Verdict::Before,
            None => {}
        }
        if let Some((actor, reason)) = &self.paused {
            return Verdict::Skip(format!("the schedule is paused by {actor}: {reason}"));
        }
        match &firing.due {
            Due::Missed { .. } => Verdict::Miss,
            Due::Work { overlap, .. } => self.about(*overlap),
        }
    }

    fn about(&self, overlap: Overlap) -> Verdict {
        let waits_already = self.recorded.is_some();
        match (overlap, self.unfinished.first()) {
            (Overlap::Queue, _) if self.waiting > 0 => self.wait_in_line(waits_already),
            // Those that wait are replaced by this one.
            (_, None) => Verdict::Fire,
            (Overlap::Skip, Some(unfinished)) => Verdict::Skip(unfinished.words()),
            (Overlap::Queue, Some(_)) => self.wait_in_line(waits_already),
            // Once: who brings back what was cancelled wants it to be done.
            (Overlap::CancelRunning, Some(_)) => Verdict::Wait { cancel: !waits_already },
        }
    }

    fn wait_in_line(&self, waits_already: bool) -> Verdict {
        if !waits_already && self.waiting >= MOST_WAITING {
            return Verdict::Skip(format!("{} earlier ones wait already", self.waiting));
        }
        Verdict::Wait { cancel: false }
    }
}

/// What an engine does for it. Whoever calls has the house's turn.
#[async_trait]
pub(super) trait Firings: Cancels {
    /// How the ledger stands towards a firing.
    async fn situation(&mut self, firing: &Firing) -> Result<Situation, LedgerError>;

    /// Records those that wait as skipped.
    async fn replace_waiting(&mut self, firing: &Firing) -> Result<(), LedgerError>;

    /// Writes what became of it, and that the schedule has come so far.
    async fn write_firing(&mut self, firing: &Firing, record: &Record, now: Timestamp) -> Result<(), LedgerError>;
}

/// Settles a nominal time, or says that it was. The bells are not yet in the answer: what follows is still to be done.
pub(super) async fn carry_out<T: Firings>(
    tx: &mut T,
    firing: &Firing,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<Fired, LedgerError> {
    let situation = tx.situation(firing).await?;
    let (fired, record) = match (situation.decide(firing), &firing.due) {
        (Verdict::Before, _) => return Ok(Fired::Before),
        (Verdict::Skip(reason), due) => (Fired::Skipped(reason.clone()), Record::skipped(due, reason)),
        (Verdict::Wait { cancel: true }, _) => {
            for work in situation.unfinished.iter().filter_map(Unfinished::work) {
                match cancel(tx, work, &canceller(firing), after, now).await {
                    // It has just ended by itself.
                    Ok(()) | Err(LedgerError::Conflict(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            tx.replace_waiting(firing).await?;
            (Fired::Waits(Bells::default()), Record::of(WAITS, None))
        }
        (Verdict::Wait { cancel: false }, _) => (Fired::Waits(Bells::default()), Record::of(WAITS, None)),
        (Verdict::Fire, Due::Work { work, .. }) => {
            if replaces_waiting(&firing.due) {
                tx.replace_waiting(firing).await?;
            }
            (Fired::Now(Bells::default()), store(tx, firing, work, after, now).await?)
        }
        (Verdict::Fire | Verdict::Miss, due) => {
            if let Due::Missed { notice: Some(notice), .. } = due {
                tx.store_jobs(std::slice::from_ref(&**notice), None, after, now).await?;
            }
            (Fired::Missed(Bells::default()), Record::missed(due))
        }
    };
    tx.write_firing(firing, &record, now).await?;
    Ok(fired)
}

/// Stores the work of a nominal time.
async fn store<T: Firings>(
    tx: &mut T,
    firing: &Firing,
    work: &NewWork,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<Record, LedgerError> {
    let by = Schedule::actor(&firing.schedule);
    Ok(match work {
        NewWork::Job(job) => {
            let stored = tx.store_jobs(std::slice::from_ref(&**job), Some(&by), after, now).await?[0];
            Record::fired(WorkId::Job(stored.id()), matches!(stored, Enqueued::Existing(_)))
        }
        NewWork::Run(run) => {
            let stored = tx.store_run(run, after, now).await?;
            Record::fired(WorkId::Run(stored.id()), matches!(stored, Enqueued::Existing(_)))
        }
    })
}

/// Whether those that wait give way to this one.
fn replaces_waiting(due: &Due) -> bool {
    matches!(due, Due::Work { overlap: Overlap::Skip | Overlap::CancelRunning, .. })
}

/// Who cancels what a newer time does not want to run beside.
fn canceller(firing: &Firing) -> Operator {
    Operator {
        actor: Schedule::actor(&firing.schedule),
        reason: format!("{} has come, and overlap = \"cancel_running\"", said(firing.nominal)),
    }
}

/// A moment, to the second, for people.
fn said(moment: Timestamp) -> String {
    moment.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// A schedule as its table has it.
#[derive(FromRow)]
pub(super) struct ScheduleRow {
    pub(super) name: String,
    pub(super) timetable: String,
    pub(super) settled: i64,
}

/// Whether the table holds exactly these schedules.
pub(super) fn are_these(rows: &[ScheduleRow], announced: &[Announced]) -> bool {
    let is_there = |one: &Announced| rows.iter().any(|row| row.name == one.schedule && row.timetable == one.timetable);
    rows.len() == announced.len() && announced.iter().all(is_there)
}

/// How far they have come; `waiting` is in the order of time.
pub(super) fn progress(rows: Vec<ScheduleRow>, waiting: &[(String, i64)]) -> Vec<Progress> {
    let waiting_of =
        |name: &str| waiting.iter().filter(|(schedule, _)| schedule == name).map(|(_, at)| moment(*at)).collect();
    rows.into_iter()
        .map(|row| Progress { waiting: waiting_of(&row.name), schedule: row.name, settled: moment(row.settled) })
        .collect()
}

/// What is recorded of a firing.
pub(super) struct Record {
    pub(super) outcome: i16,
    pub(super) reason: Option<String>,
    pub(super) job: Option<Uuid>,
    pub(super) run: Option<Uuid>,
    pub(super) times: i32,
}

impl Record {
    fn of(outcome: i16, reason: Option<String>) -> Self {
        Self { outcome, reason, job: None, run: None, times: 1 }
    }

    fn skipped(due: &Due, reason: String) -> Self {
        Self { times: times_of(due), ..Self::of(SKIPPED, Some(reason)) }
    }

    /// Work that is stored; or that was there already, under the key that it would have.
    fn fired(work: WorkId, existing: bool) -> Self {
        let reason = existing.then(|| "the same was under way already".to_owned());
        let (job, run) = match work {
            WorkId::Job(job) => (Some(job.0), None),
            WorkId::Run(run) => (None, Some(run.0)),
        };
        Self { job, run, ..Self::of(FIRED, reason) }
    }

    fn missed(due: &Due) -> Self {
        let reason = match due {
            Due::Missed { reason, .. } => Some(reason.clone()),
            Due::Work { .. } => None,
        };
        Self { times: times_of(due), ..Self::of(MISSED, reason) }
    }
}

/// For how many nominal times it stands.
fn times_of(due: &Due) -> i32 {
    match due {
        Due::Missed { times, .. } => i32::try_from(*times).unwrap_or(i32::MAX),
        Due::Work { .. } => 1,
    }
}

/// A nominal time as the tables have it, with the states of its work.
#[derive(FromRow)]
pub(super) struct FiringRow {
    nominal: i64,
    fired_at: i64,
    outcome: i16,
    reason: Option<String>,
    job_id: Option<Uuid>,
    run_id: Option<Uuid>,
    times: i32,
    job_state: Option<i16>,
    run_state: Option<i16>,
}

impl FiringRow {
    pub(super) fn into_view(self) -> Result<FiringView, LedgerError> {
        let outcome = match self.outcome {
            FIRED => FiringOutcome::Fired,
            WAITS => FiringOutcome::Waiting,
            SKIPPED => FiringOutcome::Skipped,
            MISSED => FiringOutcome::Missed,
            other => return Err(unreadable("the outcome of a firing", other)),
        };
        let job_state = self.job_state.map(state).transpose()?.map(JobState::as_str);
        let run_state = self.run_state.and_then(RunState::from_code).map(RunState::as_str);
        Ok(FiringView {
            nominal: moment(self.nominal),
            at: moment(self.fired_at),
            outcome,
            times: self.times.unsigned_abs(),
            reason: self.reason,
            job: self.job_id.map(JobId),
            run: self.run_id.map(RunId),
            state: job_state.or(run_state).map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use schemas::NewWork;

    use super::*;

    fn firing(overlap: Overlap) -> Firing {
        let job = schemas::NewJob {
            id: JobId::at(moment(0)),
            kind: "noop".into(),
            args: Box::default(),
            queue: "default".into(),
            priority: schemas::Priority::Normal,
            run_at: None,
            key: None,
            limits: Vec::new(),
            approval: None,
            replay_of: None,
            event: None,
            trace: schemas::TraceContext::default(),
        };
        let due = Due::Work { work: NewWork::Job(Box::new(job)), overlap };
        Firing { schedule: "nightly".into(), nominal: moment(10), config_digest: "a".into(), due }
    }

    fn situation(unfinished: usize, waiting: usize, waits: bool) -> Situation {
        let one = || Unfinished { nominal: 5, job_id: Some(Uuid::nil()), run_id: None };
        Situation {
            recorded: waits.then_some(WAITS),
            settled: Some(if waits { 10 } else { 9 }),
            paused: None,
            unfinished: (0..unfinished).map(|_| one()).collect(),
            waiting,
        }
    }

    #[test]
    fn what_overlaps_is_skipped_waits_or_cancels() {
        let decide =
            |overlap, unfinished, waiting, waits| situation(unfinished, waiting, waits).decide(&firing(overlap));
        for overlap in [Overlap::Skip, Overlap::Queue, Overlap::CancelRunning] {
            assert_eq!(decide(overlap, 0, 0, false), Verdict::Fire);
            assert_eq!(decide(overlap, 0, 0, true), Verdict::Fire);
        }
        assert!(matches!(decide(Overlap::Skip, 1, 0, false), Verdict::Skip(_)));
        assert_eq!(decide(Overlap::Queue, 1, 0, false), Verdict::Wait { cancel: false });
        assert_eq!(decide(Overlap::Queue, 0, 1, true), Verdict::Wait { cancel: false }, "in order");
        assert!(matches!(decide(Overlap::Queue, 1, MOST_WAITING, false), Verdict::Skip(_)));
        assert_eq!(decide(Overlap::CancelRunning, 1, 0, false), Verdict::Wait { cancel: true });
        assert_eq!(decide(Overlap::CancelRunning, 1, 0, true), Verdict::Wait { cancel: false }, "cancelled once");
        assert_eq!(decide(Overlap::CancelRunning, 0, 1, false), Verdict::Fire, "it takes the place of what waits");
    }

    #[test]
    fn a_settled_time_is_settled_and_a_paused_schedule_skips() {
        let settled = Situation { settled: Some(10), ..situation(0, 0, false) };
        assert_eq!(settled.decide(&firing(Overlap::Skip)), Verdict::Before);
        let recorded = Situation { recorded: Some(FIRED), settled: None, ..situation(0, 0, false) };
        assert_eq!(recorded.decide(&firing(Overlap::Skip)), Verdict::Before);
        let paused = Situation { paused: Some(("ada".into(), "a move".into())), ..situation(0, 0, false) };
        let Verdict::Skip(why) = paused.decide(&firing(Overlap::Skip)) else { panic!("it is not skipped") };
        assert_eq!(why, "the schedule is paused by ada: a move");
        let due = Due::Missed { first: moment(9), times: 2, reason: "x".into(), notice: None };
        let stretch = Firing { due, ..firing(Overlap::Skip) };
        assert_eq!(situation(0, 0, false).decide(&stretch), Verdict::Before, "a part of it is settled");
    }
}
