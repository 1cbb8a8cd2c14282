//! Rings bells, and knows that they rang.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::sync::Mutex;

use super::link::{Link, Live};
use super::{DEADLINE, Fault, declare, name_of, within};
use crate::Bell;
use crate::broker::BrokerError;

/// Between two tries to publish what was refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Publisher {
    link: Link,
    /// One for each queue: where the queue's leader is away, its channel answers nothing, and no other queue is to wait.
    ropes: std::sync::Mutex<HashMap<String, Arc<Mutex<Option<Open>>>>>,
}

/// A channel with confirms; its queue was there when it was opened.
struct Open {
    live: Live,
    channel: Channel,
}

/// Why bells did not ring.
enum Silent {
    Fault(Fault),
    Unroutable,
}

impl Publisher {
    pub(super) fn new(link: Link) -> Self {
        Self { link, ropes: std::sync::Mutex::default() }
    }

    /// Publishes all bells, then waits for all confirms. Each queue has its own deadline.
    pub(super) async fn ring(&self, bells: &[Bell]) -> Result<(), BrokerError> {
        let mut by_queue: BTreeMap<&str, Vec<&Bell>> = BTreeMap::new();
        bells.iter().for_each(|bell| by_queue.entry(&bell.queue).or_default().push(bell));
        let rung = join_all(by_queue.into_iter().map(|(queue, bells)| self.ring_queue(queue, bells))).await;
        rung.into_iter().collect()
    }

    async fn ring_queue(&self, queue: &str, bells: Vec<&Bell>) -> Result<(), BrokerError> {
        let rope = self.rope(queue);
        let mut open = rope.lock().await;
        let Some(live) = self.link.live() else { return Err(BrokerError::Unavailable("not connected".into())) };
        if live.is_blocked() {
            return Err(BrokerError::Unavailable("it holds publishers back: a memory or disk alarm".into()));
        }
        let rung = tokio::time::timeout(DEADLINE, ring_all(&mut open, &live, queue, bells)).await;
        let fault = match rung {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Silent::Unroutable)) => {
                *open = None; // Someone deleted it: the next bell declares it again.
                return Err(BrokerError::Unroutable(queue.to_owned()));
            }
            Ok(Err(Silent::Fault(fault))) => fault,
            Err(_) => Fault { text: format!("no confirm within {DEADLINE:?}"), channel_only: false },
        };
        // What was not confirmed may have rung or not; the channel knows no more.
        *open = None;
        if !fault.channel_only {
            live.suspect().await;
        }
        Err(BrokerError::Unavailable(fault.text))
    }

    fn rope(&self, queue: &str) -> Arc<Mutex<Option<Open>>> {
        let mut ropes = self.ropes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(ropes.entry(queue.to_owned()).or_default())
    }

    pub(super) fn is_well(&self) -> bool {
        self.link.is_up()
    }

    /// Waits for the confirms that are outstanding, and closes.
    pub(super) async fn close(&self) {
        let ropes = std::mem::take(&mut *self.ropes.lock().unwrap_or_else(PoisonError::into_inner));
        join_all(ropes.values().map(|rope| async { drop(rope.lock().await.take()) })).await;
        self.link.close().await;
    }
}

async fn ring_all(open: &mut Option<Open>, live: &Live, queue: &str, bells: Vec<&Bell>) -> Result<(), Silent> {
    let open = match open {
        Some(open) if open.is_of(live) => open,
        stale => stale.insert(Open::new(live.clone(), queue).await.map_err(Silent::Fault)?),
    };
    let mut to_ring = bells;
    // A queue that has just been made, or lost its leader, refuses for a moment. The deadline around this ends it.
    while !to_ring.is_empty() {
        to_ring = open.ring_once(to_ring).await?;
        if !to_ring.is_empty() {
            tokio::time::sleep(REFUSED_PAUSE).await;
        }
    }
    Ok(())
}

impl Open {
    async fn new(live: Live, queue: &str) -> Result<Self, Fault> {
        let channel = live.channel().await?;
        within("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        // What is published to a queue that is not there comes back.
        declare(&channel, queue).await?;
        Ok(Self { live, channel })
    }

    fn is_of(&self, live: &Live) -> bool {
        self.live.is_same(live) && self.channel.status().connected()
    }

    /// Publishes all, then waits for all confirms; those that were refused.
    async fn ring_once<'a>(&mut self, bells: Vec<&'a Bell>) -> Result<Vec<&'a Bell>, Silent> {
        let mut confirms = Vec::with_capacity(bells.len());
        for bell in bells {
            confirms.push((bell, self.publish(bell).await.map_err(Silent::Fault)?));
        }
        let (mut refused, mut unroutable) = (Vec::new(), false);
        for (bell, confirm) in confirms {
            match within("confirm", confirm).await.map_err(Silent::Fault)? {
                Confirmation::Ack(None) => {}
                Confirmation::Ack(Some(_)) => unroutable = true,
                Confirmation::Nack(_) | Confirmation::NotRequested => refused.push(bell),
            }
        }
        if unroutable { Err(Silent::Unroutable) } else { Ok(refused) }
    }

    async fn publish(&self, bell: &Bell) -> Result<PublisherConfirm, Fault> {
        // A bell is a handful of strings and numbers: it has a JSON form.
        let payload = serde_json::to_vec(bell).unwrap_or_default();
        // `mandatory`: what no queue takes comes back, instead of being confirmed and dropped.
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let publish = self.channel.basic_publish("".into(), name_of(&bell.queue), options, &payload, properties(bell));
        within("publish", publish).await
    }
}

fn properties(bell: &Bell) -> BasicProperties {
    let mut headers = FieldTable::default();
    let trace = [("traceparent", &bell.trace.traceparent), ("tracestate", &bell.trace.tracestate)];
    for (name, value) in trace {
        if let Some(value) = value {
            headers.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
        }
    }
    // 2: kept on disk.
    BasicProperties::default().with_delivery_mode(2).with_content_type("application/json".into()).with_headers(headers)
}
