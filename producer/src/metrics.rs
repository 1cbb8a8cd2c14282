//! What the public door counts. Labels are names of configured sources and fixed words: their number is bounded.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use schemas::api::DeliveryAnswer;

use crate::accept::Refusal;
use crate::rejection::Rejection;

/// Counters of a door.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    deliveries: Family<Delivery, Counter>,
    rejections: Family<Rejected, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Delivery {
    source: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejected {
    source: String,
    reason: &'static str,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("deliveries", "Deliveries, by source and by what was answered", self.deliveries.clone());
        let help = "Deliveries that were not believed, by source and reason";
        registry.register("deliveries_rejected", help, self.rejections.clone());
    }

    pub(crate) fn answered(&self, source: &str, answer: &Result<DeliveryAnswer, Refusal>) {
        let result = match answer {
            Ok(answer) if answer.spooled => "spooled",
            Ok(answer) if answer.duplicate => "duplicate",
            Ok(answer) if answer.quarantined => "quarantined",
            Ok(answer) if answer.held => "held",
            Ok(_) => "booked",
            Err(Refusal::Unavailable) => "unavailable",
            Err(Refusal::Unverified | Refusal::TooManyFailures) => "rejected",
        };
        self.deliveries.get_or_create(&Delivery { source: source.to_owned(), result }).inc();
    }

    pub(crate) fn rejected(&self, source: &str, rejection: Rejection) {
        self.rejections.get_or_create(&Rejected { source: source.to_owned(), reason: rejection.as_str() }).inc();
    }
}
