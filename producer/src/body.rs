//! Takes bodies in, within a time and within the memory that is set aside for them.
//!
//! Nearly all bodies are small, and they share one room. A body that turns out large goes on in one of a few places, each
//! for the largest body there is, and waits for it: so however many come at once, and whatever they say about their
//! length, what they hold together is bounded, and large ones never keep small ones out.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{Instrument, Span};

/// The largest body: GitHub's own limit.
pub(crate) const LARGEST_BODY: usize = 25 * 1024 * 1024;

/// A body that is not here within this is not waited for: GitHub itself hangs up then.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// There must be room within this.
const ROOM_WITHIN: Duration = Duration::from_secs(5);

/// A larger body goes on in a place of its own.
const SMALL: usize = 256 * 1024;

/// What all small bodies, and the beginnings of large ones, may hold together.
const SMALL_TOGETHER: usize = 32 * 1024 * 1024;

/// So many large ones at once: with what is made of it, each takes a few times its size. And so many that wait for that,
/// for they hold some of the room of the small ones.
const LARGE_AT_ONCE: usize = 2;
const LARGE_IN_LINE: usize = 32;

/// The room is counted in pieces of so many bytes.
const PIECE: usize = 1024;

/// Why a body was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// It is larger than any may be.
    TooLarge,
    /// It ended before its end.
    BrokeOff,
    /// It did not come in time.
    TooSlow,
    /// Too many others are here.
    NoRoom,
}

/// The room for bodies. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Room {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    line: Arc<Semaphore>,
}

/// A body, and the room that it takes up until this is dropped.
pub(crate) struct Held {
    pub(crate) bytes: Bytes,
    _room: Taken,
}

/// Whether working on it takes so long that nothing else may wait on the same thread.
pub(crate) fn is_large(body: &Bytes) -> bool {
    body.len() > SMALL
}

/// Runs what works long on a large body on a thread of its own.
pub(crate) async fn aside<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let (runtime, span) = (Handle::current(), Span::current());
    // None only where it panicked; the listener's layer would say the same.
    spawn_blocking(move || runtime.block_on(work.instrument(span))).await.ok()
}

#[derive(Default)]
struct Taken {
    small: Option<OwnedSemaphorePermit>,
    large: Option<[OwnedSemaphorePermit; 2]>,
}

impl Room {
    pub(crate) fn new() -> Self {
        let [small, large, line] =
            [SMALL_TOGETHER / PIECE, LARGE_AT_ONCE, LARGE_IN_LINE].map(|places| Arc::new(Semaphore::new(places)));
        Self { small, large, line }
    }

    /// Takes a body in, of which its sender says that it is so long.
    pub(crate) async fn take(&self, body: Body, length: Option<usize>) -> Result<Held, NotTaken> {
        timeout(BODY_WITHIN, self.read(body, length.unwrap_or(0))).await.unwrap_or(Err(NotTaken::TooSlow))
    }

    async fn read(&self, body: Body, length: usize) -> Result<Held, NotTaken> {
        let (mut taken, mut bytes, mut chunks) = (Taken::default(), BytesMut::new(), body.into_data_stream());
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| NotTaken::BrokeOff)?;
            let now = bytes.len() + chunk.len();
            if now > LARGEST_BODY {
                return Err(NotTaken::TooLarge);
            }
            self.make_room(&mut taken, now).await?;
            if now > SMALL && length <= LARGEST_BODY {
                bytes.reserve(length.saturating_sub(bytes.len())); // Once: it would be doubled again and again.
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Held { bytes: bytes.freeze(), _room: taken })
    }

    /// Makes room for so many bytes of one body.
    async fn make_room(&self, taken: &mut Taken, bytes: usize) -> Result<(), NotTaken> {
        if taken.large.is_some() {
            return Ok(());
        }
        if bytes > SMALL {
            let in_line = try_take(&self.line, 1)?;
            taken.large = Some([in_line, wait_for(&self.large, 1).await?]);
            return Ok(());
        }
        let has = taken.small.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = bytes.div_ceil(PIECE).saturating_sub(has);
        // Who has some does not wait for more: nobody is to wait for each other.
        match &mut taken.small {
            Some(small) => small.merge(try_take(&self.small, more)?),
            None => taken.small = Some(wait_for(&self.small, more).await?),
        }
        Ok(())
    }
}

fn try_take(places: &Arc<Semaphore>, many: usize) -> Result<OwnedSemaphorePermit, NotTaken> {
    Arc::clone(places).try_acquire_many_owned(count(many)).map_err(|_| NotTaken::NoRoom)
}

async fn wait_for(places: &Arc<Semaphore>, many: usize) -> Result<OwnedSemaphorePermit, NotTaken> {
    let taken = timeout(ROOM_WITHIN, Arc::clone(places).acquire_many_owned(count(many))).await;
    taken.ok().and_then(Result::ok).ok_or(NotTaken::NoRoom)
}

fn count(many: usize) -> u32 {
    u32::try_from(many).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use tokio::sync::mpsc;

    use super::*;

    /// A body whose sender sends chunks when we say so.
    fn body() -> (mpsc::UnboundedSender<usize>, Body) {
        let (send, mut chunks) = mpsc::unbounded_channel();
        let chunks = stream::poll_fn(move |cx| chunks.poll_recv(cx))
            .map(|length| Ok::<_, std::io::Error>(Bytes::from(vec![b'.'; length])));
        (send, Body::from_stream(chunks))
    }

    async fn taken(room: &Room, chunks: &[usize]) -> Result<Held, NotTaken> {
        let (send, body) = body();
        chunks.iter().for_each(|chunk| send.send(*chunk).unwrap());
        drop(send);
        room.take(body, None).await
    }

    #[tokio::test]
    async fn a_body_is_what_was_sent_up_to_the_largest() {
        let room = Room::new();
        for chunks in [&[][..], &[7], &[7, 1000], &[SMALL, 1], &[LARGEST_BODY - 1, 1]] {
            assert_eq!(taken(&room, chunks).await.ok().unwrap().bytes.len(), chunks.iter().sum::<usize>());
        }
        assert_eq!(taken(&room, &[LARGEST_BODY, 1]).await.err(), Some(NotTaken::TooLarge));
    }

    #[tokio::test(start_paused = true)]
    async fn what_bodies_hold_together_is_bounded_and_large_ones_keep_no_small_one_out() {
        let room = Room::new();
        let (mut held, mut refused) = (Vec::new(), 0);
        let mut senders = Vec::new();
        let mut large: Vec<_> = (0..100)
            .map(|_| {
                let (send, body) = body();
                send.send(2 * SMALL).unwrap();
                senders.push(send); // It is never heard of again.
                let room = room.clone();
                tokio::spawn(async move { room.take(body, Some(LARGEST_BODY)).await.map(drop) })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        while let Ok(small) = timeout(Duration::from_secs(1), taken(&room, &[SMALL])).await {
            held.push(small.ok().unwrap());
        }
        let together = SMALL_TOGETHER / SMALL;
        assert!((together - LARGE_IN_LINE..=together).contains(&held.len()), "{}", held.len());
        for large in large.drain(..) {
            refused += usize::from(large.await.unwrap() == Err(NotTaken::NoRoom));
        }
        assert_eq!(refused, 100 - LARGE_AT_ONCE, "two were cut for their slowness, the others had no place");
        assert_eq!(taken(&room, &[SMALL]).await.err(), Some(NotTaken::NoRoom));
        held.clear();
        assert!(taken(&room, &[LARGEST_BODY]).await.is_ok(), "all room is free again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_end_is_not_waited_for() {
        let (send, dripping) = body();
        send.send(1).unwrap();
        assert_eq!(Room::new().take(dripping, Some(20)).await.err(), Some(NotTaken::TooSlow));
    }
}
