//! Promotion, rescue, pruning.

use async_trait::async_trait;
use schemas::{AttemptId, JobId, JobState, Timestamp, TraceContext};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::super::rows::{CRASHED, Verdict, micros, moment, verdict};
use super::super::{LedgerError, Promoted, Rescued, RescuedJob, Upkeep};
use super::runs::{Ending, advance_run, end_jobs, tell};
use super::work::record_attempt;
use super::{Sqlite, commit, in_time, time, unavailable};
use crate::bell::Bells;

#[async_trait]
impl Upkeep for Sqlite {
    async fn time(&self) -> Result<Timestamp, LedgerError> {
        Ok(time())
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    async fn promote(&self, limit: u32, now: Timestamp) -> Result<Promoted, LedgerError> {
        in_time(async {
            let next: Option<i64> = next_due(&self.readers).await?;
            if next.is_none_or(|next| next > micros(now)) {
                return Ok(Promoted { bells: Bells::default(), next: next.map(moment) });
            }
            let mut turn = self.write().await;
            let due: Vec<(Uuid, String)> = sqlx::query_as(
                "update job set state = 2, run_at = ?1
                 where id in (select id from job where state in (1, 4) and run_at <= ?1 order by run_at limit ?2)
                 returning id, queue",
            )
            .bind(micros(now))
            .bind(limit)
            .fetch_all(&mut *turn.0)
            .await
            .map_err(unavailable)?;
            let mut bells = Bells::default();
            due.iter().for_each(|(job, queue)| bells.add(queue, JobId(*job), &TraceContext::default()));
            let next = next_due(&mut *turn.0).await?;
            Ok(Promoted { bells, next: next.map(moment) })
        })
        .await
    }

    async fn rescue(&self, before: Timestamp, limit: u32, now: Timestamp) -> Result<Rescued, LedgerError> {
        in_time(async {
            let orphans = orphans(&self.readers, before, limit).await?;
            if orphans.is_empty() {
                return Ok(Rescued::default());
            }
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            let mut rescued = Rescued::default();
            for orphan in orphans {
                self.rescue_one(&mut tx, orphan, before, now, &mut rescued).await?;
            }
            commit(tx).await?;
            Ok(rescued)
        })
        .await
    }

    async fn prune(&self, limit: u32, now: Timestamp) -> Result<u64, LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let mut pruned = 0;
            for statement in [
                "delete from held_key where (scope, key) in
                   (select scope, key from held_key where expires_at <= ? limit ?)",
                "delete from delivery_key where (source, delivery_id) in
                   (select source, delivery_id from delivery_key where expires_at <= ? limit ?)",
                "delete from delivery_digest where (source, digest) in
                   (select source, digest from delivery_digest where expires_at <= ? limit ?)",
            ] {
                let done = sqlx::query(statement).bind(micros(now)).bind(limit).execute(&mut *turn.0).await;
                pruned = done.map_err(unavailable)?.rows_affected().max(pruned);
            }
            Ok(pruned)
        })
        .await
    }
}

async fn next_due<'e>(connection: impl sqlx::SqliteExecutor<'e>) -> Result<Option<i64>, LedgerError> {
    sqlx::query_scalar("select min(run_at) from job where state in (1, 4)")
        .fetch_one(connection)
        .await
        .map_err(unavailable)
}

/// A running job whose lease has run out.
#[derive(sqlx::FromRow)]
struct Orphan {
    id: Uuid,
    attempt: i32,
    kind: String,
    queue: String,
    crashes: i32,
    cancel: Option<String>,
    run_id: Option<Uuid>,
    progressed: bool,
}

async fn orphans(readers: &sqlx::SqlitePool, before: Timestamp, limit: u32) -> Result<Vec<Orphan>, LedgerError> {
    sqlx::query_as(
        "select id, attempt, kind, queue, crashes, cancel, run_id,
                exists (select 1 from step s where s.job_id = job.id and s.attempt = job.attempt
                                             and s.finished_at is not null) as progressed
         from job where state = 3 and lease_until < ? order by id limit ?",
    )
    .bind(micros(before))
    .bind(limit)
    .fetch_all(readers)
    .await
    .map_err(unavailable)
}

impl Sqlite {
    async fn rescue_one(
        &self,
        tx: &mut SqliteConnection,
        orphan: Orphan,
        before: Timestamp,
        now: Timestamp,
        rescued: &mut Rescued,
    ) -> Result<(), LedgerError> {
        // It was read before the writer's turn: meanwhile it may have ended, or its heartbeat may have come.
        let still: Option<i64> =
            sqlx::query_scalar("select 1 from job where id = ? and attempt = ? and state = 3 and lease_until < ?")
                .bind(orphan.id)
                .bind(orphan.attempt)
                .bind(micros(before))
                .fetch_optional(&mut *tx)
                .await
                .map_err(unavailable)?;
        if still.is_none() {
            return Ok(());
        }
        let job = JobId(orphan.id);
        let ending = match verdict(orphan.cancel, orphan.crashes, orphan.progressed) {
            Verdict::Again { crashes } => {
                let attempt = AttemptId { job, number: orphan.attempt };
                record_attempt(tx, attempt, "crashed", Some("its lease ran out"), now).await?;
                again(tx, orphan.id, crashes, now).await?;
                rescued.bells.add(&orphan.queue, job, &TraceContext::default());
                None
            }
            Verdict::Cancel(reason) => Some(Ending::new(job, JobState::Cancelled, Some(reason))),
            Verdict::Discard { crashes } => {
                let told = self.notice.as_ref().and_then(|notice| notice(job, &orphan.kind, CRASHED, now));
                tell(tx, told.into_iter().collect(), now, &mut rescued.bells).await?;
                let ending = Ending::new(job, JobState::Discarded, Some(CRASHED.to_owned()));
                Some(Ending { crashes: Some(crashes), ..ending })
            }
        };
        let state = ending.as_ref().map_or(JobState::Available, |ending| ending.state);
        if let Some(ending) = ending {
            end_jobs(tx, &[ending], now).await?;
            if let Some(run) = orphan.run_id {
                advance_run(tx, run, self.notice.as_ref(), now, &mut rescued.bells).await?;
            }
        }
        let attempt = AttemptId { job, number: orphan.attempt };
        rescued.jobs.push(RescuedJob { attempt, kind: orphan.kind, state });
        Ok(())
    }
}

async fn again(tx: &mut SqliteConnection, job: Uuid, crashes: i32, now: Timestamp) -> Result<(), LedgerError> {
    sqlx::query("update job set state = 2, run_at = ?2, crashes = ?3, lease_until = null, worker = null where id = ?1")
        .bind(job)
        .bind(micros(now))
        .bind(crashes)
        .execute(tx)
        .await
        .map_err(unavailable)?;
    Ok(())
}
