//! Knows that the ledger is away, so that not every delivery finds it out by waiting: senders wait for ten seconds at most,
//! and whoever waits holds a body in memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use queue::Queue;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::door::Door;

/// A ledger that tells the time within this is there.
const READY_WITHIN: Duration = Duration::from_secs(1);

/// Between two looks whether it is back.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Whether the ledger is away.
#[derive(Debug, Default)]
pub(crate) struct Absence(AtomicBool);

impl Absence {
    /// Whether it was away when we last looked, a moment ago.
    pub(crate) fn is_known(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Door {
    /// Something could not be booked: until the ledger tells the time again, nothing else is offered to it.
    pub(crate) fn look_for_the_ledger(&self) {
        if self.0.absence.0.swap(true, Ordering::AcqRel) {
            return;
        }
        let door = self.clone();
        tokio::spawn(async move {
            let mut was_away = false;
            while !is_there(&door.0.config.queue).await {
                if !was_away {
                    warn!("the ledger is away; deliveries are spooled, or refused until it is back");
                }
                was_away = true;
                sleep(LOOK_AGAIN).await;
            }
            if was_away {
                info!("the ledger is back");
            }
            door.0.absence.0.store(false, Ordering::Release);
        });
    }
}

/// Whether the ledger answers.
pub(crate) async fn is_there(queue: &Queue) -> bool {
    matches!(timeout(READY_WITHIN, queue.ledger().time()).await, Ok(Ok(_)))
}
