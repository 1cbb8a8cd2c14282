//! `retention`: deletes what is older than it is to be kept: [`backups`] by the tiers of their store, [`rows`] by age. Why
//! twice is safe, and what is retried, stands at the head of each.

mod backups;
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
    /// Backups in a store.
    Backups(backups::OfBackups),
    /// Rows of a table.
    Rows(rows::OfRows),
}

#[async_trait]
impl Handler for Retention {
    const KIND: &'static str = "retention";
    const SUMMARY: &'static str = "deletes backups and rows that are older than they are to be kept";
    const QUEUE: &'static str = "databases";
    const RETRY: RetryPolicy = RetryPolicy::PATIENT;
    const TIME_LIMIT: Duration = Duration::from_hours(6);

    fn check(&self, names: &Names) -> Vec<Problem> {
        match self {
            Self::Backups(of) => of.check(names),
            Self::Rows(of) => of.check(names),
        }
    }

    fn limits(&self) -> Vec<Limit> {
        match self {
            Self::Backups(_) => Vec::new(),
            Self::Rows(of) => of.limits(),
        }
    }

    fn output() -> Value {
        let mut names = json!({"dry_run": null, "deleted": null});
        for more in [backups::output(), rows::output()] {
            if let (Value::Object(names), Value::Object(more)) = (&mut names, more) {
                names.extend(more);
            }
        }
        names
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        match self {
            Self::Backups(of) => of.run(cx).await,
            Self::Rows(of) => of.run(cx).await,
        }
    }
}
