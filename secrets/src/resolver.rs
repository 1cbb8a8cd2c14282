//! The resolver: references in, values out, with a short cache in front of the vault.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use crate::active::Said;
use crate::reference::{Part, Reference, SecretText};
use crate::vaults::{Vault, VaultError};

/// How long a value from the vault is used again: short, so that a rotation is seen soon.
pub(crate) const FRESH: Duration = Duration::from_secs(30);

/// The vault must answer within this.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Why a secret has no value. Never holds one.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The variable is not set.
    #[error("the environment variable `{0}` is not set")]
    NoVariable(String),
    /// The file cannot be read.
    #[error("the secret's file `{path}` cannot be read")]
    NoFile {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no vault to ask.
    #[error("`{0}` names the vault, and none is configured: add [vault]")]
    NoVault(String),
    /// The vault's secret has no such field.
    #[error("`{0}`: the secret is not a JSON object with that key")]
    NoKey(String),
    /// The vault gave no value.
    #[error("`{reference}`: the vault gave no value")]
    Vault {
        /// Which reference.
        reference: String,
        /// Why.
        #[source]
        source: VaultError,
    },
}

impl ResolveError {
    /// Whether asking again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Vault { source: VaultError::Unavailable(_), .. })
    }
}

/// Resolves references.
#[derive(Default)]
pub struct Resolver {
    vault: Option<Arc<dyn Vault>>,
    cache: Mutex<HashMap<String, (Instant, SecretString)>>,
    said: Said,
}

impl Resolver {
    /// A resolver that asks the given vault, or none.
    pub fn new(vault: Option<Arc<dyn Vault>>) -> Self {
        Self { vault, cache: Mutex::default(), said: Said::default() }
    }

    /// The vault that it asks.
    pub fn vault(&self) -> Option<&Arc<dyn Vault>> {
        self.vault.as_ref()
    }

    /// Looks a secret up anew from now on: its current version is another one. Other processes see that when their own
    /// short cache has run out.
    pub fn forget(&self, name: &str) {
        self.lock().remove(name);
        self.said.forget(name);
    }

    /// What the vault said last of a secret's versions.
    pub(crate) fn said(&self) -> &Said {
        &self.said
    }

    /// The value of a text, its references resolved.
    pub async fn resolve(&self, text: &SecretText) -> Result<SecretString, ResolveError> {
        let mut value = String::new();
        for part in text.parts() {
            match part {
                Part::Literal(literal) => value.push_str(literal),
                Part::Reference(reference) => value.push_str(self.look_up(reference).await?.expose_secret()),
            }
        }
        Ok(value.into())
    }

    async fn look_up(&self, reference: &Reference) -> Result<SecretString, ResolveError> {
        match reference {
            Reference::Env(name) => {
                std::env::var(name).map(Into::into).map_err(|_| ResolveError::NoVariable(name.clone()))
            }
            Reference::File(path) => {
                let read = tokio::fs::read_to_string(path).await;
                let text = read.map_err(|source| ResolveError::NoFile { path: path.display().to_string(), source })?;
                Ok(text.strip_suffix('\n').map_or(text.as_str(), |line| line.trim_end_matches('\r')).into())
            }
            Reference::Vault { name, key } => {
                let secret = self.ask_vault(name, reference).await?;
                match key {
                    None => Ok(secret),
                    Some(key) => field(&secret, key).ok_or_else(|| ResolveError::NoKey(reference.to_string())),
                }
            }
        }
    }

    async fn ask_vault(&self, name: &str, reference: &Reference) -> Result<SecretString, ResolveError> {
        if let Some(fresh) = self.cached(name) {
            return Ok(fresh);
        }
        let vault = self.vault.as_ref().ok_or_else(|| ResolveError::NoVault(reference.to_string()))?;
        let answer = tokio::time::timeout(DEADLINE, vault.current(name)).await;
        let answer = answer.unwrap_or_else(|_| Err(VaultError::Unavailable("it did not answer in time".into())));
        let secret = answer.map_err(|source| ResolveError::Vault { reference: reference.to_string(), source })?;
        self.lock().insert(name.to_owned(), (Instant::now(), secret.clone()));
        Ok(secret)
    }

    fn cached(&self, name: &str) -> Option<SecretString> {
        let cache = self.lock();
        let (since, secret) = cache.get(name)?;
        (since.elapsed() < FRESH).then(|| secret.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, SecretString)>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A field of a secret that is a JSON object.
pub fn field(secret: &SecretString, key: &str) -> Option<SecretString> {
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(secret.expose_secret()).ok()?;
    match fields.get(key)? {
        serde_json::Value::String(text) => Some(text.as_str().into()),
        other => Some(other.to_string().into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::vaults::{Described, Token};

    #[derive(Default)]
    struct Counting(AtomicU32);

    type Answer<T> = Result<T, VaultError>;

    #[async_trait]
    impl Vault for Counting {
        async fn current(&self, name: &str) -> Answer<SecretString> {
            self.0.fetch_add(1, Ordering::SeqCst);
            match name {
                "app/db" => Ok(r#"{"url": "postgres://x", "port": 5432}"#.into()),
                _ => Err(VaultError::NotFound),
            }
        }
        async fn value(&self, _: &str, _: &Token) -> Answer<SecretString> {
            unreachable!()
        }
        async fn describe(&self, _: &str) -> Answer<Described> {
            unreachable!()
        }
        async fn list(&self) -> Answer<Vec<Described>> {
            unreachable!()
        }
        async fn create(&self, _: &str, _: &Token, _: &SecretString) -> Answer<()> {
            unreachable!()
        }
        async fn put_pending(&self, _: &str, _: &Token, _: &SecretString) -> Answer<()> {
            unreachable!()
        }
        async fn promote(&self, _: &str, _: &Token, _: &Token) -> Answer<()> {
            unreachable!()
        }
        async fn drop_pending(&self, _: &str, _: &Token) -> Answer<()> {
            unreachable!()
        }
        async fn drop_previous(&self, _: &str, _: &Token) -> Answer<()> {
            unreachable!()
        }
    }

    async fn resolve(resolver: &Resolver, text: &str) -> Result<String, ResolveError> {
        let value = resolver.resolve(&SecretText::parse(text).unwrap()).await?;
        Ok(value.expose_secret().to_owned())
    }

    #[tokio::test]
    async fn files_lose_their_last_line_break_and_nothing_else() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a secret \r\n").unwrap();
        let text = format!("${{file:{}}}", file.path().display());
        assert_eq!(resolve(&Resolver::default(), &text).await.unwrap(), "a secret ");
    }

    #[tokio::test(start_paused = true)]
    async fn the_vault_is_asked_once_for_a_short_while() {
        let vault = Arc::new(Counting::default());
        let resolver = Resolver::new(Some(vault.clone()));
        assert_eq!(resolve(&resolver, "${vault:app/db#url}").await.unwrap(), "postgres://x");
        assert_eq!(resolve(&resolver, "port ${vault:app/db#port}").await.unwrap(), "port 5432");
        assert_eq!(vault.0.load(Ordering::SeqCst), 1);
        tokio::time::advance(FRESH).await;
        resolve(&resolver, "${vault:app/db#url}").await.unwrap();
        assert_eq!(vault.0.load(Ordering::SeqCst), 2);
        resolver.forget("app/db");
        resolve(&resolver, "${vault:app/db#url}").await.unwrap();
        assert_eq!(vault.0.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let resolver = Resolver::new(Some(Arc::new(Counting::default())));
        let error = |result: Result<String, ResolveError>| result.unwrap_err().to_string();
        assert_eq!(
            error(resolve(&resolver, "${env:NIGHTPORTER_NO_SUCH_VARIABLE}").await),
            "the environment variable `NIGHTPORTER_NO_SUCH_VARIABLE` is not set"
        );
        assert!(error(resolve(&resolver, "${vault:app/db#pasword}").await).contains("${vault:app/db#pasword}"));
        assert!(error(resolve(&resolver, "${vault:none}").await).contains("${vault:none}"));
        assert!(error(resolve(&Resolver::default(), "${vault:x}").await).contains("[vault]"));
    }
}
