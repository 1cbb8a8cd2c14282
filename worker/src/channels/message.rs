//! What is said, before a channel gives it its form.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A message, in plain text: each channel escapes and bounds it as its target needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// One line.
    pub title: String,
    /// Any number of lines, or none.
    pub text: String,
    /// How urgent it is.
    pub severity: Severity,
    /// The alarm that it raises or ends; none where it only tells.
    pub alarm: Option<Alarm>,
}

/// What a message does to an alarm: something that is wrong until it is said to be over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// The alarm's name: the same for all messages about it.
    pub key: String,
    /// What the message does to it.
    pub action: Action,
}

/// What a message does to its alarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Raises it, or says more about it.
    #[default]
    Trigger,
    /// Somebody looks after it.
    Acknowledge,
    /// It is over.
    Resolve,
}

/// How urgent a message is. `P0`, `P1` and `P2` are other words for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// P2: for whoever reads it.
    #[default]
    #[serde(alias = "P2")]
    Info,
    /// P1: somebody must look, today.
    #[serde(alias = "P1")]
    Warning,
    /// P0: somebody must look, now.
    #[serde(alias = "P0")]
    Critical,
}

impl Message {
    /// The first line as people see it.
    pub(super) fn headline(&self, may_repeat: bool) -> String {
        let label = match (self.alarm.as_ref().map(|alarm| alarm.action), self.severity) {
            (Some(Action::Resolve), _) => "[resolved] ",
            (Some(Action::Acknowledge), _) => "[acknowledged] ",
            (_, Severity::Info) => "",
            (_, Severity::Warning) => "[warning] ",
            (_, Severity::Critical) => "[critical] ",
        };
        let mark = if may_repeat { "(possibly repeated) " } else { "" };
        format!("{mark}{label}{}", self.title).replace(['\r', '\n'], " ")
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
    fn the_headline_is_one_line_and_says_what_is_urgent_what_is_over_and_what_may_be_a_repeat() {
        let mut message =
            Message { title: "deploy\nfailed".into(), text: String::new(), severity: Severity::Critical, alarm: None };
        assert_eq!(message.headline(false), "[critical] deploy failed");
        assert_eq!(message.headline(true), "(possibly repeated) [critical] deploy failed");
        message.alarm = Some(Alarm { key: "deploy".into(), action: Action::Resolve });
        assert_eq!(message.headline(false), "[resolved] deploy failed");
    }

    #[test]
    fn severities_have_two_names_each() {
        let read = |word: &str| serde_json::from_value::<Severity>(word.into()).unwrap();
        assert_eq!(["P0", "P1", "P2"].map(read), ["critical", "warning", "info"].map(read));
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
