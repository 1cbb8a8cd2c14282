//! The way in for what was found at a sender, and never came by itself. It is booked as its webhook would have been: the
//! same event, the same routes, the same delivery id, so that of the two, whichever comes first, one is booked.

use std::time::Duration;

use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderValue, USER_AGENT};
use queue::ledger::LedgerError;
use schemas::Problem;
use schemas::api::DeliveryAnswer;
use tokio::time::timeout;

use crate::accept::answer;
use crate::delivery::{Delivery, KeptHeaders};
use crate::door::Door;

/// The ledger must have committed within this.
const BOOKED_WITHIN: Duration = Duration::from_secs(30);

/// Who brought it, for whoever looks at its headers.
const FOUND: &str = "nightporter (found, not delivered)";

/// Why what was found is not booked.
#[derive(Debug, thiserror::Error)]
pub enum NotBooked {
    /// It cannot be, now or later.
    #[error("{0}")]
    Never(Problem),
    /// The ledger is away, or the outcome of its commit is not known.
    #[error("the ledger did not book it: {0}")]
    NotNow(String),
}

impl Door {
    /// Books what the sender's own webhook would have said in this body. Only of sources whose deliveries have their id in
    /// the body.
    pub async fn take_found(&self, source: &str, body: &serde_json::Value) -> Result<DeliveryAnswer, NotBooked> {
        let sources = &self.0.config.sources;
        let unknown = || Problem::unknown("source", source, sources.iter().map(crate::Source::name));
        let source = sources.get(source).ok_or_else(|| NotBooked::Never(unknown()))?;
        let headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (USER_AGENT, HeaderValue::from_static(FOUND)),
        ]);
        let delivery = Delivery {
            source: source.name.clone(),
            headers: KeptHeaders::of(&headers),
            signed_with: None, // Nobody signed it: we asked for it ourselves.
            body: body.to_string().into(),
            received_at: self.0.config.queue.clock().now(),
            trace: queue::trace::current(),
        };
        match source.kind.normalize(delivery.headers.map(), &delivery.body) {
            Ok(read) if read.delivery_id.is_some() => {}
            Ok(_) => return Err(NotBooked::Never(Problem::new("it has no delivery id in its body"))),
            Err(unreadable) => return Err(NotBooked::Never(Problem::new(unreadable.to_string()))),
        }
        match timeout(BOOKED_WITHIN, self.book(source, &delivery)).await {
            Ok(Ok(receipt)) => Ok(answer(receipt)),
            Ok(Err(error)) if matches!(*error, LedgerError::Refused(_)) => {
                Err(NotBooked::Never(Problem::new("the ledger refuses it; the log says why")))
            }
            Ok(Err(error)) => Err(NotBooked::NotNow(error.to_string())),
            Err(_) => Err(NotBooked::NotNow("it did not commit in time".to_owned())),
        }
    }
}
