//! What readers see.

use std::collections::BTreeSet;

use async_trait::async_trait;
use schemas::api::{
    ApprovalView, EventView, FiringView, JobView, PauseView, QueueView, RunView, ScheduledView, SourceView, TokenView,
};
use schemas::{EventId, JobId, JobState, RunId, Timestamp};
use uuid::Uuid;

use super::super::door::{ApprovalRow, ConsentRow, LimitRow, with_consents};
use super::super::firing::FiringRow;
use super::super::rows::{
    EventRow, JobRow, RunJobRow, RunRow, TokenRow, by_event, by_run, micros, moment, queue_views, storable,
};
use super::super::silence::SourceRow;
use super::super::{AuditRecord, Books, HeldKey, JobFilter, LedgerError, StoredBody};
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

    async fn known(&self, source: &str, delivery_ids: &[String]) -> Result<BTreeSet<String>, LedgerError> {
        in_time(async {
            let known: Vec<String> = sqlx::query_scalar(
                "select u.id from unnest($2::text[]) as u(id)
                 cross join lateral (select 1 from delivery_key where source = $1 and delivery_id = u.id limit 1) k",
            )
            .bind(storable(source))
            .bind(delivery_ids.iter().map(|id| storable(id)).collect::<Vec<_>>())
            .fetch_all(&self.desk)
            .await
            .map_err(unavailable)?;
            Ok(known.into_iter().collect())
        })
        .await
    }

    async fn source(&self, name: &str) -> Result<Option<SourceView>, LedgerError> {
        in_time(async {
            let row: Option<SourceRow> = sqlx::query_as("select * from source where name = $1")
                .bind(storable(name))
                .fetch_optional(&self.desk)
                .await
                .map_err(unavailable)?;
            Ok(row.map(SourceRow::into_view))
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
            let mut view = row.into_view(attempts, steps)?;
            let limits: Vec<LimitRow> = sqlx::query_as(
                "select key, at_once, starts, period, standing from job_limit where job_id = $1 order by key",
            )
            .bind(id.0)
            .fetch_all(&self.desk)
            .await
            .map_err(unavailable)?;
            view.limits = limits.into_iter().map(LimitRow::into_view).collect();
            let approval = sqlx::query_as(APPROVAL_OF).bind(id.0).fetch_all(&self.desk).await.map_err(unavailable)?;
            view.approval = self.with_consents(approval).await?.pop();
            let schedule: Option<(String, i64)> =
                sqlx::query_as("select schedule, nominal from fired where job_id = $1 order by nominal limit 1")
                    .bind(id.0)
                    .fetch_optional(&self.desk)
                    .await
                    .map_err(unavailable)?;
            view.schedule = schedule.map(|(name, nominal)| ScheduledView { name, nominal: moment(nominal) });
            Ok(Some(view))
        })
        .await
    }

    async fn held(&self, scope: &str, limit: u32, now: Timestamp) -> Result<Vec<HeldKey>, LedgerError> {
        in_time(async {
            let rows: Vec<(String, Uuid, bool)> = sqlx::query_as(
                // By the primary key: what expires is in an index too, of all scopes.
                "select k.key, k.owner, j.id is not null
                 from (select key, owner from held_key where scope = $1 and expires_at + 0 > $2
                       order by scope, key limit $3) k
                 left join lateral (select id from job where id = k.owner limit 1) j on true
                 order by k.key",
            )
            .bind(scope)
            .bind(micros(now))
            .bind(i64::from(limit))
            .fetch_all(&self.hot)
            .await
            .map_err(unavailable)?;
            let held = |(key, owner, under_way)| HeldKey { key, owner: JobId(owner), under_way };
            Ok(rows.into_iter().map(held).collect())
        })
        .await
    }

    async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, LedgerError> {
        in_time(async {
            let rows: Vec<JobRow> = sqlx::query_as(
                "select * from every_job
                 where ($1::smallint is null or state = $1) and ($2::text is null or kind = $2)
                   and ($3::text is null or queue = $3) and ($4::bigint is null or created_at >= $4)
                   and ($5::bigint is null or created_at < $5) and ($6::uuid is null or id < $6)
                 order by id desc limit $7",
            )
            .bind(filter.state.map(JobState::code))
            .bind(&filter.kind)
            .bind(&filter.queue)
            .bind(filter.since.map(micros))
            .bind(filter.until.map(micros))
            .bind(filter.before.map(|job| job.0))
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

    async fn approvals(&self, limit: u32) -> Result<Vec<ApprovalView>, LedgerError> {
        in_time(async {
            let rows = sqlx::query_as(APPROVALS).bind(i64::from(limit)).fetch_all(&self.desk).await;
            self.with_consents(rows.map_err(unavailable)?).await
        })
        .await
    }

    async fn pauses(&self) -> Result<Vec<PauseView>, LedgerError> {
        in_time(async {
            let rows: Vec<(String, String, i64, String, String)> =
                sqlx::query_as("select what, name, at, actor, reason from pause order by what, name")
                    .fetch_all(&self.desk)
                    .await
                    .map_err(unavailable)?;
            let view = |(what, name, at, actor, reason)| PauseView { what, name, at: moment(at), actor, reason };
            Ok(rows.into_iter().map(view).collect())
        })
        .await
    }

    async fn firings(&self, schedule: &str, limit: u32) -> Result<Vec<FiringView>, LedgerError> {
        in_time(async {
            let rows: Vec<FiringRow> = sqlx::query_as(
                "select f.*, (select state from every_job where id = f.job_id) as job_state,
                        (select state from run where id = f.run_id) as run_state
                 from fired f where schedule = $1 order by nominal desc limit $2",
            )
            .bind(storable(schedule))
            .bind(i64::from(limit))
            .fetch_all(&self.desk)
            .await
            .map_err(unavailable)?;
            rows.into_iter().map(FiringRow::into_view).collect()
        })
        .await
    }

    async fn tokens(&self) -> Result<Vec<TokenView>, LedgerError> {
        in_time(async {
            let rows: Vec<TokenRow> =
                sqlx::query_as("select * from token order by name").fetch_all(&self.desk).await.map_err(unavailable)?;
            rows.into_iter().map(TokenRow::into_view).collect()
        })
        .await
    }

    async fn token(&self, hash: &[u8; 32], now: Timestamp) -> Result<Option<TokenView>, LedgerError> {
        in_time(async {
            let row: Option<TokenRow> = sqlx::query_as(
                "select * from token where hash = $1 and revoked_at is null and (expires_at is null or expires_at > $2)",
            )
            .bind(&hash[..])
            .bind(micros(now))
            .fetch_optional(&self.desk)
            .await
            .map_err(unavailable)?;
            row.map(TokenRow::into_view).transpose()
        })
        .await
    }

    async fn audit(&self, limit: u32) -> Result<Vec<AuditRecord>, LedgerError> {
        in_time(async {
            let rows: Vec<(i64, String, String, String, String)> =
                sqlx::query_as("select at, actor, verb, subject, reason from audit order by at desc, id desc limit $1")
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

const APPROVAL_OF: &str = "
    select p.*, e.kind, e.run_id, e.args from approval p join every_job e on e.id = p.job_id where p.job_id = $1";

const APPROVALS: &str = "
    select p.*, j.kind, j.run_id, a.args
    from approval p join job j on j.id = p.job_id join job_args a on a.id = p.job_id
    where p.granted_at is null and j.state = 0 and j.waits_for = 2 order by p.requested_at, p.job_id limit $1";

impl Postgres {
    /// Adds who has consented.
    async fn with_consents(&self, rows: Vec<ApprovalRow>) -> Result<Vec<ApprovalView>, LedgerError> {
        let consents: Vec<ConsentRow> =
            sqlx::query_as("select * from consent where job_id = any($1) order by job_id, at, actor")
                .bind(rows.iter().map(|row| row.job_id).collect::<Vec<_>>())
                .fetch_all(&self.desk)
                .await
                .map_err(unavailable)?;
        with_consents(rows, consents)
    }

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
