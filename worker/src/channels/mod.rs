//! Channels: where notifications go. A new one is a file here and an arm in [`open`].

use async_trait::async_trait;
use secrets::{Resolver, SecretText};
use serde::Deserialize;

use crate::handler::Failure;

/// A channel as the configuration file spells it: exactly one of its targets.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelConfig {
    /// A Slack incoming webhook's URL; it is a secret.
    #[serde(default)]
    pub slack: Option<SecretText>,
}

/// A channel that can be reached.
#[async_trait]
pub trait Channel: Send + Sync {}

/// Opens the channel.
pub async fn open(
    name: &str,
    config: &ChannelConfig,
    secrets: &Resolver,
    http: &reqwest::Client,
) -> Result<Box<dyn Channel>, Failure> {
    let _ = (name, config, secrets, http);
    Err(Failure::Discard(anyhow::anyhow!("no channel is built in")))
}
