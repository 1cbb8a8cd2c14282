//! A key that only our own programs know: random bytes.
//!
//! Where the secret is a JSON object, it is a ring: the new value has the old key beside the new one, and until when a reader
//! should accept that. Programs sign with `key` and accept both, so that nothing is refused whichever of them has the new
//! value first. Where the secret is a plain text there is no room for two, and no overlap.

use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::SecondsFormat;
use queue::clock::later;
use rand::TryRngCore;
use rand::rngs::OsRng;
use schemas::Problem;
use secrets::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Rotator, Turn};
use crate::handler::{Failure, OrFail};

/// A random key as the configuration file spells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomKeyConfig {
    /// How many random bytes it has.
    #[serde(default = "bytes")]
    pub bytes: usize,
    /// How they are written.
    #[serde(default)]
    pub encoding: Encoding,
    /// What stands before them, such as `whsec_`.
    #[serde(default)]
    pub prefix: String,
    /// The field of the secret that holds the key.
    #[serde(default = "key")]
    pub field: String,
    /// Whether a secret without fields may be rotated: then readers with the old value and readers with the new one do not
    /// understand each other for a while.
    #[serde(default)]
    pub accept_gap: bool,
}

/// How bytes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Letters, digits, `-` and `_`.
    #[default]
    Base64url,
    /// With `+`, `/` and padding.
    Base64,
    /// Two digits for each byte.
    Hex,
}

fn bytes() -> usize {
    32
}

fn key() -> String {
    "key".to_owned()
}

impl RandomKeyConfig {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !(16..=1024).contains(&self.bytes) {
            problems.push(Problem::new("a key has 16 to 1024 random bytes").within("bytes"));
        }
        if self.field.is_empty() || ["previous", "previous_until"].contains(&self.field.as_str()) {
            problems.push(Problem::new("the key cannot be in this field").within("field"));
        }
        problems
    }
}

/// Rotates it.
pub(super) struct RandomKey {
    config: RandomKeyConfig,
    /// From the beginning of a rotation, the old key is to be accepted for so long.
    known_for: Duration,
}

impl RandomKey {
    pub(super) fn new(config: RandomKeyConfig, known_for: Duration) -> Self {
        Self { config, known_for }
    }

    fn fresh(&self) -> Result<String, Failure> {
        let bytes = random_bytes(self.config.bytes)?;
        let written = match self.config.encoding {
            Encoding::Base64url => URL_SAFE_NO_PAD.encode(bytes),
            Encoding::Base64 => base64::engine::general_purpose::STANDARD.encode(bytes),
            Encoding::Hex => hex::encode(bytes),
        };
        Ok(format!("{}{written}", self.config.prefix))
    }
}

#[async_trait]
impl Rotator for RandomKey {
    async fn create(&self, turn: &Turn<'_>, _again: bool) -> Result<SecretString, Failure> {
        let fresh = self.fresh()?;
        let Some(mut ring) = fields(turn.current) else {
            if self.config.accept_gap {
                return Ok(fresh.into());
            }
            return Err(Failure::Discard(anyhow::anyhow!(
                "the secret is a plain text, which has no room for the old key beside the new one: make it a JSON object \
                 with the field `{}`, or say `accept_gap = true`",
                self.config.field
            )));
        };
        let old = ring.insert(self.config.field.clone(), fresh.into()).ok_or_else(|| {
            Failure::Discard(anyhow::anyhow!("the secret has no field `{}` in the vault", self.config.field))
        })?;
        let until = later(turn.begun_at, self.known_for).to_rfc3339_opts(SecondsFormat::Secs, true);
        ring.insert("previous".to_owned(), old);
        ring.insert("previous_until".to_owned(), until.into());
        Ok(Value::Object(ring).to_string().into())
    }

    async fn set(&self, _: &Turn<'_>, _: &SecretString) -> Result<(), Failure> {
        Ok(()) // Nobody has to be told but those who hold it.
    }

    async fn test(&self, _: &Turn<'_>, _: &SecretString) -> Result<(), Failure> {
        Ok(()) // What it opens is known to its consumers alone; they prove it.
    }

    async fn restore(&self, _: &Turn<'_>, _: Option<&SecretString>) -> Result<(), Failure> {
        Ok(())
    }

    async fn discard(&self, _: &Turn<'_>, _: Option<&SecretString>) -> Result<(), Failure> {
        Ok(())
    }

    async fn retire(&self, _: &Turn<'_>, _: &SecretString) -> Result<(), Failure> {
        Ok(()) // Its readers stop accepting it at `previous_until`.
    }
}

/// So many random bytes, in letters, digits, `-` and `_`.
pub(super) fn random_text(bytes: usize) -> Result<SecretString, Failure> {
    Ok(URL_SAFE_NO_PAD.encode(random_bytes(bytes)?).into())
}

/// Random bytes from the system.
pub(super) fn random_bytes(count: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; count];
    OsRng.try_fill_bytes(&mut bytes).or_retry("asking the system for random bytes")?;
    Ok(bytes)
}

/// The fields of a secret that is a JSON object.
pub(super) fn fields(secret: &SecretString) -> Option<Map<String, Value>> {
    serde_json::from_str(secret.expose_secret()).ok()
}
