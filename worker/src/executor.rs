//! One attempt, from the claimed job to its recorded outcome.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use queue::ledger::{Ended, LedgerError};
use queue::retry::{Pauses, chance};
use queue::{NoticeOfDiscard, Queue};
use schemas::{ClaimedJob, Outcome};
use serde_json::Value;
use serde_json::value::to_raw_value;
use tokio::sync::RwLock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, error, info, info_span, warn};

use crate::context::Context;
use crate::handler::{Failure, Output};
use crate::heart::{Beating, Heart, Interrupt};
use crate::jobs::notify::alarms_of;
use crate::metrics::Metrics;
use crate::notice::Resolution;
use crate::registry::{Kind, Registry};
use crate::world::World;

/// From this many crashes on, a job runs alone in its process, so that no neighbour is suspected with it.
const CRASHES_BEFORE_ALONE: i32 = 2;

/// How long a job that must run alone waits for its neighbours to end. Nobody else may begin meanwhile, or it would never
/// be alone where there is always something to do; so this is short.
const STANDSTILL: Duration = Duration::from_secs(2);

/// How long it is then put off.
const PUT_OFF: Duration = Duration::from_secs(30);

/// How long an outcome is kept for a ledger that does not answer. What is not recorded by then is rescued as a crash.
const PATIENCE_FOR_THE_LEDGER: Duration = Duration::from_mins(10);

/// An output larger than this is refused: outputs are for conditions and messages, not for data.
const LARGEST_OUTPUT: usize = 64 * 1024;

/// Runs attempts.
pub(crate) struct Executor {
    pub(crate) queue: Queue,
    pub(crate) registry: Arc<Registry>,
    pub(crate) world: Arc<World>,
    pub(crate) heart: Arc<Heart>,
    pub(crate) notice: Option<NoticeOfDiscard>,
    pub(crate) metrics: Metrics,
    pub(crate) resolution: Option<Resolution>,
    /// Ended when attempts that still run are to be given back.
    pub(crate) give_up: CancellationToken,
    /// Read by every attempt, written by one that must run alone.
    pub(crate) company: RwLock<()>,
}

impl Executor {
    /// Runs one attempt whose claim was sent at `claimed`.
    pub(crate) async fn execute(&self, job: ClaimedJob, claimed: Instant) {
        let span = span_of(&job);
        async {
            let _running = self.metrics.begins(&job.queue);
            let begun = Instant::now();
            let mut beating = self.heart.begin(job.id, claimed);
            let outcome = self.attempt(&job, &mut beating).await;
            self.metrics.ended(&job.kind, &outcome, begun.elapsed());
            note(&outcome);
            let outcome = self.with_resolution(&job, outcome, &beating).await;
            self.record(Ended { attempt: job.id, outcome }, &beating).await;
        }
        .instrument(span)
        .await;
    }

    /// The outcome. A lost lease is an interruption like any other: where nobody has taken the job meanwhile, giving it
    /// back spares it the charge of a crash; where somebody has, the ledger refuses that.
    async fn attempt(&self, job: &ClaimedJob, beating: &mut Beating) -> Outcome {
        let Some(kind) = self.registry.kind(&job.kind) else {
            return Outcome::Released; // Claims name the known kinds, so this is a worker's mistake, not the job's.
        };
        tokio::select! {
            biased; // The handler is never woken before its lease was looked at.
            interrupt = beating.interrupted() => match interrupt {
                Interrupt::Cancel(reason) => Outcome::Cancelled { reason },
                Interrupt::LeaseLost => {
                    warn!("the lease may be lost; the attempt is stopped");
                    self.metrics.lost_lease();
                    Outcome::Released
                }
            },
            () = self.give_up.cancelled() => Outcome::Released,
            outcome = self.run_in_company(kind, job) => outcome,
        }
    }

    async fn run_in_company(&self, kind: &Kind, job: &ClaimedJob) -> Outcome {
        if job.crashes < CRASHES_BEFORE_ALONE {
            let _in_company = self.company.read().await;
            return self.run(kind, job).await;
        }
        match tokio::time::timeout(STANDSTILL, self.company.write()).await {
            Ok(_alone) => self.run(kind, job).await,
            Err(_) => Outcome::Snoozed {
                at: later(self, PUT_OFF),
                reason: "it has crashed its process before and waits until it can run alone".into(),
            },
        }
    }

    async fn run(&self, kind: &Kind, job: &ClaimedJob) -> Outcome {
        let context = Arc::new(Context::new(self.queue.clone(), Arc::clone(&self.world), job));
        let running = AssertUnwindSafe((kind.run)(job.args.clone(), context)).catch_unwind();
        let result = match tokio::time::timeout(kind.time_limit, running).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(Failure::retry(anyhow::anyhow!("the handler panicked: {}", text_of(&*panic)))),
            Err(_) => {
                Err(Failure::retry(anyhow::anyhow!("it ran longer than its time limit of {:?}", kind.time_limit)))
            }
        };
        result.and_then(|output| completed(&output)).unwrap_or_else(|failure| self.judge(kind, job, failure))
    }

    /// What a failure means for the job, by its kind's policy.
    fn judge(&self, kind: &Kind, job: &ClaimedJob, failure: Failure) -> Outcome {
        let now = self.queue.clock().now();
        match failure {
            Failure::Snooze { wait, reason } => Outcome::Snoozed { at: later(self, wait), reason },
            Failure::Cancelled(reason) => Outcome::Cancelled { reason },
            Failure::Discard(error) => self.discarded(job, format!("{error:#}")),
            Failure::Retry { error, after } => {
                let failures = u32::try_from(job.failures).unwrap_or(0) + 1;
                match kind.retry.next(failures, job.created_at, after, now, chance()) {
                    Some(at) => Outcome::Retry { at, error: format!("{error:#}") },
                    None => self.discarded(job, format!("{error:#} (given up after {failures} failures)")),
                }
            }
        }
    }

    fn discarded(&self, job: &ClaimedJob, error: String) -> Outcome {
        let now = self.queue.clock().now();
        let notice = self.notice.as_ref().and_then(|notice| notice(job.id.job, &job.kind, &error, now));
        Outcome::Discarded { error, notice: notice.map(Box::new) }
    }

    /// With a job that tells that this one is done after all, where people were told that it was given up. That costs
    /// nothing where the first attempt did it.
    async fn with_resolution(&self, job: &ClaimedJob, outcome: Outcome, beating: &Beating) -> Outcome {
        let (Some(resolution), Outcome::Completed { output, .. }) = (&self.resolution, &outcome) else {
            return outcome;
        };
        if job.id.number < 2 {
            return outcome;
        }
        let last = Instant::now() + PATIENCE_FOR_THE_LEDGER;
        let mut pauses = Pauses::endless(Duration::from_millis(50), Duration::from_secs(2));
        let scope = alarms_of(job.id.job);
        loop {
            let now = self.queue.clock().now();
            match self.queue.ledger().held(&scope, 1, now).await {
                Ok(alarms) if alarms.is_empty() => return outcome,
                Ok(_) => {
                    let notice = resolution(job.id.job, &job.kind, now).map(Box::new);
                    return Outcome::Completed { output: output.clone(), notice };
                }
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "whether this was told as given up cannot be read");
                    tokio::time::sleep(pauses.next_pause().unwrap_or(Duration::from_secs(2))).await;
                }
            }
            let last = if self.give_up.is_cancelled() { beating.lease_ends() } else { last };
            if Instant::now() >= last {
                error!("if people were told that this job was given up, they are not told that it is done");
                return outcome;
            }
        }
    }

    /// Records the outcome, again and again. The end of the lease does not end that: while the ledger is away nobody can
    /// take the job, and as soon as somebody has, this is refused. A worker that stops does not wait for so long.
    async fn record(&self, ended: Ended, beating: &Beating) {
        let last = Instant::now() + PATIENCE_FOR_THE_LEDGER;
        let mut pauses = Pauses::endless(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            let error = match self.queue.finish(ended.clone()).await {
                Ok(true) => return,
                Ok(false) => {
                    self.metrics.was_stale();
                    return warn!("the attempt was stale; its outcome is not recorded");
                }
                Err(error) => error,
            };
            let pause = pauses.next_pause().unwrap_or(Duration::from_secs(2));
            let last = if self.give_up.is_cancelled() { beating.lease_ends() } else { last };
            if Instant::now() + pause >= last || matches!(*error, LedgerError::Refused(_)) {
                return error!(error = &*error as &dyn std::error::Error, "the outcome could not be recorded");
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// The consumer span of an attempt: a child of where the job was made.
fn span_of(job: &ClaimedJob) -> Span {
    let span = info_span!(
        parent: None,
        "process",
        otel.name = format!("process {}", job.kind),
        otel.kind = "consumer",
        otel.status_code = tracing::field::Empty,
        otel.status_description = tracing::field::Empty,
        error.type = tracing::field::Empty,
        messaging.system = "nightporter",
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = job.queue,
        messaging.message.id = %job.id.job,
        job.id = %job.id.job,
        job.kind = job.kind,
        job.attempt = job.id.number,
        run.id = job.run.map(tracing::field::display),
    );
    queue::trace::set_parent(&span, &job.trace);
    span
}

/// Says the outcome once, here, in the log and on the span.
fn note(outcome: &Outcome) {
    let message = outcome.message().unwrap_or_default();
    match outcome {
        Outcome::Retry { .. } | Outcome::Discarded { .. } => {
            let span = Span::current();
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", message);
            span.record("error.type", outcome.as_str());
            warn!("attempt {}: {message}", outcome.as_str());
        }
        Outcome::Completed { .. } => info!("attempt completed"),
        _ => info!("attempt {}: {message}", outcome.as_str()),
    }
}

fn completed(output: &Output) -> Result<Outcome, Failure> {
    if *output == Value::Null {
        return Ok(Outcome::Completed { output: None, notice: None });
    }
    let text = to_raw_value(output).map_err(Failure::discard)?;
    if text.get().len() > LARGEST_OUTPUT {
        return Err(Failure::discard(anyhow::anyhow!("its output of {} bytes is too large", text.get().len())));
    }
    Ok(Outcome::Completed { output: Some(text), notice: None })
}

fn later(executor: &Executor, wait: Duration) -> schemas::Timestamp {
    queue::clock::later(executor.queue.clock().now(), wait)
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
