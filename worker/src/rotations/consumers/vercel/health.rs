//! The address that proves that the app works with a new value: a GET, and what its answer must be like.

use std::time::Duration;

use schemas::{Names, Problem};
use serde::Deserialize;
use url::Url;

use crate::context::Context;
use crate::handler::{Failure, Handler};
use crate::jobs::http::{Expect, Http};
use crate::vercel::Deployment;

/// Between looks at whether a domain leads to the deployment.
const AGAIN: Duration = Duration::from_secs(10);

/// Vercel's own addresses are each one deployment's, or a branch's.
const VERCELS_OWN: &str = ".vercel.app";

/// Such an address as the configuration file spells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthConfig {
    /// An address of the app, behind which the secret is used.
    pub url: String,
    /// What its answer must be like.
    #[serde(default)]
    pub(crate) expect: Expect,
    /// The credentials whose headers are sent too.
    #[serde(default)]
    pub credentials: Option<String>,
    /// So many failures in a row are a failure.
    #[serde(default = "tries")]
    pub tries: u8,
    /// How long to wait between tries.
    #[serde(default = "pause", with = "schemas::period")]
    pub pause: Duration,
    /// An answer that is not there in whole by then is a failure.
    #[serde(default = "timeout", with = "schemas::period")]
    pub timeout: Duration,
}

fn tries() -> u8 {
    10
}

fn pause() -> Duration {
    Duration::from_secs(5)
}

fn timeout() -> Duration {
    Duration::from_secs(10)
}

impl HealthConfig {
    pub(super) fn problems(&self, names: &Names) -> Vec<Problem> {
        self.check().check(names)
    }

    fn check(&self) -> Http {
        Http::get(&self.url, self.expect.clone(), self.credentials.clone(), (self.tries, self.pause, self.timeout))
    }

    /// That it answers as expected, and, where a deployment was made for it, that this is who answers.
    pub(super) async fn prove(&self, cx: &Context, deployment: Option<&Deployment>) -> Result<(), Failure> {
        if let Some(deployment) = deployment {
            self.leads_to(deployment)?;
        }
        self.check().run(cx).await.map(drop)
    }

    /// That the address's domain leads to the deployment: an older one would answer well with the old value.
    fn leads_to(&self, deployment: &Deployment) -> Result<(), Failure> {
        let host = self.host();
        if host == deployment.url || deployment.alias.contains(&host) {
            return Ok(());
        }
        let hint = if host.ends_with(VERCELS_OWN) { "" } else { ", or is not among the project's domains" };
        let reason = format!("{host} does not lead to https://{} yet{hint}", deployment.url);
        Err(Failure::Snooze { wait: AGAIN, reason })
    }

    /// The address's host, with its port where that is not the usual one: a stub's.
    fn host(&self) -> String {
        let whole = if self.url.contains("://") { self.url.clone() } else { format!("https://{}", self.url) };
        let Ok(url) = Url::parse(&whole) else { return self.url.clone() };
        let host = url.host_str().unwrap_or_default();
        url.port().map_or(host.to_owned(), |port| format!("{host}:{port}"))
    }
}
