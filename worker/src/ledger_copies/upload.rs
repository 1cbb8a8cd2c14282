//! One object of a copy: through the compressor into the store, and read back.

use std::io;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::backups::packing::packed;
use crate::backups::{Data, Packed, Packing, Seal, measure};
use crate::handler::{Failure, OrFail};
use crate::stores::{Store, Upload};

/// Bytes are handed on in pieces of this size.
const PIECE: usize = 256 * 1024;

/// Stores what `feed` gives, and what `feed` found out on the way.
pub(super) async fn store_fed<T: Send + 'static>(
    store: &dyn Store,
    seal: &Seal,
    (key, expected_bytes): (String, u64),
    feed: impl FnOnce(&mpsc::Sender<Bytes>) -> io::Result<T> + Send + 'static,
) -> Result<(Data, T), Failure> {
    let mut upload = store.begin(&key, expected_bytes).await?;
    match transfer(&mut *upload, seal, feed).await {
        Ok((packed, found)) => {
            upload.finish().await?;
            let data = Data::packed(key, packed.plain, packed.stored, seal.encryption());
            prove(store, &data).await?;
            Ok((data, found))
        }
        Err(failure) => {
            upload.abort().await;
            Err(failure)
        }
    }
}

async fn transfer<T: Send + 'static>(
    upload: &mut dyn Upload,
    seal: &Seal,
    feed: impl FnOnce(&mpsc::Sender<Bytes>) -> io::Result<T> + Send + 'static,
) -> Result<(Packed, T), Failure> {
    let Packing { input, mut output, thread } = Packing::start(seal.clone());
    let feeding = tokio::task::spawn_blocking(move || feed(&input));
    while let Some(piece) = output.recv().await {
        upload.write(piece).await?;
    }
    // It is whole only if both say so: the compressor ends well when its feeder breaks off, too.
    let found = feeding.await.or_retry("reading the ledger panicked")?.or_retry("reading the ledger")?;
    Ok((packed(thread).await?, found))
}

/// Hands bytes on.
pub(super) fn send(to: &mpsc::Sender<Bytes>, bytes: &[u8]) -> io::Result<()> {
    let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody takes what is read");
    bytes.chunks(PIECE).try_for_each(|piece| to.blocking_send(Bytes::copy_from_slice(piece)).map_err(gone))
}

/// Reads it back. What is not what was sent is deleted.
async fn prove(store: &dyn Store, data: &Data) -> Result<(), Failure> {
    let body = store.get(&data.key).await?;
    let body = body.ok_or_else(|| Failure::retry(anyhow::anyhow!("{} was written and is not there", data.key)))?;
    if measure(body).await? == data.stored {
        return Ok(());
    }
    store.delete(std::slice::from_ref(&data.key)).await?;
    Err(Failure::retry(anyhow::anyhow!("the copy was not stored as it was sent, and is deleted")))
}
