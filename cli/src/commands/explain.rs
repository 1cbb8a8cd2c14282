//! `explain`: which routes match an event, why the others don't, and which jobs would be made. Changes nothing.

use std::path::PathBuf;

use axum::http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use chrono::Utc;
use producer::routes::Making;
use producer::{Matched, RouteExplanation, Source};
use schemas::{Event, EventId, NewJob, NewRun, Problem, TraceContext};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::Global;
use crate::config::{Checked, Config};
use crate::failure::Failure;
use crate::output::table;

/// The arguments of `explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file with an event (as `events show --json` prints it, or a `CloudEvent` of ours); with --source, a sender's body.
    event: PathBuf,
    /// The file is the body of a delivery to this source.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// The event type of that body, where a header says it and not the body (GitHub), such as `pull_request`.
    #[arg(long = "type", value_name = "TYPE", requires = "source")]
    kind: Option<String>,
}

/// What programs read.
#[derive(Serialize)]
struct Explanation {
    event: Event,
    routes: Vec<RouteLine>,
    jobs: Vec<Value>,
    runs: Vec<Value>,
    errors: Vec<String>,
}

#[derive(Serialize)]
struct RouteLine {
    route: usize,
    on: String,
    matched: bool,
    why: String,
}

pub(crate) fn run(args: &Args, global: &Global) -> Result<(), Failure> {
    let config = Checked::file(&global.config)?.config()?;
    let text = std::fs::read_to_string(&args.event)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", args.event.display())))?;
    let (event, raw) = match &args.source {
        Some(source) => from_body(&config, source, args.kind.as_deref(), &text)?,
        None => from_event(&text)?,
    };
    let without = "the file holds no `raw`: give the sender's body, with --source";
    let raw = || raw.clone().ok_or_else(|| without.to_owned());
    let routes = config.routes.explain(&event, raw, &config.startable);
    let making = Making { now: Utc::now(), trace: &TraceContext::default() };
    let Matched { jobs, runs, errors } = config.routes.matching(&event, raw, &config.startable, making);
    let explanation = Explanation {
        event,
        routes: routes.into_iter().map(line).collect(),
        jobs: jobs.iter().map(job).collect(),
        runs: runs.iter().map(run_of).collect(),
        errors,
    };
    global.output().print(&explanation, say)
}

/// An event as we print it: alone, or within its view.
fn from_event(text: &str) -> Result<(Event, Option<Value>), Failure> {
    let wrong = |error: serde_json::Error| {
        Failure::usage(format!("this is no event: {error}"))
            .help("give what `events show --json` prints, or a sender's body with --source")
    };
    let mut value: Value = serde_json::from_str(text).map_err(wrong)?;
    if value["event"].is_object() {
        value = value["event"].take();
    }
    let raw = value.get_mut("raw").map(Value::take);
    Ok((serde_json::from_value(value).map_err(wrong)?, raw))
}

/// An event as a source makes it of a body. The signature is nobody's business here.
fn from_body(config: &Config, name: &str, kind: Option<&str>, body: &str) -> Result<(Event, Option<Value>), Failure> {
    let names = config.sources.iter().map(Source::name);
    let unknown = || Failure::not_found(Problem::unknown("source", name, names).to_string());
    let source = config.sources.get(name).ok_or_else(unknown)?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(kind) = kind {
        let word = kind.strip_prefix("github.").unwrap_or(kind).split('.').next().unwrap_or_default();
        let value = HeaderValue::from_str(word).map_err(|_| Failure::usage(format!("`{kind}` is no event type")))?;
        headers.insert("x-github-event", value);
    }
    let normalized = source.kind().normalize(&headers, body.as_bytes()).map_err(|error| {
        Failure::usage(format!("the source `{name}` cannot read this body as an event: {error}"))
            .help("for a GitHub body, say its event with --type")
    })?;
    let event = Event {
        id: EventId::at(Utc::now()),
        source: name.to_owned(),
        kind: normalized.kind,
        delivery_id: normalized.delivery_id.unwrap_or_else(|| "explained".to_owned()),
        subject: normalized.subject,
        time: normalized.time.unwrap_or_else(Utc::now),
        data: normalized.facts,
    };
    Ok((event, serde_json::from_str(body).ok()))
}

fn line(RouteExplanation { index, on, matched, why }: RouteExplanation) -> RouteLine {
    RouteLine { route: index + 1, on, matched, why }
}

fn job(job: &NewJob) -> Value {
    json!({"kind": job.kind, "queue": job.queue, "args": args(job)})
}

fn args(job: &NewJob) -> Value {
    serde_json::from_str(job.args.get()).unwrap_or_default()
}

fn run_of(run: &NewRun) -> Value {
    let jobs = run.jobs.iter().map(|planned| {
        let job = &planned.job;
        json!({"name": planned.name, "kind": job.kind, "needs": planned.needs, "if": planned.condition, "args": args(job)})
    });
    json!({"runbook": run.runbook, "inputs": run.inputs, "jobs": jobs.collect::<Vec<_>>()})
}

fn say(explanation: &Explanation) -> String {
    let event = &explanation.event;
    let row = |line: &RouteLine| {
        let sign = if line.matched { "yes" } else { "no" };
        [line.route.to_string(), line.on.clone(), sign.to_owned(), line.why.clone()]
    };
    let mut parts = vec![format!("event {} from {}", event.kind, event.source)];
    parts.push(table(["ROUTE", "ON", "MATCHES", "WHY"], explanation.routes.iter().map(row)));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let job = |job: &Value| format!("a job `{}` with {}", text(&job["kind"]), job["args"]);
    let made = explanation.jobs.iter().map(job).chain(explanation.runs.iter().flat_map(|run| {
        let head = format!("a run of `{}` with {}", text(&run["runbook"]), run["inputs"]);
        let jobs = run["jobs"].as_array().into_iter().flatten();
        std::iter::once(head).chain(jobs.map(move |it| format!("  {}: {}", text(&it["name"]), job(it))))
    }));
    let made: Vec<String> = made.collect();
    parts.push(if made.is_empty() {
        "it would make nothing".into()
    } else {
        format!("it would make\n{}", made.join("\n"))
    });
    parts.join("\n\n")
}
