//! Messages from and to other programs.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;

use super::inbox::Tray;
use super::link::Link;
use super::outbox::{Outbox, Target, announcement};
use crate::broker::BrokerError;
use crate::broker::programs::{Inbox, Notice, Programs};

/// The way to other programs.
pub(crate) struct Mail {
    receiving: Link,
    sending: Link,
    /// One for each exchange.
    outboxes: std::sync::Mutex<HashMap<String, Arc<Outbox>>>,
}

impl Mail {
    /// Connects in the background, for ever. Only an address that is none is an error.
    pub(crate) fn open(addresses: &str) -> Result<Self, BrokerError> {
        // Two connections: where the broker holds back those who publish, what was received is still acknowledged.
        let (receiving, sending) = (Link::connect_later(addresses)?, Link::connect_later(addresses)?);
        Ok(Self { receiving, sending, outboxes: std::sync::Mutex::default() })
    }

    fn outbox(&self, exchange: &str) -> Arc<Outbox> {
        let mut outboxes = self.outboxes.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || Arc::new(Outbox::new(self.sending.clone(), Target::Exchange(exchange.to_owned())));
        Arc::clone(outboxes.entry(exchange.to_owned()).or_insert_with(open))
    }
}

#[async_trait]
impl Programs for Mail {
    fn receive(&self, queue: &str, at_once: u16) -> Box<dyn Inbox> {
        Box::new(Tray::new(self.receiving.clone(), self.sending.clone(), queue, at_once))
    }

    async fn publish(&self, exchange: &str, messages: &[Notice]) -> Result<(), BrokerError> {
        self.outbox(exchange).send(messages.iter().map(announcement).collect()).await
    }

    fn is_well(&self) -> bool {
        self.receiving.is_up() && self.sending.is_up()
    }

    async fn close(&self) {
        futures_util::join!(self.receiving.close(), self.sending.close());
    }
}
