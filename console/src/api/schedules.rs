//! Schedules: what is to come, what became of what has come, and starting their work by hand.

use axum::Json;
use axum::extract::State;
use queue::ledger::Operator;
use queue::trace;
use schemas::api::{FiringView, NextTime, PauseView, ReasonRequest, ScheduleDetails, ScheduleView, StartAnswer};
use schemas::runbook::Start;
use schemas::{NewJob, NewWork, Problem, Schedule};
use tracing::{Instrument, Span, info_span};

use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, Name};
use super::runs::{Started, answer};
use crate::Console;
use crate::router::Answer;

/// So many times that are to come are said.
const NEXT: usize = 5;

/// So many that have come are shown.
const SHOWN: u32 = 20;

pub(crate) async fn list(State(console): State<Console>) -> Answer<Vec<ScheduleView>> {
    let pauses = console.queue.ledger().pauses().await?;
    let mut views = Vec::with_capacity(console.schedules.len());
    for schedule in console.schedules.values() {
        let last = console.queue.ledger().firings(&schedule.name, 1).await?.pop();
        views.push(view(&console, schedule, last, &pauses));
    }
    Ok(Json(views))
}

pub(crate) async fn show(State(console): State<Console>, Name(name): Name) -> Answer<ScheduleDetails> {
    let schedule = known(&console, &name)?;
    let pauses = console.queue.ledger().pauses().await?;
    let firings = console.queue.ledger().firings(&name, SHOWN).await?;
    let schedule = view(&console, schedule, firings.first().cloned(), &pauses);
    Ok(Json(ScheduleDetails { schedule, firings }))
}

/// Starts a schedule's work now, beside its nominal times: 201, or 200 where the same is under way already.
pub(crate) async fn run(
    State(console): State<Console>,
    caller: Caller,
    Name(name): Name,
    Body(request): Body<ReasonRequest>,
) -> Started {
    let by = caller.because(request.reason)?;
    let schedule = known(&console, &name)?;
    let by = Operator { reason: format!("schedule {name}, by hand: {}", by.reason), ..by };
    start(&console, schedule, &by).instrument(info_span!("start", schedule.name = name)).await
}

async fn start(console: &Console, schedule: &Schedule, by: &Operator) -> Started {
    let now = console.queue.clock().now();
    let start = Start {
        actor: Some(by.actor.clone()),
        reason: Some(by.reason.clone()),
        trace: trace::of(&Span::current()),
        ..Start::default()
    };
    let made = schedule.make(now, start, &console.catalog, &console.runbooks, now);
    match made.map_err(|problem| ApiError::Wrong(vec![problem]))? {
        NewWork::Job(job) => {
            let job: NewJob = *job;
            let started = console.queue.start_job(&job, by).await?;
            Ok(answer(started, |job| StartAnswer { run: None, job: Some(job), existing: false }))
        }
        NewWork::Run(run) => {
            let started = console.queue.start_run(&run, by).await?;
            Ok(answer(started, |run| StartAnswer { run: Some(run), job: None, existing: false }))
        }
    }
}

/// The schedule of that name, or what is wrong with it.
pub(crate) fn find<'a>(console: &'a Console, name: &str) -> Result<&'a Schedule, Problem> {
    let unknown = || Problem::unknown("schedule", name, console.schedules.keys().map(String::as_str));
    console.schedules.get(name).ok_or_else(unknown)
}

fn known<'a>(console: &'a Console, name: &str) -> Result<&'a Schedule, ApiError> {
    find(console, name).map_err(|problem| ApiError::NotFound(problem.to_string()))
}

fn view(console: &Console, schedule: &Schedule, last: Option<FiringView>, pauses: &[PauseView]) -> ScheduleView {
    let table = &schedule.timetable;
    let next = table.times_after(console.queue.clock().now()).take(NEXT);
    let is_its = |pause: &&PauseView| pause.what == "schedule" && pause.name == schedule.name;
    ScheduleView {
        name: schedule.name.clone(),
        words: table.words(),
        cron: table.cron().to_owned(),
        timezone: table.zone().to_owned(),
        starts: schedule.starts.to_string(),
        catch_up: schedule.catch_up,
        overlap: schedule.overlap,
        next: next.map(|at| NextTime { at, local: table.local(at) }).collect(),
        last,
        paused: pauses.iter().find(is_its).cloned(),
    }
}
