//! A service's REST API: one request, its deadline, and what its answer means. What GitHub's and Vercel's have in common.

use std::time::Duration;

use reqwest::header::{HeaderMap, LINK};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use schemas::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::{Instrument, Span};
use url::Url;

use crate::handler::{Failure, OrFail};

/// Each request.
const DEADLINE: Duration = Duration::from_secs(30);

/// An answer of a refusal is read so far.
const LONGEST_REFUSAL: usize = 16 * 1024;

/// What a person can do when the service refuses.
pub struct Advice {
    /// Against 403: what the token may not do, and the right that it lacks.
    pub forbidden: &'static str,
    /// Against 404, 409 and 422.
    pub check: &'static str,
}

/// What became of a request that changes something.
pub enum Sent {
    /// It was done; the answer's body, null where there is none.
    Done(Value),
    /// It was refused, and not done.
    Refused(Failure),
    /// No answer, or one that says nothing: nobody knows.
    Unknown(Failure),
}

/// A refusal that stays. It is found in a failure by [`status_of`].
#[derive(Debug, thiserror::Error)]
#[error("{service} answered {status}{of}: {next}")]
pub struct Refused {
    /// Who refused.
    pub service: &'static str,
    /// With which status.
    pub status: StatusCode,
    /// Of what, or the service's own word; begins with a space or is empty.
    pub of: String,
    /// What a person can do about it.
    pub next: String,
}

/// The status with which the service refused, where a refusal that stays is what failed.
pub fn status_of(failure: &Failure) -> Option<u16> {
    let (Failure::Discard(error) | Failure::Retry { error, .. }) = failure else { return None };
    error.downcast_ref::<Refused>().map(|refused| refused.status.as_u16())
}

/// A service, as one token may use it.
pub trait Service: Sync {
    /// Its name, for people.
    const NAME: &'static str;

    /// A request, with the token and what the service wants in its headers.
    fn request(&self, method: Method, path: &[&str], query: &str) -> RequestBuilder;

    /// Its span.
    fn span(&self, method: &Method) -> Span;

    /// Whether an answer says that this token asks too often.
    fn is_limit(&self, status: StatusCode, headers: &HeaderMap) -> bool;

    /// What a person can do about a refusal that stays; none for one that may pass.
    fn next(&self, status: StatusCode, said: &Value, advice: &Advice) -> Option<Refused>;

    /// The ledger's time, for limits that end at a time.
    fn now(&self) -> Timestamp;
}

/// Asks for something; `what` says for people what is being done.
pub async fn get<T: DeserializeOwned>(
    service: &impl Service,
    path: &[&str],
    query: &str,
    what: &str,
    advice: &Advice,
) -> Result<T, Failure> {
    Ok(get_page(service, path, query, what, advice).await?.0)
}

/// Asks for something that may go on elsewhere: with it, the `cursor` of the next page, where the answer links to one
/// (RFC 8288, as GitHub's do).
pub async fn get_page<T: DeserializeOwned>(
    service: &impl Service,
    path: &[&str],
    query: &str,
    what: &str,
    advice: &Advice,
) -> Result<(T, Option<String>), Failure> {
    let request = service.request(Method::GET, path, query);
    let response = send(service, &Method::GET, request).await.or_retry(what)?;
    if !response.status().is_success() {
        return Err(refusal(service, response, advice).await.context(what));
    }
    let links = response.headers().get_all(LINK).iter().filter_map(|links| links.to_str().ok());
    let next = links.flat_map(|links| links.split(',')).find_map(cursor_of_next);
    Ok((response.json().await.map_err(reqwest::Error::without_url).or_retry(what)?, next))
}

/// A query of names and values.
pub(crate) fn query_of<'p>(pairs: impl IntoIterator<Item = (&'p str, String)>) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// The `cursor` of the address in one link, if it leads to the next page.
fn cursor_of_next(link: &str) -> Option<String> {
    let (address, relations) = link.trim().strip_prefix('<')?.split_once('>')?;
    let leads_on = relations.split(';').any(|relation| relation.trim().replace('"', "") == "rel=next");
    let url = Url::parse(address).ok().filter(|_| leads_on)?;
    url.query_pairs().find_map(|(name, value)| (name == "cursor").then(|| value.into_owned()))
}

/// Has something done.
pub async fn change(
    service: &impl Service,
    method: Method,
    (path, query): (&[&str], &str),
    body: Option<&Value>,
    what: &str,
    advice: &Advice,
) -> Sent {
    let request = service.request(method.clone(), path, query);
    let request = match body {
        Some(body) => request.json(body),
        None => request,
    };
    let response = match send(service, &method, request).await {
        Ok(response) => response,
        Err(error) if error.is_connect() => return Sent::Refused(Failure::retry(error).context(what)),
        Err(error) => return Sent::Unknown(Failure::retry(error).context(what)),
    };
    let status = response.status();
    if status.is_success() {
        let bytes = response.bytes().await.unwrap_or_default(); // It is done, whatever it says.
        return Sent::Done(serde_json::from_slice(&bytes).unwrap_or_default());
    }
    let refusal = refusal(service, response, advice).await.context(what);
    if status.is_server_error() { Sent::Unknown(refusal) } else { Sent::Refused(refusal) }
}

async fn send(service: &impl Service, method: &Method, request: RequestBuilder) -> Result<Response, reqwest::Error> {
    let sent = request.timeout(DEADLINE).send().instrument(service.span(method)).await;
    sent.map_err(reqwest::Error::without_url)
}

async fn refusal<S: Service>(service: &S, mut response: Response, advice: &Advice) -> Failure {
    let status = response.status();
    if service.is_limit(status, response.headers()) {
        let error = anyhow::anyhow!("{} limits this token's requests for now ({status})", S::NAME);
        return Failure::Retry { error, after: Some(wait(response.headers(), service.now())) };
    }
    let said = beginning_of(&mut response).await;
    match service.next(status, &serde_json::from_slice(&said).unwrap_or_default(), advice) {
        Some(refused) => Failure::Discard(refused.into()),
        None => Failure::retry(anyhow::anyhow!("{} answered {status}", S::NAME)),
    }
}

/// The status has come; what cannot be read of the body does not matter.
async fn beginning_of(response: &mut Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST_REFUSAL {
            break;
        }
    }
    body
}

/// What a limit asks for: `retry-after`, or the time when the quota is new; else a minute.
fn wait(headers: &HeaderMap, now: Timestamp) -> Duration {
    let after = number(headers, "retry-after");
    let reset = number(headers, "x-ratelimit-reset").map(|at| at - now.timestamp());
    let seconds = after.or(reset).unwrap_or(60).clamp(1, 3600);
    Duration::from_secs(seconds.unsigned_abs())
}

/// A header that is a whole number.
pub fn number(headers: &HeaderMap, name: &str) -> Option<i64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_where_the_link_says() {
        let cursor = |link: &str| link.split(',').find_map(cursor_of_next);
        let link = "<https://api.github.com/x?cursor=v1_1&per_page=2>; rel=\"prev\", \
                    <https://api.github.com/x?per_page=2&cursor=v1_7%3D>; rel=\"next\"";
        assert_eq!(cursor(link).as_deref(), Some("v1_7="));
        assert_eq!(cursor("<https://api.github.com/x?cursor=v1_1>; rel=\"prev\""), None);
        for odd in ["", "<", "<>; rel=next", "<https://a.test/?page=2>; rel=\"next\"", "https://a.test; rel=\"next\""] {
            assert_eq!(cursor(odd), None, "{odd}");
        }
    }
}
