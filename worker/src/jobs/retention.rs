//! `retention`: deletes what is older than it is to be kept. Of rows: [`rows`].

mod rows;

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{Limit, Names, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::context::Context;
use crate::handler::{Failure, Handler, Output};

/// The arguments of `retention`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "of", rename_all = "snake_case")]
pub(crate) enum Retention {
    /// Rows of a table.
    Rows(rows::OfRows),
}

#[async_trait]
impl Handler for Retention {
    const KIND: &'static str = "retention";
    const SUMMARY: &'static str = "deletes rows that are older than they are to be kept";
    const QUEUE: &'static str = "databases";
    const RETRY: RetryPolicy = RetryPolicy::PATIENT;
    const TIME_LIMIT: Duration = Duration::from_hours(6);

    fn check(&self, names: &Names) -> Vec<Problem> {
        let Self::Rows(of) = self;
        of.check(names)
    }

    fn limits(&self) -> Vec<Limit> {
        let Self::Rows(of) = self;
        of.limits()
    }

    fn output() -> Value {
        let mut names = json!({"dry_run": null, "deleted": null});
        if let (Value::Object(names), Value::Object(of_rows)) = (&mut names, rows::output()) {
            names.extend(of_rows);
        }
        names
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let Self::Rows(of) = self;
        of.run(cx).await
    }
}
