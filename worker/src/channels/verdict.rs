//! What an answer means: one table for each kind of target, as data, judged here and nowhere else.

use std::time::Duration;

use anyhow::anyhow;

use crate::handler::Failure;

/// A message that was not delivered, or of which nobody knows.
#[derive(Debug)]
pub struct NotSent {
    /// What is known of it.
    pub fate: Fate,
    /// What is to be done.
    pub failure: Failure,
}

/// What is known of a message after a failed attempt to deliver it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was not delivered.
    NotDelivered,
    /// It may have been delivered.
    Unknown,
}

/// What the other side answered.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The HTTP status.
    pub status: u16,
    /// The body, where it is short; for comparison only, never for messages: it is a stranger's.
    pub body: &'a str,
    /// `Retry-After`.
    pub retry_after: Option<Duration>,
}

/// One line of a table. The first line that fits an answer decides.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// The statuses that it is about, first to last.
    pub status: (u16, u16),
    /// The whole body that it is about; none for any.
    pub body: Option<&'static str>,
    /// What follows.
    pub verdict: Verdict,
    /// What it means and what to do, for people; put behind "it answered 404: ".
    pub meaning: &'static str,
}

/// What follows from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Delivered.
    Delivered,
    /// Try again, not before what `Retry-After` asks for.
    Retry(Fate),
    /// Trying again would not help.
    Discard(Fate),
}

use Fate::{NotDelivered, Unknown};
use Verdict::{Delivered, Discard, Retry};

const fn line(status: (u16, u16), body: Option<&'static str>, verdict: Verdict, meaning: &'static str) -> Line {
    Line { status, body, verdict, meaning }
}

/// Slack's incoming webhooks (<https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks>).
pub const SLACK: &[Line] = &[
    line((200, 200), Some("ok"), Delivered, ""),
    line((200, 299), None, Discard(Unknown), "it does not speak like Slack; check the channel's URL"),
    line((300, 399), None, Discard(NotDelivered), "it redirects, which Slack does not; check the channel's URL"),
    line((400, 400), Some("invalid_payload"), Discard(NotDelivered), "Slack cannot read the message (invalid_payload)"),
    line(
        (400, 400),
        Some("user_not_found"),
        Discard(NotDelivered),
        "the user that it posts to is gone; make a new webhook",
    ),
    line(
        (403, 403),
        Some("action_prohibited"),
        Discard(NotDelivered),
        "an administrator of the workspace forbids the post",
    ),
    line((403, 403), Some("invalid_token"), Discard(NotDelivered), "the webhook was revoked; make a new one in Slack"),
    line((404, 404), Some("channel_not_found"), Discard(NotDelivered), "the Slack channel is gone; make a new webhook"),
    line((404, 404), None, Discard(NotDelivered), "the webhook is gone; make a new one in Slack"),
    line((410, 410), None, Discard(NotDelivered), "the Slack channel is archived; make a webhook for another one"),
    line((429, 429), None, Retry(NotDelivered), "too many messages for now"),
    line((500, 500), Some("rollup_error"), Retry(NotDelivered), "Slack failed to post it (rollup_error)"),
    line((500, 599), None, Retry(Unknown), "Slack has trouble"),
    line((0, 999), None, Discard(NotDelivered), "Slack refuses the message; check the channel's URL"),
];

/// Receivers by Standard Webhooks 1.0: everything but success and 410 is tried again, for the receiver knows what it
/// has by the message's id.
pub const STANDARD_WEBHOOKS: &[Line] = &[
    line((200, 299), None, Delivered, ""),
    line(
        (300, 399),
        None,
        Retry(NotDelivered),
        "it redirects, and redirects are not followed; configure the new address",
    ),
    line(
        (410, 410),
        None,
        Discard(NotDelivered),
        "the endpoint is gone for good; remove the channel or configure another address",
    ),
    line((401, 401), None, Retry(NotDelivered), "it does not accept the signature; check the channel's secret"),
    line((403, 403), None, Retry(NotDelivered), "it does not accept the signature; check the channel's secret"),
    line((404, 404), None, Retry(NotDelivered), "nothing receives webhooks there; check the channel's address"),
    line((413, 413), None, Retry(NotDelivered), "the message is too large for it"),
    line((429, 429), None, Retry(NotDelivered), "too many messages for now"),
    line((400, 499), None, Retry(NotDelivered), "it refuses the message"),
    line((0, 999), None, Retry(Unknown), "it has trouble"),
];

/// Judges an answer by a table.
pub fn judge(table: &[Line], answer: &Answer<'_>) -> Result<(), NotSent> {
    let fits = |line: &&Line| {
        let (first, last) = line.status;
        (first..=last).contains(&answer.status) && line.body.is_none_or(|body| body == answer.body.trim())
    };
    let (verdict, meaning) = table
        .iter()
        .find(fits)
        .map_or((Discard(Unknown), "nobody knows what this means"), |line| (line.verdict, line.meaning));
    let error = anyhow!("it answered {}: {meaning}", answer.status);
    match verdict {
        Delivered => Ok(()),
        Retry(fate) => Err(NotSent { fate, failure: Failure::Retry { error, after: answer.retry_after } }),
        Discard(fate) => Err(NotSent { fate, failure: Failure::Discard(error) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slack(status: u16, body: &str) -> Result<(), NotSent> {
        judge(SLACK, &Answer { status, body, retry_after: Some(Duration::from_secs(30)) })
    }

    fn webhook(status: u16) -> Result<(), NotSent> {
        judge(STANDARD_WEBHOOKS, &Answer { status, body: "", retry_after: Some(Duration::from_secs(30)) })
    }

    fn words(judged: Result<(), NotSent>) -> (Fate, &'static str, String) {
        let NotSent { fate, failure } = judged.unwrap_err();
        match failure {
            Failure::Retry { error, after } => {
                assert_eq!(after, Some(Duration::from_secs(30)), "Retry-After is heeded");
                (fate, "retry", error.to_string())
            }
            Failure::Discard(error) => (fate, "discard", error.to_string()),
            other => panic!("{other:?}"),
        }
    }

    /// The whole contract of Slack's incoming webhooks, each line with the answer that leads to it.
    #[test]
    fn each_line_of_slacks_table_is_reached_by_its_answer_and_does_what_it_says() {
        assert!(slack(200, "ok").is_ok());
        let answers = [
            (200, "<html>welcome</html>", Unknown, "discard"),
            (302, "", NotDelivered, "discard"),
            (400, "invalid_payload", NotDelivered, "discard"),
            (400, "user_not_found", NotDelivered, "discard"),
            (403, "action_prohibited", NotDelivered, "discard"),
            (403, "invalid_token", NotDelivered, "discard"),
            (404, "channel_not_found", NotDelivered, "discard"),
            (404, "no_service", NotDelivered, "discard"),
            (410, "channel_is_archived", NotDelivered, "discard"),
            (429, "rate_limited", NotDelivered, "retry"),
            (500, "rollup_error\n", NotDelivered, "retry"),
            (503, "upstream connect error", Unknown, "retry"),
            (400, "no_text", NotDelivered, "discard"),
        ];
        assert_eq!(answers.len() + 1, SLACK.len(), "each line has its answer here");
        for (index, (status, body, fate, done)) in answers.into_iter().enumerate() {
            let (found_fate, found, text) = words(slack(status, body));
            assert_eq!((found_fate, found), (fate, done), "{status} {body}");
            assert!(text.starts_with(&format!("it answered {status}: {}", SLACK[index + 1].meaning)), "{text}");
        }
    }

    #[test]
    fn a_signed_webhook_is_tried_again_after_everything_but_success_and_gone() {
        for status in [200, 201, 204, 299] {
            assert!(webhook(status).is_ok());
        }
        for status in [301, 308, 400, 401, 403, 404, 409, 413, 422, 429] {
            let (fate, done, text) = words(webhook(status));
            assert_eq!((fate, done), (NotDelivered, "retry"), "{text}");
        }
        for status in [500, 502, 504, 599] {
            assert_eq!(words(webhook(status)).0, Unknown);
        }
        let (fate, done, text) = words(webhook(410));
        assert_eq!((fate, done), (NotDelivered, "discard"));
        assert!(text.contains("the endpoint is gone"), "{text}");
    }

    #[test]
    fn every_table_has_a_line_for_every_answer_and_a_meaning_for_every_failure() {
        for table in [SLACK, STANDARD_WEBHOOKS] {
            let last = table.last().unwrap();
            assert_eq!((last.status, last.body), ((0, 999), None));
            assert!(table.iter().all(|line| line.verdict == Delivered || !line.meaning.is_empty()));
        }
    }

    #[test]
    fn the_body_of_an_answer_is_never_repeated() {
        let (_, _, text) = words(slack(400, "you sent https://hooks.slack.com/services/T/B/x"));
        assert!(!text.contains("hooks"), "{text}");
    }
}
