//! The file on disk: opened, written whole and put in its place, and the lock of those who change it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use age::x25519::Identity;
use age::{DecryptError, Decryptor, Encryptor};

use super::book::Book;
use super::keys::Recipient;
use crate::vaults::VaultError;

/// Who may read it: its owner.
const PRIVATE: u32 = 0o600;

/// How long to wait between looks at a lock that others hold. They hold it for one small write.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Reads the whole file.
pub(super) fn read(path: &Path, keys: &[Identity]) -> Result<Book, VaultError> {
    let file = File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            VaultError::Refused(format!("there is no {}: `nightporter secrets init` makes it", path.display()))
        }
        _ => of_disk(path, &error),
    })?;
    let decryptor = Decryptor::new_buffered(io::BufReader::new(file)).map_err(|error| not_opened(path, &error))?;
    let identities = keys.iter().map(|key| key as &dyn age::Identity);
    let mut opened = decryptor.decrypt(identities).map_err(|error| not_opened(path, &error))?;
    let mut text = Vec::new();
    opened.read_to_end(&mut text).map_err(|error| of_disk(path, &error))?;
    // The parser's own words may quote what it read.
    let damaged = |_| VaultError::Refused(format!("{} holds no vault, or a newer one", path.display()));
    serde_json::from_slice(&text).map_err(damaged)
}

/// Writes the whole file beside the old one, and puts it in its place when it is on disk.
pub(super) fn write(path: &Path, recipients: &[Recipient], book: &Book) -> Result<(), VaultError> {
    let text = serde_json::to_vec(book).map_err(|error| VaultError::Refused(error.to_string()))?;
    let aside = beside(path, "partial");
    seal(&aside, recipients, &text)
        .and_then(|()| std::fs::rename(&aside, path))
        // The folder holds the name: without this, a crash could bring the old file back.
        .and_then(|()| File::open(folder(path))?.sync_all())
        .map_err(|error| of_disk(path, &error))
}

fn seal(path: &Path, recipients: &[Recipient], text: &[u8]) -> io::Result<()> {
    let recipients = recipients.iter().map(|recipient| &recipient.0 as &dyn age::Recipient);
    let encryptor = Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE).open(path)?;
    let mut sealed = encryptor.wrap_output(&file)?;
    sealed.write_all(text)?;
    sealed.finish()?;
    file.sync_all()
}

/// Does something that no other process does at the same time. The lock is a file of its own, for the vault's is replaced;
/// it ends with the process that holds it.
pub(super) fn locked<T>(
    path: &Path,
    deadline: Duration,
    work: impl FnOnce() -> Result<T, VaultError>,
) -> Result<T, VaultError> {
    let lock = beside(path, "lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(PRIVATE).open(&lock);
    let file = file.map_err(|error| of_disk(&lock, &error))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if begun.elapsed() < deadline => std::thread::sleep(LOOK_AGAIN),
            Err(TryLockError::WouldBlock) => {
                return Err(VaultError::Unavailable(format!("another process holds {}", lock.display())));
            }
            Err(TryLockError::Error(error)) => return Err(of_disk(&lock, &error)),
        }
    }
    work()
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{what}"));
    name.into()
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn of_disk(path: &Path, error: &io::Error) -> VaultError {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            VaultError::Refused(format!("{}: {error}", path.display()))
        }
        _ => VaultError::Unavailable(format!("{}: {error}", path.display())),
    }
}

fn not_opened(path: &Path, error: &DecryptError) -> VaultError {
    match error {
        DecryptError::Io(error) => of_disk(path, error),
        DecryptError::NoMatchingKeys => {
            VaultError::Refused(format!("{} is written for others: its key does not open it", path.display()))
        }
        other => VaultError::Refused(format!("{} cannot be opened: {other}", path.display())),
    }
}
