//! The tables: for each kind of target all that it may answer, from its documentation, and what follows.

use super::verdict::Fate::{NotDelivered, Unknown};
use super::verdict::Verdict::{Delivered, Discard, Retry};
use super::verdict::{Line, Table, Verdict, plain};
use super::{discord, pagerduty, resend};

const fn line(status: (u16, u16), word: Option<&'static str>, verdict: Verdict, meaning: &'static str) -> Line {
    Line { status, word, verdict, meaning }
}

const fn table(lines: &'static [Line], read: fn(&str) -> super::verdict::Said) -> Table {
    Table { lines, read }
}

/// Slack's incoming webhooks (<https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks>).
pub const SLACK: Table = table(SLACK_LINES, plain);

const SLACK_LINES: &[Line] = &[
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
pub const STANDARD_WEBHOOKS: Table = table(STANDARD_WEBHOOK_LINES, plain);

const STANDARD_WEBHOOK_LINES: &[Line] = &[
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

/// Discord's webhooks (<https://discord.com/developers/docs/resources/webhook#execute-webhook>); the word is the `code`
/// of its JSON errors.
pub const DISCORD: Table = table(DISCORD_LINES, discord::read);

const DISCORD_LINES: &[Line] = &[
    line((200, 200), Some("taken"), Delivered, ""),
    line((200, 299), None, Discard(Unknown), "it does not speak like Discord; check the channel's URL"),
    line((300, 399), None, Discard(NotDelivered), "it redirects, which Discord does not; check the channel's URL"),
    line((401, 401), None, Discard(NotDelivered), "the webhook's token is wrong; make a new webhook in Discord"),
    line((403, 403), None, Discard(NotDelivered), "Discord forbids the post; make a new webhook"),
    line((404, 404), None, Discard(NotDelivered), "the webhook is gone; make a new one in Discord"),
    line((429, 429), None, Retry(NotDelivered), "too many messages for now"),
    line((500, 599), None, Retry(Unknown), "Discord has trouble"),
    line((0, 999), None, Discard(NotDelivered), "Discord refuses the message; check the channel's URL"),
];

/// `PagerDuty`'s Events API v2 (<https://developer.pagerduty.com/docs/send-alert-event>); the word is its `status`.
pub const PAGERDUTY: Table = table(PAGERDUTY_LINES, pagerduty::read);

const PAGERDUTY_LINES: &[Line] = &[
    line((202, 202), Some("success"), Delivered, ""),
    line((200, 299), None, Discard(Unknown), "it does not speak like PagerDuty; check the channel's `url`"),
    line((300, 399), None, Discard(NotDelivered), "it redirects, which PagerDuty does not; check the channel's `url`"),
    line(
        (400, 400),
        None,
        Discard(NotDelivered),
        "PagerDuty refuses the event; check that the routing key is an Events API v2 integration's",
    ),
    line((403, 403), None, Retry(NotDelivered), "too many events for now"),
    line((429, 429), None, Retry(NotDelivered), "too many events for now"),
    // The same event again is absorbed by its key.
    line((500, 599), None, Retry(Unknown), "PagerDuty has trouble"),
    line((0, 999), None, Discard(NotDelivered), "PagerDuty refuses the event; check the channel's `url`"),
];

/// Resend's API (<https://resend.com/docs/api-reference/errors>); the word is the `name` of its errors.
pub const RESEND: Table = table(RESEND_LINES, resend::read);

const RESEND_LINES: &[Line] = &[
    line((200, 200), Some("taken"), Delivered, ""),
    line((200, 299), None, Discard(Unknown), "it does not speak like Resend; check the channel's `url`"),
    line((300, 399), None, Discard(NotDelivered), "it redirects, which Resend does not; check the channel's `url`"),
    line((401, 401), None, Discard(NotDelivered), "Resend does not accept the key; make one that may send"),
    line(
        (403, 403),
        None,
        Discard(NotDelivered),
        "Resend does not accept the key, or the sender: verify the domain of `from` at Resend",
    ),
    // The attempt before this one may still be under way there.
    line((409, 409), Some("concurrent_idempotent_requests"), Retry(Unknown), "Resend still works on the same message"),
    line((409, 409), None, Discard(Unknown), "Resend had a message under this id before, with another text"),
    line((422, 422), None, Discard(NotDelivered), "Resend refuses the message; check `from` and `to`"),
    line(
        (429, 429),
        Some("daily_quota_exceeded"),
        Discard(NotDelivered),
        "the day's quota at Resend is used up; retry the job tomorrow",
    ),
    line(
        (429, 429),
        Some("monthly_quota_exceeded"),
        Discard(NotDelivered),
        "the month's quota at Resend is used up; upgrade the plan and retry the job",
    ),
    line((429, 429), None, Retry(NotDelivered), "too many messages for now"),
    line((500, 599), None, Retry(Unknown), "Resend has trouble"),
    line((0, 999), None, Discard(NotDelivered), "Resend refuses the message; check the channel"),
];

/// Dead-man's switches: healthchecks.io (<https://healthchecks.io/docs/http_api/>), which answers in words for a check that it
/// does not know too, and Sentry's check-ins. To hear the same again changes nothing.
pub const HEARTBEAT: Table = table(HEARTBEAT_LINES, plain);

const HEARTBEAT_LINES: &[Line] = &[
    line(
        (200, 200),
        Some("OK (not found)"),
        Discard(NotDelivered),
        "the service does not know the check; correct the URL",
    ),
    line((200, 200), Some("OK (rate limited)"), Retry(NotDelivered), "the service hears from the check too often"),
    line((200, 299), None, Delivered, ""),
    line((300, 399), None, Discard(NotDelivered), "it redirects, which such a service does not; check the URL"),
    line((404, 410), None, Discard(NotDelivered), "the service does not know the check; correct the URL"),
    line((429, 429), None, Retry(NotDelivered), "the service hears from the check too often"),
    line((500, 599), None, Retry(Unknown), "the service has trouble"),
    line((0, 999), None, Discard(NotDelivered), "the service refuses it; check the URL"),
];

/// Mail servers (RFC 5321, 4.2). The word is where in the dialogue the answer came: `login`, `recipient`, `message`.
/// Until the message itself is sent, nothing has been delivered.
pub const MAIL: &[Line] = &[
    line((200, 299), Some("message"), Delivered, ""),
    line(
        (400, 499),
        Some("recipient"),
        Retry(NotDelivered),
        "the mail server does not take mail for a recipient for now",
    ),
    line((400, 499), None, Retry(NotDelivered), "the mail server cannot take the message for now"),
    line(
        (500, 599),
        Some("login"),
        Discard(NotDelivered),
        "the mail server does not accept the login; check `user` and `password`",
    ),
    line((500, 599), Some("recipient"), Discard(NotDelivered), "the mail server refuses the recipients; check `to`"),
    line((500, 599), Some("message"), Discard(NotDelivered), "the mail server refuses the message"),
    line(
        (500, 599),
        None,
        Discard(NotDelivered),
        "the mail server refuses to take mail from here; check `from`, `tls` and `login`",
    ),
    line((0, 999), None, Discard(Unknown), "it does not speak like a mail server; check `host` and `port`"),
];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::verdict::{Answer, Fate, NotSent, judge};
    use super::*;
    use crate::handler::Failure;

    fn slack(status: u16, body: &str) -> Result<(), NotSent> {
        judge(
            SLACK.lines,
            &Answer { status, word: (SLACK.read)(body).word.as_str(), retry_after: Some(Duration::from_secs(30)) },
        )
    }

    fn webhook(status: u16) -> Result<(), NotSent> {
        judge(STANDARD_WEBHOOKS.lines, &Answer { status, word: "", retry_after: Some(Duration::from_secs(30)) })
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
        assert_eq!(answers.len() + 1, SLACK.lines.len(), "each line has its answer here");
        for (index, (status, body, fate, done)) in answers.into_iter().enumerate() {
            let (found_fate, found, text) = words(slack(status, body));
            assert_eq!((found_fate, found), (fate, done), "{status} {body}");
            assert!(text.starts_with(&format!("it answered {status}: {}", SLACK.lines[index + 1].meaning)), "{text}");
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

    /// Delivered, or the fate and what is to be done.
    type Judged = Result<(), (Fate, &'static str)>;

    /// Each line of a table with an answer that leads to it, and no other line before it.
    fn holds(table: &[Line], answers: &[(u16, &str, Judged)]) {
        assert_eq!(answers.len(), table.len(), "each line has its answer here");
        for (line, (status, word, expected)) in table.iter().zip(answers) {
            let answer = Answer { status: *status, word, retry_after: Some(Duration::from_secs(30)) };
            let judged = judge(table, &answer);
            let Err((fate, done)) = expected else {
                assert!(judged.is_ok(), "{status} {word}");
                continue;
            };
            let (found_fate, found, text) = words(judged);
            assert_eq!((found_fate, found), (*fate, *done), "{status} {word}");
            assert!(text.starts_with(&format!("it answered {status}: {}", line.meaning)), "{text}");
        }
    }

    #[test]
    fn each_line_of_discords_table_is_reached_by_its_answer_and_does_what_it_says() {
        let answers = [
            (200, "taken", Ok(())),
            (204, "", Err((Unknown, "discard"))),
            (302, "", Err((NotDelivered, "discard"))),
            (401, "50027", Err((NotDelivered, "discard"))),
            (403, "50013", Err((NotDelivered, "discard"))),
            (404, "10015", Err((NotDelivered, "discard"))),
            (429, "", Err((NotDelivered, "retry"))),
            (502, "", Err((Unknown, "retry"))),
            (400, "50035", Err((NotDelivered, "discard"))),
        ];
        holds(DISCORD.lines, &answers);
    }

    #[test]
    fn each_line_of_pagerdutys_table_is_reached_by_its_answer_and_does_what_it_says() {
        let answers = [
            (202, "success", Ok(())),
            (200, "success", Err((Unknown, "discard"))),
            (301, "", Err((NotDelivered, "discard"))),
            (400, "invalid event", Err((NotDelivered, "discard"))),
            (403, "", Err((NotDelivered, "retry"))),
            (429, "", Err((NotDelivered, "retry"))),
            (500, "", Err((Unknown, "retry"))),
            (404, "", Err((NotDelivered, "discard"))),
        ];
        holds(PAGERDUTY.lines, &answers);
    }

    #[test]
    fn each_line_of_resends_table_is_reached_by_its_answer_and_does_what_it_says() {
        let answers = [
            (200, "taken", Ok(())),
            (200, "", Err((Unknown, "discard"))),
            (307, "", Err((NotDelivered, "discard"))),
            (401, "missing_api_key", Err((NotDelivered, "discard"))),
            (403, "invalid_api_key", Err((NotDelivered, "discard"))),
            (409, "concurrent_idempotent_requests", Err((Unknown, "retry"))),
            (409, "invalid_idempotent_request", Err((Unknown, "discard"))),
            (422, "missing_required_field", Err((NotDelivered, "discard"))),
            (429, "daily_quota_exceeded", Err((NotDelivered, "discard"))),
            (429, "monthly_quota_exceeded", Err((NotDelivered, "discard"))),
            (429, "rate_limit_exceeded", Err((NotDelivered, "retry"))),
            (500, "application_error", Err((Unknown, "retry"))),
            (400, "validation_error", Err((NotDelivered, "discard"))),
        ];
        holds(RESEND.lines, &answers);
    }

    #[test]
    fn each_line_of_the_mail_servers_table_is_reached_by_its_answer_and_does_what_it_says() {
        let answers = [
            (250, "message", Ok(())),
            (450, "recipient", Err((NotDelivered, "retry"))),
            (421, "", Err((NotDelivered, "retry"))),
            (535, "login", Err((NotDelivered, "discard"))),
            (550, "recipient", Err((NotDelivered, "discard"))),
            (554, "message", Err((NotDelivered, "discard"))),
            (530, "", Err((NotDelivered, "discard"))),
            (200, "", Err((Unknown, "discard"))),
        ];
        holds(MAIL, &answers);
    }

    #[test]
    fn every_table_has_a_line_for_every_answer_and_a_meaning_for_every_failure() {
        for table in [SLACK.lines, STANDARD_WEBHOOKS.lines, DISCORD.lines, PAGERDUTY.lines, RESEND.lines, MAIL] {
            let last = table.last().unwrap();
            assert_eq!((last.status, last.word), ((0, 999), None));
            assert!(table.iter().all(|line| line.verdict == Delivered || !line.meaning.is_empty()));
        }
    }

    #[test]
    fn the_body_of_an_answer_is_never_repeated() {
        let (_, _, text) = words(slack(400, "you sent https://hooks.slack.com/services/T/B/x"));
        assert!(!text.contains("hooks"), "{text}");
    }
}
