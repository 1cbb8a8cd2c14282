//! A receiver of signed webhooks, by Standard Webhooks 1.0
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>).
//!
//! The message's id is made from the job's: it is the same in every attempt, so a receiver that dedupes acts once.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Client;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use schemas::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use sha2::Sha256;
use url::Url;

use super::call::Call;
use super::message::cut;
use super::{Channel, Message, NotSent, Posting, Repeats, tables};
use crate::handler::{Failure, OrFail};

/// The specification advises bodies below 20 KB.
const LARGEST_BODY: usize = 20_000;
/// A title is one line.
const LONGEST_TITLE: usize = 300;
/// By the specification; a shorter key could be guessed.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

const BASE64: GeneralPurpose = STANDARD;

pub(super) struct Webhook {
    name: String,
    url: Url,
    key: Hmac<Sha256>,
    http: Client,
}

impl Webhook {
    pub(super) fn new(name: &str, url: Url, secret: &SecretString, http: Client) -> Result<Self, Failure> {
        let key = key_of(secret.expose_secret()).ok_or_else(|| {
            Failure::Discard(anyhow::anyhow!(
                "the secret of the channel `{name}` is not `whsec_` and 24 to 64 bytes in base64; correct it and retry \
                 the job"
            ))
        })?;
        Ok(Self { name: name.to_owned(), url, key, http })
    }

    fn headers(&self, id: &str, body: &[u8], wall: Timestamp) -> Result<HeaderMap, Failure> {
        let timestamp = wall.timestamp().to_string();
        let signature = sign(&self.key, id, &timestamp, body);
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        for (name, value) in [("webhook-id", id), ("webhook-timestamp", &timestamp), ("webhook-signature", &signature)]
        {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).or_discard("making a header")?);
        }
        Ok(headers)
    }
}

#[async_trait]
impl Channel for Webhook {
    fn repeats(&self) -> Repeats {
        Repeats::Dedupe
    }

    async fn send(&self, message: &Message, posting: &Posting, wall: Timestamp) -> Result<(), NotSent> {
        let id = format!("msg_{}", posting.job.0.simple());
        let body = body_of(&self.name, message, posting);
        let headers = self.headers(&id, &body, wall).map_err(NotSent::before_sending)?;
        let table = tables::STANDARD_WEBHOOKS;
        Call { http: &self.http, url: &self.url, headers, body, table, traced: true }.send(wall).await
    }
}

/// The key in a secret as the specification spells it.
fn key_of(secret: &str) -> Option<Hmac<Sha256>> {
    let bytes = BASE64.decode(secret.trim().strip_prefix("whsec_")?).ok()?;
    KEY_BYTES.contains(&bytes.len()).then(|| Hmac::new_from_slice(&bytes).ok())?
}

/// `v1,<base64 of HMAC-SHA256 of "{id}.{timestamp}.{body}">`.
fn sign(key: &Hmac<Sha256>, id: &str, timestamp: &str, body: &[u8]) -> String {
    let mut mac = key.clone();
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
}

/// The JSON body. A text that is too long is cut, and says so.
fn body_of(channel: &str, message: &Message, posting: &Posting) -> Vec<u8> {
    let title = cut(&message.title, LONGEST_TITLE);
    let mut text = message.text.clone();
    loop {
        let body = json!({
            "type": "nightporter.notification",
            "timestamp": posting.created_at,
            "data": {
                "channel": channel,
                "job": posting.job,
                "severity": message.severity,
                "alarm": message.alarm,
                "title": title,
                "text": text,
            },
        });
        let body = body.to_string().into_bytes();
        if body.len() < LARGEST_BODY {
            return body;
        }
        // In JSON a character may take up to six times its bytes: cut in proportion, and look again.
        text = cut(&text, (text.len() * LARGEST_BODY / body.len()).saturating_sub(16));
    }
}

#[cfg(test)]
mod tests {
    use schemas::JobId;

    use super::super::Severity;
    use super::*;

    /// The example of the specification's own reference implementations.
    #[test]
    fn the_signature_is_that_of_the_specifications_example() {
        let key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = sign(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn secrets_of_another_form_or_size_are_refused() {
        for secret in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_!!!"] {
            assert!(key_of(secret).is_none(), "{secret}");
        }
    }

    #[test]
    fn bodies_stay_below_the_bound_whatever_their_text_is_made_of() {
        let posting =
            Posting { job: JobId::at(Timestamp::UNIX_EPOCH), created_at: Timestamp::UNIX_EPOCH, may_repeat: false };
        for text in ["\u{1}".repeat(50_000), "ä".repeat(50_000), "\n\"".repeat(9_000), "x".repeat(10_000)] {
            let message =
                Message { title: "t\n".repeat(5_000), text: text.clone(), severity: Severity::Warning, alarm: None };
            let body = body_of("ops", &message, &posting);
            assert!(body.len() < LARGEST_BODY, "{}", body.len());
            let read: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let whole = read["data"]["text"] == text;
            assert_eq!(whole, text.len() == 10_000);
        }
    }
}
