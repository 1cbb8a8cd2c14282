//! Packing: a dump through zstd into stored bytes and back, measured on both sides.
//!
//! Compression and digests run on a thread of their own; bounded channels on both sides keep memory flat.

use std::io::{self, Read, Write};
use std::num::NonZero;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::AsyncRead;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::sealing::Seal;
use crate::handler::{Failure, OrFail};

/// A good ratio at the speed of a dump; higher levels cost more time than they save bytes.
const LEVEL: i32 = 3;
/// More threads than a dump can feed.
const MOST_THREADS: u32 = 4;
/// So many pieces wait on each side.
const PIECES: usize = 8;
/// Pieces are of this size.
const PIECE: usize = 256 * 1024;

/// How many bytes, and which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// How many.
    pub bytes: u64,
    /// Their SHA-256, in hexadecimal.
    pub sha256: String,
}

/// What was packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// What went in.
    pub plain: Measure,
    /// What came out.
    pub stored: Measure,
}

/// Bytes on their way through the compressor.
pub struct Packing {
    /// Takes the dump. The end is when it is dropped.
    pub input: mpsc::Sender<Bytes>,
    /// Gives what is to be stored.
    pub output: mpsc::Receiver<Bytes>,
    /// Ends when all is packed.
    pub thread: JoinHandle<io::Result<Packed>>,
}

impl Packing {
    /// Starts the compressor, which seals what it puts out.
    pub fn start(seal: Seal) -> Self {
        let (input, dump) = mpsc::channel(PIECES);
        let (stored, output) = mpsc::channel(PIECES);
        let thread = tokio::task::spawn_blocking(move || pack(dump, stored, &seal));
        Self { input, output, thread }
    }
}

/// A dump that is read from a store, checked while it is read.
pub struct Unpacked {
    /// The dump. After its last byte it fails with `InvalidData` if anything differs from what was expected.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// That all was read and right; never says so before the last byte was taken from the reader.
    pub verdict: oneshot::Receiver<Result<(), anyhow::Error>>,
}

/// Unpacks stored bytes that must be as expected; with a seal, they are sealed and it opens them.
pub fn unpack(
    stored: impl AsyncRead + Send + Unpin + 'static,
    plain: Measure,
    expected: Measure,
    seal: Option<Seal>,
) -> Unpacked {
    let (pieces, mut taken) = mpsc::channel::<io::Result<Bytes>>(PIECES);
    let (say, verdict) = oneshot::channel();
    let bridge = SyncIoBridge::new(stored);
    tokio::task::spawn_blocking(move || {
        let unpacked = unpack_into(bridge, &pieces, seal.as_ref()).and_then(|found| compare(&found, &plain, &expected));
        match unpacked {
            Ok(()) => {
                let _ = say.send(Ok(())); // Whoever does not listen does not want to know.
            }
            Err(error) => {
                let words = format!("the backup's data is not what was stored: {error}");
                let words = anyhow::Error::new(io::Error::new(error.kind(), words));
                let _ = pieces.blocking_send(Err(error));
                let _ = say.send(Err(words));
            }
        }
    });
    let pieces = stream::poll_fn(move |context| taken.poll_recv(context));
    Unpacked { reader: Box::new(StreamReader::new(pieces)), verdict }
}

fn pack(mut dump: mpsc::Receiver<Bytes>, stored: mpsc::Sender<Bytes>, seal: &Seal) -> io::Result<Packed> {
    let sealing = seal.around(Measured::new(Pieces::to(stored)))?;
    let mut encoder = zstd::Encoder::new(sealing, LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.multithread(threads())?;
    let mut plain = Tally::default();
    while let Some(piece) = dump.blocking_recv() {
        plain.add(&piece);
        encoder.write_all(&piece)?;
    }
    let mut out = encoder.finish()?.finish()?;
    out.flush()?;
    Ok(Packed { plain: plain.measure(), stored: out.tally.measure() })
}

fn threads() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    u32::try_from(cores).unwrap_or(MOST_THREADS).min(MOST_THREADS)
}

fn unpack_into(stored: impl Read, pieces: &mpsc::Sender<io::Result<Bytes>>, seal: Option<&Seal>) -> io::Result<Packed> {
    let mut stored = Measured::new(stored);
    let opened: Box<dyn Read> = match seal {
        Some(seal) => seal.open(&mut stored).map_err(as_damage)?,
        None => Box::new(&mut stored),
    };
    let mut decoder = zstd::Decoder::new(opened)?;
    let mut plain = Tally::default();
    loop {
        let mut piece = BytesMut::zeroed(PIECE);
        let read = decoder.read(&mut piece).map_err(as_damage)?;
        if read == 0 {
            break;
        }
        piece.truncate(read);
        plain.add(&piece);
        let sent = pieces.blocking_send(Ok(piece.freeze()));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "it was not read to its end"))?;
    }
    // All frames are at their end. A seal's own end must be seen too; what may still lie behind belongs to the digest.
    io::copy(&mut decoder.finish(), &mut io::sink()).map_err(as_damage)?;
    io::copy(&mut stored, &mut io::sink())?;
    Ok(Packed { plain: plain.measure(), stored: stored.tally.measure() })
}

/// Reads stored bytes to their end.
pub(crate) async fn measure(stored: impl AsyncRead + Send + Unpin + 'static) -> Result<Measure, Failure> {
    let bridge = SyncIoBridge::new(stored);
    let reading = tokio::task::spawn_blocking(move || {
        let mut stored = Measured::new(bridge);
        io::copy(&mut stored, &mut io::sink()).map(|_| stored.tally.measure())
    });
    reading.await.or_retry("reading the backup panicked")?.or_retry("reading the backup")
}

/// What the decoder refuses is damage; what the store could not deliver is not, nor is a key that does not fit.
fn as_damage(error: io::Error) -> io::Error {
    let delivered = error.get_ref().is_none_or(|inner| !inner.is::<NotDelivered>());
    if delivered && error.kind() != io::ErrorKind::PermissionDenied {
        io::Error::new(io::ErrorKind::InvalidData, error)
    } else {
        error
    }
}

/// Marks errors of the store on their way through the decoder.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotDelivered(io::Error);

fn compare(found: &Packed, plain: &Measure, stored: &Measure) -> io::Result<()> {
    let differ = |what: &str, found: &Measure, expected: &Measure| {
        let words = format!(
            "the {what} has {} bytes with SHA-256 {}, the manifest says {} bytes with {}",
            found.bytes, found.sha256, expected.bytes, expected.sha256
        );
        io::Error::new(io::ErrorKind::InvalidData, words)
    };
    if found.stored != *stored {
        return Err(differ("stored data", &found.stored, stored));
    }
    if found.plain != *plain {
        return Err(differ("dump", &found.plain, plain));
    }
    Ok(())
}

/// Counts and digests.
#[derive(Default)]
struct Tally {
    bytes: u64,
    digest: Sha256,
}

impl Tally {
    fn add(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.digest.update(piece);
    }

    fn measure(self) -> Measure {
        Measure { bytes: self.bytes, sha256: hex::encode(self.digest.finalize()) }
    }
}

/// Counts and digests what passes.
struct Measured<T> {
    inner: T,
    tally: Tally,
}

impl<T> Measured<T> {
    fn new(inner: T) -> Self {
        Self { inner, tally: Tally::default() }
    }
}

impl<W: Write> Write for Measured<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.tally.add(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer).map_err(|error| io::Error::other(NotDelivered(error)))?;
        self.tally.add(&buffer[..read]);
        Ok(read)
    }
}

/// Sends what is written, in pieces.
struct Pieces {
    to: mpsc::Sender<Bytes>,
    filling: BytesMut,
}

impl Pieces {
    fn to(to: mpsc::Sender<Bytes>) -> Self {
        Self { to, filling: BytesMut::with_capacity(PIECE) }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.filling.extend_from_slice(bytes);
        if self.filling.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.filling.is_empty() {
            return Ok(());
        }
        let piece = self.filling.split().freeze();
        self.to
            .blocking_send(piece)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody takes what is packed"))
    }
}

/// Waits for the compressor.
pub(crate) async fn packed(thread: JoinHandle<io::Result<Packed>>) -> Result<Packed, Failure> {
    thread.await.or_retry("the compressor panicked")?.or_retry("compressing the dump")
}

#[cfg(test)]
mod tests;
