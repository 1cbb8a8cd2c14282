//! Vaults: where secrets lie, in versions. A new one is a file here, an arm where the command line opens it, and its line
//! in the vaults' conformance suite.
//!
//! The model is that of AWS Secrets Manager, and every vault has its semantics. A secret has versions, which never change;
//! labels say what a version is for, and each stands at one version at most. A version is named by a [`Token`] that its
//! maker fixes *before* the first call: so a call whose answer was lost is simply made again, and makes no second version.

mod aws;
mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

pub use aws::AwsVault;
pub use file::{FileVault, Recipient, new_key, own_keys};

/// Why a vault did not do it. Never holds a value.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// It is away; asking again may help.
    #[error("it is unavailable: {0}")]
    Unavailable(String),
    /// It has no secret of that name, or no such version of it.
    #[error("it has no such secret")]
    NotFound,
    /// It does not let us.
    #[error("it refuses: {0}")]
    Refused(String),
    /// The secret does not stand as the caller thought; nothing was changed.
    #[error("{0}")]
    Conflict(String),
    /// Somebody else rotates this secret: two who rotate the same one lock each other out. Nothing was changed.
    #[error(
        "the vault rotates this secret itself (`RotationEnabled`): switch that off there, or leave it to the vault"
    )]
    Managed,
}

/// Holds secrets in versions.
///
/// Every call has a deadline of its own. Of those that change something, each may be made again after a lost answer.
#[async_trait]
pub trait Vault: Send + Sync {
    /// The value of the version that is current.
    async fn current(&self, name: &str) -> Result<SecretString, VaultError>;

    /// The value of a version, as long as a label stands at it.
    async fn value(&self, name: &str, version: &Token) -> Result<SecretString, VaultError>;

    /// Which versions a secret has, and where its labels stand.
    async fn describe(&self, name: &str) -> Result<Described, VaultError>;

    /// All secrets, by name.
    async fn list(&self) -> Result<Vec<Described>, VaultError>;

    /// Makes a secret whose first version is current. Where this very version is there already: nothing is done.
    async fn create(&self, name: &str, token: &Token, value: &SecretString) -> Result<(), VaultError>;

    /// Writes a new version and labels it pending; what is current stays so. The same token with the same value: nothing
    /// is done; with another value, or while another version is pending: [`VaultError::Conflict`].
    async fn put_pending(&self, name: &str, token: &Token, value: &SecretString) -> Result<(), VaultError>;

    /// Makes the pending version current, if `from` still is: that one is then the previous one, and nothing is pending.
    /// Where it is current already: nothing is done, but that it is pending no more.
    async fn promote(&self, name: &str, token: &Token, from: &Token) -> Result<(), VaultError>;

    /// Takes the label off this version, if it is the pending one. Nothing is done where it is not.
    async fn drop_pending(&self, name: &str, token: &Token) -> Result<(), VaultError>;

    /// Takes the label off this version, if it is the previous one: nobody is to accept it any more. Nothing is done where
    /// it is not.
    async fn drop_previous(&self, name: &str, token: &Token) -> Result<(), VaultError>;
}

/// Names a version: 32 to 64 letters, digits and hyphens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token(String);

impl Token {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !known || !(32..=64).contains(&text.len()) {
            return Err(format!("`{text}` names no version: it has 32 to 64 letters, digits and hyphens"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Token {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<uuid::Uuid> for Token {
    fn from(id: uuid::Uuid) -> Self {
        Self(id.to_string())
    }
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        token.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a version is for. Spelled as AWS spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Label {
    /// It is to become current.
    #[serde(rename = "AWSPENDING")]
    Pending,
    /// It is what readers get.
    #[serde(rename = "AWSCURRENT")]
    Current,
    /// It was current before.
    #[serde(rename = "AWSPREVIOUS")]
    Previous,
}

impl Label {
    /// As AWS spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "AWSPENDING",
            Self::Current => "AWSCURRENT",
            Self::Previous => "AWSPREVIOUS",
        }
    }

    /// A label that the vaults share; others are whoever's who put them there.
    pub fn read(text: &str) -> Option<Self> {
        [Self::Pending, Self::Current, Self::Previous].into_iter().find(|label| label.as_str() == text)
    }
}

/// How a secret stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// The versions at which a label stands, with the labels.
    pub versions: BTreeMap<Token, BTreeSet<Label>>,
    /// Whether the vault rotates it by itself.
    pub managed: bool,
}

impl Described {
    /// The version at which a label stands.
    pub fn holder(&self, label: Label) -> Option<&Token> {
        self.versions.iter().find(|(_, labels)| labels.contains(&label)).map(|(token, _)| token)
    }

    /// Whether a label stands at that version.
    pub fn has(&self, token: &Token, label: Label) -> bool {
        self.versions.get(token).is_some_and(|labels| labels.contains(&label))
    }

    /// Refuses what would have two rotate one secret.
    fn ours(&self) -> Result<(), VaultError> {
        if self.managed { Err(VaultError::Managed) } else { Ok(()) }
    }

    /// Refuses a second pending version. The label may lie at the current one, where AWS leaves it at times.
    fn room_for(&self, token: &Token) -> Result<(), VaultError> {
        match self.holder(Label::Pending) {
            Some(other) if other != token && !self.has(other, Label::Current) => Err(VaultError::Conflict(format!(
                "its version {other} is pending: another rotation is under way, or was left behind"
            ))),
            _ => Ok(()),
        }
    }

    /// What is to be done so that the pending version is current.
    fn promotion(&self, token: &Token, from: &Token) -> Result<Promotion, VaultError> {
        if self.has(token, Label::Current) {
            return Ok(if self.has(token, Label::Pending) { Promotion::OnlyUnlabel } else { Promotion::Done });
        }
        if !self.has(token, Label::Pending) {
            return Err(VaultError::Conflict(format!("its version {token} is not pending")));
        }
        match self.holder(Label::Current) {
            Some(holder) if holder == from => Ok(Promotion::Move),
            holder => {
                let holder = holder.map_or("none", Token::as_str);
                Err(VaultError::Conflict(format!("its current version is {holder} and no longer {from}")))
            }
        }
    }
}

/// What a promotion finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promotion {
    /// It was made.
    Done,
    /// It was made, but the version still counts as pending.
    OnlyUnlabel,
    /// It is to be made.
    Move,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_the_length_that_aws_asks_for() {
        assert!(Token::from(uuid::Uuid::nil()).as_str().parse::<Token>().is_ok());
        for wrong in ["short", &"x".repeat(65), &format!("{}/", "x".repeat(40))] {
            assert!(wrong.parse::<Token>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn labels_are_read_as_they_are_written() {
        for label in [Label::Pending, Label::Current, Label::Previous] {
            assert_eq!(Label::read(label.as_str()), Some(label));
            assert_eq!(serde_json::to_value(label).unwrap(), label.as_str());
        }
        assert_eq!(Label::read("mine"), None);
    }
}
