//! References: `${env:NAME}`, `${file:path}`, `${vault:name#key}`, alone or within a text.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

/// A text of the configuration that may hold secrets by reference.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SecretText {
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Literal(String),
    Reference(Reference),
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reference {
    /// In an environment variable.
    Env(String),
    /// In a file, whose last line break does not count.
    File(PathBuf),
    /// In the vault, under a name; a key picks a field of a secret that is a JSON object.
    Vault { name: String, key: Option<String> },
}

/// A text that is not well-formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// There is no closing brace.
    #[error("`${{` is not closed by `}}`")]
    Unclosed,
    /// The word before the colon is not known.
    #[error("`${{{0}}}` is not a reference: write ${{env:NAME}}, ${{file:path}} or ${{vault:name#key}}")]
    Unknown(String),
}

impl SecretText {
    /// Takes a text apart.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (inside, behind) = after.split_once('}').ok_or(ReferenceError::Unclosed)?;
            if !before.is_empty() {
                parts.push(Part::Literal(before.to_owned()));
            }
            parts.push(Part::Reference(Reference::parse(inside)?));
            rest = behind;
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        Ok(Self { parts })
    }

    /// Whether it holds no reference: then, where a secret belongs, the secret itself stands in the file.
    pub fn is_literal(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Literal(_)))
    }

    /// Whether it asks the vault.
    pub fn asks_vault(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Reference(Reference::Vault { .. })))
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }
}

impl Reference {
    fn parse(inside: &str) -> Result<Self, ReferenceError> {
        match inside.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("vault", place)) if !place.is_empty() => {
                let (name, key) = place.split_once('#').map_or((place, None), |(name, key)| (name, Some(key)));
                Ok(Self::Vault { name: name.to_owned(), key: key.map(str::to_owned) })
            }
            _ => Err(ReferenceError::Unknown(inside.to_owned())),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "${{env:{name}}}"),
            Self::File(path) => write!(f, "${{file:{}}}", path.display()),
            Self::Vault { name, key: Some(key) } => write!(f, "${{vault:{name}#{key}}}"),
            Self::Vault { name, key: None } => write!(f, "${{vault:{name}}}"),
        }
    }
}

impl TryFrom<String> for SecretText {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl fmt::Debug for SecretText {
    /// Shows references, hides literals: a literal may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                Part::Literal(_) => f.write_str("…")?,
                Part::Reference(reference) => write!(f, "{reference}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_stand_alone_or_within_a_text() {
        let text = SecretText::parse("postgres://app:${env:PW}@db/${vault:app/db#name}").unwrap();
        assert_eq!(format!("{text:?}"), "…${env:PW}…${vault:app/db#name}");
        assert!(!text.is_literal() && text.asks_vault());
        assert!(SecretText::parse("plain $5 {x}").unwrap().is_literal());
    }

    #[test]
    fn a_malformed_reference_is_refused_with_the_right_forms() {
        assert_eq!(SecretText::parse("${env:A"), Err(ReferenceError::Unclosed));
        let error = SecretText::parse("${ENV}").unwrap_err().to_string();
        assert!(error.contains("${env:NAME}"), "{error}");
    }

    #[test]
    fn debug_output_hides_literals() {
        assert_eq!(format!("{:?}", SecretText::parse("hunter2").unwrap()), "…");
    }
}
