//! The queue as its users hold it: a ledger, a broker, one clock, and the writers that make batches.

use std::sync::Arc;
use std::time::Duration;

use schemas::{EventId, JobId, NewJob, NewRun, RunId, Timestamp};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::batch::Batcher;
use crate::bell::{Bells, Ringer};
use crate::broker::{self, Broker, BrokerError};
use crate::clock::LedgerClock;
use crate::config::QueueConfig;
use crate::ledger::{self, Desk, Ended, Enqueued, Finished, Ledger, LedgerError, NewDelivery, Operator, Receipt};
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
    ringer: Ringer,
    deliveries: Batcher<NewDelivery, Receipt>,
    jobs: Batcher<NewJob, Enqueued<JobId>>,
    ends: Batcher<Ended, bool>,
    /// Rung when something was put off in this process, so that its promoter looks when it is due.
    put_off: Arc<Notify>,
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
        let queue = Self::with_parts(ledger, broker, LedgerClock::sampled(now));
        if queue.ledger().is_exclusive() {
            let rescued = upkeep::rescue(&queue, Timestamp::MAX_UTC).await;
            rescued.map_err(|error| OpenError::Ledger {
                reason: "what its last process left running cannot be rescued".into(),
                source: error.into(),
            })?;
        }
        Ok(queue)
    }

    /// A queue of given parts, for tests that drive the clock.
    pub fn with_parts(ledger: Arc<dyn Ledger>, broker: Arc<dyn Broker>, clock: LedgerClock) -> Self {
        let ringer = Ringer::start(Arc::clone(&broker));
        let put_off = Arc::new(Notify::new());
        let deliveries = intake_writer(&ledger, &clock, &ringer);
        let jobs = job_writer(&ledger, &clock, &ringer, &put_off);
        let ends = end_writer(&ledger, &clock, &ringer, &put_off);
        Self(Arc::new(Inner { ledger, broker, clock, ringer, deliveries, jobs, ends, put_off }))
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
        let started = self.0.ledger.start_job(job, by, self.0.clock.now()).await?;
        if matches!(started, Enqueued::New(_)) {
            self.ring(bells_of(std::slice::from_ref(job), &[]));
        }
        Ok(started)
    }

    /// Stores a run by hand, and rings after the commit.
    pub async fn start_run(&self, run: &NewRun, by: &Operator) -> Result<Enqueued<RunId>, LedgerError> {
        let started = self.0.ledger.start_run(run, by, self.0.clock.now()).await?;
        if matches!(started, Enqueued::New(_)) {
            self.ring(bells_of(&[], std::slice::from_ref(run)));
        }
        Ok(started)
    }

    /// Records how an attempt ended, committed together with its neighbours; false where the attempt was stale.
    pub async fn finish(&self, ended: Ended) -> Result<bool, Arc<LedgerError>> {
        self.0.ends.submit(ended).await
    }

    /// Cancels a job and rings for what that lets in.
    pub async fn cancel(&self, job: JobId, by: &Operator) -> Result<schemas::JobState, LedgerError> {
        let (state, bells) = Desk::cancel(&*self.0.ledger, job, by, self.0.clock.now()).await?;
        self.ring(bells);
        Ok(state)
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

    /// Rings, later and without waiting. For whoever made jobs available and has committed.
    pub fn ring(&self, bells: Bells) {
        self.0.ringer.ring(bells);
    }

    /// Promotes, rescues, prunes and keeps the clock right, until told to stop. Runs in every process.
    pub async fn keep_up(&self, stop: CancellationToken) {
        upkeep::run(self, &self.0.put_off, stop).await;
    }

    /// Rings what is still to be rung, for at most `patience`, and closes the broker.
    pub async fn close(&self, patience: Duration) {
        self.0.ringer.drain(patience).await;
        self.0.broker.close().await;
    }
}

/// What is available at once of new work.
pub(crate) fn bells_of(jobs: &[NewJob], runs: &[NewRun]) -> Bells {
    let mut bells = Bells::default();
    jobs.iter().filter(|job| job.run_at.is_none()).for_each(|job| bells.add_new(job));
    let first = runs.iter().flat_map(|run| &run.jobs).filter(|planned| planned.needs.is_empty());
    first.for_each(|planned| bells.add_new(&planned.job));
    bells
}

fn intake_writer(ledger: &Arc<dyn Ledger>, clock: &LedgerClock, ringer: &Ringer) -> Batcher<NewDelivery, Receipt> {
    let (ledger, clock, ringer) = (Arc::clone(ledger), clock.clone(), ringer.clone());
    Batcher::start(move |deliveries: Arc<Vec<NewDelivery>>| {
        let (ledger, clock, ringer) = (Arc::clone(&ledger), clock.clone(), ringer.clone());
        async move {
            let receipts = ledger.accept(&deliveries, clock.now()).await?;
            for (delivery, receipt) in deliveries.iter().zip(&receipts) {
                if !receipt.duplicate && receipt.standing == schemas::Standing::Accepted {
                    ringer.ring(bells_of(&delivery.jobs, &delivery.runs));
                }
            }
            Ok(receipts)
        }
    })
}

fn job_writer(
    ledger: &Arc<dyn Ledger>,
    clock: &LedgerClock,
    ringer: &Ringer,
    put_off: &Arc<Notify>,
) -> Batcher<NewJob, Enqueued<JobId>> {
    let (ledger, clock, ringer, put_off) = (Arc::clone(ledger), clock.clone(), ringer.clone(), Arc::clone(put_off));
    Batcher::start(move |jobs: Arc<Vec<NewJob>>| {
        let (ledger, clock, ringer, put_off) =
            (Arc::clone(&ledger), clock.clone(), ringer.clone(), Arc::clone(&put_off));
        async move {
            let enqueued = ledger.enqueue(&jobs, clock.now()).await?;
            let mut bells = Bells::default();
            for (job, _) in jobs.iter().zip(&enqueued).filter(|(_, enqueued)| matches!(enqueued, Enqueued::New(_))) {
                match job.run_at {
                    None => bells.add_new(job),
                    Some(_) => put_off.notify_one(),
                }
            }
            ringer.ring(bells);
            Ok(enqueued)
        }
    })
}

fn end_writer(
    ledger: &Arc<dyn Ledger>,
    clock: &LedgerClock,
    ringer: &Ringer,
    put_off: &Arc<Notify>,
) -> Batcher<Ended, bool> {
    let (ledger, clock, ringer, put_off) = (Arc::clone(ledger), clock.clone(), ringer.clone(), Arc::clone(put_off));
    Batcher::start(move |ends: Arc<Vec<Ended>>| {
        let (ledger, clock, ringer, put_off) =
            (Arc::clone(&ledger), clock.clone(), ringer.clone(), Arc::clone(&put_off));
        async move {
            let Finished { recorded, bells } = ledger.finish(&ends, clock.now()).await?;
            ringer.ring(bells);
            if ends
                .iter()
                .any(|end| matches!(end.outcome.state(), schemas::JobState::Retryable | schemas::JobState::Scheduled))
            {
                put_off.notify_one();
            }
            Ok(recorded)
        }
    })
}
