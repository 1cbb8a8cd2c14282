//! Discord's webhooks: `{content, embeds}` to a secret URL, with `wait=true`, so that the answer is the stored message
//! (<https://discord.com/developers/docs/resources/webhook#execute-webhook>).
//!
//! Discord knows no message by an id of ours: after an unknown outcome it is the channel's choice to repeat or to report.
//! A 429 says in its JSON how many seconds to wait, with fractions.

use std::time::Duration;

use async_trait::async_trait;
use reqwest::Client;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use schemas::Timestamp;
use secrecy::SecretString;
use serde_json::{Value, json};
use url::Url;

use super::call::{Call, secret_url};
use super::message::{Action, cut};
use super::verdict::{Said, json_word};
use super::{Channel, Message, NotSent, OnUnknown, Posting, Repeats, Severity, tables};
use crate::handler::Failure;

/// Discord's bound of `content` is 2,000 characters; a title is one line.
const LONGEST_TITLE: usize = 300;
/// Discord's bound of an embed's description is 4,096 characters; counted in bytes, which are never fewer.
const LARGEST_TEXT: usize = 4_000;

pub(super) struct Discord {
    url: Url,
    on_unknown: OnUnknown,
    http: Client,
}

impl Discord {
    pub(super) fn new(name: &str, url: &SecretString, on_unknown: OnUnknown, http: Client) -> Result<Self, Failure> {
        let mut url = secret_url("Discord", name, url)?;
        // Without it Discord answers before it has stored the message.
        url.query_pairs_mut().append_pair("wait", "true");
        Ok(Self { url, on_unknown, http })
    }
}

#[async_trait]
impl Channel for Discord {
    fn repeats(&self) -> Repeats {
        self.on_unknown.into()
    }

    async fn send(&self, message: &Message, posting: &Posting, wall: Timestamp) -> Result<(), NotSent> {
        let body = payload(message, posting.may_repeat).to_string().into_bytes();
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        Call { http: &self.http, url: &self.url, headers, body, table: tables::DISCORD, traced: false }.send(wall).await
    }
}

/// What a body of Discord's says: `taken` of a stored message, else the code of its error; and how long to wait.
pub(super) fn read(body: &str) -> Said {
    let wait = serde_json::from_str::<Value>(body).ok().and_then(|body| body["retry_after"].as_f64());
    let retry_after = wait.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Said { word: json_word(body, &["id", "channel_id"], "code"), retry_after }
}

/// The JSON that Discord reads. Nobody is called by it: no mention is allowed, and the text stands in a block of code, in
/// which nothing has a meaning.
fn payload(message: &Message, may_repeat: bool) -> Value {
    let title = escape(&cut(&message.headline(may_repeat), LONGEST_TITLE));
    let text = cut(&message.text.trim_end().replace("```", "`\u{200b}``"), LARGEST_TEXT);
    let embeds = if text.is_empty() {
        json!([])
    } else {
        json!([{"description": format!("```\n{text}\n```"), "color": colour(message)}])
    };
    json!({"content": format!("**{title}**"), "embeds": embeds, "allowed_mentions": {"parse": []}})
}

/// Backslashes before all that Discord gives a meaning to.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if r"\*_~`|>[]#<@:".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// The bar beside the text: red, amber, grey; green where it is over.
fn colour(message: &Message) -> u32 {
    match (message.alarm.as_ref().map(|alarm| alarm.action), message.severity) {
        (Some(Action::Resolve), _) => 0x2e_a0_43,
        (_, Severity::Critical) => 0xd1_24_2f,
        (_, Severity::Warning) => 0xd2_99_22,
        (_, Severity::Info) => 0x8b_94_9e,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(title: &str, text: &str) -> Message {
        Message { title: title.into(), text: text.into(), severity: Severity::Warning, alarm: None }
    }

    #[test]
    fn nobody_is_called_and_nothing_in_a_text_has_a_meaning() {
        let payload = payload(&message("@everyone [x](http://y) *", "<@1> ```\n@here"), false);
        assert_eq!(payload["allowed_mentions"], json!({"parse": []}));
        assert_eq!(payload["content"], r"**\[warning\] \@everyone \[x\](http\://y) \***");
        let text = payload["embeds"][0]["description"].as_str().unwrap();
        assert_eq!(text.matches("```").count(), 2, "{text}");
    }

    #[test]
    fn texts_of_any_size_stay_within_discords_bounds() {
        for text in ["x".repeat(100_000), "ä`".repeat(50_000), "```".repeat(9_000), "😀".repeat(9_000)] {
            let payload = payload(&message(&"*t".repeat(2_000), &text), true);
            let length = |text: &Value| text.as_str().unwrap().encode_utf16().count();
            assert!(length(&payload["content"]) <= 2_000);
            assert!(length(&payload["embeds"][0]["description"]) <= 4_096);
        }
        assert_eq!(payload(&message("deploy", "\n"), false)["embeds"], json!([]));
    }

    #[test]
    fn the_wait_is_read_from_the_answer_with_its_fractions() {
        let said = read(r#"{"message": "You are being rate limited.", "retry_after": 0.65, "global": false}"#);
        assert_eq!(said.retry_after, Some(Duration::from_millis(650)));
        assert_eq!(read(r#"{"retry_after": -1}"#).retry_after, None);
        assert_eq!(read(r#"{"message": "Unknown Webhook", "code": 10015}"#).word, "10015");
        assert_eq!(read(r#"{"id": "1", "channel_id": "2", "type": 0}"#).word, "taken");
        assert_eq!(read("<html>"), Said::default());
    }
}
