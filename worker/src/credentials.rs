//! Credentials: secret headers for `http` jobs, and the addresses that they may be sent to.
//!
//! They stand in the configuration and not in a job's arguments: arguments come from events, programs and operators, and
//! a reference in them would have any secret of this machine sent to any address by whoever may start a job.

use std::collections::BTreeMap;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use schemas::Problem;
use secrets::{ExposeSecret, SecretText};
use serde::Deserialize;
use url::Url;

use crate::context::Context;
use crate::handler::{Failure, OrFail};
use crate::mask::Mask;
use crate::rest::status_of;
use crate::vercel::{Deployment, Vercel};

/// Credentials as the configuration file spells them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialsConfig {
    /// Where they may be sent: `https://app.example.com`, with a port where it is not the usual one. One `*` stands for
    /// any letters, digits and hyphens: `https://app-*-acme.vercel.app`.
    #[serde(default)]
    pub to: Vec<Origin>,
    /// A project at Vercel, `prj_...`: they may be sent to its deployments' own addresses, as Vercel's API tells them.
    #[serde(default)]
    pub deployments_of: Option<String>,
    /// The headers, by name.
    pub headers: BTreeMap<String, SecretText>,
}

/// An address without a path, with at most one `*` in its host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Origin {
    scheme: String,
    /// What stands before the star and behind it; without a star, the whole host.
    host: (String, Option<String>),
    port: Option<u16>,
}

impl TryFrom<String> for Origin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no address like `https://app.example.com` (no path; at most one `*`)");
        // A star is no part of a URL's host: a letter takes its place while it is read.
        let url = Url::parse(&text.replacen('*', "x", 1)).map_err(|_| wrong())?;
        let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        let named = url.username().is_empty() && url.password().is_none();
        let authority = text.split_once("://").map(|(_, rest)| rest.trim_end_matches('/')).ok_or_else(wrong)?;
        let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let host = authority.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(authority, |(host, _)| host);
        if !matches!(url.scheme(), "https" | "http")
            || !bare
            || !named
            || host.is_empty()
            || host.matches('*').count() > 1
        {
            return Err(wrong());
        }
        let host = host.to_ascii_lowercase();
        let host = match host.split_once('*') {
            Some((before, after)) => (before.to_owned(), Some(after.to_owned())),
            None => (host, None),
        };
        Ok(Self { scheme: url.scheme().to_owned(), host, port: url.port() })
    }
}

impl Origin {
    /// Whether an address is below it.
    fn covers(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let fits = match &self.host {
            (whole, None) => host == whole,
            (before, Some(after)) => host
                .strip_prefix(before.as_str())
                .and_then(|rest| rest.strip_suffix(after.as_str()))
                .is_some_and(|middle| {
                    !middle.is_empty() && middle.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                }),
        };
        fits && url.scheme() == self.scheme && url.port() == self.port
    }
}

impl CredentialsConfig {
    /// What is wrong with them beyond their types.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.deployments_of.as_ref().is_some_and(|project| !project.starts_with("prj_")) {
            let help = "write its id, `prj_...`: names can be taken over";
            problems.push(Problem::new("this is no project's id").help(help).within("deployments_of"));
        }
        if self.to.is_empty() && self.deployments_of.is_none() {
            let help = "write `to = [\"https://app.example.com\"]`, or `deployments_of = \"prj_...\"`";
            problems.push(Problem::new("they may be sent nowhere").help(help).within("to"));
        }
        if self.headers.is_empty() {
            problems.push(Problem::new("there is no header").within("headers"));
        }
        for name in self.headers.keys() {
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                problems.push(Problem::new("this is no header's name").within(name).within("headers"));
            }
        }
        problems
    }
}

/// Credentials with their values.
pub(crate) struct Credentials {
    name: String,
    to: Vec<Origin>,
    /// The own address of the deployment that is called, where Vercel says that it is of the project.
    deployment: Option<url::Origin>,
    headers: HeaderMap,
}

impl Credentials {
    /// Resolves the credentials of that name for calls of an address; their values are added to the mask.
    pub(crate) async fn of(name: &str, cx: &Context, url: &Url, mask: &mut Mask) -> Result<Self, Failure> {
        let world = cx.world();
        let config = world.credentials(name)?;
        let mut headers = HeaderMap::new();
        for (header, text) in &config.headers {
            let doing = format!("resolving the header `{header}` of the credentials `{name}`");
            let secret = world.secret(text, &doing).await?;
            mask.add(&secret);
            let key = HeaderName::from_bytes(header.as_bytes()).or_discard("reading a header's name")?;
            let value = HeaderValue::from_str(secret.expose_secret()).map_err(|_| {
                Failure::Discard(anyhow::anyhow!(
                    "the header `{header}` of the credentials `{name}` holds what no header may (a line break?); correct \
                     the secret and retry the job"
                ))
            });
            let mut value = value?;
            value.set_sensitive(true);
            headers.insert(key, value);
        }
        let mut found = Self { name: name.to_owned(), to: config.to.clone(), deployment: None, headers };
        if let Some(project) = &config.deployments_of
            && found.for_address(url).is_err()
        {
            found.deployment = own_address(cx, project, url).await?;
        }
        Ok(found)
    }

    /// The headers for an address; refused where they may not be sent.
    pub(crate) fn for_address(&self, url: &Url) -> Result<&HeaderMap, Failure> {
        let is_deployments = self.deployment.as_ref().is_some_and(|origin| *origin == url.origin());
        if is_deployments || self.to.iter().any(|origin| origin.covers(url)) {
            return Ok(&self.headers);
        }
        Err(Failure::Discard(anyhow::anyhow!(
            "the credentials `{}` may not be sent to {}; if they belong there, add it to their `to`",
            self.name,
            url.origin().ascii_serialization()
        )))
    }
}

/// The origin of an address, if it is a deployment's own and the deployment is of the project: not by its looks, which
/// anybody's project can have, but by Vercel's word.
async fn own_address(cx: &Context, project: &str, url: &Url) -> Result<Option<url::Origin>, Failure> {
    let vercel = Vercel::connect(cx, "these credentials are for a project's deployments").await?;
    let Some(host) = url.host_str() else { return Ok(None) };
    let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let deployment = match Deployment::read(&vercel, &host).await {
        Err(failure) if status_of(&failure) == Some(404) => return Ok(None),
        deployment => deployment?,
    };
    let is_own = deployment.url == host && deployment.project() == project && url.scheme() == vercel.scheme();
    Ok(is_own.then(|| url.origin()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(origin: &str, url: &str) -> bool {
        Origin::try_from(origin.to_owned()).unwrap().covers(&Url::parse(url).unwrap())
    }

    #[test]
    fn an_origin_covers_its_scheme_host_and_port_and_nothing_else() {
        assert!(covers("https://app.example.com", "https://APP.example.com/health?x=1"));
        assert!(covers("https://app.example.com/", "https://app.example.com:443/"));
        assert!(covers("https://app.example.com:443", "https://app.example.com/"));
        assert!(covers("http://[::1]:3000", "http://[::1]:3000/"));
        assert!(covers("http://127.0.0.1:3000", "http://127.0.0.1:3000/x"));
        for other in [
            "http://app.example.com/",
            "https://app.example.com:8443/",
            "https://app.example.com.evil.test/",
            "https://evil.test/app.example.com",
            "https://app.example.com@evil.test/",
        ] {
            assert!(!covers("https://app.example.com", other), "{other}");
        }
    }

    #[test]
    fn a_star_stands_for_one_label_or_a_part_of_it() {
        let origin = "https://app-*-acme.vercel.app";
        assert!(covers(origin, "https://app-x1y2-acme.vercel.app/health"));
        for other in [
            "https://app--acme.vercel.app.evil.test/",
            "https://app-.evil.test/x-acme.vercel.app",
            "https://app-x.y-acme.vercel.app/",
            "https://app-acme.vercel.app/",
            "https://app-x-evil.vercel.app/",
        ] {
            assert!(!covers(origin, other), "{other}");
        }
    }

    #[test]
    fn what_is_no_address_without_a_path_is_refused() {
        for wrong in
            ["app.example.com", "https://", "https://a.test/path", "https://*.*.test", "ftp://a", "https://u@a"]
        {
            assert!(Origin::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
