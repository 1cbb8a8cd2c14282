//! What a worker counts. Labels are names of the configuration and of the program, never ids: their number is bounded.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use schemas::Outcome;

/// From a notification to a large backup, in seconds.
const DURATIONS: [f64; 12] = [0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 21_600.0];

/// Counters of a worker. Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    attempts: Family<Attempt, Counter>,
    seconds: Family<Kind, Histogram>,
    running: Family<OfQueue, Gauge>,
    leases_lost: Counter,
    stale: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempt {
    kind: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfQueue {
    queue: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            attempts: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(DURATIONS)),
            running: Family::default(),
            leases_lost: Counter::default(),
            stale: Counter::default(),
        }
    }
}

impl Metrics {
    /// Makes them known under their names.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("attempts", "Attempts that ended, by kind and outcome", self.attempts.clone());
        let help = "How long attempts ran";
        registry.register_with_unit("attempt_duration", help, Unit::Seconds, self.seconds.clone());
        registry.register("attempts_running", "Attempts that run now", self.running.clone());
        let help = "Attempts that stopped themselves because their heartbeats did not arrive";
        registry.register("leases_lost", help, self.leases_lost.clone());
        let help = "Outcomes that were refused because another attempt had taken over";
        registry.register("stale_outcomes", help, self.stale.clone());
    }

    pub(crate) fn begins(&self, queue: &str) -> Running {
        let gauge = self.running.get_or_create(&OfQueue { queue: queue.to_owned() }).clone();
        gauge.inc();
        Running(gauge)
    }

    pub(crate) fn ended(&self, kind: &str, outcome: &Outcome, took: Duration) {
        self.attempts.get_or_create(&Attempt { kind: kind.to_owned(), outcome: outcome.as_str() }).inc();
        self.seconds.get_or_create(&Kind { kind: kind.to_owned() }).observe(took.as_secs_f64());
    }

    pub(crate) fn lost_lease(&self) {
        self.leases_lost.inc();
    }

    pub(crate) fn was_stale(&self) {
        self.stale.inc();
    }
}

/// An attempt that runs, counted until this is dropped.
pub(crate) struct Running(Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}
