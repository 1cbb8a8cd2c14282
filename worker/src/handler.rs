//! What a job kind is: typed arguments, a policy, and the code that runs it.

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{ApprovalPolicy, Key, Limit, Names, Priority, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::context::Context;

/// One job kind. The implementing struct is the job's arguments.
///
/// An attempt may be dropped at any await (cancelled, lease lost, process killed) and run again from its start, so a
/// handler's head says why running it twice is safe, and effects stand between [`Context::step`] and its `finish`.
#[async_trait]
pub trait Handler: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// Its name, as routes and operators write it.
    const KIND: &'static str;
    /// What it does, in one line.
    const SUMMARY: &'static str;
    /// The queue that its jobs wait in.
    const QUEUE: &'static str = "default";
    /// Their place in that queue.
    const PRIORITY: Priority = Priority::Normal;
    /// When a failed one is tried again, and when it is given up.
    const RETRY: RetryPolicy;
    /// An attempt that runs longer is stopped and counts as failed.
    const TIME_LIMIT: Duration;

    /// What is wrong with these arguments, beyond their types: names that nothing is configured under.
    fn check(&self, names: &Names) -> Vec<Problem> {
        let _ = names;
        Vec::new()
    }

    /// What a job with these arguments is the only one of.
    fn key(&self) -> Option<Key> {
        None
    }

    /// What a job with these arguments must find room at: `Limit::one("database:main")` for whatever must be alone there.
    fn limits(&self) -> Vec<Limit> {
        Vec::new()
    }

    /// Whose consent a job with these arguments waits for, whoever starts it. A runbook may ask for more, never for less.
    fn approval(&self) -> Option<ApprovalPolicy> {
        None
    }

    /// Whether doing a finished job of it again is refused: its effect must not be doubled.
    const ONCE: bool = false;

    /// The names that its output has, for conditions: null where anything may stand below.
    fn output() -> Value {
        Value::Null
    }

    /// Runs it. The output is a small JSON object, without secrets.
    async fn run(&self, cx: &Context) -> Result<Output, Failure>;
}

/// What a handler puts out for other jobs of its run: a small JSON object, without secrets; null for nothing.
pub type Output = Value;

/// What a handler answers when it is not done.
#[derive(Debug)]
pub enum Failure {
    /// It may succeed later: try again by the kind's policy, but not before `after`.
    Retry {
        /// What went wrong.
        error: anyhow::Error,
        /// What the other side asked for (`Retry-After`).
        after: Option<Duration>,
    },
    /// It will not succeed: give it up now.
    Discard(anyhow::Error),
    /// Nothing went wrong: call again later, at no cost.
    Snooze {
        /// How much later.
        wait: Duration,
        /// Why, for people.
        reason: String,
    },
    /// It is no longer wanted.
    Cancelled(String),
}

impl Failure {
    /// A failure that may pass.
    pub fn retry(error: impl Into<anyhow::Error>) -> Self {
        Self::Retry { error: error.into(), after: None }
    }

    /// A failure that stays.
    pub fn discard(error: impl Into<anyhow::Error>) -> Self {
        Self::Discard(error.into())
    }

    /// What went wrong, with all its causes, for people.
    pub fn words(&self) -> String {
        match self {
            Self::Retry { error, .. } | Self::Discard(error) => format!("{error:#}"),
            Self::Snooze { reason, .. } | Self::Cancelled(reason) => reason.clone(),
        }
    }

    /// Adds what was being done.
    #[must_use]
    pub fn context(self, doing: impl Into<String>) -> Self {
        let doing = doing.into();
        match self {
            Self::Retry { error, after } => Self::Retry { error: error.context(doing), after },
            Self::Discard(error) => Self::Discard(error.context(doing)),
            other => other,
        }
    }
}

/// Says, where an error arises, whether it may pass.
pub trait OrFail<T> {
    /// It may pass: try again.
    fn or_retry(self, doing: &str) -> Result<T, Failure>;
    /// It stays: give up.
    fn or_discard(self, doing: &str) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrFail<T> for Result<T, E> {
    fn or_retry(self, doing: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::retry(error.into().context(doing.to_owned())))
    }

    fn or_discard(self, doing: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::Discard(error.into().context(doing.to_owned())))
    }
}
