//! Promotion, rescue, pruning.

use async_trait::async_trait;
use schemas::{AttemptId, JobId, JobState, Timestamp, TraceContext};
use sqlx::{Connection, PgConnection};
use tracing::warn;
use uuid::Uuid;

use super::super::door::{Aftermath, EXPIRED};
use super::super::rows::{CRASHED, Verdict, micros, moment, verdict};
use super::super::{Chores, DELIVERY_MEMORY, Horizons, LedgerError, Rescued, RescuedJob, Upkeep};
use super::door::{settle, take_turn, waiting_at};
use super::runs::{Ending, end_jobs, lock_runs, tell};
use super::{Postgres, begin, commit, in_time, unavailable, unknown};
use crate::bell::Bells;
use crate::clock::earlier;
use crate::forgetting::Waiting;

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

    async fn chores(&self, now: Timestamp) -> Result<Chores, LedgerError> {
        in_time(async {
            let mut hot = self.kept().await?;
            let asked = sqlx::query_as::<_, (bool, i64, Option<i64>, bool, bool)>(
                "select pg_is_in_recovery(), (extract(epoch from clock_timestamp()) * 1000000)::bigint,
                        (select min(run_at) from job where state in (1, 4)),
                        exists (select 1 from job where state = 3 and lease_until < $1),
                        exists (select 1 from job where state = 0 and waits_for = 1)
                          or exists (select 1 from approval where granted_at is null and expires_at <= $1)",
            )
            .bind(micros(now))
            .fetch_one(&mut *hot)
            .await;
            let (is_standby, time, next_due, has_orphans, has_waiting) = asked.map_err(unavailable)?;
            if is_standby {
                // Asked so often that it always counts as used, this connection would never be asked what it leads to.
                let what = "the server is a standby; let `queue.ledger` lead to the primary";
                return Err(LedgerError::Unavailable(sqlx::Error::Configuration(what.into())));
            }
            hot.keep();
            Ok(Chores { time: moment(time), next_due: next_due.map(moment), has_orphans, has_waiting })
        })
        .await
    }

    async fn promote(&self, limit: u32, now: Timestamp) -> Result<Bells, LedgerError> {
        in_time(async {
            let mut hot = self.kept().await?;
            let due: Vec<(Uuid, String)> = sqlx::query_as(
                "with due as materialized (
                   select id from job where state in (1, 4) and run_at <= $1 and not gated order by run_at limit $2
                   for update skip locked)
                 update job set state = case when kind in (select name from pause where what = 'kind') then 0 else 2 end,
                                waits_for = case when kind in (select name from pause where what = 'kind') then 1 else 0 end,
                                run_at = $1
                 where id = any(array(select id from due)) returning id, queue",
            )
            .bind(micros(now))
            .bind(i64::from(limit))
            .fetch_all(&mut *hot)
            .await
            .map_err(unknown)?;
            let mut bells = Bells::default();
            for (job, queue) in &due {
                bells.add(queue, JobId(*job), &TraceContext::default());
            }
            bells.merge(self.promote_gated(&mut hot, limit, now).await?);
            hot.keep();
            Ok(bells)
        })
        .await
    }

    async fn review(&self, limit: u32, now: Timestamp) -> Result<Bells, LedgerError> {
        in_time(async {
            let mut tx = begin(&self.hot).await?;
            take_turn(&mut tx).await?;
            let mut after = Aftermath::default();
            cancel_unapproved(&mut tx, limit, &mut after, now).await?;
            after.arrived.extend(parked(&mut tx, limit).await?);
            let keys: Vec<String> = sqlx::query_scalar("select distinct key from job_limit where standing = 1")
                .fetch_all(&mut *tx)
                .await
                .map_err(unavailable)?;
            after.arrived.extend(waiting_at(&mut tx, &keys, limit).await?);
            settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
            tx.commit().await.map_err(unknown)?;
            Ok(after.bells)
        })
        .await
    }

    async fn rescue(&self, before: Timestamp, limit: u32, now: Timestamp) -> Result<Rescued, LedgerError> {
        in_time(async {
            let mut hot = self.kept().await?;
            let candidates: Vec<(Uuid, Option<Uuid>)> = sqlx::query_as(
                "select id, run_id from job where state = 3 and lease_until < $1 order by lease_until limit $2",
            )
            .bind(micros(before))
            .bind(i64::from(limit))
            .fetch_all(&mut *hot)
            .await
            .map_err(unavailable)?;
            hot.keep();
            if candidates.is_empty() {
                return Ok(Rescued::default());
            }
            let refused = match self.rescue_together(&candidates, before, now).await {
                Err(LedgerError::Refused(error)) => error,
                rescued => return rescued,
            };
            // One that cannot be rescued must not keep back its neighbours.
            let mut rescued = Rescued::default();
            for candidate in &candidates {
                match self.rescue_together(std::slice::from_ref(candidate), before, now).await {
                    Ok(one) => rescued.add(one),
                    Err(LedgerError::Refused(error)) => warn!(job.id = %candidate.0, %error, "it cannot be rescued"),
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
            let mut hot = self.kept().await?;
            let mut pruned = 0;
            let long_ago = earlier(now, DELIVERY_MEMORY);
            for (statement, before) in [
                (
                    "delete from held_key where ctid = any(array(
                       select ctid from held_key where expires_at <= $1 limit $2 for update skip locked))",
                    now,
                ),
                (
                    "delete from delivery_key where ctid = any(array(
                       select ctid from delivery_key where expires_at <= $1 limit $2 for update skip locked))",
                    now,
                ),
                (
                    "delete from delivery_digest where ctid = any(array(
                       select ctid from delivery_digest where expires_at <= $1 limit $2 for update skip locked))",
                    now,
                ),
                (
                    "delete from fired where ctid = any(array(
                       select ctid from fired where fired_at <= $1 limit $2 for update skip locked))",
                    long_ago,
                ),
            ] {
                let done = sqlx::query(statement).bind(micros(before)).bind(i64::from(limit)).execute(&mut *hot).await;
                pruned = done.map_err(unknown)?.rows_affected().max(pruned);
            }
            hot.keep();
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
}

/// Cancels jobs whose approval did not come in time.
async fn cancel_unapproved(
    tx: &mut PgConnection,
    limit: u32,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let late: Vec<(Uuid, Option<Uuid>)> = sqlx::query_as(
        "select j.id, j.run_id from approval p
         cross join lateral (select * from job where id = p.job_id limit 1) j
         where p.granted_at is null and p.expires_at <= $1 and j.state = 0 and j.waits_for = 2
         order by p.expires_at limit $2",
    )
    .bind(micros(now))
    .bind(i64::from(limit))
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    let runs: Vec<Uuid> = late.iter().filter_map(|(_, run)| *run).collect();
    lock_runs(tx, &runs).await?;
    let ending = |(job, _): &(Uuid, _)| Ending::new(JobId(*job), JobState::Cancelled, Some(EXPIRED.into()));
    end_jobs(tx, &late.iter().map(ending).collect::<Vec<_>>(), after, now).await?;
    // Asked no more, until a retry asks again.
    sqlx::query("update approval set expires_at = null where granted_at is null and expires_at <= $1")
        .bind(micros(now))
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    after.runs.extend(runs);
    Ok(())
}

/// Jobs that wait for the end of a pause of their kind which has ended.
async fn parked(tx: &mut PgConnection, limit: u32) -> Result<Vec<Uuid>, LedgerError> {
    sqlx::query_scalar(
        "select id from job where state = 0 and waits_for = 1 and not gated
           and kind not in (select name from pause where what = 'kind')
         order by id limit $1",
    )
    .bind(i64::from(limit))
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
    /// Has those come to the door whose time has come and who have limits or approvals.
    async fn promote_gated(
        &self,
        connection: &mut PgConnection,
        limit: u32,
        now: Timestamp,
    ) -> Result<Bells, LedgerError> {
        let due: Vec<Uuid> = sqlx::query_scalar(
            "select id from job where state in (1, 4) and gated and run_at <= $1 order by run_at limit $2",
        )
        .bind(micros(now))
        .bind(i64::from(limit))
        .fetch_all(&mut *connection)
        .await
        .map_err(unavailable)?;
        if due.is_empty() {
            return Ok(Bells::default());
        }
        let mut tx = connection.begin().await.map_err(unavailable)?;
        take_turn(&mut tx).await?;
        let arrived: Vec<Uuid> = sqlx::query_scalar(
            "update job set state = 0, waits_for = 1 where id = any($1) and state in (1, 4) and run_at <= $2
             returning id",
        )
        .bind(&due)
        .bind(micros(now))
        .fetch_all(&mut *tx)
        .await
        .map_err(unavailable)?;
        let mut after = Aftermath { arrived: arrived.into_iter().collect(), ..Aftermath::default() };
        settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
        tx.commit().await.map_err(unknown)?;
        Ok(after.bells)
    }

    /// Rescues all of these, or none.
    async fn rescue_together(
        &self,
        candidates: &[(Uuid, Option<Uuid>)],
        before: Timestamp,
        now: Timestamp,
    ) -> Result<Rescued, LedgerError> {
        let mut tx = begin(&self.hot).await?;
        take_turn(&mut tx).await?;
        let (jobs, runs): (Vec<Uuid>, Vec<Option<Uuid>>) = candidates.iter().copied().unzip();
        lock_runs(&mut tx, &runs.into_iter().flatten().collect::<Vec<_>>()).await?;
        let orphans = orphans(&mut tx, &jobs, before).await?;
        let rescued = self.rescue_all(&mut tx, orphans, now).await?;
        commit(tx).await?;
        Ok(rescued)
    }

    async fn rescue_all(
        &self,
        tx: &mut PgConnection,
        orphans: Vec<Orphan>,
        now: Timestamp,
    ) -> Result<Rescued, LedgerError> {
        let mut rescued = Rescued::default();
        let mut after = Aftermath::default();
        let (mut again, mut endings, mut notices) = (Vec::new(), Vec::new(), Vec::new());
        for orphan in orphans {
            let job = JobId(orphan.id);
            let state = match verdict(orphan.cancel, orphan.crashes, orphan.progressed) {
                Verdict::Again { crashes } => {
                    again.push((orphan.id, crashes));
                    after.bells.add(&orphan.queue, job, &TraceContext::default());
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
            after.runs.extend(orphan.run_id.filter(|_| state.is_finished()));
            let attempt = AttemptId { job, number: orphan.attempt };
            rescued.jobs.push(RescuedJob { attempt, kind: orphan.kind, state });
        }
        make_available_again(tx, &again, now).await?;
        end_jobs(tx, &endings, &mut after, now).await?;
        tell(tx, notices, &mut after, now).await?;
        settle(tx, &mut after, self.notice.as_ref(), now).await?;
        rescued.bells = after.bells;
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
           from u cross join lateral (select * from job where id = u.id limit 1) j)
         update job j set state = 2, run_at = $3, crashes = u.crashes, lease_until = null, worker = null
         from u where j.id = any($1) and j.id = u.id",
    )
    .bind(jobs.iter().map(|(job, _)| *job).collect::<Vec<_>>())
    .bind(jobs.iter().map(|(_, crashes)| *crashes).collect::<Vec<_>>())
    .bind(micros(now))
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}
