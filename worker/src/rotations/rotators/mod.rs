//! Rotators: what knows the place where a secret's value is valid.

mod aws_key;
mod postgres;
mod random_key;
mod webhook;

use async_trait::async_trait;
use schemas::{Names, Problem, Timestamp};
use secrets::SecretString;
use secrets::vaults::Token;

use super::RotationConfig;
use crate::context::Context;
use crate::handler::Failure;
use crate::world::World;

pub use aws_key::AwsKeyConfig;
pub use postgres::PostgresConfig;
pub use random_key::RandomKeyConfig;
pub use webhook::{HookConfig, WebhookConfig};

/// One kind of secret. Each method may be called again after an attempt that was killed anywhere in it or whose answer was
/// lost: it first looks how far that came. It says [`Failure::Discard`] only on a *definite* answer of the other side, and
/// [`Failure::Retry`] while it does not know: what was not refused may be valid, and is never thrown away.
///
/// No error, log line or span holds a value.
#[async_trait]
pub trait Rotator: Send + Sync {
    /// The new value. It is not valid anywhere yet, unless the other side makes it: then what an attempt left there of which
    /// the value was lost (`again`) is removed first. Called until a pending version is in the vault, never afterwards.
    async fn create(&self, turn: &Turn<'_>, again: bool) -> Result<SecretString, Failure>;

    /// Makes the new value valid, beside the current one where the place allows two.
    async fn set(&self, turn: &Turn<'_>, new: &SecretString) -> Result<(), Failure>;

    /// Proves that the new value does what it is for, where it is used.
    async fn test(&self, turn: &Turn<'_>, new: &SecretString) -> Result<(), Failure>;

    /// The rotation is given up: sees to it that the vault's current value, which is `turn.current`, is valid (again). The
    /// consumers may hold the new one still. There is none where it was never stored.
    async fn restore(&self, turn: &Turn<'_>, new: Option<&SecretString>) -> Result<(), Failure>;

    /// The rotation is given up, and all hold the current value again: has the new one die.
    async fn discard(&self, turn: &Turn<'_>, new: Option<&SecretString>) -> Result<(), Failure>;

    /// Has the old value, which `turn.current` still is, die: the new one is current and proven at all who use it, and the
    /// overlap is over. [`Failure::Snooze`] while it is seen in use.
    async fn retire(&self, turn: &Turn<'_>, new: &SecretString) -> Result<(), Failure>;

    /// Whether somebody accepts the old value for as long as the vault calls it the previous one. Then that label is taken
    /// off when it is retired.
    fn is_accepted_while_labelled(&self) -> bool {
        false
    }
}

/// What stays the same through all steps of one rotation, in all attempts.
pub struct Turn<'a> {
    /// The attempt, for what a rotator must write down on its way.
    pub cx: &'a Context,
    /// The databases and connections that are configured.
    pub world: &'a World,
    /// Names the new version, and whatever the other side lets us name: fixed before the first call.
    pub token: &'a Token,
    /// When the rotation began.
    pub begun_at: Timestamp,
    /// The value that was current then; in a rotation that is given up, the one that is current now.
    pub current: &'a SecretString,
}

/// What is wrong with the part of the configuration that is a rotator's.
pub(super) fn problems(config: &RotationConfig, names: &Names) -> Vec<Problem> {
    let found = [
        config.postgres.as_ref().map(|postgres| within("postgres", postgres.problems(names))),
        config.random_key.as_ref().map(|key| within("random_key", key.problems())),
        config.webhook.as_ref().map(|webhook| within("webhook", webhook.problems())),
        config.aws_access_key.as_ref().map(|key| within("aws_access_key", key.problems())),
    ];
    let found: Vec<Vec<Problem>> = found.into_iter().flatten().collect();
    let kinds = "`postgres`, `random_key`, `webhook` or `aws_access_key`";
    match found.len() {
        0 => vec![Problem::new("it does not say what kind of secret it is").help(format!("add {kinds}"))],
        1 => found.into_iter().flatten().collect(),
        _ => vec![Problem::new(format!("it has one kind of secret: {kinds}"))],
    }
}

/// What rotates that kind of secret.
pub(super) fn open(config: &RotationConfig) -> Result<Box<dyn Rotator>, Failure> {
    match config {
        RotationConfig { postgres: Some(config), .. } => Ok(Box::new(postgres::Postgres::new(config.clone()))),
        RotationConfig { random_key: Some(key), .. } => {
            let known_for = config.within + config.overlap;
            Ok(Box::new(random_key::RandomKey::new(key.clone(), known_for)))
        }
        RotationConfig { webhook: Some(webhook), .. } => {
            Ok(Box::new(webhook::Webhook::new(&config.secret, webhook.clone())))
        }
        RotationConfig { aws_access_key: Some(key), .. } => Ok(Box::new(aws_key::AwsKey::new(key.clone()))),
        _ => Err(Failure::Discard(anyhow::anyhow!("the rotation does not say what kind of secret it is"))),
    }
}

fn within(table: &str, problems: Vec<Problem>) -> Vec<Problem> {
    problems.into_iter().map(|problem| problem.within(table)).collect()
}
