//! A repository, or an organisation, at GitHub's REST API: one request, its deadline, and what refusals and limits mean.

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use schemas::{Problem, Timestamp};
use secrets::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::Span;
use url::Url;

use crate::context::Context;
use crate::handler::Failure;
use crate::outside;
use crate::rest::{self, Refused, Service, change, number};

pub use crate::rest::{Advice, Sent, status_of};

/// A repository at GitHub.
pub struct Repository<'r> {
    /// The client.
    pub http: &'r reqwest::Client,
    /// `https://api.github.com`, or another server's.
    pub api_url: &'r Url,
    /// A token that may do what is asked.
    pub token: SecretString,
    /// `owner/name`; without a `/`, an organisation.
    pub name: &'r str,
    /// The ledger's time, for limits that GitHub gives as a time.
    pub now: Timestamp,
}

/// Whether this is `owner/name`.
pub(crate) fn is_repository(text: &str) -> bool {
    text.split_once('/').is_some_and(|(owner, name)| is_name(owner) && is_name(name))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(['/', ' ', '?', '#'])
}

/// What is wrong with where a webhook is: at a repository or at an organisation, one of the two.
pub(crate) fn wrong_place(repository: Option<&str>, organization: Option<&str>) -> Option<Problem> {
    match (repository, organization) {
        (Some(repository), None) if is_repository(repository) => None,
        (Some(_), None) => Some(Problem::new("this is not `owner/name`").within("repository")),
        (None, Some(organization)) if is_name(organization) => None,
        (None, Some(_)) => Some(Problem::new("this is no organisation's name").within("organization")),
        _ => Some(Problem::new("write either a `repository` or an `organization`")),
    }
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
        rest::get(self, path, query, what, advice).await
    }

    /// The same of what may not be there.
    pub(crate) async fn get_if_there<T: DeserializeOwned>(
        &self,
        path: &[&str],
        what: &str,
        advice: &Advice,
    ) -> Result<Option<T>, Failure> {
        match self.get(path, "", what, advice).await {
            Err(failure) if status_of(&failure) == Some(404) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// Puts something in its place.
    pub(crate) async fn put(&self, path: &[&str], body: &Value, what: &str, advice: &Advice) -> Sent {
        change(self, Method::PUT, (path, ""), Some(body), what, advice).await
    }

    /// Changes something.
    pub(crate) async fn patch(&self, path: &[&str], body: &Value, what: &str, advice: &Advice) -> Sent {
        change(self, Method::PATCH, (path, ""), Some(body), what, advice).await
    }

    /// Asks for a page of something, and for the `cursor` of the next one.
    pub(crate) async fn get_page<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &str,
        what: &str,
        advice: &Advice,
    ) -> Result<(T, Option<String>), Failure> {
        rest::get_page(self, path, query, what, advice).await
    }

    /// Has something done.
    pub(crate) async fn post(&self, path: &[&str], body: &Value, what: &str, advice: &Advice) -> Sent {
        change(self, Method::POST, (path, ""), Some(body), what, advice).await
    }
}

impl Service for Repository<'_> {
    const NAME: &'static str = "GitHub";

    fn request(&self, method: Method, path: &[&str], query: &str) -> RequestBuilder {
        let mut url = self.api_url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            let kind = if self.name.contains('/') { "repos" } else { "orgs" };
            segments.pop_if_empty().push(kind).extend(self.name.split('/')).extend(path);
        }
        url.set_query((!query.is_empty()).then_some(query));
        self.http
            .request(method, url)
            .bearer_auth(self.token.expose_secret())
            .header("accept", "application/vnd.github+json")
            .header("x-github-api-version", "2022-11-28")
            .header("user-agent", "nightporter")
    }

    fn span(&self, method: &Method) -> Span {
        outside::github(method.as_str(), self.api_url.host_str())
    }

    fn is_limit(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        status == StatusCode::TOO_MANY_REQUESTS
            || status == StatusCode::FORBIDDEN
                && (headers.contains_key("retry-after") || number(headers, "x-ratelimit-remaining") == Some(0))
    }

    fn next(&self, status: StatusCode, _: &Value, advice: &Advice) -> Option<Refused> {
        let next = match status.as_u16() {
            401 => "the token of `[connections.github]` is not valid; put in a new one and retry the job".to_owned(),
            403 => format!("the token of `[connections.github]` {}", advice.forbidden),
            301 | 302 | 307 | 308 => {
                "the repository was renamed or moved; write its new name into `repository`".to_owned()
            }
            404 | 409 | 422 => advice.check.to_owned(),
            _ => return None,
        };
        Some(Refused { service: Self::NAME, status, of: format!(" for {}", self.name), next })
    }

    fn now(&self) -> Timestamp {
        self.now
    }
}
