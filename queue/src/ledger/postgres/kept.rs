//! Connections for what is hot and is done with one statement, or one transaction, at a time.
//!
//! The pool of sqlx asks a connection that comes back whether it still answers: one more round trip for each statement.
//! Here one whose last call succeeded is given out again without a question, the last used first, so that a writer of
//! batches has the same one each time; any other is closed. One that has rested is asked, within a deadline.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use super::pooler::make_settings;
use super::{CONNECT_WITHIN, answers};

/// A connection that was not used for so long may have been forgotten by the network or closed by the server.
const RESTED: Duration = Duration::from_secs(30);

/// The connections, those in use and those that are free.
pub(super) struct Kept {
    options: PgConnectOptions,
    /// The statement that makes the settings, where the options cannot.
    settings: Option<String>,
    free: Mutex<Vec<(PgConnection, Instant)>>,
    places: Semaphore,
}

/// A connection in use. It is closed when it is dropped, unless [`Hot::keep`] is called.
pub(super) struct Hot<'a> {
    kept: &'a Kept,
    connection: PgConnection,
    #[expect(dead_code, reason = "held for as long as the connection is in use")]
    place: SemaphorePermit<'a>,
}

impl Kept {
    /// At most so many, none of them opened yet.
    pub(super) fn new(options: PgConnectOptions, settings: Option<String>, most: usize) -> Self {
        Self { options, settings, free: Mutex::default(), places: Semaphore::new(most) }
    }

    /// One of the connections that were kept, or a new one.
    pub(super) async fn take(&self) -> Result<Hot<'_>, sqlx::Error> {
        timeout(CONNECT_WITHIN, self.take_or_open()).await.map_err(|late| sqlx::Error::Io(late.into()))?
    }

    async fn take_or_open(&self) -> Result<Hot<'_>, sqlx::Error> {
        let place = self.places.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
        let free = self.lock().pop();
        if let Some((mut connection, used)) = free
            && (used.elapsed() < RESTED || self.still_answers(&mut connection).await)
        {
            return Ok(Hot { kept: self, connection, place });
        }
        let mut connection = self.options.connect().await?;
        make_settings(&mut connection, self.settings.clone()).await?;
        Ok(Hot { kept: self, connection, place })
    }

    /// Where one does not answer, those that have rested even longer won't either.
    async fn still_answers(&self, connection: &mut PgConnection) -> bool {
        let others = std::mem::take(&mut *self.lock());
        let well = answers(connection).await.unwrap_or(false);
        if well {
            self.lock().splice(0..0, others);
        }
        well
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(PgConnection, Instant)>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hot<'_> {
    /// Keeps the connection for the next use. Only for one whose call succeeded: of any other nobody knows what it still
    /// waits for.
    pub(super) fn keep(self) {
        self.kept.lock().push((self.connection, Instant::now()));
    }
}

impl Deref for Hot<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Hot<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}
