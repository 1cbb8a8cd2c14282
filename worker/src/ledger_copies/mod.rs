//! Copies of the ledger, where it is a file: continuously, into a store, so that a lost machine loses no more than a minute.
//!
//! A *line* of copies is the whole ledger once, and after it what changed, copy by copy. Lines are numbered: who begins one
//! claims its number first, by an object that is written if absent. So a ledger that was recovered elsewhere is known by its
//! claim, and the one that it took over from keeps still. As with backups, the manifest alone makes a copy exist; it is
//! written last, when the data was read back and is right.
//!
//! ```text
//! nightporter-ledger/claims/00000007.json             who writes line 7
//! nightporter-ledger/00000007/000001-<id>.whole.zst   the ledger; with .age where the store encrypts
//! nightporter-ledger/00000007/000001.copy.json        its manifest
//! nightporter-ledger/00000007/000002-<id>.part.zst    the blocks that differ from what 1 shows
//! nightporter-ledger/00000007/000002.copy.json
//! ```

mod blocks;
mod claims;
mod copier;
mod metrics;
mod rebuild;
mod upload;

use std::collections::BTreeMap;

use schemas::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::backups::Data;
use crate::handler::Failure;
use crate::stores::{Store, read_small};

pub use claims::{Claim, Claimant, Taken, highest, take};
pub use copier::{Copier, CopierConfig, News, NoticeOfCopies, STALE};
pub use metrics::CopyMetrics;
pub use rebuild::{Rebuilt, rebuild};

/// What all keys of copies begin with.
const PREFIX: &str = "nightporter-ledger/";
/// How a manifest's key ends.
const MANIFEST: &str = ".copy.json";
/// The version of the manifest's form that this binary writes, and the newest that it reads.
const VERSION: u32 = 1;
/// No manifest and no claim is larger.
const LARGEST_MANIFEST: u64 = 64 * 1024;
/// So many lines are kept.
const LINES_KEPT: usize = 3;

/// One copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// `VERSION`. Fields may be added within one version.
    pub version: u32,
    /// Which ledger it is a copy of.
    pub instance: Uuid,
    /// The line that it belongs to.
    pub line: u32,
    /// Its place in the line. The first is whole, each other holds what changed since the one before it.
    pub number: u32,
    /// The moment that it shows.
    pub at: Timestamp,
    /// How many bytes the ledger has.
    pub bytes: u64,
    /// What all its blocks are, in one digest.
    pub root: String,
    /// Where and what the bytes are.
    pub data: Data,
    /// The program that wrote this.
    pub written_by: String,
}

/// A line of copies in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number.
    pub number: u32,
    /// How many copies it has, without a gap.
    pub copies: u32,
}

/// The lines in a store that have a whole copy, the newest first.
pub async fn lines(store: &dyn Store) -> Result<Vec<Line>, Failure> {
    let objects = store.list(PREFIX).await?;
    let mut numbers: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (line, number) in objects.iter().filter_map(|object| place_of(&object.key)) {
        numbers.entry(line).or_default().push(number);
    }
    let without_gap = |of: &[u32]| (1..).zip(of).take_while(|(wanted, found)| wanted == *found).count();
    let line = |(number, of): (u32, Vec<u32>)| {
        let copies = u32::try_from(without_gap(&of)).unwrap_or(u32::MAX);
        (copies > 0).then_some(Line { number, copies })
    };
    Ok(numbers.into_iter().rev().filter_map(line).collect())
}

/// The last copy in a store; none where there is none.
pub async fn last(store: &dyn Store) -> Result<Option<Copy>, Failure> {
    match lines(store).await?.first() {
        Some(line) => read_copy(store, line.number, line.copies).await,
        None => Ok(None),
    }
}

fn folder_of(line: u32) -> String {
    format!("{PREFIX}{line:08}/")
}

fn manifest_key(line: u32, number: u32) -> String {
    format!("{}{number:06}{MANIFEST}", folder_of(line))
}

/// The line and the number in it that the key of a manifest names.
fn place_of(key: &str) -> Option<(u32, u32)> {
    let (line, number) = key.strip_prefix(PREFIX)?.strip_suffix(MANIFEST)?.split_once('/')?;
    Some((line.parse().ok()?, number.parse().ok()?))
}

/// The line that a key belongs to.
fn line_of(key: &str) -> Option<u32> {
    key.strip_prefix(PREFIX)?.split_once('/')?.0.parse().ok()
}

/// Reads one manifest; none where there is none.
async fn read_copy(store: &dyn Store, line: u32, number: u32) -> Result<Option<Copy>, Failure> {
    let key = manifest_key(line, number);
    let Some(text) = read_small(store, &key, LARGEST_MANIFEST).await? else { return Ok(None) };
    read_form(&key, &text).map(Some)
}

fn read_form<T: for<'de> Deserialize<'de>>(key: &str, text: &[u8]) -> Result<T, Failure> {
    #[derive(Deserialize)]
    struct Form {
        version: u32,
    }
    let form: Result<Form, _> = serde_json::from_slice(text);
    if let Ok(Form { version: newer @ VERSION.. }) = form
        && newer > VERSION
    {
        return Err(Failure::Discard(anyhow::anyhow!(
            "{key} was written by a newer nightporter (form {newer}, this one reads {VERSION}); use that one"
        )));
    }
    serde_json::from_slice(text).map_err(|error| damage(format!("{key} is not readable: {error}")))
}

/// What lies in the store is not what was written there: that stays so.
fn damage(words: String) -> Failure {
    Failure::discard(std::io::Error::new(std::io::ErrorKind::InvalidData, words))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::stores::Directory;

    #[tokio::test]
    async fn lines_are_listed_the_newest_first_and_end_at_their_first_gap() {
        let folder = tempfile::tempdir().unwrap();
        let Ok(store) = Directory::new(&folder.path().display().to_string()) else { panic!("a store") };
        for (line, number) in [(7, 1), (7, 2), (7, 4), (12, 2), (9, 1)] {
            let Ok(_) = store.put_if_absent(&manifest_key(line, number), Bytes::new()).await else { panic!("written") };
        }
        let Ok(_) = store.put_if_absent("nightporter-ledger/claims/00000012.json", Bytes::new()).await else {
            panic!("written")
        };
        let Ok(found) = lines(&store).await else { panic!("listed") };
        assert_eq!(found, [Line { number: 9, copies: 1 }, Line { number: 7, copies: 2 }]);
    }

    #[test]
    fn keys_of_manifests_tell_their_place_and_no_others_do() {
        assert_eq!(place_of(&manifest_key(7, 12)), Some((7, 12)));
        assert_eq!(line_of("nightporter-ledger/00000007/000001-x.whole.zst"), Some(7));
        for other in
            ["nightporter-ledger/claims/00000007.json", "main/2026/x.manifest.json", "00000007/000001.copy.json"]
        {
            assert_eq!((place_of(other), line_of(other)), (None, None), "{other}");
        }
    }
}
