//! Vaults: where secrets lie.

mod aws;

use async_trait::async_trait;
use secrecy::SecretString;

pub use aws::AwsVault;

/// Why a vault gave no value. Never holds one.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// It is away; asking again may help.
    #[error("it is unavailable: {0}")]
    Unavailable(String),
    /// It has no secret of that name, or no current version of it.
    #[error("it has no such secret")]
    NotFound,
    /// It does not let us read it.
    #[error("it refuses: {0}")]
    Refused(String),
}

/// Holds secrets in versions, of which one is current.
#[async_trait]
pub trait Vault: Send + Sync {
    /// The current version's value (the label AWSCURRENT).
    async fn current(&self, name: &str) -> Result<SecretString, VaultError>;
}
