//! Promotion, rescue, pruning.

use async_trait::async_trait;
use schemas::{AttemptId, JobId, JobState, Timestamp, TraceContext};
use sqlx::SqliteConnection;
use tracing::warn;
use uuid::Uuid;

use super::super::door::{Aftermath, EXPIRED};
use super::super::rows::{CRASHED, Verdict, micros, moment, verdict};
use super::super::{Chores, DELIVERY_MEMORY, Horizons, LedgerError, Rescued, RescuedJob, Snapped, Upkeep};
use super::door::{settle, waiting_at};
use super::runs::{Ending, end_jobs, tell};
use super::storing::ids;
use super::work::record_attempt;
use super::{Sqlite, commit, in_time, time, unavailable};
use crate::bell::Bells;
use crate::clock::earlier;
use crate::forgetting::Waiting;

#[async_trait]
impl Upkeep for Sqlite {
    async fn time(&self) -> Result<Timestamp, LedgerError> {
        Ok(time())
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    async fn chores(&self, now: Timestamp) -> Result<Chores, LedgerError> {
        in_time(async {
            let (next_due, has_orphans, has_waiting): (Option<i64>, bool, bool) = sqlx::query_as(
                "select (select min(run_at) from job where state in (1, 4)),
                        exists (select 1 from job where state = 3 and lease_until < ?1),
                        exists (select 1 from job where state = 0 and waits_for = 1)
                          or exists (select 1 from approval where granted_at is null and expires_at <= ?1)",
            )
            .bind(micros(now))
            .fetch_one(&self.readers)
            .await
            .map_err(unavailable)?;
            Ok(Chores { time: time(), next_due: next_due.map(moment), has_orphans, has_waiting })
        })
        .await
    }

    async fn promote(&self, limit: u32, now: Timestamp) -> Result<Bells, LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            let due: Vec<(Uuid, String, bool)> = sqlx::query_as(
                "update job set run_at = ?1,
                                state = iif(gated or kind in (select name from pause where what = 'kind'), 0, 2),
                                waits_for = iif(gated or kind in (select name from pause where what = 'kind'), 1, 0)
                 where id in (select id from job where state in (1, 4) and run_at <= ?1 order by run_at limit ?2)
                 returning id, queue, gated",
            )
            .bind(micros(now))
            .bind(limit)
            .fetch_all(&mut *tx)
            .await
            .map_err(unavailable)?;
            let mut after = Aftermath::default();
            for (job, queue, gated) in due {
                if gated {
                    after.arrived.insert(job);
                } else {
                    after.bells.add(&queue, JobId(job), &TraceContext::default());
                }
            }
            settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
            commit(tx).await?;
            Ok(after.bells)
        })
        .await
    }

    async fn review(&self, limit: u32, now: Timestamp) -> Result<Bells, LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            let mut after = Aftermath::default();
            cancel_unapproved(&mut tx, limit, &mut after, now).await?;
            after.arrived.extend(parked(&mut tx, limit).await?);
            let keys: Vec<String> = sqlx::query_scalar("select distinct key from job_limit where standing = 1")
                .fetch_all(&mut *tx)
                .await
                .map_err(unavailable)?;
            after.arrived.extend(waiting_at(&mut tx, &keys, limit).await?);
            settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
            commit(tx).await?;
            Ok(after.bells)
        })
        .await
    }

    async fn rescue(&self, before: Timestamp, limit: u32, now: Timestamp) -> Result<Rescued, LedgerError> {
        in_time(async {
            let orphans = orphans(&self.readers, before, limit).await?;
            if orphans.is_empty() {
                return Ok(Rescued::default());
            }
            let refused = match self.rescue_together(&orphans, before, now).await {
                Err(LedgerError::Refused(error)) => error,
                rescued => return rescued,
            };
            // One that cannot be rescued must not keep back its neighbours.
            let mut rescued = Rescued::default();
            for orphan in &orphans {
                match self.rescue_together(std::slice::from_ref(orphan), before, now).await {
                    Ok(one) => rescued.add(one),
                    Err(LedgerError::Refused(error)) => warn!(job.id = %orphan.id, %error, "it cannot be rescued"),
                    Err(_) if !rescued.jobs.is_empty() => break, // These are rescued; the others are at the next turn.
                    Err(error) => return Err(error),
                }
            }
            if rescued.jobs.is_empty() { Err(LedgerError::Refused(refused)) } else { Ok(rescued) }
        })
        .await
    }

    async fn prune(&self, limit: u32, now: Timestamp) -> Result<u64, LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let mut pruned = 0;
            let long_ago = earlier(now, DELIVERY_MEMORY);
            for (statement, before) in [
                (
                    "delete from held_key where (scope, key) in
                       (select scope, key from held_key where expires_at <= ? limit ?)",
                    now,
                ),
                (
                    "delete from delivery_key where (source, delivery_id) in
                       (select source, delivery_id from delivery_key where expires_at <= ? limit ?)",
                    now,
                ),
                (
                    "delete from delivery_digest where (source, digest) in
                       (select source, digest from delivery_digest where expires_at <= ? limit ?)",
                    now,
                ),
                (
                    "delete from fired where (schedule, nominal) in
                       (select schedule, nominal from fired where fired_at <= ? limit ?)",
                    long_ago,
                ),
            ] {
                let done = sqlx::query(statement).bind(micros(before)).bind(limit).execute(turn.connection()).await;
                pruned = done.map_err(unavailable)?.rows_affected().max(pruned);
            }
            Ok(pruned)
        })
        .await
    }

    async fn forget(&self, older_than: &Horizons, limit: u32) -> Result<u64, LedgerError> {
        self.forget_older(older_than, limit).await
    }

    async fn waiting_events(
        &self,
        since: Option<Timestamp>,
        before: Timestamp,
        named: u32,
    ) -> Result<Waiting, LedgerError> {
        self.waiting(since, before, named).await
    }

    async fn snapshot(&self, since: Option<i64>) -> Result<Snapped, LedgerError> {
        self.take_snapshot(since).await
    }
}

/// Cancels jobs whose approval did not come in time.
async fn cancel_unapproved(
    tx: &mut SqliteConnection,
    limit: u32,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let late: Vec<(Uuid, Option<Uuid>)> = sqlx::query_as(
        "select j.id, j.run_id from approval p join job j on j.id = p.job_id
         where p.granted_at is null and p.expires_at <= ? and j.state = 0 and j.waits_for = 2
         order by p.expires_at limit ?",
    )
    .bind(micros(now))
    .bind(limit)
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    let ending = |(job, _): &(Uuid, _)| Ending::new(JobId(*job), JobState::Cancelled, Some(EXPIRED.into()));
    end_jobs(tx, &late.iter().map(ending).collect::<Vec<_>>(), after, now).await?;
    // Asked no more, until a retry asks again.
    sqlx::query("update approval set expires_at = null where job_id in (select unhex(value) from json_each(?))")
        .bind(ids(late.iter().map(|(job, _)| *job)))
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    after.runs.extend(late.iter().filter_map(|(_, run)| *run));
    Ok(())
}

/// Jobs that wait for the end of a pause of their kind which has ended.
async fn parked(tx: &mut SqliteConnection, limit: u32) -> Result<Vec<Uuid>, LedgerError> {
    sqlx::query_scalar(
        "select id from job where state = 0 and waits_for = 1 and not gated
           and kind not in (select name from pause where what = 'kind')
         order by id limit ?",
    )
    .bind(limit)
    .fetch_all(tx)
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
    run_id: Option<Uuid>,
    progressed: bool,
}

async fn orphans(readers: &sqlx::SqlitePool, before: Timestamp, limit: u32) -> Result<Vec<Orphan>, LedgerError> {
    sqlx::query_as(
        "select id, attempt, kind, queue, crashes, run_id,
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
    /// Rescues all of these, or none.
    async fn rescue_together(
        &self,
        orphans: &[Orphan],
        before: Timestamp,
        now: Timestamp,
    ) -> Result<Rescued, LedgerError> {
        let mut turn = self.write().await;
        let mut tx = turn.begin().await?;
        let mut rescued = Rescued::default();
        let mut after = Aftermath::default();
        for orphan in orphans {
            rescued.jobs.extend(self.rescue_one(&mut tx, orphan, before, &mut after, now).await?);
        }
        settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
        commit(tx).await?;
        rescued.bells = after.bells;
        Ok(rescued)
    }

    async fn rescue_one(
        &self,
        tx: &mut SqliteConnection,
        orphan: &Orphan,
        before: Timestamp,
        after: &mut Aftermath,
        now: Timestamp,
    ) -> Result<Option<RescuedJob>, LedgerError> {
        // It was read before the writer's turn: meanwhile it may have ended, or its heartbeat may have come, or somebody
        // may want it cancelled.
        let still: Option<Option<String>> =
            sqlx::query_scalar("select cancel from job where id = ? and attempt = ? and state = 3 and lease_until < ?")
                .bind(orphan.id)
                .bind(orphan.attempt)
                .bind(micros(before))
                .fetch_optional(&mut *tx)
                .await
                .map_err(unavailable)?;
        let Some(cancel) = still else { return Ok(None) };
        let job = JobId(orphan.id);
        let ending = match verdict(cancel, orphan.crashes, orphan.progressed) {
            Verdict::Again { crashes } => {
                let attempt = AttemptId { job, number: orphan.attempt };
                record_attempt(tx, attempt, "crashed", Some("its lease ran out"), now).await?;
                again(tx, orphan.id, crashes, now).await?;
                after.bells.add(&orphan.queue, job, &TraceContext::default());
                None
            }
            Verdict::Cancel(reason) => Some(Ending::new(job, JobState::Cancelled, Some(reason))),
            Verdict::Discard { crashes } => {
                let told = self.notice.as_ref().and_then(|notice| notice(job, &orphan.kind, CRASHED, now));
                tell(tx, told.into_iter().collect(), after, now).await?;
                let ending = Ending::new(job, JobState::Discarded, Some(CRASHED.to_owned()));
                Some(Ending { crashes: Some(crashes), ..ending })
            }
        };
        let state = ending.as_ref().map_or(JobState::Available, |ending| ending.state);
        if let Some(ending) = ending {
            end_jobs(tx, &[ending], after, now).await?;
            after.runs.extend(orphan.run_id);
        }
        let attempt = AttemptId { job, number: orphan.attempt };
        Ok(Some(RescuedJob { attempt, kind: orphan.kind.clone(), state }))
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
