//! How old the newest backups are, by the keys in their store alone: one list, and nothing is read.

use std::collections::{BTreeMap, BTreeSet};

use chrono::NaiveDateTime;
use schemas::Timestamp;

use super::{MANIFEST, manifest, marks};
use crate::handler::Failure;
use crate::stores::{ObjectInfo, Store};

/// How moments are written in keys.
const MOMENT: &str = "%Y%m%dT%H%M%SZ";

/// The newest backups of a database in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newest {
    /// When the newest one was asked for: what it holds is not older.
    pub backup: Timestamp,
    /// The same of the newest one that a restore has proven.
    pub proven: Option<Timestamp>,
}

/// The newest backups in a store, by database. One whose data is not there, and one that was disproved, are none.
pub async fn newest(store: &dyn Store) -> Result<BTreeMap<String, Newest>, Failure> {
    Ok(among(&store.list("").await?))
}

fn among(objects: &[ObjectInfo]) -> BTreeMap<String, Newest> {
    let marks = marks::among(objects);
    let with_data: BTreeSet<&str> = objects
        .iter()
        .filter(|object| object.bytes > 0)
        .filter_map(|object| manifest::stem_of_data(&object.key))
        .collect();
    let mut newest: BTreeMap<String, Newest> = BTreeMap::new();
    for stem in objects.iter().filter_map(|object| object.key.strip_suffix(MANIFEST)) {
        let marks = marks.get(stem).copied().unwrap_or_default();
        let Some((database, made)) = read(stem).filter(|_| with_data.contains(stem) && !marks.disproved()) else {
            continue;
        };
        let proven = marks.proven_at().map(|_| made);
        let known = newest.entry(database.to_owned()).or_insert(Newest { backup: made, proven });
        *known = Newest { backup: known.backup.max(made), proven: known.proven.max(proven) };
    }
    newest
}

/// The database and the moment in the beginning of a backup's keys.
fn read(stem: &str) -> Option<(&str, Timestamp)> {
    let (database, _) = stem.split_once('/')?;
    let moment = stem.rsplit('/').next()?.split('-').next()?;
    Some((database, NaiveDateTime::parse_from_str(moment, MOMENT).ok()?.and_utc()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "01990000-0000-7000-8000-000000000000";

    fn objects(keys: &[String]) -> Vec<ObjectInfo> {
        let object = |key: &String| ObjectInfo { key: key.clone(), bytes: 9, modified: Timestamp::UNIX_EPOCH };
        keys.iter().map(object).collect()
    }

    fn stem(database: &str, day: u32) -> String {
        format!("{database}/2026/11/202611{day:02}T020000Z-{JOB}")
    }

    fn backup(stem: &str) -> [String; 2] {
        [format!("{stem}{MANIFEST}"), data(stem)]
    }

    fn data(stem: &str) -> String {
        format!("{stem}.1.dump.zst")
    }

    fn mark(stem: &str, word: &str) -> String {
        format!("{stem}.20261130T000000Z-{JOB}.{word}.json")
    }

    fn day(moment: Option<Timestamp>) -> Option<u32> {
        moment.map(|moment| chrono::Datelike::day(&moment))
    }

    #[test]
    fn the_newest_counts_and_the_newest_that_was_proven() {
        let mut keys = Vec::new();
        for number in [1, 2, 3] {
            keys.extend(backup(&stem("main", number)));
        }
        keys.push(mark(&stem("main", 1), "verified"));
        keys.push(mark(&stem("main", 2), "verified"));
        keys.extend(backup(&stem("other", 1)));
        let found = among(&objects(&keys));
        assert_eq!((day(Some(found["main"].backup)), day(found["main"].proven)), (Some(3), Some(2)));
        assert_eq!((day(Some(found["other"].backup)), day(found["other"].proven)), (Some(1), None));
    }

    #[test]
    fn what_has_no_data_no_manifest_or_was_disproved_is_no_backup() {
        let mut keys = Vec::from(backup(&stem("main", 1)));
        keys.push(format!("{}{MANIFEST}", stem("main", 2)));
        keys.push(data(&stem("main", 3)));
        keys.extend(backup(&stem("main", 4)));
        keys.push(mark(&stem("main", 4), "disproved"));
        assert_eq!(day(Some(among(&objects(&keys))["main"].backup)), Some(1));
        assert!(among(&objects(&["a/key.manifest.json".into(), "another".into()])).is_empty());
    }
}
