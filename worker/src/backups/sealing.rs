//! Sealing: backups encrypted by age, for X25519 recipients. What is stored is a plain age file of a zstd stream, so that stock
//! programs open it.

use std::io::{self, Read, Write};
use std::str::FromStr;

use age::stream::StreamWriter;
use age::x25519::{Identity, Recipient};
use age::{DecryptError, Decryptor, Encryptor};
use secrets::{ExposeSecret, Resolver};
use serde::{Deserialize, Serialize};

use crate::handler::{Failure, OrFail};
use crate::stores::StoreConfig;

/// For whom the backups of a store are encrypted, and what opens them.
#[derive(Clone, Default)]
pub struct Seal {
    recipients: Vec<SealedFor>,
    identities: Vec<Identity>,
}

/// `age1...`: a recipient, as the configuration file spells it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SealedFor(Recipient);

impl TryFrom<String> for SealedFor {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = "this is no recipient of age: write `age1...`, the public key that `age-keygen` prints";
        Recipient::from_str(text.trim()).map(Self).map_err(|_| wrong.to_owned())
    }
}

/// How data is encrypted, as its manifest says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// `age`.
    pub with: String,
    /// Who can open it.
    pub recipients: Vec<String>,
}

impl Seal {
    /// The seal of a store.
    pub async fn of(name: &str, config: &StoreConfig, secrets: &Resolver) -> Result<Self, Failure> {
        let mut identities = Vec::new();
        if let Some(text) = &config.identity {
            let doing = format!("resolving the identity of the store `{name}`");
            let text = match secrets.resolve(text).await {
                Err(error) if !error.is_transient() => Err(error).or_discard(&doing)?,
                resolved => resolved.or_retry(&doing)?,
            };
            // As age-keygen writes it: a key for each line, and comments.
            let lines = text.expose_secret().lines().map(str::trim);
            for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
                // The parser's own words may quote the key.
                let wrong = || anyhow::anyhow!("the identity of [stores.{name}] is no `AGE-SECRET-KEY-1...`");
                identities.push(Identity::from_str(line).map_err(|_| Failure::Discard(wrong()))?);
            }
        }
        Ok(Self { recipients: config.encrypt_to.clone(), identities })
    }

    /// Of these keys, for which it encrypts and which open it.
    #[cfg(test)]
    pub(super) fn for_tests(keys: &[&Identity]) -> Self {
        let recipients = keys.iter().map(|key| SealedFor(key.to_public())).collect();
        Self { recipients, identities: keys.iter().copied().cloned().collect() }
    }

    /// How new data is encrypted; none where it is not.
    pub(crate) fn encryption(&self) -> Option<Encryption> {
        let recipients: Vec<String> = self.recipients.iter().map(|recipient| recipient.0.to_string()).collect();
        (!recipients.is_empty()).then(|| Encryption { with: "age".to_owned(), recipients })
    }

    /// Whether anything can be opened with it.
    pub(crate) fn opens(&self) -> bool {
        !self.identities.is_empty()
    }

    /// Encrypts what is written, if there is anybody to encrypt for.
    pub(super) fn around<W: Write>(&self, inner: W) -> io::Result<Sealing<W>> {
        if self.recipients.is_empty() {
            return Ok(Sealing::Open(inner));
        }
        let recipients = self.recipients.iter().map(|recipient| &recipient.0 as &dyn age::Recipient);
        let encryptor = Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
        encryptor.wrap_output(inner).map(Sealing::Sealed)
    }

    /// Opens what is read. An identity that does not fit is no damage, and is told apart: `PermissionDenied`.
    pub(super) fn open<'r, R: Read + 'r>(&self, inner: R) -> io::Result<Box<dyn Read + 'r>> {
        let decryptor = Decryptor::new(inner).map_err(not_opened)?;
        let identities = self.identities.iter().map(|identity| identity as &dyn age::Identity);
        Ok(Box::new(decryptor.decrypt(identities).map_err(not_opened)?))
    }
}

fn not_opened(error: DecryptError) -> io::Error {
    match error {
        DecryptError::Io(error) => error,
        DecryptError::NoMatchingKeys => io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it is encrypted for others: no identity of the store opens it",
        ),
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}

/// Bytes on their way into a store.
pub(super) enum Sealing<W: Write> {
    /// As they are.
    Open(W),
    /// Encrypted.
    Sealed(StreamWriter<W>),
}

impl<W: Write> Sealing<W> {
    /// Writes the end, without which nothing of it counts.
    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Self::Open(inner) => Ok(inner),
            Self::Sealed(writer) => writer.finish(),
        }
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Open(inner) => inner.write(bytes),
            Self::Sealed(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Open(inner) => inner.flush(),
            Self::Sealed(writer) => writer.flush(),
        }
    }
}
