//! What readers see.

use async_trait::async_trait;
use schemas::api::{EventView, JobView, QueueView, RunView};
use schemas::{EventId, JobId, JobState, RunId};
use uuid::Uuid;

use super::super::rows::{EventRow, JobRow, RunJobRow, RunRow, by_event, by_run, moment, queue_views};
use super::super::{AuditRecord, Books, JobFilter, LedgerError, StoredBody};
use super::{Postgres, in_time, unavailable};

#[async_trait]
impl Books for Postgres {
    async fn event(&self, id: EventId) -> Result<Option<EventView>, LedgerError> {
        in_time(async {
            let row: Option<EventRow> = sqlx::query_as("select * from event where id = $1")
                .bind(id.0)
                .fetch_optional(&self.desk)
                .await
                .map_err(unavailable)?;
            let Some(row) = row else { return Ok(None) };
            Ok(self.with_work(vec![row]).await?.pop())
        })
        .await
    }

    async fn body(&self, id: EventId) -> Result<Option<StoredBody>, LedgerError> {
        in_time(async {
            let row: Option<(Vec<u8>, Vec<u8>, String, String)> =
                sqlx::query_as("select digest, bytes, content_type, headers from delivery_body where event_id = $1")
                    .bind(id.0)
                    .fetch_optional(&self.desk)
                    .await
                    .map_err(unavailable)?;
            Ok(row.map(|(digest, compressed, content_type, headers)| StoredBody {
                digest: digest.try_into().unwrap_or_default(),
                compressed,
                content_type,
                headers,
            }))
        })
        .await
    }

    async fn events(&self, limit: u32) -> Result<Vec<EventView>, LedgerError> {
        in_time(async {
            let rows = sqlx::query_as("select * from event order by id desc limit $1")
                .bind(i64::from(limit))
                .fetch_all(&self.desk)
                .await
                .map_err(unavailable)?;
            self.with_work(rows).await
        })
        .await
    }

    async fn job(&self, id: JobId) -> Result<Option<JobView>, LedgerError> {
        in_time(async {
            let row: Option<JobRow> = sqlx::query_as("select * from every_job where id = $1")
                .bind(id.0)
                .fetch_optional(&self.desk)
                .await
                .map_err(unavailable)?;
            let Some(row) = row else { return Ok(None) };
            let attempts = sqlx::query_as("select * from attempt where job_id = $1 order by number")
                .bind(id.0)
                .fetch_all(&self.desk)
                .await
                .map_err(unavailable)?;
            let steps = sqlx::query_as("select * from step where job_id = $1 order by started_at, name")
                .bind(id.0)
                .fetch_all(&self.desk)
                .await
                .map_err(unavailable)?;
            row.into_view(attempts, steps).map(Some)
        })
        .await
    }

    async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, LedgerError> {
        in_time(async {
            let rows: Vec<JobRow> = sqlx::query_as(
                "select * from every_job where ($1::smallint is null or state = $1) and ($2::text is null or kind = $2)
                 order by id desc limit $3",
            )
            .bind(filter.state.map(JobState::code))
            .bind(&filter.kind)
            .bind(i64::from(filter.limit))
            .fetch_all(&self.desk)
            .await
            .map_err(unavailable)?;
            rows.into_iter().map(|row| row.into_view(Vec::new(), Vec::new())).collect()
        })
        .await
    }

    async fn run(&self, id: RunId) -> Result<Option<RunView>, LedgerError> {
        in_time(async {
            let row: Option<RunRow> = sqlx::query_as("select * from run where id = $1")
                .bind(id.0)
                .fetch_optional(&self.desk)
                .await
                .map_err(unavailable)?;
            Ok(self.with_jobs(row.into_iter().collect()).await?.pop())
        })
        .await
    }

    async fn runs(&self, limit: u32) -> Result<Vec<RunView>, LedgerError> {
        in_time(async {
            let rows = sqlx::query_as("select * from run order by id desc limit $1")
                .bind(i64::from(limit))
                .fetch_all(&self.desk)
                .await
                .map_err(unavailable)?;
            self.with_jobs(rows).await
        })
        .await
    }

    async fn queues(&self) -> Result<Vec<QueueView>, LedgerError> {
        in_time(async {
            let rows: Vec<(String, i16, i64, i64)> = sqlx::query_as(
                "select queue, state, count(*), min(run_at) from job group by queue, state order by queue, state",
            )
            .fetch_all(&self.desk)
            .await
            .map_err(unavailable)?;
            queue_views(rows)
        })
        .await
    }

    async fn audit(&self, limit: u32) -> Result<Vec<AuditRecord>, LedgerError> {
        in_time(async {
            let rows: Vec<(i64, String, String, String, String)> =
                sqlx::query_as("select at, actor, verb, subject, reason from audit order by id desc limit $1")
                    .bind(i64::from(limit))
                    .fetch_all(&self.desk)
                    .await
                    .map_err(unavailable)?;
            let record =
                |(at, actor, verb, subject, reason)| AuditRecord { at: moment(at), actor, verb, subject, reason };
            Ok(rows.into_iter().map(record).collect())
        })
        .await
    }
}

impl Postgres {
    /// Adds the jobs and runs that were made for events.
    async fn with_work(&self, rows: Vec<EventRow>) -> Result<Vec<EventView>, LedgerError> {
        let events: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let jobs: Vec<(Uuid, Uuid)> =
            sqlx::query_as("select event_id, id from job_args where event_id = any($1) order by id")
                .bind(&events)
                .fetch_all(&self.desk)
                .await
                .map_err(unavailable)?;
        let runs: Vec<(Uuid, Uuid)> =
            sqlx::query_as("select event_id, id from run where event_id = any($1) order by id")
                .bind(&events)
                .fetch_all(&self.desk)
                .await
                .map_err(unavailable)?;
        let (mut jobs, mut runs) = (by_event(jobs), by_event(runs));
        let view = |row: EventRow| {
            let id = row.id;
            row.into_view(jobs.remove(&id).unwrap_or_default(), runs.remove(&id).unwrap_or_default())
        };
        rows.into_iter().map(view).collect()
    }

    /// Adds the jobs of runs.
    async fn with_jobs(&self, rows: Vec<RunRow>) -> Result<Vec<RunView>, LedgerError> {
        let jobs: Vec<RunJobRow> = sqlx::query_as(
            "select rj.run_id, rj.name, rj.job_id, rj.needs, e.kind, e.state, e.reason, e.output, e.started_at,
                    e.finished_at
             from run_job rj join every_job e on e.id = rj.job_id
             where rj.run_id = any($1) order by rj.run_id, rj.position",
        )
        .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
        .fetch_all(&self.desk)
        .await
        .map_err(unavailable)?;
        let mut jobs = by_run(jobs);
        rows.into_iter()
            .map(|row| (row.id, row))
            .map(|(id, row)| row.into_view(jobs.remove(&id).unwrap_or_default()))
            .collect()
    }
}
