//! A ledger that is a file, as it stands at one moment.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use schemas::Timestamp;
use uuid::Uuid;

/// What became of the wish for a snapshot.
pub enum Snapped {
    /// The ledger is no file: its server is to copy it.
    NoFile,
    /// Nothing was written since the version that was named.
    Unchanged,
    /// Here it is.
    Taken(Snapshot),
}

/// A ledger as it stood at one moment. It stands still for as long as this is held, while others write; what they write
/// meanwhile takes room on the disk until it is dropped.
pub struct Snapshot {
    file: Arc<File>,
    /// How many bytes it has.
    pub bytes: u64,
    /// When it stood so.
    pub at: Timestamp,
    /// Which ledger it is.
    pub instance: Uuid,
    /// Whether anything was written since is told by this, until the ledger is opened anew.
    pub version: i64,
    /// Keeps the file as it is.
    _hold: Box<dyn Send + Sync>,
}

impl Snapshot {
    pub(super) fn new(
        file: Arc<File>,
        (bytes, at, instance, version): (u64, Timestamp, Uuid, i64),
        hold: impl Send + Sync + 'static,
    ) -> Self {
        Self { file, bytes, at, instance, version, _hold: Box::new(hold) }
    }

    /// Reads the bytes from here on, as many as there is room for.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }
}
