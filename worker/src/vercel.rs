//! Vercel's REST API: one request, its deadline, and what refusals and limits mean.
//!
//! Contract: <https://vercel.com/docs/rest-api>. What Vercel sends of its own accord (webhooks) is a hint; what is acted
//! upon is read here first.

mod deployment;

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use schemas::Timestamp;
use secrets::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::Span;
use url::Url;

use crate::context::Context;
use crate::examination::Remark;
use crate::handler::Failure;
use crate::outside;
use crate::rest::{self, Refused, Service, change};
use crate::world::World;

pub use crate::rest::{Advice, Sent, status_of};
pub use deployment::{Deployment, GitSource};

/// Vercel's own word for a refusal is shown up to this length: `not_authorized`.
const LONGEST_WORD: usize = 60;

/// An account or a team at Vercel.
pub struct Vercel<'v> {
    http: &'v reqwest::Client,
    api_url: &'v Url,
    token: SecretString,
    team: Option<&'v str>,
    now: Timestamp,
}

impl<'v> Vercel<'v> {
    /// The account, through `[connections.vercel]`; `whose`: what needs it.
    pub async fn connect(cx: &'v Context, whose: &str) -> Result<Self, Failure> {
        Self::of(cx.world(), cx.now(), whose).await
    }

    /// The account of a world; `now`: the ledger's time.
    pub async fn of(world: &'v World, now: Timestamp, whose: &str) -> Result<Self, Failure> {
        let connection = world
            .vercel()
            .ok_or_else(|| Failure::Discard(anyhow::anyhow!("{whose}; add `[connections.vercel]` with a token")))?;
        let token = world.secret(&connection.token, "resolving Vercel's token").await?;
        let team = connection.team.as_deref();
        Ok(Self { http: world.http(), api_url: &connection.api_url, token, team, now })
    }

    /// `https` everywhere but where the API itself is spoken to without it: at a stub.
    pub fn scheme(&self) -> &str {
        self.api_url.scheme()
    }

    /// Asks for something: `path` begins with the version (`["v13", "deployments", id]`); `what` says for people what is
    /// being done.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &str,
        what: &str,
        advice: &Advice,
    ) -> Result<T, Failure> {
        rest::get(self, path, query, what, advice).await
    }

    /// Has something done.
    pub async fn post(&self, path: &[&str], body: &Value, what: &str, advice: &Advice) -> Sent {
        change(self, Method::POST, (path, ""), Some(body), what, advice).await
    }

    /// The same, with a query: `forceNew=1`.
    pub async fn post_with(&self, path: &[&str], query: &str, body: &Value, what: &str, advice: &Advice) -> Sent {
        change(self, Method::POST, (path, query), Some(body), what, advice).await
    }

    /// Changes something.
    pub async fn patch(&self, path: &[&str], body: &Value, what: &str, advice: &Advice) -> Sent {
        change(self, Method::PATCH, (path, ""), Some(body), what, advice).await
    }

    /// Takes something away.
    pub async fn delete(&self, path: &[&str], what: &str, advice: &Advice) -> Sent {
        change(self, Method::DELETE, (path, ""), None, what, advice).await
    }
}

/// Whether the token of `[connections.vercel]` is taken, and for which team; changes nothing.
pub async fn examine(world: &World, now: Timestamp) -> Result<Vec<Remark>, Failure> {
    let vercel = Vercel::of(world, now, "it is to be looked at").await?;
    let advice = Advice { forbidden: "may not list projects", check: "check `team`" };
    let projects: Projects = vercel.get(&["v9", "projects"], "limit=1", "listing the projects", &advice).await?;
    Ok(vec![if projects.projects.is_empty() {
        Remark::doubtful("the token is taken, and sees no project; check its scope and `team`")
    } else {
        Remark::well("the token is taken, and sees projects")
    }])
}

#[derive(Deserialize)]
struct Projects {
    projects: Vec<Value>,
}

impl Service for Vercel<'_> {
    const NAME: &'static str = "Vercel";

    fn request(&self, method: Method, path: &[&str], query: &str) -> RequestBuilder {
        let mut url = self.api_url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url.set_query((!query.is_empty()).then_some(query));
        if let Some(team) = self.team {
            let name = if team.starts_with("team_") { "teamId" } else { "slug" };
            url.query_pairs_mut().append_pair(name, team);
        }
        self.http.request(method, url).bearer_auth(self.token.expose_secret()).header("accept", "application/json")
    }

    fn span(&self, method: &Method) -> Span {
        outside::vercel(method.as_str(), self.api_url.host_str())
    }

    fn is_limit(&self, status: StatusCode, _: &HeaderMap) -> bool {
        status == StatusCode::TOO_MANY_REQUESTS
    }

    fn next(&self, status: StatusCode, said: &Value, advice: &Advice) -> Option<Refused> {
        let next = match status.as_u16() {
            401 => INVALID.to_owned(),
            403 if said["error"]["invalidToken"] == true => INVALID.to_owned(),
            403 => format!(
                "the token of `[connections.vercel]` {}; it must be allowed for the project's team, and `team` must name it",
                advice.forbidden
            ),
            402 => "the plan of this account does not include it".to_owned(),
            400 | 404 | 409 | 410 | 413 | 422 => advice.check.to_owned(),
            _ => return None,
        };
        let word = said["error"]["code"].as_str().filter(|word| is_word(word));
        let of = word.map(|word| format!(" ({word})")).unwrap_or_default();
        Some(Refused { service: Self::NAME, status, of, next })
    }

    fn now(&self) -> Timestamp {
        self.now
    }
}

const INVALID: &str = "the token of `[connections.vercel]` is not valid; put in a new one and retry the job";

/// Vercel's words for refusals hold nothing private; whatever else stands there is not shown.
fn is_word(text: &str) -> bool {
    text.len() <= LONGEST_WORD && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}
