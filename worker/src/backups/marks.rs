//! Marks: small objects beside a manifest that say what was found out about the backup later. Their keys alone tell what
//! lists and retention need, so that neither reads them, and both work without the ledger.
//!
//! Nothing is overwritten: a later verdict is an object of its own and counts more than the earlier, which is then removed.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::NaiveDateTime;
use schemas::{JobId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use super::{LARGEST_MANIFEST, MANIFEST};
use crate::handler::{Failure, OrFail};
use crate::stores::{ObjectInfo, Put, Store, read_small};

/// How moments are written in keys.
const MOMENT: &str = "%Y%m%dT%H%M%SZ";
const PROVEN: &str = ".verified.json";
const DISPROVED: &str = ".disproved.json";
const PIN: &str = ".pin.json";
/// A pin holds a manifest, too.
const LARGEST_MARK: u64 = LARGEST_MANIFEST * 2;

/// What is known of a backup beside its manifest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Marks {
    /// Whether it is kept whatever its age.
    pub pinned: bool,
    /// What its last restore into a scratch database showed.
    pub verdict: Option<Verdict>,
}

impl Marks {
    /// When it was proven, unless it was disproved since.
    pub fn proven_at(&self) -> Option<Timestamp> {
        self.verdict.filter(|verdict| verdict.proven).map(|verdict| verdict.at)
    }

    /// Whether it was found not to be what it should be.
    pub fn disproved(&self) -> bool {
        self.verdict.is_some_and(|verdict| !verdict.proven)
    }
}

/// What a restore into a scratch database showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// When.
    pub at: Timestamp,
    /// That everything was as it should be, or that something was not. "Could not be found out" is no verdict.
    pub proven: bool,
}

impl Verdict {
    /// The later one counts; of two of one second, the one that found something wrong.
    fn weight(&self) -> (Timestamp, bool) {
        (self.at, !self.proven)
    }
}

/// What was found out, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// The backup, by its manifest's key.
    pub backup: String,
    /// The SHA-256 of the stored bytes that were restored.
    pub sha256: String,
    /// When.
    pub at: Timestamp,
    /// The job that did it.
    pub job: JobId,
    /// The program that wrote this.
    pub written_by: String,
    /// How long restoring took.
    pub restore_seconds: i64,
    /// So many tables were compared.
    pub tables: usize,
    /// So many of them by the digest of all their rows.
    pub digests: usize,
    /// So many rows were restored.
    pub rows: u64,
    /// What was asserted, with the values that were read.
    pub assertions: Vec<Asserted>,
    /// What was not as it should be; empty: the backup is proven.
    pub differences: Vec<String>,
}

/// One assertion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Asserted {
    pub sql: String,
    pub value: Value,
}

/// Why a backup is kept whatever its age.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Pin {
    pub at: Timestamp,
    pub by: String,
    pub reason: String,
}

impl Proof {
    fn key(&self, stem: &str) -> String {
        let verdict = if self.differences.is_empty() { PROVEN } else { DISPROVED };
        format!("{stem}.{}-{}{verdict}", self.at.format(MOMENT), self.job)
    }
}

/// Writes what was found out about a backup. Twice is once: the key holds the job and the moment.
pub async fn record(store: &dyn Store, proof: &Proof) -> Result<(), Failure> {
    let stem = stem(&proof.backup)?;
    let text = serde_json::to_vec_pretty(proof).or_discard("writing what was found out")?;
    let key = proof.key(stem);
    store.put_if_absent(&key, Bytes::from(text)).await?;
    let all = store.list(&format!("{stem}.")).await?;
    let this = verdict(&key);
    let earlier = all.into_iter().map(|object| object.key).filter(|other| {
        verdict(other).is_some_and(|(of, at)| of == stem && this.is_some_and(|(_, this)| at.at < this.at))
    });
    let earlier: Vec<String> = earlier.collect();
    // The later one counts, whether the earlier is there or not (some stores lock what they hold).
    if let Err(failure) = store.delete(&earlier).await {
        warn!(backup = proof.backup, "what an earlier verification said could not be removed: {}", failure.words());
    }
    Ok(())
}

/// What was last found out about a backup.
pub async fn last_proof(store: &dyn Store, backup: &str) -> Result<Option<Proof>, Failure> {
    let stem = stem(backup)?;
    let all = store.list(&format!("{stem}.")).await?;
    let verdicts = all.iter().filter_map(|object| {
        let (of, verdict) = verdict(&object.key)?;
        (of == stem).then_some((verdict, &object.key))
    });
    let Some((_, key)) = verdicts.max_by_key(|(verdict, _)| verdict.weight()) else { return Ok(None) };
    read(store, key).await
}

/// A pin as it is stored: with the manifest, which can be given back by it.
#[derive(Serialize, Deserialize)]
struct Stored<P> {
    #[serde(flatten)]
    pin: P,
    /// Older versions wrote none.
    #[serde(default)]
    manifest: Option<Value>,
}

/// Keeps a backup whatever its age, until it is unpinned; whether it was not pinned before.
pub async fn pin(store: &dyn Store, backup: &str, pin: &Pin) -> Result<bool, Failure> {
    let manifest = read(store, backup).await?;
    let text = serde_json::to_vec_pretty(&Stored { pin, manifest }).or_discard("writing the pin")?;
    let put = store.put_if_absent(&pin_key(backup)?, Bytes::from(text)).await?;
    // Retention may have been about to delete it: a pin counts only if there is still something that it keeps.
    match store.head(backup).await? {
        Some(_) => Ok(put == Put::Written),
        None => Err(Failure::Discard(anyhow::anyhow!("there is no backup `{backup}`"))),
    }
}

/// Lets a backup go its way again; whether it was pinned.
pub async fn unpin(store: &dyn Store, backup: &str) -> Result<bool, Failure> {
    let key = pin_key(backup)?;
    let there = store.head(&key).await?.is_some();
    store.delete(&[key]).await?;
    Ok(there)
}

/// The manifest that a pin keeps a copy of, as text.
pub(super) async fn manifest_in(store: &dyn Store, pin: &str) -> Result<Option<Vec<u8>>, Failure> {
    let stored: Option<Stored<Value>> = read(store, pin).await?;
    let manifest = stored.and_then(|stored| stored.manifest);
    manifest.map(|manifest| serde_json::to_vec_pretty(&manifest).or_discard("writing a manifest again")).transpose()
}

/// Why a backup is pinned; none where it is not.
pub async fn pinned(store: &dyn Store, backup: &str) -> Result<Option<Pin>, Failure> {
    read(store, &pin_key(backup)?).await
}

/// The key of a backup's pin.
pub(crate) fn pin_key(backup: &str) -> Result<String, Failure> {
    Ok(format!("{}{PIN}", stem(backup)?))
}

/// The marks among these objects, by the part of their keys that their manifest's key begins with.
pub(super) fn among(objects: &[ObjectInfo]) -> BTreeMap<String, Marks> {
    let mut marks: BTreeMap<String, Marks> = BTreeMap::new();
    for object in objects {
        if let Some((stem, verdict)) = verdict(&object.key) {
            let marks = marks.entry(stem.to_owned()).or_default();
            if marks.verdict.is_none_or(|known| known.weight() < verdict.weight()) {
                marks.verdict = Some(verdict);
            }
        } else if let Some(stem) = object.key.strip_suffix(PIN) {
            marks.entry(stem.to_owned()).or_default().pinned = true;
        }
    }
    marks
}

/// The part of a pin's key that its manifest's key begins with too.
pub(super) fn stem_of_pin(key: &str) -> Option<&str> {
    key.strip_suffix(PIN)
}

/// The part of a mark's key that its manifest's key begins with too.
pub(super) fn stem_of_mark(key: &str) -> Option<&str> {
    key.strip_suffix(PIN).or_else(|| verdict(key).map(|(stem, _)| stem))
}

fn verdict(key: &str) -> Option<(&str, Verdict)> {
    let (rest, proven) = match key.strip_suffix(PROVEN) {
        Some(rest) => (rest, true),
        None => (key.strip_suffix(DISPROVED)?, false),
    };
    let (stem, which) = rest.rsplit_once('.')?;
    let (moment, job) = which.split_once('-')?;
    job.parse::<JobId>().ok()?;
    let at = NaiveDateTime::parse_from_str(moment, MOMENT).ok()?.and_utc();
    Some((stem, Verdict { at, proven }))
}

/// What the keys of everything about a backup begin with.
pub(crate) fn stem(backup: &str) -> Result<&str, Failure> {
    let wrong = || Failure::Discard(anyhow::anyhow!("`{backup}` is not a backup: its key ends with `{MANIFEST}`"));
    backup.strip_suffix(MANIFEST).ok_or_else(wrong)
}

async fn read<T: serde::de::DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<T>, Failure> {
    let Some(text) = read_small(store, key, LARGEST_MARK).await? else { return Ok(None) };
    serde_json::from_slice(&text).map(Some).or_discard(&format!("reading {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEM: &str = "main/2026/11/20261120T020001Z-0198c0de-0000-7000-8000-000000000001";

    fn proof(at: &str, differences: &[&str]) -> Proof {
        Proof {
            backup: format!("{STEM}{MANIFEST}"),
            sha256: String::new(),
            at: at.parse().unwrap(),
            job: "0198c0de-0000-7000-8000-000000000002".parse().unwrap(),
            written_by: String::new(),
            restore_seconds: 1,
            tables: 1,
            digests: 1,
            rows: 1,
            assertions: Vec::new(),
            differences: differences.iter().map(|said| (*said).to_owned()).collect(),
        }
    }

    fn objects(keys: &[String]) -> Vec<ObjectInfo> {
        keys.iter().map(|key| ObjectInfo { key: key.clone(), bytes: 1, modified: Timestamp::default() }).collect()
    }

    #[test]
    fn the_later_verdict_counts_and_keys_alone_tell_it() {
        let (first, second) = (proof("2026-11-21T00:00:00Z", &[]), proof("2026-11-22T00:00:00Z", &["a row less"]));
        let all = among(&objects(&[second.key(STEM), first.key(STEM), format!("{STEM}{PIN}")]));
        assert!(all[STEM].pinned && all[STEM].disproved());
        assert_eq!(all[STEM].proven_at(), None);
        let same_second = proof("2026-11-21T00:00:00Z", &["a row less"]);
        assert!(among(&objects(&[first.key(STEM), same_second.key(STEM)]))[STEM].disproved());
        assert!(among(&objects(&[same_second.key(STEM), first.key(STEM)]))[STEM].disproved());
        let all = among(&objects(&[first.key(STEM)]));
        assert_eq!(all[STEM].proven_at(), Some(first.at));
        assert_eq!(stem_of_mark(&first.key(STEM)), Some(STEM));
    }

    #[test]
    fn what_is_no_mark_says_nothing() {
        let others = ["main/x.verified.json", "main/x.y-z.verified.json", "main/x.manifest.json", "main/x.1.dump.zst"];
        assert!(among(&objects(&others.map(str::to_owned))).is_empty());
    }
}
