//! Stores: where backups lie. A new one is a file here and an arm in [`open`].
//!
//! Rules that every store keeps, checked by one conformance suite: what is being uploaded is invisible until it is
//! finished; nothing is ever overwritten; a list is whole; what was deleted is gone when [`Store::delete`] returns.

mod directory;
mod examine;
mod s3;
mod s3_upload;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use schemas::Timestamp;
use secrets::{ExposeSecret, Resolver, SecretText};
use serde::Deserialize;
use tokio::io::AsyncRead;

use crate::backups::SealedFor;
use crate::backups::keep::Keep;
use crate::handler::{Failure, OrFail};

pub use directory::Directory;
pub use examine::examine;
pub use s3::S3;

/// A store as the configuration file spells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// `s3://bucket/prefix?region=...&endpoint=...&storage_class=...`, or `file:<folder>`.
    pub url: String,
    /// `access key id:secret access key`; without it the usual AWS sources are asked.
    #[serde(default)]
    pub credentials: Option<SecretText>,
    /// For whom its backups are encrypted: age recipients, `age1...`. None: they are not.
    #[serde(default)]
    pub encrypt_to: Vec<SealedFor>,
    /// What opens encrypted backups, for restores and verifications: `AGE-SECRET-KEY-1...`.
    #[serde(default)]
    pub identity: Option<SecretText>,
    /// Which backups `retention` keeps there.
    #[serde(default)]
    pub keep: Option<Keep>,
}

/// A store that can be reached. Keys are relative to it: names joined by `/`.
#[async_trait]
pub trait Store: Send + Sync {
    /// Begins an upload. About how many bytes will come is asked for because some stores must know the size of the
    /// parts before the first one, and allow only so many parts.
    async fn begin(&self, key: &str, expected_bytes: u64) -> Result<Box<dyn Upload>, Failure>;

    /// Writes a small object, whole or not at all, unless one of that key is there.
    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, Failure>;

    /// Reads an object from its start; none where there is none.
    async fn get(&self, key: &str) -> Result<Option<Body>, Failure>;

    /// What is known of an object without reading it; none where there is none.
    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Failure>;

    /// All objects whose keys begin with `prefix`, by key.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, Failure>;

    /// Deletes objects; one that is not there is deleted already. Looks again afterwards: some servers say done while
    /// the object stays.
    async fn delete(&self, keys: &[String]) -> Result<(), Failure>;

    /// Removes what unfinished uploads to keys that begin with `prefix` left behind, if they began at least
    /// `older_than` ago; how many.
    async fn sweep_uploads(&self, prefix: &str, older_than: Duration, now: Timestamp) -> Result<u64, Failure>;
}

/// What is being uploaded. Dropped, it is given up.
#[async_trait]
pub trait Upload: Send {
    /// Adds bytes. Waits while too many are under way, so that memory stays bounded.
    async fn write(&mut self, bytes: Bytes) -> Result<(), Failure>;

    /// Makes the object visible, whole, unless one of that key is there.
    async fn finish(self: Box<Self>) -> Result<Put, Failure>;

    /// Gives it up and removes what was uploaded.
    async fn abort(self: Box<Self>);
}

/// What became of a write that must not overwrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there now.
    Written,
    /// One of that key was there and is unchanged. It may be our own, if the answer to an earlier try was lost: compare.
    AlreadyThere,
}

/// The bytes of an object.
pub type Body = Box<dyn AsyncRead + Send + Unpin>;

/// What is known of an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ObjectInfo {
    pub key: String,
    pub bytes: u64,
    /// When it was written; of large objects in S3, when its upload began.
    pub modified: Timestamp,
}

/// Opens the store.
pub async fn open(name: &str, config: &StoreConfig, secrets: &Resolver) -> Result<Box<dyn Store>, Failure> {
    match config.url.split_once(':') {
        Some(("file", folder)) => Ok(Box::new(Directory::new(folder)?)),
        Some(("s3", _)) => {
            let credentials = match &config.credentials {
                Some(text) => Some(resolve(text, secrets).await?),
                None => None,
            };
            let credentials = credentials.as_ref().map(ExposeSecret::expose_secret);
            Ok(Box::new(S3::open(&config.url, credentials).await?))
        }
        _ => Err(Failure::Discard(anyhow::anyhow!(
            "the store `{name}` has an address that is neither `s3://bucket/prefix` nor `file:<folder>`; correct [stores.{name}]"
        ))),
    }
}

async fn resolve(text: &SecretText, secrets: &Resolver) -> Result<secrets::SecretString, Failure> {
    match secrets.resolve(text).await {
        Err(error) if !error.is_transient() => Err(error).or_discard("resolving the store's credentials"),
        resolved => resolved.or_retry("resolving the store's credentials"),
    }
}

/// Reads a small object whole; refuses one that is larger than `limit` bytes.
pub async fn read_small(store: &dyn Store, key: &str, limit: u64) -> Result<Option<Vec<u8>>, Failure> {
    use tokio::io::AsyncReadExt;
    let Some(body) = store.get(key).await? else { return Ok(None) };
    let mut bytes = Vec::new();
    body.take(limit + 1).read_to_end(&mut bytes).await.or_retry(&format!("reading {key}"))?;
    if bytes.len() as u64 > limit {
        return Err(Failure::Discard(anyhow::anyhow!("{key} is larger than the {limit} bytes that are read of it")));
    }
    Ok(Some(bytes))
}

/// Keys come from our own code; one that would leave its store is a mistake in the program.
fn checked(key: &str) -> Result<&str, Failure> {
    let fine = |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains(['\\', '\0']);
    if !key.split('/').all(fine) {
        return Err(Failure::Discard(anyhow::anyhow!("`{key}` is not a key: it must be names joined by `/`")));
    }
    Ok(key)
}
