//! Rows on their way into a store: into an object first, and then those versions of them are deleted that are in it.

use std::io::{BufRead, BufReader, Write};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{IN_THE_WAY, OfRows, STRETCH, Stretch, Way};
use crate::context::Context;
use crate::handler::{Failure, OrFail};
use crate::rows::{Key, Pace, Stepped, Versions, Walk};
use crate::stores::{Store, read_small};

/// A stretch into a store is one object, of about so many rows.
const ROWS_OF_OBJECT: usize = 20_000;
/// Of no more than so many bytes, and one row that may be larger: they are held in memory.
const BYTES_OF_OBJECT: usize = 32 << 20;
/// No object is larger when it is packed; one that holds a single row is not.
const LARGEST_OBJECT: u64 = 1 << 30;

/// The first line of an object.
#[derive(Serialize, Deserialize)]
struct Head {
    table: String,
    /// Where its stretch ends.
    boundary: Key,
}

/// Every other line of an object.
#[derive(Serialize)]
struct Line<'a> {
    key: &'a str,
    /// The row's version, in the words of the server.
    version: &'a str,
    row: &'a RawValue,
}

/// The same, as it is read.
#[derive(Deserialize)]
struct ReadLine {
    key: String,
    version: String,
    row: Box<RawValue>,
}

impl OfRows {
    /// Moves what is due in a stretch into an object.
    pub(super) async fn move_into_store(
        &self,
        cx: &Context,
        walk: &mut Walk,
        way: &Way<'_>,
        store: &dyn Store,
        object: String,
    ) -> Result<Stretch, Failure> {
        let (boundary, read) = match self.find(store, &object).await? {
            Some(found) => found,
            None => self.archive(cx, walk, way, store, &object).await?,
        };
        let deleted = self.delete_archived(cx, walk, way, &boundary, &read).await?;
        let object = (!read.keys.is_empty()).then_some(object);
        Ok(Stretch { cursor: Some(boundary), deleted, object })
    }

    /// Reads what is due in a stretch, and writes it down.
    async fn archive(
        &self,
        cx: &Context,
        walk: &mut Walk,
        way: &Way<'_>,
        store: &dyn Store,
        object: &str,
    ) -> Result<(Key, Versions), Failure> {
        let &Way { plan, cursor, last } = way;
        let (mut pace, begun) = (Pace::new(), Instant::now());
        let (mut at, mut read) = (cursor.cloned(), Versions::default());
        while at.as_ref() != Some(last) && has_room_for_more(&read) && begun.elapsed() < STRETCH {
            let start = Instant::now();
            let room = BYTES_OF_OBJECT.saturating_sub(read.bytes());
            let stepped = match walk.boundary(plan.before, at.as_ref(), last, pace.size()).await? {
                Stepped::Done(boundary) => match walk.read(plan.before, at.as_ref(), &boundary, room).await? {
                    Stepped::Done((rows, cut_at)) => Some((cut_at.unwrap_or(boundary), rows)),
                    Stepped::Refused => None,
                },
                Stepped::Refused => None,
            };
            let rest = match stepped {
                Some((boundary, rows)) => {
                    at = Some(boundary);
                    read.append(rows);
                    pace.done(start.elapsed())
                }
                None => match pace.refused() {
                    Some(rest) => rest,
                    None => return Err(self.come_back(cx, plan, IN_THE_WAY.to_owned())),
                },
            };
            tokio::time::sleep(rest).await;
        }
        let boundary = at.ok_or_else(|| Failure::retry(anyhow::anyhow!("the walk did not begin")))?;
        if read.keys.is_empty() {
            return Ok((boundary, read));
        }
        let text = packed(&Head { table: walk.table.name.clone(), boundary: boundary.clone() }, &read)?;
        store.put_if_absent(object, text).await?;
        // What lies there counts, whoever wrote it.
        self.find(store, object)
            .await?
            .ok_or_else(|| Failure::retry(anyhow::anyhow!("{object} was written and is gone")))
    }

    /// What an object says; none where there is none.
    async fn find(&self, store: &dyn Store, object: &str) -> Result<Option<(Key, Versions)>, Failure> {
        let Some(text) = read_small(store, object, LARGEST_OBJECT).await? else { return Ok(None) };
        let (head, versions) = unpacked(&text).or_discard(&format!("reading {object}"))?;
        Ok(Some((head.boundary, versions)))
    }

    async fn delete_archived(
        &self,
        cx: &Context,
        walk: &mut Walk,
        &Way { plan, cursor, .. }: &Way<'_>,
        boundary: &Key,
        read: &Versions,
    ) -> Result<u64, Failure> {
        let (mut pace, mut deleted, mut at) = (Pace::new(), 0, 0);
        while at < read.keys.len() {
            let start = Instant::now();
            let end = (at + pace.size() as usize).min(read.keys.len());
            let part = read.part(at..end);
            // Only where the part lies: the whole stretch would be read again for each part of it.
            let behind = at.checked_sub(1).and_then(|before| walk.key_of(&read.keys[before]));
            let until = part.keys.last().and_then(|last| walk.key_of(last));
            let (from, to) = (behind.as_ref().or(cursor), until.as_ref().unwrap_or(boundary));
            let rest = match walk.delete_read(plan.before, from, to, &part).await? {
                Stepped::Done(gone) => {
                    (at, deleted) = (end, deleted + gone);
                    pace.done(start.elapsed())
                }
                Stepped::Refused => match pace.refused() {
                    Some(rest) => rest,
                    None => return Err(self.come_back(cx, plan, IN_THE_WAY.to_owned())),
                },
            };
            tokio::time::sleep(rest).await;
        }
        Ok(deleted)
    }

    pub(super) fn object(&self, cx: &Context, number: usize) -> String {
        format!("rows/{}/{}/{}/{number:06}.jsonl.zst", self.database, self.table, cx.job().attempt.job)
    }
}

fn has_room_for_more(read: &Versions) -> bool {
    read.keys.len() < ROWS_OF_OBJECT && read.bytes() < BYTES_OF_OBJECT
}

fn packed(head: &Head, read: &Versions) -> Result<Bytes, Failure> {
    let writing = || {
        let mut text = zstd::Encoder::new(Vec::new(), 3)?;
        serde_json::to_writer(&mut text, head)?;
        for ((key, version), row) in read.keys.iter().zip(&read.stamps).zip(&read.rows) {
            text.write_all(b"\n")?;
            serde_json::to_writer(&mut text, &Line { key, version, row: serde_json::from_str(row)? })?;
        }
        text.write_all(b"\n")?;
        Ok::<_, anyhow::Error>(text.finish()?)
    };
    writing().map(Bytes::from).or_discard("packing the archive")
}

fn unpacked(packed: &[u8]) -> anyhow::Result<(Head, Versions)> {
    let mut lines = BufReader::new(zstd::Decoder::new(packed)?).lines();
    let head = serde_json::from_str(&lines.next().transpose()?.unwrap_or_default())?;
    let mut versions = Versions::default();
    for line in lines {
        let line = line?;
        let read: ReadLine = serde_json::from_str(&line)?;
        versions.keys.push(read.key);
        versions.stamps.push(read.version);
        versions.rows.push(read.row.get().to_owned());
    }
    Ok((head, versions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_gives_back_what_was_put_into_it() {
        let read = Versions {
            keys: vec!["1\u{1f}a".into(), "2\u{1f}\"\n".into()],
            stamps: vec!["700".into(), "701".into()],
            rows: vec![r#"{"id": 1, "big": 12345678901234567890.123}"#.into(), r#"{"id": 2, "text": "ü\n"}"#.into()],
        };
        let head = Head { table: "sessions".into(), boundary: vec!["2".into(), "x".into()] };
        let (again, versions) = unpacked(&packed(&head, &read).unwrap()).unwrap();
        assert_eq!((again.table, again.boundary), (head.table, head.boundary));
        assert_eq!((versions.keys, versions.stamps, versions.rows), (read.keys, read.stamps, read.rows));
    }
}
