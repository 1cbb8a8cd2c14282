//! What the end of a job means for its run, and how jobs move between the hot table and the history.

use schemas::{JobId, JobState, NewJob, RunState, Timestamp};
use serde_json::Value;
use sqlx::{AssertSqlSafe, SqliteConnection};
use uuid::Uuid;

use super::super::LedgerError;
use super::super::door::Aftermath;
use super::super::rows::{NodeRow, micros};
use super::door::leave;
use super::storing::insert_jobs;
use super::unavailable;
use super::values::{MOST_ROWS, values};
use crate::advance::{Decision, Node, advance, standing};
use crate::config::NoticeOfDiscard;

/// One job that ends, as its history row has it.
pub(super) struct Ending {
    pub(super) job: Uuid,
    pub(super) state: JobState,
    pub(super) reason: Option<String>,
    pub(super) output: Option<String>,
    pub(super) for_failure: bool,
    pub(super) crashes: Option<i32>,
}

impl Ending {
    pub(super) fn new(job: JobId, state: JobState, reason: Option<String>) -> Self {
        Self { job: job.0, state, reason, output: None, for_failure: false, crashes: None }
    }
}

/// Moves jobs from the hot table to the history. What did not succeed lets go of its key; where they had room, there is
/// room now.
pub(super) async fn end_jobs(
    tx: &mut SqliteConnection,
    endings: &[Ending],
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    for some in endings.chunks(MOST_ROWS) {
        insert_history_rows(tx, some, now).await?;
        let gated = delete_job_rows(tx, some).await?;
        after.freed.append(&mut leave(tx, &gated).await?);
    }
    let failed = endings.iter().filter(|ending| matches!(ending.state, JobState::Cancelled | JobState::Discarded));
    for ending in failed {
        release_keys(tx, ending.job).await?;
    }
    Ok(())
}

async fn insert_history_rows(tx: &mut SqliteConnection, endings: &[Ending], now: Timestamp) -> Result<(), LedgerError> {
    let statement = format!(
        "insert into history (id, queue, kind, state, priority, attempt, failures, crashes, created_at, started_at,
                              finished_at, worker, run_id, reason, output, for_failure)
         select j.id, j.queue, j.kind, e.column2, j.priority, j.attempt, j.failures, coalesce(e.column6, j.crashes),
                j.created_at, j.started_at, ?, j.worker, j.run_id, e.column3, e.column4, e.column5
         from ({}) e cross join job j on j.id = e.column1",
        values(6, endings.len())
    );
    let mut insert = sqlx::query(AssertSqlSafe(statement)).bind(micros(now));
    for ending in endings {
        insert = insert
            .bind(ending.job)
            .bind(ending.state.code())
            .bind(&ending.reason)
            .bind(&ending.output)
            .bind(ending.for_failure)
            .bind(ending.crashes);
    }
    insert.execute(tx).await.map_err(unavailable)?;
    Ok(())
}

/// Deletes the jobs: those of them that have limits or an approval.
async fn delete_job_rows(tx: &mut SqliteConnection, endings: &[Ending]) -> Result<Vec<Uuid>, LedgerError> {
    let statement = format!("delete from job where id in ({}) returning id, gated", values(1, endings.len()));
    let mut delete = sqlx::query_as(AssertSqlSafe(statement));
    for ending in endings {
        delete = delete.bind(ending.job);
    }
    let gone: Vec<(Uuid, bool)> = delete.fetch_all(tx).await.map_err(unavailable)?;
    Ok(gone.into_iter().filter_map(|(job, gated)| gated.then_some(job)).collect())
}

async fn release_keys(tx: &mut SqliteConnection, owner: Uuid) -> Result<(), LedgerError> {
    sqlx::query(
        "delete from held_key where owner = ?1 and (scope, key) in
           (select key_scope, key from job_args where id = ?1 union all select key_scope, key from run where id = ?1)",
    )
    .bind(owner)
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}

/// Lets in or skips what waited for jobs of this run that have ended, and says how the run stands now.
pub(super) async fn advance_run(
    tx: &mut SqliteConnection,
    run: Uuid,
    notice: Option<&NoticeOfDiscard>,
    now: Timestamp,
    after: &mut Aftermath,
) -> Result<(), LedgerError> {
    let rows = node_rows(tx, run).await?;
    let mut nodes = rows.iter().map(NodeRow::node).collect::<Result<Vec<Node>, _>>()?;
    let inputs: String = sqlx::query_scalar("select inputs from run where id = ?")
        .bind(run)
        .fetch_one(&mut *tx)
        .await
        .map_err(unavailable)?;
    let inputs: Value = serde_json::from_str(&inputs).unwrap_or_default();
    for decision in advance(&mut nodes, &inputs) {
        carry_out(tx, decision, &rows, notice, now, after).await?;
    }
    write_standing(tx, run, standing(&nodes), now).await
}

pub(super) async fn node_rows(tx: &mut SqliteConnection, run: Uuid) -> Result<Vec<NodeRow>, LedgerError> {
    sqlx::query_as(
        "select rj.name, rj.job_id, rj.needs, rj.condition, coalesce(j.state, h.state) as state,
                coalesce(h.for_failure, 0) as for_failure, h.output, coalesce(j.queue, h.queue) as queue,
                coalesce(j.kind, h.kind) as kind, coalesce(j.gated, 0) as gated,
                a.traceparent, a.tracestate
         from run_job rj join job_args a on a.id = rj.job_id
         left join job j on j.id = rj.job_id left join history h on h.id = rj.job_id
         where rj.run_id = ? order by rj.position",
    )
    .bind(run)
    .fetch_all(tx)
    .await
    .map_err(unavailable)
}

async fn carry_out(
    tx: &mut SqliteConnection,
    decision: Decision,
    rows: &[NodeRow],
    notice: Option<&NoticeOfDiscard>,
    now: Timestamp,
    after: &mut Aftermath,
) -> Result<(), LedgerError> {
    let ending = match decision {
        Decision::Admit(job) => return admit(tx, job, rows, now, after).await,
        Decision::SkipByCondition(job, why) => Ending::new(job, JobState::Skipped, Some(why)),
        Decision::SkipForFailure(job, why) => {
            Ending { for_failure: true, ..Ending::new(job, JobState::Skipped, Some(why)) }
        }
        Decision::Discard(job, why) => {
            let kind = rows.iter().find(|row| row.job() == job).map_or("", |row| row.kind.as_str());
            let told = notice.and_then(|notice| notice(job, kind, &why, now));
            tell(tx, told.into_iter().collect(), after, now).await?;
            Ending::new(job, JobState::Discarded, Some(why))
        }
    };
    end_jobs(tx, &[ending], after, now).await
}

async fn admit(
    tx: &mut SqliteConnection,
    job: JobId,
    rows: &[NodeRow],
    now: Timestamp,
    after: &mut Aftermath,
) -> Result<(), LedgerError> {
    let Some(row) = rows.iter().find(|row| row.job() == job) else { return Ok(()) };
    if row.gated {
        after.arrived.insert(job.0);
        return Ok(());
    }
    sqlx::query(
        "update job set run_at = ?2,
                        state = iif(kind in (select name from pause where what = 'kind'), 0, 2),
                        waits_for = iif(kind in (select name from pause where what = 'kind'), 1, 0)
         where id = ?1 and state = 0",
    )
    .bind(job.0)
    .bind(micros(now))
    .execute(tx)
    .await
    .map_err(unavailable)?;
    after.bells.add(&row.queue, job, &row.trace());
    Ok(())
}

/// Stores the jobs that tell people about discarded ones.
pub(super) async fn tell(
    tx: &mut SqliteConnection,
    notices: Vec<NewJob>,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    insert_jobs(tx, &notices, None, after, now).await?;
    Ok(())
}

async fn write_standing(
    tx: &mut SqliteConnection,
    run: Uuid,
    standing: RunState,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let finished_at = (standing != RunState::Running).then(|| micros(now));
    sqlx::query("update run set state = ?2, finished_at = ?3 where id = ?1 and state <> ?2")
        .bind(run)
        .bind(standing.code())
        .bind(finished_at)
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    if matches!(standing, RunState::Failed | RunState::Cancelled) {
        release_keys(tx, run).await?;
    }
    Ok(())
}
