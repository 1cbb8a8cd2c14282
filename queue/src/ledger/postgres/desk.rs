//! What operators do: each verb with its audit row, in one transaction.

use async_trait::async_trait;
use schemas::{EventId, JobId, JobState, Key, NewJob, NewRun, RunId, Standing, Timestamp, TraceContext};
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::rows::{KEY_OF_RETRY, NodeRow, micros, state, storable};
use super::super::{Desk, Enqueued, LedgerError, Operator};
use super::runs::{Ending, advance_run, end_jobs, lock_runs, node_rows};
use super::storing::{insert_jobs, insert_run, take_key};
use super::{Postgres, begin, commit, in_time, unavailable};
use crate::advance::skipped_because_of;
use crate::bell::Bells;
use crate::queue::bells_of;

#[async_trait]
impl Desk for Postgres {
    async fn start_job(&self, job: &NewJob, by: &Operator, now: Timestamp) -> Result<Enqueued<JobId>, LedgerError> {
        in_time(async {
            let mut tx = begin(&self.hot).await?;
            let enqueued = insert_jobs(&mut tx, std::slice::from_ref(job), now).await?[0];
            if let Enqueued::New(job) = enqueued {
                write_audit(&mut tx, by, "start", job.0, now).await?;
            }
            commit(tx).await?;
            Ok(enqueued)
        })
        .await
    }

    async fn start_run(&self, run: &NewRun, by: &Operator, now: Timestamp) -> Result<Enqueued<RunId>, LedgerError> {
        in_time(async {
            let mut tx = begin(&self.hot).await?;
            let started = insert_run(&mut tx, run, now).await?;
            if let Enqueued::New(run) = started {
                write_audit(&mut tx, by, "start", run.0, now).await?;
            }
            commit(tx).await?;
            Ok(started)
        })
        .await
    }

    async fn cancel(&self, job: JobId, by: &Operator, now: Timestamp) -> Result<(JobState, Bells), LedgerError> {
        in_time(async {
            let mut tx = begin(&self.desk).await?;
            let mut bells = Bells::default();
            let run = lock_run_of(&mut tx, job).await?;
            let found: Option<i16> = sqlx::query_scalar("select state from job where id = $1 for update")
                .bind(job.0)
                .fetch_optional(&mut *tx)
                .await
                .map_err(unavailable)?;
            let Some(code) = found else { return Err(not_waiting(&mut tx, job).await?) };
            let reason = format!("cancelled by {}: {}", by.actor, by.reason);
            let state = if state(code)? == JobState::Running {
                sqlx::query("update job set cancel = $2 where id = $1")
                    .bind(job.0)
                    .bind(storable(&reason))
                    .execute(&mut *tx)
                    .await
                    .map_err(unavailable)?;
                JobState::Running
            } else {
                end_jobs(&mut tx, &[Ending::new(job, JobState::Cancelled, Some(reason))], now).await?;
                if let Some(run) = run {
                    advance_run(&mut tx, run, self.notice.as_ref(), now, &mut bells).await?;
                }
                JobState::Cancelled
            };
            write_audit(&mut tx, by, "cancel", job.0, now).await?;
            commit(tx).await?;
            Ok((state, bells))
        })
        .await
    }

    async fn retry(&self, job: JobId, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        in_time(async {
            let mut tx = begin(&self.desk).await?;
            let run = lock_run_of(&mut tx, job).await?;
            let queue = queue_of_ended(&mut tx, job).await?;
            take_key_again(&mut tx, job, now).await?;
            record_last_attempt(&mut tx, job).await?;
            bring_back(&mut tx, &[job.0], JobState::Available, now).await?;
            if let Some(run) = run {
                take_key_of_run_again(&mut tx, run, now).await?;
                let rows = node_rows(&mut tx, run).await?;
                let nodes = rows.iter().map(NodeRow::node).collect::<Result<Vec<_>, _>>()?;
                let skipped: Vec<Uuid> = skipped_because_of(job, &nodes).into_iter().map(|job| job.0).collect();
                bring_back(&mut tx, &skipped, JobState::Pending, now).await?;
                sqlx::query("update run set state = 0, finished_at = null where id = $1")
                    .bind(run)
                    .execute(&mut *tx)
                    .await
                    .map_err(unavailable)?;
            }
            write_audit(&mut tx, by, "retry", job.0, now).await?;
            commit(tx).await?;
            let mut bells = Bells::default();
            bells.add(&queue, job, &TraceContext::default());
            Ok(bells)
        })
        .await
    }

    async fn release(
        &self,
        event: EventId,
        jobs: &[NewJob],
        runs: &[NewRun],
        by: &Operator,
        now: Timestamp,
    ) -> Result<Bells, LedgerError> {
        in_time(async {
            let mut tx = begin(&self.desk).await?;
            let released = sqlx::query("update event set standing = $2, reason = null where id = $1 and standing = $3")
                .bind(event.0)
                .bind(Standing::Accepted.code())
                .bind(Standing::Held.code())
                .execute(&mut *tx)
                .await
                .map_err(unavailable)?;
            if released.rows_affected() == 0 {
                return Err(LedgerError::Conflict("this event is not held".into()));
            }
            insert_jobs(&mut tx, jobs, now).await?;
            for run in runs {
                insert_run(&mut tx, run, now).await?;
            }
            write_audit(&mut tx, by, "release", event.0, now).await?;
            commit(tx).await?;
            Ok(bells_of(jobs, runs))
        })
        .await
    }
}

/// Locks the run that a job belongs to, if it belongs to one, before the job itself.
async fn lock_run_of(tx: &mut PgConnection, job: JobId) -> Result<Option<Uuid>, LedgerError> {
    let run: Option<Uuid> = sqlx::query_scalar(
        "select coalesce((select run_id from job where id = $1), (select run_id from history where id = $1))",
    )
    .bind(job.0)
    .fetch_one(&mut *tx)
    .await
    .map_err(unavailable)?;
    lock_runs(tx, run.as_slice()).await?;
    Ok(run)
}

/// Why a job that is not in the hot table cannot be cancelled.
async fn not_waiting(tx: &mut PgConnection, job: JobId) -> Result<LedgerError, LedgerError> {
    let ended: Option<i16> = sqlx::query_scalar("select state from history where id = $1")
        .bind(job.0)
        .fetch_optional(tx)
        .await
        .map_err(unavailable)?;
    Ok(match ended {
        None => LedgerError::NotFound("job"),
        Some(code) => LedgerError::Conflict(format!("this job has ended: it is {}", state(code)?.as_str())),
    })
}

/// The queue of a job that may be retried.
async fn queue_of_ended(tx: &mut PgConnection, job: JobId) -> Result<String, LedgerError> {
    let ended: Option<(i16, String)> = sqlx::query_as("select state, queue from history where id = $1 for update")
        .bind(job.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(unavailable)?;
    let Some((code, queue)) = ended else {
        let waits: bool = sqlx::query_scalar("select exists (select 1 from job where id = $1)")
            .bind(job.0)
            .fetch_one(tx)
            .await
            .map_err(unavailable)?;
        return Err(if waits {
            LedgerError::Conflict("this job has not ended".into())
        } else {
            LedgerError::NotFound("job")
        });
    };
    match state(code)? {
        JobState::Discarded | JobState::Cancelled => Ok(queue),
        other => Err(LedgerError::Conflict(format!(
            "only a discarded or cancelled job can be retried: this is {}",
            other.as_str()
        ))),
    }
}

/// A job that failed let go of its key: another may hold it now.
async fn take_key_again(tx: &mut PgConnection, job: JobId, now: Timestamp) -> Result<(), LedgerError> {
    let key: Option<(String, String)> =
        sqlx::query_as("select key_scope, key from job_args where id = $1 and key is not null")
            .bind(job.0)
            .fetch_optional(&mut *tx)
            .await
            .map_err(unavailable)?;
    let Some((scope, key)) = key else { return Ok(()) };
    let owner = take_key(tx, &Key { scope, key, hold: KEY_OF_RETRY }, job.0, now).await?;
    if owner == job.0 {
        return Ok(());
    }
    Err(LedgerError::Conflict(format!("job {owner} does the same work now; cancel it first, or let it do it")))
}

/// A run that failed let go of its key as well.
async fn take_key_of_run_again(tx: &mut PgConnection, run: Uuid, now: Timestamp) -> Result<(), LedgerError> {
    let key: Option<(String, String)> =
        sqlx::query_as("select key_scope, key from run where id = $1 and key is not null")
            .bind(run)
            .fetch_optional(&mut *tx)
            .await
            .map_err(unavailable)?;
    let Some((scope, key)) = key else { return Ok(()) };
    let owner = take_key(tx, &Key { scope, key, hold: KEY_OF_RETRY }, run, now).await?;
    if owner == run {
        return Ok(());
    }
    Err(LedgerError::Conflict(format!("run {owner} does the same work now; cancel its jobs first, or let it do them")))
}

/// The attempt that ended the job stood in its history row, which goes.
async fn record_last_attempt(tx: &mut PgConnection, job: JobId) -> Result<(), LedgerError> {
    sqlx::query(
        "insert into attempt (job_id, number, worker, started_at, ended_at, outcome, error)
         select id, attempt, worker, started_at, finished_at, case state when 7 then 'cancelled' else 'discarded' end,
                reason
         from history where id = $1 and started_at is not null
         on conflict do nothing",
    )
    .bind(job.0)
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}

/// Moves jobs from the history to the hot table, their failures forgotten.
async fn bring_back(tx: &mut PgConnection, jobs: &[Uuid], state: JobState, now: Timestamp) -> Result<(), LedgerError> {
    sqlx::query(
        "with back as (
           delete from history where id = any($1) returning id, queue, kind, priority, attempt, run_id)
         insert into job (id, queue, kind, state, priority, run_at, attempt, created_at, run_id)
         select id, queue, kind, $2, priority, $3, attempt, $3, run_id from back",
    )
    .bind(jobs)
    .bind(state.code())
    .bind(micros(now))
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}

async fn write_audit(
    tx: &mut PgConnection,
    by: &Operator,
    verb: &str,
    subject: Uuid,
    now: Timestamp,
) -> Result<(), LedgerError> {
    sqlx::query("insert into audit (id, at, actor, verb, subject, reason) values ($1, $2, $3, $4, $5, $6)")
        .bind(JobId::at(now).0)
        .bind(micros(now))
        .bind(storable(&by.actor))
        .bind(verb)
        .bind(subject.to_string())
        .bind(storable(&by.reason))
        .execute(tx)
        .await
        .map_err(unavailable)?;
    Ok(())
}
