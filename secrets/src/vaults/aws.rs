//! AWS Secrets Manager.
//!
//! `DescribeSecret` comes first whenever something is changed: it alone says how far an earlier call came. `RotateSecret` is
//! never called: it wants a Lambda, and puts labels where it likes.

use std::time::Duration;

use async_trait::async_trait;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region};
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::config::Credentials;
use aws_sdk_secretsmanager::error::{DisplayErrorContext, ProvideErrorMetadata};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use secrecy::{ExposeSecret, SecretString};

use super::{Described, Label, Promotion, Token, Vault, VaultError};

/// A call, with the client's own retries, must be done within this.
const DEADLINE: Duration = Duration::from_secs(20);

/// A vault in AWS Secrets Manager, with the usual AWS sources of credentials.
pub struct AwsVault {
    client: Client,
}

impl AwsVault {
    /// Opens the vault of a region; `endpoint` is for servers that speak its protocol.
    pub async fn open(region: Option<String>, endpoint: Option<String>) -> Self {
        Self::of(loader(region, endpoint)).await
    }

    /// The same, with an access key instead of the usual sources.
    pub async fn with_key(region: &str, endpoint: &str, id: &str, secret: &SecretString) -> Self {
        let key = Credentials::new(id, secret.expose_secret(), None, None, "configured");
        Self::of(loader(Some(region.to_owned()), Some(endpoint.to_owned())).credentials_provider(key)).await
    }

    async fn of(loader: ConfigLoader) -> Self {
        Self { client: Client::new(&loader.load().await) }
    }
    /// A version's value, by its token or its label.
    async fn get(&self, name: &str, which: Which<'_>) -> Result<SecretString, VaultError> {
        let asked = self.client.get_secret_value().secret_id(name);
        let asked = match which {
            // The stage is always named: some servers answer a request without it by a version that is no longer current.
            Which::Label(label) => asked.version_stage(label.as_str()),
            Which::Version(token) => asked.version_id(token.as_str()),
        };
        let secret = asked.send().await.map_err(said)?;
        secret.secret_string().map(Into::into).ok_or(VaultError::NotFound)
    }

    /// Takes a label off a version.
    async fn unlabel(&self, name: &str, token: &Token, label: Label) -> Result<(), VaultError> {
        let change = self.client.update_secret_version_stage().secret_id(name).version_stage(label.as_str());
        change.remove_from_version_id(token.as_str()).send().await.map_err(said)?;
        Ok(())
    }

    /// Whether the version is there with this value; refused where it has another. AWS refuses that too; not every server
    /// that speaks its protocol does.
    async fn is_there(&self, secret: &Described, token: &Token, value: &SecretString) -> Result<bool, VaultError> {
        if !secret.versions.contains_key(token) {
            return Ok(false);
        }
        let there = self.get(&secret.name, Which::Version(token)).await?;
        if there.expose_secret() == value.expose_secret() { Ok(true) } else { Err(other_value(token)) }
    }
}

/// Which version is asked for.
enum Which<'a> {
    Label(Label),
    Version(&'a Token),
}

#[async_trait]
impl Vault for AwsVault {
    async fn current(&self, name: &str) -> Result<SecretString, VaultError> {
        self.get(name, Which::Label(Label::Current)).await
    }

    async fn value(&self, name: &str, version: &Token) -> Result<SecretString, VaultError> {
        // One without labels may still be there, and may go at any time.
        if !self.describe(name).await?.versions.contains_key(version) {
            return Err(VaultError::NotFound);
        }
        self.get(name, Which::Version(version)).await
    }

    async fn describe(&self, name: &str) -> Result<Described, VaultError> {
        let secret = self.client.describe_secret().secret_id(name).send().await.map_err(said)?;
        let versions = secret.version_ids_to_stages().into_iter().flatten();
        Ok(described(name, versions, secret.rotation_enabled()))
    }

    async fn list(&self) -> Result<Vec<Described>, VaultError> {
        let mut pages = self.client.list_secrets().into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            for secret in page.map_err(said)?.secret_list() {
                let versions = secret.secret_versions_to_stages().into_iter().flatten();
                found.push(described(secret.name().unwrap_or_default(), versions, secret.rotation_enabled()));
            }
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    async fn create(&self, name: &str, token: &Token, value: &SecretString) -> Result<(), VaultError> {
        let exists = || VaultError::Conflict("a secret of that name exists".to_owned());
        match self.describe(name).await {
            Ok(secret) if self.is_there(&secret, token, value).await? => return Ok(()),
            Ok(_) => return Err(exists()),
            Err(VaultError::NotFound) => {}
            Err(error) => return Err(error),
        }
        let asked = self.client.create_secret().name(name).client_request_token(token.as_str());
        match asked.secret_string(value.expose_secret()).send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("ResourceExistsException") => Err(exists()),
            Err(error) => Err(said(error)),
        }
    }

    async fn put_pending(&self, name: &str, token: &Token, value: &SecretString) -> Result<(), VaultError> {
        let secret = self.describe(name).await?;
        secret.ours()?;
        if self.is_there(&secret, token, value).await? {
            return Ok(());
        }
        secret.room_for(token)?;
        let asked = self.client.put_secret_value().secret_id(name).client_request_token(token.as_str());
        // Without the stage it would be current at once.
        let asked = asked.secret_string(value.expose_secret()).version_stages(Label::Pending.as_str());
        match asked.send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("ResourceExistsException") => Err(other_value(token)),
            Err(error) => Err(said(error)),
        }
    }

    async fn promote(&self, name: &str, token: &Token, from: &Token) -> Result<(), VaultError> {
        let secret = self.describe(name).await?;
        secret.ours()?;
        let promotion = secret.promotion(token, from)?;
        if promotion == Promotion::Move {
            // Moving it moves AWSPREVIOUS too. `remove_from` must name the holder: a compare-and-swap.
            let change = self.client.update_secret_version_stage().secret_id(name);
            let change = change.version_stage(Label::Current.as_str()).move_to_version_id(token.as_str());
            let moved = change.remove_from_version_id(from.as_str()).send().await;
            moved.map_err(|error| match error.code() {
                Some("InvalidParameterException") => {
                    VaultError::Conflict(format!("its current version is no longer {from}"))
                }
                _ => said(error),
            })?;
        }
        if promotion == Promotion::Done { Ok(()) } else { self.unlabel(name, token, Label::Pending).await }
    }

    async fn drop_pending(&self, name: &str, token: &Token) -> Result<(), VaultError> {
        let secret = self.describe(name).await?;
        if secret.has(token, Label::Pending) { self.unlabel(name, token, Label::Pending).await } else { Ok(()) }
    }

    async fn drop_previous(&self, name: &str, token: &Token) -> Result<(), VaultError> {
        let secret = self.describe(name).await?;
        if secret.has(token, Label::Previous) { self.unlabel(name, token, Label::Previous).await } else { Ok(()) }
    }
}

fn loader(region: Option<String>, endpoint: Option<String>) -> ConfigLoader {
    let http =
        aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
    let timeouts = TimeoutConfig::builder().operation_timeout(DEADLINE).connect_timeout(DEADLINE / 4).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http).timeout_config(timeouts);
    if let Some(region) = region {
        loader = loader.region(Region::new(region));
    }
    if let Some(endpoint) = endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    loader
}

fn described<'a>(
    name: &str,
    versions: impl Iterator<Item = (&'a String, &'a Vec<String>)>,
    managed: Option<bool>,
) -> Described {
    let ours = |labels: &Vec<String>| labels.iter().filter_map(|label| Label::read(label)).collect();
    let versions = versions.filter_map(|(token, labels)| Some((token.parse().ok()?, ours(labels))));
    let versions = versions.filter(|(_, labels): &(_, std::collections::BTreeSet<_>)| !labels.is_empty()).collect();
    Described { name: name.to_owned(), versions, managed: managed.unwrap_or_default() }
}

fn other_value(token: &Token) -> VaultError {
    VaultError::Conflict(format!("its version {token} has another value, and versions do not change"))
}

/// What the service answered, in our words. Its own never hold a value.
fn said<E>(error: E) -> VaultError
where
    E: ProvideErrorMetadata + std::error::Error,
{
    match error.code() {
        Some("ResourceNotFoundException") => VaultError::NotFound,
        Some(
            code @ ("AccessDeniedException"
            | "DecryptionFailure"
            | "EncryptionFailure"
            | "InvalidParameterException"
            | "InvalidRequestException"
            | "LimitExceededException"
            | "MalformedPolicyDocumentException"
            | "ValidationException"),
        ) => VaultError::Refused(match error.message() {
            // What is said of a parameter may quote it.
            Some(message) if !code.starts_with("InvalidParameter") && !code.starts_with("Validation") => {
                format!("{code}: {message}")
            }
            _ => code.to_owned(),
        }),
        _ => VaultError::Unavailable(DisplayErrorContext(&error).to_string()),
    }
}
