//! Messages that go on to jobs of their own.

use std::time::Duration;

use schemas::{JobId, Key};
use serde_json::{Map, Value, json, to_value};

use super::{Notify, Template};
use crate::channels::{Message, Route};
use crate::context::Context;
use crate::handler::{Failure, Handler, OrFail, Output};

/// What was handed on is remembered for longer than any job may go on trying.
pub(super) const MEMORY: Duration = Duration::from_hours(24 * 30);

/// A router's message: a job for each of the targets that it names for messages so urgent.
pub(super) async fn to_targets(notify: &Notify, route: &Route, cx: &Context) -> Result<Output, Failure> {
    let message = notify.message(cx).await?;
    let mut told = Map::new();
    for target in route.targets(message.severity) {
        let again = saying(notify, target, &message);
        let name = format!("{} to {target}", cx.job().attempt.job);
        told.insert(target.clone(), json!(hand_on(&again, name, cx).await?));
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

/// Stores such a job, once for each name.
pub(super) async fn hand_on(notify: &Notify, name: String, cx: &Context) -> Result<JobId, Failure> {
    let args: Value = to_value(notify).or_discard("writing the arguments of a message")?;
    let job = cx.world().catalog().job(Notify::KIND, &args, cx.now());
    let mut job = job.map_err(|problem| Failure::Discard(anyhow::anyhow!("{problem}")))?;
    job.key = Some(Key { scope: "notify".into(), key: name, hold: MEMORY });
    job.event = cx.job().event;
    job.trace = queue::trace::current();
    Ok(cx.queue().enqueue(job).await.or_retry("storing the job of a message")?.id())
}
