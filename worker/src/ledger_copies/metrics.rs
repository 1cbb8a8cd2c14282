//! What is counted of the copies.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

/// Counters of the copies. Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub struct CopyMetrics {
    /// Since then something may be in the ledger that is in no copy.
    good_until: Arc<Mutex<Instant>>,
    age: Gauge<f64, AtomicU64>,
    superseded: Gauge,
    failures: Counter,
    bytes: Counter,
}

impl Default for CopyMetrics {
    fn default() -> Self {
        Self {
            good_until: Arc::new(Mutex::new(Instant::now())),
            age: Gauge::default(),
            superseded: Gauge::default(),
            failures: Counter::default(),
            bytes: Counter::default(),
        }
    }
}

impl CopyMetrics {
    /// Makes them known under their names.
    pub fn register(&self, registry: &mut Registry) {
        let help = "How old what the ledger's last copy shows is, unless nothing changed since";
        registry.register_with_unit("ledger_copy_age", help, Unit::Seconds, self.age.clone());
        let help = "Whether another porter went on from a copy of this ledger, so that it is copied no more";
        registry.register("ledger_copy_superseded", help, self.superseded.clone());
        registry.register("ledger_copy_failures", "Copies of the ledger that failed", self.failures.clone());
        let help = "Bytes that copies of the ledger take in the store";
        registry.register_with_unit("ledger_copy_stored", help, Unit::Bytes, self.bytes.clone());
    }

    /// Says how old the last copy is now.
    pub fn show(&self) {
        self.age.set(self.good_until().elapsed().as_secs_f64());
    }

    pub(super) fn good_until(&self) -> Instant {
        *self.good_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn good(&self, until: Instant) {
        *self.good_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        self.superseded.set(0);
    }

    pub(super) fn stored(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    pub(super) fn failed(&self) {
        self.failures.inc();
    }

    pub(super) fn superseded(&self) {
        self.superseded.set(1);
    }
}
