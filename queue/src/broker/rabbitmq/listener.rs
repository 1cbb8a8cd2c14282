//! Hears the bells of one queue.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use lapin::Consumer;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::FieldTable;
use tokio::runtime::Handle;
use tracing::{debug, warn};

use super::link::{Link, Live};
use super::{Fault, declare, name_of, within};
use crate::Bell;
use crate::broker::{Heard, Listener};
use crate::retry::Pauses;

/// One bell in the hand is enough: it buys up to 256 claims, and the next one is better heard by an idle neighbour.
const PREFETCH: u16 = 1;
/// The pauses between tries to listen again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

pub(super) struct Ear {
    link: Link,
    queue: String,
    state: State,
    pauses: Pauses,
}

enum State {
    Paused,
    /// Kept across calls, so that whoever asks for a bell again and again does not begin anew each time.
    Opening(BoxFuture<'static, Subscription>),
    Listening(Subscription),
}

/// A consumer on a channel of its own; dropped, it closes the channel, and the broker takes back what was not acknowledged.
struct Subscription {
    live: Live,
    consumer: Consumer,
}

impl Ear {
    pub(super) fn new(link: Link, queue: &str) -> Self {
        let pauses = Pauses::endless(FIRST_PAUSE, LONGEST_PAUSE);
        Self { link, queue: queue.to_owned(), state: State::Paused, pauses }
    }

    fn open_after(&mut self, pause: Duration) {
        let (link, queue) = (self.link.clone(), self.queue.clone());
        self.state = State::Opening(Box::pin(subscribe(link, queue, pause)));
    }
}

#[async_trait]
impl Listener for Ear {
    async fn heard(&mut self) -> Heard {
        loop {
            match &mut self.state {
                State::Paused => self.open_after(Duration::ZERO),
                State::Opening(opening) => self.state = State::Listening(opening.await),
                State::Listening(subscription) => {
                    if let Some(Ok(delivery)) = subscription.consumer.next().await {
                        self.pauses.reset(u32::MAX);
                        if let Some(heard) = read(&self.queue, &subscription.live, delivery) {
                            return heard;
                        }
                    } else {
                        // The connection or the channel is gone, or the broker ended the consumer (a deleted queue, its
                        // own timeout): it does not say which, and a new channel is right for all.
                        debug!(queue = self.queue, "the consumer ended; listening again");
                        let pause = self.pauses.next_pause().unwrap_or(LONGEST_PAUSE);
                        self.open_after(pause);
                    }
                }
            }
        }
    }

    fn hears(&self) -> bool {
        matches!(&self.state, State::Listening(subscription) if subscription.live.is_up())
    }

    async fn pause(&mut self) {
        self.state = State::Paused;
    }
}

/// Makes a bell of a message. What is none is refused for good: it would come back for ever.
fn read(queue: &str, live: &Live, delivery: Delivery) -> Option<Heard> {
    let acker = delivery.acker;
    match serde_json::from_slice::<Bell>(&delivery.data) {
        Ok(bell) if bell.queue == queue => {
            let other = acker.clone();
            let take = answer(live.clone(), async move { acker.ack(BasicAckOptions::default()).await });
            let nack = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
            let give_back = answer(live.clone(), async move { other.nack(nack).await });
            Some(Heard::new(bell, take, give_back))
        }
        Ok(_) | Err(_) => {
            warn!(queue, bytes = delivery.data.len(), "refused a message that is no bell of this queue");
            answer(live.clone(), async move { acker.reject(BasicRejectOptions { requeue: false }).await })();
            None
        }
    }
}

/// Answers a delivery in a task of its own, with a deadline. On a channel that is gone the answer goes nowhere: the broker
/// has taken the bell back already, and it rings once more.
fn answer<F>(live: Live, call: F) -> impl FnOnce() + Send + 'static
where
    F: Future<Output = lapin::Result<bool>> + Send + 'static,
{
    let runtime = Handle::current(); // a bell may be dropped outside of it
    move || {
        runtime.spawn(async move {
            match within("answer", call).await {
                Ok(true) => {}
                Ok(false) => debug!("a bell was answered on a channel that is gone; it rings again"),
                Err(fault) => {
                    debug!(error = fault.text, "a bell could not be answered; it rings again");
                    live.suspect().await;
                }
            }
        });
    }
}

/// Consumes, on a new channel; tries until it does.
async fn subscribe(link: Link, queue: String, pause: Duration) -> Subscription {
    tokio::time::sleep(pause).await;
    let mut pauses = Pauses::endless(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let live = link.up().await;
        match consume(&live, &queue).await {
            Ok(consumer) => return Subscription { live, consumer },
            Err(fault) => {
                warn!(queue, error = fault.text, "cannot listen for bells; trying again");
                if !fault.channel_only {
                    live.suspect().await;
                }
            }
        }
        tokio::time::sleep(pauses.next_pause().unwrap_or(LONGEST_PAUSE)).await;
    }
}

async fn consume(live: &Live, queue: &str) -> Result<Consumer, Fault> {
    let channel = live.channel().await?;
    declare(&channel, queue).await?;
    within("set prefetch", channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
    // No tag of ours: the broker makes a fresh one each time.
    let options = BasicConsumeOptions::default();
    within("consume", channel.basic_consume(name_of(queue), "".into(), options, FieldTable::default())).await
}
