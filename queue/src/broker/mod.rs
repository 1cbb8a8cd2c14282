//! The broker: carries bells to workers. It is disposable: whatever it loses, the ledger still knows. [`programs`] is the
//! other thing that brokers carry: messages from and to other programs.

mod in_process;
pub mod programs;
mod rabbitmq;

use std::sync::Arc;

use async_trait::async_trait;

use crate::{Bell, OpenError};

use in_process::InProcess;
use rabbitmq::RabbitMq;

/// Why a bell did not ring, or could not be waited for.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The broker is away, or did not answer within the deadline.
    #[error("the broker is unavailable: {0}")]
    Unavailable(String),
    /// The broker took the bell and had nowhere to put it.
    #[error("no queue takes bells for `{0}`")]
    Unroutable(String),
}

/// Opens the broker that an address names: `in-process` or `amqp://...`, which may be several with commas between them, the
/// nodes of one cluster.
pub async fn open(address: &str) -> Result<Arc<dyn Broker>, OpenError> {
    let scheme = address.split(':').next().unwrap_or_default();
    Ok(match scheme {
        "in-process" => Arc::new(InProcess::default()),
        "amqp" | "amqps" => Arc::new(RabbitMq::connect(address).await?),
        other => return Err(OpenError::UnknownBroker(other.to_owned())),
    })
}

/// Carries bells.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Rings, and waits until the broker has confirmed each bell. A failure is for logs and counters only: whoever
    /// rings has committed already, and polling finds the jobs.
    async fn ring(&self, bells: &[Bell]) -> Result<(), BrokerError>;

    /// Begins to listen for the bells of a queue.
    async fn listen(&self, queue: &str) -> Result<Box<dyn Listener>, BrokerError>;

    /// Whether it answers now; workers poll seldom while it does.
    fn is_well(&self) -> bool;

    /// Stops: waits for outstanding confirms, gives back what is held.
    async fn close(&self);
}

/// Hears the bells of one queue.
#[async_trait]
pub trait Listener: Send {
    /// The next bell that was not taken by another worker. Never ends: where the broker is away it waits until the
    /// broker is back. Cancel-safe.
    async fn heard(&mut self) -> Heard;

    /// Whether a bell that rings now is heard by [`Listener::heard`]. Who does not hear looks often.
    fn hears(&self) -> bool;

    /// No permit is free: gives back what was heard and not taken, so that idle workers hear it, until
    /// [`Listener::heard`] is called again.
    async fn pause(&mut self);
}

/// A bell in the hand of its receiver. Dropped without [`Heard::take`], it rings for another worker.
pub struct Heard {
    /// What it announces.
    pub bell: Bell,
    take: Option<Box<dyn FnOnce() + Send>>,
    give_back: Option<Box<dyn FnOnce() + Send>>,
}

impl Heard {
    /// A bell with what is to be done when it is taken or given back.
    pub(crate) fn new(
        bell: Bell,
        take: impl FnOnce() + Send + 'static,
        give_back: impl FnOnce() + Send + 'static,
    ) -> Self {
        Self { bell, take: Some(Box::new(take)), give_back: Some(Box::new(give_back)) }
    }

    /// Says that the receiver has claimed by it: the broker forgets it.
    pub fn take(mut self) {
        self.give_back = None;
        if let Some(take) = self.take.take() {
            take();
        }
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        if let Some(give_back) = self.give_back.take() {
            give_back();
        }
    }
}
