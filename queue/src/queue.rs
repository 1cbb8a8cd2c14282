//! The queue as its users hold it: a ledger, a broker, one clock, and the writers that make batches.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use schemas::{EventId, JobId, JobState, NewJob, NewRun, Role, RunId, Timestamp};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::batch::Batcher;
use crate::bell::{Bells, Ringer};
use crate::broker::{self, Broker, BrokerError};
use crate::clock::LedgerClock;
use crate::config::{Keep, NoticeOfSilence, QueueConfig};
use crate::forgetting::{Forgetting, NoticeOfForgetting};
use crate::kill_point::reached;
use crate::ledger::{
    self, Desk, Ended, Enqueued, Finished, Fired, Firing, Ledger, LedgerError, Listened, NewDelivery, Operator,
    Pausable, Receipt, Replay, Silence,
};
use crate::metrics::Metrics;
use crate::upkeep;

/// Why a queue could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address names no engine that there is.
    #[error("`{0}` is neither `sqlite:<path>` nor `postgres://...`")]
    UnknownLedger(String),
    /// The address names no engine that there is.
    #[error("`{0}` is neither `in-process` nor `amqp://...`")]
    UnknownBroker(String),
    /// Another process has it.
    #[error("another process uses the ledger {path}; stop it first, or use PostgreSQL for several processes")]
    InUse {
        /// The ledger's file.
        path: String,
    },
    /// The ledger's tables are from a newer Nightporter.
    #[error(
        "the ledger was made by a newer nightporter (its schema is {found}, this one knows {known}); install that one"
    )]
    Newer {
        /// The version in the ledger.
        found: i64,
        /// The newest version that this binary knows.
        known: i64,
    },
    /// It holds what its engine did not write there.
    #[error("the ledger is damaged: {0}")]
    Damaged(String),
    /// It cannot be reached or read.
    #[error("cannot open the ledger: {reason}")]
    Ledger {
        /// In words.
        reason: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It cannot be reached.
    #[error("cannot reach the broker")]
    Broker(#[from] BrokerError),
}

/// Books work and gives it out. Cheap to clone.
#[derive(Clone)]
pub struct Queue(Arc<Inner>);

struct Inner {
    ledger: Arc<dyn Ledger>,
    broker: Arc<dyn Broker>,
    clock: LedgerClock,
    bellman: Bellman,
    metrics: Metrics,
    keep: Keep,
    before_forgetting: Option<NoticeOfForgetting>,
    deliveries: Batcher<NewDelivery, Receipt>,
    jobs: Batcher<NewJob, Enqueued<JobId>>,
    ends: Batcher<Ended, bool>,
}

impl Queue {
    /// Opens the ledger (making or migrating its tables) and the broker.
    pub async fn open(config: &QueueConfig) -> Result<Self, OpenError> {
        let ledger = ledger::open(&config.ledger, config.notice.clone()).await?;
        let broker = broker::open(&config.broker).await?;
        let now = ledger
            .time()
            .await
            .map_err(|error| OpenError::Ledger { reason: "it does not tell the time".into(), source: error.into() })?;
        let keeping = (config.keep, config.before_forgetting.clone());
        let queue = Self::of(ledger, broker, LedgerClock::sampled(now), keeping);
        if queue.ledger().is_exclusive() {
            let rescued = upkeep::rescue(&queue, Timestamp::MAX_UTC).await;
            rescued.map_err(|error| OpenError::Ledger {
                reason: "what its last process left running cannot be rescued".into(),
                source: error.into(),
            })?;
        }
        Ok(queue)
    }

    /// A queue of given parts that keeps everything for ever, for tests that drive the clock.
    pub fn with_parts(ledger: Arc<dyn Ledger>, broker: Arc<dyn Broker>, clock: LedgerClock) -> Self {
        Self::of(ledger, broker, clock, (Keep::default(), None))
    }

    fn of(
        ledger: Arc<dyn Ledger>,
        broker: Arc<dyn Broker>,
        clock: LedgerClock,
        (keep, before_forgetting): (Keep, Option<NoticeOfForgetting>),
    ) -> Self {
        let metrics = Metrics::default();
        let ringer = Ringer::new(Arc::clone(&broker), metrics.clone());
        let bellman = Bellman { ringer, put_off: Arc::new(Notify::new()) };
        let deliveries = intake_writer(&ledger, &clock, &bellman);
        let jobs = job_writer(&ledger, &clock, &bellman);
        let ends = end_writer(&ledger, &clock, &bellman);
        Self(Arc::new(Inner {
            ledger,
            broker,
            clock,
            bellman,
            metrics,
            keep,
            before_forgetting,
            deliveries,
            jobs,
            ends,
        }))
    }

    /// The ledger itself, for what is not batched.
    pub fn ledger(&self) -> &Arc<dyn Ledger> {
        &self.0.ledger
    }

    /// The broker itself.
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.0.broker
    }

    /// The one clock.
    pub fn clock(&self) -> &LedgerClock {
        &self.0.clock
    }

    /// Books a delivery with its jobs and runs, committed together with its neighbours, and rings after the commit.
    pub async fn accept(&self, delivery: NewDelivery) -> Result<Receipt, Arc<LedgerError>> {
        self.0.deliveries.submit(delivery).await
    }

    /// Stores a job, committed together with its neighbours, and rings after the commit.
    pub async fn enqueue(&self, job: NewJob) -> Result<Enqueued<JobId>, Arc<LedgerError>> {
        self.0.jobs.submit(job).await
    }

    /// Stores a job by hand, and rings after the commit.
    pub async fn start_job(&self, job: &NewJob, by: &Operator) -> Result<Enqueued<JobId>, LedgerError> {
        let (started, bells) = self.0.ledger.start_job(job, by, self.0.clock.now()).await?;
        self.ring(bells);
        Ok(started)
    }

    /// Stores a run by hand, and rings after the commit.
    pub async fn start_run(&self, run: &NewRun, by: &Operator) -> Result<Enqueued<RunId>, LedgerError> {
        let (started, bells) = self.0.ledger.start_run(run, by, self.0.clock.now()).await?;
        self.ring(bells);
        Ok(started)
    }

    /// Settles a schedule's nominal time, once, and rings after the commit; what became of it.
    pub async fn fire(&self, firing: &Firing) -> Result<Fired, LedgerError> {
        reached("firing");
        let fired = self.0.ledger.fire(firing, self.0.clock.now()).await?;
        reached("fired");
        if let Some(bells) = fired.bells() {
            self.ring(bells.clone());
        }
        Ok(fired)
    }

    /// Says what a producer heard, and rings after the commit; which sources have gone silent or speak again.
    pub async fn listen(
        &self,
        sources: &[Listened],
        notice: Option<&NoticeOfSilence>,
    ) -> Result<Vec<Silence>, LedgerError> {
        let (changed, bells) = self.0.ledger.listen(sources, notice, self.0.clock.now()).await?;
        self.ring(bells);
        Ok(changed)
    }

    /// Records how an attempt ended, committed together with its neighbours; false where the attempt was stale.
    pub async fn finish(&self, ended: Ended) -> Result<bool, Arc<LedgerError>> {
        self.0.ends.submit(ended).await
    }

    /// Cancels a job and rings for what that lets in.
    pub async fn cancel(&self, job: JobId, by: &Operator) -> Result<JobState, LedgerError> {
        let (state, bells) = Desk::cancel(&*self.0.ledger, job, by, self.0.clock.now()).await?;
        self.ring(bells);
        Ok(state)
    }

    /// Cancels what has not ended of a run, and rings for what that lets in.
    pub async fn cancel_run(&self, run: RunId, by: &Operator) -> Result<(), LedgerError> {
        let bells = self.0.ledger.cancel_run(run, by, self.0.clock.now()).await?;
        self.ring(bells);
        Ok(())
    }

    /// Retries a job and rings for it.
    pub async fn retry(&self, job: JobId, by: &Operator) -> Result<(), LedgerError> {
        let bells = Desk::retry(&*self.0.ledger, job, by, self.0.clock.now()).await?;
        self.ring(bells);
        Ok(())
    }

    /// Lets a held event have its work and rings for it.
    pub async fn release(
        &self,
        event: EventId,
        jobs: &[NewJob],
        runs: &[NewRun],
        by: &Operator,
    ) -> Result<(), LedgerError> {
        let bells = Desk::release(&*self.0.ledger, event, jobs, runs, by, self.0.clock.now()).await?;
        self.ring(bells);
        Ok(())
    }

    /// Does work again under new ids, and rings for it.
    pub async fn replay(&self, again: &[Replay], by: &Operator) -> Result<(), LedgerError> {
        let bells = Desk::replay(&*self.0.ledger, again, by, self.0.clock.now()).await?;
        self.ring(bells);
        Ok(())
    }

    /// Consents to a job that waits for it, and rings for what that lets in; the state it is in now.
    pub async fn approve(&self, job: JobId, role: Role, by: &Operator) -> Result<JobState, LedgerError> {
        let (state, bells) = self.0.ledger.approve(job, role, by, self.0.clock.now()).await?;
        self.ring(bells);
        Ok(state)
    }

    /// Refuses a job that waits for consent, and rings for what that lets in.
    pub async fn refuse(&self, job: JobId, role: Role, by: &Operator) -> Result<(), LedgerError> {
        let bells = self.0.ledger.refuse(job, role, by, self.0.clock.now()).await?;
        self.ring(bells);
        Ok(())
    }

    /// Pauses a queue, a kind, a key or a schedule, and lets others in where that makes room.
    pub async fn pause(&self, what: &Pausable, by: &Operator) -> Result<(), LedgerError> {
        self.0.ledger.pause(what, by, self.0.clock.now()).await?;
        upkeep::review(self).await
    }

    /// Ends a pause and lets in what waited for that. What a failure after the first step leaves is let in by upkeep.
    pub async fn resume(&self, what: &Pausable, by: &Operator) -> Result<(), LedgerError> {
        let bells = self.0.ledger.resume(what, by, self.0.clock.now()).await?;
        self.ring(bells);
        upkeep::review(self).await
    }

    /// Rings, later and without waiting, and has the promoter look where something was put off. For whoever made jobs
    /// available and has committed.
    pub fn ring(&self, bells: Bells) {
        self.0.bellman.ring(bells);
    }

    /// Promotes, rescues, prunes and keeps the clock right, until told to stop. Runs in every process.
    pub async fn keep_up(&self, stop: CancellationToken) {
        let forgetting = Forgetting::new(self.0.keep, self.0.before_forgetting.clone());
        upkeep::run(self, &self.0.bellman.put_off, forgetting, stop).await;
    }

    /// The upkeep's look for what is old, once: at most so many of each; how many of what there were most.
    pub async fn forget(&self, keep: Keep, notice: Option<NoticeOfForgetting>, limit: u32) -> Result<u64, LedgerError> {
        Forgetting::new(keep, notice).turn(self, limit).await
    }

    /// Makes what it counts known under its names.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.0.metrics.register(registry);
    }

    /// Rings what is still to be rung, for at most `patience`, and closes the broker.
    pub async fn close(&self, patience: Duration) {
        self.0.bellman.ringer.drain(patience).await;
        self.0.broker.close().await;
    }
}

/// Has done after a commit what the commit calls for.
#[derive(Clone)]
struct Bellman {
    ringer: Ringer,
    /// Told when something was put off in this process, so that its promoter looks when it is due.
    put_off: Arc<Notify>,
}

impl Bellman {
    fn ring(&self, bells: Bells) {
        if bells.has_put_off() {
            self.put_off.notify_one();
        }
        self.ringer.ring(bells);
    }
}

fn intake_writer(ledger: &Arc<dyn Ledger>, clock: &LedgerClock, bellman: &Bellman) -> Batcher<NewDelivery, Receipt> {
    let (ledger, clock, bellman) = (Arc::clone(ledger), clock.clone(), bellman.clone());
    Batcher::start(move |deliveries: Arc<Vec<NewDelivery>>| {
        let (ledger, clock, bellman) = (Arc::clone(&ledger), clock.clone(), bellman.clone());
        async move {
            reached("accepting");
            let (receipts, bells) = ledger.accept(&deliveries, clock.now()).await?;
            reached("accepted");
            bellman.ring(bells);
            Ok(receipts)
        }
    })
}

fn job_writer(ledger: &Arc<dyn Ledger>, clock: &LedgerClock, bellman: &Bellman) -> Batcher<NewJob, Enqueued<JobId>> {
    let (ledger, clock, bellman) = (Arc::clone(ledger), clock.clone(), bellman.clone());
    Batcher::start(move |jobs: Arc<Vec<NewJob>>| {
        let (ledger, clock, bellman) = (Arc::clone(&ledger), clock.clone(), bellman.clone());
        async move {
            let (enqueued, bells) = ledger.enqueue(&jobs, clock.now()).await?;
            bellman.ring(bells);
            Ok(enqueued)
        }
    })
}

fn end_writer(ledger: &Arc<dyn Ledger>, clock: &LedgerClock, bellman: &Bellman) -> Batcher<Ended, bool> {
    let (ledger, clock, bellman) = (Arc::clone(ledger), clock.clone(), bellman.clone());
    Batcher::start(move |ends: Arc<Vec<Ended>>| {
        let (ledger, clock, bellman) = (Arc::clone(&ledger), clock.clone(), bellman.clone());
        async move {
            reached("finishing");
            let Finished { recorded, bells } = ledger.finish(&ends, clock.now()).await?;
            reached("finished");
            bellman.ring(bells);
            Ok(recorded)
        }
    })
}
