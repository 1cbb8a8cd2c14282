//! What the end of a job means for its run, and how jobs move between the hot table and the history.

use schemas::{JobId, JobState, NewJob, RunState, Timestamp};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::LedgerError;
use super::super::door::Aftermath;
use super::super::rows::{NodeRow, micros, storable};
use super::door::leave;
use super::storing::insert_jobs;
use super::unavailable;
use crate::advance::{Decision, Node, advance, standing};
use crate::bell::Bells;
use crate::config::NoticeOfDiscard;

/// One job that ends without an attempt's word, as its history row has it.
pub(super) struct Ending {
    pub(super) job: Uuid,
    pub(super) state: JobState,
    pub(super) reason: Option<String>,
    pub(super) for_failure: bool,
    pub(super) crashes: Option<i32>,
}

impl Ending {
    pub(super) fn new(job: JobId, state: JobState, reason: Option<String>) -> Self {
        Self { job: job.0, state, reason, for_failure: false, crashes: None }
    }
}

/// Moves jobs from the hot table to the history. What did not succeed lets go of its key; where they had room, there is
/// room now.
pub(super) async fn end_jobs(
    tx: &mut PgConnection,
    endings: &[Ending],
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    if endings.is_empty() {
        return Ok(());
    }
    let gated: Vec<Uuid> = sqlx::query_scalar(
        "with u as (
           select * from unnest($1::uuid[], $2::smallint[], $3::text[], $4::boolean[], $5::integer[])
                as u(id, new_state, reason, for_failure, crashes)),
         ends as materialized (
           select j.*, u.new_state, u.reason as why, u.for_failure, coalesce(u.crashes, j.crashes) as crashed
           from u cross join lateral (select * from job where id = u.id limit 1 for update) j),
         gone as (delete from job where id = any(array(select id from ends))),
         let_go as materialized (
           select k.ctid
           from ends e
           cross join lateral (select key_scope, key from job_args where id = e.id and key is not null limit 1) a
           cross join lateral (
             select ctid from held_key where scope = a.key_scope and key = a.key and owner = e.id limit 1 for update) k
           where e.new_state in (7, 8)),
         freed as (delete from held_key where ctid = any(array(select ctid from let_go))),
         past as (
           insert into history (id, queue, kind, state, priority, attempt, failures, crashes, created_at, started_at,
                                finished_at, worker, run_id, reason, for_failure)
           select id, queue, kind, new_state, priority, attempt, failures, crashed, created_at, started_at, $6, worker,
                  run_id, why, for_failure
           from ends)
         select id from ends where gated",
    )
    .bind(endings.iter().map(|ending| ending.job).collect::<Vec<_>>())
    .bind(endings.iter().map(|ending| ending.state.code()).collect::<Vec<_>>())
    .bind(endings.iter().map(|ending| ending.reason.as_deref().map(storable)).collect::<Vec<_>>())
    .bind(endings.iter().map(|ending| ending.for_failure).collect::<Vec<_>>())
    .bind(endings.iter().map(|ending| ending.crashes).collect::<Vec<_>>())
    .bind(micros(now))
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    after.freed.append(&mut leave(tx, &gated).await?);
    Ok(())
}

/// Locks runs, in the order of their ids. Whoever changes what waits in a run does this after it has taken the house's turn:
/// for the sake of processes of the release before this one, which take no turns.
pub(super) async fn lock_runs(tx: &mut PgConnection, runs: &[Uuid]) -> Result<(), LedgerError> {
    if runs.is_empty() {
        return Ok(());
    }
    sqlx::query("select id from run where id = any($1) order by id for update")
        .bind(runs)
        .execute(tx)
        .await
        .map_err(unavailable)?;
    Ok(())
}

/// Lets in or skips what waited for jobs of this run that have ended, and says how the run stands now. The run is locked.
pub(super) async fn advance_run(
    tx: &mut PgConnection,
    run: Uuid,
    notice: Option<&NoticeOfDiscard>,
    now: Timestamp,
    after: &mut Aftermath,
) -> Result<(), LedgerError> {
    let rows = node_rows(tx, run).await?;
    let mut nodes = rows.iter().map(NodeRow::node).collect::<Result<Vec<Node>, _>>()?;
    let inputs: String = sqlx::query_scalar("select inputs from run where id = $1")
        .bind(run)
        .fetch_one(&mut *tx)
        .await
        .map_err(unavailable)?;
    let inputs: Value = serde_json::from_str(&inputs).unwrap_or_default();
    let decisions = advance(&mut nodes, &inputs);
    carry_out(tx, decisions, &rows, notice, now, after).await?;
    write_standing(tx, run, standing(&nodes), now).await
}

pub(super) async fn node_rows(tx: &mut PgConnection, run: Uuid) -> Result<Vec<NodeRow>, LedgerError> {
    sqlx::query_as(
        "select rj.name, rj.job_id, rj.needs, rj.condition, coalesce(j.state, h.state) as state,
                coalesce(h.for_failure, false) as for_failure, h.output, coalesce(j.queue, h.queue) as queue,
                coalesce(j.kind, h.kind) as kind, coalesce(j.gated, false) as gated,
                a.traceparent, a.tracestate
         from run_job rj
         cross join lateral (select traceparent, tracestate from job_args where id = rj.job_id limit 1) a
         left join lateral (select * from job where id = rj.job_id limit 1) j on true
         left join lateral (select * from history where id = rj.job_id limit 1) h on true
         where rj.run_id = $1 order by rj.position",
    )
    .bind(run)
    .fetch_all(tx)
    .await
    .map_err(unavailable)
}

async fn carry_out(
    tx: &mut PgConnection,
    decisions: Vec<Decision>,
    rows: &[NodeRow],
    notice: Option<&NoticeOfDiscard>,
    now: Timestamp,
    after: &mut Aftermath,
) -> Result<(), LedgerError> {
    let (mut admitted, mut endings, mut notices) = (Vec::new(), Vec::new(), Vec::new());
    for decision in decisions {
        match decision {
            Decision::Admit(job) if is_gated(job, rows) => after.arrived.extend([job.0]),
            Decision::Admit(job) => admitted.push(job),
            Decision::SkipByCondition(job, why) => endings.push(Ending::new(job, JobState::Skipped, Some(why))),
            Decision::SkipForFailure(job, why) => {
                endings.push(Ending { for_failure: true, ..Ending::new(job, JobState::Skipped, Some(why)) });
            }
            Decision::Discard(job, why) => {
                let kind = rows.iter().find(|row| row.job() == job).map_or("", |row| row.kind.as_str());
                notices.extend(notice.and_then(|notice| notice(job, kind, &why, now)));
                endings.push(Ending::new(job, JobState::Discarded, Some(why)));
            }
        }
    }
    admit(tx, &admitted, rows, now, &mut after.bells).await?;
    tell(tx, notices, after, now).await?;
    end_jobs(tx, &endings, after, now).await
}

fn is_gated(job: JobId, rows: &[NodeRow]) -> bool {
    rows.iter().any(|row| row.job() == job && row.gated)
}

async fn admit(
    tx: &mut PgConnection,
    jobs: &[JobId],
    rows: &[NodeRow],
    now: Timestamp,
    bells: &mut Bells,
) -> Result<(), LedgerError> {
    if jobs.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "update job set run_at = $2,
                        state = case when kind in (select name from pause where what = 'kind') then 0 else 2 end,
                        waits_for = case when kind in (select name from pause where what = 'kind') then 1 else 0 end
         where id = any($1) and state = 0",
    )
    .bind(jobs.iter().map(|job| job.0).collect::<Vec<_>>())
    .bind(micros(now))
    .execute(tx)
    .await
    .map_err(unavailable)?;
    for row in rows.iter().filter(|row| jobs.contains(&row.job())) {
        bells.add(&row.queue, row.job(), &row.trace());
    }
    Ok(())
}

/// Stores the jobs that tell people about discarded ones.
pub(super) async fn tell(
    tx: &mut PgConnection,
    notices: Vec<NewJob>,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    insert_jobs(tx, &notices, None, after, now).await?;
    Ok(())
}

async fn write_standing(
    tx: &mut PgConnection,
    run: Uuid,
    standing: RunState,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let finished_at = (standing != RunState::Running).then(|| micros(now));
    sqlx::query("update run set state = $2, finished_at = $3 where id = $1 and state <> $2")
        .bind(run)
        .bind(standing.code())
        .bind(finished_at)
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    if matches!(standing, RunState::Failed | RunState::Cancelled) {
        sqlx::query(
            "delete from held_key where scope = (select key_scope from run where id = $1)
                                    and key = (select key from run where id = $1) and owner = $1",
        )
        .bind(run)
        .execute(tx)
        .await
        .map_err(unavailable)?;
    }
    Ok(())
}
