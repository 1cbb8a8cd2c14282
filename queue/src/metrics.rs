//! What the queue counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Counters of the queue. Cheap to clone; all clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    /// Bells that did not ring.
    pub(crate) silent_bells: Counter,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Bells that did not ring; the jobs they announced are found by polling";
        registry.register("bells_failed", help, self.silent_bells.clone());
    }
}
