//! Promotion, rescue, pruning.

use std::collections::BTreeSet;

use async_trait::async_trait;
use schemas::{AttemptId, JobId, JobState, Timestamp, TraceContext};
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::rows::{CRASHED, Verdict, micros, moment, verdict};
use super::super::{LedgerError, Promoted, Rescued, RescuedJob, Upkeep};
use super::runs::{Ending, advance_run, end_jobs, lock_runs, tell};
use super::{Postgres, begin, commit, in_time, unavailable, unknown};
use crate::bell::Bells;

#[async_trait]
impl Upkeep for Postgres {
    async fn time(&self) -> Result<Timestamp, LedgerError> {
        in_time(async {
            let now: i64 = sqlx::query_scalar("select (extract(epoch from clock_timestamp()) * 1000000)::bigint")
                .fetch_one(&self.hot)
                .await
                .map_err(unavailable)?;
            Ok(moment(now))
        })
        .await
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    async fn promote(&self, limit: u32, now: Timestamp) -> Result<Promoted, LedgerError> {
        in_time(async {
            let mut connection = self.hot().await?;
            let next = next_due(&mut connection).await?;
            if next.is_none_or(|next| next > micros(now)) {
                return Ok(Promoted { bells: Bells::default(), next: next.map(moment) });
            }
            let due: Vec<(Uuid, String)> = sqlx::query_as(
                "with due as materialized (
                   select id from job where state in (1, 4) and run_at <= $1 order by run_at limit $2
                   for update skip locked)
                 update job j set state = 2, run_at = $1 from due where j.id = due.id returning j.id, j.queue",
            )
            .bind(micros(now))
            .bind(i64::from(limit))
            .fetch_all(&mut *connection)
            .await
            .map_err(unknown)?;
            let mut bells = Bells::default();
            for (job, queue) in &due {
                bells.add(queue, JobId(*job), &TraceContext::default());
            }
            // A failure to say what comes next must not hide what was promoted: then the promoter looks at its usual time.
            let next = next_due(&mut connection).await.ok().flatten();
            Ok(Promoted { bells, next: next.map(moment) })
        })
        .await
    }

    async fn rescue(&self, before: Timestamp, limit: u32, now: Timestamp) -> Result<Rescued, LedgerError> {
        in_time(async {
            let candidates: Vec<(Uuid, Option<Uuid>)> = sqlx::query_as(
                "select id, run_id from job where state = 3 and lease_until < $1 order by lease_until limit $2",
            )
            .bind(micros(before))
            .bind(i64::from(limit))
            .fetch_all(&self.hot)
            .await
            .map_err(unavailable)?;
            if candidates.is_empty() {
                return Ok(Rescued::default());
            }
            let mut tx = begin(&self.hot).await?;
            let (jobs, runs): (Vec<Uuid>, Vec<Option<Uuid>>) = candidates.into_iter().unzip();
            lock_runs(&mut tx, &runs.into_iter().flatten().collect::<Vec<_>>()).await?;
            let orphans = orphans(&mut tx, &jobs, before).await?;
            let rescued = self.rescue_all(&mut tx, orphans, now).await?;
            commit(tx).await?;
            Ok(rescued)
        })
        .await
    }

    async fn prune(&self, limit: u32, now: Timestamp) -> Result<u64, LedgerError> {
        in_time(async {
            let mut connection = self.hot().await?;
            let mut pruned = 0;
            for statement in [
                "delete from held_key where (scope, key) in
                   (select scope, key from held_key where expires_at <= $1 limit $2 for update skip locked)",
                "delete from delivery_key where (source, delivery_id) in
                   (select source, delivery_id from delivery_key where expires_at <= $1 limit $2
                    for update skip locked)",
                "delete from delivery_digest where (source, digest) in
                   (select source, digest from delivery_digest where expires_at <= $1 limit $2
                    for update skip locked)",
            ] {
                let done =
                    sqlx::query(statement).bind(micros(now)).bind(i64::from(limit)).execute(&mut *connection).await;
                pruned = done.map_err(unknown)?.rows_affected().max(pruned);
            }
            Ok(pruned)
        })
        .await
    }
}

async fn next_due(connection: &mut PgConnection) -> Result<Option<i64>, LedgerError> {
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

/// Locks those of the jobs that are orphans still. What another rescuer has is left to it.
async fn orphans(tx: &mut PgConnection, jobs: &[Uuid], before: Timestamp) -> Result<Vec<Orphan>, LedgerError> {
    sqlx::query_as(
        "select id, attempt, kind, queue, crashes, cancel, run_id,
                exists (select 1 from step s where s.job_id = job.id and s.attempt = job.attempt
                                             and s.finished_at is not null) as progressed
         from job where id = any($1) and state + 0 = 3 and lease_until < $2 order by id for update skip locked",
    )
    .bind(jobs)
    .bind(micros(before))
    .fetch_all(tx)
    .await
    .map_err(unavailable)
}

impl Postgres {
    async fn rescue_all(
        &self,
        tx: &mut PgConnection,
        orphans: Vec<Orphan>,
        now: Timestamp,
    ) -> Result<Rescued, LedgerError> {
        let mut rescued = Rescued::default();
        let (mut again, mut endings, mut notices, mut runs) = (Vec::new(), Vec::new(), Vec::new(), BTreeSet::new());
        for orphan in orphans {
            let job = JobId(orphan.id);
            let state = match verdict(orphan.cancel, orphan.crashes, orphan.progressed) {
                Verdict::Again { crashes } => {
                    again.push((orphan.id, crashes));
                    rescued.bells.add(&orphan.queue, job, &TraceContext::default());
                    JobState::Available
                }
                Verdict::Cancel(reason) => {
                    endings.push(Ending::new(job, JobState::Cancelled, Some(reason)));
                    JobState::Cancelled
                }
                Verdict::Discard { crashes } => {
                    notices.extend(self.notice.as_ref().and_then(|notice| notice(job, &orphan.kind, CRASHED, now)));
                    let ending = Ending::new(job, JobState::Discarded, Some(CRASHED.to_owned()));
                    endings.push(Ending { crashes: Some(crashes), ..ending });
                    JobState::Discarded
                }
            };
            runs.extend(orphan.run_id.filter(|_| state.is_finished()));
            let attempt = AttemptId { job, number: orphan.attempt };
            rescued.jobs.push(RescuedJob { attempt, kind: orphan.kind, state });
        }
        make_available_again(tx, &again, now).await?;
        end_jobs(tx, &endings, now).await?;
        tell(tx, notices, now, &mut rescued.bells).await?;
        for run in runs {
            advance_run(tx, run, self.notice.as_ref(), now, &mut rescued.bells).await?;
        }
        Ok(rescued)
    }
}

/// Records the attempts that crashed, and lets the next ones be claimed.
async fn make_available_again(tx: &mut PgConnection, jobs: &[(Uuid, i32)], now: Timestamp) -> Result<(), LedgerError> {
    if jobs.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "with u as (select * from unnest($1::uuid[], $2::integer[]) as u(id, crashes)),
         tried as (
           insert into attempt (job_id, number, worker, started_at, ended_at, outcome, error)
           select j.id, j.attempt, j.worker, coalesce(j.started_at, $3), $3, 'crashed', 'its lease ran out'
           from u join job j on j.id = u.id)
         update job j set state = 2, run_at = $3, crashes = u.crashes, lease_until = null, worker = null
         from u where j.id = u.id",
    )
    .bind(jobs.iter().map(|(job, _)| *job).collect::<Vec<_>>())
    .bind(jobs.iter().map(|(_, crashes)| *crashes).collect::<Vec<_>>())
    .bind(micros(now))
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}
