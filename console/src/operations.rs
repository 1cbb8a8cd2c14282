//! All operations of the API: the one table that the router, the check of roles, the OpenAPI document and the tests that
//! try every operation are made from.

use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use schemas::Role;
use schemas::api::{
    ApprovalView, AuditView, EventView, JobView, PauseRequest, PauseView, PreviewRequest, QueueView, ReasonRequest,
    ReplayAnswer, ReplayJobRequest, ReplayPreview, ReplayRequest, RunView, ScheduleDetails, ScheduleView, StartAnswer,
    StartRequest, TokenAnswer, TokenRequest, TokenView,
};
use serde_json::Value;

use crate::Console;
use crate::api::extract::{ListParams, NoParams};
use crate::api::{approvals, books, events, jobs, pauses, replay, runs, schedules, tokens};

/// Makes the schema of a type.
pub(crate) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// One operation: a method at a path.
pub struct Operation {
    /// Its name, for programs that are generated.
    pub name: &'static str,
    /// GET where it reads, POST where it does something.
    pub method: Method,
    /// Its path below `/api/v1`.
    pub path: &'static str,
    /// The least role that may call it.
    pub role: Role,
    /// What it does, in one line.
    pub summary: &'static str,
    /// What may stand behind the question mark: an object of them.
    pub(crate) params: SchemaOf,
    /// What its body is, where it has one.
    pub(crate) request: Option<SchemaOf>,
    /// What it answers.
    pub(crate) answer: SchemaOf,
    /// The statuses that it answers it with.
    pub(crate) statuses: &'static [u16],
    pub(crate) handler: MethodRouter<Console>,
}

/// All operations, in the order of the document.
pub fn operations() -> Vec<Operation> {
    use Role::{Admin, Operator};
    vec![
        reads("list_jobs", "/jobs", "Lists jobs, the newest first", jobs::list)
            .with::<jobs::Params>()
            .answers::<Vec<JobView>>(),
        reads("show_job", "/jobs/{id}", "Shows a job with its attempts and steps", jobs::show).answers::<JobView>(),
        does("cancel_job", "/jobs/{id}/cancel", Operator, "Ends a job", jobs::cancel)
            .takes::<ReasonRequest>()
            .answers::<JobView>(),
        does("retry_job", "/jobs/{id}/retry", Operator, "Makes a failed job available again", jobs::retry)
            .takes::<ReasonRequest>()
            .answers::<JobView>(),
        does("bypass_gate", "/jobs/{id}/bypass", Operator, "Lets a deployment go live past its gate", jobs::bypass)
            .takes::<ReasonRequest>()
            .makes::<StartAnswer>(),
        does("replay_job", "/jobs/{id}/replay", Operator, "Does a finished job again as a new one", replay::job)
            .takes::<ReplayJobRequest>()
            .makes::<ReplayAnswer>(),
        does("preview_replay", "/jobs/replay/preview", Operator, "Says what a replay would do", replay::preview)
            .takes::<PreviewRequest>()
            .answers::<ReplayPreview>(),
        does("replay_jobs", "/jobs/replay", Operator, "Does exactly the jobs of a preview again", replay::jobs)
            .takes::<ReplayRequest>()
            .makes::<ReplayAnswer>(),
        reads("list_runs", "/runs", "Lists runs, the newest first", runs::list)
            .with::<ListParams>()
            .answers::<Vec<RunView>>(),
        does("start", "/runs", Operator, "Starts a runbook or a single job", runs::start)
            .takes::<StartRequest>()
            .makes::<StartAnswer>()
            .or(&[200, 201]),
        reads("show_run", "/runs/{id}", "Shows a run with its jobs", runs::show).answers::<RunView>(),
        does("cancel_run", "/runs/{id}/cancel", Operator, "Ends what has not ended of a run", runs::cancel)
            .takes::<ReasonRequest>()
            .answers::<RunView>(),
        does("replay_run", "/runs/{id}/replay", Operator, "Does a run again, by today's runbook", replay::run)
            .takes::<ReasonRequest>()
            .makes::<ReplayAnswer>(),
        reads("list_events", "/events", "Lists events, the newest first", events::list)
            .with::<ListParams>()
            .answers::<Vec<EventView>>(),
        reads("show_event", "/events/{id}", "Shows an event", events::show).answers::<EventView>(),
        does("release_event", "/events/{id}/release", Operator, "Lets a held event have its work", events::release)
            .takes::<ReasonRequest>()
            .answers::<EventView>(),
        does("replay_event", "/events/{id}/replay", Operator, "Does what today's routes make of it", replay::event)
            .takes::<ReasonRequest>()
            .makes::<ReplayAnswer>(),
        reads("list_schedules", "/schedules", "Lists schedules with their next times", schedules::list)
            .answers::<Vec<ScheduleView>>(),
        reads("show_schedule", "/schedules/{name}", "Shows a schedule with its past times", schedules::show)
            .answers::<ScheduleDetails>(),
        does("run_schedule", "/schedules/{name}/run", Operator, "Starts a schedule's work now", schedules::run)
            .takes::<ReasonRequest>()
            .makes::<StartAnswer>()
            .or(&[200, 201]),
        reads("list_queues", "/queues", "Lists queues with how much waits and runs", books::queues)
            .answers::<Vec<QueueView>>(),
        reads("list_pauses", "/pauses", "Lists what is paused", pauses::list).answers::<Vec<PauseView>>(),
        does("pause", "/pauses", Operator, "Pauses a queue, kind, key or schedule", pauses::pause)
            .takes::<PauseRequest>()
            .answers::<Vec<PauseView>>(),
        does("resume", "/pauses/resume", Operator, "Ends a pause", pauses::resume)
            .takes::<PauseRequest>()
            .answers::<Vec<PauseView>>(),
        reads("list_approvals", "/approvals", "Lists the approvals that jobs wait for", approvals::list)
            .with::<ListParams>()
            .answers::<Vec<ApprovalView>>(),
        does("approve", "/approvals/{id}/approve", Operator, "Consents to a job", approvals::approve)
            .takes::<ReasonRequest>()
            .answers::<JobView>(),
        does("refuse", "/approvals/{id}/refuse", Operator, "Refuses a job: it is cancelled", approvals::refuse)
            .takes::<ReasonRequest>()
            .answers::<JobView>(),
        reads("list_audit", "/audit", "Lists who did what by hand, and why", books::audit)
            .with::<ListParams>()
            .answers::<Vec<AuditView>>(),
        reads("list_tokens", "/tokens", "Lists the tokens' names and roles", tokens::list)
            .only(Admin)
            .answers::<Vec<TokenView>>(),
        does("create_token", "/tokens", Admin, "Makes a token, which is shown once", tokens::create)
            .takes::<TokenRequest>()
            .makes::<TokenAnswer>(),
        does("revoke_token", "/tokens/{name}/revoke", Admin, "Ends a token, at once", tokens::revoke)
            .takes::<ReasonRequest>()
            .answers::<Vec<TokenView>>(),
        reads("openapi", "/openapi.json", "This document", books::openapi).answers::<Value>(),
    ]
}

impl Operation {
    /// Whether it changes anything, and so writes an audit row.
    pub fn changes(&self) -> bool {
        self.method != Method::GET && self.name != "preview_replay"
    }

    /// Its method at its path, for people.
    pub fn address(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    fn new<T: 'static>(
        name: &'static str,
        (method, filter): (Method, MethodFilter),
        (path, role, summary): (&'static str, Role, &'static str),
        handler: impl Handler<T, Console>,
    ) -> Self {
        Self {
            name,
            method,
            path,
            role,
            summary,
            params: NoParams::json_schema,
            request: None,
            answer: NoParams::json_schema,
            statuses: &[200],
            handler: on(filter, handler),
        }
    }

    fn with<P: JsonSchema>(self) -> Self {
        Self { params: P::json_schema, ..self }
    }

    fn takes<B: JsonSchema>(self) -> Self {
        Self { request: Some(SchemaGenerator::subschema_for::<B>), ..self }
    }

    fn answers<A: JsonSchema>(self) -> Self {
        Self { answer: SchemaGenerator::subschema_for::<A>, ..self }
    }

    fn makes<A: JsonSchema>(self) -> Self {
        self.answers::<A>().or(&[201])
    }

    fn or(self, statuses: &'static [u16]) -> Self {
        Self { statuses, ..self }
    }

    fn only(self, role: Role) -> Self {
        Self { role, ..self }
    }
}

fn reads<T: 'static>(
    name: &'static str,
    path: &'static str,
    summary: &'static str,
    handler: impl Handler<T, Console>,
) -> Operation {
    Operation::new(name, (Method::GET, MethodFilter::GET), (path, Role::Viewer, summary), handler)
}

fn does<T: 'static>(
    name: &'static str,
    path: &'static str,
    role: Role,
    summary: &'static str,
    handler: impl Handler<T, Console>,
) -> Operation {
    Operation::new(name, (Method::POST, MethodFilter::POST), (path, role, summary), handler)
}
