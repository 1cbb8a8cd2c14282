//! All versions of a secret that are in use: for those who accept what others sign.
//!
//! While a secret is rotated, the other side may use the old version or the new one. Who accepts must know the new one
//! before the other side does. So the pending version is active too, and the previous one for as long as its label stands.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::reference::{Part, Reference, SecretText};
use crate::resolver::{DEADLINE, FRESH, ResolveError, Resolver, field};
use crate::vaults::{Described, Label, Token, Vault, VaultError};

/// Of a vault that is away, what it said last is used for so long.
const STALE: Duration = Duration::from_mins(10);

/// Every process that accepts a secret knows a new version of it within this time: it asks again after 30 s, and the
/// rest is for clocks that run at different rates.
pub const SEEN_WITHIN: Duration = Duration::from_secs(FRESH.as_secs() + 15);

/// The versions of a secret that are in use.
#[derive(Clone, Debug, Default)]
pub struct Active {
    /// The newest first: of a message that is signed by two, it is known that the newer one was used.
    pub versions: Vec<ActiveVersion>,
    /// Whether there may be others: the vault is away, and this is what it said a while ago.
    pub may_lack: bool,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct ActiveVersion {
    /// Its value.
    pub value: SecretString,
    /// Its name in the vault; none where it does not lie there.
    pub token: Option<Token>,
}

/// Versions with their values.
type Versions = Vec<(Token, SecretString)>;

/// What the vault said last, by the secret's name, and when it was asked.
#[derive(Default)]
pub(crate) struct Said(Mutex<HashMap<String, (Instant, Versions)>>);

impl Resolver {
    /// The versions of a text's secret that are in use: several where the text is one reference to the vault.
    pub async fn active(&self, text: &SecretText) -> Result<Active, ResolveError> {
        let [Part::Reference(reference @ Reference::Vault { name, key })] = text.parts() else {
            return self.only(text).await;
        };
        let (whole, may_lack) = self.versions(name, reference).await?;
        if whole.is_empty() {
            return self.only(text).await;
        }
        let of_key = |(token, value): (Token, SecretString)| {
            let value = key.as_ref().map_or(Some(value.clone()), |key| field(&value, key))?;
            Some(ActiveVersion { value, token: Some(token) })
        };
        let versions: Vec<ActiveVersion> = whole.into_iter().filter_map(of_key).collect();
        if versions.is_empty() {
            Err(ResolveError::NoKey(reference.to_string()))
        } else {
            Ok(Active { versions, may_lack })
        }
    }

    async fn only(&self, text: &SecretText) -> Result<Active, ResolveError> {
        let only = ActiveVersion { value: self.resolve(text).await?, token: None };
        Ok(Active { versions: vec![only], may_lack: false })
    }

    /// The secret's labelled versions, and whether that is an old answer. None where the vault lets us read the current
    /// one alone.
    async fn versions(&self, name: &str, reference: &Reference) -> Result<(Versions, bool), ResolveError> {
        let before = self.said().get(name);
        if let Some((since, versions)) = &before
            && since.elapsed() < FRESH
        {
            return Ok((versions.clone(), false));
        }
        let vault = self.vault().ok_or_else(|| ResolveError::NoVault(reference.to_string()))?;
        // The time before the question: whatever changes after it is seen when it has run out.
        let asked = Instant::now();
        let known = before.as_ref().map(|(_, versions)| versions.as_slice()).unwrap_or_default();
        let answer = timeout(DEADLINE, ask(vault.as_ref(), name, known)).await;
        let answer = answer.unwrap_or_else(|_| Err(VaultError::Unavailable("it did not answer in time".into())));
        match (answer, before) {
            (Ok(versions), _) => {
                self.said().keep(name, asked, versions.clone());
                Ok((versions, false))
            }
            (Err(VaultError::Unavailable(why)), Some((since, versions))) if since.elapsed() < STALE => {
                warn!(name, why, "the vault is away; what it said last is used");
                Ok((versions, true))
            }
            (Err(VaultError::Refused(why)), before) => {
                if before.is_none() {
                    warn!(
                        name,
                        why, "the vault does not say which versions there are: only the current one is accepted"
                    );
                }
                self.said().keep(name, asked, Vec::new());
                Ok((Vec::new(), false))
            }
            (Err(source), _) => Err(ResolveError::Vault { reference: reference.to_string(), source }),
        }
    }
}

/// The labelled versions, the newest first. Versions never change, so a known one is not asked for again.
async fn ask(vault: &dyn Vault, name: &str, known: &[(Token, SecretString)]) -> Result<Versions, VaultError> {
    let described = vault.describe(name).await?;
    let mut versions = Vec::new();
    for token in in_order(&described) {
        let value = match known.iter().find(|(known, _)| *known == token) {
            Some((_, value)) => value.clone(),
            None => match vault.value(name, &token).await {
                // Its label was taken off meanwhile.
                Err(VaultError::NotFound) => continue,
                value => value?,
            },
        };
        versions.push((token, value));
    }
    if versions.is_empty() { Err(VaultError::NotFound) } else { Ok(versions) }
}

fn in_order(described: &Described) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    for label in [Label::Pending, Label::Current, Label::Previous] {
        let holder = described.holder(label).filter(|token| !tokens.contains(token)).cloned();
        tokens.extend(holder);
    }
    tokens
}

impl Said {
    fn get(&self, name: &str) -> Option<(Instant, Versions)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn keep(&self, name: &str, asked: Instant, versions: Versions) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), (asked, versions));
    }

    pub(crate) fn forget(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use async_trait::async_trait;
    use secrecy::ExposeSecret;

    use super::*;

    type Answer<T> = Result<T, VaultError>;

    /// A vault whose labels are set by hand.
    #[derive(Default)]
    struct ByHand {
        holders: Mutex<BTreeMap<Label, Token>>,
        asked: AtomicU32,
        away: AtomicBool,
        forbidden: AtomicBool,
    }

    fn token(letter: char) -> Token {
        letter.to_string().repeat(32).parse().unwrap()
    }

    impl ByHand {
        fn put(&self, label: Label, letter: char) {
            self.holders.lock().unwrap().insert(label, token(letter));
        }
    }

    #[async_trait]
    impl Vault for ByHand {
        async fn current(&self, _: &str) -> Answer<SecretString> {
            Ok(r#"{"webhook": "the current one"}"#.into())
        }
        async fn value(&self, _: &str, version: &Token) -> Answer<SecretString> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            Ok(format!(r#"{{"webhook": "{}"}}"#, &version.as_str()[..1]).into())
        }
        async fn describe(&self, name: &str) -> Answer<Described> {
            if self.away.load(Ordering::SeqCst) {
                return Err(VaultError::Unavailable("away".into()));
            }
            if self.forbidden.load(Ordering::SeqCst) {
                return Err(VaultError::Refused("AccessDeniedException".into()));
            }
            let mut versions: BTreeMap<Token, std::collections::BTreeSet<Label>> = BTreeMap::new();
            for (label, token) in self.holders.lock().unwrap().iter() {
                versions.entry(token.clone()).or_default().insert(*label);
            }
            Ok(Described { name: name.to_owned(), versions, managed: false })
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

    async fn active(resolver: &Resolver) -> Active {
        resolver.active(&SecretText::parse("${vault:np/github#webhook}").unwrap()).await.unwrap()
    }

    fn values(active: &Active) -> Vec<String> {
        active.versions.iter().map(|version| version.value.expose_secret().to_owned()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_version_is_known_soon_and_at_the_latest_when_it_may_be_used() {
        let vault = Arc::new(ByHand::default());
        let resolver = Resolver::new(Some(vault.clone()));
        vault.put(Label::Current, 'a');
        assert_eq!(values(&active(&resolver).await), ["a"]);
        vault.put(Label::Pending, 'b');
        assert_eq!(values(&active(&resolver).await), ["a"], "it is not asked at each delivery");
        tokio::time::advance(FRESH).await;
        let both = active(&resolver).await;
        assert_eq!((values(&both), both.may_lack), (vec!["b".to_owned(), "a".to_owned()], false));
        assert_eq!(both.versions[0].token, Some(token('b')));
        vault.put(Label::Current, 'b');
        vault.put(Label::Previous, 'a');
        tokio::time::advance(FRESH).await;
        assert_eq!(values(&active(&resolver).await), ["b", "a"], "two labels at one version are one version");
        vault.holders.lock().unwrap().remove(&Label::Previous);
        tokio::time::advance(FRESH).await;
        assert_eq!(values(&active(&resolver).await), ["b"]);
        assert_eq!(vault.asked.load(Ordering::SeqCst), 2, "a version that is known is not asked for again");
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_vault_is_away_what_it_said_last_counts_for_a_while_and_is_said_to_be_old() {
        let vault = Arc::new(ByHand::default());
        let resolver = Resolver::new(Some(vault.clone()));
        vault.put(Label::Current, 'a');
        active(&resolver).await;
        vault.away.store(true, Ordering::SeqCst);
        tokio::time::advance(FRESH).await;
        let old = active(&resolver).await;
        assert_eq!((values(&old), old.may_lack), (vec!["a".to_owned()], true));
        tokio::time::advance(STALE).await;
        let text = SecretText::parse("${vault:np/github#webhook}").unwrap();
        assert!(resolver.active(&text).await.is_err_and(|error| error.is_transient()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_may_not_ask_for_versions_has_the_current_one() {
        let vault = Arc::new(ByHand::default());
        vault.forbidden.store(true, Ordering::SeqCst);
        let resolver = Resolver::new(Some(vault));
        for _ in 0..2 {
            let only = active(&resolver).await;
            assert_eq!((values(&only), only.versions[0].token.clone()), (vec!["the current one".to_owned()], None));
        }
    }

    #[tokio::test]
    async fn what_does_not_lie_alone_in_the_vault_has_one_version() {
        let resolver = Resolver::default();
        let only = resolver.active(&SecretText::parse("literal").unwrap()).await.unwrap();
        assert_eq!(values(&only), ["literal"]);
    }
}
