//! Publishes, and knows that the broker has it.

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, ExchangeKind, PublisherConfirm};
use tokio::sync::Mutex;

use super::link::{Link, Live};
use super::mailbox::{self, dead_letters_of};
use super::{DEADLINE, Fault, within};
use crate::broker::BrokerError;
use crate::broker::programs::Notice;

/// Where messages go.
pub(super) enum Target {
    /// A topic exchange, for whoever has bound a queue to it; what nobody has asked for is nobody's.
    Exchange(String),
    /// The queue beside this one, for what was refused there. There must be one.
    DeadLettersOf(String),
}

/// A message as it is published.
pub(super) struct Outgoing {
    pub(super) routing_key: String,
    pub(super) properties: BasicProperties,
    pub(super) body: Vec<u8>,
}

/// What goes to one target.
pub(super) struct Outbox {
    link: Link,
    target: Target,
    open: Mutex<Option<Open>>,
}

/// A channel with confirms; its target was there when it was opened.
struct Open {
    live: Live,
    channel: Channel,
}

/// Why something was not published.
enum Unsent {
    Fault(Fault),
    /// The broker has refused it, or no queue takes it.
    Refused(&'static str),
}

impl Outbox {
    pub(super) fn new(link: Link, target: Target) -> Self {
        Self { link, target, open: Mutex::default() }
    }

    /// Publishes all, then waits for all confirms.
    pub(super) async fn send(&self, messages: Vec<Outgoing>) -> Result<(), BrokerError> {
        let mut open = self.open.lock().await;
        let Some(live) = self.link.live() else { return Err(BrokerError::Unavailable("not connected".into())) };
        if live.is_blocked() {
            return Err(BrokerError::Unavailable("it holds publishers back: a memory or disk alarm".into()));
        }
        let sent = tokio::time::timeout(DEADLINE, self.send_all(&mut open, &live, messages)).await;
        let fault = match sent {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Unsent::Refused(why))) => {
                *open = None; // Someone deleted it: the next message declares it again.
                return Err(BrokerError::Unavailable(format!("{} {why}", self.target.name())));
            }
            Ok(Err(Unsent::Fault(fault))) => fault,
            Err(_) => Fault { text: format!("no confirm within {DEADLINE:?}"), channel_only: false },
        };
        *open = None;
        if !fault.channel_only {
            live.suspect().await;
        }
        Err(BrokerError::Unavailable(format!("{}: {}", self.target.name(), fault.text)))
    }

    async fn send_all(&self, open: &mut Option<Open>, live: &Live, messages: Vec<Outgoing>) -> Result<(), Unsent> {
        let open = match open {
            Some(open) if open.live.is_same(live) && open.channel.status().connected() => open,
            stale => stale.insert(self.open(live).await.map_err(Unsent::Fault)?),
        };
        let mut confirms = Vec::with_capacity(messages.len());
        for message in messages {
            confirms.push(self.publish(&open.channel, message).await.map_err(Unsent::Fault)?);
        }
        for confirm in confirms {
            match within("confirm", confirm).await.map_err(Unsent::Fault)? {
                Confirmation::Ack(None) => {}
                Confirmation::Ack(Some(_)) => return Err(Unsent::Refused("has no queue behind it")),
                Confirmation::Nack(_) | Confirmation::NotRequested => {
                    return Err(Unsent::Refused("took it for some of its readers only: one of their queues is full"));
                }
            }
        }
        Ok(())
    }

    async fn open(&self, live: &Live) -> Result<Open, Fault> {
        match &self.target {
            Target::Exchange(name) => exchange_is_there(live, name).await?,
            Target::DeadLettersOf(queue) => mailbox::dead_letters_are_there(live, queue).await?,
        }
        let channel = live.channel().await?;
        within("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Open { live: live.clone(), channel })
    }

    async fn publish(&self, channel: &Channel, message: Outgoing) -> Result<PublisherConfirm, Fault> {
        let (exchange, mandatory) = match &self.target {
            Target::Exchange(name) => (name.as_str(), false),
            Target::DeadLettersOf(_) => ("", true),
        };
        let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
        let Outgoing { routing_key, properties, body } = message;
        let publish = channel.basic_publish(exchange.into(), routing_key.into(), options, &body, properties);
        within("publish", publish).await
    }
}

impl Target {
    fn name(&self) -> String {
        match self {
            Self::Exchange(name) => format!("the exchange `{name}`"),
            Self::DeadLettersOf(queue) => format!("the queue `{}`", dead_letters_of(queue)),
        }
    }
}

/// An announcement as it is published.
pub(super) fn announcement(notice: &Notice) -> Outgoing {
    let mut headers = FieldTable::default();
    let trace = [("traceparent", &notice.trace.traceparent), ("tracestate", &notice.trace.tracestate)];
    for (name, value) in trace {
        if let Some(value) = value {
            headers.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
        }
    }
    // 2: kept on disk.
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type(notice.content_type.into())
        .with_message_id(notice.id.as_str().into())
        .with_app_id("nightporter".into())
        .with_headers(headers);
    Outgoing { routing_key: notice.routing_key.clone(), properties, body: notice.body.clone() }
}

/// Makes the exchange, unless there is one, which may be of any making: whoever runs the broker knows best, and may let us
/// make none.
async fn exchange_is_there(live: &Live, name: &str) -> Result<(), Fault> {
    let declare = async |passive: bool| {
        // A channel of its own: a refusal closes it.
        let channel = live.channel().await?;
        let options = ExchangeDeclareOptions { passive, durable: true, ..ExchangeDeclareOptions::default() };
        let declare = channel.exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default());
        within("declare the exchange", declare).await
    };
    match declare(false).await {
        Err(fault) if fault.channel_only => declare(true).await,
        asked => asked,
    }
}
