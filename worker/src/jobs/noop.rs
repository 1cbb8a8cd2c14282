//! `noop`: does nothing, for trying things out and for benchmarks.
//!
//! Twice is safe: its steps are named, and a finished one is not repeated. Retries: only what `fail_first` asks for.

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::context::{Context, Step};
use crate::handler::{Failure, Handler, Output};

/// The arguments of `noop`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Noop {
    /// Comes back in the output.
    message: Option<String>,
    /// How many named steps to take, at most 10.
    steps: u8,
    /// Waits so many milliseconds in each step.
    step_millis: u32,
    /// Fails so many times before it succeeds.
    fail_first: u8,
    /// Ballast, so that arguments have a size.
    padding: Option<String>,
}

const STEP_NAMES: [&str; 10] = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

#[async_trait]
impl Handler for Noop {
    const KIND: &'static str = "noop";
    const SUMMARY: &'static str = "does nothing, for trying things out and for benchmarks";
    const RETRY: RetryPolicy = RetryPolicy::PROMPT;
    const TIME_LIMIT: Duration = Duration::from_mins(10);

    fn output() -> Value {
        json!({"message": null})
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        for name in STEP_NAMES.into_iter().take(self.steps.into()) {
            if let Step::Fresh(step) | Step::Unknown(step) = cx.step::<Value>(name).await? {
                tokio::time::sleep(Duration::from_millis(self.step_millis.into())).await;
                step.finish(&json!(null)).await?;
            }
        }
        if cx.job().failures < self.fail_first.into() {
            return Err(Failure::retry(anyhow::anyhow!("failing {} times, as asked", self.fail_first)));
        }
        Ok(self.message.as_ref().map_or(Value::Null, |message| json!({"message": message})))
    }
}
