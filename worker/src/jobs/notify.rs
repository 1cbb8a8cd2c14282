//! `notify`: says something in a channel.
//!
//! Twice is safe: each try is a step. A try that is known to have failed is finished as such and the next one is a new
//! step; a try of unknown outcome (a crash or a timeout after sending) stays open, and what becomes of it is the
//! channel's: a receiver that dedupes gets the message again under the same id, Slack gets it again with a mark, or a
//! person is told. Retries: what the target's table says ([`crate::channels::verdict`]), as late as the target asks.

mod templates;

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{JobId, Limit, Names, Priority, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::channels::{Fate, NotSent, Posting, Repeats, Severity};
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
}

/// A job that was given up.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
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
    /// About ten hours of trying, so that a night's outage or a day's rate limit loses nothing.
    const RETRY: RetryPolicy = RetryPolicy {
        first: Duration::from_secs(5),
        longest: Duration::from_mins(30),
        max_failures: 48,
        max_age: Duration::from_hours(24),
    };
    const TIME_LIMIT: Duration = Duration::from_mins(1);

    fn limits(&self) -> Vec<Limit> {
        vec![Limit::none(format!("channel:{}", self.channel))]
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
        if self.template == Template::Discarded && self.about.is_none() {
            problems.push(Problem::new("the template `discarded` is about a job: `about` is missing"));
        }
        problems
    }

    fn output() -> Value {
        json!({"channel": null, "delivered": null, "tries": null, "possibly_repeated": null})
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let delivered = self.deliver(cx).await;
        delivered.map_err(|failure| failure.context(notifying(&self.channel)))
    }
}

impl Notify {
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
        let message = templates::message(self, cx).await.map_err(before_sending)?;
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
        json!({"channel": self.channel, "delivered": true, "tries": tries, "possibly_repeated": in_doubt})
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
    }

    #[test]
    fn unknown_templates_are_refused() {
        assert!(serde_json::from_value::<Notify>(json!({"channel": "oncall", "template": "diploy"})).is_err());
    }
}
