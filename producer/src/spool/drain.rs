//! Reads the spool into the ledger, oldest first, through the way in that all deliveries take. They are not verified
//! again: they were, and by now their time would be too long ago.

use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use queue::ledger::LedgerError;
use queue::retry::Pauses;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument, error, info, info_span, warn};

use super::{BAD, DELIVERY, Spool, file, has_ending, sync_folder};
use crate::body;
use crate::delivery::Delivery;
use crate::door::Door;

/// The ledger must have committed one delivery within this.
const BOOKED_WITHIN: Duration = Duration::from_secs(30);

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What became of a file, or of all.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// Its event is committed; the file is gone.
    Booked,
    /// It is kept out of the way, for an operator.
    SetAside,
    /// The ledger is away: later.
    NotNow,
}

impl Door {
    /// Books what is in the spool, now and whenever something is put in, until told to stop. Stopping at any point is
    /// safe.
    pub async fn drain(&self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.drain_for_ever() => {}
        }
    }

    async fn drain_for_ever(&self) {
        let spool = &self.0.config.spool;
        let mut pauses = Pauses::endless(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            match self.drain_once(spool).await {
                Ok(Drained::NotNow) => {}
                Ok(Drained::Booked | Drained::SetAside) => {
                    pauses = Pauses::endless(FIRST_PAUSE, LONGEST_PAUSE);
                    spool.0.filled.notified().await;
                    continue;
                }
                Err(error) => error!(%error, folder = %spool.0.folder.display(), "the spool cannot be read or tidied"),
            }
            sleep(pauses.next_pause().unwrap_or(LONGEST_PAUSE)).await;
        }
    }

    /// Goes through the spool once, up to the first delivery that cannot be booked now.
    pub(crate) async fn drain_once(&self, spool: &Spool) -> io::Result<Drained> {
        let listed = spool.clone();
        for path in blocking(move || listed.files()).await? {
            if let Drained::NotNow = self.drain_file(spool, path).await? {
                return Ok(Drained::NotNow);
            }
        }
        Ok(Drained::Booked)
    }

    async fn drain_file(&self, spool: &Spool, path: PathBuf) -> io::Result<Drained> {
        let contents = blocking({
            let path = path.clone();
            move || fs::read(path)
        })
        .await?;
        let size = contents.len() as u64;
        let delivery = match file::decode(contents) {
            Ok(delivery) => delivery,
            Err(damaged) => return spool.set_aside(path, size, &damaged.to_string()).await,
        };
        let booked = if body::is_large(&delivery.body) {
            let door = self.clone();
            let panicked = || Err(Unbooked::NotNow("it could not be worked on".to_owned()));
            body::aside(async move { door.book_spooled(&delivery).await }).await.unwrap_or_else(panicked)
        } else {
            self.book_spooled(&delivery).await
        };
        match booked {
            Ok(()) => spool.remove(path, size).await,
            Err(Unbooked::Never(reason)) => spool.set_aside(path, size, &reason).await,
            Err(Unbooked::NotNow(reason)) => {
                warn!(reason, "the ledger is still away; the spool waits");
                Ok(Drained::NotNow)
            }
        }
    }

    async fn book_spooled(&self, delivery: &Delivery) -> Result<(), Unbooked> {
        let Some(source) = self.0.config.sources.get(&delivery.source) else {
            return Err(Unbooked::Never(format!("its source `{}` is no longer configured", delivery.source)));
        };
        let span = info_span!(
            parent: None,
            "spooled delivery",
            otel.kind = "internal",
            source = source.name(),
            "event.id" = Empty,
            "event.type" = Empty,
        );
        queue::trace::set_parent(&span, &delivery.trace);
        let booked = timeout(BOOKED_WITHIN, self.book(source, delivery)).instrument(span).await;
        match booked {
            Ok(Ok(receipt)) => {
                info!(event = %receipt.event, duplicate = receipt.duplicate, "a spooled delivery is booked");
                Ok(())
            }
            Ok(Err(error)) if matches!(*error, LedgerError::Refused(_)) => Err(Unbooked::Never(error.to_string())),
            Ok(Err(error)) => Err(Unbooked::NotNow(error.to_string())),
            Err(_) => Err(Unbooked::NotNow("the ledger did not commit in time".to_owned())),
        }
    }
}

enum Unbooked {
    NotNow(String),
    Never(String),
}

impl Spool {
    /// The deliveries in it, the oldest first.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.0.folder)?.collect::<io::Result<Vec<_>>>()?;
        let mut files: Vec<PathBuf> =
            entries.iter().map(fs::DirEntry::path).filter(|path| has_ending(path, DELIVERY)).collect();
        files.sort();
        Ok(files)
    }

    async fn remove(&self, path: PathBuf, size: u64) -> io::Result<Drained> {
        blocking(move || fs::remove_file(path)).await?;
        self.give_back(size);
        Ok(Drained::Booked)
    }

    async fn set_aside(&self, path: PathBuf, size: u64, reason: &str) -> io::Result<Drained> {
        let aside = path.with_extension(BAD);
        error!(
            reason,
            path = %aside.display(),
            "a spooled delivery is set aside; rename it to .{DELIVERY} to have it tried again at the next start"
        );
        let folder = self.0.folder.clone();
        blocking(move || fs::rename(&path, &aside).and_then(|()| sync_folder(&folder))).await?;
        self.give_back(size);
        Ok(Drained::SetAside)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}
