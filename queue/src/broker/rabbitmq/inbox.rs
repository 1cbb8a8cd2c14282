//! Receives what other programs lay into a queue.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Consumer};
use schemas::TraceContext;
use tracing::{debug, warn};

use super::link::{Link, Live};
use super::mailbox::{self, dead_letters_of};
use super::outbox::{Outbox, Outgoing, Target};
use super::{Fault, within};
use crate::broker::BrokerError;
use crate::broker::programs::{Inbox, Letter, Settle};
use crate::kill_point::reached;
use crate::retry::Pauses;

/// The pauses between tries to receive again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A message's headers travel in one frame of 128 KiB, and ours are to fit in: larger ones stay behind.
const MOST_HEADERS: usize = 64 << 10;

/// What headers say to the broker, and not to readers.
const ORDERS: [&str; 2] = ["CC", "BCC"];

pub(super) struct Tray {
    link: Link,
    queue: String,
    at_once: u16,
    refused: Arc<Outbox>,
    state: State,
    pauses: Pauses,
}

enum State {
    Paused,
    /// Kept across calls, so that whoever is cancelled again and again does not begin anew each time.
    Opening(BoxFuture<'static, (Live, Consumer)>),
    Receiving(Live, Consumer),
}

impl Tray {
    pub(super) fn new(receiving: Link, sending: Link, queue: &str, at_once: u16) -> Self {
        Self {
            link: receiving,
            queue: queue.to_owned(),
            at_once,
            refused: Arc::new(Outbox::new(sending, Target::DeadLettersOf(queue.to_owned()))),
            state: State::Paused,
            pauses: Pauses::endless(FIRST_PAUSE, LONGEST_PAUSE),
        }
    }

    fn open_after(&mut self, pause: Duration) {
        let (link, queue, at_once) = (self.link.clone(), self.queue.clone(), self.at_once);
        self.state = State::Opening(Box::pin(subscribe(link, queue, at_once, pause)));
    }

    fn letter(&self, live: Live, mut delivery: Delivery) -> Letter {
        let body = std::mem::take(&mut delivery.data);
        let properties = &delivery.properties;
        Letter {
            body,
            message_id: text(properties.message_id().as_ref()),
            content_type: text(properties.content_type().as_ref()),
            content_encoding: text(properties.content_encoding().as_ref()),
            user: text(properties.user_id().as_ref()),
            app: text(properties.app_id().as_ref()),
            trace: trace(properties),
            hand: Box::new(Hand { live, delivery, refused: Arc::clone(&self.refused), queue: self.queue.clone() }),
        }
    }
}

#[async_trait]
impl Inbox for Tray {
    async fn next(&mut self) -> Letter {
        loop {
            match &mut self.state {
                State::Paused => self.open_after(Duration::ZERO),
                State::Opening(opening) => {
                    let (live, consumer) = opening.await;
                    self.state = State::Receiving(live, consumer);
                }
                State::Receiving(live, consumer) => {
                    if let Some(Ok(delivery)) = consumer.next().await {
                        self.pauses.reset(u32::MAX);
                        let live = live.clone();
                        return self.letter(live, delivery);
                    }
                    // The connection or the channel is gone, or the broker ended the consumer: a new channel is right
                    // for all. What was in our hands is delivered again.
                    debug!(queue = self.queue, "the consumer ended; receiving again");
                    let pause = self.pauses.next_pause().unwrap_or(LONGEST_PAUSE);
                    self.open_after(pause);
                }
            }
        }
    }

    async fn pause(&mut self) {
        self.state = State::Paused;
    }
}

/// Consumes, on a new channel; tries until it does.
async fn subscribe(link: Link, queue: String, at_once: u16, pause: Duration) -> (Live, Consumer) {
    tokio::time::sleep(pause).await;
    let mut pauses = Pauses::endless(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let live = link.up().await;
        match consume(&live, &queue, at_once).await {
            Ok(consumer) => return (live, consumer),
            Err(fault) => {
                warn!(queue, error = fault.text, "cannot receive messages of other programs; trying again");
                if !fault.channel_only {
                    live.suspect().await;
                }
            }
        }
        tokio::time::sleep(pauses.next_pause().unwrap_or(LONGEST_PAUSE)).await;
    }
}

async fn consume(live: &Live, queue: &str, at_once: u16) -> Result<Consumer, Fault> {
    mailbox::is_there(live, queue).await?;
    let channel = live.channel().await?;
    within("set prefetch", channel.basic_qos(at_once, BasicQosOptions::default())).await?;
    let options = BasicConsumeOptions::default();
    within("consume", channel.basic_consume(queue.into(), "".into(), options, FieldTable::default())).await
}

/// A message in our hands, without its bytes.
struct Hand {
    live: Live,
    delivery: Delivery,
    refused: Arc<Outbox>,
    queue: String,
}

#[async_trait]
impl Settle for Hand {
    async fn done(self: Box<Self>) {
        match within("acknowledge", self.delivery.acker.ack(BasicAckOptions::default())).await {
            Ok(true) => {}
            Ok(false) => debug!("a message was acknowledged on a channel that is gone; it comes again"),
            Err(fault) => {
                debug!(error = fault.text, "a message could not be acknowledged; it comes again");
                self.live.suspect().await;
            }
        }
    }

    async fn refuse(self: Box<Self>, body: &[u8], reason: &str) -> Result<(), BrokerError> {
        let message = Outgoing {
            routing_key: dead_letters_of(&self.queue),
            properties: laid_aside(&self.delivery, reason),
            body: body.to_vec(),
        };
        self.refused.send(vec![message]).await?;
        reached("message laid aside");
        self.done().await;
        Ok(())
    }
}

/// Sets a property.
type With = fn(BasicProperties, ShortString) -> BasicProperties;

/// The properties of a message that is laid aside: its own, without those by which the broker would do something with it
/// (refuse it, forget it, send it elsewhere); these are headers then, for people.
fn laid_aside(delivery: &Delivery, reason: &str) -> BasicProperties {
    let properties = &delivery.properties;
    let mut headers = kept_headers(properties);
    let said = [
        ("x-nightporter-reason", Some(reason.to_owned())),
        ("x-nightporter-exchange", Some(delivery.exchange.as_str().to_owned())),
        ("x-nightporter-routing-key", Some(delivery.routing_key.as_str().to_owned())),
        ("x-nightporter-user-id", text(properties.user_id().as_ref())),
        ("x-nightporter-reply-to", text(properties.reply_to().as_ref())),
        ("x-nightporter-expiration", text(properties.expiration().as_ref())),
    ];
    for (name, value) in said.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    // 2: kept on disk.
    let mut aside = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    let copied: [(&Option<ShortString>, With); 6] = [
        (properties.content_type(), BasicProperties::with_content_type),
        (properties.content_encoding(), BasicProperties::with_content_encoding),
        (properties.correlation_id(), BasicProperties::with_correlation_id),
        (properties.message_id(), BasicProperties::with_message_id),
        (properties.kind(), BasicProperties::with_type),
        (properties.app_id(), BasicProperties::with_app_id),
    ];
    for (value, with) in copied {
        if let Some(value) = value {
            aside = with(aside, value.clone());
        }
    }
    match properties.timestamp() {
        Some(sent_at) => aside.with_timestamp(*sent_at),
        None => aside,
    }
}

fn kept_headers(properties: &BasicProperties) -> FieldTable {
    let mut headers = FieldTable::default();
    let Some(old) = properties.headers() else { return headers };
    // As text they are never shorter than as bytes.
    if format!("{old:?}").len() > MOST_HEADERS {
        headers.insert("x-nightporter-headers".into(), AMQPValue::LongString("too large to be kept".into()));
        return headers;
    }
    for (name, value) in old.inner().iter().filter(|(name, _)| !ORDERS.contains(&name.as_str())) {
        headers.insert(name.clone(), value.clone());
    }
    headers
}

fn text(value: Option<&ShortString>) -> Option<String> {
    value.map(|text| text.as_str().to_owned())
}

fn trace(properties: &BasicProperties) -> TraceContext {
    let header = |name: &str| match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    };
    TraceContext { traceparent: header("traceparent"), tracestate: header("tracestate") }
}
