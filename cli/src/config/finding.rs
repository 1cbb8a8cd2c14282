//! What `check` finds: a place, what is wrong there, and what to write instead.

use std::fmt;

use schemas::Problem;
use serde::Serialize;

/// One finding about the configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// How bad it is.
    pub(crate) severity: Severity,
    /// Where, for people and editors.
    #[serde(flatten)]
    pub(crate) place: Option<Place>,
    /// Where, in keys.
    pub(crate) path: Vec<String>,
    /// What is wrong.
    pub(crate) message: String,
    /// What to do about it, where that is known.
    pub(crate) help: Option<String>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Nothing starts with it.
    Error,
    /// It works, and should be different.
    Warning,
}

/// A place in a text, counted from 1; columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[allow(missing_docs)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Place {
    /// The place of a byte.
    pub(crate) fn of(text: &str, byte: usize) -> Self {
        let before = text.get(..byte).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).saturating_add(1);
        Self { line: count(before.matches('\n').count()), column: count(before[line_start..].chars().count()) }
    }
}

impl Finding {
    /// An error whose place is not yet known.
    pub(crate) fn error(message: impl Into<String>) -> Self {
        Self::from(Problem::new(message))
    }

    /// A warning whose place is not yet known.
    pub(crate) fn warning(message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(message) }
    }

    /// Adds what to do about it.
    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// Adds its place.
    pub(crate) fn at(self, place: Option<Place>) -> Self {
        Self { place, ..self }
    }

    /// Whether nothing starts with it.
    pub(crate) fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl From<Problem> for Finding {
    fn from(problem: Problem) -> Self {
        let Problem { path, message, help } = problem;
        Self { severity: Severity::Error, place: None, path, message, help }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = self.place {
            write!(f, "{}:{}: ", place.line, place.column)?;
        }
        f.write_str(if self.is_error() { "error: " } else { "warning: " })?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path.join("."))?;
        }
        f.write_str(&self.message)?;
        self.help.as_ref().map_or(Ok(()), |help| write!(f, " ({help})"))
    }
}

/// The field that a message of serde's says is missing.
pub(crate) fn missing_field(message: &str) -> Option<&str> {
    quoted(message.strip_prefix("missing field ")?).next()
}

/// A message of serde's in our words: with a suggestion, and without values, which may be secrets.
pub(crate) fn from_serde(message: &str) -> Finding {
    if let Some(key) = missing_field(message) {
        return Finding::error(format!("`{key}` is missing"));
    }
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let mut names = quoted(rest);
        let name = names.next().unwrap_or_default();
        return Problem::unknown("key", name, names).into();
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let mut names = quoted(rest);
        let name = names.next().unwrap_or_default();
        let Problem { help, .. } = Problem::unknown("value", name, names);
        return Finding { help, ..Finding::error(format!("`{name}` is not one of the values it may have")) };
    }
    Finding::error(in_words_of_toml(message))
}

/// The texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn in_words_of_toml(message: &str) -> String {
    let mut words = message.to_owned();
    if let Some(start) = words.find("string \"")
        && let Some(end) = words.rfind("\", expected")
    {
        words.replace_range(start..=end, "a string");
    }
    if let Some((before, _)) = words.split_once("expected struct ") {
        words = format!("{before}expected a table");
    }
    for number in ["u8", "u16", "u32", "u64", "usize", "i32", "i64"] {
        if let Some(before) = words.strip_suffix(&format!("expected {number}")) {
            words = format!("{before}expected a whole number");
        }
    }
    let pairs = [
        ("expected a map", "expected a table"),
        ("expected a sequence", "expected an array"),
        ("invalid type: map", "invalid type: a table"),
        ("invalid type: sequence", "invalid type: an array"),
        ("expected a nonzero u32", "expected a whole number above 0"),
        ("wanted string or table", "invalid type: expected a string"),
        ("invalid socket address syntax", "this is not an address and port, such as 127.0.0.1:8780"),
    ];
    pairs.iter().fold(words, |words, (theirs, ours)| words.replace(theirs, ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_in_lines_and_characters_from_one() {
        let text = "ä = 1\nöö = x";
        assert_eq!(Place::of(text, 0), Place { line: 1, column: 1 });
        assert_eq!(Place::of(text, text.find('x').unwrap()), Place { line: 2, column: 6 });
    }

    #[test]
    fn texts_are_left_out_of_messages() {
        let finding = from_serde("invalid type: string \"hunter\\\"2\", expected a sequence");
        assert_eq!(finding.message, "invalid type: a string, expected an array");
        assert_eq!(
            from_serde("invalid type: integer `3`, expected struct Room").message,
            "invalid type: integer `3`, expected a table"
        );
    }
}
