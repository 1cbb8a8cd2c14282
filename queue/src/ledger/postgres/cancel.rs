//! Ending jobs before their time: the statements.

use async_trait::async_trait;
use schemas::{JobId, JobState, RunId, Timestamp};
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::LedgerError;
use super::super::cancel::Cancels;
use super::super::door::Aftermath;
use super::super::rows::storable;
use super::desk::lock_run_of;
use super::runs::{Ending, end_jobs, lock_runs};
use super::unavailable;

#[async_trait]
impl Cancels for PgConnection {
    async fn lock_run_of(&mut self, job: JobId) -> Result<Option<Uuid>, LedgerError> {
        lock_run_of(&mut *self, job).await
    }

    async fn lock_run(&mut self, run: RunId) -> Result<Option<i16>, LedgerError> {
        lock_runs(&mut *self, &[run.0]).await?;
        sqlx::query_scalar("select state from run where id = $1")
            .bind(run.0)
            .fetch_optional(&mut *self)
            .await
            .map_err(unavailable)
    }

    async fn lock_job(&mut self, job: JobId) -> Result<Option<i16>, LedgerError> {
        sqlx::query_scalar("select state from job where id = $1 for update")
            .bind(job.0)
            .fetch_optional(&mut *self)
            .await
            .map_err(unavailable)
    }

    async fn lock_jobs_of(&mut self, run: RunId) -> Result<Vec<(Uuid, i16)>, LedgerError> {
        sqlx::query_as(
            "select id, state from job where id = any(array(select job_id from run_job where run_id = $1))
             order by id for update",
        )
        .bind(run.0)
        .fetch_all(&mut *self)
        .await
        .map_err(unavailable)
    }

    async fn ended_in(&mut self, job: JobId) -> Result<Option<i16>, LedgerError> {
        sqlx::query_scalar("select state from history where id = $1")
            .bind(job.0)
            .fetch_optional(&mut *self)
            .await
            .map_err(unavailable)
    }

    async fn ask_to_stop(&mut self, job: Uuid, reason: &str) -> Result<(), LedgerError> {
        sqlx::query("update job set cancel = $2 where id = $1")
            .bind(job)
            .bind(storable(reason))
            .execute(&mut *self)
            .await
            .map_err(unavailable)?;
        Ok(())
    }

    async fn end_as_cancelled(
        &mut self,
        jobs: &[Uuid],
        reason: &str,
        after: &mut Aftermath,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        let ending = |job: &Uuid| Ending::new(JobId(*job), JobState::Cancelled, Some(reason.to_owned()));
        end_jobs(&mut *self, &jobs.iter().map(ending).collect::<Vec<_>>(), after, now).await
    }
}
