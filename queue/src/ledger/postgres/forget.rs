//! Forgetting what is older than it is to be kept. Identifiers begin with their time: the oldest are first in each
//! primary key, and are found there without looking at the others.

use schemas::Timestamp;
use schemas::ids::least_id_of;
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::rows::{micros, waiting};
use super::super::{Horizons, LedgerError};
use super::announcing::forget_unannounced;
use super::{Postgres, begin_on, commit, in_time, unavailable};
use crate::forgetting::Waiting;

/// What belongs to a job beside its history.
const OF_JOBS: [&str; 6] = [
    "delete from job_args where id = any($1)",
    "delete from attempt where job_id = any($1)",
    "delete from step where job_id = any($1)",
    "delete from job_limit where job_id = any($1)",
    "delete from approval where job_id = any($1)",
    "delete from consent where job_id = any($1)",
];

impl Postgres {
    pub(super) async fn forget_older(&self, older_than: &Horizons, limit: u32) -> Result<u64, LedgerError> {
        in_time(async {
            let mut hot = self.kept().await?;
            let mut tx = begin_on(&mut hot).await?;
            let mut most = 0;
            let waiting = older_than.waiting.map_or(Uuid::max(), least_id_of);
            if let Some(before) = older_than.bodies {
                most = forget_bodies(&mut tx, before, waiting, limit).await?.max(most);
            }
            if let Some(before) = older_than.events {
                most = forget_events(&mut tx, before, waiting, limit).await?.max(most);
            }
            if let Some(before) = older_than.jobs {
                most = forget_jobs(&mut tx, before, limit).await?.max(most);
                most = forget_runs(&mut tx, before, limit).await?.max(most);
            }
            if let Some(before) = older_than.events.max(older_than.jobs) {
                most = forget_unannounced(&mut tx, before, limit).await?.max(most);
            }
            commit(tx).await?;
            hot.keep();
            Ok(most)
        })
        .await
    }

    pub(super) async fn waiting(
        &self,
        since: Option<Timestamp>,
        before: Timestamp,
        named: u32,
    ) -> Result<Waiting, LedgerError> {
        in_time(async {
            let (since, before) = (since.map_or(Uuid::nil(), least_id_of), least_id_of(before));
            let (held, quarantined): (i64, i64) = sqlx::query_as(
                "select count(*) filter (where standing = 1), count(*) filter (where standing = 2)
                 from event where id >= $1 and id < $2 and standing <> 0",
            )
            .bind(since)
            .bind(before)
            .fetch_one(&self.desk)
            .await
            .map_err(unavailable)?;
            let oldest: Vec<Uuid> = sqlx::query_scalar(
                "select id from event where id >= $1 and id < $2 and standing <> 0 order by id limit $3",
            )
            .bind(since)
            .bind(before)
            .bind(i64::from(named))
            .fetch_all(&self.desk)
            .await
            .map_err(unavailable)?;
            Ok(waiting(held, quarantined, oldest))
        })
        .await
    }
}

async fn forget_bodies(
    tx: &mut PgConnection,
    before: Timestamp,
    waiting: Uuid,
    limit: u32,
) -> Result<u64, LedgerError> {
    let done = sqlx::query(
        "delete from delivery_body where event_id = any(array(
           select b.event_id from delivery_body b
           left join lateral (select standing from event where id = b.event_id limit 1) e on true
           where b.event_id < $1 and (b.event_id < $3 or coalesce(e.standing, 0) = 0)
           order by b.event_id limit $2 for update of b skip locked))",
    )
    .bind(least_id_of(before))
    .bind(i64::from(limit))
    .bind(waiting)
    .execute(tx)
    .await;
    Ok(done.map_err(unavailable)?.rows_affected())
}

async fn forget_events(
    tx: &mut PgConnection,
    before: Timestamp,
    waiting: Uuid,
    limit: u32,
) -> Result<u64, LedgerError> {
    let gone: Vec<Uuid> = sqlx::query_scalar(
        "delete from event where id = any(array(
           select id from event where id < $1 and (standing = 0 or id < $3) order by id limit $2
           for update skip locked)) returning id",
    )
    .bind(least_id_of(before))
    .bind(i64::from(limit))
    .bind(waiting)
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    delete(tx, "delete from delivery_body where event_id = any($1)", &gone).await?;
    Ok(gone.len() as u64)
}

/// Jobs that belong to no run.
async fn forget_jobs(tx: &mut PgConnection, before: Timestamp, limit: u32) -> Result<u64, LedgerError> {
    let gone: Vec<Uuid> = sqlx::query_scalar(
        "delete from history where id = any(array(
           select id from history where id < $1 and run_id is null and finished_at < $2 order by id limit $3
           for update skip locked)) returning id",
    )
    .bind(least_id_of(before))
    .bind(micros(before))
    .bind(i64::from(limit))
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    for statement in OF_JOBS {
        delete(tx, statement, &gone).await?;
    }
    Ok(gone.len() as u64)
}

/// Runs that have ended, with their jobs.
async fn forget_runs(tx: &mut PgConnection, before: Timestamp, limit: u32) -> Result<u64, LedgerError> {
    let gone: Vec<Uuid> = sqlx::query_scalar(
        "delete from run where id = any(array(
           select id from run where id < $1 and finished_at < $2 order by id limit $3 for update skip locked))
         returning id",
    )
    .bind(least_id_of(before))
    .bind(micros(before))
    .bind(i64::from(limit))
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    let jobs: Vec<Uuid> = sqlx::query_scalar("delete from run_job where run_id = any($1) returning job_id")
        .bind(&gone)
        .fetch_all(&mut *tx)
        .await
        .map_err(unavailable)?;
    for statement in ["delete from history where id = any($1)"].into_iter().chain(OF_JOBS) {
        delete(tx, statement, &jobs).await?;
    }
    Ok(gone.len() as u64)
}

async fn delete(tx: &mut PgConnection, statement: &'static str, ids: &[Uuid]) -> Result<(), LedgerError> {
    if !ids.is_empty() {
        sqlx::query(statement).bind(ids).execute(tx).await.map_err(unavailable)?;
    }
    Ok(())
}
