//! Mail through Resend's API: `POST /emails` with a key of idempotency
//! (<https://resend.com/docs/api-reference/emails/send-email>).
//!
//! Resend dedupes: it remembers for 24 hours which message it had under a key. The key is the job's, and the body is the
//! same in every attempt; with another body it would be refused.

use async_trait::async_trait;
use reqwest::Client;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use schemas::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use url::Url;

use super::call::Call;
use super::config::{MailAddress, ResendConfig};
use super::message::cut;
use super::verdict::{Said, json_word};
use super::{Channel, Message, NotSent, Posting, Repeats, tables};
use crate::handler::{Failure, OrFail};

/// A subject is one line.
const LONGEST_SUBJECT: usize = 300;
/// Longer texts are cut: nobody reads them in a mail.
const LARGEST_TEXT: usize = 200_000;

pub(super) struct Resend {
    url: Url,
    authorization: HeaderValue,
    from: MailAddress,
    to: Vec<MailAddress>,
    http: Client,
}

impl Resend {
    pub(super) fn new(name: &str, config: &ResendConfig, key: &SecretString, http: Client) -> Result<Self, Failure> {
        let mut authorization =
            HeaderValue::from_str(&format!("Bearer {}", key.expose_secret().trim())).map_err(|_| {
                Failure::Discard(anyhow::anyhow!(
                    "the Resend key of the channel `{name}` cannot stand in a header; correct the secret and retry the job"
                ))
            })?;
        authorization.set_sensitive(true);
        let mut url = config.url.clone();
        url.set_path(&format!("{}/emails", config.url.path().trim_end_matches('/')));
        Ok(Self { url, authorization, from: config.from.clone(), to: config.to.clone(), http })
    }

    fn headers(&self, posting: &Posting) -> Result<HeaderMap, Failure> {
        let key = HeaderValue::from_str(&format!("nightporter-{}", posting.job)).or_discard("making a header")?;
        Ok(HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (AUTHORIZATION, self.authorization.clone()),
            (HeaderName::from_static("idempotency-key"), key),
        ]))
    }

    fn body(&self, message: &Message) -> Value {
        json!({
            "from": self.from.to_string(),
            "to": self.to.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "subject": cut(&message.headline(false), LONGEST_SUBJECT),
            // Resend refuses an empty text.
            "text": if message.text.trim().is_empty() { message.title.clone() } else { cut(&message.text, LARGEST_TEXT) },
        })
    }
}

#[async_trait]
impl Channel for Resend {
    fn repeats(&self) -> Repeats {
        Repeats::Dedupe
    }

    async fn send(&self, message: &Message, posting: &Posting, wall: Timestamp) -> Result<(), NotSent> {
        let headers = self.headers(posting).map_err(NotSent::before_sending)?;
        let body = self.body(message).to_string().into_bytes();
        Call { http: &self.http, url: &self.url, headers, body, table: tables::RESEND, traced: false }.send(wall).await
    }
}

/// What a body of Resend's says: `taken` where it has the message, else the name of its error.
pub(super) fn read(body: &str) -> Said {
    Said { word: json_word(body, &["id"], "name"), retry_after: None }
}
