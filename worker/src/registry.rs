//! The registry: job kinds by name, their types erased once, here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use queue::retry::RetryPolicy;
use schemas::{Catalog, KindInfo, Names, Problem};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::context::Context;
use crate::handler::{Failure, Handler, Output};

type Run = fn(Box<RawValue>, Arc<Context>) -> BoxFuture<'static, Result<Output, Failure>>;

/// One job kind without its type.
pub(crate) struct Kind {
    pub(crate) info: KindInfo,
    pub(crate) retry: RetryPolicy,
    pub(crate) time_limit: Duration,
    pub(crate) run: Run,
    read: fn(&RawValue) -> Result<Value, Problem>,
}

/// All job kinds that this binary knows.
#[derive(Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Kind>,
}

impl Registry {
    /// Adds a kind.
    ///
    /// # Panics
    ///
    /// If the kind is there already: two handlers under one name are a mistake in the program.
    #[must_use]
    pub fn with<H: Handler>(mut self) -> Self {
        let kind = Kind {
            info: KindInfo {
                kind: H::KIND,
                summary: H::SUMMARY,
                queue: H::QUEUE,
                priority: H::PRIORITY,
                schema: || schemars::schema_for!(H).to_value(),
                check: check::<H>,
                key: |args| decode::<H>(args).ok().and_then(|handler| handler.key()),
                limits: |args| decode::<H>(args).map(|handler| handler.limits()).unwrap_or_default(),
                approval: |args| decode::<H>(args).ok().and_then(|handler| handler.approval()),
                once: H::ONCE,
                output: H::output,
            },
            retry: H::RETRY,
            time_limit: H::TIME_LIMIT,
            run: |args, context| Box::pin(run::<H>(args, context)),
            read: read::<H>,
        };
        assert!(self.kinds.insert(H::KIND, kind).is_none(), "the job kind `{}` is registered twice", H::KIND);
        self
    }

    /// What makers of jobs see.
    pub fn catalog(&self, names: Names) -> Catalog {
        Catalog::new(self.kinds.values().map(|kind| kind.info.clone()), names)
    }

    /// The queues that these kinds wait in, each with its kinds.
    pub fn queues(&self) -> BTreeMap<&'static str, Vec<String>> {
        let mut queues: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        for kind in self.kinds.values() {
            queues.entry(kind.info.queue).or_default().push(kind.info.kind.to_owned());
        }
        queues
    }

    /// Stored arguments as a worker of this binary understands them.
    pub fn read(&self, kind: &str, args: &RawValue) -> Result<Value, Problem> {
        let kind = self.kinds.get(kind);
        kind.map_or_else(|| Err(Problem::new("this job kind is not known")), |kind| (kind.read)(args))
    }

    pub(crate) fn kind(&self, name: &str) -> Option<&Kind> {
        self.kinds.get(name)
    }
}

fn decode<H: Handler>(args: &Value) -> Result<H, Problem> {
    H::deserialize(args).map_err(|error| Problem::new(error.to_string()))
}

fn check<H: Handler>(args: &Value, names: &Names) -> Vec<Problem> {
    match decode::<H>(args) {
        Ok(handler) => handler.check(names),
        Err(problem) => vec![problem],
    }
}

fn stored<H: Handler>(args: &RawValue) -> serde_json::Result<H> {
    serde_json::from_str(args.get())
}

fn read<H: Handler>(args: &RawValue) -> Result<Value, Problem> {
    let read = stored::<H>(args).and_then(serde_json::to_value);
    read.map_err(|error| Problem::new(error.to_string()))
}

async fn run<H: Handler>(args: Box<RawValue>, context: Arc<Context>) -> Result<Output, Failure> {
    let handler: H = stored(&args)
        .map_err(|error| Failure::Discard(anyhow::Error::new(error).context("the job's arguments cannot be read")))?;
    handler.run(&context).await
}
