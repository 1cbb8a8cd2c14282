//! Doing work again: the statements.

use async_trait::async_trait;
use schemas::{JobId, RunId};
use sqlx::SqliteConnection;

use super::super::LedgerError;
use super::super::replay::Replays;
use super::unavailable;

#[async_trait]
impl Replays for SqliteConnection {
    async fn job_stands(&mut self, job: JobId) -> Result<Option<(i16, i32)>, LedgerError> {
        sqlx::query_as("select state, attempt from every_job where id = ?1")
            .bind(job.0)
            .fetch_optional(&mut *self)
            .await
            .map_err(unavailable)
    }

    async fn run_stands(&mut self, run: RunId) -> Result<Option<i16>, LedgerError> {
        sqlx::query_scalar("select state from run where id = ?1")
            .bind(run.0)
            .fetch_optional(&mut *self)
            .await
            .map_err(unavailable)
    }
}
