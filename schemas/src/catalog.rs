//! The catalog: which job kinds there are. Made from the worker's registry, read by everyone who makes jobs, so that a
//! route to an unknown kind, or with wrong arguments, fails at start-up and not at night.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use serde_json::value::to_raw_value;

use crate::{
    ApprovalPolicy, EventId, JobId, Key, Limit, LimitConfig, NewJob, Priority, Problem, Timestamp, TraceContext,
};

/// What the configuration defines, by name, for checks of arguments.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Names {
    pub databases: BTreeSet<String>,
    pub stores: BTreeSet<String>,
    pub channels: BTreeSet<String>,
    pub credentials: BTreeSet<String>,
    pub programs: BTreeSet<String>,
    pub sources: BTreeSet<String>,
    pub rotations: BTreeSet<String>,
    /// Runbooks, with the names of their inputs.
    pub runbooks: BTreeMap<String, BTreeSet<String>>,
}

/// One job kind, as those see it who make jobs.
#[derive(Clone, Debug)]
pub struct KindInfo {
    /// Its name.
    pub kind: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// The queue that its jobs wait in.
    pub queue: &'static str,
    /// Their place in that queue.
    pub priority: Priority,
    /// The JSON schema of its arguments.
    pub schema: fn() -> Value,
    /// What is wrong with given arguments.
    pub check: fn(&Value, &Names) -> Vec<Problem>,
    /// What a job with these arguments is the only one of.
    pub key: fn(&Value) -> Option<Key>,
    /// What a job with these arguments must find room at.
    pub limits: fn(&Value) -> Vec<Limit>,
    /// Whose consent a job with these arguments waits for.
    pub approval: fn(&Value) -> Option<ApprovalPolicy>,
    /// Whether doing a finished job of it again is refused.
    pub once: bool,
    /// The names that its output has, for conditions: null where anything may stand below.
    pub output: fn() -> Value,
}

/// All job kinds.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    kinds: BTreeMap<&'static str, KindInfo>,
    names: Names,
    limits: BTreeMap<String, LimitConfig>,
}

impl Catalog {
    /// A catalog of the given kinds, whose checks know the given names.
    pub fn new(kinds: impl IntoIterator<Item = KindInfo>, names: Names) -> Self {
        Self { kinds: kinds.into_iter().map(|kind| (kind.kind, kind)).collect(), names, limits: BTreeMap::new() }
    }

    /// The same catalog, with what the configuration says about limits, by key.
    #[must_use]
    pub fn with_limits(mut self, limits: BTreeMap<String, LimitConfig>) -> Self {
        self.limits = limits;
        self
    }

    /// All kinds, by name.
    pub fn kinds(&self) -> impl Iterator<Item = &KindInfo> {
        self.kinds.values()
    }

    /// One kind.
    pub fn kind(&self, name: &str) -> Result<&KindInfo, Problem> {
        self.kinds.get(name).ok_or_else(|| Problem::unknown("job kind", name, self.kinds.keys().copied()))
    }

    /// What is wrong with a job of this kind and these arguments.
    pub fn check(&self, kind: &str, args: &Value) -> Vec<Problem> {
        match self.kind(kind) {
            Ok(info) => (info.check)(args, &self.names),
            Err(problem) => vec![problem],
        }
    }

    /// A job, checked, ready to be stored.
    pub fn job(&self, kind: &str, args: &Value, now: Timestamp) -> Result<NewJob, Problem> {
        let info = self.kind(kind)?;
        if let Some(problem) = (info.check)(args, &self.names).into_iter().next() {
            return Err(problem);
        }
        let args_text = to_raw_value(args).map_err(|error| Problem::new(error.to_string()))?;
        Ok(NewJob {
            id: JobId::at(now),
            kind: info.kind.to_owned(),
            args: args_text,
            queue: info.queue.to_owned(),
            priority: info.priority,
            run_at: None,
            key: (info.key)(args),
            limits: self.limits_of(info, args),
            approval: (info.approval)(args),
            replay_of: None,
            event: None,
            trace: TraceContext::default(),
        })
    }
}

impl Catalog {
    /// Every key that a job of today could name: those of the databases, the rotations, the channels and the kinds.
    pub fn keys(&self) -> BTreeSet<String> {
        let named = |of: &str, names: &BTreeSet<String>| -> Vec<String> {
            names.iter().map(|name| format!("{of}:{name}")).collect()
        };
        let kinds = self.kinds.keys().map(|kind| format!("kind:{kind}"));
        let databases = named("database", &self.names.databases);
        let rotations = named("rotation", &self.names.rotations);
        databases.into_iter().chain(rotations).chain(named("channel", &self.names.channels)).chain(kinds).collect()
    }

    /// The keys that jobs look at: those of the databases and rotations, at which they exclude each other, and those that
    /// the configuration limits. The others cost nothing and hold nothing back.
    pub fn live_keys(&self) -> BTreeSet<String> {
        let is_exclusive = |key: &String| key.starts_with("database:") || key.starts_with("rotation:");
        let exclusive = self.keys().into_iter().filter(is_exclusive);
        exclusive.chain(self.limits.keys().cloned()).collect()
    }

    /// What is wrong with the configured limits: keys that no job of today could name.
    pub fn check_limits(&self) -> Vec<Problem> {
        let known = self.keys();
        let unknown = self.limits.keys().filter(|key| !known.contains(*key));
        let problem = |key: &String| Problem::unknown("limit", key, known.iter().map(String::as_str)).within(key);
        unknown.map(|key| problem(key).within("limits")).collect()
    }

    /// The kind's own limits as they are configured, and the one that the configuration sets for the whole kind.
    fn limits_of(&self, info: &KindInfo, args: &Value) -> Vec<Limit> {
        let own = (info.limits)(args).into_iter();
        let whole_kind = Limit::none(format!("kind:{}", info.kind));
        own.chain([whole_kind])
            .filter_map(|limit| match self.limits.get(&limit.key) {
                Some(config) => Some(limit.configured(config)),
                // A key without a limit would cost each job a row for the sake of a pause that may never come.
                None => (limit.at_once.is_some() || limit.rate.is_some()).then_some(limit),
            })
            .collect()
    }
}

impl NewJob {
    /// Ties the job to the event that it is made for, and to its trace.
    #[must_use]
    pub fn made_for(mut self, event: EventId, trace: TraceContext) -> Self {
        self.event = Some(event);
        self.trace = trace;
        self
    }
}
