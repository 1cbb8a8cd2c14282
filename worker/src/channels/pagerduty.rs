//! `PagerDuty`'s Events API v2: an event with a routing key and a key of its own
//! (<https://developer.pagerduty.com/docs/send-alert-event>).
//!
//! `PagerDuty` dedupes: while an alert with a `dedup_key` is open, a repeat of its trigger is absorbed, and a repeated
//! resolve changes nothing. The key is the message's alarm, or, where it has none, its job.

use async_trait::async_trait;
use reqwest::Client;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use schemas::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use url::Url;

use super::call::Call;
use super::message::{Action, cut};
use super::verdict::{Said, json_word};
use super::{Channel, Message, NotSent, Posting, Repeats, Severity, tables};
use crate::handler::Failure;

/// `PagerDuty`'s bound of a summary is 1,024 characters.
const LONGEST_SUMMARY: usize = 1_000;
/// `PagerDuty`'s bound of an event is 512 KB; in JSON a character may take up to six times its bytes.
const LARGEST_TEXT: usize = 50_000;
/// By its documentation.
const KEY_LENGTH: usize = 32;

pub(super) struct Pagerduty {
    url: Url,
    key: SecretString,
    http: Client,
}

impl Pagerduty {
    pub(super) fn new(name: &str, base: &Url, key: &SecretString, http: Client) -> Result<Self, Failure> {
        let key = key.expose_secret().trim();
        if key.len() != KEY_LENGTH || !key.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Failure::Discard(anyhow::anyhow!(
                "the routing key of the channel `{name}` is not 32 letters and digits; correct the secret and retry the \
                 job"
            )));
        }
        let mut url = base.clone();
        url.set_path(&format!("{}/v2/enqueue", base.path().trim_end_matches('/')));
        Ok(Self { url, key: key.into(), http })
    }
}

#[async_trait]
impl Channel for Pagerduty {
    fn repeats(&self) -> Repeats {
        Repeats::Dedupe
    }

    async fn send(&self, message: &Message, posting: &Posting, wall: Timestamp) -> Result<(), NotSent> {
        let body = event(message, posting, self.key.expose_secret()).to_string().into_bytes();
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let table = tables::PAGERDUTY;
        Call { http: &self.http, url: &self.url, headers, body, table, traced: false }.send(wall).await
    }
}

/// What a body of `PagerDuty`'s says: its `status`, `success` where the event was taken.
pub(super) fn read(body: &str) -> Said {
    Said { word: json_word(body, &[], "status"), retry_after: None }
}

fn event(message: &Message, posting: &Posting, routing_key: &str) -> Value {
    let dedup_key = message.alarm.as_ref().map_or_else(|| posting.job.to_string(), |alarm| alarm.key.clone());
    let action = message.alarm.as_ref().map_or(Action::Trigger, |alarm| alarm.action);
    let mut event = json!({"routing_key": routing_key, "event_action": action, "dedup_key": dedup_key});
    // What is resolved or acknowledged is known by its key alone.
    if action == Action::Trigger {
        event["client"] = "Nightporter".into();
        event["payload"] = json!({
            "summary": cut(&message.title.replace(['\r', '\n'], " "), LONGEST_SUMMARY),
            "source": "nightporter",
            "severity": severity(message.severity),
            "timestamp": posting.created_at,
            "custom_details": {"text": cut(&message.text, LARGEST_TEXT), "job": posting.job},
        });
    }
    event
}

/// `PagerDuty`'s word for it.
const fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    }
}

#[cfg(test)]
mod tests {
    use schemas::JobId;

    use super::super::Alarm;
    use super::*;

    fn posting() -> Posting {
        Posting { job: JobId::at(Timestamp::UNIX_EPOCH), created_at: Timestamp::UNIX_EPOCH, may_repeat: false }
    }

    fn message(alarm: Option<Alarm>) -> Message {
        Message { title: "backup\nfailed".into(), text: "why".into(), severity: Severity::Critical, alarm }
    }

    #[test]
    fn without_an_alarm_the_job_is_the_key_so_that_a_repeat_is_absorbed() {
        let posting = posting();
        let event = event(&message(None), &posting, "key");
        assert_eq!((&event["event_action"], &event["dedup_key"]), (&json!("trigger"), &json!(posting.job)));
        assert_eq!(event["payload"]["summary"], "backup failed");
        assert_eq!(event["payload"]["severity"], "critical");
    }

    #[test]
    fn a_resolve_is_the_key_and_nothing_else() {
        let alarm = Alarm { key: "backup".into(), action: Action::Resolve };
        let expected = json!({"routing_key": "key", "event_action": "resolve", "dedup_key": "backup"});
        assert_eq!(event(&message(Some(alarm)), &posting(), "key"), expected);
    }

    #[test]
    fn texts_of_any_size_stay_within_pagerdutys_bounds() {
        let title = "ä".repeat(9_000);
        let message = Message { title, text: "\u{1}".repeat(500_000), severity: Severity::Info, alarm: None };
        let event = event(&message, &posting(), "key");
        assert!(event["payload"]["summary"].as_str().unwrap().chars().count() <= 1_024);
        assert!(event.to_string().len() < 512_000);
    }

    #[test]
    fn a_routing_key_of_another_form_is_refused_and_not_shown() {
        let base = Url::parse("https://events.pagerduty.com").unwrap();
        let refused =
            Pagerduty::new("ops", &base, &"canary".into(), crate::world::http_client()).err().unwrap().words();
        assert!(refused.contains("`ops`") && !refused.contains("canary"), "{refused}");
    }
}
