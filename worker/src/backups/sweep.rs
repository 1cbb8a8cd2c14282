//! Sweeping: what attempts that failed, were killed or lost leave in a store. Never what a manifest names.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use schemas::Timestamp;
use tracing::warn;

use super::manifest::stem_of_data;
use super::marks::{manifest_in, pin_key, stem_of_mark, stem_of_pin};
use super::{Backup, MANIFEST, Manifest, manifests};
use crate::handler::Failure;
use crate::stores::{ObjectInfo, Store};

/// Data without a manifest, and parts of an upload, belong to nobody when they are older than this: an attempt ends after
/// a day. (S3 dates large objects by the beginning of their upload.)
const ORPHANED: Duration = Duration::from_hours(26);

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects.
    pub objects: u64,
    /// Unfinished uploads.
    pub uploads: u64,
}

/// Removes what other attempts of a backup's job have uploaded, now that its manifest, which alone counts, is written.
/// Not before: an attempt that seemed dead might still write a manifest that names its data.
pub async fn sweep_rivals(store: &dyn Store, backup: &Backup, now: Timestamp) -> Result<Swept, Failure> {
    let Some(stem) = backup.key.strip_suffix(MANIFEST) else { return Ok(Swept::default()) };
    let all = store.list(&format!("{stem}.")).await?;
    let rivals = all.into_iter().map(|object| object.key);
    let rivals: Vec<String> =
        rivals.filter(|key| stem_of_data(key) == Some(stem) && *key != backup.manifest.data.key).collect();
    store.delete(&rivals).await?;
    let uploads = store.sweep_uploads(&format!("{stem}."), Duration::ZERO, now).await?;
    Ok(Swept { objects: rivals.len() as u64, uploads })
}

/// Gives pinned backups their manifests back, and removes a database's data and marks that have none, and uploads that never
/// ended, if they are old enough to belong to nobody.
pub async fn sweep_orphans(store: &dyn Store, database: &str, now: Timestamp) -> Result<Swept, Failure> {
    let prefix = format!("{database}/");
    let objects = store.list(&prefix).await?;
    let mut whole: BTreeSet<&str> = manifests(&objects).filter_map(|key| key.strip_suffix(MANIFEST)).collect();
    for stem in objects.iter().filter_map(|object| stem_of_pin(&object.key)) {
        if !whole.contains(stem) && give_back(store, stem, &objects).await? {
            whole.insert(stem);
        }
    }
    let old = objects.iter().filter(|object| (now - object.modified).to_std().unwrap_or_default() >= ORPHANED);
    let orphans = old.filter(|object| stem_of(object).is_some_and(|stem| !whole.contains(stem)));
    let orphans: Vec<String> = orphans.map(|object| object.key.clone()).collect();
    store.delete(&orphans).await?;
    let uploads = store.sweep_uploads(&prefix, ORPHANED, now).await?;
    Ok(Swept { objects: orphans.len() as u64, uploads })
}

/// Gives a pinned backup its manifest back, if its data is there: whoever deletes one looks for a pin once more when the
/// manifest is gone, and may have died before that look.
async fn give_back(store: &dyn Store, stem: &str, objects: &[ObjectInfo]) -> Result<bool, Failure> {
    let backup = format!("{stem}{MANIFEST}");
    let text = match manifest_in(store, &pin_key(&backup)?).await {
        Ok(Some(text)) => text,
        // A pin that cannot be read gives nothing back, and stops nothing.
        Ok(None) | Err(Failure::Discard(_)) => return Ok(false),
        Err(failure) => return Err(failure),
    };
    let sizes: BTreeMap<&str, u64> = objects.iter().map(|object| (object.key.as_str(), object.bytes)).collect();
    if Manifest::parse(&text).and_then(|manifest| manifest.sized_as(&sizes)).is_err() {
        return Ok(false);
    }
    warn!(backup, "it is pinned and was to be deleted: it has its manifest back");
    store.put_if_absent(&backup, text.into()).await?;
    Ok(true)
}

/// Of what belongs to a backup beside its manifest: the part of the key that the manifest's begins with.
fn stem_of(object: &ObjectInfo) -> Option<&str> {
    stem_of_data(&object.key).or_else(|| stem_of_mark(&object.key))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::stores::Directory;

    #[tokio::test]
    async fn only_data_that_is_old_and_has_no_manifest_is_an_orphan() {
        let folder = tempfile::tempdir().unwrap();
        let Ok(store) = Directory::new(folder.path().to_str().unwrap()) else { panic!("refused") };
        let marks = ["a/2026/11/x.pin.json", "a/2026/11/y.pin.json"];
        let others =
            ["a/2026/11/x.1.dump.zst", "a/2026/11/y.1.dump.zst", "a/2026/11/y.manifest.json", "ab/z.1.dump.zst"];
        for key in marks.into_iter().chain(others) {
            assert!(store.put_if_absent(key, Bytes::from_static(b"x")).await.is_ok());
        }
        let written = chrono::DateTime::from(std::time::SystemTime::now());
        let Ok(swept) = sweep_orphans(&store, "a", written + Duration::from_hours(20)).await else { panic!() };
        assert_eq!(swept, Swept::default());
        let Ok(swept) = sweep_orphans(&store, "a", written + Duration::from_hours(30)).await else { panic!() };
        assert_eq!(swept.objects, 2);
        let Ok(left) = store.list("").await else { panic!() };
        let left: Vec<String> = left.into_iter().map(|object| object.key).collect();
        assert_eq!(
            left,
            ["a/2026/11/y.1.dump.zst", "a/2026/11/y.manifest.json", "a/2026/11/y.pin.json", "ab/z.1.dump.zst"]
        );
    }
}
