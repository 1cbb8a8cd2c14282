//! The job that is measured: it does nothing, and says that it ran.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{JobId, NewJob, Priority, Timestamp, TraceContext};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Instant;
use worker::handler::{Failure, Handler, Output};
use worker::{Context, Registry};

/// Where the jobs wait. No other kind waits here: a worker of yours never meets them, and the measured ones never yours.
pub(super) const QUEUE: &str = "bench";

/// The size of the arguments, as JSON text.
const ARGS: usize = 1024;

/// What was handled in this process. A handler is a type and holds nothing, so the count stands here.
static HANDLED: AtomicU64 = AtomicU64::new(0);
/// When the last jobs were handled.
static WHEN: Mutex<Vec<(JobId, Instant)>> = Mutex::new(Vec::new());

/// The arguments of the job.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Probe {
    /// Whether to note the moment.
    noted: bool,
    /// Ballast.
    padding: String,
}

#[async_trait]
impl Handler for Probe {
    const KIND: &'static str = "bench";
    const SUMMARY: &'static str = "does nothing, and says that it ran";
    const QUEUE: &'static str = QUEUE;
    const RETRY: RetryPolicy = RetryPolicy::PROMPT;
    const TIME_LIMIT: Duration = Duration::from_mins(1);

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        if self.noted {
            let mut when = WHEN.lock().unwrap_or_else(PoisonError::into_inner);
            when.push((cx.job().attempt.job, Instant::now()));
        }
        HANDLED.fetch_add(1, Ordering::Relaxed);
        Ok(Value::Null)
    }
}

/// The only kind that the measured workers know.
pub(super) fn registry() -> Registry {
    Registry::default().with::<Probe>()
}

/// How many jobs were handled since the process began.
pub(super) fn handled() -> u64 {
    HANDLED.load(Ordering::Relaxed)
}

/// The noted moments, which are forgotten by that.
pub(super) fn take_moments() -> Vec<(JobId, Instant)> {
    std::mem::take(&mut WHEN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Makes the jobs.
pub(super) struct Jobs {
    args: Box<RawValue>,
}

impl Jobs {
    pub(super) fn new(noted: bool) -> Self {
        let empty = serde_json::json!({"noted": noted, "padding": ""}).to_string().len();
        let padding: String = ('a'..='z').cycle().take(ARGS - empty).collect();
        let args = Probe { noted, padding };
        let args = serde_json::value::to_raw_value(&args).unwrap_or_else(|_| RawValue::NULL.to_owned());
        Self { args }
    }

    /// A job of this moment, made at this position of a trace.
    pub(super) fn next(&self, now: Timestamp, trace: TraceContext) -> NewJob {
        NewJob {
            id: JobId::at(now),
            kind: Probe::KIND.to_owned(),
            args: self.args.clone(),
            queue: QUEUE.to_owned(),
            priority: Priority::Normal,
            run_at: None,
            key: None,
            limits: Vec::new(),
            approval: None,
            replay_of: None,
            event: None,
            trace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_a_kibibyte_and_the_handler_reads_them() {
        for noted in [true, false] {
            let job = Jobs::new(noted).next(Timestamp::UNIX_EPOCH, TraceContext::default());
            assert_eq!(job.args.get().len(), ARGS);
            let read: Probe = serde_json::from_str(job.args.get()).unwrap();
            assert_eq!(read.noted, noted);
        }
    }
}
