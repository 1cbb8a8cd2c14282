//! The world outside: the databases, stores, channels and connections that are configured, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemas::{Catalog, LimitConfig, Names, Runbook};
use secrets::vaults::Vault;
use secrets::{Resolver, SecretString, SecretText};
use serde_json::Value;

use crate::backups::Seal;
use crate::channels::{Channel, ChannelConfig, Route};
use crate::credentials::CredentialsConfig;
use crate::databases::{Database, DatabaseConfig};
use crate::handler::{Failure, OrFail};
use crate::programs::ProgramConfig;
use crate::rotations::RotationConfig;
use crate::stores::{Store, StoreConfig};

/// What is configured.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct WorldConfig {
    pub databases: BTreeMap<String, DatabaseConfig>,
    pub stores: BTreeMap<String, StoreConfig>,
    pub channels: BTreeMap<String, ChannelConfig>,
    pub credentials: BTreeMap<String, CredentialsConfig>,
    pub programs: BTreeMap<String, ProgramConfig>,
    pub rotations: BTreeMap<String, RotationConfig>,
    pub connections: Connections,
    pub limits: BTreeMap<String, LimitConfig>,
    pub sources: BTreeSet<String>,
    pub runbooks: Arc<BTreeMap<String, Runbook>>,
}

/// Accounts at services that jobs call.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    /// GitHub, for migrations folders at a commit.
    pub github: Option<GithubConnection>,
    /// Vercel, for deployments and what belongs to them.
    pub vercel: Option<VercelConnection>,
}

/// An account at GitHub.
#[derive(Clone, Debug)]
pub struct GithubConnection {
    /// A token that may read the repositories' contents.
    pub token: secrets::SecretText,
    /// `https://api.github.com`, or GitHub Enterprise Server's `https://HOST/api/v3`.
    pub api_url: url::Url,
}

/// An account or a team at Vercel.
#[derive(Clone, Debug)]
pub struct VercelConnection {
    /// An access token.
    pub token: secrets::SecretText,
    /// The team that the projects belong to: its id (`team_...`) or its slug; none for a personal account.
    pub team: Option<String>,
    /// `https://api.vercel.com`.
    pub api_url: url::Url,
}

/// Opens what is configured. Secrets are resolved anew for each attempt, through the resolver's short cache.
pub struct World {
    config: WorldConfig,
    catalog: Catalog,
    secrets: Arc<Resolver>,
    http: reqwest::Client,
    inlet: Option<Arc<dyn Inlet>>,
}

/// The producer's way in, for what a job finds at a sender and what never came by itself.
#[async_trait]
pub trait Inlet: Send + Sync {
    /// Books what the sender's own webhook would have said in this body; whether it was not known yet.
    async fn take(&self, source: &str, body: &Value) -> Result<bool, Failure>;
}

impl World {
    /// A world of the given configuration. Every HTTP call of a job goes through `http`.
    pub fn new(config: WorldConfig, secrets: Arc<Resolver>, http: reqwest::Client) -> Self {
        let catalog = crate::jobs::registry().catalog(config.names()).with_limits(config.limits.clone());
        Self { config, catalog, secrets, http, inlet: None }
    }

    /// The same world, with the producer's way in.
    #[must_use]
    pub fn with_inlet(self, inlet: Arc<dyn Inlet>) -> Self {
        Self { inlet: Some(inlet), ..self }
    }

    /// The producer's way in.
    pub fn inlet(&self) -> Result<&dyn Inlet, Failure> {
        let missing = || Failure::Discard(anyhow::anyhow!("this worker was started without a way in for events"));
        self.inlet.as_deref().ok_or_else(missing)
    }

    /// The job kinds, for handlers that make jobs.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The database of that name.
    pub async fn database(&self, name: &str) -> Result<Box<dyn Database>, Failure> {
        let config = self.config.databases.get(name).ok_or_else(|| unknown("database", name))?;
        crate::databases::open(name, config, &self.secrets).await
    }

    /// How that database is configured.
    pub fn database_config(&self, name: &str) -> Result<&DatabaseConfig, Failure> {
        self.config.databases.get(name).ok_or_else(|| unknown("database", name))
    }

    /// The store of that name.
    pub async fn store(&self, name: &str) -> Result<Box<dyn Store>, Failure> {
        let config = self.config.stores.get(name).ok_or_else(|| unknown("store", name))?;
        crate::stores::open(name, config, &self.secrets).await
    }

    /// For whom that store's backups are encrypted, and what opens them.
    pub async fn seal(&self, name: &str) -> Result<Seal, Failure> {
        Seal::of(name, self.store_config(name)?, &self.secrets).await
    }

    /// How that store is configured.
    pub fn store_config(&self, name: &str) -> Result<&StoreConfig, Failure> {
        self.config.stores.get(name).ok_or_else(|| unknown("store", name))
    }

    /// The channel of that name.
    pub async fn channel(&self, name: &str) -> Result<Box<dyn Channel>, Failure> {
        let config = self.config.channels.get(name).ok_or_else(|| unknown("channel", name))?;
        crate::channels::open(name, config, &self.secrets, &self.http).await
    }

    /// Whom the channel of that name tells, where it is a router.
    pub fn route(&self, name: &str) -> Option<&Route> {
        self.config.channels.get(name)?.route.as_ref()
    }

    /// The GitHub connection, if one is configured.
    pub fn github(&self) -> Option<&GithubConnection> {
        self.config.connections.github.as_ref()
    }

    /// The Vercel connection, if one is configured.
    pub fn vercel(&self) -> Option<&VercelConnection> {
        self.config.connections.vercel.as_ref()
    }

    /// How the credentials of that name are configured.
    pub fn credentials(&self, name: &str) -> Result<&CredentialsConfig, Failure> {
        self.config.credentials.get(name).ok_or_else(|| unknown("credentials", name))
    }

    /// How the program of that name is configured.
    pub fn program(&self, name: &str) -> Result<&ProgramConfig, Failure> {
        self.config.programs.get(name).ok_or_else(|| unknown("program", name))
    }

    /// How the rotation of that name is configured.
    pub fn rotation(&self, name: &str) -> Result<&RotationConfig, Failure> {
        self.config.rotations.get(name).ok_or_else(|| unknown("rotation", name))
    }

    /// The vault.
    pub fn vault(&self) -> Result<&Arc<dyn Vault>, Failure> {
        let none =
            || anyhow::anyhow!("there is no vault in this worker's configuration: add [vault] and retry the job");
        self.secrets.vault().ok_or_else(|| Failure::Discard(none()))
    }

    /// The runbook of that name.
    pub fn runbook(&self, name: &str) -> Result<&Runbook, Failure> {
        self.config.runbooks.get(name).ok_or_else(|| unknown("runbook", name))
    }

    /// A secret's value. What the vault does not have stays away; what it could not answer may come.
    pub async fn secret(&self, text: &SecretText, doing: &str) -> Result<SecretString, Failure> {
        match self.secrets.resolve(text).await {
            Err(error) if !error.is_transient() => Err(error).or_discard(doing),
            resolved => resolved.or_retry(doing),
        }
    }

    /// Resolves secrets.
    pub fn secrets(&self) -> &Resolver {
        &self.secrets
    }

    /// The HTTP client: one for all calls.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }
}

impl WorldConfig {
    /// The names in it, for checks of arguments.
    pub fn names(&self) -> Names {
        Names {
            databases: self.databases.keys().cloned().collect(),
            stores: self.stores.keys().cloned().collect(),
            channels: self.channels.keys().cloned().collect(),
            credentials: self.credentials.keys().cloned().collect(),
            programs: self.programs.keys().cloned().collect(),
            sources: self.sources.clone(),
            rotations: self.rotations.keys().cloned().collect(),
            runbooks: self
                .runbooks
                .iter()
                .map(|(name, it)| (name.clone(), it.inputs().keys().cloned().collect()))
                .collect(),
        }
    }
}

/// The HTTP client of a process: TLS by rustls with ring, no redirects (a webhook's answer is its own), a deadline for
/// each call.
///
/// # Panics
///
/// If the TLS library cannot be set up, which is a mistake in the build.
pub fn http_client() -> reqwest::Client {
    // Err only says that a provider is installed already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("nightporter/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(5)) // below each call's own deadline, so that one can tell them apart
        .timeout(Duration::from_mins(1))
        .build()
        .expect("the TLS library is set up")
}

fn unknown(what: &str, name: &str) -> Failure {
    Failure::Discard(anyhow::anyhow!(
        "no {what} named `{name}` is configured in this worker; add it to the configuration and retry the job"
    ))
}
