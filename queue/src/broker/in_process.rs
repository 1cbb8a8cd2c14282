//! The broker of a single process: a counter and a wake-up for each queue. Bells of one queue coalesce.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{Broker, BrokerError, Heard, Listener};
use crate::Bell;

/// Carries bells within this process.
#[derive(Default)]
pub(crate) struct InProcess {
    queues: Mutex<HashMap<String, Arc<Belfry>>>,
}

/// The bells of one queue that nobody has heard yet.
#[derive(Default)]
struct Belfry {
    waiting: Mutex<Option<Bell>>,
    rung: Notify,
}

impl InProcess {
    fn belfry(&self, queue: &str) -> Arc<Belfry> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(queues.entry(queue.to_owned()).or_default())
    }
}

impl Belfry {
    fn ring(&self, bell: &Bell) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *waiting {
            Some(other) => other.count = other.count.saturating_add(bell.count),
            None => *waiting = Some(bell.clone()),
        }
        self.rung.notify_one();
    }

    fn take(&self) -> Option<Bell> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[async_trait]
impl Broker for InProcess {
    async fn ring(&self, bells: &[Bell]) -> Result<(), BrokerError> {
        bells.iter().for_each(|bell| self.belfry(&bell.queue).ring(bell));
        Ok(())
    }

    async fn listen(&self, queue: &str) -> Result<Box<dyn Listener>, BrokerError> {
        Ok(Box::new(Ear(self.belfry(queue))))
    }

    fn is_well(&self) -> bool {
        true
    }

    async fn close(&self) {}
}

struct Ear(Arc<Belfry>);

#[async_trait]
impl Listener for Ear {
    async fn heard(&mut self) -> Heard {
        loop {
            // The permit of `notify_one` is kept until someone waits, so a bell between the look and the wait is not lost.
            if let Some(bell) = self.0.take() {
                let (belfry, again) = (Arc::clone(&self.0), bell.clone());
                return Heard::new(bell, || {}, move || belfry.ring(&again));
            }
            self.0.rung.notified().await;
        }
    }

    fn hears(&self) -> bool {
        true
    }

    async fn pause(&mut self) {}
}
