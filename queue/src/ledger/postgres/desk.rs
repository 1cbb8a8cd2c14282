//! What operators do: each verb with its audit row, in one transaction.

use async_trait::async_trait;
use schemas::{EventId, JobId, JobState, NewJob, NewRun, Role, RunId, Standing, Timestamp};
use sqlx::{PgConnection, PgTransaction};
use uuid::Uuid;

use super::super::cancel::{cancel_job, cancel_run};
use super::super::door::{Aftermath, Asked, FOR_NEEDS, FOR_ROOM, subject};
use super::super::replay::replay_one;
use super::super::rows::{NodeRow, micros, state, storable};
use super::super::storing::Stores;
use super::super::{Desk, Enqueued, LedgerError, NewToken, Operator, Pausable, Replay};
use super::door::{settle, take_turn};
use super::retry::{bring_back, must_have_failed, record_last_attempt, take_key_again, take_key_of_run_again};
use super::runs::{Ending, end_jobs, lock_runs, node_rows};
use super::storing::{insert_jobs, insert_run};
use super::{Postgres, begin, commit, in_time, tokens, unavailable};
use crate::advance::skipped_because_of;
use crate::bell::Bells;

#[async_trait]
impl Desk for Postgres {
    async fn start_job(
        &self,
        job: &NewJob,
        by: &Operator,
        now: Timestamp,
    ) -> Result<(Enqueued<JobId>, Bells), LedgerError> {
        in_time(async {
            let mut tx = self.turn().await?;
            let mut after = Aftermath::default();
            let enqueued = insert_jobs(&mut tx, std::slice::from_ref(job), Some(&by.actor), &mut after, now).await?[0];
            if let Enqueued::New(job) = enqueued {
                tx.write_audit(by, "start", &job, now).await?;
            }
            Ok((enqueued, self.settled(tx, after, now).await?))
        })
        .await
    }

    async fn start_run(
        &self,
        run: &NewRun,
        by: &Operator,
        now: Timestamp,
    ) -> Result<(Enqueued<RunId>, Bells), LedgerError> {
        in_time(async {
            let mut tx = self.turn().await?;
            let mut after = Aftermath::default();
            let started = insert_run(&mut tx, run, &mut after, now).await?;
            if let Enqueued::New(run) = started {
                tx.write_audit(by, "start", &run, now).await?;
            }
            Ok((started, self.settled(tx, after, now).await?))
        })
        .await
    }

    async fn cancel(&self, job: JobId, by: &Operator, now: Timestamp) -> Result<(JobState, Bells), LedgerError> {
        in_time(async {
            let mut tx = self.turn().await?;
            let mut after = Aftermath::default();
            let state = cancel_job(&mut *tx, job, by, &mut after, now).await?;
            Ok((state, self.settled(tx, after, now).await?))
        })
        .await
    }

    async fn cancel_run(&self, run: RunId, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        in_time(async {
            let mut tx = self.turn().await?;
            let mut after = Aftermath::default();
            cancel_run(&mut *tx, run, by, &mut after, now).await?;
            self.settled(tx, after, now).await
        })
        .await
    }

    async fn retry(&self, job: JobId, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        in_time(async {
            let mut tx = self.turn().await?;
            let mut after = Aftermath::default();
            let run = lock_run_of(&mut tx, job).await?;
            must_have_failed(&mut tx, job).await?;
            take_key_again(&mut tx, job, now).await?;
            record_last_attempt(&mut tx, job).await?;
            bring_back(&mut tx, &[job.0], FOR_ROOM, now).await?;
            after.arrived.insert(job.0);
            if let Some(run) = run {
                take_key_of_run_again(&mut tx, run, now).await?;
                let rows = node_rows(&mut tx, run).await?;
                let nodes = rows.iter().map(NodeRow::node).collect::<Result<Vec<_>, _>>()?;
                let skipped: Vec<Uuid> = skipped_because_of(job, &nodes).into_iter().map(|job| job.0).collect();
                bring_back(&mut tx, &skipped, FOR_NEEDS, now).await?;
                sqlx::query("update run set state = 0, finished_at = null where id = $1")
                    .bind(run)
                    .execute(&mut *tx)
                    .await
                    .map_err(unavailable)?;
            }
            tx.write_audit(by, "retry", &job, now).await?;
            self.settled(tx, after, now).await
        })
        .await
    }

    async fn release(
        &self,
        event: EventId,
        jobs: &[NewJob],
        runs: &[NewRun],
        by: &Operator,
        now: Timestamp,
    ) -> Result<Bells, LedgerError> {
        in_time(async {
            let mut tx = self.turn().await?;
            let mut after = Aftermath::default();
            let released = sqlx::query("update event set standing = $2, reason = null where id = $1 and standing = $3")
                .bind(event.0)
                .bind(Standing::Accepted.code())
                .bind(Standing::Held.code())
                .execute(&mut *tx)
                .await
                .map_err(unavailable)?;
            if released.rows_affected() == 0 {
                return Err(LedgerError::Conflict("this event is not held".into()));
            }
            insert_jobs(&mut tx, jobs, Some(&by.actor), &mut after, now).await?;
            for run in runs {
                insert_run(&mut tx, run, &mut after, now).await?;
            }
            tx.write_audit(by, "release", &event, now).await?;
            self.settled(tx, after, now).await
        })
        .await
    }

    async fn replay(&self, again: &[Replay], by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        in_time(async {
            let mut tx = self.turn().await?;
            let mut after = Aftermath::default();
            for replay in again {
                replay_one(&mut *tx, replay, by, &mut after, now).await?;
            }
            self.settled(tx, after, now).await
        })
        .await
    }

    async fn approve(
        &self,
        job: JobId,
        role: Role,
        by: &Operator,
        now: Timestamp,
    ) -> Result<(JobState, Bells), LedgerError> {
        in_time(async {
            let mut tx = self.turn().await?;
            let mut after = Aftermath::default();
            let asked = asked(&mut tx, job).await?;
            let own = asked.may_decide(role, by, true)?;
            sqlx::query(
                "insert into consent (job_id, actor, at, reason, own) values ($1, $2, $3, $4, $5) on conflict do nothing",
            )
            .bind(job.0)
            .bind(storable(&by.actor))
            .bind(micros(now))
            .bind(storable(&by.reason))
            .bind(own)
            .execute(&mut *tx)
            .await
            .map_err(unavailable)?;
            let granted = sqlx::query(
                "update approval set granted_at = $2
                 where job_id = $1 and (select count(*) from consent where job_id = $1) >= needed",
            )
            .bind(job.0)
            .bind(micros(now))
            .execute(&mut *tx)
            .await
            .map_err(unavailable)?;
            if granted.rows_affected() > 0 {
                after.arrived.insert(job.0);
            }
            tx.write_audit(by, if own { "approve own" } else { "approve" }, &job, now).await?;
            settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
            let code: i16 = sqlx::query_scalar("select state from every_job where id = $1")
                .bind(job.0)
                .fetch_one(&mut *tx)
                .await
                .map_err(unavailable)?;
            commit(tx).await?;
            Ok((state(code)?, after.bells))
        })
        .await
    }

    async fn refuse(&self, job: JobId, role: Role, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        in_time(async {
            let mut tx = self.turn().await?;
            let mut after = Aftermath::default();
            asked(&mut tx, job).await?.may_decide(role, by, false)?;
            let run = lock_run_of(&mut tx, job).await?;
            let reason = format!("refused by {}: {}", by.actor, by.reason);
            end_jobs(&mut tx, &[Ending::new(job, JobState::Cancelled, Some(reason))], &mut after, now).await?;
            after.runs.extend(run);
            tx.write_audit(by, "refuse", &job, now).await?;
            self.settled(tx, after, now).await
        })
        .await
    }

    async fn pause(&self, what: &Pausable, by: &Operator, now: Timestamp) -> Result<(), LedgerError> {
        in_time(async {
            let mut tx = self.turn().await?;
            let paused = sqlx::query(
                "insert into pause (what, name, at, actor, reason) values ($1, $2, $3, $4, $5) on conflict do nothing",
            )
            .bind(what.what())
            .bind(storable(what.name()))
            .bind(micros(now))
            .bind(storable(&by.actor))
            .bind(storable(&by.reason))
            .execute(&mut *tx)
            .await
            .map_err(unavailable)?;
            if paused.rows_affected() == 0 {
                return Err(LedgerError::Conflict(format!("the {} `{}` is paused already", what.what(), what.name())));
            }
            park(&mut tx, what).await?;
            tx.write_audit(by, "pause", &subject(what), now).await?;
            commit(tx).await
        })
        .await
    }

    async fn resume(&self, what: &Pausable, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        in_time(async {
            let mut tx = self.turn().await?;
            let resumed = sqlx::query("delete from pause where what = $1 and name = $2")
                .bind(what.what())
                .bind(storable(what.name()))
                .execute(&mut *tx)
                .await
                .map_err(unavailable)?;
            if resumed.rows_affected() == 0 {
                return Err(LedgerError::Conflict(format!("the {} `{}` is not paused", what.what(), what.name())));
            }
            tx.write_audit(by, "resume", &subject(what), now).await?;
            let mut bells = Bells::default();
            match what {
                Pausable::Queue(queue) => bells.add_many(queue, available_in(&mut tx, queue).await?),
                Pausable::Kind(kind) => slipped_in(&mut tx, kind, &mut bells, now).await?,
                Pausable::Key(_) | Pausable::Schedule(_) => {}
            }
            commit(tx).await?;
            Ok(bells)
        })
        .await
    }

    async fn keep_token(&self, token: &NewToken, by: &Operator, now: Timestamp) -> Result<(), LedgerError> {
        in_time(async {
            let mut tx = begin(&self.desk).await?;
            tokens::keep(&mut tx, token, by, now).await?;
            tx.write_audit(by, "make token", &token.name, now).await?;
            commit(tx).await
        })
        .await
    }

    async fn revoke_token(&self, name: &str, by: &Operator, now: Timestamp) -> Result<(), LedgerError> {
        in_time(async {
            let mut tx = begin(&self.desk).await?;
            tokens::revoke(&mut tx, name, now).await?;
            tx.write_audit(by, "revoke token", &name, now).await?;
            commit(tx).await
        })
        .await
    }
}

impl Postgres {
    /// A transaction that has the house's turn.
    async fn turn(&self) -> Result<PgTransaction<'static>, LedgerError> {
        let mut tx = begin(&self.desk).await?;
        take_turn(&mut tx).await?;
        Ok(tx)
    }

    /// Does what follows, and commits; what is to be rung.
    async fn settled(
        &self,
        mut tx: PgTransaction<'static>,
        mut after: Aftermath,
        now: Timestamp,
    ) -> Result<Bells, LedgerError> {
        settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
        commit(tx).await?;
        Ok(after.bells)
    }
}

async fn asked(tx: &mut PgConnection, job: JobId) -> Result<Asked, LedgerError> {
    sqlx::query_as(
        "select p.role, p.own, p.requested_by, j.state, j.waits_for
         from approval p join job j on j.id = p.job_id where p.job_id = $1",
    )
    .bind(job.0)
    .fetch_optional(tx)
    .await
    .map_err(unavailable)?
    .ok_or(LedgerError::NotFound("job that waits for an approval"))
}

/// Takes back what is available of a paused kind or key.
async fn park(tx: &mut PgConnection, what: &Pausable) -> Result<(), LedgerError> {
    let whose = match what {
        Pausable::Queue(_) | Pausable::Schedule(_) => return Ok(()),
        Pausable::Kind(_) => "select id from job where state = 2 and kind = $1",
        Pausable::Key(_) => "select job_id from job_limit where standing = 2 and key = $1",
    };
    let reason = format!("the {} `{}` is paused", what.what(), what.name());
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "with parked as (
           update job set state = 0, waits_for = 1, reason = $2
           where id = any(array({whose})) and state = 2 returning id)
         update job_limit set standing = 1 where job_id = any(array(select id from parked))"
    )))
    .bind(storable(what.name()))
    .bind(storable(&reason))
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}

/// Rings for what became available while its kind was paused, such as the job of a worker that had died. Of this moment: it
/// may lie below the floors of the claims.
async fn slipped_in(tx: &mut PgConnection, kind: &str, bells: &mut Bells, now: Timestamp) -> Result<(), LedgerError> {
    let jobs: Vec<(Uuid, String)> =
        sqlx::query_as("update job set run_at = $2 where state = 2 and kind = $1 returning id, queue")
            .bind(storable(kind))
            .bind(micros(now))
            .fetch_all(tx)
            .await
            .map_err(unavailable)?;
    for (job, queue) in jobs {
        bells.add(&queue, JobId(job), &schemas::TraceContext::default());
    }
    Ok(())
}

/// How many jobs of a queue are available, and one of them.
async fn available_in(tx: &mut PgConnection, queue: &str) -> Result<Option<(u32, JobId)>, LedgerError> {
    let (count, one): (i64, Option<Uuid>) =
        sqlx::query_as("select count(*), min(id::text)::uuid from job where queue = $1 and state = 2")
            .bind(storable(queue))
            .fetch_one(tx)
            .await
            .map_err(unavailable)?;
    Ok(one.map(|one| (u32::try_from(count).unwrap_or(u32::MAX), JobId(one))))
}

/// Locks the run that a job belongs to, if it belongs to one, before the job itself.
pub(super) async fn lock_run_of(tx: &mut PgConnection, job: JobId) -> Result<Option<Uuid>, LedgerError> {
    let run: Option<Uuid> = sqlx::query_scalar(
        "select coalesce((select run_id from job where id = $1), (select run_id from history where id = $1))",
    )
    .bind(job.0)
    .fetch_one(&mut *tx)
    .await
    .map_err(unavailable)?;
    lock_runs(tx, run.as_slice()).await?;
    Ok(run)
}
