#![allow(unused_variables, unused_imports)]
//! stub
use super::*;
use crate::OpenError;
use async_trait::async_trait;
use schemas::api::{EventView, JobView, QueueView, RunView};
use schemas::{AttemptId, ClaimedJob, EventId, JobId, JobState, NewJob, NewRun, RunId, StepState, Timestamp};
use serde_json::Value;
use serde_json::value::RawValue;
pub(crate) struct Sqlite;
impl Sqlite {
    pub(crate) async fn open(_: &EngineConfig) -> Result<Self, OpenError> {
        todo!()
    }
}
#[async_trait]
impl Intake for Sqlite {
    async fn accept(&self, deliveries: &[NewDelivery], now: Timestamp) -> Result<Vec<Receipt>, LedgerError> {
        todo!()
    }
    async fn enqueue(&self, jobs: &[NewJob], now: Timestamp) -> Result<Vec<Enqueued<JobId>>, LedgerError> {
        todo!()
    }
    async fn start(&self, run: &NewRun, now: Timestamp) -> Result<Enqueued<RunId>, LedgerError> {
        todo!()
    }
}
#[async_trait]
impl Work for Sqlite {
    async fn claim(&self, claim: &Claim, now: Timestamp) -> Result<Vec<ClaimedJob>, LedgerError> {
        todo!()
    }
    async fn heartbeat(
        &self,
        attempts: &[AttemptId],
        lease_until: Timestamp,
        now: Timestamp,
    ) -> Result<Vec<Beat>, LedgerError> {
        todo!()
    }
    async fn start_step(&self, attempt: AttemptId, name: &str, now: Timestamp) -> Result<StepState, LedgerError> {
        todo!()
    }
    async fn finish_step(
        &self,
        attempt: AttemptId,
        name: &str,
        result: Option<&RawValue>,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        todo!()
    }
    async fn finish(&self, ended: &[Ended], now: Timestamp) -> Result<Finished, LedgerError> {
        todo!()
    }
    async fn outputs(&self, run: RunId) -> Result<Value, LedgerError> {
        todo!()
    }
}
#[async_trait]
impl Upkeep for Sqlite {
    async fn time(&self) -> Result<Timestamp, LedgerError> {
        todo!()
    }
    async fn promote(&self, limit: u32, now: Timestamp) -> Result<Promoted, LedgerError> {
        todo!()
    }
    async fn rescue(&self, before: Timestamp, limit: u32, now: Timestamp) -> Result<Rescued, LedgerError> {
        todo!()
    }
    async fn prune(&self, limit: u32, now: Timestamp) -> Result<u64, LedgerError> {
        todo!()
    }
}
#[async_trait]
impl Desk for Sqlite {
    async fn cancel(&self, job: JobId, by: &Operator, now: Timestamp) -> Result<(JobState, Bells), LedgerError> {
        todo!()
    }
    async fn retry(&self, job: JobId, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        todo!()
    }
    async fn release(
        &self,
        event: EventId,
        jobs: &[NewJob],
        runs: &[NewRun],
        by: &Operator,
        now: Timestamp,
    ) -> Result<Bells, LedgerError> {
        todo!()
    }
}
#[async_trait]
impl Books for Sqlite {
    async fn event(&self, id: EventId) -> Result<Option<EventView>, LedgerError> {
        todo!()
    }
    async fn body(&self, id: EventId) -> Result<Option<StoredBody>, LedgerError> {
        todo!()
    }
    async fn events(&self, limit: u32) -> Result<Vec<EventView>, LedgerError> {
        todo!()
    }
    async fn job(&self, id: JobId) -> Result<Option<JobView>, LedgerError> {
        todo!()
    }
    async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, LedgerError> {
        todo!()
    }
    async fn run(&self, id: RunId) -> Result<Option<RunView>, LedgerError> {
        todo!()
    }
    async fn runs(&self, limit: u32) -> Result<Vec<RunView>, LedgerError> {
        todo!()
    }
    async fn queues(&self) -> Result<Vec<QueueView>, LedgerError> {
        todo!()
    }
    async fn audit(&self, limit: u32) -> Result<Vec<AuditRecord>, LedgerError> {
        todo!()
    }
}
