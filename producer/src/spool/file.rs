//! A delivery as a file: one line of JSON, then the sender's bytes exactly.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;
use schemas::{Timestamp, TraceContext};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::delivery::{Delivery, KeptHeaders};

#[derive(Serialize, Deserialize)]
struct Head {
    source: String,
    headers: KeptHeaders,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signed_with: Option<String>,
    received_at: Timestamp,
    trace: TraceContext,
    /// Of the body, in hex: a file that a disk has damaged is no delivery.
    sha256: String,
}

/// Why a file is not a delivery.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damaged {
    #[error("it has no first line")]
    NoHead,
    #[error("its first line cannot be read")]
    Head(#[from] serde_json::Error),
    #[error("its body is not what was written")]
    Body,
}

/// The parts of the file.
pub(super) fn encode(delivery: &Delivery) -> [Vec<u8>; 2] {
    let head = Head {
        source: delivery.source.clone(),
        headers: delivery.headers.clone(),
        signed_with: delivery.signed_with.clone(),
        received_at: delivery.received_at,
        trace: delivery.trace.clone(),
        sha256: hex::encode(Sha256::digest(&delivery.body)),
    };
    // A struct of texts always serializes; a head that did not would be found damaged, not lost.
    let mut line = serde_json::to_vec(&head).unwrap_or_default();
    line.push(b'\n');
    [line, delivery.body.to_vec()]
}

/// The delivery in a file.
pub(super) fn decode(contents: Vec<u8>) -> Result<Delivery, Damaged> {
    let contents = Bytes::from(contents);
    let end = contents.iter().position(|byte| *byte == b'\n').ok_or(Damaged::NoHead)?;
    let head: Head = serde_json::from_slice(&contents[..end])?;
    let body = contents.slice(end + 1..);
    if hex::encode(Sha256::digest(&body)) != head.sha256 {
        return Err(Damaged::Body);
    }
    let Head { source, headers, signed_with, received_at, trace, .. } = head;
    Ok(Delivery { source, headers, signed_with, body, received_at, trace })
}

/// Writes a new file whose bytes are on disk when this returns.
pub(super) fn write_synced(path: &Path, contents: &[Vec<u8>]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    contents.iter().try_for_each(|part| file.write_all(part))?;
    file.sync_all()
}
