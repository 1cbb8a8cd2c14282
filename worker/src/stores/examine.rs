//! Tries out what backups rely on at a store, with one small object that is deleted again.

use bytes::Bytes;

use super::{Put, Store, read_small};
use crate::examination::Remark;
use crate::handler::Failure;

/// No object that is tried out is larger.
const SMALL: u64 = 1024;

/// Writes, refuses to overwrite, reads, lists and deletes an object of this key. What a store fails at is told; what it
/// does not answer is the failure.
pub async fn examine(store: &dyn Store, key: &str) -> Result<Vec<Remark>, Failure> {
    let (first, second) = (Bytes::from_static(b"nightporter was here"), Bytes::from_static(b"and must not be again"));
    if store.put_if_absent(key, first.clone()).await? != Put::Written {
        return Ok(vec![Remark::ill(format!(
            "it says that a fresh name is taken ({key}): no backup could be finished"
        ))]);
    }
    let tried = try_out(store, key, &first, second).await;
    let deleted = store.delete(&[key.to_owned()]).await;
    let mut remarks = tried?;
    deleted?;
    if remarks.is_empty() {
        remarks.push(Remark::well("writes, reads, lists, deletes, and overwrites nothing"));
    }
    Ok(remarks)
}

async fn try_out(store: &dyn Store, key: &str, first: &Bytes, second: Bytes) -> Result<Vec<Remark>, Failure> {
    let mut remarks = Vec::new();
    if store.put_if_absent(key, second.clone()).await? == Put::Written {
        remarks.push(Remark::ill(
            "it overwrites where it was told not to (If-None-Match): two attempts could make one backup; take another \
             server or a newer version of it",
        ));
    }
    let there = if remarks.is_empty() { first } else { &second };
    if read_small(store, key, SMALL).await?.as_deref() != Some(&there[..]) {
        remarks.push(Remark::ill("what was written is not what is read back"));
    }
    if !store.list(key).await?.iter().any(|object| object.key == key) {
        remarks.push(Remark::ill("what was written is not listed: backups would not be found"));
    }
    Ok(remarks)
}
