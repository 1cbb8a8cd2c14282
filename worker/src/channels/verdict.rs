//! What an answer means: judged here and nowhere else, by the tables in [`super::tables`].

use std::time::Duration;

use anyhow::anyhow;
use serde_json::Value;

use crate::handler::Failure;

/// A message that was not delivered, or of which nobody knows.
#[derive(Debug)]
pub struct NotSent {
    /// What is known of it.
    pub fate: Fate,
    /// What is to be done.
    pub failure: Failure,
}

impl NotSent {
    /// Nothing was sent, and this is why.
    pub(super) fn before_sending(failure: Failure) -> Self {
        Self { fate: Fate::NotDelivered, failure }
    }
}

/// What is known of a message after a failed attempt to deliver it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was not delivered.
    NotDelivered,
    /// It may have been delivered.
    Unknown,
}

/// What the other side answered.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The status of HTTP, the code of SMTP.
    pub status: u16,
    /// The word that its table tells answers of one status apart by; for comparison only, never for messages: it is a
    /// stranger's.
    pub word: &'a str,
    /// How long it asks to be left alone.
    pub retry_after: Option<Duration>,
}

/// All that a kind of target may answer.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// The lines; the first that fits an answer decides.
    pub lines: &'static [Line],
    /// Reads an answer's body.
    pub read: fn(&str) -> Said,
}

/// What an answer's body says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The word to compare with the table's.
    pub word: String,
    /// How long to wait, where the body says it; it is more exact than `Retry-After`.
    pub retry_after: Option<Duration>,
}

/// One line of a table.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// The statuses that it is about, first to last.
    pub status: (u16, u16),
    /// The word that it is about; none for any.
    pub word: Option<&'static str>,
    /// What follows.
    pub verdict: Verdict,
    /// What it means and what to do, for people; put behind "it answered 404: ".
    pub meaning: &'static str,
}

/// What follows from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Delivered.
    Delivered,
    /// Try again, not before what the other side asks for.
    Retry(Fate),
    /// Trying again would not help.
    Discard(Fate),
}

/// The body itself is the word.
pub(super) fn plain(body: &str) -> Said {
    Said { word: body.trim().to_owned(), retry_after: None }
}

/// The field of a JSON body that says which error it is, as text; `taken` where the body has all the fields that a
/// receipt of the target has, if it gives any.
pub(super) fn json_word(body: &str, receipt: &[&str], field: &str) -> String {
    let Ok(body) = serde_json::from_str::<Value>(body) else { return String::new() };
    if !receipt.is_empty() && receipt.iter().all(|field| body[*field].is_string()) {
        return "taken".to_owned();
    }
    match &body[field] {
        Value::String(word) => word.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

/// Judges an answer by a table.
pub fn judge(table: &[Line], answer: &Answer<'_>) -> Result<(), NotSent> {
    let fits = |line: &&Line| {
        let (first, last) = line.status;
        (first..=last).contains(&answer.status) && line.word.is_none_or(|word| word == answer.word)
    };
    let unknown = (Verdict::Discard(Fate::Unknown), "nobody knows what this means");
    let (verdict, meaning) = table.iter().find(fits).map_or(unknown, |line| (line.verdict, line.meaning));
    let error = anyhow!("it answered {}: {meaning}", answer.status);
    match verdict {
        Verdict::Delivered => Ok(()),
        Verdict::Retry(fate) => Err(NotSent { fate, failure: Failure::Retry { error, after: answer.retry_after } }),
        Verdict::Discard(fate) => Err(NotSent { fate, failure: Failure::Discard(error) }),
    }
}
