//! `notify`: says something in a channel.
//!
//! Twice is safe: each try is a step. A try that is known to have failed is finished as such and the next one is a new
//! step; a try of unknown outcome (a crash or a timeout after sending) stays open, and what becomes of it is the
//! channel's: a receiver that dedupes gets the message again under the same id, Slack gets it again with a mark, or a
//! person is told. Retries: what the target's table says ([`crate::channels::tables`]), as late as the target asks.
//!
//! Messages of one group are one message: the first is sent at once; what comes within its window is counted, and told when
//! the window ends (`notify/grouping.rs`). Messages about one alarm go out in order (`notify/alarms.rs`).
//!
//! A router's message, and a group's, is sent by jobs of their own, one for each target, so that one that fails holds back and doubles no
//! other. Each is made under a key of its own: however often it is asked for, it is made once.

mod alarms;
mod grouping;
mod handing_on;
mod templates;

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{JobId, Limit, Names, Priority, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::channels::{Action, Alarm, Fate, Message, NotSent, Posting, Repeats, Severity};
use crate::context::{Context, Step};
use crate::handler::{Failure, Handler, Output};

/// The arguments of `notify`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Notify {
    /// The channel's name.
    pub(crate) channel: String,
    /// What the message is made from; without one, `title` and `text` are the message.
    #[serde(default)]
    pub(crate) template: Template,
    /// The message, or what is added to the template's.
    #[serde(default)]
    pub(crate) text: Option<String>,
    /// One line above it, in place of the template's.
    #[serde(default)]
    pub(crate) title: Option<String>,
    /// How urgent it is, in place of the template's.
    #[serde(default)]
    pub(crate) severity: Option<Severity>,
    /// What the template `discarded` is about.
    #[serde(default)]
    pub(crate) about: Option<DiscardedJob>,
    /// The name of what is wrong, the same in all messages about it: what is raised under it is resolved under it.
    #[serde(default)]
    pub(crate) alarm: Option<String>,
    /// What the message does to that alarm; raises it, where nothing else is said.
    #[serde(default)]
    pub(crate) action: Option<Action>,
    /// What it has in common with others: messages of one group, channel and severity are one message, with a count.
    #[serde(default)]
    pub(crate) group: Option<String>,
    /// For how long a group's first message stands for those after it: `5m` where nothing else is said, at most a day.
    #[serde(default)]
    pub(crate) window: Option<Window>,
}

/// How long a group gathers.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Window(
    #[serde(with = "schemas::period")]
    #[schemars(with = "String")]
    Duration,
);

impl Default for Window {
    fn default() -> Self {
        Self(Duration::from_mins(5))
    }
}

/// A longer window would keep people in the dark.
const LONGEST_WINDOW: Duration = Duration::from_hours(24);

/// Of a group, and of an alarm's jobs, so many are counted.
const LARGEST_GROUP: u32 = 100_000;

/// It becomes a key.
const LONGEST_GROUP: usize = 500;

pub(crate) use alarms::alarms_of;

/// `PagerDuty`'s bound of a key.
const LONGEST_ALARM: usize = 255;

/// A job that was given up.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiscardedJob {
    /// Its id.
    pub(crate) job: JobId,
    /// Its kind.
    pub(crate) kind: String,
    /// Why.
    pub(crate) error: String,
}

/// With this, every failure of the handler begins: the notice of a discarded message goes by it.
pub(crate) const NOTIFYING: &str = "notifying the channel ";

/// What every failure at a channel begins with.
pub(crate) fn notifying(channel: &str) -> String {
    format!("{NOTIFYING}`{channel}`")
}

/// With this the failure goes on where the message itself tells of a failed one: that ends there, or a router that names a
/// broken channel would tell of its own failures without end.
pub(crate) const OF_A_FAILED_MESSAGE: &str = " of a failed message";

/// What a message is made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Template {
    /// `title` and `text` alone.
    #[default]
    Text,
    /// A summary of the run that the job belongs to.
    Deploy,
    /// A job that was given up, and what to do next.
    Discarded,
    /// A job that had been given up is done after all.
    Completed,
}

/// How a try to send ended, as its step keeps it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Try {
    Delivered,
    /// This try did not deliver it. In doubt: an earlier one may have.
    NotDelivered {
        in_doubt: bool,
    },
}

#[async_trait]
impl Handler for Notify {
    const KIND: &'static str = "notify";
    const SUMMARY: &'static str = "says something in a channel";
    /// Its own, so that no message waits behind a backup.
    const QUEUE: &'static str = "notify";
    const PRIORITY: Priority = Priority::High;
    /// About ten hours of trying, so that a night's outage loses nothing; and days, where the target asks for long waits.
    /// The age counts from when the message was stored: a resolve that waited for its trigger still has its tries.
    const RETRY: RetryPolicy = RetryPolicy {
        first: Duration::from_secs(5),
        longest: Duration::from_mins(30),
        max_failures: 48,
        max_age: Duration::from_hours(24 * 7),
    };
    const TIME_LIMIT: Duration = Duration::from_mins(1);

    fn limits(&self) -> Vec<Limit> {
        if self.group.is_some() || self.template == Template::Completed {
            return Vec::new(); // It sends nothing itself: the job that it makes does.
        }
        let of_alarm = self.alarm.as_ref().map(|alarm| Limit::one(format!("alarm:{}/{alarm}", self.channel)));
        [Limit::none(format!("channel:{}", self.channel))].into_iter().chain(of_alarm).collect()
    }

    fn check(&self, names: &Names) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !names.channels.contains(&self.channel) {
            let known = names.channels.iter().map(String::as_str);
            problems.push(Problem::unknown("channel", &self.channel, known).within("channel"));
        }
        let empty = |text: &Option<String>| text.as_deref().is_none_or(|text| text.trim().is_empty());
        if self.template == Template::Text && empty(&self.text) && empty(&self.title) {
            let help = "give a `text`, or a `template` (deploy)";
            problems.push(Problem::new("there is nothing to say").help(help));
        }
        if matches!(self.template, Template::Discarded | Template::Completed) && self.about.is_none() {
            problems.push(Problem::new("this template is about a job: `about` is missing").within("template"));
        }
        if self.group.as_ref().is_some_and(|group| group.trim().is_empty() || group.len() > LONGEST_GROUP) {
            problems.push(Problem::new("a group's name has 1 to 500 bytes").within("group"));
        }
        if self.window.is_some() && self.group.is_none() {
            let help = "name it: group = \"{{ event.source }}\"";
            problems.push(Problem::new("a `window` is a group's, and there is none").help(help).within("window"));
        }
        if self.window.is_some_and(|window| window.0 > LONGEST_WINDOW) {
            problems.push(Problem::new("a window is at most 24h long").within("window"));
        }
        if self.action.is_some() && self.alarm.is_none() {
            let help = "name it: alarm = \"disk-full\"";
            problems
                .push(Problem::new("an `action` is done to an alarm, and there is none").help(help).within("action"));
        }
        if self.alarm.as_ref().is_some_and(|alarm| alarm.trim().is_empty() || alarm.len() > LONGEST_ALARM) {
            problems.push(Problem::new("an alarm's name has 1 to 255 bytes").within("alarm"));
        }
        problems
    }

    fn output() -> Value {
        json!({
            "channel": null, "delivered": null, "tries": null, "possibly_repeated": null, "told": null, "behind": null,
            "more": null,
        })
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let told = self.say(cx).await;
        let end = if self.is_about_a_message() { OF_A_FAILED_MESSAGE } else { "" };
        told.map_err(|failure| failure.context(format!("{}{end}", notifying(&self.channel))))
    }
}

impl Notify {
    /// Tells that a job which had been given up is done after all.
    pub(crate) fn done_after_all(channel: &str, job: JobId, kind: &str) -> Self {
        let about = DiscardedJob { job, kind: kind.to_owned(), error: String::new() };
        Self { channel: channel.to_owned(), template: Template::Completed, about: Some(about), ..Self::default() }
    }

    async fn say(&self, cx: &Context) -> Result<Output, Failure> {
        if let Some(group) = &self.group {
            return grouping::gather(self, group, cx).await;
        }
        if let (Template::Completed, Some(about)) = (self.template, &self.about) {
            return alarms::resolve(self, about, cx).await;
        }
        if let Some(alarm) = self.alarm() {
            alarms::wait_for_turn(self, &alarm, cx).await?;
        }
        match cx.world().route(&self.channel) {
            Some(route) => handing_on::to_targets(self, route, cx).await,
            None => self.deliver(cx).await,
        }
    }

    /// What every end puts out, null where there is nothing to say.
    fn ended(&self, with: Value) -> Output {
        let mut output = Self::output();
        output["channel"] = self.channel.as_str().into();
        if let (Value::Object(output), Value::Object(with)) = (&mut output, with) {
            output.extend(with);
        }
        output
    }

    fn is_about_a_message(&self) -> bool {
        self.about.as_ref().is_some_and(|about| about.kind == Self::KIND)
    }

    fn alarm(&self) -> Option<Alarm> {
        Some(Alarm { key: self.alarm.clone()?, action: self.action.unwrap_or_default() })
    }

    /// What is said: the same in every attempt, though what the ledger knows changes meanwhile. A target that knows
    /// messages by their id takes no other text under it.
    async fn message(&self, cx: &Context) -> Result<Message, Failure> {
        if self.template == Template::Text {
            return templates::message(self, cx).await;
        }
        match cx.step("message").await? {
            Step::Finished(message) => Ok(message),
            Step::Fresh(step) | Step::Unknown(step) => {
                let message = templates::message(self, cx).await?;
                step.finish(&message).await?;
                Ok(message)
            }
        }
    }

    /// Goes past the tries that have ended, to the one that is to be made.
    async fn deliver(&self, cx: &Context) -> Result<Output, Failure> {
        let (mut number, mut in_doubt) = (1, false);
        loop {
            let (step, unknown) = match cx.step(&format!("send {number}")).await? {
                Step::Finished(Try::Delivered) => return Ok(self.delivered(number, in_doubt)),
                Step::Finished(Try::NotDelivered { in_doubt: doubt }) => {
                    (number, in_doubt) = (number + 1, doubt);
                    continue;
                }
                Step::Fresh(step) => (step, false),
                Step::Unknown(step) => (step, true),
            };
            in_doubt |= unknown;
            let NotSent { fate, failure } = match self.send(cx, in_doubt, unknown).await {
                Ok(()) => {
                    step.finish(&Try::Delivered).await?;
                    return Ok(self.delivered(number, in_doubt));
                }
                Err(not_sent) => not_sent,
            };
            match (fate, &failure) {
                (Fate::NotDelivered, _) => step.finish(&Try::NotDelivered { in_doubt }).await?,
                // Whoever retries a discarded job wants it sent.
                (Fate::Unknown, Failure::Discard(_)) => step.finish(&Try::NotDelivered { in_doubt: true }).await?,
                (Fate::Unknown, _) => {} // It stays open: the next attempt finds it so.
            }
            return Err(failure);
        }
    }

    /// Sends once. `unknown`: the try that is being made again may have delivered it already.
    async fn send(&self, cx: &Context, in_doubt: bool, unknown: bool) -> Result<(), NotSent> {
        let fate = if unknown { Fate::Unknown } else { Fate::NotDelivered };
        let before_sending = |failure| NotSent { fate, failure };
        let message = self.message(cx).await.map_err(before_sending)?;
        let channel = cx.world().channel(&self.channel).await.map_err(before_sending)?;
        let repeats = channel.repeats();
        if unknown && repeats == Repeats::Report {
            return Err(before_sending(Failure::Discard(perhaps_delivered(cx.job().attempt.job))));
        }
        let may_repeat = in_doubt && repeats != Repeats::Dedupe;
        let posting = Posting { job: cx.job().attempt.job, created_at: cx.job().created_at, may_repeat };
        channel.send(&message, &posting, chrono::Utc::now()).await
    }

    fn delivered(&self, tries: u32, in_doubt: bool) -> Output {
        self.ended(json!({"delivered": true, "tries": tries, "possibly_repeated": in_doubt}))
    }
}

fn perhaps_delivered(job: JobId) -> anyhow::Error {
    anyhow::anyhow!(
        "an earlier attempt ended while it was sending, and nobody knows whether the message arrived; look there, and \
         if it is missing: nightporter jobs retry {job}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(args: Value) -> Vec<String> {
        let names = Names { channels: ["oncall".to_owned()].into(), ..Names::default() };
        let notify: Notify = serde_json::from_value(args).unwrap();
        notify.check(&names).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_channel_that_is_not_configured_and_a_message_that_says_nothing_are_problems() {
        assert_eq!(
            problems(json!({"channel": "onacll"})),
            [
                "channel: there is no channel named `onacll` (did you mean `oncall`?)",
                "there is nothing to say (give a `text`, or a `template` (deploy))",
            ]
        );
        assert!(problems(json!({"channel": "oncall", "text": "hello"})).is_empty());
        assert!(problems(json!({"channel": "oncall", "template": "deploy"})).is_empty());
        assert_eq!(problems(json!({"channel": "oncall", "template": "discarded"})).len(), 1);
        assert_eq!(problems(json!({"channel": "oncall", "template": "completed"})).len(), 1);
    }

    #[test]
    fn an_action_needs_an_alarm_with_a_name() {
        let with = |more: Value| {
            let mut args = json!({"channel": "oncall", "text": "x"});
            args.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
            problems(args)
        };
        assert!(with(json!({"alarm": "disk-full", "action": "resolve"})).is_empty());
        assert!(with(json!({"action": "resolve"}))[0].starts_with("action: an `action` is done to an alarm"));
        assert_eq!(with(json!({"alarm": " "})), ["alarm: an alarm's name has 1 to 255 bytes"]);
        assert_eq!(with(json!({"alarm": "x".repeat(256)})).len(), 1);
    }

    #[test]
    fn a_window_is_a_groups_and_a_day_at_most() {
        let with = |more: Value| {
            let mut args = json!({"channel": "oncall", "text": "x"});
            args.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
            problems(args)
        };
        assert!(with(json!({"group": "x", "window": "1h"})).is_empty());
        assert!(with(json!({"window": "1h"}))[0].starts_with("window: a `window` is a group's"));
        assert_eq!(with(json!({"group": "x", "window": "2d"})), ["window: a window is at most 24h long"]);
        assert_eq!(with(json!({"group": ""})), ["group: a group's name has 1 to 500 bytes"]);
    }

    #[test]
    fn unknown_templates_are_refused() {
        assert!(serde_json::from_value::<Notify>(json!({"channel": "oncall", "template": "diploy"})).is_err());
    }
}
