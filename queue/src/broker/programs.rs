//! Messages from and to other programs: what they want done, and what is announced to them.
//!
//! It has nothing to do with bells, nor need it be the same server: where it is away, work goes on.

use std::sync::Arc;

use async_trait::async_trait;
use schemas::TraceContext;

use super::rabbitmq::{Mail, check_address};
use super::{BrokerError, OpenError};

/// Opens the way to other programs that an address names: `amqp://...`, which may be several with commas between them.
/// It need not be there yet: it is connected to as soon as it is, and again whenever it was lost.
pub fn connect(address: &str) -> Result<Arc<dyn Programs>, OpenError> {
    match address.split(':').next().unwrap_or_default() {
        "amqp" | "amqps" => Ok(Arc::new(Mail::open(address)?)),
        other => Err(OpenError::UnknownBroker(other.to_owned())),
    }
}

/// Whether an address names nodes that can be connected to, without trying it.
pub fn check(address: &str) -> Result<(), BrokerError> {
    check_address(address)
}

/// Carries messages from and to other programs.
#[async_trait]
pub trait Programs: Send + Sync {
    /// Begins to receive what programs lay into a queue, which is made if it is not there, with another one beside it for
    /// what is refused. At most `at_once` messages are in our hands.
    fn receive(&self, queue: &str, at_once: u16) -> Box<dyn Inbox>;

    /// Publishes to a topic exchange, which is made if it is not there, and waits until each message is confirmed. In
    /// which order those arrive that are given together is not said.
    async fn publish(&self, exchange: &str, messages: &[Notice]) -> Result<(), BrokerError>;

    /// Whether it answers now.
    fn is_well(&self) -> bool;

    /// Stops, and gives back what is held.
    async fn close(&self);
}

/// Receives the messages of one queue.
#[async_trait]
pub trait Inbox: Send {
    /// The next message. Never ends: where the broker is away it waits until it is back. Cancel-safe.
    async fn next(&mut self) -> Letter;

    /// Gives back what is in our hands and not settled, and takes nothing until [`Inbox::next`] is called again.
    async fn pause(&mut self);
}

/// A message of another program. Dropped without being settled it stays in our hands, until the inbox pauses or the channel
/// ends; then it is delivered again.
pub struct Letter {
    /// Its bytes.
    pub body: Vec<u8>,
    /// What its sender calls it.
    pub message_id: Option<String>,
    /// The type of its bytes, where its sender says it.
    pub content_type: Option<String>,
    /// How its bytes are packed, where its sender says it.
    pub content_encoding: Option<String>,
    /// The user that it was published by, where its sender says so: the broker has checked that.
    pub user: Option<String>,
    /// The program that sent it, in its own words.
    pub app: Option<String>,
    /// Where in a trace it was sent.
    pub trace: TraceContext,
    pub(super) hand: Box<dyn Settle>,
}

/// Settles a message.
#[async_trait]
pub(super) trait Settle: Send {
    async fn done(self: Box<Self>);
    async fn refuse(self: Box<Self>, body: &[u8], reason: &str) -> Result<(), BrokerError>;
}

impl Letter {
    /// It is done: the broker forgets it. Where that does not reach the broker, it is delivered again.
    pub async fn done(self) {
        self.hand.done().await;
    }

    /// It can never be done: lays it aside, as it came and with the reason, and only then has the broker forget it. If it
    /// cannot be laid aside it stays in our hands.
    pub async fn refuse(self, reason: &str) -> Result<(), BrokerError> {
        self.hand.refuse(&self.body, reason).await
    }
}

/// What is announced to other programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// By which others choose it.
    pub routing_key: String,
    /// By which others know it again.
    pub id: String,
    /// What its bytes are.
    pub content_type: &'static str,
    /// Its bytes.
    pub body: Vec<u8>,
    /// Where in a trace it came about.
    pub trace: TraceContext,
}
