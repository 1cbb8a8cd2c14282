//! One HTTP call to a target: with a deadline, a span, and errors that never hold the target's address.

use std::time::Duration;

use anyhow::anyhow;
use chrono::DateTime;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response};
use schemas::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use tracing::{Instrument, Span, field, info_span};
use url::Url;

use super::verdict::{Answer, Fate, NotSent, Said, Table, judge};
use crate::handler::Failure;

/// A call that is not answered in whole within this is given up.
const DEADLINE: Duration = Duration::from_secs(10);

/// Of an answer's body only so much is read: Discord shows the whole message again, the others say a word.
const LONGEST_ANSWER: usize = 32 * 1024;

/// Nobody may put a message off for longer; the job's own policy gives it up in the end.
const LONGEST_WAIT: Duration = Duration::from_hours(24);

/// A POST whose answer is judged by a table.
pub(super) struct Call<'a> {
    pub(super) http: &'a Client,
    pub(super) url: &'a Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    pub(super) table: Table,
    /// Whether the target may know our trace.
    pub(super) traced: bool,
}

impl Call<'_> {
    /// Calls once.
    pub(super) async fn send(self, wall: Timestamp) -> Result<(), NotSent> {
        let span = span_to(self.url);
        let table = self.table;
        let traced = self.traced;
        let request = self.http.post(self.url.clone()).headers(self.headers).body(self.body).timeout(DEADLINE);
        let answered = async {
            let request = if traced { with_trace(request) } else { request };
            let mut response = request.send().await?;
            let status = response.status().as_u16();
            Span::current().record("http.response.status_code", status);
            let asked = wait_asked_for(response.headers(), wall);
            let said = (table.read)(&beginning_of(&mut response).await);
            Ok::<_, reqwest::Error>((status, asked, said))
        }
        .instrument(span.clone())
        .await;
        match answered {
            Ok((status, asked, Said { word, retry_after })) => {
                let retry_after = retry_after.map(|wait| wait.min(LONGEST_WAIT)).or(asked);
                judge(table.lines, &Answer { status, word: &word, retry_after })
                    .inspect_err(|_| mark_failed(&span, &status.to_string()))
            }
            Err(error) => {
                mark_failed(&span, if error.is_timeout() { "timeout" } else { "connection" });
                Err(not_answered(error))
            }
        }
    }
}

/// An address that is a secret itself: whoever has it can post.
pub(super) fn secret_url(target: &str, name: &str, url: &SecretString) -> Result<Url, Failure> {
    // The parser's error is left out: what it is about is the secret.
    let url = Url::parse(url.expose_secret().trim()).ok().filter(|url| matches!(url.scheme(), "https" | "http"));
    url.ok_or_else(|| {
        Failure::Discard(anyhow!(
            "the {target} URL of the channel `{name}` is not an `https://` address; correct the secret and retry the job"
        ))
    })
}

fn mark_failed(span: &Span, error: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", error);
}

/// The client span of a call. Its path may be a secret, so it is not there.
fn span_to(url: &Url) -> Span {
    info_span!(
        "POST",
        otel.kind = "client",
        otel.status_code = field::Empty,
        error.type = field::Empty,
        http.request.method = "POST",
        http.response.status_code = field::Empty,
        server.address = url.host_str(),
        server.port = url.port_or_known_default(),
    )
}

fn with_trace(mut request: RequestBuilder) -> RequestBuilder {
    let trace = queue::trace::current();
    for (name, value) in [("traceparent", trace.traceparent), ("tracestate", trace.tracestate)] {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    request
}

/// The beginning of a body; what cannot be read of it does not matter, the status has come.
pub(crate) async fn beginning_of(response: &mut Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST_ANSWER {
            break;
        }
    }
    String::from_utf8_lossy(&body).into_owned()
}

/// What `Retry-After` asks for: seconds, or a date by the wall clock (RFC 9110, 10.2.3).
fn wait_asked_for(headers: &HeaderMap, wall: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => (DateTime::parse_from_rfc2822(text).ok()?.to_utc() - wall).to_std().ok()?,
    };
    Some(wait.min(LONGEST_WAIT))
}

/// Without an answer the message was certainly not delivered only where there was no connection.
fn not_answered(error: reqwest::Error) -> NotSent {
    let error = error.without_url();
    if error.is_builder() {
        return NotSent { fate: Fate::NotDelivered, failure: Failure::discard(error) };
    }
    if error.is_connect() {
        let failure = Failure::retry(error).context("it cannot be reached");
        return NotSent { fate: Fate::NotDelivered, failure };
    }
    let what = if error.is_timeout() { "it did not answer in time" } else { "the connection broke before its answer" };
    let failure = Failure::retry(anyhow!(error).context(format!("{what}: the message may have been delivered")));
    NotSent { fate: Fate::Unknown, failure }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Option<u64> {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
        let wall = DateTime::parse_from_rfc3339("2026-11-20T10:00:00Z").unwrap().to_utc();
        wait_asked_for(&headers, wall).map(|wait| wait.as_secs())
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date_and_is_bounded() {
        assert_eq!(asked("30"), Some(30));
        assert_eq!(asked(" 0 "), Some(0));
        assert_eq!(asked("Fri, 20 Nov 2026 10:01:30 GMT"), Some(90));
        assert_eq!(asked("Fri, 20 Nov 2026 09:00:00 GMT"), None);
        assert_eq!(asked("99999999999"), Some(24 * 60 * 60));
        assert_eq!(asked("soon"), None);
    }
}
