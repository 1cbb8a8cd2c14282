//! What operators do: each verb with its audit row, in one transaction.

use async_trait::async_trait;
use schemas::{EventId, JobId, JobState, Key, NewJob, NewRun, RunId, Standing, Timestamp, TraceContext};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::super::rows::{KEY_OF_RETRY, NodeRow, micros, state};
use super::super::{Desk, Enqueued, LedgerError, Operator};
use super::intake::{ids, insert_jobs, insert_run, take_key};
use super::runs::{Ending, advance_run, end_jobs, node_rows};
use super::{Sqlite, commit, in_time, unavailable};
use crate::advance::skipped_because_of;
use crate::bell::Bells;
use crate::queue::bells_of;

#[async_trait]
impl Desk for Sqlite {
    async fn start_job(&self, job: &NewJob, by: &Operator, now: Timestamp) -> Result<Enqueued<JobId>, LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
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
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
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
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            let mut bells = Bells::default();
            let reason = format!("cancelled by {}: {}", by.actor, by.reason);
            let found: Option<(i16, Option<Uuid>)> = sqlx::query_as("select state, run_id from job where id = ?")
                .bind(job.0)
                .fetch_optional(&mut *tx)
                .await
                .map_err(unavailable)?;
            let Some((code, run)) = found else { return Err(not_waiting(&mut tx, job).await?) };
            let state = if state(code)? == JobState::Running {
                sqlx::query("update job set cancel = ? where id = ?")
                    .bind(reason)
                    .bind(job.0)
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
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            let ended = ended_job(&mut tx, job).await?;
            take_key_again(&mut tx, job, now).await?;
            record_last_attempt(&mut tx, job).await?;
            bring_back(&mut tx, [job.0], JobState::Available, now).await?;
            if let Some(run) = ended.run_id {
                take_key_of_run_again(&mut tx, run, now).await?;
                let rows = node_rows(&mut tx, run).await?;
                let nodes = rows.iter().map(NodeRow::node).collect::<Result<Vec<_>, _>>()?;
                let skipped = skipped_because_of(job, &nodes).into_iter().map(|job| job.0);
                bring_back(&mut tx, skipped, JobState::Pending, now).await?;
                sqlx::query("update run set state = 0, finished_at = null where id = ?")
                    .bind(run)
                    .execute(&mut *tx)
                    .await
                    .map_err(unavailable)?;
            }
            write_audit(&mut tx, by, "retry", job.0, now).await?;
            commit(tx).await?;
            let mut bells = Bells::default();
            bells.add(&ended.queue, job, &TraceContext::default());
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
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            let released = sqlx::query("update event set standing = ?2, reason = null where id = ?1 and standing = ?3")
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

/// Why a job that is not in the hot table cannot be cancelled.
async fn not_waiting(tx: &mut SqliteConnection, job: JobId) -> Result<LedgerError, LedgerError> {
    let ended: Option<i16> = sqlx::query_scalar("select state from history where id = ?")
        .bind(job.0)
        .fetch_optional(tx)
        .await
        .map_err(unavailable)?;
    Ok(match ended {
        None => LedgerError::NotFound("job"),
        Some(code) => LedgerError::Conflict(format!("this job has ended: it is {}", state(code)?.as_str())),
    })
}

#[derive(sqlx::FromRow)]
struct EndedJob {
    state: i16,
    queue: String,
    run_id: Option<Uuid>,
}

/// A job that may be retried.
async fn ended_job(tx: &mut SqliteConnection, job: JobId) -> Result<EndedJob, LedgerError> {
    let ended: Option<EndedJob> = sqlx::query_as("select state, queue, run_id from history where id = ?")
        .bind(job.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(unavailable)?;
    let Some(ended) = ended else {
        let waits: Option<i64> = sqlx::query_scalar("select 1 from job where id = ?")
            .bind(job.0)
            .fetch_optional(tx)
            .await
            .map_err(unavailable)?;
        return Err(match waits {
            Some(_) => LedgerError::Conflict("this job has not ended".into()),
            None => LedgerError::NotFound("job"),
        });
    };
    match state(ended.state)? {
        JobState::Discarded | JobState::Cancelled => Ok(ended),
        other => Err(LedgerError::Conflict(format!(
            "only a discarded or cancelled job can be retried: this is {}",
            other.as_str()
        ))),
    }
}

/// A job that failed let go of its key: another may hold it now.
async fn take_key_again(tx: &mut SqliteConnection, job: JobId, now: Timestamp) -> Result<(), LedgerError> {
    let key: Option<(String, String)> =
        sqlx::query_as("select key_scope, key from job_args where id = ? and key is not null")
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
async fn take_key_of_run_again(tx: &mut SqliteConnection, run: Uuid, now: Timestamp) -> Result<(), LedgerError> {
    let key: Option<(String, String)> =
        sqlx::query_as("select key_scope, key from run where id = ? and key is not null")
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
async fn record_last_attempt(tx: &mut SqliteConnection, job: JobId) -> Result<(), LedgerError> {
    sqlx::query(
        "insert into attempt (job_id, number, worker, started_at, ended_at, outcome, error)
         select id, attempt, worker, started_at, finished_at, case state when 7 then 'cancelled' else 'discarded' end,
                reason
         from history where id = ? and started_at is not null
         on conflict do nothing",
    )
    .bind(job.0)
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}

/// Moves jobs from the history to the hot table, their failures forgotten.
async fn bring_back(
    tx: &mut SqliteConnection,
    jobs: impl IntoIterator<Item = Uuid>,
    state: JobState,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let jobs = ids(jobs);
    sqlx::query(
        "insert into job (id, queue, kind, state, priority, run_at, attempt, created_at, run_id)
         select id, queue, kind, ?2, priority, ?3, attempt, ?3, run_id from history
         where id in (select unhex(value) from json_each(?1))",
    )
    .bind(&jobs)
    .bind(state.code())
    .bind(micros(now))
    .execute(&mut *tx)
    .await
    .map_err(unavailable)?;
    sqlx::query("delete from history where id in (select unhex(value) from json_each(?))")
        .bind(&jobs)
        .execute(tx)
        .await
        .map_err(unavailable)?;
    Ok(())
}

async fn write_audit(
    tx: &mut SqliteConnection,
    by: &Operator,
    verb: &str,
    subject: Uuid,
    now: Timestamp,
) -> Result<(), LedgerError> {
    sqlx::query("insert into audit (id, at, actor, verb, subject, reason) values (?, ?, ?, ?, ?, ?)")
        .bind(JobId::at(now).0)
        .bind(micros(now))
        .bind(&by.actor)
        .bind(verb)
        .bind(subject.to_string())
        .bind(&by.reason)
        .execute(tx)
        .await
        .map_err(unavailable)?;
    Ok(())
}
