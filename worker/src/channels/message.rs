//! What is said, before a channel gives it its form.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A message, in plain text: each channel escapes and bounds it as its target needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// One line.
    pub title: String,
    /// Any number of lines, or none.
    pub text: String,
    /// How urgent it is.
    pub severity: Severity,
}

/// How urgent a message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Severity {
    #[default]
    Info,
    Warning,
    Critical,
}

impl Message {
    /// The first line as people see it.
    pub(super) fn headline(&self, may_repeat: bool) -> String {
        let severity = match self.severity {
            Severity::Info => "",
            Severity::Warning => "[warning] ",
            Severity::Critical => "[critical] ",
        };
        let mark = if may_repeat { "(possibly repeated) " } else { "" };
        format!("{mark}{severity}{}", self.title)
    }
}

/// The text, or as much of its beginning as fits into so many bytes, with a mark that it was cut. Never splits a
/// character.
pub(crate) fn cut(text: &str, bytes: usize) -> String {
    const MARK: &str = " …";
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes.saturating_sub(MARK.len()));
    format!("{}{MARK}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headline_says_what_is_urgent_and_what_may_be_a_repeat() {
        let message = Message { title: "deploy failed".into(), text: String::new(), severity: Severity::Critical };
        assert_eq!(message.headline(false), "[critical] deploy failed");
        assert_eq!(message.headline(true), "(possibly repeated) [critical] deploy failed");
    }

    #[test]
    fn a_cut_never_splits_a_character_and_is_marked() {
        assert_eq!(cut("short", 5), "short");
        let long = "äöü".repeat(10);
        for bytes in 4..long.len() {
            let short = cut(&long, bytes);
            assert!(short.len() <= bytes && short.ends_with(" …"), "{short}");
        }
    }
}
