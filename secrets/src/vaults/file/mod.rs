//! A file, encrypted by age, with the versions and labels of AWS Secrets Manager.
//!
//! It is written whole, beside the old one, and takes its place when it is on disk: whoever reads finds the old state or the
//! new one. Who changes it holds a lock, across processes. It is encrypted for several recipients, of whom one is not ours:
//! the key of a lost machine is then not the only one. `age --decrypt` opens it; what is inside is JSON.

mod book;
mod disk;
mod keys;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use age::x25519::Identity;
use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};

use super::{Described, Label, Token, Vault, VaultError};
use crate::{Resolver, SecretText};
use book::Book;

pub use keys::{Recipient, new_key, own_keys};

/// A change or a look must be done within this, the wait for the lock included.
const DEADLINE: Duration = Duration::from_secs(10);

/// A vault in a file. Its key is looked up each time, so that one that was exchanged is taken up without a restart.
pub struct FileVault {
    path: PathBuf,
    identity: SecretText,
    recipients: Arc<[Recipient]>,
    /// For the key, which cannot lie in the vault that it opens.
    resolver: Resolver,
}

impl FileVault {
    /// The vault in that file, opened by that key, written for these recipients. Nothing is touched yet.
    pub fn new(path: impl Into<PathBuf>, identity: SecretText, recipients: Vec<Recipient>) -> Self {
        Self { path: path.into(), identity, recipients: recipients.into(), resolver: Resolver::default() }
    }

    /// Makes the file, with nothing in it; refused where there is one.
    pub async fn init(&self) -> Result<(), VaultError> {
        let (path, recipients) = (self.path.clone(), Arc::clone(&self.recipients));
        let keys = self.keys().await?;
        on_disk(move || {
            keys::second_copy(&keys, &recipients)?;
            disk::locked(&path, DEADLINE, || {
                if path.exists() {
                    return Err(VaultError::Conflict(format!("{} exists", path.display())));
                }
                disk::write(&path, &recipients, &Book::default())
            })
        })
        .await
    }

    /// Looks whether it can be opened, and would be opened by another key too.
    pub async fn examine(&self) -> Result<(), VaultError> {
        let (path, recipients) = (self.path.clone(), Arc::clone(&self.recipients));
        let keys = self.keys().await?;
        on_disk(move || {
            keys::second_copy(&keys, &recipients)?;
            disk::read(&path, &keys).map(drop)
        })
        .await
    }

    async fn keys(&self) -> Result<Vec<Identity>, VaultError> {
        let text = self.resolver.resolve(&self.identity).await;
        // A key is a file or a variable of this machine: it does not come by waiting.
        let text = text.map_err(|error| VaultError::Refused(format!("its key: {error}")))?;
        own_keys(&text).map_err(VaultError::Refused)
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Book) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<T, VaultError> {
        let (path, keys) = (self.path.clone(), self.keys().await?);
        on_disk(move || look(&disk::read(&path, &keys)?)).await
    }

    /// Changes it, if `change` says that there is something to write.
    async fn change(
        &self,
        change: impl FnOnce(&mut Book) -> Result<bool, VaultError> + Send + 'static,
    ) -> Result<(), VaultError> {
        let (path, recipients) = (self.path.clone(), Arc::clone(&self.recipients));
        let keys = self.keys().await?;
        on_disk(move || {
            keys::second_copy(&keys, &recipients)?;
            disk::locked(&path, DEADLINE, || {
                let mut book = disk::read(&path, &keys)?;
                if change(&mut book)? { disk::write(&path, &recipients, &book) } else { Ok(()) }
            })
        })
        .await
    }
}

#[async_trait]
impl Vault for FileVault {
    async fn current(&self, name: &str) -> Result<SecretString, VaultError> {
        let name = name.to_owned();
        self.look(move |book| book.current(&name)).await
    }

    async fn value(&self, name: &str, version: &Token) -> Result<SecretString, VaultError> {
        let (name, version) = (name.to_owned(), version.clone());
        self.look(move |book| book.value(&name, &version)).await
    }

    async fn describe(&self, name: &str) -> Result<Described, VaultError> {
        let name = name.to_owned();
        self.look(move |book| book.describe(&name)).await
    }

    async fn list(&self) -> Result<Vec<Described>, VaultError> {
        self.look(|book| Ok(book.list())).await
    }

    async fn create(&self, name: &str, token: &Token, value: &SecretString) -> Result<(), VaultError> {
        let (name, token, value) = (name.to_owned(), token.clone(), value.expose_secret().to_owned());
        self.change(move |book| book.create(&name, &token, value)).await
    }

    async fn put_pending(&self, name: &str, token: &Token, value: &SecretString) -> Result<(), VaultError> {
        let (name, token, value) = (name.to_owned(), token.clone(), value.expose_secret().to_owned());
        self.change(move |book| book.put_pending(&name, &token, value)).await
    }

    async fn promote(&self, name: &str, token: &Token, from: &Token) -> Result<(), VaultError> {
        let (name, token, from) = (name.to_owned(), token.clone(), from.clone());
        self.change(move |book| book.promote(&name, &token, &from)).await
    }

    async fn drop_pending(&self, name: &str, token: &Token) -> Result<(), VaultError> {
        let (name, token) = (name.to_owned(), token.clone());
        self.change(move |book| book.drop_label(&name, &token, Label::Pending)).await
    }

    async fn drop_previous(&self, name: &str, token: &Token) -> Result<(), VaultError> {
        let (name, token) = (name.to_owned(), token.clone());
        self.change(move |book| book.drop_label(&name, &token, Label::Previous)).await
    }
}

/// Runs what waits for the disk and the lock on a thread that may wait. A caller that goes away cancels nothing.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VaultError> + Send + 'static,
) -> Result<T, VaultError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(VaultError::Unavailable(error.to_string())))
}
