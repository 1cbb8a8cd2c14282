//! A repository at GitHub's REST API: one request, its deadline, and what refusals and limits mean.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use schemas::Timestamp;
use secrets::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::Instrument;
use url::Url;

use crate::context::Context;
use crate::handler::{Failure, OrFail};
use crate::outside;

/// Each request.
const DEADLINE: Duration = Duration::from_secs(30);

/// A repository at GitHub.
pub struct Repository<'r> {
    /// The client.
    pub http: &'r reqwest::Client,
    /// `https://api.github.com`, or another server's.
    pub api_url: &'r Url,
    /// A token that may do what is asked.
    pub token: SecretString,
    /// `owner/name`.
    pub name: &'r str,
    /// The ledger's time, for limits that GitHub gives as a time.
    pub now: Timestamp,
}

/// What a person can do when GitHub refuses.
pub(crate) struct Advice {
    /// Against 403: what the token may not do, and the right that it lacks.
    pub(crate) forbidden: &'static str,
    /// Against 404, 409 and 422.
    pub(crate) check: &'static str,
}

/// What became of a request that changes something.
pub(crate) enum Sent {
    /// It was done; the answer's body, null where there is none.
    Done(Value),
    /// It was refused, and not done.
    Refused(Failure),
    /// No answer, or one that says nothing: nobody knows.
    Unknown(Failure),
}

impl<'r> Repository<'r> {
    /// The repository, through `[connections.github]`; `whose`: what needs it.
    pub(crate) async fn connect(cx: &'r Context, name: &'r str, whose: &str) -> Result<Self, Failure> {
        let connection = cx
            .world()
            .github()
            .ok_or_else(|| Failure::Discard(anyhow::anyhow!("{whose}; add `[connections.github]` with a token")))?;
        let token = cx.world().secret(&connection.token, "resolving GitHub's token").await?;
        Ok(Self { http: cx.world().http(), api_url: &connection.api_url, token, name, now: cx.now() })
    }

    /// Asks for something; `what` says for people what is being done.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &str,
        what: &str,
        advice: &Advice,
    ) -> Result<T, Failure> {
        let response = self.send("GET", self.request(Method::GET, path, query)).await.or_retry(what)?;
        if response.status().is_success() {
            return response.json().await.or_retry(what);
        }
        Err(self.refusal(response.status(), response.headers(), advice).context(what))
    }

    /// Has something done.
    pub(crate) async fn post(&self, path: &[&str], body: &Value, what: &str, advice: &Advice) -> Sent {
        let response = match self.send("POST", self.request(Method::POST, path, "").json(body)).await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Sent::Refused(Failure::retry(error).context(what)),
            Err(error) => return Sent::Unknown(Failure::retry(error).context(what)),
        };
        let status = response.status();
        if status.is_success() {
            let bytes = response.bytes().await.unwrap_or_default(); // It is done, whatever it says.
            return Sent::Done(serde_json::from_slice(&bytes).unwrap_or_default());
        }
        let refusal = self.refusal(status, response.headers(), advice).context(what);
        if status.is_server_error() { Sent::Unknown(refusal) } else { Sent::Refused(refusal) }
    }

    fn request(&self, method: Method, path: &[&str], query: &str) -> RequestBuilder {
        let mut url = self.api_url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("repos").extend(self.name.split('/')).extend(path);
        }
        url.set_query((!query.is_empty()).then_some(query));
        self.http
            .request(method, url)
            .bearer_auth(self.token.expose_secret())
            .header("accept", "application/vnd.github+json")
            .header("x-github-api-version", "2022-11-28")
            .header("user-agent", "nightporter")
            .timeout(DEADLINE)
    }

    async fn send(&self, method: &str, request: RequestBuilder) -> Result<Response, reqwest::Error> {
        let span = outside::github(method, self.api_url.host_str());
        request.send().instrument(span).await.map_err(reqwest::Error::without_url)
    }

    fn refusal(&self, status: StatusCode, headers: &HeaderMap, advice: &Advice) -> Failure {
        let limited = status == StatusCode::TOO_MANY_REQUESTS
            || status == StatusCode::FORBIDDEN
                && (headers.contains_key("retry-after") || number(headers, "x-ratelimit-remaining") == Some(0));
        if limited {
            let error = anyhow::anyhow!("GitHub limits this token's requests for now ({status})");
            return Failure::Retry { error, after: Some(self.wait(headers)) };
        }
        let next = match status.as_u16() {
            401 => "the token of `[connections.github]` is not valid; put in a new one and retry the job".to_owned(),
            403 => format!("the token of `[connections.github]` {}", advice.forbidden),
            301 | 302 | 307 | 308 => {
                "the repository was renamed or moved; write its new name into `repository`".to_owned()
            }
            404 | 409 | 422 => advice.check.to_owned(),
            _ => return Failure::retry(anyhow::anyhow!("GitHub answered {status}")),
        };
        Failure::Discard(anyhow::anyhow!("GitHub answered {status} for {}: {next}", self.name))
    }

    /// What a limit asks for: `retry-after`, or the time when the quota is new; else the minute that GitHub asks for.
    fn wait(&self, headers: &HeaderMap) -> Duration {
        let after = number(headers, "retry-after");
        let reset = number(headers, "x-ratelimit-reset").map(|at| at - self.now.timestamp());
        let seconds = after.or(reset).unwrap_or(60).clamp(1, 3600);
        Duration::from_secs(seconds.unsigned_abs())
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<i64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}
