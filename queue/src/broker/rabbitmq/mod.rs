//! `RabbitMQ`: one quorum queue for each of ours. Works on 3.10 and later, with no plugin.
//!
//! lapin's own recovery is not used: it restores neither prefetch nor a channel that one error closed, and gives up in the
//! end. Here each connection has a supervisor ([`link`]), every call has a deadline, and whatever goes wrong ends in one
//! way: drop the channel or the connection, make a new one, declare, consume. Bells that are lost, doubled or late by that
//! do no harm.

mod inbox;
mod link;
mod listener;
mod mail;
mod mailbox;
mod outbox;
mod publisher;

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use self::link::Link;
use self::listener::Ear;
use self::publisher::Publisher;
use super::{Broker, BrokerError, Listener};
use crate::Bell;

/// No call to the broker waits longer. A connection that the broker blocks (memory, disk) never answers.
const DEADLINE: Duration = Duration::from_secs(5);

/// A queue that nobody listens to keeps no more bells; the oldest go first.
const MOST_BELLS: i32 = 10_000;

pub(crate) use self::link::check_address;
pub(crate) use self::mail::Mail;

/// Carries bells between processes.
pub(crate) struct RabbitMq {
    publisher: Publisher,
    listening: Link,
}

impl RabbitMq {
    /// Connects; fails within the deadline where the broker is away. From then on it comes back by itself, without end.
    pub(crate) async fn connect(addresses: &str) -> Result<Self, BrokerError> {
        // Two connections: where the broker holds back those who publish, those who consume go on.
        let (publishing, listening) = futures_util::try_join!(Link::connect(addresses), Link::connect(addresses))?;
        Ok(Self { publisher: Publisher::new(publishing), listening })
    }
}

#[async_trait]
impl Broker for RabbitMq {
    async fn ring(&self, bells: &[Bell]) -> Result<(), BrokerError> {
        self.publisher.ring(bells).await
    }

    async fn listen(&self, queue: &str) -> Result<Box<dyn Listener>, BrokerError> {
        Ok(Box::new(Ear::new(self.listening.clone(), queue)))
    }

    fn is_well(&self) -> bool {
        self.publisher.is_well() && self.listening.is_up()
    }

    async fn close(&self) {
        futures_util::join!(self.publisher.close(), self.listening.close());
    }
}

/// What went wrong in a call.
struct Fault {
    text: String,
    /// The broker closed the channel alone; the connection is as good as before.
    channel_only: bool,
}

/// Makes a call with a deadline.
async fn within<T>(what: &str, call: impl Future<Output = lapin::Result<T>>) -> Result<T, Fault> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Fault { text: format!("{what}: {error}"), channel_only: error.is_amqp_soft_error() }),
        Err(_) => Err(Fault { text: format!("{what}: no answer within {DEADLINE:?}"), channel_only: false }),
    }
}

/// The broker's queue for one of ours.
fn name_of(queue: &str) -> ShortString {
    format!("nightporter.{queue}").into()
}

/// Makes the broker's queue, unless it is there.
///
/// A declaration must be the same for ever: any other is refused while the queue exists. So it says what never changes,
/// and the one limit without which a queue that nobody listens to fills the broker's disk: a client can't set a policy.
/// An operator's policy may set a lower one, for the broker takes the lower of both.
async fn declare(channel: &Channel, queue: &str) -> Result<(), Fault> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(MOST_BELLS));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    within("declare", channel.queue_declare(name_of(queue), options, arguments)).await.map(drop)
}
