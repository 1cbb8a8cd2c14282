//! The consumer of one queue: bells and polls become claims, as many as there are free permits.

use std::sync::Arc;
use std::time::Duration;

use queue::Bell;
use queue::bell::Bells;
use queue::broker::{Heard, Listener};
use queue::kill_point::reached;
use queue::ledger::{Claim, LedgerError};
use queue::retry::{Pauses, chance};
use schemas::WorkerId;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::executor::Executor;

/// No claim asks for more.
const LARGEST_CLAIM: usize = 256;
/// With no permit free for so long, bells are given back to idle neighbours.
const HOLD_BELLS: Duration = Duration::from_secs(1);
/// A look without a bell while none is heard. Jittered.
const POLL_WITHOUT_BELLS: Duration = Duration::from_secs(1);

/// What a look at the queue brought.
struct Got {
    jobs: usize,
    /// A claim took less than it might: nothing is left. Otherwise more may wait, which no bell will announce.
    emptied: bool,
}

/// Claims from one queue and hands to the executor.
pub(crate) struct Consumer {
    pub(crate) executor: Arc<Executor>,
    pub(crate) queue: String,
    pub(crate) kinds: Vec<String>,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) worker: WorkerId,
    pub(crate) lease: Duration,
    pub(crate) poll: Duration,
    pub(crate) attempts: TaskTracker,
}

impl Consumer {
    /// Claims until told to stop.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let Some(mut listener) = self.listen(&stop).await else { return };
        let mut pauses = Pauses::endless(Duration::from_millis(50), Duration::from_secs(2));
        // What waited in the ledger before this process began has no bell, or has lost it.
        let mut more = true;
        while !stop.is_cancelled() {
            let heard = tokio::select! {
                () = stop.cancelled() => return,
                heard = self.bell_or_poll(&mut *listener, more) => heard,
            };
            let looked = heard.is_none() && !more;
            match self.claim_for(heard).await {
                Ok(got) => {
                    if looked && got.jobs > 0 && listener.hears() {
                        // Nothing announced these, though bells are heard. A bell may be on its way; but a broker can also
                        // forget a consumer and not say so (RabbitMQ, of a queue that is deleted under load).
                        debug!(queue = self.queue, "found work that no bell announced; listening anew");
                        listener.pause().await;
                    }
                    more = !got.emptied;
                    pauses.reset(u32::MAX);
                }
                Err(error) => {
                    warn!(queue = self.queue, error = &error as &dyn std::error::Error, "claim failed");
                    tokio::time::sleep(pauses.next_pause().unwrap_or(HOLD_BELLS)).await;
                }
            }
        }
    }

    async fn listen(&self, stop: &CancellationToken) -> Option<Box<dyn Listener>> {
        let mut pauses = Pauses::endless(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            match self.executor.queue.broker().listen(&self.queue).await {
                Ok(listener) => return Some(listener),
                Err(error) => {
                    warn!(queue = self.queue, error = &error as &dyn std::error::Error, "cannot listen; trying again");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(pauses.next_pause().unwrap_or(HOLD_BELLS)) => {}
            }
        }
    }

    /// Waits for a free permit, and then for a bell or the time of the next poll: at once, where `more` may wait.
    async fn bell_or_poll(&self, listener: &mut dyn Listener, more: bool) -> Option<Heard> {
        if tokio::time::timeout(HOLD_BELLS, self.a_free_permit()).await.is_err() {
            listener.pause().await;
            self.a_free_permit().await;
        }
        let hears = self.executor.queue.broker().is_well() && listener.hears();
        let poll = if hears { self.poll } else { POLL_WITHOUT_BELLS }.mul_f64(0.5 + chance());
        // A bell that is there already is heard even then: it is not to be held back from idle neighbours.
        let poll = if more { Duration::ZERO } else { poll };
        tokio::time::timeout(poll, listener.heard()).await.ok()
    }

    async fn a_free_permit(&self) {
        // Never closed. The permit goes back at once: this is the only task that takes any.
        drop(self.permits.acquire().await);
    }

    /// Claims as many as there are free permits, again while claims come back full: a bell buys what it announced and
    /// whatever else is there, for a claim costs the same for one job as for many. What it announced and no permit is
    /// free for is rung again.
    async fn claim_for(&self, heard: Option<Heard>) -> Result<Got, LedgerError> {
        let announced = heard.as_ref().map_or(0, |heard| heard.bell.count as usize);
        let mut got = Got { jobs: 0, emptied: false };
        loop {
            let limit = self.permits.available_permits().min(LARGEST_CLAIM);
            if limit == 0 {
                break;
            }
            let claimed = self.claim(limit).await?;
            got.jobs += claimed;
            if claimed < limit {
                got.emptied = true;
                break;
            }
        }
        if let Some(heard) = heard {
            let rest = if got.emptied { 0 } else { announced.saturating_sub(got.jobs) };
            self.ring_for_the_rest(&heard.bell, rest);
            heard.take();
        }
        Ok(got)
    }

    async fn claim(&self, limit: usize) -> Result<usize, LedgerError> {
        let claim = Claim {
            queue: self.queue.clone(),
            kinds: self.kinds.clone(),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
            worker: self.worker,
            lease: self.lease,
        };
        let sent = Instant::now();
        let queue = &self.executor.queue;
        let jobs = queue.ledger().claim(&claim, queue.clock().now()).await?;
        let got = jobs.len();
        if got > 0 {
            reached("claimed");
        }
        for job in jobs {
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { break };
            let executor = Arc::clone(&self.executor);
            self.attempts.spawn(async move {
                executor.execute(job, sent).await;
                drop(permit);
            });
        }
        Ok(got)
    }

    fn ring_for_the_rest(&self, bell: &Bell, rest: usize) {
        if rest > 0 {
            let mut bells = Bells::default();
            bells.add_bell(Bell { count: u32::try_from(rest).unwrap_or(u32::MAX), ..bell.clone() });
            self.executor.queue.ring(bells);
        }
    }
}
