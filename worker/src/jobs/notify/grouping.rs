//! Messages of one group become one: the first is sent at once, those that come within its window are counted, and the
//! count is told when the window ends.
//!
//! The first is whoever takes the group's key, which it holds for the window. Whoever finds the key taken is written down,
//! in the same transaction, as standing behind the first, and says nothing itself. So nothing is lost between two workers,
//! and twice is safe: who stands where is written once, and what is sent is sent by jobs under keys of their own. Each that
//! stands behind stays in the ledger as a job of its own, and says behind whom.

use std::time::Duration;

use queue::clock::later;
use queue::ledger::{Hold, behind};
use schemas::{JobId, Key, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::alarms::{alarm_of, remember, see_through};
use super::handing_on::{hand_on, saying};
use super::{LARGEST_GROUP, Notify};
use crate::channels::{Action, Alarm, Message};
use crate::context::{Context, Step};
use crate::handler::{Failure, OrFail, Output};

/// After its window the first waits so much longer, for whoever asked for the key within it and is still being written
/// down: longer than a call of the ledger may take.
const GRACE: Duration = Duration::from_secs(30);

/// Where a message stands in its group.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Place {
    /// It speaks for those that come until then.
    First { until: Timestamp },
    /// That one speaks for it.
    Behind { job: JobId },
}

/// Says the message, or leaves it to the one that speaks for its group.
pub(super) async fn gather(notify: &Notify, group: &str, cx: &Context) -> Result<Output, Failure> {
    let message = notify.message(cx).await?;
    let own = cx.job().attempt.job;
    let place = match cx.step("group").await? {
        Step::Finished(place) => place,
        Step::Fresh(step) | Step::Unknown(step) => {
            let place = find_place(notify, group, &message, cx).await?;
            step.finish(&place).await?;
            place
        }
    };
    let speaker = match place {
        Place::First { .. } => own,
        Place::Behind { job } => job,
    };
    if let Some(about) = &notify.about {
        remember(about.job, speaker, cx).await?;
    }
    let output = match place {
        Place::First { until } => speak(notify, message, until, cx).await?,
        Place::Behind { job } => notify.ended(json!({"behind": job})),
    };
    if let Some(about) = &notify.about {
        see_through(notify, about, cx).await?;
    }
    Ok(output)
}

async fn find_place(notify: &Notify, group: &str, message: &Message, cx: &Context) -> Result<Place, Failure> {
    let (ledger, attempt, window) = (cx.queue().ledger(), cx.job().attempt, notify.window.unwrap_or_default().0);
    let whoever = Place::First { until: cx.now() };
    // An attempt before this one may have become the first, and the window have passed meanwhile.
    let others = ledger.held(&behind(attempt.job), 1, cx.now()).await.or_retry("looking for the group")?;
    if !others.is_empty() {
        return Ok(whoever);
    }
    let key = format!("{} {:?} {group}", notify.channel, message.severity);
    let key = Key { scope: "group".into(), key, hold: window };
    match ledger.hold(attempt, &key, cx.now()).await.or_retry("joining the group")? {
        Hold::Mine => Ok(Place::First { until: later(cx.now(), window) }),
        Hold::Behind(job) => {
            // Within its window it ends only where somebody cancelled it: then it speaks for nobody.
            let first = ledger.job(job).await.or_retry("looking at the group's first message")?;
            let speaks = first.is_some_and(|first| !first.state.is_finished());
            Ok(if speaks { Place::Behind { job } } else { whoever })
        }
    }
}

/// Says the first message at once, and at the end how many there were behind it.
async fn speak(notify: &Notify, mut message: Message, until: Timestamp, cx: &Context) -> Result<Output, Failure> {
    let own = cx.job().attempt.job;
    if notify.about.is_some() && message.alarm.is_none() {
        message.alarm = Some(Alarm { key: alarm_of(own), action: Action::Trigger });
    }
    let first = hand_on(&saying(notify, &notify.channel, &message), "first", &own.to_string(), cx).await?;
    let end = later(until, GRACE);
    let left = (end - cx.now()).to_std().unwrap_or_default();
    if !left.is_zero() {
        return Err(Failure::Snooze { wait: left, reason: "has spoken, and gathers messages like its own".into() });
    }
    let ledger = cx.queue().ledger();
    let more = ledger.held(&behind(own), LARGEST_GROUP, cx.now()).await.or_retry("counting the group")?.len();
    let mut told = json!({"first": first});
    if more > 0 {
        let rest = rest(notify, message, more);
        told["rest"] = json!(hand_on(&saying(notify, &notify.channel, &rest), "rest", &own.to_string(), cx).await?);
    }
    Ok(notify.ended(json!({"told": told, "more": more})))
}

/// What is said about those behind the first.
fn rest(notify: &Notify, message: Message, more: usize) -> Message {
    let window = schemas::period::write(notify.window.unwrap_or_default().0);
    let advice = match &notify.about {
        Some(about) => format!("\n\nAll of them:\nnightporter jobs list --state discarded --kind {}", about.kind),
        None => String::new(),
    };
    let text = format!("{more} more like this one came within {window}:\n\n{}{advice}", message.text);
    Message { title: format!("{more} more: {}", message.title), text, ..message }
}
