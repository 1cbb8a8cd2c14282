//! The only way in: verify, normalize, route, book, and only then sign for it.
//!
//! A 2xx is answered after the event and its work are committed, or the verified delivery lies fsynced in the spool;
//! never before. Where neither can be had the answer is a 503, and the sender keeps the delivery.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use queue::ledger::{LedgerError, NewDelivery, Receipt, Repeats, StoredBody};
use schemas::api::DeliveryAnswer;
use schemas::{Event, EventId, Facts, Standing};
use secrets::{Active, ExposeSecret, SecretString, SecretText};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout};
use tracing::{Span, debug, error, warn};

use crate::body::Held;
use crate::delivery::{Delivery, KeptHeaders};
use crate::door::Door;
use crate::readable::{Unreadable, made_plain};
use crate::rejection::Rejection;
use crate::routes::{Making, Matched};
use crate::sources::{Normalized, Source};

// GitHub hangs up after 10 s; these three, one after the other, stay below it.

/// The vault must give a source's secrets within this.
const SECRETS_WITHIN: Duration = Duration::from_secs(2);

/// The ledger must have committed within this.
const BOOKED_WITHIN: Duration = Duration::from_secs(5);

/// The spool must have synced within this.
const SPOOLED_WITHIN: Duration = Duration::from_secs(2);

/// Why a delivery is not signed for.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It is not believed.
    Unverified,
    /// It is not believed, and too many before it were not.
    TooManyFailures,
    /// It cannot be checked, or not be kept, now.
    Unavailable,
}

/// What is known of a source's secrets.
#[derive(Default)]
struct Known {
    secrets: Vec<SecretString>,
    /// Their versions in the vault, in the same order.
    versions: Vec<Option<String>>,
    /// Whether none is missing.
    complete: bool,
}

impl Known {
    fn add(&mut self, source: &Source, reference: &SecretText, active: Active) {
        self.complete &= !active.may_lack;
        for version in active.versions {
            // It keeps its place, and is used for nothing: anybody can sign with it.
            if version.value.expose_secret().is_empty() {
                self.lack(source, reference, "it is empty");
            }
            self.secrets.push(version.value);
            self.versions.push(version.token.map(String::from));
        }
    }

    fn lack(&mut self, source: &Source, reference: &SecretText, reason: &str) {
        error!(source = source.name(), ?reference, reason, "a secret of a source is missing");
        self.complete = false;
    }
}

impl Door {
    /// Takes a delivery in.
    pub(crate) async fn accept(
        &self,
        source: &Source,
        headers: &HeaderMap,
        body: Held,
    ) -> Result<DeliveryAnswer, Refusal> {
        let answer = self.sign_for(source, headers, body).await;
        self.0.metrics.answered(source.name(), &answer);
        answer
    }

    async fn sign_for(&self, source: &Source, headers: &HeaderMap, body: Held) -> Result<DeliveryAnswer, Refusal> {
        let signed_with = self.verify(source, headers, &body.bytes).await?;
        let received_at = self.0.config.queue.clock().now();
        self.0.heard.note(source.name(), received_at);
        let delivery = Delivery {
            source: source.name.clone(),
            headers: KeptHeaders::of(headers),
            signed_with,
            body: body.bytes.clone(),
            received_at,
            trace: queue::trace::current(),
        };
        let unbooked = match self.book_soon(source, &delivery).await {
            Ok(receipt) => return Ok(answer(receipt)),
            Err(unbooked) => unbooked,
        };
        if source.kind.sends_again() {
            error!(reason = unbooked, "the delivery cannot be booked; the sender is asked to send it again");
            return Err(Refusal::Unavailable);
        }
        self.put_in_spool(delivery, &unbooked).await
    }

    /// Books it within the deadline; not at all, while the ledger is known to be away.
    async fn book_soon(&self, source: &Source, delivery: &Delivery) -> Result<Receipt, String> {
        if self.0.absence.is_known() {
            return Err("the ledger is away".to_owned());
        }
        let unbooked = match timeout(BOOKED_WITHIN, self.book(source, delivery)).await {
            Ok(Ok(receipt)) => return Ok(receipt),
            Ok(Err(unbooked)) => unbooked.to_string(),
            Err(_) => "the ledger did not commit in time".to_owned(),
        };
        self.look_for_the_ledger();
        Err(unbooked)
    }

    /// Which version of the source's secret signed it, where that is known.
    async fn verify(&self, source: &Source, headers: &HeaderMap, body: &[u8]) -> Result<Option<String>, Refusal> {
        let Known { secrets, versions, complete } = self.secrets_of(source).await;
        let rejection = match source.kind.verify(headers, body, &secrets, (self.0.wall_clock)()) {
            Ok(verified) => {
                debug!(key = verified.key, "the signature is right");
                return Ok(versions.into_iter().nth(verified.key).flatten());
            }
            Err(rejection) => rejection,
        };
        let source = source.name();
        self.0.metrics.rejected(source, rejection);
        if rejection == Rejection::NoUsableSecret || (rejection == Rejection::Mismatch && !complete) {
            error!(
                source,
                kind = rejection.as_str(),
                "a delivery cannot be verified: a secret of its source is missing"
            );
            return Err(Refusal::Unavailable);
        }
        if !self.0.patience.get(source).is_some_and(|patience| patience.takes_failure(Instant::now())) {
            return Err(Refusal::TooManyFailures);
        }
        warn!(source, kind = rejection.as_str(), reason = %rejection, "a delivery is not believed");
        Err(Refusal::Unverified)
    }

    /// The source's secrets, each in all its versions that are in use.
    async fn secrets_of(&self, source: &Source) -> Known {
        let mut known = Known { complete: true, ..Known::default() };
        for reference in &source.secrets {
            match timeout(SECRETS_WITHIN, self.0.config.resolver.active(reference)).await {
                Ok(Ok(active)) => known.add(source, reference, active),
                Ok(Err(error)) => known.lack(source, reference, &error.to_string()),
                Err(_) => known.lack(source, reference, "it was not resolved in time"),
            }
        }
        known
    }

    /// Books a verified delivery. What the ledger does not take with its facts and work it is offered without them, so
    /// that an operator sees it.
    pub(crate) async fn book(&self, source: &Source, delivery: &Delivery) -> Result<Receipt, Arc<LedgerError>> {
        let read = source.kind.normalize(delivery.headers.map(), &delivery.body);
        let queue = &self.0.config.queue;
        let entry = self.entry(source, delivery, read);
        Span::current().record("event.type", entry.event.kind.as_str());
        let mut booked = queue.accept(entry).await;
        if let Err(refused) = &booked
            && matches!(**refused, LedgerError::Refused(_))
        {
            error!(error = ?refused, "the ledger refuses a delivery; it is quarantined");
            let refused = Unreadable::because("the ledger refuses what was read of it; the log says why");
            booked = queue.accept(self.entry(source, delivery, Err(refused))).await;
        }
        if let Ok(receipt) = &booked {
            Span::current().record("event.id", receipt.event.to_string());
        }
        booked
    }

    /// A verified delivery as it is booked, with what its routes make of it.
    fn entry(&self, source: &Source, delivery: &Delivery, read: Result<Normalized, Unreadable>) -> NewDelivery {
        let config = &self.0.config;
        let now = config.queue.clock().now();
        let digest: [u8; 32] = Sha256::digest(&delivery.body).into();
        let unreadable = read.as_ref().err().map(|reason| made_plain(&reason.to_string()));
        let repeats = read.as_ref().map_or(Repeats::AreNew, |normalized| normalized.repeats);
        let event = event(source, delivery, read, &digest, now);
        let matched = if unreadable.is_none() { self.work(source, delivery, &event) } else { Matched::default() };
        matched.errors.iter().for_each(|error| warn!(error, "a route cannot be evaluated"));
        NewDelivery {
            event,
            unreadable,
            body: StoredBody::new(
                &delivery.body,
                digest,
                delivery.headers.content_type().to_owned(),
                delivery.headers_to_keep().to_string(),
            ),
            repeats,
            jobs: matched.jobs,
            runs: matched.runs,
            route_errors: matched.errors,
            config_digest: config.config_digest.clone(),
            trace: delivery.trace.clone(),
        }
    }

    fn work(&self, source: &Source, delivery: &Delivery, event: &Event) -> Matched {
        let config = &self.0.config;
        let raw = || self.raw(source.name(), delivery.headers.content_type(), &delivery.body);
        let making = Making { now: config.queue.clock().now(), trace: &delivery.trace };
        config.routes.matching(event, raw, &config.startable, making)
    }

    async fn put_in_spool(&self, delivery: Delivery, why: &str) -> Result<DeliveryAnswer, Refusal> {
        match timeout(SPOOLED_WITHIN, self.0.config.spool.put(delivery)).await {
            Ok(Ok(())) => {
                warn!(reason = why, "the delivery cannot be booked now; it is in the spool");
                Ok(DeliveryAnswer { spooled: true, ..unanswered() })
            }
            Ok(Err(error)) => {
                error!(reason = why, %error, "the delivery can neither be booked nor spooled: it is lost unless somebody redelivers it");
                Err(Refusal::Unavailable)
            }
            Err(_) => {
                error!(reason = why, "the delivery cannot be booked, and the spool's disk does not answer");
                Err(Refusal::Unavailable)
            }
        }
    }
}

fn event(
    source: &Source,
    delivery: &Delivery,
    read: Result<Normalized, Unreadable>,
    digest: &[u8; 32],
    now: schemas::Timestamp,
) -> Event {
    let known_by = |id: Option<String>| id.unwrap_or_else(|| format!("sha256:{}", hex::encode(digest)));
    let (id, source_name) = (EventId::at(now), source.name.clone());
    match read {
        Ok(normalized) => Event {
            id,
            source: source_name,
            kind: normalized.kind,
            delivery_id: known_by(normalized.delivery_id),
            subject: normalized.subject,
            time: normalized.time.unwrap_or(delivery.received_at),
            data: normalized.facts,
        },
        Err(_) => Event {
            id,
            source: source_name,
            kind: format!("{}.unreadable", source.kind.name()),
            delivery_id: known_by(source.kind.delivery_id(delivery.headers.map())),
            subject: None,
            time: delivery.received_at,
            data: Facts::default(),
        },
    }
}

pub(crate) fn answer(receipt: Receipt) -> DeliveryAnswer {
    let new = !receipt.duplicate;
    DeliveryAnswer {
        event_id: Some(receipt.event),
        jobs: if new { receipt.jobs } else { Vec::new() },
        duplicate: receipt.duplicate,
        quarantined: new && receipt.standing == Standing::Quarantined,
        held: new && receipt.standing == Standing::Held,
        spooled: false,
    }
}

fn unanswered() -> DeliveryAnswer {
    DeliveryAnswer {
        event_id: None,
        jobs: Vec::new(),
        duplicate: false,
        quarantined: false,
        held: false,
        spooled: false,
    }
}
