//! Doing work again under new ids, as both engines do it.

use async_trait::async_trait;
use schemas::{JobId, RunId, RunState, Timestamp};
use uuid::Uuid;

use super::door::Aftermath;
use super::storing::Stores;
use super::{LedgerError, Operator, Replay};

/// What an engine does for it.
#[async_trait]
pub(super) trait Replays: Stores {
    /// A job's state and the number of its last attempt, whether it has ended or not.
    async fn job_stands(&mut self, job: JobId) -> Result<Option<(i16, i32)>, LedgerError>;

    /// A run's state.
    async fn run_stands(&mut self, run: RunId) -> Result<Option<i16>, LedgerError>;
}

/// Does one job, run or event again, if it stands as it was looked at.
pub(super) async fn replay_one<T: Replays>(
    tx: &mut T,
    replay: &Replay,
    by: &Operator,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    match replay {
        Replay::Job { of, state, attempt, again } => {
            let found = tx.job_stands(*of).await?.ok_or(LedgerError::NotFound("job"))?;
            if found != (state.code(), *attempt) {
                return Err(moved_on("job", of.0));
            }
            if !state.is_finished() {
                return Err(not_ended("job", of.0));
            }
            tx.store_jobs(std::slice::from_ref(&**again), Some(&by.actor), after, now).await?;
            tx.write_audit(by, "replay", of, now).await
        }
        Replay::Run { of, state, again } => {
            if tx.run_stands(*of).await?.ok_or(LedgerError::NotFound("run"))? != state.code() {
                return Err(moved_on("run", of.0));
            }
            if *state == RunState::Running {
                return Err(not_ended("run", of.0));
            }
            tx.store_run(again, after, now).await?;
            tx.write_audit(by, "replay", of, now).await
        }
        Replay::Event { of, jobs, runs } => {
            tx.store_jobs(jobs, Some(&by.actor), after, now).await?;
            for run in runs {
                tx.store_run(run, after, now).await?;
            }
            tx.write_audit(by, "replay", of, now).await
        }
    }
}

fn moved_on(what: &str, id: Uuid) -> LedgerError {
    LedgerError::Conflict(format!("{what} {id} has changed since it was looked at; nothing was replayed, look again"))
}

fn not_ended(what: &str, id: Uuid) -> LedgerError {
    LedgerError::Conflict(format!("{what} {id} has not ended; wait for it or cancel it, nothing was replayed"))
}
