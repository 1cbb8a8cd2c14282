//! What is in the file: secrets, versions, labels; and the rules of change, which know nothing of disks.
//!
//! Each change answers whether there is something to write.

use std::collections::{BTreeMap, BTreeSet};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::vaults::{Described, Label, Promotion, Token, VaultError};

/// The whole file.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Book {
    secrets: BTreeMap<String, BTreeMap<Token, Version>>,
}

/// One value, which never changes. It is there as long as a label stands at it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Version {
    labels: BTreeSet<Label>,
    value: String,
}

impl Book {
    pub(super) fn current(&self, name: &str) -> Result<SecretString, VaultError> {
        let versions = self.secrets.get(name).ok_or(VaultError::NotFound)?;
        let current = versions.values().find(|version| version.labels.contains(&Label::Current));
        current.map(|version| version.value.as_str().into()).ok_or(VaultError::NotFound)
    }

    pub(super) fn value(&self, name: &str, token: &Token) -> Result<SecretString, VaultError> {
        let version = self.secrets.get(name).and_then(|versions| versions.get(token));
        version.map(|version| version.value.as_str().into()).ok_or(VaultError::NotFound)
    }

    pub(super) fn describe(&self, name: &str) -> Result<Described, VaultError> {
        let versions = self.secrets.get(name).ok_or(VaultError::NotFound)?;
        let versions = versions.iter().map(|(token, version)| (token.clone(), version.labels.clone())).collect();
        Ok(Described { name: name.to_owned(), versions, managed: false })
    }

    pub(super) fn list(&self) -> Vec<Described> {
        self.secrets.keys().filter_map(|name| self.describe(name).ok()).collect()
    }

    pub(super) fn create(&mut self, name: &str, token: &Token, value: String) -> Result<bool, VaultError> {
        match self.secrets.get(name).map(|versions| versions.get(token)) {
            Some(Some(there)) if there.value == value => return Ok(false),
            Some(_) => return Err(VaultError::Conflict("a secret of that name exists".to_owned())),
            None => {}
        }
        let first = Version { labels: [Label::Current].into(), value };
        self.secrets.insert(name.to_owned(), [(token.clone(), first)].into());
        Ok(true)
    }

    pub(super) fn put_pending(&mut self, name: &str, token: &Token, value: String) -> Result<bool, VaultError> {
        let secret = self.describe(name)?;
        let versions = self.secrets.get_mut(name).ok_or(VaultError::NotFound)?;
        match versions.get(token) {
            Some(there) if there.value == value => return Ok(false),
            Some(_) => {
                return Err(VaultError::Conflict(format!(
                    "its version {token} has another value, and versions do not change"
                )));
            }
            None => secret.room_for(token)?,
        }
        versions.insert(token.clone(), Version { labels: [Label::Pending].into(), value });
        Ok(true)
    }

    pub(super) fn promote(&mut self, name: &str, token: &Token, from: &Token) -> Result<bool, VaultError> {
        match self.describe(name)?.promotion(token, from)? {
            Promotion::Done => return Ok(false),
            Promotion::OnlyUnlabel => {}
            Promotion::Move => {
                self.label(name, Label::Previous, from);
                self.label(name, Label::Current, token);
            }
        }
        self.unlabel(name, Label::Pending);
        Ok(true)
    }

    pub(super) fn drop_label(&mut self, name: &str, token: &Token, label: Label) -> Result<bool, VaultError> {
        if !self.describe(name)?.has(token, label) {
            return Ok(false);
        }
        self.unlabel(name, label);
        Ok(true)
    }

    fn label(&mut self, name: &str, label: Label, token: &Token) {
        for (here, version) in self.secrets.get_mut(name).into_iter().flatten() {
            version.labels.remove(&label);
            if here == token {
                version.labels.insert(label);
            }
        }
    }

    /// Takes a label away; a version without any is no longer wanted, and its value goes with it.
    fn unlabel(&mut self, name: &str, label: Label) {
        if let Some(versions) = self.secrets.get_mut(name) {
            for version in versions.values_mut() {
                version.labels.remove(&label);
            }
            versions.retain(|_, version| !version.labels.is_empty());
        }
    }
}
