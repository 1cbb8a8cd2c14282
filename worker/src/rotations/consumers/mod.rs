//! Consumers: who holds a copy of a secret and must get the new one, before the old one dies.

mod file;
mod github_secret;
mod vercel;

use async_trait::async_trait;
use schemas::{Names, Problem};
use secrets::{ExposeSecret, SecretString, field};
use serde::Deserialize;
use serde_json::Value;

use crate::context::Context;
use crate::handler::Failure;

pub use file::FileConfig;
pub use github_secret::{GithubSecretConfig, WorkflowConfig};
pub use vercel::{HealthConfig, VercelConfig};

/// Somebody who holds a copy of a secret.
///
/// While a rotation has not finished, both values are valid, and the vault's current version is the old one. If any consumer
/// fails for good, or is not proven in time, all of them are given the old value again, by a publication with another id.
///
/// Steps of theirs are named by the consumer and the publication. Both methods may be called again after an attempt that was
/// killed anywhere in them. No error, log line, span or receipt holds a value. What may pass is [`Failure::Retry`]; what waits for the other side (a deployment that is being built),
/// [`Failure::Snooze`]; a definite no, [`Failure::Discard`], which ends the rotation.
#[async_trait]
pub trait Consumer: Send + Sync {
    /// Its name in the configuration; names its steps.
    fn name(&self) -> &str;

    /// Gives it the value, and whatever it needs to take it up (a redeployment). What an earlier call with the same
    /// [`Publication::id`] began is looked up and gone on with, not begun again. The receipt is kept in the ledger for
    /// [`Consumer::prove`]: a small JSON value. [`Failure::Cancelled`] is a definite no before anything was changed there:
    /// such a consumer needs nothing back.
    async fn publish(&self, cx: &Context, publication: &Publication<'_>) -> Result<Value, Failure>;

    /// Proves that it uses what was published: not that it was told, but that it works with it.
    async fn prove(&self, cx: &Context, publication: &Publication<'_>, receipt: &Value) -> Result<(), Failure>;
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

/// Whether an attempt may have changed something at a consumer, for a publication.
struct Touch {
    step: String,
    before: bool,
}

impl Touch {
    /// Looks whether an earlier attempt may have.
    async fn look(cx: &Context, consumer: &str, publication: &Publication<'_>) -> Result<Self, Failure> {
        let step = format!("change {consumer} {}", publication.id);
        let before = cx.steps().await?.iter().any(|known| known.name == step);
        Ok(Self { step, before })
    }

    /// From here on something may be changed: written down first.
    async fn begin(&self, cx: &Context) -> Result<(), Failure> {
        cx.step::<()>(&self.step).await.map(drop)
    }

    /// A definite no, where this attempt has changed nothing: if no earlier one has either, nothing is to be given back.
    fn refused(&self, failure: Failure) -> Failure {
        match failure {
            Failure::Discard(error) if !self.before => Failure::Cancelled(format!("{error:#}")),
            other => other,
        }
    }
}

/// A consumer as the configuration file spells it: exactly one of these.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsumerConfig {
    /// A file on this machine.
    #[serde(default)]
    pub file: Option<FileConfig>,
    /// Environment variables at Vercel.
    #[serde(default)]
    pub vercel: Option<VercelConfig>,
    /// A secret of GitHub's Actions.
    #[serde(default)]
    pub github_secret: Option<GithubSecretConfig>,
}

impl ConsumerConfig {
    pub(super) fn problems(&self, names: &Names) -> Vec<Problem> {
        let within = |table: &str, found: Vec<Problem>| -> Vec<Problem> {
            found.into_iter().map(|problem| problem.within(table)).collect()
        };
        let found = [
            self.file.as_ref().map(|file| within("file", file.problems())),
            self.vercel.as_ref().map(|vercel| within("vercel", vercel.problems(names))),
            self.github_secret.as_ref().map(|secret| within("github_secret", secret.problems(names))),
        ];
        let found: Vec<Vec<Problem>> = found.into_iter().flatten().collect();
        let kinds = "`file`, `vercel` or `github_secret`";
        match found.len() {
            0 => vec![Problem::new("it does not say who it is").help(format!("add {kinds}"))],
            1 => found.into_iter().flatten().collect(),
            _ => vec![Problem::new(format!("it is one of {kinds}"))],
        }
    }
}

/// The consumer of that name.
pub(super) fn open(name: &str, config: &ConsumerConfig) -> Result<Box<dyn Consumer>, Failure> {
    match config {
        ConsumerConfig { file: Some(config), .. } => Ok(Box::new(file::FileCopy::new(name, config.clone()))),
        ConsumerConfig { vercel: Some(config), .. } => Ok(Box::new(vercel::Variables::new(name, config.clone()))),
        ConsumerConfig { github_secret: Some(config), .. } => {
            Ok(Box::new(github_secret::GithubSecret::new(name, config.clone())))
        }
        _ => Err(Failure::Discard(anyhow::anyhow!("the consumer `{name}` does not say who it is"))),
    }
}
