//! The spool: verified deliveries on disk, of senders that never send again, while the ledger is away.
//!
//! One file for each, written under another name, synced, renamed, and its folder synced: a file under its name is whole.
//! It is deleted only after its event is committed, so that a crash at any point leaves it for the next drain; booking it
//! twice is safe, since its delivery id is known then. What cannot be read or booked is set aside, never deleted.

mod drain;
mod file;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, io};

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::delivery::Delivery;

/// The ending of a delivery's file.
const DELIVERY: &str = "delivery";
/// The ending of a file that is still being written.
const UNFINISHED: &str = "unfinished";
/// The ending of a file that was set aside.
const BAD: &str = "bad";

/// How much a spool may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolLimits {
    /// So many deliveries.
    pub deliveries: u64,
    /// So many bytes.
    pub bytes: u64,
}

impl Default for SpoolLimits {
    /// 10,000 deliveries, 1 GiB.
    fn default() -> Self {
        Self { deliveries: 10_000, bytes: 1024 * 1024 * 1024 }
    }
}

/// Why the spool did not keep a delivery.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// It holds as much as it may.
    #[error("the spool is full")]
    Full,
    /// The disk says no.
    #[error("the spool's folder {folder} cannot be used; check that it exists, is writable and has room")]
    Disk {
        /// Which folder.
        folder: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A folder of deliveries that wait for the ledger. Cheap to clone.
#[derive(Clone)]
pub struct Spool(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    limits: SpoolLimits,
    held: Mutex<Held>,
    /// Makes names that follow each other.
    next: AtomicU64,
    /// Rung when a delivery was put in.
    filled: Notify,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    deliveries: u64,
    bytes: u64,
}

impl Spool {
    /// Opens the folder, making it where it is not there, and counts what it holds.
    pub fn open(folder: &Path, limits: SpoolLimits) -> Result<Self, SpoolError> {
        let disk = |source| SpoolError::Disk { folder: folder.display().to_string(), source };
        fs::create_dir_all(folder).map_err(disk)?;
        let mut held = Held::default();
        for entry in fs::read_dir(folder).map_err(disk)? {
            let entry = entry.map_err(disk)?;
            if has_ending(&entry.path(), UNFINISHED) {
                fs::remove_file(entry.path()).map_err(disk)?; // Nobody signed for it.
            } else if has_ending(&entry.path(), DELIVERY) {
                held.deliveries += 1;
                held.bytes += entry.metadata().map_err(disk)?.len();
            }
        }
        Ok(Self(Arc::new(Inner {
            folder: folder.to_owned(),
            limits,
            held: Mutex::new(held),
            next: AtomicU64::new(0),
            filled: Notify::new(),
        })))
    }

    /// A spool that takes nothing, for a process that no sender delivers to: a folder has one process's spool.
    pub fn closed() -> Self {
        Self(Arc::new(Inner {
            folder: PathBuf::new(),
            limits: SpoolLimits { deliveries: 0, bytes: 0 },
            held: Mutex::default(),
            next: AtomicU64::new(0),
            filled: Notify::new(),
        }))
    }

    /// How many deliveries wait in it.
    pub fn waiting(&self) -> u64 {
        self.held().deliveries
    }

    /// Keeps a delivery: when this returns, it is on disk.
    pub(crate) async fn put(&self, delivery: Delivery) -> Result<(), SpoolError> {
        let spool = self.clone();
        let written = spawn_blocking(move || spool.write(&delivery));
        written.await.map_err(|_| self.disk(io::Error::other("the writer stopped")))??;
        self.0.filled.notify_one();
        Ok(())
    }

    /// Whether it has room, on a disk that takes writes.
    pub(crate) async fn can_accept(&self) -> bool {
        let held = self.held();
        let room = held.deliveries < self.0.limits.deliveries && held.bytes < self.0.limits.bytes;
        let probe = self.0.folder.join(format!("probe-{}.{UNFINISHED}", Uuid::new_v4().simple()));
        room && matches!(
            spawn_blocking(move || fs::write(&probe, b"?").and_then(|()| fs::remove_file(&probe))).await,
            Ok(Ok(()))
        )
    }

    fn write(&self, delivery: &Delivery) -> Result<(), SpoolError> {
        let contents = file::encode(delivery);
        let size = contents.iter().map(|part| part.len() as u64).sum();
        self.reserve(size)?;
        // Names sort by time of arrival, those of one moment by the order in which they came.
        let micros = delivery.received_at.timestamp_micros();
        let order = self.0.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{micros:020}-{order:010}-{}", Uuid::new_v4().simple());
        let written = self.write_file(&name, &contents);
        if written.is_err() {
            self.give_back(size);
        }
        written.map_err(|source| self.disk(source))
    }

    fn write_file(&self, name: &str, contents: &[Vec<u8>]) -> io::Result<()> {
        let unfinished = self.0.folder.join(format!("{name}.{UNFINISHED}"));
        let written = file::write_synced(&unfinished, contents)
            .and_then(|()| fs::rename(&unfinished, self.0.folder.join(format!("{name}.{DELIVERY}"))))
            .and_then(|()| sync_folder(&self.0.folder));
        if written.is_err() {
            let _gone_or_left_for_the_next_start = fs::remove_file(&unfinished);
        }
        written
    }

    fn reserve(&self, size: u64) -> Result<(), SpoolError> {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        let after = Held { deliveries: held.deliveries + 1, bytes: held.bytes + size };
        if after.deliveries > self.0.limits.deliveries || after.bytes > self.0.limits.bytes {
            return Err(SpoolError::Full);
        }
        *held = after;
        Ok(())
    }

    fn give_back(&self, size: u64) {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.deliveries = held.deliveries.saturating_sub(1);
        held.bytes = held.bytes.saturating_sub(size);
    }

    fn held(&self) -> Held {
        *self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self, source: io::Error) -> SpoolError {
        SpoolError::Disk { folder: self.0.folder.display().to_string(), source }
    }
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|found| found == ending)
}

/// Makes names in a folder durable.
fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}
