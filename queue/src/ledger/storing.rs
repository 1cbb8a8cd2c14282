//! What the flows that both engines have in common stand on: each method is a statement or a few of its dialect, in the
//! transaction of whoever calls it.

use std::fmt;

use async_trait::async_trait;
use schemas::{JobId, NewJob, NewRun, RunId, Timestamp};

use super::door::Aftermath;
use super::{Enqueued, LedgerError, Operator};

/// Stores work, and who did it.
#[async_trait]
pub(super) trait Stores: Send {
    /// Stores jobs; `by` is who started them.
    async fn store_jobs(
        &mut self,
        jobs: &[NewJob],
        by: Option<&str>,
        after: &mut Aftermath,
        now: Timestamp,
    ) -> Result<Vec<Enqueued<JobId>>, LedgerError>;

    /// Stores a run with its jobs.
    async fn store_run(
        &mut self,
        run: &NewRun,
        after: &mut Aftermath,
        now: Timestamp,
    ) -> Result<Enqueued<RunId>, LedgerError>;

    /// Writes a row of the audit.
    async fn write_audit(
        &mut self,
        by: &Operator,
        verb: &str,
        subject: &(dyn fmt::Display + Sync),
        now: Timestamp,
    ) -> Result<(), LedgerError>;
}
