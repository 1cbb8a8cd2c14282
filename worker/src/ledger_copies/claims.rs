//! Claims: whose turn it is to write a line. Of two porters that go on from one ledger the later one has the word.

use bytes::Bytes;
use schemas::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{LARGEST_MANIFEST, PREFIX, VERSION, read_form};
use crate::handler::{Failure, OrFail};
use crate::stores::{Put, Store, read_small};

/// Others that claim at the same moment are few.
const TRIES: u32 = 10;

/// The claim to a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The form's.
    version: u32,
    /// The line's number.
    pub line: u32,
    /// The ledger that is copied there.
    pub instance: Uuid,
    /// When it was claimed.
    pub at: Timestamp,
    /// The machine that did.
    pub machine: String,
    /// Tells this claim from any other.
    mark: Uuid,
    /// The program that did.
    written_by: String,
}

/// Who claims.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// The ledger that is to be copied.
    pub instance: Uuid,
    /// The machine.
    pub machine: String,
    /// Whether it takes over from another ledger.
    pub takes_over: bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// This line is the claimant's.
    Mine(u32),
    /// Another ledger has the word.
    Others(Claim),
}

/// The last claim.
pub async fn highest(store: &dyn Store) -> Result<Option<Claim>, Failure> {
    let all = store.list(&claims()).await?;
    // A number has eight digits, so they are listed in their order.
    let Some(last) = all.last() else { return Ok(None) };
    let Some(text) = read_small(store, &last.key, LARGEST_MANIFEST).await? else { return Ok(None) };
    read_form(&last.key, &text).map(Some)
}

/// Claims the next line, unless another ledger has the word.
pub async fn take(store: &dyn Store, claimant: &Claimant, now: Timestamp) -> Result<Taken, Failure> {
    for _ in 0..TRIES {
        let before = highest(store).await?;
        if let Some(claim) = &before
            && claim.instance != claimant.instance
            && !claimant.takes_over
        {
            return Ok(Taken::Others(claim.clone()));
        }
        let claim = Claim {
            version: VERSION,
            line: before.map_or(0, |claim| claim.line) + 1,
            instance: claimant.instance,
            at: now,
            machine: claimant.machine.clone(),
            mark: Uuid::new_v4(),
            written_by: concat!("nightporter ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let (key, text) = (key_of(claim.line), serde_json::to_vec_pretty(&claim).or_discard("writing a claim")?);
        if store.put_if_absent(&key, Bytes::from(text)).await? == Put::Written {
            return Ok(Taken::Mine(claim.line));
        }
        // It is somebody else's; or ours, if the answer to the first try was lost.
        let there = read_small(store, &key, LARGEST_MANIFEST).await?;
        if there.map(|text| read_form::<Claim>(&key, &text)).transpose()?.is_some_and(|there| there == claim) {
            return Ok(Taken::Mine(claim.line));
        }
    }
    Err(Failure::retry(anyhow::anyhow!("others claim the copies of this ledger at the same time, again and again")))
}

/// Deletes claims to lines before this one; the last claim stays, whatever is asked.
pub(super) async fn sweep(store: &dyn Store, before: u32) -> Result<(), Failure> {
    let mut all: Vec<String> = store.list(&claims()).await?.into_iter().map(|object| object.key).collect();
    all.pop();
    let old = key_of(before);
    all.retain(|key| *key < old);
    store.delete(&all).await
}

fn claims() -> String {
    format!("{PREFIX}claims/")
}

fn key_of(line: u32) -> String {
    format!("{}{line:08}.json", claims())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stores::Directory;

    fn claimant(instance: Uuid, takes_over: bool) -> Claimant {
        Claimant { instance, machine: "here".into(), takes_over }
    }

    #[tokio::test]
    async fn of_two_ledgers_that_which_took_over_has_the_word_and_the_other_does_not_take_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let Ok(store) = Directory::new(&folder.path().display().to_string()) else { panic!("a store") };
        let (old, new, now) = (Uuid::new_v4(), Uuid::new_v4(), Timestamp::UNIX_EPOCH);
        let claim = async |instance, takes_over| match take(&store, &claimant(instance, takes_over), now).await {
            Ok(taken) => taken,
            Err(failure) => panic!("{}", failure.words()),
        };
        assert_eq!(claim(old, false).await, Taken::Mine(1));
        assert_eq!(claim(old, false).await, Taken::Mine(2));
        assert!(matches!(claim(new, false).await, Taken::Others(Claim { line: 2, .. })));
        assert_eq!(claim(new, true).await, Taken::Mine(3));
        assert!(matches!(claim(old, false).await, Taken::Others(Claim { line: 3, .. })));
        assert_eq!(claim(new, false).await, Taken::Mine(4));
        let Ok(()) = sweep(&store, 4).await else { panic!("swept") };
        assert_eq!(claim(new, false).await, Taken::Mine(5), "numbers only rise");
        let Ok(()) = sweep(&store, 99).await else { panic!("swept") };
        assert!(matches!(claim(old, false).await, Taken::Others(Claim { line: 5, .. })), "the last claim stays");
    }
}
