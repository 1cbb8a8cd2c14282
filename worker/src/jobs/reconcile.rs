//! `reconcile`: compares what a sender says that it sent, or did, with what the ledger has, and gets what is missing:
//! [`github`], whose deliveries GitHub never repeats by itself, and [`vercel`], whose webhooks may be gone, or not be had.
//! Why twice is safe, and what is retried, stands at the head of each.
//!
//! What came before a producer listened to the source was not for us: setting the house up does not bring in last week.

mod found;
mod github;
mod vercel;

use std::time::Duration;

use async_trait::async_trait;
use queue::clock::earlier;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{Limit, Names, Problem, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::context::Context;
use crate::handler::{Failure, Handler, OrFail, Output};

/// The longest time that is looked back.
const LONGEST: Duration = Duration::from_hours(24 * 7);

/// The arguments of `reconcile`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "of", rename_all = "snake_case")]
pub(crate) enum Reconcile {
    /// GitHub's deliveries.
    Github(github::OfGithub),
    /// Vercel's deployments and check runs.
    Vercel(vercel::OfVercel),
}

#[async_trait]
impl Handler for Reconcile {
    const KIND: &'static str = "reconcile";
    const SUMMARY: &'static str = "gets what GitHub or Vercel sent, or should have sent, and the ledger does not have";
    const RETRY: RetryPolicy = RetryPolicy::PATIENT;
    const TIME_LIMIT: Duration = Duration::from_mins(30);

    fn check(&self, names: &Names) -> Vec<Problem> {
        match self {
            Self::Github(of) => of.check(names),
            Self::Vercel(of) => of.check(names),
        }
    }

    /// One of a source at a time: a second one would only do the same.
    fn limits(&self) -> Vec<Limit> {
        let source = match self {
            Self::Github(of) => &of.source,
            Self::Vercel(of) => &of.source,
        };
        vec![Limit::one(format!("reconcile:{source}"))]
    }

    fn output() -> Value {
        json!({
            "looked_at": null, "missing": null, "hooks": null, "asked": null, "waiting": null, "project": null,
            "deployments": null, "checks": null, "brought_in": null,
        })
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        match self {
            Self::Github(of) => of.run(cx).await,
            Self::Vercel(of) => of.run(cx).await,
        }
    }
}

/// What both put out, null where it is the other's.
fn ended(with: Value) -> Output {
    let mut output = Reconcile::output();
    if let (Value::Object(output), Value::Object(with)) = (&mut output, with) {
        output.extend(with);
    }
    output
}

/// What is wrong with what both forms have.
fn check(source: &str, within: Duration, names: &Names) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !names.sources.contains(source) {
        let known = names.sources.iter().map(String::as_str);
        problems.push(Problem::unknown("source", source, known).within("source"));
    }
    if within > LONGEST {
        problems.push(Problem::new("nobody remembers for longer than 7 days").within("within"));
    }
    problems
}

/// From when on the source's events are ours to have.
async fn horizon(cx: &Context, source: &str, within: Duration, from: Option<Timestamp>) -> Result<Timestamp, Failure> {
    let listened = cx.queue().ledger().source(source).await.or_retry("looking up the source")?;
    let since = match (from, listened) {
        (Some(from), _) => from,
        (None, Some(listened)) => listened.since,
        (None, None) => {
            return Err(Failure::retry(anyhow::anyhow!(
                "no producer has listened to the source `{source}` yet; start one (`nightporter serve` or `up`)"
            )));
        }
    };
    Ok(since.max(earlier(cx.now(), within)))
}
