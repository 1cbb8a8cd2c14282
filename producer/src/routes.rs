//! Routes: which jobs and runs an event makes. Pure, and total: a route that errs never fails the delivery, its error is
//! recorded with the event.

mod build;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use schemas::runbook::Start;
use schemas::{Catalog, Condition, Event, JobId, NewJob, NewRun, Problem, Runbook, Template, Timestamp, TraceContext};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::readable::made_plain;

pub(crate) use build::target_of;

/// A route as the configuration file spells it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// An event type (`vercel.deployment.succeeded`), or all that begin alike (`github.pull_request.*`).
    pub on: String,
    /// CEL over `event`; without it, every event of the type matches.
    pub when: Option<String>,
    /// What to do.
    pub run: RunConfig,
}

/// What a route or a schedule starts: `{ runbook = "...", with = {...} }` or `{ job = "...", with = {...} }`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// A runbook, whose inputs `with` gives.
    pub runbook: Option<String>,
    /// A job kind, whose arguments `with` gives.
    pub job: Option<String>,
    /// Inputs or arguments; texts may hold templates over `event`.
    #[serde(default)]
    pub with: Map<String, Value>,
}

/// What can be started: job kinds and runbooks. Cheap to clone.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Startable {
    pub catalog: Arc<Catalog>,
    pub runbooks: Arc<BTreeMap<String, Runbook>>,
}

/// All routes, checked.
#[derive(Debug, Default)]
pub struct Routes {
    routes: Vec<Route>,
}

#[derive(Debug)]
struct Route {
    on: String,
    when: Option<Condition>,
    target: Target,
    with: Template,
    /// Whether its condition or template reads the sender's own body.
    reads_raw: bool,
    /// Whether its condition asks which job of ours made the deployment, and so decides itself.
    reads_cause: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Runbook(String),
    Job(String),
}

/// What the routes made of an event.
#[derive(Debug, Default)]
pub struct Matched {
    /// Jobs to be stored.
    pub jobs: Vec<NewJob>,
    /// Runs to be stored.
    pub runs: Vec<NewRun>,
    /// What routes that should have matched, or might have, could not do.
    pub errors: Vec<String>,
}

/// What one route has to say of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteExplanation {
    /// Its place in the configuration, from 0.
    pub index: usize,
    /// Its `on`.
    pub on: String,
    /// Whether it makes work of the event.
    pub matched: bool,
    /// Why, or why not.
    pub why: String,
}

/// Where and when work is made.
#[derive(Clone, Copy, Debug)]
pub struct Making<'a> {
    /// The ledger's time.
    pub now: Timestamp,
    /// The position in the trace.
    pub trace: &'a TraceContext,
}

/// How a route takes an event.
enum Verdict {
    OtherType,
    Unmet(String),
    /// The deployment belongs to the work of this job.
    Joins(JobId),
    Erred(String),
    Makes(Work),
}

enum Work {
    Job(Box<NewJob>),
    Run(Box<NewRun>),
}

impl Routes {
    /// What they make of an event. `raw` reads the sender's own body; it is called at most once, and only if some route
    /// needs it.
    pub fn matching(
        &self,
        event: &Event,
        raw: impl FnOnce() -> Result<Value, String>,
        startable: &Startable,
        making: Making<'_>,
    ) -> Matched {
        let mut matched = Matched::default();
        for (index, verdict) in self.verdicts(event, raw, startable, making) {
            match verdict {
                Verdict::Makes(Work::Job(job)) => matched.jobs.push(*job),
                Verdict::Makes(Work::Run(run)) => matched.runs.push(*run),
                Verdict::Erred(error) => {
                    let on = &self.routes[index].on;
                    matched.errors.push(made_plain(&format!("route {} (on {on}): {error}", index + 1)));
                }
                Verdict::OtherType | Verdict::Unmet(_) | Verdict::Joins(_) => {}
            }
        }
        matched
    }

    /// Which of them match an event, and why the others don't.
    pub fn explain(
        &self,
        event: &Event,
        raw: impl FnOnce() -> Result<Value, String>,
        startable: &Startable,
    ) -> Vec<RouteExplanation> {
        let making = Making { now: event.time, trace: &TraceContext::default() };
        let explained = self.verdicts(event, raw, startable, making).map(|(index, verdict)| {
            let route = &self.routes[index];
            let (matched, why) = match verdict {
                Verdict::OtherType => (false, format!("the event is a `{}`", event.kind)),
                Verdict::Unmet(condition) => (false, format!("its condition is false: {condition}")),
                Verdict::Joins(job) => (
                    false,
                    format!(
                        "the deployment was made by the job {job} and belongs to its run, so that it starts no other \
                         (a `when` that reads `event.caused_by` decides itself)"
                    ),
                ),
                Verdict::Erred(error) => (false, format!("it cannot be evaluated: {error}")),
                Verdict::Makes(_) => (true, format!("it starts {}", route.target)),
            };
            RouteExplanation { index, on: route.on.clone(), matched, why }
        });
        explained.collect()
    }

    fn verdicts<'a>(
        &'a self,
        event: &'a Event,
        raw: impl FnOnce() -> Result<Value, String> + 'a,
        startable: &'a Startable,
        making: Making<'a>,
    ) -> impl Iterator<Item = (usize, Verdict)> + 'a {
        let mut variables = Variables::new(event, raw);
        self.routes.iter().enumerate().map(move |(index, route)| {
            if !is_on(&route.on, &event.kind) {
                return (index, Verdict::OtherType);
            }
            (index, route.judge(&mut variables, event, startable, making).unwrap_or_else(Verdict::Erred))
        })
    }
}

impl Route {
    fn judge<R: FnOnce() -> Result<Value, String>>(
        &self,
        variables: &mut Variables<'_, R>,
        event: &Event,
        startable: &Startable,
        making: Making<'_>,
    ) -> Result<Verdict, String> {
        let variables = variables.get(self.reads_raw)?;
        if let Some(condition) = &self.when
            && !condition.holds(variables, None).map_err(|error| error.to_string())?
        {
            return Ok(Verdict::Unmet(condition.text().to_owned()));
        }
        if let (Some(job), Target::Runbook(_), false) = (event.data.caused_by, &self.target, self.reads_cause) {
            return Ok(Verdict::Joins(job));
        }
        let with = self.with.render(variables).map_err(|error| error.to_string())?;
        if holds_nul(&with) {
            return Err("its arguments hold a NUL character, which no ledger stores".to_owned());
        }
        self.start(&with, event, startable, making).map(Verdict::Makes).map_err(|problem| problem.to_string())
    }

    fn start(&self, with: &Value, event: &Event, startable: &Startable, making: Making<'_>) -> Result<Work, Problem> {
        let Startable { catalog, runbooks } = startable;
        match &self.target {
            Target::Job(kind) => {
                let job = catalog.job(kind, with, making.now)?;
                Ok(Work::Job(Box::new(job.made_for(event.id, making.trace.clone()))))
            }
            Target::Runbook(name) => {
                let runbook = runbooks.get(name).ok_or_else(|| unknown_runbook(name, runbooks))?;
                let inputs = with.as_object().cloned().unwrap_or_default();
                let start = Start { event: Some(event.id), trace: making.trace.clone(), ..Start::default() };
                Ok(Work::Run(Box::new(runbook.plan(&inputs, start, catalog, making.now)?)))
            }
        }
    }
}

fn unknown_runbook(name: &str, runbooks: &BTreeMap<String, Runbook>) -> Problem {
    Problem::unknown("runbook", name, runbooks.keys().map(String::as_str))
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Runbook(name) => write!(f, "the runbook `{name}`"),
            Self::Job(kind) => write!(f, "a job `{kind}`"),
        }
    }
}

/// Whether an `on` names an event type.
fn is_on(on: &str, kind: &str) -> bool {
    match on.strip_suffix('*') {
        Some(beginning) => kind.starts_with(beginning),
        None => on == kind,
    }
}

/// NUL has a spelling in JSON and none in `PostgreSQL`, where a job's key would meet it.
fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(fields) => fields.iter().any(|(name, field)| name.contains('\0') || holds_nul(field)),
        _ => false,
    }
}

/// What conditions and templates see, built when the first route asks, and the sender's own body when the first route
/// asks for that: parsing it costs more than all the rest.
struct Variables<'a, R> {
    event: &'a Event,
    raw: Option<R>,
    known: Option<Value>,
    raw_error: Option<String>,
}

impl<'a, R: FnOnce() -> Result<Value, String>> Variables<'a, R> {
    fn new(event: &'a Event, raw: R) -> Self {
        Self { event, raw: Some(raw), known: None, raw_error: None }
    }

    fn get(&mut self, with_raw: bool) -> Result<&Value, String> {
        let known = self.known.get_or_insert_with(|| json!({"event": self.event.view()}));
        if with_raw && let Some(raw) = self.raw.take() {
            match raw() {
                Ok(value) => known["event"]["raw"] = value,
                Err(error) => self.raw_error = Some(error),
            }
        }
        match &self.raw_error {
            Some(error) if with_raw => Err(format!("event.raw cannot be read: {error}")),
            _ => Ok(known),
        }
    }
}
