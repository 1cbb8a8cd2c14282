//! Ending jobs before their time, for operators and for schedules that want to, as both engines do it.

use async_trait::async_trait;
use schemas::{JobId, JobState, RunId, RunState, Timestamp, WorkId};
use uuid::Uuid;

use super::door::Aftermath;
use super::rows::state;
use super::storing::Stores;
use super::{LedgerError, Operator};

/// What an engine does for it.
#[async_trait]
pub(super) trait Cancels: Stores {
    /// Locks the run that a job belongs to, if it belongs to one, before the job itself.
    async fn lock_run_of(&mut self, job: JobId) -> Result<Option<Uuid>, LedgerError>;

    /// Locks a run; its state, if it is there.
    async fn lock_run(&mut self, run: RunId) -> Result<Option<i16>, LedgerError>;

    /// Locks a job that has not ended; its state.
    async fn lock_job(&mut self, job: JobId) -> Result<Option<i16>, LedgerError>;

    /// Locks the jobs of a run that have not ended, in the order of their ids; their states.
    async fn lock_jobs_of(&mut self, run: RunId) -> Result<Vec<(Uuid, i16)>, LedgerError>;

    /// The state in which a job ended.
    async fn ended_in(&mut self, job: JobId) -> Result<Option<i16>, LedgerError>;

    /// Has a job that runs told, at its next heartbeat, that it is not wanted any more.
    async fn ask_to_stop(&mut self, job: Uuid, reason: &str) -> Result<(), LedgerError>;

    /// Ends jobs that do not run.
    async fn end_as_cancelled(
        &mut self,
        jobs: &[Uuid],
        reason: &str,
        after: &mut Aftermath,
        now: Timestamp,
    ) -> Result<(), LedgerError>;
}

/// Ends a job or a run, with its audit row.
pub(super) async fn cancel<T: Cancels>(
    tx: &mut T,
    work: WorkId,
    by: &Operator,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    match work {
        WorkId::Job(job) => cancel_job(tx, job, by, after, now).await.map(drop),
        WorkId::Run(run) => cancel_run(tx, run, by, after, now).await,
    }
}

/// Ends a job: at once where it waits, through its next heartbeat where it runs. The state it is in now.
pub(super) async fn cancel_job<T: Cancels>(
    tx: &mut T,
    job: JobId,
    by: &Operator,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<JobState, LedgerError> {
    let run = tx.lock_run_of(job).await?;
    let Some(code) = tx.lock_job(job).await? else {
        return Err(match tx.ended_in(job).await? {
            None => LedgerError::NotFound("job"),
            Some(code) => LedgerError::Conflict(format!("this job has ended: it is {}", state(code)?.as_str())),
        });
    };
    let now_in = end_or_ask(tx, &[(job.0, code)], by, after, now).await?;
    if now_in == JobState::Cancelled {
        after.runs.extend(run);
    }
    tx.write_audit(by, "cancel", &job, now).await?;
    Ok(now_in)
}

/// Ends all jobs of a run that have not ended.
pub(super) async fn cancel_run<T: Cancels>(
    tx: &mut T,
    run: RunId,
    by: &Operator,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let state = tx.lock_run(run).await?.ok_or(LedgerError::NotFound("run"))?;
    let jobs = tx.lock_jobs_of(run).await?;
    if jobs.is_empty() {
        let state = RunState::from_code(state).map_or("over", RunState::as_str);
        return Err(LedgerError::Conflict(format!("this run has ended: it is {state}")));
    }
    end_or_ask(tx, &jobs, by, after, now).await?;
    after.runs.insert(run.0);
    tx.write_audit(by, "cancel", &run, now).await
}

/// Ends jobs that are locked: those that run are asked to. `Running` where one of them is.
async fn end_or_ask<T: Cancels>(
    tx: &mut T,
    jobs: &[(Uuid, i16)],
    by: &Operator,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<JobState, LedgerError> {
    let reason = format!("cancelled by {}: {}", by.actor, by.reason);
    let mut waiting = Vec::with_capacity(jobs.len());
    for (job, code) in jobs {
        if state(*code)? == JobState::Running {
            tx.ask_to_stop(*job, &reason).await?;
        } else {
            waiting.push(*job);
        }
    }
    tx.end_as_cancelled(&waiting, &reason, after, now).await?;
    Ok(if waiting.len() == jobs.len() { JobState::Cancelled } else { JobState::Running })
}
