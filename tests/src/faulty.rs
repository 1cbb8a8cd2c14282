//! A ledger that fails when it is told to, in front of a real one.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use queue::bell::Bells;
use queue::ledger::{
    Announced, AuditRecord, Beat, Books, Chores, Claim, Desk, Ended, Enqueued, Finished, Fired, Firing, HeldKey,
    Herald, Hold, Horizons, Intake, JobFilter, Ledger, LedgerError, Listened, NewDelivery, NewToken, Operator,
    Pausable, Progress, Receipt, Replay, Rescued, Silence, StoredBody, Turn, Upkeep, Work,
};
use queue::{NoticeOfSilence, Waiting};
use schemas::api::{
    ApprovalView, EventView, FiringView, JobView, PauseView, QueueView, RunView, SourceView, TokenView,
};
use schemas::{
    AttemptId, ClaimedJob, EventId, JobId, JobState, Key, NewJob, NewRun, Role, RunId, StepState, Timestamp, WorkerId,
};
use serde_json::Value;
use serde_json::value::RawValue;

/// Passes every call on, but those to methods that are broken.
pub struct FaultyLedger {
    inner: Arc<dyn Ledger>,
    broken: Mutex<HashSet<&'static str>>,
    calls: Mutex<Vec<&'static str>>,
}

impl FaultyLedger {
    /// In front of the given ledger, nothing broken yet.
    pub fn before(inner: Arc<dyn Ledger>) -> Arc<Self> {
        Arc::new(Self { inner, broken: Mutex::default(), calls: Mutex::default() })
    }

    /// The real ledger behind it.
    pub fn inner(&self) -> &dyn Ledger {
        &*self.inner
    }

    /// From now on these methods answer that the ledger is unavailable, and do nothing.
    pub fn break_methods(&self, methods: &[&'static str]) {
        self.broken.lock().expect("not poisoned").extend(methods);
    }

    /// Everything works again.
    pub fn mend(&self) {
        self.broken.lock().expect("not poisoned").clear();
    }

    /// How often a method was called, broken or not.
    pub fn calls(&self, method: &str) -> usize {
        self.calls.lock().expect("not poisoned").iter().filter(|called| **called == method).count()
    }

    fn pass(&self, method: &'static str) -> Result<&dyn Ledger, LedgerError> {
        self.calls.lock().expect("not poisoned").push(method);
        if self.broken.lock().expect("not poisoned").contains(method) {
            return Err(LedgerError::Unavailable(sqlx::Error::PoolClosed));
        }
        Ok(&*self.inner)
    }
}

#[async_trait]
impl Intake for FaultyLedger {
    async fn accept(&self, deliveries: &[NewDelivery], now: Timestamp) -> Result<(Vec<Receipt>, Bells), LedgerError> {
        self.pass("accept")?.accept(deliveries, now).await
    }

    async fn enqueue(&self, jobs: &[NewJob], now: Timestamp) -> Result<(Vec<Enqueued<JobId>>, Bells), LedgerError> {
        self.pass("enqueue")?.enqueue(jobs, now).await
    }

    async fn start(&self, run: &NewRun, now: Timestamp) -> Result<(Enqueued<RunId>, Bells), LedgerError> {
        self.pass("start")?.start(run, now).await
    }

    async fn announce(
        &self,
        config_digest: &str,
        schedules: &[Announced],
        now: Timestamp,
    ) -> Result<Option<Vec<Progress>>, LedgerError> {
        self.pass("announce")?.announce(config_digest, schedules, now).await
    }

    async fn fire(&self, firing: &Firing, now: Timestamp) -> Result<Fired, LedgerError> {
        self.pass("fire")?.fire(firing, now).await
    }

    async fn listen(
        &self,
        sources: &[Listened],
        notice: Option<&NoticeOfSilence>,
        now: Timestamp,
    ) -> Result<(Vec<Silence>, Bells), LedgerError> {
        self.pass("listen")?.listen(sources, notice, now).await
    }
}

#[async_trait]
impl Work for FaultyLedger {
    async fn claim(&self, claim: &Claim, now: Timestamp) -> Result<Vec<ClaimedJob>, LedgerError> {
        self.pass("claim")?.claim(claim, now).await
    }

    async fn heartbeat(
        &self,
        attempts: &[AttemptId],
        lease_until: Timestamp,
        now: Timestamp,
    ) -> Result<Vec<Beat>, LedgerError> {
        self.pass("heartbeat")?.heartbeat(attempts, lease_until, now).await
    }

    async fn start_step(&self, attempt: AttemptId, name: &str, now: Timestamp) -> Result<StepState, LedgerError> {
        self.pass("start_step")?.start_step(attempt, name, now).await
    }

    async fn finish_step(
        &self,
        attempt: AttemptId,
        name: &str,
        result: Option<&RawValue>,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        self.pass("finish_step")?.finish_step(attempt, name, result, now).await
    }

    async fn hold(&self, attempt: AttemptId, key: &Key, now: Timestamp) -> Result<Hold, LedgerError> {
        self.pass("hold")?.hold(attempt, key, now).await
    }

    async fn finish(&self, ended: &[Ended], now: Timestamp) -> Result<Finished, LedgerError> {
        self.pass("finish")?.finish(ended, now).await
    }

    async fn outputs(&self, run: RunId) -> Result<Value, LedgerError> {
        self.pass("outputs")?.outputs(run).await
    }
}

#[async_trait]
impl Upkeep for FaultyLedger {
    async fn time(&self) -> Result<Timestamp, LedgerError> {
        self.pass("time")?.time().await
    }

    fn is_exclusive(&self) -> bool {
        self.inner.is_exclusive()
    }

    async fn chores(&self, now: Timestamp) -> Result<Chores, LedgerError> {
        self.pass("chores")?.chores(now).await
    }

    async fn promote(&self, limit: u32, now: Timestamp) -> Result<Bells, LedgerError> {
        self.pass("promote")?.promote(limit, now).await
    }

    async fn rescue(&self, before: Timestamp, limit: u32, now: Timestamp) -> Result<Rescued, LedgerError> {
        self.pass("rescue")?.rescue(before, limit, now).await
    }

    async fn prune(&self, limit: u32, now: Timestamp) -> Result<u64, LedgerError> {
        self.pass("prune")?.prune(limit, now).await
    }

    async fn forget(&self, older_than: &Horizons, limit: u32) -> Result<u64, LedgerError> {
        self.pass("forget")?.forget(older_than, limit).await
    }

    async fn waiting_events(
        &self,
        since: Option<Timestamp>,
        before: Timestamp,
        named: u32,
    ) -> Result<Waiting, LedgerError> {
        self.pass("waiting_events")?.waiting_events(since, before, named).await
    }

    async fn review(&self, limit: u32, now: Timestamp) -> Result<Bells, LedgerError> {
        self.pass("review")?.review(limit, now).await
    }
}

#[async_trait]
impl Desk for FaultyLedger {
    async fn start_job(
        &self,
        job: &NewJob,
        by: &Operator,
        now: Timestamp,
    ) -> Result<(Enqueued<JobId>, Bells), LedgerError> {
        self.pass("start_job")?.start_job(job, by, now).await
    }

    async fn start_run(
        &self,
        run: &NewRun,
        by: &Operator,
        now: Timestamp,
    ) -> Result<(Enqueued<RunId>, Bells), LedgerError> {
        self.pass("start_run")?.start_run(run, by, now).await
    }

    async fn cancel(&self, job: JobId, by: &Operator, now: Timestamp) -> Result<(JobState, Bells), LedgerError> {
        self.pass("cancel")?.cancel(job, by, now).await
    }

    async fn cancel_run(&self, run: RunId, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        self.pass("cancel_run")?.cancel_run(run, by, now).await
    }

    async fn retry(&self, job: JobId, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        self.pass("retry")?.retry(job, by, now).await
    }

    async fn release(
        &self,
        event: EventId,
        jobs: &[NewJob],
        runs: &[NewRun],
        by: &Operator,
        now: Timestamp,
    ) -> Result<Bells, LedgerError> {
        self.pass("release")?.release(event, jobs, runs, by, now).await
    }

    async fn replay(&self, again: &[Replay], by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        self.pass("replay")?.replay(again, by, now).await
    }

    async fn approve(
        &self,
        job: JobId,
        role: Role,
        by: &Operator,
        now: Timestamp,
    ) -> Result<(JobState, Bells), LedgerError> {
        self.pass("approve")?.approve(job, role, by, now).await
    }

    async fn refuse(&self, job: JobId, role: Role, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        self.pass("refuse")?.refuse(job, role, by, now).await
    }

    async fn pause(&self, what: &Pausable, by: &Operator, now: Timestamp) -> Result<(), LedgerError> {
        self.pass("pause")?.pause(what, by, now).await
    }

    async fn resume(&self, what: &Pausable, by: &Operator, now: Timestamp) -> Result<Bells, LedgerError> {
        self.pass("resume")?.resume(what, by, now).await
    }

    async fn keep_token(&self, token: &NewToken, by: &Operator, now: Timestamp) -> Result<(), LedgerError> {
        self.pass("keep_token")?.keep_token(token, by, now).await
    }

    async fn revoke_token(&self, name: &str, by: &Operator, now: Timestamp) -> Result<(), LedgerError> {
        self.pass("revoke_token")?.revoke_token(name, by, now).await
    }
}

#[async_trait]
impl Books for FaultyLedger {
    async fn event(&self, id: EventId) -> Result<Option<EventView>, LedgerError> {
        self.pass("event")?.event(id).await
    }

    async fn body(&self, id: EventId) -> Result<Option<StoredBody>, LedgerError> {
        self.pass("body")?.body(id).await
    }

    async fn known(&self, source: &str, delivery_ids: &[String]) -> Result<BTreeSet<String>, LedgerError> {
        self.pass("known")?.known(source, delivery_ids).await
    }

    async fn source(&self, name: &str) -> Result<Option<SourceView>, LedgerError> {
        self.pass("source")?.source(name).await
    }

    async fn events(&self, limit: u32) -> Result<Vec<EventView>, LedgerError> {
        self.pass("events")?.events(limit).await
    }

    async fn job(&self, id: JobId) -> Result<Option<JobView>, LedgerError> {
        self.pass("job")?.job(id).await
    }

    async fn held(&self, scope: &str, limit: u32, now: Timestamp) -> Result<Vec<HeldKey>, LedgerError> {
        self.pass("held")?.held(scope, limit, now).await
    }

    async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, LedgerError> {
        self.pass("jobs")?.jobs(filter).await
    }

    async fn run(&self, id: RunId) -> Result<Option<RunView>, LedgerError> {
        self.pass("run")?.run(id).await
    }

    async fn runs(&self, limit: u32) -> Result<Vec<RunView>, LedgerError> {
        self.pass("runs")?.runs(limit).await
    }

    async fn queues(&self) -> Result<Vec<QueueView>, LedgerError> {
        self.pass("queues")?.queues().await
    }

    async fn audit(&self, limit: u32) -> Result<Vec<AuditRecord>, LedgerError> {
        self.pass("audit")?.audit(limit).await
    }

    async fn approvals(&self, limit: u32) -> Result<Vec<ApprovalView>, LedgerError> {
        self.pass("approvals")?.approvals(limit).await
    }

    async fn pauses(&self) -> Result<Vec<PauseView>, LedgerError> {
        self.pass("pauses")?.pauses().await
    }

    async fn firings(&self, schedule: &str, limit: u32) -> Result<Vec<FiringView>, LedgerError> {
        self.pass("firings")?.firings(schedule, limit).await
    }

    async fn tokens(&self) -> Result<Vec<TokenView>, LedgerError> {
        self.pass("tokens")?.tokens().await
    }

    async fn token(&self, hash: &[u8; 32], now: Timestamp) -> Result<Option<TokenView>, LedgerError> {
        self.pass("token")?.token(hash, now).await
    }
}

#[async_trait]
impl Herald for FaultyLedger {
    async fn set_announcing(&self, on: bool, config_digest: &str, now: Timestamp) -> Result<bool, LedgerError> {
        self.pass("set_announcing")?.set_announcing(on, config_digest, now).await
    }

    async fn next_announcements(
        &self,
        herald: WorkerId,
        limit: u32,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Turn, LedgerError> {
        self.pass("next_announcements")?.next_announcements(herald, limit, until, now).await
    }

    async fn announced(&self, herald: WorkerId, numbers: &[i64], now: Timestamp) -> Result<bool, LedgerError> {
        self.pass("announced")?.announced(herald, numbers, now).await
    }

    async fn pass_turn(&self, herald: WorkerId) -> Result<(), LedgerError> {
        self.pass("pass_turn")?.pass_turn(herald).await
    }

    async fn oldest_unannounced(&self) -> Result<Option<Timestamp>, LedgerError> {
        self.pass("oldest_unannounced")?.oldest_unannounced().await
    }
}
