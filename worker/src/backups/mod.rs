//! Backups: a manifest in a store, and the data it names.
//!
//! The manifest alone makes a backup exist. It is written last, if absent, when everything about the data was right;
//! lists, restores and retention read manifests only. All of this works without the ledger.

pub mod ages;
pub mod keep;
pub(crate) mod manifest;
pub mod marks;
pub(crate) mod packing;
mod sealing;
mod sweep;

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use queue::kill_point::reached;

use crate::databases::Database;
use crate::handler::{Failure, OrFail};
use crate::stores::{Body, ObjectInfo, Store, read_small};

pub use manifest::{Data, Manifest, VERSION};
pub use marks::{Marks, Pin, Proof};
pub(crate) use packing::measure;
pub use packing::{Measure, Packed, Packing, Unpacked, unpack};
pub use sealing::{Encryption, Seal, SealedFor};
pub use sweep::{Swept, sweep_orphans, sweep_rivals};

/// No manifest is larger: two thousand tables with long names fit.
const LARGEST_MANIFEST: u64 = 1024 * 1024;
/// How a manifest's key ends.
const MANIFEST: &str = ".manifest.json";

/// A backup that exists.
#[derive(Clone, Debug)]
pub struct Backup {
    /// The manifest's key in its store: the backup's name.
    pub key: String,
    /// What it says.
    pub manifest: Manifest,
}

/// What lies in a store.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The backups, the oldest first.
    pub backups: Vec<Backup>,
    /// Manifests that cannot be read, or whose data is missing or cut, each with the reason.
    pub broken: Vec<(String, String)>,
    marks: BTreeMap<String, Marks>,
}

impl Listing {
    /// What is known beside its manifest of the backup of that key.
    pub fn marks(&self, backup: &str) -> Marks {
        backup.strip_suffix(MANIFEST).and_then(|stem| self.marks.get(stem)).copied().unwrap_or_default()
    }
}

/// All backups in a store, or those of one database.
pub async fn list(store: &dyn Store, database: Option<&str>) -> Result<Listing, Failure> {
    let prefix = database.map(|name| format!("{name}/")).unwrap_or_default();
    let objects = store.list(&prefix).await?;
    let sizes: BTreeMap<&str, u64> = objects.iter().map(|object| (object.key.as_str(), object.bytes)).collect();
    let mut listing = Listing { marks: marks::among(&objects), ..Listing::default() };
    for key in manifests(&objects) {
        // None: deleted meanwhile.
        let Some(text) = read_small(store, key, LARGEST_MANIFEST).await? else { continue };
        match Manifest::parse(&text).and_then(|manifest| manifest.sized_as(&sizes)) {
            Ok(manifest) => listing.backups.push(Backup { key: key.to_owned(), manifest }),
            Err(reason) => listing.broken.push((key.to_owned(), reason)),
        }
    }
    listing.backups.sort_by(|a, b| (a.manifest.started_at, &a.key).cmp(&(b.manifest.started_at, &b.key)));
    Ok(listing)
}

/// The backup of that name; none where there is no such manifest.
pub async fn find(store: &dyn Store, key: &str) -> Result<Option<Backup>, Failure> {
    let Some(text) = read_small(store, key, LARGEST_MANIFEST).await? else { return Ok(None) };
    let manifest = Manifest::parse(&text).map_err(|reason| Failure::Discard(anyhow::anyhow!("{key}: {reason}")))?;
    Ok(Some(Backup { key: key.to_owned(), manifest }))
}

/// The newest backup of a database. Fails rather than to pass silently over a newer one that cannot be read.
pub async fn latest(store: &dyn Store, database: &str) -> Result<Backup, Failure> {
    let listing = list(store, Some(database)).await?;
    let newest = listing.backups.into_iter().next_back();
    let mut passed_over =
        listing.broken.into_iter().filter(|(key, _)| newest.as_ref().is_none_or(|newest| *key > newest.key));
    if let Some((key, reason)) = passed_over.next_back() {
        return Err(Failure::Discard(anyhow::anyhow!(
            "the latest backup {key} cannot be used ({reason}); name an older one to restore that"
        )));
    }
    newest.ok_or_else(|| Failure::Discard(anyhow::anyhow!("there is no backup of `{database}` in this store")))
}

/// Writes the manifest unless one is there; the one that is there then.
pub async fn publish(store: &dyn Store, backup: Backup) -> Result<Backup, Failure> {
    let text = serde_json::to_vec_pretty(&backup.manifest).or_discard("writing the manifest")?;
    match store.put_if_absent(&backup.key, Bytes::from(text)).await? {
        crate::stores::Put::Written => Ok(backup),
        crate::stores::Put::AlreadyThere => find(store, &backup.key)
            .await?
            .ok_or_else(|| Failure::retry(anyhow::anyhow!("the manifest {} was there and is gone", backup.key))),
    }
}

/// Reads a backup's data back from its first byte to its last: the stored bytes' digest, every frame of the
/// compression, the dump's digest, and the dump itself as a restore reads it. Of what is sealed and cannot be opened
/// here, the stored bytes' digest.
pub async fn verify(store: &dyn Store, database: &dyn Database, data: &Data, seal: &Seal) -> Result<(), Failure> {
    if data.encryption.is_some() && !seal.opens() {
        return verify_stored(store, data).await;
    }
    let unpacked = open(store, data, seal).await?;
    let (reader, verdict) = (unpacked.reader, unpacked.verdict);
    database.read_through(Box::new(reader)).await?;
    // Not "nothing was wrong" but "all was seen and right".
    verdict.await.or_retry("the backup was not read to its end")?.map_err(Failure::Discard)
}

async fn verify_stored(store: &dyn Store, data: &Data) -> Result<(), Failure> {
    let found = packing::measure(body(store, data).await?).await?;
    if found != data.stored {
        let words = format!(
            "the stored data has {} bytes with SHA-256 {}, not those of the manifest",
            found.bytes, found.sha256
        );
        return Err(Failure::discard(io::Error::new(io::ErrorKind::InvalidData, words)));
    }
    Ok(())
}

/// The dump of a backup, checked while it is read.
pub async fn open(store: &dyn Store, data: &Data, seal: &Seal) -> Result<Unpacked, Failure> {
    let sealed = data.encryption.is_some();
    if sealed && !seal.opens() {
        return Err(Failure::Discard(anyhow::anyhow!(
            "the backup is encrypted; give the store the `identity` that opens it, or open it by the commands in its manifest"
        )));
    }
    let body = body(store, data).await?;
    Ok(unpack(body, data.plain.clone(), data.stored.clone(), sealed.then(|| seal.clone())))
}

async fn body(store: &dyn Store, data: &Data) -> Result<Body, Failure> {
    let missing = || io::Error::new(io::ErrorKind::InvalidData, format!("the backup's data {} is missing", data.key));
    store.get(&data.key).await?.ok_or_else(|| Failure::discard(missing()))
}

/// Deletes a backup, unless it was pinned meanwhile: whether it did. Its manifest goes first: what is left then if this is
/// stopped is no backup any more, and is swept as what belongs to none.
pub async fn delete(store: &dyn Store, backup: &str) -> Result<bool, Failure> {
    let (stem, pin) = (marks::stem(backup)?, marks::pin_key(backup)?);
    if store.head(&pin).await?.is_some() {
        return Ok(false);
    }
    let manifest = read_small(store, backup, LARGEST_MANIFEST).await?;
    reached("backup deleting");
    store.delete(&[backup.to_owned()]).await?;
    // Whoever pinned it after the look above may have found it there, and said that it is kept.
    if let Some(manifest) = manifest
        && store.head(&pin).await?.is_some()
    {
        store.put_if_absent(backup, manifest.into()).await?;
        return Ok(false);
    }
    reached("backup manifest deleted");
    let all = store.list(&format!("{stem}.")).await?.into_iter().map(|object| object.key);
    let of_it = |key: &String| manifest::stem_of_data(key) == Some(stem) || marks::stem_of_mark(key) == Some(stem);
    store.delete(&all.filter(of_it).collect::<Vec<_>>()).await?;
    Ok(true)
}

/// Whether it failed because the bytes in the store are not the backup's, or not there: that stays so.
pub fn is_damage(failure: &Failure) -> bool {
    let Failure::Discard(error) = failure else { return false };
    let damage = |error: &io::Error| error.kind() == io::ErrorKind::InvalidData;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(damage))
}

fn manifests(objects: &[ObjectInfo]) -> impl Iterator<Item = &str> {
    objects.iter().map(|object| object.key.as_str()).filter(|key| key.ends_with(MANIFEST))
}
