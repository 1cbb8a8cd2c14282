//! One request, and what its answer means.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response};
use serde_json::json;
use tokio::time::Instant;
use tracing::Instrument;
use url::Url;

use super::Http;
use super::expect::Answer;
use crate::channels::message::cut;
use crate::context::Context;
use crate::credentials::Credentials;
use crate::handler::{Failure, OrFail, Output};
use crate::mask::Mask;
use crate::outside;

/// Of a body only so much is read.
const LARGEST_BODY: usize = 256 * 1024;

/// So much of it is shown.
const EXCERPT: usize = 200;

/// Nobody may put a try off for longer by `Retry-After`.
const LONGEST_AFTER: Duration = Duration::from_mins(1);

/// A request that can be made several times.
pub(super) struct Call<'j> {
    job: &'j Http,
    http: Client,
    url: Url,
    headers: HeaderMap,
    credentials: Option<Credentials>,
    mask: Mask,
}

/// What became of a try.
pub(super) enum Tried {
    /// The answer was as expected.
    Passed(Output),
    /// It was not.
    Failed {
        /// Why, for people.
        why: String,
        /// Whether the request may have had an effect that nobody told us of.
        in_doubt: bool,
        /// What the other side asked to be left alone for.
        after: Duration,
    },
}

/// Why there is no answer.
struct NoAnswer {
    why: String,
    in_doubt: bool,
}

impl<'j> Call<'j> {
    /// Resolves the credentials and puts the headers together.
    pub(super) async fn prepare(job: &'j Http, cx: &Context) -> Result<Self, Failure> {
        let url = job.address().map_err(|problem| Failure::Discard(anyhow::anyhow!("the address: {problem}")))?;
        let mut mask = Mask::default();
        let credentials = match &job.credentials {
            Some(name) => Some(Credentials::of(name, cx, &url, &mut mask).await?),
            None => None,
        };
        let mut headers = HeaderMap::new();
        if job.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if !job.method.is_idempotent() {
            let id = HeaderValue::from_str(&cx.job().attempt.job.to_string()).or_discard("making a header")?;
            headers.insert(HeaderName::from_static("idempotency-key"), id);
        }
        for (name, value) in &job.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).or_discard(&format!("the header `{name}`"))?;
            let value = HeaderValue::from_str(value).or_discard(&format!("the header `{name}`"))?;
            headers.insert(name, value);
        }
        Ok(Self { job, http: cx.world().http().clone(), url, headers, credentials, mask })
    }

    /// Where it goes, without what may be long or private.
    pub(super) fn place(&self) -> String {
        format!("{}{}", self.url.origin().ascii_serialization(), self.url.path())
    }

    /// Makes the request once. `number`: which try it is.
    pub(super) async fn once(&self, number: u32) -> Result<Tried, Failure> {
        let begun = Instant::now();
        let answered = tokio::time::timeout(self.job.timeout, self.answer(begun)).await;
        let answer = if let Ok(answer) = answered {
            answer?
        } else {
            let why = format!("it did not answer within {}", schemas::period::write(self.job.timeout));
            Err(NoAnswer { why, in_doubt: true })
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(NoAnswer { why, in_doubt }) => return Ok(Tried::Failed { why, in_doubt, after: Duration::ZERO }),
        };
        let excerpt = self.excerpt(&answer);
        let Some(miss) = self.job.expect.miss(&answer) else {
            let (status, millis) = (answer.status, answer.millis);
            return Ok(Tried::Passed(json!({
                "status": status, "millis": millis, "tries": number, "excerpt": excerpt,
            })));
        };
        let miss = self.mask.apply(&miss);
        let why = if excerpt.is_empty() { miss } else { format!("{miss}; its body begins `{excerpt}`") };
        Ok(Tried::Failed { why, in_doubt: answer.status >= 500, after: asked_for(&answer.headers) })
    }

    /// The answer, after as many redirects as are followed.
    async fn answer(&self, begun: Instant) -> Result<Result<Answer, NoAnswer>, Failure> {
        let mut url = self.url.clone();
        let mut left = self.job.redirects;
        loop {
            let response = match self.send(&url).await? {
                Ok(response) => response,
                Err(no_answer) => return Ok(Err(no_answer)),
            };
            match redirect(&response, &url) {
                Some(next) if left > 0 => {
                    left -= 1;
                    url = next;
                }
                _ => return Ok(read(response, begun).await),
            }
        }
    }

    async fn send(&self, url: &Url) -> Result<Result<Response, NoAnswer>, Failure> {
        let method = self.job.method.name();
        let known = reqwest::Method::from_bytes(method.as_bytes()).or_discard("reading the method")?;
        let mut request = self.http.request(known, url.clone()).headers(self.headers.clone());
        if let Some(credentials) = &self.credentials {
            request = request.headers(credentials.for_address(url)?.clone());
        }
        if let Some(body) = &self.job.body {
            request = request.body(body.to_string());
        }
        let span = outside::http(method, url.host_str());
        match request.timeout(self.job.timeout).send().instrument(span).await {
            Err(error) if error.is_builder() => Err(Failure::discard(error.without_url())),
            sent => Ok(sent.map_err(no_answer)),
        }
    }

    /// The beginning of the body on one line, without secrets: some servers repeat what they were sent.
    fn excerpt(&self, answer: &Answer) -> String {
        let text = self.mask.apply(&String::from_utf8_lossy(&answer.body));
        let line: Vec<&str> = text.split_whitespace().take(EXCERPT).collect();
        cut(&line.join(" "), EXCERPT)
    }
}

fn redirect(response: &Response, url: &Url) -> Option<Url> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let next = url.join(response.headers().get(LOCATION)?.to_str().ok()?).ok()?;
    matches!(next.scheme(), "https" | "http").then_some(next)
}

async fn read(mut response: Response, begun: Instant) -> Result<Answer, NoAnswer> {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let mut body = Vec::new();
    let mut whole = true;
    while let Some(chunk) = response.chunk().await.map_err(no_answer)? {
        let room = LARGEST_BODY - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            whole = false;
            break;
        }
    }
    let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Answer { status, headers, body, whole, millis })
}

/// Without a connection nothing was asked; otherwise nobody knows.
fn no_answer(error: reqwest::Error) -> NoAnswer {
    let never_sent = error.is_connect();
    let what = if never_sent {
        "it cannot be reached"
    } else if error.is_timeout() {
        "it did not answer in time"
    } else {
        "the connection broke before the whole answer was there"
    };
    NoAnswer { why: format!("{:#}", anyhow::Error::new(error.without_url()).context(what)), in_doubt: !never_sent }
}

/// Seconds of `Retry-After`; a date is no matter here, where waits are short.
fn asked_for(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(0)).min(LONGEST_AFTER)
}
