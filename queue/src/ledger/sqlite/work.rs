//! Claims, heartbeats, steps and ends.

use std::borrow::Cow;
use std::collections::HashMap;

use async_trait::async_trait;
use schemas::{AttemptId, ClaimedJob, JobId, JobState, Key, Outcome, RunId, StepState, Timestamp};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sqlx::{AssertSqlSafe, SqliteConnection};
use uuid::Uuid;

use super::super::door::Aftermath;
use super::super::rows::{ClaimedRow, micros, raw};
use super::super::{BEHIND_MEMORY, Beat, Claim, Ended, Finished, Hold, LedgerError, Work, behind};
use super::door::{leave, settle};
use super::runs::{Ending, end_jobs, tell};
use super::storing::{hex, take_key};
use super::values::values;
use super::writer::SharedWrite;
use super::{Sqlite, commit, in_time, unavailable};
use crate::bell::Bells;
use crate::clock::later;
use crate::config::NoticeOfDiscard;

#[async_trait]
impl Work for Sqlite {
    async fn claim(&self, claim: &Claim, now: Timestamp) -> Result<Vec<ClaimedJob>, LedgerError> {
        self.share(&Taking { claim, now }).await
    }

    async fn heartbeat(
        &self,
        attempts: &[AttemptId],
        lease_until: Timestamp,
        _now: Timestamp,
    ) -> Result<Vec<Beat>, LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let alive: Vec<(Uuid, i32, Option<String>)> = sqlx::query_as(
                "update job set lease_until = ?2
                 from json_each(?1) beat
                 where job.id = unhex(beat.value ->> 'id') and job.attempt = beat.value ->> 'attempt' and job.state = 3
                 returning job.id, job.attempt, job.cancel",
            )
            .bind(fences(attempts.iter()))
            .bind(micros(lease_until))
            .fetch_all(turn.connection())
            .await
            .map_err(unavailable)?;
            let alive: HashMap<(Uuid, i32), Option<String>> =
                alive.into_iter().map(|(job, attempt, cancel)| ((job, attempt), cancel)).collect();
            let beat = |attempt: &AttemptId| match alive.get(&(attempt.job.0, attempt.number)) {
                None => Beat::Lost,
                Some(None) => Beat::Alive,
                Some(Some(reason)) => Beat::Cancel(reason.clone()),
            };
            Ok(attempts.iter().map(beat).collect())
        })
        .await
    }

    async fn start_step(&self, attempt: AttemptId, name: &str, now: Timestamp) -> Result<StepState, LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            fence(&mut tx, attempt).await?;
            let known: Option<(Option<i64>, Option<String>)> =
                sqlx::query_as("select finished_at, result from step where job_id = ? and name = ?")
                    .bind(attempt.job.0)
                    .bind(name)
                    .fetch_optional(&mut *tx)
                    .await
                    .map_err(unavailable)?;
            let state = match known {
                Some((Some(_), result)) => return Ok(StepState::Finished(result.map(raw).transpose()?)),
                Some((None, _)) => StepState::Unknown,
                None => StepState::Fresh,
            };
            sqlx::query(
                "insert into step (job_id, name, attempt, started_at) values (?, ?, ?, ?)
                 on conflict (job_id, name) do update set attempt = excluded.attempt, started_at = excluded.started_at",
            )
            .bind(attempt.job.0)
            .bind(name)
            .bind(attempt.number)
            .bind(micros(now))
            .execute(&mut *tx)
            .await
            .map_err(unavailable)?;
            commit(tx).await?;
            Ok(state)
        })
        .await
    }

    async fn finish_step(
        &self,
        attempt: AttemptId,
        name: &str,
        result: Option<&RawValue>,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            fence(&mut tx, attempt).await?;
            sqlx::query(
                "update step set finished_at = ?3, result = ?4 where job_id = ?1 and name = ?2 and attempt = ?5",
            )
            .bind(attempt.job.0)
            .bind(name)
            .bind(micros(now))
            .bind(result.map(RawValue::get))
            .bind(attempt.number)
            .execute(&mut *tx)
            .await
            .map_err(unavailable)?;
            sqlx::query("update job set crashes = 0 where id = ? and crashes > 0")
                .bind(attempt.job.0)
                .execute(&mut *tx)
                .await
                .map_err(unavailable)?;
            commit(tx).await
        })
        .await
    }

    async fn hold(&self, attempt: AttemptId, key: &Key, now: Timestamp) -> Result<Hold, LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            fence(&mut tx, attempt).await?;
            let owner = JobId(take_key(&mut tx, key, attempt.job.0, now).await?);
            if owner == attempt.job {
                commit(tx).await?;
                return Ok(Hold::Mine);
            }
            let place = Key { scope: behind(owner), key: attempt.job.to_string(), hold: BEHIND_MEMORY };
            take_key(&mut tx, &place, attempt.job.0, now).await?;
            commit(tx).await?;
            Ok(Hold::Behind(owner))
        })
        .await
    }

    async fn finish(&self, ended: &[Ended], now: Timestamp) -> Result<Finished, LedgerError> {
        self.share(&Ends { ended, notice: self.notice.as_ref(), now }).await
    }

    async fn outputs(&self, run: RunId) -> Result<Value, LedgerError> {
        in_time(async {
            let rows: Vec<(String, String)> = sqlx::query_as(
                "select rj.name, h.output from run_job rj join history h on h.id = rj.job_id
                 where rj.run_id = ? and h.output is not null",
            )
            .bind(run.0)
            .fetch_all(&self.readers)
            .await
            .map_err(unavailable)?;
            let outputs: Result<Map<String, Value>, _> =
                rows.into_iter().map(|(name, output)| Ok((name, serde_json::from_str(&output)?))).collect();
            outputs
                .map(Value::Object)
                .map_err(|error: serde_json::Error| LedgerError::Refused(sqlx::Error::Decode(error.into())))
        })
        .await
    }
}

struct Taking<'a> {
    claim: &'a Claim,
    now: Timestamp,
}

#[async_trait]
impl SharedWrite for Taking<'_> {
    type Answer = Vec<ClaimedJob>;

    async fn write(&self, tx: &mut SqliteConnection) -> Result<Self::Answer, LedgerError> {
        let rows: Vec<ClaimedRow> = sqlx::query_as(
            "select j.id, j.attempt, j.kind, a.args, j.queue, j.priority, j.failures, j.crashes, j.created_at,
                    a.event_id, j.run_id, a.traceparent, a.tracestate
             from job j join job_args a on a.id = j.id
             where j.queue = ?1 and j.state = 2 and j.kind in (select value from json_each(?2))
               and not exists (select 1 from pause where what = 'queue' and name = ?1)
               and j.kind not in (select name from pause where what = 'kind')
             order by j.priority, j.run_at, j.id limit ?3",
        )
        .bind(&self.claim.queue)
        .bind(json!(self.claim.kinds).to_string())
        .bind(self.claim.limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(unavailable)?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let take = format!(
            "update job set state = 3, attempt = attempt + 1, started_at = ?, lease_until = ?, worker = ?, reason = null
             where id in ({})",
            values(1, rows.len())
        );
        let mut take = sqlx::query(AssertSqlSafe(take))
            .bind(micros(self.now))
            .bind(micros(later(self.now, self.claim.lease)))
            .bind(self.claim.worker.0);
        for row in &rows {
            take = take.bind(row.id);
        }
        take.execute(tx).await.map_err(unavailable)?;
        rows.into_iter().map(|row| (row.attempt + 1, row)).map(|(attempt, row)| row.into_claimed(attempt)).collect()
    }

    /// What it read stays as it was: only the writer changes jobs, and this is the writer's turn.
    fn commits_itself(&self) -> bool {
        true
    }
}

struct Ends<'a> {
    ended: &'a [Ended],
    notice: Option<&'a NoticeOfDiscard>,
    now: Timestamp,
}

#[async_trait]
impl SharedWrite for Ends<'_> {
    type Answer = Finished;

    async fn write(&self, tx: &mut SqliteConnection) -> Result<Self::Answer, LedgerError> {
        let Self { ended, notice, now } = *self;
        let held = held_by(tx, ended).await?;
        // By the attempt, not by the job: a stale end may come in one batch with the current one.
        let is_held = |end: &&Ended| held.get(&end.attempt.job.0).is_some_and(|job| job.attempt == end.attempt.number);
        let recorded: Vec<bool> = ended.iter().map(|end| is_held(&end)).collect();
        let heeded: Vec<Cow<'_, Ended>> = ended.iter().filter(is_held).map(|end| heed(end, &held)).collect();
        let current: Vec<&Ended> = heeded.iter().map(AsRef::as_ref).collect();
        let mut after = Aftermath::default();
        put_off(tx, &current, now, &held, &mut after.bells).await?;
        let left: Vec<Uuid> = current.iter().filter_map(|end| left_its_room(end, &held)).collect();
        after.freed = leave(tx, &left).await?;
        let endings: Vec<Ending> = current.iter().filter_map(|end| ending(end)).collect();
        end_jobs(tx, &endings, &mut after, now).await?;
        tell(tx, notices(&current), &mut after, now).await?;
        after.runs.extend(endings.iter().filter_map(|ending| held.get(&ending.job).and_then(|job| job.run_id)));
        settle(tx, &mut after, notice, now).await?;
        Ok(Finished { recorded, bells: after.bells })
    }
}

/// A running job whose attempt is not stale.
#[derive(sqlx::FromRow)]
struct HeldJob {
    id: Uuid,
    attempt: i32,
    queue: String,
    run_id: Option<Uuid>,
    gated: bool,
    cancel: Option<String>,
}

/// The job, where it waits for the outside world and leaves the room that it has at its limits. What ends leaves as well,
/// and what is available again keeps it.
fn left_its_room(end: &Ended, held: &HashMap<Uuid, HeldJob>) -> Option<Uuid> {
    let job = held.get(&end.attempt.job.0).filter(|job| job.gated)?;
    matches!(end.outcome.state(), JobState::Retryable | JobState::Scheduled).then_some(job.id)
}

/// What an operator wants cancelled is not put off, though its attempt ended before a heartbeat told it.
fn heed<'a>(end: &'a Ended, held: &HashMap<Uuid, HeldJob>) -> Cow<'a, Ended> {
    let cancel = held.get(&end.attempt.job.0).and_then(|job| job.cancel.clone());
    match cancel {
        Some(reason) if !end.outcome.state().is_finished() => {
            Cow::Owned(Ended { attempt: end.attempt, outcome: Outcome::Cancelled { reason } })
        }
        _ => Cow::Borrowed(end),
    }
}

async fn held_by(tx: &mut SqliteConnection, ended: &[Ended]) -> Result<HashMap<Uuid, HeldJob>, LedgerError> {
    let held = format!(
        "select j.id, j.attempt, j.queue, j.run_id, j.gated, j.cancel
         from ({}) e cross join job j on j.id = e.column1
         where j.attempt = e.column2 and j.state = 3",
        values(2, ended.len())
    );
    let mut held = sqlx::query_as(AssertSqlSafe(held));
    for end in ended {
        held = held.bind(end.attempt.job.0).bind(end.attempt.number);
    }
    let held: Vec<HeldJob> = held.fetch_all(tx).await.map_err(unavailable)?;
    Ok(held.into_iter().map(|job| (job.id, job)).collect())
}

async fn fence(tx: &mut SqliteConnection, attempt: AttemptId) -> Result<(), LedgerError> {
    let held: Option<i64> = sqlx::query_scalar("select 1 from job where id = ? and attempt = ? and state = 3")
        .bind(attempt.job.0)
        .bind(attempt.number)
        .fetch_optional(tx)
        .await
        .map_err(unavailable)?;
    held.map(|_| ()).ok_or(LedgerError::Stale)
}

fn fences<'a>(attempts: impl Iterator<Item = &'a AttemptId>) -> String {
    let rows = attempts.map(|attempt| json!({"id": hex(attempt.job.0), "attempt": attempt.number}));
    Value::from(rows.collect::<Vec<_>>()).to_string()
}

/// Records the attempts that did not end their jobs, and lets these wait for the next one.
async fn put_off(
    tx: &mut SqliteConnection,
    ended: &[&Ended],
    now: Timestamp,
    held: &HashMap<Uuid, HeldJob>,
    bells: &mut Bells,
) -> Result<(), LedgerError> {
    for end in ended {
        let (at, failed) = match &end.outcome {
            Outcome::Retry { at, .. } => (*at, 1),
            Outcome::Snoozed { at, .. } => (*at, 0),
            Outcome::Released => (now, 0),
            _ => continue,
        };
        record_attempt(tx, end.attempt, end.outcome.as_str(), end.outcome.message(), now).await?;
        sqlx::query(
            "update job set state = ?2, run_at = ?3, failures = failures + ?4, reason = ?5, lease_until = null,
                            worker = null
             where id = ?1",
        )
        .bind(end.attempt.job.0)
        .bind(end.outcome.state().code())
        .bind(micros(at))
        .bind(failed)
        .bind(end.outcome.message())
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
        if end.outcome.state() == JobState::Available
            && let Some(job) = held.get(&end.attempt.job.0)
        {
            bells.add(&job.queue, end.attempt.job, &schemas::TraceContext::default());
        } else {
            bells.put_off();
        }
    }
    Ok(())
}

/// Writes a row for an attempt that did not end its job.
pub(super) async fn record_attempt(
    tx: &mut SqliteConnection,
    attempt: AttemptId,
    outcome: &str,
    error: Option<&str>,
    now: Timestamp,
) -> Result<(), LedgerError> {
    sqlx::query(
        "insert into attempt (job_id, number, worker, started_at, ended_at, outcome, error)
         select id, attempt, worker, coalesce(started_at, ?3), ?3, ?4, ?5 from job where id = ?1 and attempt = ?2",
    )
    .bind(attempt.job.0)
    .bind(attempt.number)
    .bind(micros(now))
    .bind(outcome)
    .bind(error)
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}

fn ending(end: &Ended) -> Option<Ending> {
    let state = end.outcome.state();
    let output = match &end.outcome {
        Outcome::Completed { output, .. } => output.as_ref().map(|output| output.get().to_owned()),
        _ => None,
    };
    let reason = end.outcome.message().map(str::to_owned);
    state.is_finished().then(|| Ending { output, ..Ending::new(end.attempt.job, state, reason) })
}

fn notices(ended: &[&Ended]) -> Vec<schemas::NewJob> {
    let notice = |end: &&Ended| match &end.outcome {
        Outcome::Completed { notice, .. } | Outcome::Discarded { notice, .. } => notice.as_deref().cloned(),
        _ => None,
    };
    ended.iter().filter_map(notice).collect()
}
