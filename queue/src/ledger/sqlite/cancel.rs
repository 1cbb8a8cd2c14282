//! Ending jobs before their time, for operators and for schedules that want to.

use schemas::{JobId, JobState, RunId, Timestamp, WorkId};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::super::door::Aftermath;
use super::super::rows::state;
use super::super::{LedgerError, Operator};
use super::desk::{run_of, write_audit};
use super::runs::{Ending, end_jobs};
use super::unavailable;

/// Ends a job or a run, with its audit row.
pub(super) async fn cancel(
    tx: &mut SqliteConnection,
    work: WorkId,
    by: &Operator,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    match work {
        WorkId::Job(job) => cancel_job(tx, job, by, after, now).await.map(drop),
        WorkId::Run(run) => cancel_run(tx, run, by, after, now).await,
    }
}

/// Ends a job: at once where it waits, through its next heartbeat where it runs. The state it is in now.
pub(super) async fn cancel_job(
    tx: &mut SqliteConnection,
    job: JobId,
    by: &Operator,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<JobState, LedgerError> {
    let run = run_of(tx, job).await?;
    let found: Option<i16> = sqlx::query_scalar("select state from job where id = ?1")
        .bind(job.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(unavailable)?;
    let Some(code) = found else { return Err(not_waiting(tx, job).await?) };
    let now_in = end_or_ask(tx, &[(job.0, code)], by, after, now).await?;
    if now_in == JobState::Cancelled {
        after.runs.extend(run);
    }
    write_audit(tx, by, "cancel", &job, now).await?;
    Ok(now_in)
}

/// Ends all jobs of a run that have not ended.
pub(super) async fn cancel_run(
    tx: &mut SqliteConnection,
    run: RunId,
    by: &Operator,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let found: Option<i16> = sqlx::query_scalar("select state from run where id = ?1")
        .bind(run.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(unavailable)?;
    let state = found.ok_or(LedgerError::NotFound("run"))?;
    let jobs: Vec<(Uuid, i16)> = sqlx::query_as(
        "select id, state from job where id in (select job_id from run_job where run_id = ?1) order by id",
    )
    .bind(run.0)
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    if jobs.is_empty() {
        return Err(super::super::firing::has_ended(state));
    }
    end_or_ask(tx, &jobs, by, after, now).await?;
    after.runs.insert(run.0);
    write_audit(tx, by, "cancel", &run, now).await
}

/// Ends jobs: those that run are asked to. The state that the last of them is in.
async fn end_or_ask(
    tx: &mut SqliteConnection,
    jobs: &[(Uuid, i16)],
    by: &Operator,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<JobState, LedgerError> {
    let reason = format!("cancelled by {}: {}", by.actor, by.reason);
    let mut now_in = JobState::Cancelled;
    let mut endings = Vec::with_capacity(jobs.len());
    for (job, code) in jobs {
        if state(*code)? == JobState::Running {
            now_in = JobState::Running;
            sqlx::query("update job set cancel = ?2 where id = ?1")
                .bind(job)
                .bind(&reason)
                .execute(&mut *tx)
                .await
                .map_err(unavailable)?;
        } else {
            endings.push(Ending::new(JobId(*job), JobState::Cancelled, Some(reason.clone())));
        }
    }
    end_jobs(tx, &endings, after, now).await?;
    Ok(now_in)
}

/// Why a job that is not in the hot table cannot be cancelled.
async fn not_waiting(tx: &mut SqliteConnection, job: JobId) -> Result<LedgerError, LedgerError> {
    let ended: Option<i16> = sqlx::query_scalar("select state from history where id = ?1")
        .bind(job.0)
        .fetch_optional(tx)
        .await
        .map_err(unavailable)?;
    Ok(match ended {
        None => LedgerError::NotFound("job"),
        Some(code) => LedgerError::Conflict(format!("this job has ended: it is {}", state(code)?.as_str())),
    })
}
