//! What a handler may touch while it runs.

use std::sync::Arc;

use queue::Queue;
use queue::kill_point::reached;
use queue::ledger::LedgerError;
use schemas::{AttemptId, ClaimedJob, EventId, RunId, StepRecord, StepState, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::handler::{Failure, OrFail};
use crate::world::World;

/// One attempt's view of the world.
pub struct Context {
    queue: Queue,
    world: Arc<World>,
    job: Facts,
    /// Stands before the names of steps.
    below: String,
}

/// What a handler may know of its own job.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The job and the number of this attempt.
    pub attempt: AttemptId,
    /// When the job was stored.
    pub created_at: Timestamp,
    /// The event that it was made for.
    pub event: Option<EventId>,
    /// The run that it belongs to.
    pub run: Option<RunId>,
    /// How many attempts failed before this one.
    pub failures: i32,
}

impl Context {
    pub(crate) fn new(queue: Queue, world: Arc<World>, job: &ClaimedJob) -> Self {
        let job = Facts {
            attempt: job.id,
            created_at: job.created_at,
            event: job.event,
            run: job.run,
            failures: job.failures,
        };
        Self { queue, world, job, below: String::new() }
    }

    /// The same view for a part of the job: its steps have this name before their own, so that several parts of a kind
    /// have steps of their own.
    pub(crate) fn below(&self, name: &str) -> Self {
        let below = format!("{}{name}: ", self.below);
        Self { queue: self.queue.clone(), world: Arc::clone(&self.world), job: self.job.clone(), below }
    }

    /// The job that runs.
    pub fn job(&self) -> &Facts {
        &self.job
    }

    /// The ledger's time.
    pub fn now(&self) -> Timestamp {
        self.queue.clock().now()
    }

    /// The databases, stores, channels and connections that are configured.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// What is in the ledger, for handlers that report.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// What the other jobs of the run have put out so far: an object by their names, empty outside a run.
    pub async fn outputs(&self) -> Result<Value, Failure> {
        match self.job.run {
            Some(run) => self.queue.ledger().outputs(run).await.or_retry("reading the outputs of the run"),
            None => Ok(json!({})),
        }
    }

    /// The steps so far, without coming to any.
    pub async fn steps(&self) -> Result<Vec<StepRecord>, Failure> {
        let job = self.queue.ledger().job(self.job.attempt.job).await.or_retry("reading the steps of the job")?;
        Ok(job.map(|job| job.steps).unwrap_or_default())
    }

    /// Comes to a step: a named checkpoint, unique in the job. It is written as started, fenced, before this returns,
    /// so that a stale attempt has no effect.
    pub async fn step<T: DeserializeOwned>(&self, name: &str) -> Result<Step<'_, T>, Failure> {
        let name = format!("{}{name}", self.below);
        reached("step starting");
        let state = self.queue.ledger().start_step(self.job.attempt, &name, self.now()).await;
        reached("step started");
        let state = state.map_err(|error| not_written(error, &name))?;
        let open = OpenStep { cx: self, name };
        match state {
            StepState::Fresh => Ok(Step::Fresh(open)),
            StepState::Unknown => Ok(Step::Unknown(open)),
            StepState::Finished(result) => {
                let text = result.as_deref().map_or("null", RawValue::get);
                serde_json::from_str(text).map(Step::Finished).or_discard("reading the result of a finished step")
            }
        }
    }
}

/// Where a step stands when a handler comes to it.
pub enum Step<'cx, T> {
    /// Never begun.
    Fresh(OpenStep<'cx>),
    /// An earlier attempt began it and did not say that it finished: its effect may or may not have happened.
    Unknown(OpenStep<'cx>),
    /// Finished earlier, with this result: do not do it again.
    Finished(T),
}

/// A step that has begun.
pub struct OpenStep<'cx> {
    cx: &'cx Context,
    name: String,
}

impl OpenStep<'_> {
    /// Writes that it finished, with a small result, without secrets. The job has made progress.
    pub async fn finish<T: Serialize + Sync>(self, result: &T) -> Result<(), Failure> {
        let result = to_raw_value(result).or_discard("writing the result of a step")?;
        let ledger = self.cx.queue.ledger();
        reached("step finishing");
        let finished = ledger.finish_step(self.cx.job.attempt, &self.name, Some(&result), self.cx.now()).await;
        reached("step finished");
        finished.map_err(|error| not_written(error, &self.name))
    }
}

fn not_written(error: LedgerError, step: &str) -> Failure {
    Failure::retry(error).context(format!("writing the step `{step}`"))
}
