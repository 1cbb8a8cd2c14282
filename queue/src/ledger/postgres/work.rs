//! Claims, heartbeats, steps and ends.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use schemas::{
    AttemptId, ClaimedJob, JobId, JobState, Key, NewJob, Outcome, Priority, RunId, StepState, Timestamp, TraceContext,
};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::door::Aftermath;
use super::super::rows::{ClaimedRow, micros, raw, storable};
use super::super::{BEHIND_MEMORY, Beat, Claim, Ended, Finished, Hold, LedgerError, Work, behind};
use super::door::{leave, settle, take_turn};
use super::runs::{lock_runs, tell};
use super::storing::take_key;
use super::{Postgres, begin, commit, in_time, unavailable, unknown};
use crate::bell::Bells;
use crate::clock::later;

#[async_trait]
impl Work for Postgres {
    async fn claim(&self, claim: &Claim, now: Timestamp) -> Result<Vec<ClaimedJob>, LedgerError> {
        in_time(async {
            let floors = self.floors.of(claim, now);
            let mut hot = self.kept().await?;
            let taken: Vec<TakenRow> = sqlx::query_as(CLAIM)
                .bind(&claim.queue)
                .bind(&claim.kinds)
                .bind(i64::from(claim.limit))
                .bind(micros(now))
                .bind(micros(later(now, claim.lease)))
                .bind(claim.worker.0)
                .bind(Priority::ALL.map(Priority::code))
                .bind(floors)
                .fetch_all(&mut *hot)
                .await
                .map_err(unknown)?;
            hot.keep();
            // One that took nothing tells nothing: the queue may be paused.
            if !taken.is_empty() {
                let last = taken.last().filter(|_| taken.len() >= claim.limit as usize);
                self.floors.raise(claim, now, floors, last.map(|last| (last.row.priority, last.run_at)));
            }
            taken
                .into_iter()
                .map(|TakenRow { row, .. }| (row.attempt, row))
                .map(|(attempt, row)| row.into_claimed(attempt))
                .collect()
        })
        .await
    }

    async fn heartbeat(
        &self,
        attempts: &[AttemptId],
        lease_until: Timestamp,
        _now: Timestamp,
    ) -> Result<Vec<Beat>, LedgerError> {
        in_time(async {
            let mut sorted = attempts.to_vec();
            sorted.sort_unstable();
            let alive: Vec<(Uuid, i32, Option<String>)> = sqlx::query_as(
                "with held as materialized (
                   select j.id, j.attempt, j.cancel from unnest($1::uuid[], $2::integer[]) as u(id, attempt)
                   cross join lateral (
                     select * from job where id = u.id and attempt = u.attempt and state + 0 = 3 limit 1
                     for no key update) j),
                 beaten as (update job set lease_until = $3 where id = any(array(select id from held)))
                 select id, attempt, cancel from held",
            )
            .bind(sorted.iter().map(|attempt| attempt.job.0).collect::<Vec<_>>())
            .bind(sorted.iter().map(|attempt| attempt.number).collect::<Vec<_>>())
            .bind(micros(lease_until))
            .fetch_all(&mut *self.hot().await?)
            .await
            .map_err(unknown)?;
            let alive: HashMap<(Uuid, i32), Option<String>> =
                alive.into_iter().map(|(job, attempt, cancel)| ((job, attempt), cancel)).collect();
            let beat = |attempt: &AttemptId| match alive.get(&(attempt.job.0, attempt.number)) {
                None => Beat::Lost,
                Some(None) => Beat::Alive,
                Some(Some(reason)) => Beat::Cancel(reason.clone()),
            };
            Ok(attempts.iter().map(beat).collect())
        })
        .await
    }

    async fn start_step(&self, attempt: AttemptId, name: &str, now: Timestamp) -> Result<StepState, LedgerError> {
        in_time(async {
            // The lock keeps the rescuer out until the step is written.
            let (held, finished, result): (bool, Option<bool>, Option<String>) = sqlx::query_as(
                "with held as (select id from job where id = $1 and attempt = $2 and state + 0 = 3 for no key update),
                      known as (select finished_at is not null as finished, result from step
                                where job_id = $1 and name = $3),
                      written as (
                        insert into step (job_id, name, attempt, started_at) select id, $3, $2, $4 from held
                        where not exists (select 1 from known where finished)
                        on conflict (job_id, name) do update
                        set attempt = excluded.attempt, started_at = excluded.started_at)
                 select exists (select 1 from held), (select finished from known), (select result from known)",
            )
            .bind(attempt.job.0)
            .bind(attempt.number)
            .bind(storable(name))
            .bind(micros(now))
            .fetch_one(&mut *self.hot().await?)
            .await
            .map_err(unknown)?;
            match (held, finished) {
                (false, _) => Err(LedgerError::Stale),
                (true, Some(true)) => Ok(StepState::Finished(result.map(raw).transpose()?)),
                (true, Some(false)) => Ok(StepState::Unknown),
                (true, None) => Ok(StepState::Fresh),
            }
        })
        .await
    }

    async fn finish_step(
        &self,
        attempt: AttemptId,
        name: &str,
        result: Option<&RawValue>,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        in_time(async {
            let held: bool = sqlx::query_scalar(
                "with held as (select id, crashes from job where id = $1 and attempt = $2 and state + 0 = 3
                               for no key update),
                      progress as (update job set crashes = 0
                                   where id = $1 and exists (select 1 from held where crashes > 0)),
                      written as (update step set finished_at = $4, result = $5
                                  where job_id = $1 and name = $3 and attempt = $2 and exists (select 1 from held))
                 select exists (select 1 from held)",
            )
            .bind(attempt.job.0)
            .bind(attempt.number)
            .bind(storable(name))
            .bind(micros(now))
            .bind(result.map(RawValue::get))
            .fetch_one(&mut *self.hot().await?)
            .await
            .map_err(unknown)?;
            if held { Ok(()) } else { Err(LedgerError::Stale) }
        })
        .await
    }

    async fn hold(&self, attempt: AttemptId, key: &Key, now: Timestamp) -> Result<Hold, LedgerError> {
        in_time(async {
            let mut tx = begin(&self.hot).await?;
            // The lock keeps the rescuer out until the key is written.
            let held: Option<Uuid> = sqlx::query_scalar(
                "select id from job where id = $1 and attempt = $2 and state + 0 = 3 for no key update",
            )
            .bind(attempt.job.0)
            .bind(attempt.number)
            .fetch_optional(&mut *tx)
            .await
            .map_err(unavailable)?;
            held.ok_or(LedgerError::Stale)?;
            let owner = JobId(take_key(&mut tx, key, attempt.job.0, now).await?);
            if owner == attempt.job {
                commit(tx).await?;
                return Ok(Hold::Mine);
            }
            let place = Key { scope: behind(owner), key: attempt.job.to_string(), hold: BEHIND_MEMORY };
            take_key(&mut tx, &place, attempt.job.0, now).await?;
            commit(tx).await?;
            Ok(Hold::Behind(owner))
        })
        .await
    }

    async fn finish(&self, ended: &[Ended], now: Timestamp) -> Result<Finished, LedgerError> {
        in_time(async {
            let ends = Ends::of(ended, now);
            if ended.iter().all(|end| notice(end).is_none()) {
                let mut hot = self.kept().await?;
                let held = ends.write(&mut hot, false, now).await.map_err(unknown)?;
                hot.keep();
                if held.values().all(|job| job.run_id.is_none() && !job.gated) {
                    return Ok(finished(ended, &held));
                }
                // Nothing was written: the end of a run's job, or of one with limits, changes other jobs as well.
            }
            let mut tx = begin(&self.hot).await?;
            take_turn(&mut tx).await?;
            let runs = runs_of(&mut tx, &ends.ids).await?;
            lock_runs(&mut tx, &runs).await?;
            let held = ends.write(&mut tx, true, now).await.map_err(unavailable)?;
            let mut done = finished(ended, &held);
            let mut after = Aftermath { bells: done.bells, ..Aftermath::default() };
            after.runs.extend(held.values().filter_map(HeldJob::ended_run));
            after.freed = leave(&mut tx, &held.values().filter_map(HeldJob::left_its_room).collect::<Vec<_>>()).await?;
            let recorded = ended.iter().zip(&done.recorded).filter(|(_, recorded)| **recorded).map(|(end, _)| end);
            let notices: Vec<NewJob> = recorded.filter_map(notice).cloned().collect();
            tell(&mut tx, notices, &mut after, now).await?;
            settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
            commit(tx).await?;
            done.bells = after.bells;
            Ok(done)
        })
        .await
    }

    async fn outputs(&self, run: RunId) -> Result<Value, LedgerError> {
        in_time(async {
            let rows: Vec<(String, String)> = sqlx::query_as(
                "select rj.name, h.output from run_job rj
                 cross join lateral (select output from history where id = rj.job_id limit 1) h
                 where rj.run_id = $1 and h.output is not null",
            )
            .bind(run.0)
            .fetch_all(&self.hot)
            .await
            .map_err(unavailable)?;
            let outputs: Result<Map<String, Value>, _> =
                rows.into_iter().map(|(name, output)| Ok((name, serde_json::from_str(&output)?))).collect();
            outputs
                .map(Value::Object)
                .map_err(|error: serde_json::Error| LedgerError::Refused(sqlx::Error::Decode(error.into())))
        })
        .await
    }
}

/// A job that was claimed, and where it stood.
#[derive(sqlx::FromRow)]
struct TakenRow {
    #[sqlx(flatten)]
    row: ClaimedRow,
    run_at: i64,
}

/// What is not due is `scheduled`, so a claim asks for no time; what others are claiming now is skipped. Each priority is a
/// scan of its own, from its floor on, and the next one is begun only when the ones before it were not enough. What it
/// found is looked up by id, by force, for the reason that stands at [`FINISH`]. A paused
/// kind is not let in; what slipped in while it was being paused waits here.
const CLAIM: &str = "
    with c as materialized (
      select j.id from unnest($7::smallint[], $8::bigint[]) as p(priority, floor)
      cross join lateral (
        select id from job where queue = $1 and state = 2 and kind = any($2) and priority = p.priority and run_at >= p.floor
          and kind <> all(array(select name from pause where what = 'kind'))
        order by run_at, id limit $3 for update skip locked) j
      where not exists (select 1 from pause where what = 'queue' and name = $1)
      limit $3),
    r as (
      update job set state = 3, attempt = attempt + 1, started_at = $4, lease_until = $5, worker = $6, reason = null
      where id = any(array(select id from c))
      returning id, attempt, kind, queue, priority, run_at, failures, crashes, created_at, run_id)
    select r.id, r.attempt, r.kind, a.args, r.queue, r.priority, r.failures, r.crashes, r.created_at, a.event_id,
           r.run_id, a.traceparent, a.tracestate, r.run_at
    from r cross join lateral (select * from job_args where id = r.id limit 1) a
    order by r.priority, r.run_at, r.id";

/// Writes the ends of attempts that are not stale, and says which those are. `$10` is false where nothing may be written
/// if any of the jobs belongs to a run or has limits. An end with a `run_at` puts its job off, any other moves it to the history, where
/// the last attempt stands; what failed lets go of its key. What an operator wants cancelled is not put off, though its
/// attempt ended before a heartbeat told it.
///
/// Each row is looked up by its id, by force (`lateral` with `limit 1`, or `= any(array(...))`): a join alone lets a plan
/// that was made when the table was small, and is kept, walk over all of the index for each batch, dead entries included.
/// So it is with every statement of this engine that meets a table which grows.
const FINISH: &str = "
    with u as (
      select * from unnest($1::uuid[], $2::integer[], $3::smallint[], $4::bigint[], $5::integer[], $6::text[],
                           $7::text[], $8::text[])
           as u(id, attempt, new_state, put_off, failed, outcome, message, output)),
    held as materialized (
      select j.id, j.queue, j.kind, j.priority, j.attempt, j.failures, j.crashes, j.created_at, j.started_at, j.worker,
             j.run_id, j.gated, u.failed, u.outcome, u.output,
             case when u.put_off is null or j.cancel is null then u.new_state else 7 end::smallint as new_state,
             case when j.cancel is null then u.put_off end as put_off,
             case when u.put_off is null or j.cancel is null then u.message else j.cancel end as message
      from u cross join lateral (
        select * from job where id = u.id and attempt = u.attempt and state + 0 = 3 limit 1 for update) j),
    go as materialized (select 1 where $10 or not exists (select 1 from held where run_id is not null or gated)),
    ends as materialized (select held.* from held, go where put_off is null),
    gone as (delete from job where id = any(array(select id from ends))),
    past as (
      insert into history (id, queue, kind, state, priority, attempt, failures, crashes, created_at, started_at,
                           finished_at, worker, run_id, reason, output)
      select id, queue, kind, new_state, priority, attempt, failures, crashes, created_at, started_at, $9, worker,
             run_id, message, output
      from ends),
    let_go as materialized (
      select k.ctid
      from ends e
      cross join lateral (select key_scope, key from job_args where id = e.id and key is not null limit 1) a
      cross join lateral (
        select ctid from held_key where scope = a.key_scope and key = a.key and owner = e.id limit 1 for update) k
      where e.new_state in (7, 8)),
    freed as (delete from held_key where ctid = any(array(select ctid from let_go))),
    waits as (
      update job j set state = h.new_state, run_at = h.put_off, failures = j.failures + h.failed, reason = h.message,
                       lease_until = null, worker = null
      from held h, go
      where j.id = any(array(select id from held where put_off is not null)) and j.id = h.id and h.put_off is not null),
    tried as (
      insert into attempt (job_id, number, worker, started_at, ended_at, outcome, error)
      select h.id, h.attempt, h.worker, coalesce(h.started_at, $9), $9, h.outcome, h.message
      from held h, go where h.put_off is not null)
    select id, attempt, queue, run_id, gated, new_state from held";

/// A running job whose attempt is not stale.
#[derive(sqlx::FromRow)]
struct HeldJob {
    id: Uuid,
    attempt: i32,
    queue: String,
    run_id: Option<Uuid>,
    gated: bool,
    new_state: i16,
}

impl HeldJob {
    fn new_state(&self) -> Option<JobState> {
        JobState::from_code(self.new_state)
    }

    /// The run that looks at what waits, because this job of it has ended.
    fn ended_run(&self) -> Option<Uuid> {
        self.run_id.filter(|_| self.new_state().is_some_and(JobState::is_finished))
    }

    /// The job, where it leaves the room that it has at its limits. What is available again keeps it.
    fn left_its_room(&self) -> Option<Uuid> {
        (self.gated && self.new_state() != Some(JobState::Available)).then_some(self.id)
    }
}

/// Ends of attempts, column by column, in the order of their jobs; of several for one attempt only the first.
#[derive(Default)]
struct Ends<'a> {
    ids: Vec<Uuid>,
    attempts: Vec<i32>,
    states: Vec<i16>,
    put_off: Vec<Option<i64>>,
    failed: Vec<i32>,
    outcomes: Vec<&'a str>,
    messages: Vec<Option<std::borrow::Cow<'a, str>>>,
    outputs: Vec<Option<&'a str>>,
}

impl<'a> Ends<'a> {
    fn of(ended: &'a [Ended], now: Timestamp) -> Self {
        let mut sorted: Vec<&Ended> = ended.iter().collect();
        // By the attempt, not by the job: a stale end may come in one batch with the current one.
        sorted.sort_by_key(|end| end.attempt);
        sorted.dedup_by_key(|end| end.attempt);
        let mut ends = Self::default();
        for end in sorted {
            let (put_off, failed) = match &end.outcome {
                Outcome::Retry { at, .. } => (Some(*at), 1),
                Outcome::Snoozed { at, .. } => (Some(*at), 0),
                Outcome::Released => (Some(now), 0),
                Outcome::Completed { .. } | Outcome::Cancelled { .. } | Outcome::Discarded { .. } => (None, 0),
            };
            let output = match &end.outcome {
                Outcome::Completed { output, .. } => output.as_deref().map(RawValue::get),
                _ => None,
            };
            ends.ids.push(end.attempt.job.0);
            ends.attempts.push(end.attempt.number);
            ends.states.push(end.outcome.state().code());
            ends.put_off.push(put_off.map(micros));
            ends.failed.push(failed);
            ends.outcomes.push(end.outcome.as_str());
            ends.messages.push(end.outcome.message().map(storable));
            ends.outputs.push(output);
        }
        ends
    }

    /// Writes them, and says which jobs were held. Unless `in_turn`, writes nothing if one of them is a run's or has limits.
    async fn write(
        &self,
        connection: &mut PgConnection,
        in_turn: bool,
        now: Timestamp,
    ) -> Result<HashMap<Uuid, HeldJob>, sqlx::Error> {
        let held: Vec<HeldJob> = sqlx::query_as(FINISH)
            .bind(&self.ids)
            .bind(&self.attempts)
            .bind(&self.states)
            .bind(&self.put_off)
            .bind(&self.failed)
            .bind(&self.outcomes)
            .bind(&self.messages)
            .bind(&self.outputs)
            .bind(micros(now))
            .bind(in_turn)
            .fetch_all(connection)
            .await?;
        Ok(held.into_iter().map(|job| (job.id, job)).collect())
    }
}

/// What to answer, and the bells of the jobs that are available again.
fn finished(ended: &[Ended], held: &HashMap<Uuid, HeldJob>) -> Finished {
    let mut seen = HashSet::new();
    let is_held = |end: &Ended| held.get(&end.attempt.job.0).is_some_and(|job| job.attempt == end.attempt.number);
    let recorded = ended.iter().map(|end| is_held(end) && seen.insert(end.attempt));
    let mut done = Finished { recorded: recorded.collect(), bells: Bells::default() };
    for job in held.values() {
        match job.new_state() {
            Some(JobState::Available) => done.bells.add(&job.queue, JobId(job.id), &TraceContext::default()),
            Some(JobState::Retryable | JobState::Scheduled) => done.bells.put_off(),
            _ => {}
        }
    }
    done
}

fn notice(end: &Ended) -> Option<&NewJob> {
    match &end.outcome {
        Outcome::Completed { notice, .. } | Outcome::Discarded { notice, .. } => notice.as_deref(),
        _ => None,
    }
}

/// The runs that these jobs belong to.
async fn runs_of(tx: &mut PgConnection, jobs: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
    sqlx::query_scalar("select distinct run_id from job where id = any($1) and run_id is not null")
        .bind(jobs)
        .fetch_all(tx)
        .await
        .map_err(unavailable)
}
