//! Bells: messages that buy their receiver claims on a queue.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use schemas::{JobId, NewJob, TraceContext};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::{Instrument, Span, info_span, warn};

use crate::broker::Broker;
use crate::kill_point::reached;
use crate::metrics::Metrics;
use crate::trace;

/// Says that `count` jobs of a queue became available. It may be lost, doubled or coalesced without harm: the ledger
/// chooses what a claim gets. Well under 1 KiB as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Bell {
    /// The queue.
    pub queue: String,
    /// How many jobs its commit made available.
    pub count: u32,
    /// One of them, for logs alone.
    pub job_id: JobId,
    /// Where that one was made, for a span link alone.
    #[serde(flatten)]
    pub trace: TraceContext,
}

/// The bells that a commit is to ring: one for each queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bells {
    by_queue: BTreeMap<String, Bell>,
    put_off: bool,
}

impl Bells {
    /// Counts one job that became available.
    pub fn add(&mut self, queue: &str, job_id: JobId, trace: &TraceContext) {
        self.add_bell(Bell { queue: queue.to_owned(), count: 1, job_id, trace: trace.clone() });
    }

    /// Counts a new job that is available.
    pub fn add_new(&mut self, job: &NewJob) {
        self.add(&job.queue, job.id, &job.trace);
    }

    /// Notes that the commit put a job off: the promoter is to look when it is due.
    pub fn put_off(&mut self) {
        self.put_off = true;
    }

    /// Whether the commit put a job off.
    pub fn has_put_off(&self) -> bool {
        self.put_off
    }

    /// Counts many jobs of a queue that are available, one of them named.
    pub fn add_many(&mut self, queue: &str, jobs: Option<(u32, JobId)>) {
        if let Some((count, job_id)) = jobs {
            self.add_bell(Bell { queue: queue.to_owned(), count, job_id, trace: TraceContext::default() });
        }
    }

    /// Adds what another bell announces.
    pub fn add_bell(&mut self, bell: Bell) {
        match self.by_queue.get_mut(&bell.queue) {
            Some(known) => known.count = known.count.saturating_add(bell.count),
            None => {
                self.by_queue.insert(bell.queue.clone(), bell);
            }
        }
    }

    /// Adds what other bells announce.
    pub fn merge(&mut self, other: Self) {
        self.put_off |= other.put_off;
        other.by_queue.into_values().for_each(|bell| self.add_bell(bell));
    }

    /// Whether there is nothing to ring.
    pub fn is_empty(&self) -> bool {
        self.by_queue.is_empty()
    }

    /// The bells, by queue.
    pub fn iter(&self) -> impl Iterator<Item = &Bell> {
        self.by_queue.values()
    }
}

/// Rings after commits, in tasks of its own: nobody who commits waits for the broker. What is to be rung in a queue while
/// the broker confirms the last bell of that queue coalesces; no queue waits for another.
#[derive(Clone)]
pub(crate) struct Ringer(Arc<Rope>);

struct Rope {
    broker: Arc<dyn Broker>,
    metrics: Metrics,
    bells: Mutex<Ringing>,
    /// Told whenever everything has been rung.
    quiet: Notify,
}

#[derive(Default)]
struct Ringing {
    waiting: Bells,
    /// The queues that are being rung in.
    busy: BTreeSet<String>,
}

impl Ringer {
    pub(crate) fn new(broker: Arc<dyn Broker>, metrics: Metrics) -> Self {
        Self(Arc::new(Rope { broker, metrics, bells: Mutex::default(), quiet: Notify::new() }))
    }

    /// Has bells rung, soon.
    pub(crate) fn ring(&self, bells: Bells) {
        let mut ringing = lock(&self.0.bells);
        let queues: Vec<String> = bells.by_queue.keys().cloned().collect();
        ringing.waiting.merge(bells);
        for queue in queues {
            if ringing.busy.insert(queue.clone()) {
                tokio::spawn(Arc::clone(&self.0).pull(queue).instrument(Span::none()));
            }
        }
    }

    /// Waits until everything has been rung, for at most `patience`.
    pub(crate) async fn drain(&self, patience: Duration) {
        let quiet = self.0.quiet.notified();
        let busy = !lock(&self.0.bells).busy.is_empty();
        if busy {
            let _given_up = tokio::time::timeout(patience, quiet).await;
        }
    }
}

/// The producer span of a bell, in the trace of the job that it names.
fn span_of(bell: &Bell) -> Span {
    let span = info_span!(
        parent: None,
        "publish",
        otel.name = format!("publish {}", bell.queue),
        otel.kind = "producer",
        otel.status_code = tracing::field::Empty,
        messaging.system = "nightporter",
        messaging.operation.name = "publish",
        messaging.operation.type = "send",
        messaging.destination.name = bell.queue,
        messaging.batch.message_count = bell.count,
    );
    trace::set_parent(&span, &bell.trace);
    span
}

impl Rope {
    /// Rings in one queue until nothing waits for it.
    async fn pull(self: Arc<Self>, queue: String) {
        while let Some(bell) = self.next(&queue) {
            let span = span_of(&bell);
            // Only said: the jobs are in the ledger, and whoever polls will find them.
            reached("ringing");
            let rung = self.broker.ring(std::slice::from_ref(&bell)).await;
            reached("rung");
            if let Err(error) = rung {
                self.metrics.silent_bells.inc();
                warn!(queue, error = &error as &dyn std::error::Error, "a bell did not ring");
                span.record("otel.status_code", "ERROR");
            }
        }
    }

    fn next(&self, queue: &str) -> Option<Bell> {
        let mut ringing = lock(&self.bells);
        let next = ringing.waiting.by_queue.remove(queue);
        if next.is_none() {
            ringing.busy.remove(queue);
            if ringing.busy.is_empty() {
                self.quiet.notify_waiters();
            }
        }
        next
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bells_of_one_queue_become_one_with_their_counts_added() {
        let id = JobId::at(schemas::Timestamp::UNIX_EPOCH);
        let mut bells = Bells::default();
        bells.add("default", id, &TraceContext::default());
        bells.add("notify", id, &TraceContext::default());
        let mut more = Bells::default();
        more.add("default", id, &TraceContext::default());
        bells.merge(more);
        let counts: Vec<(&str, u32)> = bells.iter().map(|bell| (bell.queue.as_str(), bell.count)).collect();
        assert_eq!(counts, [("default", 2), ("notify", 1)]);
    }

    #[test]
    fn a_bell_is_small() {
        let bell = Bell {
            queue: "q".repeat(64),
            count: u32::MAX,
            job_id: JobId::at(schemas::Timestamp::UNIX_EPOCH),
            trace: TraceContext { traceparent: Some("0".repeat(55)), tracestate: Some("s".repeat(512)) },
        };
        assert!(serde_json::to_string(&bell).unwrap().len() < 1024);
    }
}
