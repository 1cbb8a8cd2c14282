//! Storing jobs and runs, with the keys that they hold.

use std::fmt;

use async_trait::async_trait;
use schemas::{JobId, JobState, Key, NewJob, NewRun, PlannedJob, RunId, Timestamp};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, SqliteConnection};
use uuid::Uuid;

use super::super::door::{Aftermath, FOR_ROOM, first_state};
use super::super::rows::micros;
use super::super::storing::Stores;
use super::super::{Enqueued, LedgerError, Operator};
use super::door::insert_gates;
use super::unavailable;
use super::values::{MOST_ROWS, values};
use crate::clock::later;

/// Stores the jobs whose keys are free; `by` is who started them.
pub(super) async fn insert_jobs(
    tx: &mut SqliteConnection,
    jobs: &[NewJob],
    by: Option<&str>,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<Vec<Enqueued<JobId>>, LedgerError> {
    let mut enqueued = Vec::with_capacity(jobs.len());
    let mut new = Vec::with_capacity(jobs.len());
    for job in jobs {
        let owner = match &job.key {
            Some(key) => take_key(tx, key, job.id.0, now).await?,
            None => job.id.0,
        };
        enqueued.push(if owner == job.id.0 { Enqueued::New(job.id) } else { Enqueued::Existing(JobId(owner)) });
        if owner == job.id.0 {
            new.push((job, first_state(job, true, now)));
        }
    }
    insert_new(tx, &new, None, by, after, now).await?;
    Ok(enqueued)
}

/// Stores new jobs with the state that each begins in. What is available is rung for, whoever must wait has come to the
/// door.
async fn insert_new(
    tx: &mut SqliteConnection,
    new: &[(&NewJob, (JobState, i16))],
    run: Option<RunId>,
    by: Option<&str>,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    for some in new.chunks(MOST_ROWS) {
        insert_job_rows(tx, some, run, now).await?;
        insert_args_rows(tx, some).await?;
    }
    for (job, (state, waits_for)) in new {
        match state {
            JobState::Available => after.bells.add_new(job),
            JobState::Scheduled => after.bells.put_off(),
            _ if *waits_for == FOR_ROOM => after.arrived.extend([job.id.0]),
            _ => {}
        }
    }
    let gated: Vec<&NewJob> = new.iter().map(|(job, _)| *job).filter(|job| job.is_gated()).collect();
    if gated.is_empty() { Ok(()) } else { insert_gates(tx, &gated, by, now).await }
}

/// Stores a run whose key is free, with all its jobs.
pub(super) async fn insert_run(
    tx: &mut SqliteConnection,
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
        "insert into run (id, runbook, state, inputs, created_at, event_id, actor, reason, key_scope, key,
                          traceparent, tracestate, replay_of)
         values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(run.id.0)
    .bind(&run.runbook)
    .bind(schemas::RunState::Running.code())
    .bind(run.inputs.to_string())
    .bind(micros(now))
    .bind(run.event.map(|event| event.0))
    .bind(&run.actor)
    .bind(&run.reason)
    .bind(run.key.as_ref().map(|key| &key.scope))
    .bind(run.key.as_ref().map(|key| &key.key))
    .bind(&run.trace.traceparent)
    .bind(&run.trace.tracestate)
    .bind(run.replay_of.map(|run| run.0))
    .execute(&mut *tx)
    .await
    .map_err(unavailable)?;
    insert_run_jobs(tx, run).await?;
    let first = |planned: &PlannedJob| first_state(&planned.job, planned.needs.is_empty(), now);
    let new: Vec<_> = run.jobs.iter().map(|planned| (&planned.job, first(planned))).collect();
    insert_new(tx, &new, Some(run.id), run.actor.as_deref(), after, now).await?;
    Ok(Enqueued::New(run.id))
}

async fn insert_run_jobs(tx: &mut SqliteConnection, run: &NewRun) -> Result<(), LedgerError> {
    for (position, planned) in (0_i64..).zip(&run.jobs) {
        sqlx::query("insert into run_job (run_id, name, position, job_id, needs, condition) values (?, ?, ?, ?, ?, ?)")
            .bind(run.id.0)
            .bind(&planned.name)
            .bind(position)
            .bind(planned.job.id.0)
            .bind(json!(planned.needs).to_string())
            .bind(&planned.condition)
            .execute(&mut *tx)
            .await
            .map_err(unavailable)?;
    }
    Ok(())
}

async fn insert_job_rows(
    tx: &mut SqliteConnection,
    new: &[(&NewJob, (JobState, i16))],
    run: Option<RunId>,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let statement = format!(
        "insert into job (id, queue, kind, state, waits_for, gated, priority, run_at, created_at, run_id)
         select column1, column2, column3, iif(paused, 0, column4), iif(paused, 1, column5), column6, column7, column8,
                ?, ?
         from (select *, column4 = 2 and column3 in (select name from pause where what = 'kind') as paused from ({}))
         where column1 is not null",
        values(8, new.len())
    );
    let mut insert = sqlx::query(AssertSqlSafe(statement)).bind(micros(now)).bind(run.map(|run| run.0));
    for (job, (state, waits_for)) in new {
        insert = insert
            .bind(job.id.0)
            .bind(job.queue.as_str())
            .bind(job.kind.as_str())
            .bind(state.code())
            .bind(*waits_for)
            .bind(job.is_gated())
            .bind(job.priority.code())
            .bind(micros(job.run_at.map_or(now, |at| at.max(now))));
    }
    insert.execute(tx).await.map_err(unavailable)?;
    Ok(())
}

async fn insert_args_rows(tx: &mut SqliteConnection, new: &[(&NewJob, (JobState, i16))]) -> Result<(), LedgerError> {
    let statement = format!(
        "insert into job_args (id, args, event_id, key_scope, key, traceparent, tracestate, replay_of)
         select * from ({}) where column1 is not null",
        values(8, new.len())
    );
    let mut insert = sqlx::query(AssertSqlSafe(statement));
    for (job, _) in new {
        insert = insert
            .bind(job.id.0)
            .bind(job.args.get())
            .bind(job.event.map(|event| event.0))
            .bind(job.key.as_ref().map(|key| key.scope.as_str()))
            .bind(job.key.as_ref().map(|key| key.key.as_str()))
            .bind(job.trace.traceparent.as_deref())
            .bind(job.trace.tracestate.as_deref())
            .bind(job.replay_of.map(|job| job.0));
    }
    insert.execute(tx).await.map_err(unavailable)?;
    Ok(())
}

/// Takes a key that is free or has expired; its owner, whoever that is.
pub(super) async fn take_key(
    tx: &mut SqliteConnection,
    key: &Key,
    owner: Uuid,
    now: Timestamp,
) -> Result<Uuid, LedgerError> {
    let taken: Option<Uuid> = sqlx::query_scalar(
        "insert into held_key (scope, key, owner, expires_at) values (?1, ?2, ?3, ?4)
         on conflict (scope, key) do update set owner = excluded.owner, expires_at = excluded.expires_at
         where expires_at <= ?5
         returning owner",
    )
    .bind(&key.scope)
    .bind(&key.key)
    .bind(owner)
    .bind(micros(later(now, key.hold)))
    .bind(micros(now))
    .fetch_optional(&mut *tx)
    .await
    .map_err(unavailable)?;
    match taken {
        Some(owner) => Ok(owner),
        None => sqlx::query_scalar("select owner from held_key where scope = ? and key = ?")
            .bind(&key.scope)
            .bind(&key.key)
            .fetch_one(tx)
            .await
            .map_err(unavailable),
    }
}

/// An id as `unhex` reads it.
pub(super) fn hex(id: Uuid) -> String {
    id.simple().to_string()
}

/// Ids as a JSON array for `json_each`.
pub(super) fn ids(ids: impl IntoIterator<Item = Uuid>) -> String {
    Value::from(ids.into_iter().map(hex).collect::<Vec<_>>()).to_string()
}

#[async_trait]
impl Stores for SqliteConnection {
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
        sqlx::query("insert into audit (id, at, actor, verb, subject, reason) values (?1, ?2, ?3, ?4, ?5, ?6)")
            .bind(JobId::at(now).0)
            .bind(micros(now))
            .bind(&by.actor)
            .bind(verb)
            .bind(subject.to_string())
            .bind(&by.reason)
            .execute(&mut *self)
            .await
            .map_err(unavailable)?;
        Ok(())
    }
}
