//! Rings bells, and knows that they rang.

use std::collections::HashSet;
use std::time::Duration;

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
    open: Mutex<Option<Open>>,
}

/// A channel with confirms.
struct Open {
    live: Live,
    channel: Channel,
    /// The queues that were there when we looked: what is published to one that is not comes back.
    declared: HashSet<String>,
}

/// Why bells did not ring.
enum Silent {
    Fault(Fault),
    Unroutable(String),
}

impl Publisher {
    pub(super) fn new(link: Link) -> Self {
        Self { link, open: Mutex::new(None) }
    }

    /// Publishes all bells, then waits for all confirms; one deadline for everything.
    pub(super) async fn ring(&self, bells: &[Bell]) -> Result<(), BrokerError> {
        let mut open = self.open.lock().await;
        let rung = tokio::time::timeout(DEADLINE, self.ring_all(&mut open, bells)).await;
        let fault = match rung {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Silent::Unroutable(queue))) => {
                // Someone deleted it: the next bell declares it again.
                if let Some(open) = &mut *open {
                    open.declared.remove(&queue);
                }
                return Err(BrokerError::Unroutable(queue));
            }
            Ok(Err(Silent::Fault(fault))) => fault,
            Err(_) => Fault { text: format!("no confirm within {DEADLINE:?}"), channel_only: false },
        };
        // What was not confirmed may have rung or not; the channel knows no more.
        if let Some(open) = open.take()
            && !fault.channel_only
        {
            open.live.give_up();
        }
        Err(BrokerError::Unavailable(fault.text))
    }

    async fn ring_all(&self, open: &mut Option<Open>, bells: &[Bell]) -> Result<(), Silent> {
        let not_connected = || Fault { text: "not connected".into(), channel_only: true };
        let live = self.link.live().ok_or_else(not_connected).map_err(Silent::Fault)?;
        if open.as_ref().is_none_or(|open| !open.is_of(&live)) {
            *open = Some(Open::new(live).await.map_err(Silent::Fault)?);
        }
        let Some(open) = open else { return Ok(()) };
        let mut to_ring: Vec<&Bell> = bells.iter().collect();
        // A queue that has just been made, or lost its leader, refuses for a moment. The deadline around this ends it.
        while !to_ring.is_empty() {
            to_ring = open.ring_once(&to_ring).await?;
            if !to_ring.is_empty() {
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
        Ok(())
    }

    pub(super) fn is_well(&self) -> bool {
        self.link.is_up()
    }

    /// Waits for the confirms that are outstanding, and closes.
    pub(super) async fn close(&self) {
        drop(self.open.lock().await.take());
        self.link.close().await;
    }
}

impl Open {
    async fn new(live: Live) -> Result<Self, Fault> {
        let channel = live.channel().await?;
        within("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Self { live, channel, declared: HashSet::new() })
    }

    fn is_of(&self, live: &Live) -> bool {
        self.live.is_same(live) && self.channel.status().connected()
    }

    async fn declare_once(&mut self, queue: &str) -> Result<(), Fault> {
        if !self.declared.contains(queue) {
            declare(&self.channel, queue).await?;
            self.declared.insert(queue.to_owned());
        }
        Ok(())
    }

    /// Publishes all, then waits for all confirms; those that were refused.
    async fn ring_once<'a>(&mut self, bells: &[&'a Bell]) -> Result<Vec<&'a Bell>, Silent> {
        let mut confirms = Vec::with_capacity(bells.len());
        for bell in bells {
            self.declare_once(&bell.queue).await.map_err(Silent::Fault)?;
            confirms.push((*bell, self.publish(bell).await.map_err(Silent::Fault)?));
        }
        let (mut refused, mut unroutable) = (Vec::new(), None);
        for (bell, confirm) in confirms {
            match within("confirm", confirm).await.map_err(Silent::Fault)? {
                Confirmation::Ack(None) => {}
                Confirmation::Ack(Some(_)) => unroutable = Some(bell.queue.clone()),
                Confirmation::Nack(_) | Confirmation::NotRequested => refused.push(bell),
            }
        }
        unroutable.map_or(Ok(refused), |queue| Err(Silent::Unroutable(queue)))
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
