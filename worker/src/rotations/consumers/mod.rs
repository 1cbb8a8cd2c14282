//! Consumers: who holds a copy of a secret and must get the new one, before the old one dies.

mod file;

use async_trait::async_trait;
use schemas::Problem;
use secrets::{ExposeSecret, SecretString, field};
use serde::Deserialize;
use serde_json::Value;

use crate::handler::Failure;
use crate::world::World;

pub use file::FileConfig;

/// Somebody who holds a copy of a secret.
///
/// While a rotation has not finished, both values are valid, and the vault's current version is the old one. If any consumer
/// fails for good, or is not proven in time, all of them are given the old value again, by a publication with another id.
///
/// Both methods may be called again after an attempt that was killed anywhere in them. No error, log line, span or receipt
/// holds a value. What may pass is [`Failure::Retry`]; what waits for the other side (a deployment that is being built),
/// [`Failure::Snooze`]; a definite no, [`Failure::Discard`], which ends the rotation.
#[async_trait]
pub trait Consumer: Send + Sync {
    /// Its name in the configuration; names its steps.
    fn name(&self) -> &str;

    /// Gives it the value, and whatever it needs to take it up (a redeployment). What an earlier call with the same
    /// [`Publication::id`] began is looked up and gone on with, not begun again. The receipt is kept in the ledger for
    /// [`Consumer::prove`]: a small JSON value. [`Failure::Cancelled`] is a definite no before anything was changed there:
    /// such a consumer needs nothing back.
    async fn publish(&self, world: &World, publication: &Publication<'_>) -> Result<Value, Failure>;

    /// Proves that it uses what was published: not that it was told, but that it works with it.
    async fn prove(&self, world: &World, publication: &Publication<'_>, receipt: &Value) -> Result<(), Failure>;
}

/// One value on its way to its consumers.
pub struct Publication<'a> {
    /// The same in every attempt, and another one for each value and each way (there, and back): for the other side's own
    /// deduplication, and to find there what an earlier attempt began. Letters, digits and hyphens; at most 64.
    pub id: &'a str,
    /// The value, as it lies in the vault.
    pub value: &'a SecretString,
}

impl Publication<'_> {
    /// The whole value, or one field of a value that is a JSON object.
    pub fn text(&self, key: Option<&str>) -> Result<SecretString, Failure> {
        let Some(key) = key else { return Ok(self.value.expose_secret().into()) };
        field(self.value, key)
            .ok_or_else(|| Failure::Discard(anyhow::anyhow!("the secret has no field `{key}` in the vault")))
    }
}

/// A consumer as the configuration file spells it: exactly one of these.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsumerConfig {
    /// A file on this machine.
    #[serde(default)]
    pub file: Option<FileConfig>,
}

impl ConsumerConfig {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let kinds = "`file`";
        match self {
            Self { file: Some(file) } => file.problems().into_iter().map(|problem| problem.within("file")).collect(),
            Self { file: None } => {
                vec![Problem::new("it does not say who it is").help(format!("add {kinds}"))]
            }
        }
    }
}

/// The consumer of that name.
pub(super) fn open(name: &str, config: &ConsumerConfig) -> Result<Box<dyn Consumer>, Failure> {
    match config {
        ConsumerConfig { file: Some(config) } => Ok(Box::new(file::FileCopy::new(name, config.clone()))),
        ConsumerConfig { file: None } => {
            Err(Failure::Discard(anyhow::anyhow!("the consumer `{name}` does not say who it is")))
        }
    }
}
