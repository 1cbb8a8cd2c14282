//! Messages from templates: the templates themselves are the files beside this one.
//!
//! A template that reads what is not there, or prints what is null, is a mistake in it and fails by name; what may be
//! absent stands behind an `{% if %}`.

use std::sync::LazyLock;

use chrono::TimeDelta;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use queue::ledger::LedgerError;
use schemas::api::{RunJobView, RunView};
use schemas::{JobId, JobState};
use serde_json::{Value, json};

use super::{Notify, Template};
use crate::channels::{Message, Severity};
use crate::context::Context;
use crate::handler::{Failure, OrFail};

/// A built-in template.
struct Form {
    title: &'static str,
    text: &'static str,
}

const DEPLOY: Form = Form { title: "{{ run.name }} {{ run.state }}", text: include_str!("deploy.txt") };
const DISCARDED: Form = Form { title: "{{ args.about.kind }} job discarded", text: include_str!("discarded.txt") };

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    // Lines that hold a block alone leave no empty line behind.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters are valid"));
    environment.add_filter("names", names);
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::None | ValueKind::Undefined => {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, "a value that it needs is null"))
        }
        _ => minijinja::escape_formatter(out, state, value),
    });
    environment
});

/// The names in a list of texts, or of objects that have a `name`: `a, b`.
fn names(list: Vec<minijinja::Value>) -> String {
    let name = |one: minijinja::Value| {
        let name = one.get_attr("name").ok().filter(|name| !name.is_undefined());
        name.unwrap_or(one).to_string()
    };
    list.into_iter().map(name).collect::<Vec<_>>().join(", ")
}

/// The message of a job, from what the ledger knows now.
pub(super) async fn message(notify: &Notify, cx: &Context) -> Result<Message, Failure> {
    let facts = match notify.template {
        Template::Text | Template::Completed => Value::Null,
        Template::Deploy | Template::Discarded => facts(notify, cx).await?,
    };
    compose(notify, &facts)
}

/// What templates see: `args`, `job`, `event` and `run`, the last two null where there is none.
async fn facts(notify: &Notify, cx: &Context) -> Result<Value, Failure> {
    let ledger = cx.queue().ledger();
    let read = |what: &'static str| move |error: LedgerError| Failure::retry(error).context(what);
    let event = match cx.job().event {
        Some(id) => ledger.event(id).await.map_err(read("reading the event"))?,
        None => None,
    };
    let run = match cx.job().run {
        Some(id) => ledger.run(id).await.map_err(read("reading the run"))?,
        None => None,
    };
    let own = cx.job().attempt.job;
    Ok(json!({
        "args": notify,
        "job": {"id": own},
        "event": event.map(|view| view.event.view()),
        "run": run.map(|view| run_facts(&view, own)),
    }))
}

/// Title and text, with what the arguments say in place of or below the template's.
fn compose(notify: &Notify, facts: &Value) -> Result<Message, Failure> {
    let form = match notify.template {
        Template::Text | Template::Completed => None,
        Template::Deploy if facts["run"].is_null() => {
            return Err(Failure::Discard(anyhow::anyhow!(
                "the template `deploy` tells of a run, and this job is in none; use it in a runbook, or give a `text`"
            )));
        }
        Template::Deploy => Some(&DEPLOY),
        Template::Discarded => Some(&DISCARDED),
    };
    let given = notify.text.as_deref().unwrap_or_default();
    let (title, text) = match form {
        None => (None, given.to_owned()),
        Some(form) => (Some(render(form.title, facts)?), join(&render(form.text, facts)?, given)),
    };
    let title = notify.title.clone().or(title).unwrap_or_else(|| "Nightporter".to_owned());
    let severity = notify.severity.unwrap_or_else(|| severity(notify.template, facts));
    Ok(Message { title, text, severity, alarm: notify.alarm() })
}

fn severity(template: Template, facts: &Value) -> Severity {
    match template {
        Template::Deploy if facts["run"]["state"] == "failed" => Severity::Critical,
        Template::Discarded | Template::Completed => Severity::Warning,
        _ => Severity::Info,
    }
}

fn join(rendered: &str, given: &str) -> String {
    [rendered.trim(), given.trim()].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n")
}

fn render(source: &str, facts: &Value) -> Result<String, Failure> {
    let context = minijinja::Value::from(Serde(facts));
    ENVIRONMENT.render_str(source, context).or_discard("filling in the template of the message")
}

/// A run as templates see it, without the job that tells of it.
fn run_facts(run: &RunView, own: JobId) -> Value {
    let others: Vec<&RunJobView> = run.jobs.iter().filter(|job| job.job != own).collect();
    let jobs: Vec<Value> = others
        .iter()
        .map(|job| {
            let took = job.started_at.zip(job.finished_at).map(|(start, end)| duration(end - start));
            json!({
                "name": job.name, "kind": job.kind, "state": job.state, "took": took,
                "reason": job.reason, "output": job.output,
            })
        })
        .collect();
    json!({
        "id": run.id, "name": run.runbook, "state": standing(&others), "inputs": run.inputs,
        "actor": run.actor, "reason": run.reason, "jobs": jobs,
    })
}

/// How the run stands but for the job that tells of it, which still runs.
fn standing(others: &[&RunJobView]) -> &'static str {
    let any = |state: JobState| others.iter().any(|job| job.state == state);
    if any(JobState::Discarded) {
        "failed"
    } else if any(JobState::Cancelled) {
        "cancelled"
    } else if others.iter().any(|job| !job.state.is_finished()) {
        "running"
    } else {
        "completed"
    }
}

/// A duration for people.
fn duration(took: TimeDelta) -> String {
    let (seconds, millis) = (took.num_seconds(), took.num_milliseconds());
    match seconds {
        ..10 => format!("{}.{} s", seconds, millis % 1000 / 100),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use schemas::{RunId, RunState, Timestamp};

    use super::super::DiscardedJob;
    use super::*;

    fn job(name: &str, state: JobState, output: Value) -> RunJobView {
        let start = Timestamp::UNIX_EPOCH;
        RunJobView {
            name: name.into(),
            job: JobId::at(start),
            kind: name.into(),
            state,
            needs: Vec::new(),
            reason: (state == JobState::Discarded).then(|| "lock timeout (given up after 5 failures)".into()),
            output: (!output.is_null()).then_some(output),
            started_at: (state != JobState::Skipped).then_some(start),
            finished_at: (state != JobState::Skipped).then(|| start + TimeDelta::milliseconds(2_345)),
        }
    }

    fn run(jobs: Vec<RunJobView>) -> RunView {
        RunView {
            id: RunId::at(Timestamp::UNIX_EPOCH),
            runbook: "deploy".into(),
            state: RunState::Running,
            inputs: json!({"ref": "0123456789abcdef"}),
            created_at: Timestamp::UNIX_EPOCH,
            finished_at: None,
            event: None,
            actor: None,
            reason: None,
            replay_of: None,
            jobs,
        }
    }

    fn deploy(run: &RunView, own: JobId, event: &Value) -> Message {
        let notify = Notify { channel: "ops".into(), template: Template::Deploy, ..Notify::default() };
        compose(&notify, &json!({"args": notify, "job": {}, "event": event, "run": run_facts(run, own)})).unwrap()
    }

    #[test]
    fn a_deploy_that_went_well_is_told_with_its_jobs_migrations_and_backup() {
        let own = job("notify", JobState::Running, Value::Null);
        let id = own.job;
        let plan = json!({"pending": 2, "risk": "additive", "hash": "x", "names": ["0001_users", {"name": "0002_orders"}], "superseded": false, "by": []});
        let run = run(vec![
            job("plan", JobState::Completed, plan),
            job("backup", JobState::Completed, json!({"backup": "main/2026-11-20T10-00-00Z"})),
            job(
                "migrate",
                JobState::Completed,
                json!({"applied": ["0001_users", "0002_orders"], "superseded": false, "by": []}),
            ),
            own,
        ]);
        let mut event = schemas::Event {
            id: schemas::EventId::at(Timestamp::UNIX_EPOCH),
            source: "vercel".into(),
            kind: "vercel.deployment.succeeded".into(),
            delivery_id: "x".into(),
            subject: None,
            time: Timestamp::UNIX_EPOCH,
            data: schemas::Facts::default(),
        };
        event.data.project.name = Some("app".into());
        event.data.git.sha = Some("0123456789abcdef".into());
        let message = deploy(&run, id, &event.view());
        assert_eq!(message.title, "deploy completed");
        assert_eq!(message.severity, Severity::Info);
        assert_eq!(
            message.text,
            "app at 0123456\n\
             plan: completed in 2.3 s, 2 pending, risk additive: 0001_users, 0002_orders\n\
             backup: completed in 2.3 s, main/2026-11-20T10-00-00Z\n\
             migrate: completed in 2.3 s, applied: 0001_users, 0002_orders"
        );
    }

    #[test]
    fn a_deploy_that_failed_says_where_and_why_and_tolerates_what_is_absent() {
        let run = run(vec![
            job("plan", JobState::Completed, Value::Null),
            job("migrate", JobState::Discarded, Value::Null),
            job("warm", JobState::Skipped, Value::Null),
        ]);
        let message = deploy(&run, JobId::at(Timestamp::UNIX_EPOCH), &Value::Null);
        assert_eq!(message.title, "deploy failed");
        assert_eq!(message.severity, Severity::Critical);
        assert_eq!(
            message.text,
            "plan: completed in 2.3 s\n\
             migrate: discarded in 2.3 s (lock timeout (given up after 5 failures))\n\
             warm: skipped"
        );
    }

    #[test]
    fn a_migration_that_came_too_late_says_by_what_and_a_restore_says_into_what() {
        let run = run(vec![
            job("migrate", JobState::Completed, json!({"applied": [], "superseded": true, "by": ["0003_newer"]})),
            job("restore", JobState::Completed, json!({"backup": "main/x", "into": "main_copy", "bytes": 5})),
        ]);
        let message = deploy(&run, JobId::at(Timestamp::UNIX_EPOCH), &Value::Null);
        assert_eq!(
            message.text,
            "migrate: completed in 2.3 s, superseded by 0003_newer\nrestore: completed in 2.3 s, main/x into main_copy"
        );
    }

    #[test]
    fn a_rollback_is_told_with_what_people_must_know() {
        let output = json!({"backup": "main/x", "domains": ["a.test"], "summary": "app is back at dpl_1: a.test"});
        let run = run(vec![job("back", JobState::Completed, output)]);
        let message = deploy(&run, JobId::at(Timestamp::UNIX_EPOCH), &Value::Null);
        assert_eq!(message.text, "back: completed in 2.3 s, main/x, app is back at dpl_1: a.test");
    }

    #[test]
    fn an_empty_run_and_an_event_that_says_nothing_are_no_mistake() {
        let message = deploy(
            &run(Vec::new()),
            JobId::at(Timestamp::UNIX_EPOCH),
            &json!({"git": {}, "project": {}, "actor": {}, "repository": {}}),
        );
        assert_eq!((message.title.as_str(), message.text.as_str()), ("deploy completed", ""));
    }

    #[test]
    fn outside_a_run_there_is_no_deploy_to_tell_of() {
        let notify = Notify { template: Template::Deploy, ..Notify::default() };
        let failure = compose(&notify, &json!({"run": null})).unwrap_err();
        assert!(matches!(failure, Failure::Discard(error) if error.to_string().contains("use it in a runbook")));
    }

    #[test]
    fn a_discarded_job_is_told_with_what_to_do_next() {
        let id = JobId::at(Timestamp::UNIX_EPOCH);
        let about = DiscardedJob { job: id, kind: "backup".into(), error: "the bucket is {{ gone }}".into() };
        let notify = Notify { template: Template::Discarded, about: Some(about), ..Notify::default() };
        let message = compose(&notify, &json!({"args": notify})).unwrap();
        assert_eq!(message.title, "backup job discarded");
        assert_eq!(message.severity, Severity::Warning);
        assert!(message.text.starts_with("the bucket is {{ gone }}\n"), "{}", message.text);
        assert!(message.text.ends_with(&format!("nightporter jobs retry {id}")), "{}", message.text);
    }

    #[test]
    fn what_the_arguments_say_stands_in_place_of_the_template_or_below_it() {
        let notify = Notify {
            title: Some("Hello".into()),
            text: Some("{{ args }} & <b>".into()),
            severity: Some(Severity::Critical),
            ..Notify::default()
        };
        let message = compose(&notify, &Value::Null).unwrap();
        assert_eq!((message.title.as_str(), message.text.as_str()), ("Hello", "{{ args }} & <b>"));
        assert_eq!(message.severity, Severity::Critical);
    }

    #[test]
    fn durations_are_for_people() {
        let texts = [400, 9_900, 61_000, 3_720_000].map(|millis| duration(TimeDelta::milliseconds(millis)));
        assert_eq!(texts, ["0.4 s", "9.9 s", "1 min 1 s", "1 h 2 min"]);
    }
}
