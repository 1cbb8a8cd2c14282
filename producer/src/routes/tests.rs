use std::cell::Cell;
use std::sync::Arc;

use schemas::runbook::RunbookConfig;
use schemas::{Catalog, EventId, Facts, KindInfo, Names, Priority, Problem, Runbook};
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::sources::Sources;

fn sources() -> Sources {
    let config = json!({"github": {"secrets": ["x"]}, "vercel": {"secrets": ["x"]}});
    Sources::build(&serde_json::from_value(config).unwrap()).ok().unwrap()
}

fn startable() -> Startable {
    let kind = KindInfo {
        kind: "plan",
        summary: "",
        queue: "default",
        priority: Priority::Normal,
        schema: || json!({}),
        check: |args, _| if args["ref"].is_string() { vec![] } else { vec![Problem::new("`ref` is missing")] },
        key: |_| None,
        limits: |_| Vec::new(),
        approval: |_| None,
        once: false,
        output: || json!({}),
    };
    let catalog = Catalog::new([kind], Names::default());
    let deploy: RunbookConfig = serde_json::from_value(json!({
        "inputs": {"ref": "git-sha"},
        "jobs": {"plan": {"job": "plan", "with": {"ref": "{{ inputs.ref }}"}}},
    }))
    .unwrap();
    let deploy = Runbook::build("deploy", &deploy, &catalog).unwrap();
    Startable { catalog: Arc::new(catalog), runbooks: Arc::new([("deploy".to_owned(), deploy)].into()) }
}

fn build(routes: Value) -> Result<Routes, Vec<String>> {
    let configs: Vec<RouteConfig> = serde_json::from_value(routes).unwrap();
    let built = Routes::build(&configs, &startable(), &sources());
    built.map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn deployment(target: &str, sha: Option<&str>) -> Event {
    let mut data = Facts { target: Some(target.into()), ..Facts::default() };
    data.git.sha = sha.map(str::to_owned);
    Event {
        id: EventId(Uuid::nil()),
        source: "vercel".into(),
        kind: "vercel.deployment.succeeded".into(),
        delivery_id: "1".into(),
        subject: None,
        time: Timestamp::UNIX_EPOCH,
        data,
    }
}

fn matching(routes: &Routes, event: &Event, raw: Result<Value, String>) -> Matched {
    let making = Making { now: Timestamp::UNIX_EPOCH, trace: &TraceContext::default() };
    routes.matching(event, || raw, &startable(), making)
}

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

fn deploy_route() -> Value {
    json!({
        "on": "vercel.deployment.succeeded",
        "when": "event.target == 'production'",
        "run": {"runbook": "deploy", "with": {"ref": "{{ event.git.sha }}"}},
    })
}

#[test]
fn an_event_makes_what_its_routes_say_tied_to_it() {
    let job = json!({"on": "vercel.*", "run": {"job": "plan", "with": {"ref": "fixed"}}});
    let other = json!({"on": "github.push", "run": {"job": "plan", "with": {"ref": "fixed"}}});
    let routes = build(json!([deploy_route(), job, other])).unwrap();
    let matched = matching(&routes, &deployment("production", Some(SHA)), Ok(json!({})));
    assert_eq!((matched.jobs.len(), matched.runs.len(), matched.errors.len()), (1, 1, 0));
    assert_eq!(matched.runs[0].inputs, json!({"ref": SHA}));
    assert_eq!(matched.runs[0].event, Some(EventId(Uuid::nil())));
    assert_eq!(matched.jobs[0].event, Some(EventId(Uuid::nil())));
    let preview = matching(&routes, &deployment("preview", Some(SHA)), Ok(json!({})));
    assert_eq!((preview.jobs.len(), preview.runs.len()), (1, 0));
}

#[test]
fn a_template_that_needs_what_is_null_fails_its_own_route_by_name_and_no_other() {
    let job = json!({"on": "vercel.deployment.*", "run": {"job": "plan", "with": {"ref": "fixed"}}});
    let routes = build(json!([deploy_route(), job])).unwrap();
    let matched = matching(&routes, &deployment("production", None), Ok(json!({})));
    assert_eq!((matched.jobs.len(), matched.runs.len()), (1, 0));
    assert_eq!(
        matched.errors,
        ["route 1 (on vercel.deployment.succeeded): `{{ event.git.sha }}`: event.git.sha is null"]
    );
}

#[test]
fn the_senders_own_body_is_parsed_only_for_a_matching_route_that_reads_it_and_only_once() {
    let by_raw = |on: &str| json!({"on": on, "when": "event.raw.n == 1", "run": {"job": "plan", "with": {"ref": "x"}}});
    let parsed = Cell::new(0);
    let count = |routes: Value| {
        parsed.set(0);
        let making = Making { now: Timestamp::UNIX_EPOCH, trace: &TraceContext::default() };
        let raw = || {
            parsed.set(parsed.get() + 1);
            Ok(json!({"n": 1}))
        };
        let matched = build(routes).unwrap().matching(&deployment("x", Some(SHA)), raw, &startable(), making);
        (parsed.get(), matched.jobs.len())
    };
    let plain = json!({"on": "vercel.*", "run": {"job": "plan", "with": {"ref": "x"}}});
    assert_eq!(count(json!([plain, by_raw("github.push")])), (0, 1));
    assert_eq!(count(json!([by_raw("vercel.*"), by_raw("vercel.deployment.*"), plain])), (1, 3));
    let template = json!({"on": "vercel.*", "run": {"job": "plan", "with": {"ref": "v{{ event.raw.n }}"}}});
    assert_eq!(count(json!([template])), (1, 1));
}

#[test]
fn a_body_that_cannot_be_a_value_errs_in_the_routes_that_read_it_alone() {
    let by_raw = json!({"on": "vercel.*", "when": "event.raw.n == 1", "run": {"job": "plan", "with": {"ref": "x"}}});
    let routes = build(json!([by_raw, deploy_route(), by_raw])).unwrap();
    let matched = matching(&routes, &deployment("production", Some(SHA)), Err("too deep".into()));
    assert_eq!((matched.jobs.len(), matched.runs.len(), matched.errors.len()), (0, 1, 2));
    assert!(matched.errors[1].contains("event.raw cannot be read: too deep"), "{:?}", matched.errors);
}

#[test]
fn arguments_with_a_nul_and_errors_with_one_do_not_reach_the_ledger() {
    let route = json!({"on": "vercel.*", "run": {"job": "plan", "with": {"ref": "{{ event.raw.title }}"}}});
    let routes = build(json!([route])).unwrap();
    let matched = matching(&routes, &deployment("x", None), Ok(json!({"title": "a\0b"})));
    assert!(matched.jobs.is_empty() && matched.errors[0].contains("NUL"), "{:?}", matched.errors);
    let matched = matching(&routes, &deployment("x", None), Err("a\0b".into()));
    assert!(!matched.errors[0].contains('\0'), "{:?}", matched.errors);
}

#[test]
fn everything_that_is_wrong_with_routes_is_said_at_once_with_its_place() {
    let problems = build(json!([
        {"on": "gitlab.push", "run": {"job": "plan", "with": {"ref": "x"}}},
        {"on": "github.pull_request", "run": {"job": "plan", "with": {"ref": "x"}}},
        {"on": "vercel.deployment.succeeded", "when": "event.projct.name == 'x'", "run": {"runbook": "deply"}},
        {"on": "github.push", "run": {"job": "plan", "with": {"ref": "{{ event.git.sah }}"}}},
        {"on": "github.push", "run": {"job": "plan", "runbook": "deploy"}},
        {"on": "github.pu*", "run": {"job": "plan"}},
        {"on": "github.release.published", "run": {"runbook": "deploy", "with": {"ref": "{{ event.git.ref }}", "rf": 1}}},
        {"on": "github.some_new_event", "run": {"runbook": "deploy", "with": {"rev": "{{ event.git.sha }}"}}},
        {"on": "github.push", "when": "event.ref ==", "run": {"job": "plan", "with": {"ref": "{{"}}},
        {"on": "github.push", "when": "event.git.sha.short == 'x'", "run": {"job": "plan", "with": {"ref": "x"}}},
    ]))
    .unwrap_err();
    let expected = [
        ("routes.0.on", "no source of the type named `gitlab` (did you mean `github`?)"),
        ("routes.1.on", "`github.pull_request.*` for all of them"),
        ("routes.2.when", "did you mean `project`?"),
        ("routes.2.run.runbook", "did you mean `deploy`?"),
        ("routes.3.run.with", "did you mean `sha`?"),
        ("routes.4.run", "either a runbook or a job"),
        ("routes.5.on", "write `github.<event>`"),
        ("routes.5.run.with", "`ref` is missing"),
        ("routes.6.run.with", "there is no input named `rf`"),
        ("routes.6.run.with", "must be a full git commit hash"),
        ("routes.7.run.with", "there is no input named `rev`"),
        ("routes.7.run.with", "input `ref` is missing"),
        ("routes.8.when", "not a CEL expression"),
        ("routes.8.run.with.ref", "not a template"),
        ("routes.9.when", "`event.git.sha` has no fields"),
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, (place, words)) in problems.iter().zip(expected) {
        assert!(
            problem.starts_with(place) && problem.contains(words),
            "{problem} should be at {place} and say: {words}"
        );
    }
}

#[test]
fn arguments_are_checked_with_the_sample_of_the_routes_event_type() {
    // A release has no commit, so the template would fail each time.
    let release = json!([{"on": "github.release.published", "run": {"runbook": "deploy", "with": {"ref": "{{ event.git.sha }}"}}}]);
    assert!(build(release).unwrap_err()[0].contains("event.git.sha is null"));
    let push = json!([{"on": "github.push", "run": {"runbook": "deploy", "with": {"ref": "{{ event.git.sha }}"}}}]);
    assert!(build(push).is_ok());
    let unknown =
        json!([{"on": "github.moon.landed", "run": {"runbook": "deploy", "with": {"ref": "{{ event.git.sha }}"}}}]);
    assert!(build(unknown).is_ok(), "unknown types are kept, so they may be routed");
    let raw =
        json!([{"on": "github.push", "run": {"job": "plan", "with": {"ref": "{{ event.raw.installation.id }}"}}}]);
    assert!(build(raw).is_ok(), "a real body has more than the sample");
}

#[test]
fn a_route_may_be_written_in_each_of_vercels_spellings() {
    let routes =
        build(json!([{"on": "vercel.deployment-ready", "run": {"job": "plan", "with": {"ref": "x"}}}])).unwrap();
    assert_eq!(matching(&routes, &deployment("x", None), Ok(json!({}))).jobs.len(), 1);
}

#[test]
fn each_route_explains_itself() {
    let push = json!({"on": "github.push", "run": {"job": "plan", "with": {"ref": "x"}}});
    let routes = build(json!([deploy_route(), push])).unwrap();
    let explain = |event: &Event| {
        let explained = routes.explain(event, || Ok(json!({})), &startable());
        explained.into_iter().map(|one| (one.index, one.matched, one.why)).collect::<Vec<_>>()
    };
    let other = (1, false, "the event is a `vercel.deployment.succeeded`".to_owned());
    assert_eq!(
        explain(&deployment("production", Some(SHA))),
        [(0, true, "it starts the runbook `deploy`".into()), other.clone()]
    );
    assert_eq!(
        explain(&deployment("preview", Some(SHA))),
        [(0, false, "its condition is false: event.target == 'production'".into()), other.clone()]
    );
    assert!(explain(&deployment("production", None))[0].2.contains("event.git.sha is null"));
}

#[test]
fn a_deployment_that_a_job_of_ours_made_starts_no_run_unless_the_route_asks_who_made_it() {
    let job = json!({"on": "vercel.*", "run": {"job": "plan", "with": {"ref": "fixed"}}});
    let mut asks = deploy_route();
    asks["when"] = json!("event.caused_by != null");
    let routes = build(json!([deploy_route(), job, asks])).unwrap();
    let mut event = deployment("production", Some(SHA));
    assert_eq!(matching(&routes, &event, Ok(json!({}))).runs.len(), 1);
    event.data.caused_by = Some(JobId(Uuid::from_u128(7)));
    let matched = matching(&routes, &event, Ok(json!({})));
    assert_eq!((matched.runs.len(), matched.jobs.len()), (1, 1), "the route that asks, and the job");
    let explained = routes.explain(&event, || Ok(json!({})), &startable());
    assert!(!explained[0].matched && explained[0].why.contains("belongs to its run"), "{explained:?}");
}
