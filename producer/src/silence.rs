//! Listens whether sources have gone silent: a webhook that somebody switched off, or a secret that was changed at the
//! sender, fails nowhere here, it is only never heard again.
//!
//! What is heard is kept in memory and told to the ledger each minute, which knows it of all producers and tells people
//! once. Time in which no producer listened is no silence.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use queue::ledger::{LedgerError, Listened, Silence};
use queue::{NoticeOfSilence, Queue};
use schemas::{Timestamp, period};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::door::Door;
use crate::sources::Sources;

/// How often the ledger is told. It counts up to five minutes between two looks as listened to.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// Nothing was heard.
const NEVER: i64 = i64::MIN;

/// When each source was last heard by this process, in microseconds of the ledger's time.
pub(crate) struct Heard(BTreeMap<String, AtomicI64>);

impl Heard {
    pub(crate) fn nothing_of(sources: &Sources) -> Self {
        Self(sources.iter().map(|source| (source.name().to_owned(), AtomicI64::new(NEVER))).collect())
    }

    /// A verified delivery of the source has come.
    pub(crate) fn note(&self, source: &str, now: Timestamp) {
        if let Some(heard) = self.0.get(source) {
            heard.fetch_max(now.timestamp_micros(), Ordering::Relaxed);
        }
    }

    fn at(&self, source: &str) -> Option<Timestamp> {
        let heard = self.0.get(source)?.load(Ordering::Relaxed);
        (heard != NEVER).then(|| Timestamp::from_timestamp_micros(heard)).flatten()
    }
}

impl Door {
    /// Looks each minute until told to stop.
    pub async fn listen(self, notice: Option<NoticeOfSilence>, stop: CancellationToken) {
        loop {
            let look = async {
                if let Err(error) = self.look_for_silence(notice.as_ref()).await {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "nobody can say now whether sources are silent");
                }
                tokio::time::sleep(LOOK_EVERY).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = look => {}
            }
        }
    }

    /// Tells the ledger what was heard, and the log what changed by it.
    pub async fn look_for_silence(&self, notice: Option<&NoticeOfSilence>) -> Result<(), LedgerError> {
        let queue: &Queue = &self.0.config.queue;
        let listened = self.0.config.sources.iter().map(|source| Listened {
            source: source.name().to_owned(),
            heard_at: self.0.heard.at(source.name()),
            silent_after: source.silent_after,
        });
        let listened: Vec<Listened> = listened.collect();
        for Silence { source, heard_at, quiet, is_over, is_watched } in queue.listen(&listened, notice).await? {
            let heard_at = heard_at.map(|at| at.to_rfc3339());
            if !is_watched {
                info!(source, "the source was silent, and is not watched any more");
            } else if is_over {
                info!(source, "the source speaks again");
            } else {
                warn!(source, heard_at, quiet = period::write(quiet), "the source has gone silent");
            }
        }
        Ok(())
    }
}
