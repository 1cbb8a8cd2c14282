//! `http`: makes a request and says whether the answer is the expected one: smoke tests, health checks, calls of one's own
//! programs.
//!
//! It asks up to `tries` times, with `pause` between them. The first answer that is as expected ends it, well; only when
//! all of them failed, in a row and within one attempt, the job is discarded. So a failed check is never retried by the
//! queue: how patient it is stands in its arguments. What is retried is only what is on our side: a vault that is away.
//!
//! Twice is safe: GET, HEAD, PUT and DELETE are so by their definition (RFC 9110, 9.2.2), and an interrupted check begins
//! anew. POST and PATCH carry the job's id as `Idempotency-Key`, the same in every try, and each try is a step: one of
//! which nobody knows whether it had its effect (killed, timed out, cut off, answered 5xx) is made again only with
//! `on_unknown = "repeat"`.

mod call;
mod expect;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use reqwest::header::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use schemas::{Names, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::info;
use url::Url;

use super::tries::{self, Next};
use crate::channels::OnUnknown;
use crate::context::Context;
use crate::handler::{Failure, Handler, Output};
use call::{Call, Tried};
pub(crate) use expect::Expect;

/// All tries and pauses together take no longer.
const LONGEST: Duration = Duration::from_mins(20);

/// The arguments of `http`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Http {
    /// The address; without a scheme, `https://` is meant.
    url: String,
    /// What is asked.
    #[serde(default)]
    method: Method,
    /// Headers that are no secrets; those that are belong into `[credentials.NAME]`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    /// The credentials whose headers are sent too, as the configuration names them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credentials: Option<String>,
    /// A body, sent as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<Value>,
    /// What the answer must be like.
    #[serde(default)]
    expect: Expect,
    /// How many redirects are followed, at most 10; of GET and HEAD alone.
    #[serde(default)]
    redirects: u8,
    /// So many failures in a row are a failure.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    tries: u8,
    /// How long to wait between tries.
    #[serde(default = "pause", with = "schemas::period")]
    #[schemars(with = "String")]
    pause: Duration,
    /// An answer that is not there in whole by then is a failure.
    #[serde(default = "timeout", with = "schemas::period")]
    #[schemars(with = "String")]
    timeout: Duration,
    /// Of POST and PATCH: what to do when nobody knows whether a request had its effect.
    #[serde(default = "OnUnknown::report")]
    on_unknown: OnUnknown,
}

/// A method of HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Method {
    /// Reads.
    #[default]
    Get,
    /// Reads, without the body.
    Head,
    /// Puts something in its place.
    Put,
    /// Takes it away.
    Delete,
    /// Does anything.
    Post,
    /// Changes anything.
    Patch,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Post => "POST",
            Self::Patch => "PATCH",
        }
    }

    /// Whether doing it twice is as doing it once.
    fn is_idempotent(self) -> bool {
        !matches!(self, Self::Post | Self::Patch)
    }

    fn follows_redirects(self) -> bool {
        matches!(self, Self::Get | Self::Head)
    }
}

fn one() -> u8 {
    1
}

fn pause() -> Duration {
    Duration::from_secs(5)
}

fn timeout() -> Duration {
    Duration::from_secs(10)
}

#[async_trait]
impl Handler for Http {
    const KIND: &'static str = "http";
    const SUMMARY: &'static str = "makes a request and says whether the answer is the expected one";
    const RETRY: RetryPolicy = RetryPolicy::PROMPT;
    const TIME_LIMIT: Duration = Duration::from_mins(30);

    fn check(&self, names: &Names) -> Vec<Problem> {
        let mut problems = self.expect.problems();
        if let Err(problem) = self.address() {
            problems.push(problem.within("url"));
        }
        if let Some(name) = &self.credentials
            && !names.credentials.contains(name)
        {
            let known = names.credentials.iter().map(String::as_str);
            problems.push(Problem::unknown("credentials", name, known).within("credentials"));
        }
        for (name, value) in &self.headers {
            problems.extend(header_problem(name, value).map(|problem| problem.within(name).within("headers")));
        }
        if self.redirects > 0 && (!self.method.follows_redirects() || self.redirects > 10) {
            let problem = Problem::new("at most 10 redirects are followed, and of GET and HEAD alone");
            problems.push(problem.within("redirects"));
        }
        if self.tries == 0 {
            problems.push(Problem::new("there must be at least one try").within("tries"));
        }
        let tries = u32::from(self.tries);
        if self.timeout.saturating_mul(tries) + self.pause.saturating_mul(tries.saturating_sub(1)) > LONGEST {
            problems.push(Problem::new("all tries and pauses together take more than 20 minutes").within("tries"));
        }
        problems
    }

    fn output() -> Value {
        json!({"status": null, "millis": null, "tries": null, "excerpt": null})
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let call = Call::prepare(self, cx).await?;
        let mut failures = 0;
        loop {
            let step = if self.method.is_idempotent() {
                None
            } else {
                match tries::next(cx, "request", self.on_unknown).await? {
                    Next::Done(output) => return Ok(output),
                    Next::Try(step) => Some(step),
                }
            };
            let (why, pause) = match call.once(failures + 1).await? {
                Tried::Passed(output) => {
                    if let Some(step) = step {
                        step.done(&output).await?;
                    }
                    return Ok(output);
                }
                Tried::Failed { why, in_doubt, after } => {
                    if let Some(step) = step {
                        step.not_done().await?;
                        if in_doubt && self.on_unknown == OnUnknown::Report {
                            return Err(tries::unknown(cx, &format!("{} {}: {why}", self.method.name(), call.place())));
                        }
                    }
                    (why, self.pause.max(after))
                }
            };
            failures += 1;
            if failures >= self.tries.into() {
                return Err(self.given_up(&call, failures, &why));
            }
            info!(tries = failures, "{why}; trying again");
            tokio::time::sleep(pause).await;
        }
    }
}

impl Http {
    /// A check of an address: so many tries, with such pauses, each within such a time.
    pub(crate) fn get(
        url: &str,
        expect: Expect,
        credentials: Option<String>,
        (tries, pause, timeout): (u8, Duration, Duration),
    ) -> Self {
        Self {
            url: url.to_owned(),
            method: Method::Get,
            headers: BTreeMap::new(),
            credentials,
            body: None,
            expect,
            redirects: 0,
            tries,
            pause,
            timeout,
            on_unknown: OnUnknown::Report,
        }
    }

    /// The address as it is called.
    fn address(&self) -> Result<Url, Problem> {
        let whole = if self.url.contains("://") { self.url.clone() } else { format!("https://{}", self.url) };
        let url = Url::parse(&whole).map_err(|error| Problem::new(format!("this is no address: {error}")))?;
        if !matches!(url.scheme(), "https" | "http") || url.host().is_none() {
            return Err(Problem::new("this is no `https://` or `http://` address"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            let help = "put an `authorization` header into [credentials.NAME]";
            return Err(Problem::new("a secret stands in the address").help(help));
        }
        Ok(url)
    }

    fn given_up(&self, call: &Call<'_>, failures: u32, why: &str) -> Failure {
        let times = if failures > 1 { format!(" {failures} times in a row, the last time") } else { String::new() };
        Failure::Discard(anyhow::anyhow!("{} {} failed{times}: {why}", self.method.name(), call.place()))
    }
}

fn header_problem(name: &str, value: &str) -> Option<Problem> {
    if value.contains("${") {
        let help = "put the header into [credentials.NAME] and write `credentials = \"NAME\"` here";
        return Some(Problem::new("a job's arguments hold no secrets and no references to them").help(help));
    }
    let fits = HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok();
    (!fits).then(|| Problem::new("this cannot be sent as a header"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(args: Value) -> Vec<String> {
        let names = Names { credentials: ["app".to_owned()].into(), ..Names::default() };
        let http: Http = serde_json::from_value(args).unwrap();
        http.check(&names).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_may_come_without_a_scheme_and_never_with_a_password() {
        assert!(problems(json!({"url": "app.example.com/health"})).is_empty());
        assert!(problems(json!({"url": "http://127.0.0.1:3000"})).is_empty());
        assert!(problems(json!({"url": "ftp://app.example.com"}))[0].contains("no `https://`"));
        assert!(problems(json!({"url": "https://me:pw@app.example.com"}))[0].contains("[credentials.NAME]"));
        assert!(problems(json!({"url": "https://"}))[0].starts_with("url: this is no address"));
    }

    #[test]
    fn secrets_and_references_to_them_have_no_place_in_the_arguments() {
        let headers = json!({"authorization": "Bearer ${env:TOKEN}", "x-ok": "yes", "x bad": "no"});
        let found = problems(json!({"url": "a.test", "headers": headers}));
        assert!(found[0].starts_with("headers.authorization: a job's arguments hold no secrets"), "{found:?}");
        assert_eq!(found[1], "headers.x bad: this cannot be sent as a header");
        let unknown = problems(json!({"url": "a.test", "credentials": "ap"}));
        assert_eq!(unknown, ["credentials: there is no credentials named `ap` (did you mean `app`?)"]);
    }

    #[test]
    fn a_check_that_takes_too_long_or_follows_what_it_should_not_is_a_problem() {
        assert!(problems(json!({"url": "a.test", "tries": 5, "pause": "30s", "redirects": 3})).is_empty());
        assert!(problems(json!({"url": "a.test", "tries": 0}))[0].starts_with("tries:"));
        assert!(problems(json!({"url": "a.test", "tries": 20, "pause": "5m"}))[0].contains("more than 20 minutes"));
        assert!(problems(json!({"url": "a.test", "redirects": 1, "method": "POST"}))[0].starts_with("redirects:"));
        assert!(serde_json::from_value::<Http>(json!({"url": "a.test", "method": "get"})).is_err());
    }
}
