//! Alarms: what is raised is resolved, in that order, at each channel.
//!
//! A message about an alarm waits until older ones about it that do something else have ended: a resolve until its trigger
//! was delivered or given up, whatever became of it. No two are under way at once (a limit sees to that), and each writes
//! itself down before it looks, so of two at least the younger sees the older.
//!
//! A discarded job's alarm is its group's: it is resolved when the last of the jobs that the group told of has completed.

use std::time::Duration;

use queue::ledger::{HeldKey, behind};
use schemas::{JobId, JobState, Key};
use serde_json::json;

use super::handing_on::{MEMORY, hand_on};
use super::{DiscardedJob, LARGEST_GROUP, Notify, Template};
use crate::channels::{Action, Alarm, Severity};
use crate::context::Context;
use crate::handler::{Failure, OrFail, Output};

/// A message that must wait looks again after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The alarm that a group's first message raises.
pub(super) fn alarm_of(speaker: JobId) -> String {
    format!("nightporter {speaker}")
}

/// The scope of the keys by which it is known which alarms tell of a discarded job.
pub(crate) fn alarms_of(job: JobId) -> String {
    format!("alarms of {job}")
}

/// The scope of the keys by which it is known of which jobs an alarm tells.
fn jobs_of(speaker: JobId) -> String {
    format!("told by {speaker}")
}

/// The scope of the keys by which it is known which of them are done after all.
fn done_of(speaker: JobId) -> String {
    format!("done of {speaker}")
}

/// Writes down that this alarm tells of that job.
pub(super) async fn remember(job: JobId, speaker: JobId, cx: &Context) -> Result<(), Failure> {
    note(jobs_of(speaker), job.to_string(), cx).await?;
    note(alarms_of(job), speaker.to_string(), cx).await
}

async fn note(scope: String, key: String, cx: &Context) -> Result<(), Failure> {
    let key = Key { scope, key, hold: MEMORY };
    cx.queue().ledger().hold(cx.job().attempt, &key, cx.now()).await.or_retry("writing down an alarm")?;
    Ok(())
}

async fn noted(scope: &str, cx: &Context) -> Result<Vec<HeldKey>, Failure> {
    cx.queue().ledger().held(scope, LARGEST_GROUP, cx.now()).await.or_retry("reading what is known of an alarm")
}

/// Waits while an older message about the alarm, with another action, has not ended.
pub(super) async fn wait_for_turn(notify: &Notify, alarm: &Alarm, cx: &Context) -> Result<(), Failure> {
    let own = cx.job().attempt.job.to_string();
    let scope = format!("alarm {}/{}", notify.channel, alarm.key);
    note(scope.clone(), format!("{own} {:?}", alarm.action), cx).await?;
    let is_before = |other: &&HeldKey| {
        let (job, action) = other.key.split_once(' ').unwrap_or_default();
        // Ids are in the order of time.
        other.under_way && job < own.as_str() && action != format!("{:?}", alarm.action)
    };
    match noted(&scope, cx).await?.iter().find(is_before) {
        None => Ok(()),
        Some(other) => {
            let reason = format!("waits until the message about the same alarm before it has ended: {}", other.owner);
            Err(Failure::Snooze { wait: LOOK_AGAIN, reason })
        }
    }
}

/// Waits while the job that was told of is tried again. If it completes before it was written down which alarm tells of it,
/// nobody else ends that alarm.
pub(super) async fn see_through(notify: &Notify, about: &DiscardedJob, cx: &Context) -> Result<(), Failure> {
    let job = cx.queue().ledger().job(about.job).await.or_retry("looking at the discarded job")?;
    match job.map(|job| job.state) {
        Some(JobState::Completed) => {
            let over = Notify::done_after_all(&notify.channel, about.job, &about.kind);
            hand_on(&over, "done", &cx.job().attempt.job.to_string(), cx).await?;
            Ok(())
        }
        Some(state) if !state.is_finished() => {
            let reason = format!("waits for the end of the job that it told of: {}", about.job);
            Err(Failure::Snooze { wait: LOOK_AGAIN, reason })
        }
        _ => Ok(()),
    }
}

/// A discarded job is done after all: ends the alarms that have no other job left.
pub(super) async fn resolve(notify: &Notify, about: &DiscardedJob, cx: &Context) -> Result<Output, Failure> {
    let mut told = serde_json::Map::new();
    for alarm in noted(&alarms_of(about.job), cx).await? {
        let Ok(speaker) = alarm.key.parse().map(JobId) else { continue };
        if let Some(job) = resolve_one(notify, about, speaker, cx).await? {
            told.insert(alarm.key, json!(job));
        }
    }
    Ok(notify.ended(json!({"told": told})))
}

/// The job that resolves this alarm; none while other jobs that it tells of are not done.
async fn resolve_one(
    notify: &Notify,
    about: &DiscardedJob,
    speaker: JobId,
    cx: &Context,
) -> Result<Option<JobId>, Failure> {
    let first = cx.queue().ledger().job(speaker).await.or_retry("looking at the alarm's message")?;
    let still = |what: &str| Failure::Snooze { wait: LOOK_AGAIN, reason: format!("waits until {what}") };
    if first.as_ref().is_some_and(|first| !first.state.is_finished()) {
        return Err(still(&format!("the alarm has been told in whole: {speaker}")));
    }
    if noted(&behind(speaker), cx).await?.iter().any(|other| other.under_way) {
        return Err(still("all that the alarm tells of are written down"));
    }
    // Written before it is counted: of the last two at least one counts both.
    note(done_of(speaker), about.job.to_string(), cx).await?;
    let (jobs, done) = (noted(&jobs_of(speaker), cx).await?.len(), noted(&done_of(speaker), cx).await?.len());
    if done < jobs {
        return Ok(None);
    }
    let raised_in = first.as_ref().and_then(|first| first.args["channel"].as_str()).unwrap_or(&notify.channel);
    let over = Notify {
        channel: raised_in.to_owned(),
        template: Template::Text,
        title: Some(format!("{} job discarded", about.kind)),
        text: Some(if jobs == 1 { "It is done now.".to_owned() } else { format!("All {jobs} are done now.") }),
        // Where it was raised, so that it is resolved by the same way.
        severity: Some(Severity::Warning),
        alarm: Some(alarm_of(speaker)),
        action: Some(Action::Resolve),
        ..Notify::default()
    };
    hand_on(&over, &format!("over {speaker}"), "alarm", cx).await.map(Some)
}
