//! A failed job comes back: same id, next attempt, its key taken again.

use schemas::{JobId, JobState, Key, Timestamp};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::super::LedgerError;
use super::super::rows::{KEY_OF_RETRY, micros, state};
use super::storing::{ids, take_key};
use super::unavailable;

/// Refuses a job that may not be retried.
pub(super) async fn must_have_failed(tx: &mut SqliteConnection, job: JobId) -> Result<(), LedgerError> {
    let ended: Option<i16> = sqlx::query_scalar("select state from history where id = ?1")
        .bind(job.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(unavailable)?;
    let Some(code) = ended else {
        let waits: bool = sqlx::query_scalar("select exists (select 1 from job where id = ?1)")
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
        JobState::Discarded | JobState::Cancelled => Ok(()),
        other => Err(LedgerError::Conflict(format!(
            "only a discarded or cancelled job can be retried: this is {}",
            other.as_str()
        ))),
    }
}

/// A job that failed let go of its key: another may hold it now.
pub(super) async fn take_key_again(tx: &mut SqliteConnection, job: JobId, now: Timestamp) -> Result<(), LedgerError> {
    let key: Option<(String, String)> =
        sqlx::query_as("select key_scope, key from job_args where id = ?1 and key is not null")
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
pub(super) async fn take_key_of_run_again(
    tx: &mut SqliteConnection,
    run: Uuid,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let key: Option<(String, String)> =
        sqlx::query_as("select key_scope, key from run where id = ?1 and key is not null")
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
pub(super) async fn record_last_attempt(tx: &mut SqliteConnection, job: JobId) -> Result<(), LedgerError> {
    sqlx::query(
        "insert into attempt (job_id, number, worker, started_at, ended_at, outcome, error)
         select id, attempt, worker, started_at, finished_at, case state when 7 then 'cancelled' else 'discarded' end,
                reason
         from history where id = ?1 and started_at is not null
         on conflict do nothing",
    )
    .bind(job.0)
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}

/// Moves jobs from the history to the hot table, their failures forgotten; what they wait for now is given. A consent that
/// was not given is asked for again.
pub(super) async fn bring_back(
    tx: &mut SqliteConnection,
    jobs: &[Uuid],
    waits_for: i16,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let jobs = ids(jobs.iter().copied());
    sqlx::query(
        "insert into job (id, queue, kind, state, priority, run_at, attempt, created_at, run_id, waits_for, gated)
         select id, queue, kind, 0, priority, ?3, attempt, ?3, run_id, ?2,
                exists (select 1 from job_limit l where l.job_id = history.id)
                or exists (select 1 from approval p where p.job_id = history.id)
         from history where id in (select unhex(value) from json_each(?1))",
    )
    .bind(&jobs)
    .bind(waits_for)
    .bind(micros(now))
    .execute(&mut *tx)
    .await
    .map_err(unavailable)?;
    for statement in [
        "delete from history where id in (select unhex(value) from json_each(?))",
        "update approval set requested_at = null, expires_at = null
         where granted_at is null and job_id in (select unhex(value) from json_each(?))",
    ] {
        sqlx::query(statement).bind(&jobs).execute(&mut *tx).await.map_err(unavailable)?;
    }
    Ok(())
}
