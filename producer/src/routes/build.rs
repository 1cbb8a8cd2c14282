//! The checks of routes: everything that can be wrong is found when the configuration is read, not at night.

use schemas::runbook::check_arguments;
use schemas::{Condition, Event, EventId, Facts, Problem, Template, Timestamp};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Route, RouteConfig, Routes, RunConfig, Startable, Target, unknown_runbook};
use crate::sources::{Source, SourceType, Sources, example};

impl Routes {
    /// Checks the routes; everything that is wrong, each below `routes.<index>`.
    ///
    /// Conditions are checked by the names that they read; arguments with the bundled sample of the route's event type,
    /// where there is one.
    pub fn build(configs: &[RouteConfig], startable: &Startable, sources: &Sources) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut routes = Vec::new();
        for (index, config) in configs.iter().enumerate() {
            match build_route(config, startable, sources) {
                Ok(route) => routes.push(route),
                Err(found) => {
                    problems.extend(found.into_iter().map(|it| it.within(index.to_string()).within("routes")));
                }
            }
        }
        if problems.is_empty() { Ok(Self { routes }) } else { Err(problems) }
    }
}

fn build_route(config: &RouteConfig, startable: &Startable, sources: &Sources) -> Result<Route, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut note = |found: Problem, key: &str| problems.push(found.within(key));
    let sender = sender_of(&config.on, sources).map_err(|found| note(found, "on")).ok();
    let on = sender.map_or_else(|| config.on.clone(), |sender| sender.canonical(&config.on));
    let sample = sender.and_then(|sender| example(sender, &on));
    let when = config.when.as_deref().map(Condition::parse).transpose().map_err(|found| note(found, "when"));
    if let Ok(Some(when)) = &when {
        for found in when.check(&names(), &[]) {
            note(found, "when");
        }
    }
    let target = target_of(&config.run, startable).map_err(|found| note(found, "run"));
    let with =
        Template::parse(Value::Object(config.run.with.clone())).map_err(|found| note(found.within("with"), "run"));
    if let (Ok(target), Ok(with)) = (&target, &with) {
        let found = check_with(target, with, &config.run.with, startable, sample.as_ref());
        for found in found {
            note(found, "run");
        }
    }
    match (when, target, with) {
        (Ok(when), Ok(target), Ok(with)) if problems.is_empty() => {
            let raw = ["event", "raw"];
            let reads_raw = when.as_ref().is_some_and(|when| when.reads(&raw)) || with.reads(&raw);
            let reads_cause = when.as_ref().is_some_and(|when| when.reads(&["event", "caused_by"]));
            Ok(Route { on, when, target, with, reads_raw, reads_cause })
        }
        _ => Err(problems),
    }
}

/// The type of the configured source whose events an `on` names.
fn sender_of(on: &str, sources: &Sources) -> Result<&'static dyn SourceType, Problem> {
    let (word, event) = on.split_once('.').unwrap_or((on, ""));
    let types: std::collections::BTreeSet<&str> = sources.iter().map(|source| source.kind().name()).collect();
    let sender = sources.iter().map(Source::kind).find(|kind| kind.name() == word).ok_or_else(|| {
        let problem = Problem::unknown("source of the type", word, types);
        Problem { message: format!("`{on}`: {}", problem.message), ..problem }
    })?;
    let star = event.find('*');
    if event.is_empty() || star.is_some_and(|place| event != "*" && (place + 1 < event.len() || !event.ends_with(".*")))
    {
        let problem = Problem::new(format!("`{on}` is neither an event type nor all that begin alike"));
        return Err(problem.help(format!("write `{word}.<event>`, `{word}.<event>.*` or `{word}.*`")));
    }
    let samples = sender.sample_types();
    let with_action = samples.iter().find(|kind| kind.strip_prefix(on).is_some_and(|rest| rest.starts_with('.')));
    match with_action {
        Some(longer) => Err(Problem::new(format!("no event is only a `{on}`"))
            .help(format!("its types go on with an action: `{on}.*` for all of them, or one, as `{longer}`"))),
        _ => Ok(sender),
    }
}

/// What a `run` starts.
pub(crate) fn target_of(run: &RunConfig, startable: &Startable) -> Result<Target, Problem> {
    match (&run.runbook, &run.job) {
        (Some(name), None) if startable.runbooks.contains_key(name) => Ok(Target::Runbook(name.clone())),
        (Some(name), None) => Err(unknown_runbook(name, &startable.runbooks).within("runbook")),
        (None, Some(kind)) => match startable.catalog.kind(kind) {
            Ok(_) => Ok(Target::Job(kind.clone())),
            Err(problem) => Err(problem.within("job")),
        },
        _ => Err(Problem::new("either a runbook or a job is run")
            .help("write run = { runbook = \"...\" } or run = { job = \"...\" }")),
    }
}

fn check_with(
    target: &Target,
    with: &Template,
    config: &Map<String, Value>,
    startable: &Startable,
    sample: Option<&(Event, Value)>,
) -> Vec<Problem> {
    // A sample has less in its `raw` than a real delivery, so what reads it can be checked by names only.
    let sample = sample.filter(|_| !with.reads(&["event", "raw"]));
    let examples = sample.map_or_else(shape, |(event, raw)| variables(event, raw));
    let rendered = with.render(&examples).ok();
    let certain = sample.is_some() || rendered.is_some();
    match target {
        Target::Job(kind) if certain => check_arguments(with, kind, &startable.catalog, &examples),
        Target::Job(_) => below_with(with.check(&examples)),
        Target::Runbook(name) => {
            let mut problems = below_with(with.check(&examples));
            let Some(runbook) = startable.runbooks.get(name) else { return problems };
            if problems.is_empty() && sample.is_some() {
                problems
                    .extend(with.render(&examples).err().map(|error| Problem::new(error.to_string()).within("with")));
            }
            problems.extend(below_with(match rendered {
                Some(Value::Object(inputs)) => runbook.check_inputs(&inputs),
                _ => runbook.check_names(config),
            }));
            problems
        }
    }
}

fn below_with(problems: Vec<Problem>) -> Vec<Problem> {
    problems.into_iter().map(|problem| problem.within("with")).collect()
}

fn variables(event: &Event, raw: &Value) -> Value {
    let mut view = event.view();
    view["raw"] = raw.clone();
    json!({"event": view})
}

/// What every event has, for checks of names alone: nothing stands below a text, and anything may below `raw`.
fn names() -> Value {
    fn fill(value: &mut Value) {
        match value {
            Value::Null => *value = Value::String(String::new()),
            Value::Object(fields) => fields.values_mut().for_each(fill),
            _ => {}
        }
    }
    let mut names = shape();
    fill(&mut names);
    names["event"]["raw"] = Value::Null;
    names
}

/// What every event has, with nothing in it.
fn shape() -> Value {
    let empty = Event {
        id: EventId(Uuid::nil()),
        source: String::new(),
        kind: String::new(),
        delivery_id: String::new(),
        subject: None,
        time: Timestamp::UNIX_EPOCH,
        data: Facts::default(),
    };
    variables(&empty, &Value::Null)
}
