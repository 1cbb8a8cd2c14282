//! The heart of a worker: one batched heartbeat for all running attempts, and the fence that stops an attempt whose
//! heartbeats do not arrive before anybody else may take its job.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use queue::Queue;
use queue::clock::later;
use queue::kill_point::reached;
use queue::ledger::Beat;
use schemas::AttemptId;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

/// Why an attempt is stopped from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// An operator wants it cancelled, for this reason.
    Cancel(String),
    /// It no longer holds its job, or may soon not.
    LeaseLost,
}

/// The running attempts of this process.
pub(crate) struct Heart {
    queue: Queue,
    lease: Duration,
    running: Mutex<HashMap<AttemptId, Pulse>>,
}

struct Pulse {
    /// When the last heartbeat that succeeded was sent.
    beaten: Instant,
    interrupt: watch::Sender<Option<Interrupt>>,
}

/// An attempt's place in the heart; it beats until this is dropped.
pub(crate) struct Beating {
    heart: Arc<Heart>,
    attempt: AttemptId,
    interrupt: watch::Receiver<Option<Interrupt>>,
}

impl Heart {
    /// A heart whose leases last as long as given: it beats three times in a lease, and fences at two thirds of it.
    pub(crate) fn new(queue: Queue, lease: Duration) -> Arc<Self> {
        Arc::new(Self { queue, lease, running: Mutex::default() })
    }

    /// Begins to beat for an attempt that was claimed by a request sent at `claimed`.
    pub(crate) fn begin(self: &Arc<Self>, attempt: AttemptId, claimed: Instant) -> Beating {
        let (sender, interrupt) = watch::channel(None);
        self.lock().insert(attempt, Pulse { beaten: claimed, interrupt: sender });
        Beating { heart: Arc::clone(self), attempt, interrupt }
    }

    /// Beats and fences for as long as it is polled.
    pub(crate) async fn run(&self) {
        tokio::join!(self.beat(), self.fence());
    }

    async fn beat(&self) {
        let mut due = tokio::time::interval(self.lease / 3);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            let sent = Instant::now();
            // After a pause an attempt whose time has passed is stopped whether this beat or the fence wakes first. It
            // is beaten for nevertheless, so that nobody takes its job before its end is recorded.
            self.fence_overdue();
            let attempts: Vec<AttemptId> = self.lock().keys().copied().collect();
            if attempts.is_empty() {
                continue;
            }
            let now = self.queue.clock().now();
            let beats = self.queue.ledger().heartbeat(&attempts, later(now, self.lease), now);
            match tokio::time::timeout(self.lease / 4, beats).await {
                Ok(Ok(beats)) => {
                    reached("beaten");
                    self.heed(&attempts, &beats, sent);
                    continue;
                }
                Ok(Err(error)) => warn!(error = &error as &dyn std::error::Error, "heartbeat failed"),
                Err(_) => warn!("heartbeat was not answered in time"),
            }
            // Again soon: at the next regular beat the fence would be about to fall, and after a restart of the
            // database each connection of the pool fails once.
            due.reset_after(self.lease / 30);
        }
    }

    fn heed(&self, attempts: &[AttemptId], beats: &[Beat], sent: Instant) {
        let mut running = self.lock();
        for (attempt, beat) in attempts.iter().zip(beats) {
            let Some(pulse) = running.get_mut(attempt) else { continue };
            match beat {
                Beat::Alive => pulse.beaten = sent,
                Beat::Cancel(reason) => {
                    pulse.beaten = sent;
                    pulse.interrupt.send_replace(Some(Interrupt::Cancel(reason.clone())));
                }
                Beat::Lost => {
                    pulse.interrupt.send_replace(Some(Interrupt::LeaseLost));
                }
            }
        }
    }

    async fn fence(&self) {
        let mut look = tokio::time::interval(self.lease / 30);
        loop {
            look.tick().await;
            self.fence_overdue();
        }
    }

    fn fence_overdue(&self) {
        for pulse in self.lock().values().filter(|pulse| self.is_overdue(pulse)) {
            pulse.interrupt.send_replace(Some(Interrupt::LeaseLost));
        }
    }

    fn is_overdue(&self, pulse: &Pulse) -> bool {
        pulse.beaten.elapsed() >= self.lease * 2 / 3
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<AttemptId, Pulse>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Beating {
    /// Ends when the attempt is to be stopped.
    ///
    /// Each time it is polled it looks at the lease itself. When a process goes on after a pause (it was stopped, or its
    /// machine was), the handler may be woken before the fence is; whoever polls this first never goes on with a
    /// handler whose time has passed. What the handler had given to the kernel before the pause can't be called back:
    /// that is what steps of unknown outcome are for.
    pub(crate) async fn interrupted(&mut self) -> Interrupt {
        let Self { heart, attempt, interrupt } = self;
        let mut told = pin!(interrupt.wait_for(Option::is_some));
        poll_fn(|cx| {
            if heart.lock().get(attempt).is_none_or(|pulse| heart.is_overdue(pulse)) {
                return Poll::Ready(Interrupt::LeaseLost);
            }
            told.as_mut().poll(cx).map(|told| match told {
                Ok(interrupt) => interrupt.clone().unwrap_or(Interrupt::LeaseLost),
                Err(_) => Interrupt::LeaseLost,
            })
        })
        .await
    }

    /// When the lease that the ledger is known to have granted ends.
    pub(crate) fn lease_ends(&self) -> Instant {
        let beaten = self.heart.lock().get(&self.attempt).map(|pulse| pulse.beaten);
        beaten.map_or_else(Instant::now, |beaten| beaten + self.heart.lease)
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.heart.lock().remove(&self.attempt);
    }
}
