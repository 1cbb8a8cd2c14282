//! From copies in a store back to a ledger's file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use schemas::Timestamp;
use tokio::io::AsyncReadExt;
use uuid::Uuid;

use super::blocks::{Blocks, Still, apply};
use super::{Copy, Line, damage, read_copy};
use crate::backups::{self, Seal};
use crate::handler::{Failure, OrFail};
use crate::stores::Store;

/// A part is held in memory while it is read; none that we wrote is larger.
const LARGEST_PART: u64 = 256 << 20;
/// Bytes are taken over in pieces of this size.
const PIECE: usize = 256 * 1024;
/// Who may read the ledger: its owner. It holds personal data.
const PRIVATE: u32 = 0o600;

/// A ledger as a copy shows it.
#[derive(Clone, Debug)]
pub struct Rebuilt {
    /// The line that it is from.
    pub line: u32,
    /// The last copy of it that was taken over.
    pub number: u32,
    /// The moment that this shows.
    pub shows: Timestamp,
    /// Which ledger it was.
    pub instance: Uuid,
    /// How many bytes it has.
    pub bytes: u64,
    /// Why later copies of the line were not taken over, if so.
    pub passed_over: Option<String>,
}

/// Writes the ledger as the last good copy of a line shows it into a new file. Damage behind the whole copy costs the
/// copies from there on; damage that leaves nothing is the failure (see [`backups::is_damage`]).
pub async fn rebuild(store: &dyn Store, seal: &Seal, line: &Line, path: &Path) -> Result<Rebuilt, Failure> {
    let mut file = create(path).or_retry("making the ledger's file")?;
    let mut last = take_over(store, seal, (line.number, 1), &mut file).await?;
    let mut passed_over = None;
    for number in 2..=line.copies {
        match take_over(store, seal, (line.number, number), &mut file).await {
            Ok(copy) => last = copy,
            Err(failure) if backups::is_damage(&failure) => {
                passed_over = Some(format!("copy {number} of line {}: {}", line.number, failure.words()));
                break;
            }
            Err(failure) => return Err(failure),
        }
    }
    let blocks = Blocks::of(&Still(&file, last.bytes), |_| Ok(())).or_retry("reading what was written")?;
    if blocks.root() != last.root {
        return Err(damage(format!("line {} does not make the ledger that its copies name", line.number)));
    }
    file.sync_all().or_retry("writing the ledger's file")?;
    let Copy { instance, at, bytes, number, .. } = last;
    Ok(Rebuilt { line: line.number, number, shows: at, instance, bytes, passed_over })
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(PRIVATE).open(path)
}

/// Takes over one copy, whole or not at all, where it is not the first.
async fn take_over(
    store: &dyn Store,
    seal: &Seal,
    (line, number): (u32, u32),
    file: &mut File,
) -> Result<Copy, Failure> {
    let copy = read_copy(store, line, number).await?;
    let copy = copy.ok_or_else(|| damage(format!("the manifest of copy {number} is gone")))?;
    if (copy.line, copy.number) != (line, number) {
        return Err(damage(format!("the manifest of copy {number} is another's")));
    }
    let unpacked = backups::open(store, &copy.data, seal).await?;
    let (mut reader, verdict) = (unpacked.reader, unpacked.verdict);
    if number == 1 {
        let mut buffer = vec![0; PIECE];
        loop {
            let read = reader.read(&mut buffer).await.map_err(not_read)?;
            if read == 0 {
                break;
            }
            file.write_all(&buffer[..read]).or_retry("writing the ledger's file (is the disk full?)")?;
        }
    } else {
        if copy.data.plain.bytes > LARGEST_PART {
            return Err(damage(format!("copy {number} is larger than any")));
        }
        let mut part = Vec::new();
        reader.read_to_end(&mut part).await.map_err(not_read)?;
        apply(&part, file, copy.bytes).map_err(not_read)?;
    }
    // Not "nothing was wrong" but "all was seen and right".
    verdict.await.or_retry("the copy was not read to its end")?.map_err(Failure::Discard)?;
    Ok(copy)
}

/// What is not what was stored stays so, and so does a key that opens nothing; a store may answer later.
fn not_read(error: io::Error) -> Failure {
    let stays = matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::PermissionDenied);
    let error = anyhow::Error::new(error).context("reading a copy of the ledger");
    if stays { Failure::Discard(error) } else { Failure::retry(error) }
}
