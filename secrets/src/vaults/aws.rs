//! AWS Secrets Manager.

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::error::{DisplayErrorContext, ProvideErrorMetadata};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use secrecy::SecretString;

use super::{Vault, VaultError};

/// A vault in AWS Secrets Manager, with the usual AWS sources of credentials.
pub struct AwsVault {
    client: Client,
}

impl AwsVault {
    /// Opens the vault of a region; `endpoint` is for servers that speak its protocol.
    pub async fn open(region: Option<String>, endpoint: Option<String>) -> Self {
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
        if let Some(region) = region {
            loader = loader.region(Region::new(region));
        }
        if let Some(endpoint) = endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        Self { client: Client::new(&loader.load().await) }
    }
}

#[async_trait]
impl Vault for AwsVault {
    async fn current(&self, name: &str) -> Result<SecretString, VaultError> {
        // The stage is always named: some servers answer a request without it by a version that is no longer current.
        let asked = self.client.get_secret_value().secret_id(name).version_stage("AWSCURRENT").send().await;
        let secret = asked.map_err(|error| match error.code() {
            Some("ResourceNotFoundException") => VaultError::NotFound,
            Some(code @ ("AccessDeniedException" | "DecryptionFailure" | "InvalidRequestException")) => {
                VaultError::Refused(code.to_owned())
            }
            _ => VaultError::Unavailable(DisplayErrorContext(&error).to_string()),
        })?;
        secret.secret_string().map(Into::into).ok_or(VaultError::NotFound)
    }
}
