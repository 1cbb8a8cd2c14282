//! A ledger whose way in can be taken away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use async_trait::async_trait;
use queue::Waiting;
use queue::bell::Bells;
use queue::ledger::*;
use schemas::api::{
    ApprovalView, EventView, FiringView, JobView, PauseView, QueueView, RunView, SourceView, TokenView,
};
use schemas::{
    AttemptId, ClaimedJob, EventId, JobId, JobState, Key, NewJob, NewRun, Role, RunId, StepState, Timestamp, WorkerId,
};
use serde_json::Value;
use serde_json::value::RawValue;

/// What is wrong with the ledger now. All clones are one.
#[derive(Clone, Default)]
pub(super) struct Fault(Arc<AtomicU8>);

#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Now {
    Fine,
    Away,
    /// It commits, and the answer is lost.
    Unknown,
    /// It answers nothing.
    Silent,
    /// It takes nothing that has facts.
    Refuses,
}

impl Fault {
    pub(super) fn set(&self, now: Now) {
        self.0.store(now as u8, Ordering::SeqCst);
    }

    fn is(&self, now: Now) -> bool {
        self.0.load(Ordering::SeqCst) == now as u8
    }
}

pub(super) struct Faulty {
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) fault: Fault,
    /// How many batches of deliveries it was offered.
    pub(super) offered: Arc<AtomicU32>,
}

impl Faulty {
    async fn meet(&self) -> Result<(), LedgerError> {
        if self.fault.is(Now::Silent) {
            std::future::pending::<()>().await;
        }
        if self.fault.is(Now::Away) { Err(LedgerError::Unavailable(sqlx::Error::PoolTimedOut)) } else { Ok(()) }
    }
}

#[async_trait]
impl Intake for Faulty {
    async fn accept(&self, deliveries: &[NewDelivery], now: Timestamp) -> Result<(Vec<Receipt>, Bells), LedgerError> {
        self.offered.fetch_add(1, Ordering::SeqCst);
        self.meet().await?;
        if self.fault.is(Now::Refuses) && deliveries.iter().any(|delivery| delivery.unreadable.is_none()) {
            return Err(LedgerError::Refused(sqlx::Error::WorkerCrashed));
        }
        let receipts = self.ledger.accept(deliveries, now).await;
        if self.fault.is(Now::Unknown) { Err(LedgerError::Unknown("the line broke".into())) } else { receipts }
    }
    async fn enqueue(&self, jobs: &[NewJob], now: Timestamp) -> Result<(Vec<Enqueued<JobId>>, Bells), LedgerError> {
        self.ledger.enqueue(jobs, now).await
    }
    async fn listen(
        &self,
        sources: &[Listened],
        notice: Option<&queue::NoticeOfSilence>,
        now: Timestamp,
    ) -> Result<(Vec<Silence>, Bells), LedgerError> {
        self.ledger.listen(sources, notice, now).await
    }
    async fn start(&self, run: &NewRun, now: Timestamp) -> Result<(Enqueued<RunId>, Bells), LedgerError> {
        self.ledger.start(run, now).await
    }
    async fn announce(
        &self,
        config_digest: &str,
        schedules: &[Announced],
        now: Timestamp,
    ) -> Result<Option<Vec<Progress>>, LedgerError> {
        self.ledger.announce(config_digest, schedules, now).await
    }
    async fn fire(&self, firing: &Firing, now: Timestamp) -> Result<Fired, LedgerError> {
        self.ledger.fire(firing, now).await
    }
}

#[async_trait]
impl Upkeep for Faulty {
    async fn time(&self) -> Result<Timestamp, LedgerError> {
        self.meet().await?;
        self.ledger.time().await
    }
    fn is_exclusive(&self) -> bool {
        self.ledger.is_exclusive()
    }
    async fn chores(&self, now: Timestamp) -> Result<Chores, LedgerError> {
        self.ledger.chores(now).await
    }
    async fn promote(&self, limit: u32, now: Timestamp) -> Result<Bells, LedgerError> {
        self.ledger.promote(limit, now).await
    }
    async fn rescue(&self, before: Timestamp, limit: u32, now: Timestamp) -> Result<Rescued, LedgerError> {
        self.ledger.rescue(before, limit, now).await
    }
    async fn prune(&self, limit: u32, now: Timestamp) -> Result<u64, LedgerError> {
        self.ledger.prune(limit, now).await
    }
    async fn forget(&self, older_than: &Horizons, limit: u32) -> Result<u64, LedgerError> {
        self.ledger.forget(older_than, limit).await
    }

    async fn waiting_events(
        &self,
        since: Option<Timestamp>,
        before: Timestamp,
        named: u32,
    ) -> Result<Waiting, LedgerError> {
        self.ledger.waiting_events(since, before, named).await
    }
    async fn review(&self, limit: u32, now: Timestamp) -> Result<Bells, LedgerError> {
        self.ledger.review(limit, now).await
    }
}

#[async_trait]
impl Work for Faulty {
    async fn claim(&self, claim: &Claim, now: Timestamp) -> Result<Vec<ClaimedJob>, LedgerError> {
        self.ledger.claim(claim, now).await
    }
    async fn heartbeat(
        &self,
        attempts: &[AttemptId],
        lease_until: Timestamp,
        now: Timestamp,
    ) -> Result<Vec<Beat>, LedgerError> {
        self.ledger.heartbeat(attempts, lease_until, now).await
    }
    async fn start_step(&self, attempt: AttemptId, name: &str, now: Timestamp) -> Result<StepState, LedgerError> {
        self.ledger.start_step(attempt, name, now).await
    }
    async fn finish_step(
        &self,
        attempt: AttemptId,
        name: &str,
        result: Option<&RawValue>,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        self.ledger.finish_step(attempt, name, result, now).await
    }
    async fn hold(&self, attempt: AttemptId, key: &Key, now: Timestamp) -> Result<Hold, LedgerError> {
        self.ledger.hold(attempt, key, now).await
    }
    async fn finish(&self, ended: &[Ended], now: Timestamp) -> Result<Finished, LedgerError> {
        self.ledger.finish(ended, now).await
    }
    async fn outputs(&self, run: RunId) -> Result<Value, LedgerError> {
        self.ledger.outputs(run).await
    }
}

#[async_trait]
impl Desk for Faulty {
    async fn start_job(
        &self,
        job: &NewJob,
        by: &Operator,
        now: Timestamp,
    ) -> Result<(Enqueued<JobId>, Bells), LedgerError> {
        Desk::start_job(&*self.ledger, job, by, now).await
    }

    async fn start_run(
        &self,
        run: &NewRun,
        by: &Operator,
        now: Timestamp,
    ) -> Result<(Enqueued<RunId>, Bells), LedgerError> {
        Desk::start_run(&*self.ledger, run, by, now).await
    }

    async fn cancel(&self, job: JobId, by: &Operator, now: Timestamp) -> Result<(JobState, Bells), LedgerError> {
        Desk::cancel(&*self.ledger, job, by, now).await
    }
    async fn cancel_run(&self, run: RunId, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        self.ledger.cancel_run(run, by, now).await
    }
    async fn retry(&self, job: JobId, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        Desk::retry(&*self.ledger, job, by, now).await
    }
    async fn release(
        &self,
        event: EventId,
        jobs: &[NewJob],
        runs: &[NewRun],
        by: &Operator,
        now: Timestamp,
    ) -> Result<Bells, LedgerError> {
        Desk::release(&*self.ledger, event, jobs, runs, by, now).await
    }
    async fn replay(&self, again: &[Replay], by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        Desk::replay(&*self.ledger, again, by, now).await
    }
    async fn approve(
        &self,
        job: JobId,
        role: Role,
        by: &Operator,
        now: Timestamp,
    ) -> Result<(JobState, Bells), LedgerError> {
        Desk::approve(&*self.ledger, job, role, by, now).await
    }
    async fn refuse(&self, job: JobId, role: Role, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        Desk::refuse(&*self.ledger, job, role, by, now).await
    }
    async fn pause(&self, what: &Pausable, by: &Operator, now: Timestamp) -> Result<(), LedgerError> {
        Desk::pause(&*self.ledger, what, by, now).await
    }
    async fn resume(&self, what: &Pausable, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        Desk::resume(&*self.ledger, what, by, now).await
    }
    async fn keep_token(&self, token: &NewToken, by: &Operator, now: Timestamp) -> Result<(), LedgerError> {
        Desk::keep_token(&*self.ledger, token, by, now).await
    }
    async fn revoke_token(&self, name: &str, by: &Operator, now: Timestamp) -> Result<(), LedgerError> {
        Desk::revoke_token(&*self.ledger, name, by, now).await
    }
}

#[async_trait]
impl Books for Faulty {
    async fn event(&self, id: EventId) -> Result<Option<EventView>, LedgerError> {
        self.ledger.event(id).await
    }
    async fn body(&self, id: EventId) -> Result<Option<StoredBody>, LedgerError> {
        self.ledger.body(id).await
    }
    async fn known(&self, source: &str, ids: &[String]) -> Result<std::collections::BTreeSet<String>, LedgerError> {
        self.ledger.known(source, ids).await
    }
    async fn source(&self, name: &str) -> Result<Option<SourceView>, LedgerError> {
        self.ledger.source(name).await
    }
    async fn events(&self, limit: u32) -> Result<Vec<EventView>, LedgerError> {
        self.ledger.events(limit).await
    }
    async fn job(&self, id: JobId) -> Result<Option<JobView>, LedgerError> {
        self.ledger.job(id).await
    }
    async fn held(&self, scope: &str, limit: u32, now: Timestamp) -> Result<Vec<HeldKey>, LedgerError> {
        self.ledger.held(scope, limit, now).await
    }
    async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, LedgerError> {
        self.ledger.jobs(filter).await
    }
    async fn run(&self, id: RunId) -> Result<Option<RunView>, LedgerError> {
        self.ledger.run(id).await
    }
    async fn runs(&self, limit: u32) -> Result<Vec<RunView>, LedgerError> {
        self.ledger.runs(limit).await
    }
    async fn queues(&self) -> Result<Vec<QueueView>, LedgerError> {
        self.ledger.queues().await
    }
    async fn audit(&self, limit: u32) -> Result<Vec<AuditRecord>, LedgerError> {
        self.ledger.audit(limit).await
    }
    async fn approvals(&self, limit: u32) -> Result<Vec<ApprovalView>, LedgerError> {
        self.ledger.approvals(limit).await
    }
    async fn pauses(&self) -> Result<Vec<PauseView>, LedgerError> {
        self.ledger.pauses().await
    }
    async fn firings(&self, schedule: &str, limit: u32) -> Result<Vec<FiringView>, LedgerError> {
        self.ledger.firings(schedule, limit).await
    }
    async fn tokens(&self) -> Result<Vec<TokenView>, LedgerError> {
        self.ledger.tokens().await
    }
    async fn token(&self, hash: &[u8; 32], now: Timestamp) -> Result<Option<TokenView>, LedgerError> {
        self.ledger.token(hash, now).await
    }
}

#[async_trait]
impl Herald for Faulty {
    async fn set_announcing(&self, on: bool, config_digest: &str, now: Timestamp) -> Result<bool, LedgerError> {
        self.ledger.set_announcing(on, config_digest, now).await
    }
    async fn next_announcements(
        &self,
        herald: WorkerId,
        limit: u32,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Turn, LedgerError> {
        self.ledger.next_announcements(herald, limit, until, now).await
    }
    async fn announced(&self, herald: WorkerId, numbers: &[i64], now: Timestamp) -> Result<bool, LedgerError> {
        self.ledger.announced(herald, numbers, now).await
    }
    async fn pass_turn(&self, herald: WorkerId) -> Result<(), LedgerError> {
        self.ledger.pass_turn(herald).await
    }
    async fn oldest_unannounced(&self) -> Result<Option<Timestamp>, LedgerError> {
        self.ledger.oldest_unannounced().await
    }
}
