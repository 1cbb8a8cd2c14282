//! Slack's incoming webhooks: `{text, blocks}` to a secret URL, answered by `ok`
//! (<https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks>).
//!
//! Slack knows no message by an id of ours: after an unknown outcome it is the channel's choice to repeat or to report.

use async_trait::async_trait;
use reqwest::Client;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use schemas::Timestamp;
use secrecy::SecretString;
use serde_json::{Value, json};
use url::Url;

use super::call::{Call, secret_url};
use super::message::cut;
use super::{Channel, Message, NotSent, OnUnknown, Posting, Repeats, tables};
use crate::handler::Failure;

/// Slack's bound of the text of one section block.
const LARGEST_BLOCK: usize = 3_000;
/// Slack's bound of a message's text is 40,000 characters; so many blocks stay below it.
const MOST_BLOCKS: usize = 12;
/// A title is one line.
const LONGEST_TITLE: usize = 300;

pub(super) struct Slack {
    url: Url,
    on_unknown: OnUnknown,
    http: Client,
}

impl Slack {
    pub(super) fn new(name: &str, url: &SecretString, on_unknown: OnUnknown, http: Client) -> Result<Self, Failure> {
        let url = secret_url("Slack", name, url)?;
        Ok(Self { url, on_unknown, http })
    }
}

#[async_trait]
impl Channel for Slack {
    fn repeats(&self) -> Repeats {
        self.on_unknown.into()
    }

    async fn send(&self, message: &Message, posting: &Posting, wall: Timestamp) -> Result<(), NotSent> {
        let body = payload(message, posting.may_repeat).to_string().into_bytes();
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let table = tables::SLACK;
        Call { http: &self.http, url: &self.url, headers, body, table, traced: false }.send(wall).await
    }
}

/// The JSON that Slack reads. The sections are `verbatim`, so that nothing in a text becomes a mention.
fn payload(message: &Message, may_repeat: bool) -> Value {
    let title = escape(&cut(&message.headline(may_repeat), LONGEST_TITLE));
    let texts = blocks_of(&message.text);
    let preview = std::iter::once(title.as_str()).chain(texts.iter().map(String::as_str)).collect::<Vec<_>>();
    let sections = std::iter::once(format!("*{title}*"))
        .chain(texts.iter().cloned())
        .map(|text| json!({"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": true}}));
    json!({"text": preview.join("\n"), "blocks": sections.collect::<Vec<_>>()})
}

/// The text escaped, in pieces that fit into a block each, split between lines where that is possible. What is beyond
/// the last one is left out, and it says so.
fn blocks_of(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    for line in pieces(text.trim_end()) {
        let full = blocks.len() == MOST_BLOCKS;
        match blocks.last_mut() {
            Some(block) if block.chars().count() + 1 + line.chars().count() <= LARGEST_BLOCK => {
                block.push('\n');
                block.push_str(&line);
            }
            _ if full => {
                blocks.push("… (the rest is left out)".into());
                break;
            }
            _ => blocks.push(line),
        }
    }
    // Slack refuses empty texts.
    blocks.retain(|block| !block.trim().is_empty());
    blocks
}

/// The escaped lines of a text, over-long ones in several pieces. Nothing is split within a character or its escape.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    for line in text.lines() {
        let (mut piece, mut length) = (String::new(), 0);
        for character in line.chars() {
            let escaped = escape_char(character);
            let more = escaped.map_or(1, str::len);
            if length + more > LARGEST_BLOCK {
                pieces.push(std::mem::take(&mut piece));
                length = 0;
            }
            length += more;
            match escaped {
                Some(escaped) => piece.push_str(escaped),
                None => piece.push(character),
            }
        }
        pieces.push(piece);
    }
    pieces
}

/// Slack's own three: without them `<!channel>` in an error's text would call everybody.
fn escape_char(character: char) -> Option<&'static str> {
    match character {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        _ => None,
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    fn message(title: &str, text: &str) -> Message {
        Message { title: title.into(), text: text.into(), severity: Severity::Info, alarm: None }
    }

    fn texts(payload: &Value) -> Vec<&str> {
        payload["blocks"].as_array().unwrap().iter().map(|block| block["text"]["text"].as_str().unwrap()).collect()
    }

    #[test]
    fn what_could_be_a_mention_is_escaped_everywhere() {
        let payload = payload(&message("<!channel> & co", "see <@U123> at 1 > 0"), false);
        assert_eq!(texts(&payload), ["*&lt;!channel&gt; &amp; co*", "see &lt;@U123&gt; at 1 &gt; 0"]);
        assert_eq!(payload["text"], "&lt;!channel&gt; &amp; co\nsee &lt;@U123&gt; at 1 &gt; 0");
        assert_eq!(payload["blocks"][0]["text"]["verbatim"], true);
    }

    #[test]
    fn texts_of_any_size_stay_within_slacks_bounds_and_say_what_is_left_out() {
        let cases = [
            ("<".repeat(100_000), true),
            ("a line\n".repeat(20_000), true),
            ("&\n".repeat(50_000), true),
            ("ä".repeat(2_999), false),
            ("a line\n".repeat(4_000), false),
        ];
        for (text, is_cut) in cases {
            let payload = payload(&message(&"t&".repeat(1_000), &text), true);
            let texts = texts(&payload);
            assert!(texts.iter().all(|text| text.chars().count() <= LARGEST_BLOCK && !text.is_empty()));
            assert!(texts.len() <= 50, "Slack takes at most 50 blocks");
            assert!(payload["text"].as_str().unwrap().chars().count() <= 40_000);
            assert_eq!(texts.last().unwrap().contains("left out"), is_cut);
            for escape in texts.iter().flat_map(|text| text.split('&').skip(1)) {
                assert!(["amp;", "lt;"].iter().any(|known| escape.starts_with(known)), "a split escape: {escape}");
            }
        }
    }

    #[test]
    fn a_possible_repeat_is_marked_and_an_empty_text_has_no_block() {
        let payload = payload(&message("deploy", "\n"), true);
        assert_eq!(texts(&payload), ["*(possibly repeated) deploy*"]);
    }
}
