//! Messages that go on to jobs of their own.

use std::time::Duration;

use schemas::{JobId, Key};
use serde_json::{Map, Value, json, to_value};

use super::{Notify, Template};
use crate::channels::{Message, Route};
use crate::context::{Context, Step};
use crate::handler::{Failure, Handler, OrFail, Output};

/// What was handed on is remembered for longer than any job may go on trying.
pub(super) const MEMORY: Duration = Duration::from_hours(24 * 30);

/// A router's message: a job for each of the targets that it names for messages so urgent.
pub(super) async fn to_targets(notify: &Notify, route: &Route, cx: &Context) -> Result<Output, Failure> {
    let message = notify.message(cx).await?;
    let mut told = Map::new();
    for target in route.targets(message.severity) {
        let again = saying(notify, target, &message);
        let job = hand_on(&again, &format!("to {target}"), &cx.job().attempt.job.to_string(), cx).await?;
        told.insert(target.clone(), json!(job));
    }
    Ok(notify.ended(json!({"told": told})))
}

/// The arguments of a job that says this in that channel.
pub(super) fn saying(notify: &Notify, channel: &str, message: &Message) -> Notify {
    Notify {
        channel: channel.to_owned(),
        template: Template::Text,
        title: Some(message.title.clone()),
        text: Some(message.text.clone()),
        severity: Some(message.severity),
        about: notify.about.clone(),
        alarm: message.alarm.as_ref().map(|alarm| alarm.key.clone()),
        action: message.alarm.as_ref().map(|alarm| alarm.action),
        ..Notify::default()
    }
}

/// Stores such a job, as a step. The step alone might be lost with the process; the key, which is the step's name for whom
/// or what the message is, holds until then. It does not hold for ever: a message that is given up lets go of it.
pub(super) async fn hand_on(notify: &Notify, name: &str, of: &str, cx: &Context) -> Result<JobId, Failure> {
    let step = match cx.step(name).await? {
        Step::Finished(job) => return Ok(job),
        Step::Fresh(step) | Step::Unknown(step) => step,
    };
    let args: Value = to_value(notify).or_discard("writing the arguments of a message")?;
    let job = cx.world().catalog().job(Notify::KIND, &args, cx.now());
    let mut job = job.map_err(|problem| Failure::Discard(anyhow::anyhow!("{problem}")))?;
    job.key = Some(Key { scope: "notify".into(), key: format!("{of} {name}"), hold: MEMORY });
    job.event = cx.job().event;
    job.trace = queue::trace::current();
    let job = cx.queue().enqueue(job).await.or_retry("storing the job of a message")?.id();
    step.finish(&job).await?;
    Ok(job)
}
