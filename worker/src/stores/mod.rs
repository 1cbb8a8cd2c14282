//! Stores: where backups lie. A new one is a file here and an arm in [`open`].

use async_trait::async_trait;
use secrets::{Resolver, SecretText};
use serde::Deserialize;

use crate::handler::Failure;

/// A store as the configuration file spells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// `s3://bucket/prefix?region=...&endpoint=...&storage_class=...`, or `file:<folder>`.
    pub url: String,
    /// `access key id:secret access key`; without it the usual AWS sources are asked.
    #[serde(default)]
    pub credentials: Option<SecretText>,
}

/// A store that can be reached.
#[async_trait]
pub trait Store: Send + Sync {}

/// Opens the store.
pub async fn open(name: &str, config: &StoreConfig, secrets: &Resolver) -> Result<Box<dyn Store>, Failure> {
    let _ = (name, config, secrets);
    Err(Failure::Discard(anyhow::anyhow!("no store is built in")))
}
