//! Storing jobs and runs, with the keys that they hold.

use std::collections::{HashMap, HashSet};
use std::fmt;

use async_trait::async_trait;
use schemas::{JobId, JobState, Key, NewJob, NewRun, RunId, RunState, Timestamp};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::door::{Aftermath, FOR_ROOM, first_state};
use super::super::rows::{micros, storable};
use super::super::storing::Stores;
use super::super::{Enqueued, LedgerError, Operator};
use super::door::insert_gates;
use super::unavailable;
use crate::bell::Bells;
use crate::clock::later;

/// Stores the jobs whose keys are free, inside of a transaction; `by` is who started them. Those with limits or approvals
/// have come to the door: the house's turn has been taken.
pub(super) async fn insert_jobs(
    tx: &mut PgConnection,
    jobs: &[NewJob],
    by: Option<&str>,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<Vec<Enqueued<JobId>>, LedgerError> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let rows = JobRows::of(jobs, now);
    let stored = rows.insert(tx, now).await.map_err(unavailable)?;
    rows.follow(tx, &stored, by, after, now).await?;
    enqueued(tx, jobs, &stored).await
}

/// Whether any of these jobs may have to wait at the door.
pub(super) fn any_gated<'a>(jobs: impl IntoIterator<Item = &'a NewJob>) -> bool {
    jobs.into_iter().any(NewJob::is_gated)
}

/// The jobs of a run.
pub(super) fn jobs_of(run: &NewRun) -> impl Iterator<Item = &NewJob> {
    run.jobs.iter().map(|planned| &planned.job)
}

/// What to answer for each job; of one that was not stored, the owner of its key.
pub(super) async fn enqueued(
    connection: &mut PgConnection,
    jobs: &[NewJob],
    stored: &HashSet<Uuid>,
) -> Result<Vec<Enqueued<JobId>>, LedgerError> {
    let refused: Vec<&Key> =
        jobs.iter().filter(|job| !stored.contains(&job.id.0)).filter_map(|job| job.key.as_ref()).collect();
    let owners = owners_of(connection, &refused).await?;
    let answer = |job: &NewJob| {
        if stored.contains(&job.id.0) {
            return Ok(Enqueued::New(job.id));
        }
        let owner = job.key.as_ref().and_then(|key| owners.get(&held_name(key)));
        // It was held, and was let go between two statements: the caller may try again.
        let owner = owner.ok_or_else(|| LedgerError::Unavailable(sqlx::Error::RowNotFound))?;
        Ok(Enqueued::Existing(JobId(*owner)))
    };
    jobs.iter().map(answer).collect()
}

fn held_name(key: &Key) -> [String; 2] {
    [storable(&key.scope).into_owned(), storable(&key.key).into_owned()]
}

async fn owners_of(connection: &mut PgConnection, keys: &[&Key]) -> Result<HashMap<[String; 2], Uuid>, LedgerError> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<(String, String, Uuid)> = sqlx::query_as(
        "select k.scope, k.key, k.owner from unnest($1::text[], $2::text[]) as u(scope, key)
         cross join lateral (select * from held_key where scope = u.scope and key = u.key limit 1) k",
    )
    .bind(keys.iter().map(|key| storable(&key.scope)).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| storable(&key.key)).collect::<Vec<_>>())
    .fetch_all(connection)
    .await
    .map_err(unavailable)?;
    Ok(rows.into_iter().map(|(scope, key, owner)| ([scope, key], owner)).collect())
}

/// Stores a run whose key is free, with all its jobs. If any of them has limits or an approval, the house's turn has been
/// taken.
pub(super) async fn insert_run(
    tx: &mut PgConnection,
    run: &NewRun,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<Enqueued<RunId>, LedgerError> {
    if let Some(key) = &run.key {
        let owner = take_key(tx, key, run.id.0, now).await?;
        if owner != run.id.0 {
            return Ok(Enqueued::Existing(RunId(owner)));
        }
    }
    sqlx::query(
        "with started as (
           insert into run (id, runbook, state, inputs, created_at, event_id, actor, reason, key_scope, key,
                            traceparent, tracestate, replay_of)
           values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $17))
         insert into run_job (run_id, name, position, job_id, needs, condition)
         select $1, name, position - 1, job_id, needs, condition
         from unnest($13::text[], $14::uuid[], $15::text[], $16::text[])
         with ordinality as j(name, job_id, needs, condition, position)",
    )
    .bind(run.id.0)
    .bind(&run.runbook)
    .bind(RunState::Running.code())
    .bind(run.inputs.to_string())
    .bind(micros(now))
    .bind(run.event.map(|event| event.0))
    .bind(run.actor.as_deref().map(storable))
    .bind(run.reason.as_deref().map(storable))
    .bind(run.key.as_ref().map(|key| storable(&key.scope)))
    .bind(run.key.as_ref().map(|key| storable(&key.key)))
    .bind(&run.trace.traceparent)
    .bind(&run.trace.tracestate)
    .bind(run.jobs.iter().map(|planned| planned.name.as_str()).collect::<Vec<_>>())
    .bind(run.jobs.iter().map(|planned| planned.job.id.0).collect::<Vec<_>>())
    .bind(run.jobs.iter().map(|planned| json!(planned.needs).to_string()).collect::<Vec<_>>())
    .bind(run.jobs.iter().map(|planned| planned.condition.as_deref()).collect::<Vec<_>>())
    .bind(run.replay_of.map(|run| run.0))
    .execute(&mut *tx)
    .await
    .map_err(unavailable)?;
    let mut rows = JobRows::default();
    for planned in &run.jobs {
        rows.push(&planned.job, planned.needs.is_empty(), Some(run.id), now);
    }
    let stored = rows.insert(tx, now).await.map_err(unavailable)?;
    rows.follow(tx, &stored, run.actor.as_deref(), after, now).await?;
    Ok(Enqueued::New(run.id))
}

/// New jobs, column by column.
#[derive(Default)]
pub(super) struct JobRows<'a> {
    jobs: Vec<&'a NewJob>,
    states: Vec<i16>,
    waits_for: Vec<i16>,
    runs: Vec<Option<Uuid>>,
    run_at: Vec<i64>,
    keys_end: Vec<Option<i64>>,
}

impl<'a> JobRows<'a> {
    pub(super) fn of(jobs: &'a [NewJob], now: Timestamp) -> Self {
        let mut rows = Self::default();
        jobs.iter().for_each(|job| rows.push(job, true, None, now));
        rows
    }

    fn push(&mut self, job: &'a NewJob, needs_nothing: bool, run: Option<RunId>, now: Timestamp) {
        let (state, waits_for) = first_state(job, needs_nothing, now);
        self.jobs.push(job);
        self.states.push(state.code());
        self.waits_for.push(waits_for);
        self.runs.push(run.map(|run| run.0));
        // A moment that has passed counts as this one: what is available lies above the floors of the claims.
        self.run_at.push(micros(job.run_at.map_or(now, |at| at.max(now))));
        self.keys_end.push(job.key.as_ref().map(|key| micros(later(now, key.hold))));
    }

    /// What follows from having stored these: bells for what is available, and whoever must wait has come to the door.
    pub(super) async fn follow(
        &self,
        tx: &mut PgConnection,
        stored: &HashSet<Uuid>,
        by: Option<&str>,
        after: &mut Aftermath,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        after.bells.merge(self.bells(stored));
        let gated = |job: &&&NewJob| job.is_gated() && stored.contains(&job.id.0);
        let gated: Vec<&NewJob> = self.jobs.iter().filter(gated).copied().collect();
        if gated.is_empty() {
            return Ok(());
        }
        insert_gates(tx, &gated, by, now).await?;
        let waits = |at: &usize| self.waits_for[*at] == FOR_ROOM && stored.contains(&self.jobs[*at].id.0);
        after.arrived.extend((0..self.jobs.len()).filter(waits).map(|at| self.jobs[at].id.0));
        Ok(())
    }

    /// What is to be rung for those that were stored.
    pub(super) fn bells(&self, stored: &HashSet<Uuid>) -> Bells {
        let mut bells = Bells::default();
        for (job, state) in self.jobs.iter().zip(&self.states).filter(|(job, _)| stored.contains(&job.id.0)) {
            match JobState::from_code(*state) {
                Some(JobState::Available) => bells.add_new(job),
                Some(JobState::Scheduled) => bells.put_off(),
                _ => {}
            }
        }
        bells
    }

    fn column<T>(&self, of: impl Fn(&'a NewJob) -> T) -> Vec<T> {
        self.jobs.iter().map(|job| of(job)).collect()
    }

    /// Stores those whose keys are free or have expired, and says which: one statement, whatever their number.
    pub(super) async fn insert(
        &self,
        connection: &mut PgConnection,
        now: Timestamp,
    ) -> Result<HashSet<Uuid>, sqlx::Error> {
        let stored: Vec<Uuid> = sqlx::query_scalar(
            "with u as (
               select * from unnest($1::uuid[], $2::text[], $3::text[], $4::smallint[], $5::smallint[], $6::bigint[],
                                    $7::uuid[], $8::text[], $9::uuid[], $10::text[], $11::text[], $12::bigint[],
                                    $13::text[], $14::text[], $16::smallint[], $17::boolean[], $18::uuid[])
               with ordinality as u(id, queue, kind, state, priority, run_at, run_id, args, event_id, scope, key,
                                    key_ends, traceparent, tracestate, waits_for, gated, replay_of, position)),
             held as (
               insert into held_key (scope, key, owner, expires_at)
               select distinct on (scope, key) scope, key, id, key_ends from u where key is not null
               order by scope, key, position
               on conflict (scope, key) do update set owner = excluded.owner, expires_at = excluded.expires_at
               where held_key.expires_at <= $15
               returning owner),
             fresh as (select * from u where key is null or id in (select owner from held)),
             args as (
               insert into job_args (id, args, event_id, key_scope, key, traceparent, tracestate, replay_of)
               select id, args, event_id, scope, key, traceparent, tracestate, replay_of from fresh)
             insert into job (id, queue, kind, state, priority, run_at, created_at, run_id, waits_for, gated)
             select id, queue, kind, case when paused then 0 else state end, priority, run_at, $15, run_id,
                    case when paused then 1 else waits_for end, gated
             from (select *, state = 2 and kind in (select name from pause where what = 'kind') as paused
                   from fresh) fresh
             returning id",
        )
        .bind(self.column(|job| job.id.0))
        .bind(self.column(|job| job.queue.as_str()))
        .bind(self.column(|job| job.kind.as_str()))
        .bind(&self.states)
        .bind(self.column(|job| job.priority.code()))
        .bind(&self.run_at)
        .bind(&self.runs)
        .bind(self.column(|job| job.args.get()))
        .bind(self.column(|job| job.event.map(|event| event.0)))
        .bind(self.column(|job| job.key.as_ref().map(|key| storable(&key.scope))))
        .bind(self.column(|job| job.key.as_ref().map(|key| storable(&key.key))))
        .bind(&self.keys_end)
        .bind(self.column(|job| job.trace.traceparent.as_deref()))
        .bind(self.column(|job| job.trace.tracestate.as_deref()))
        .bind(micros(now))
        .bind(&self.waits_for)
        .bind(self.column(NewJob::is_gated))
        .bind(self.column(|job| job.replay_of.map(|job| job.0)))
        .fetch_all(connection)
        .await?;
        Ok(stored.into_iter().collect())
    }
}

/// Takes a key that is free or has expired; its owner, whoever that is.
pub(super) async fn take_key(
    tx: &mut PgConnection,
    key: &Key,
    owner: Uuid,
    now: Timestamp,
) -> Result<Uuid, LedgerError> {
    let taken: Option<Uuid> = sqlx::query_scalar(
        "insert into held_key (scope, key, owner, expires_at) values ($1, $2, $3, $4)
         on conflict (scope, key) do update set owner = excluded.owner, expires_at = excluded.expires_at
         where held_key.expires_at <= $5
         returning owner",
    )
    .bind(storable(&key.scope))
    .bind(storable(&key.key))
    .bind(owner)
    .bind(micros(later(now, key.hold)))
    .bind(micros(now))
    .fetch_optional(&mut *tx)
    .await
    .map_err(unavailable)?;
    match taken {
        Some(owner) => Ok(owner),
        None => sqlx::query_scalar("select owner from held_key where scope = $1 and key = $2")
            .bind(storable(&key.scope))
            .bind(storable(&key.key))
            .fetch_one(tx)
            .await
            .map_err(unavailable),
    }
}

#[async_trait]
impl Stores for PgConnection {
    async fn store_jobs(
        &mut self,
        jobs: &[NewJob],
        by: Option<&str>,
        after: &mut Aftermath,
        now: Timestamp,
    ) -> Result<Vec<Enqueued<JobId>>, LedgerError> {
        insert_jobs(&mut *self, jobs, by, after, now).await
    }

    async fn store_run(
        &mut self,
        run: &NewRun,
        after: &mut Aftermath,
        now: Timestamp,
    ) -> Result<Enqueued<RunId>, LedgerError> {
        insert_run(&mut *self, run, after, now).await
    }

    async fn write_audit(
        &mut self,
        by: &Operator,
        verb: &str,
        subject: &(dyn fmt::Display + Sync),
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        sqlx::query("insert into audit (id, at, actor, verb, subject, reason) values ($1, $2, $3, $4, $5, $6)")
            .bind(JobId::at(now).0)
            .bind(micros(now))
            .bind(storable(&by.actor))
            .bind(verb)
            .bind(subject.to_string())
            .bind(storable(&by.reason))
            .execute(&mut *self)
            .await
            .map_err(unavailable)?;
        Ok(())
    }
}
