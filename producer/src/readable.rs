//! Reading senders' JSON: the one written policy for what is odd.
//!
//! A delivery whose signature is right is never refused for its contents and never a 5xx: a 4xx only makes it come back.
//! What cannot be read is *unreadable*: kept for an operator, with its bytes exactly as they came. So:
//!
//! | oddity | policy |
//! |---|---|
//! | not JSON, trailing bytes, nothing at all | unreadable |
//! | invalid UTF-8, anywhere | unreadable |
//! | anything but an object at the root | unreadable |
//! | a NUL, another control character or a Unicode noncharacter in a text that we read | unreadable: `PostgreSQL` refuses the one, `CloudEvents` the others |
//! | a lone surrogate in a text that we read | unreadable |
//! | the same oddities in what we do not read | kept, and not looked at |
//! | a key that we read twice | unreadable: two readers would disagree on what was signed |
//! | another key twice | kept; in `raw` the last one counts |
//! | whole numbers up to 2^64 as ids | read exactly, kept as text |
//! | larger numbers and fractions as ids | null |
//! | nesting, however deep, in what we do not read | kept; a route that reads `raw` cannot read it below 128 levels and says so |
//! | a text of more than 2048 bytes that we read; a type or delivery id of more than 255 | unreadable |
//! | a moment before the year 0 or after 9999 | null; others are kept in microseconds |
//! | another type than we expect for a value that we read | null |
//! | the empty text | null: it says nothing |
//!
//! Only what is needed is read, into typed structs: building a `serde_json::Value` of a body costs ten times as much.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use chrono::{DateTime, Datelike};
use schemas::Timestamp;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The longest text that is taken from a body, in bytes.
const LONGEST_TEXT: usize = 2048;

/// The longest type or delivery id, in bytes.
pub(crate) const LONGEST_NAME: usize = 255;

/// Why a verified delivery is not an event. Says nothing of what the sender wrote: bodies are personal data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

impl Unreadable {
    /// For this reason.
    pub(crate) fn because(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// Reads a body into a typed struct.
pub(crate) fn read<'de, T: Deserialize<'de>>(json: &'de str) -> Result<T, Unreadable> {
    // A derived struct would also take an array, field by field.
    if !json.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(Unreadable::because("the body is not a JSON object"));
    }
    serde_json::from_str(json).map_err(|error| Unreadable(format!("the body cannot be read: {error}")))
}

/// The body as text.
pub(crate) fn text_of(body: &[u8]) -> Result<Cow<'_, str>, Unreadable> {
    std::str::from_utf8(body).map(Cow::Borrowed).map_err(|_| Unreadable::because("the body is not UTF-8"))
}

/// Refuses a type or delivery id that is too long.
pub(crate) fn bounded_name(what: &str, name: String) -> Result<String, Unreadable> {
    if name.len() > LONGEST_NAME {
        return Err(Unreadable(format!("its {what} has {} bytes, of at most {LONGEST_NAME}", name.len())));
    }
    Ok(name)
}

/// Whether a text may stand in a text column and in a `CloudEvents` attribute.
pub(crate) fn is_plain(text: &str) -> bool {
    !text.chars().any(|char| char.is_control() || is_noncharacter(char))
}

/// A text of ours that may quote others, made fit for a text column: without control characters, and not long.
pub(crate) fn made_plain(text: &str) -> String {
    text.chars().map(|char| if is_plain(char.encode_utf8(&mut [0; 4])) { char } else { '\u{fffd}' }).take(500).collect()
}

fn is_noncharacter(char: char) -> bool {
    let code = u32::from(char);
    code & 0xfffe == 0xfffe || (0xfdd0..=0xfdef).contains(&code)
}

/// A text or a whole number, as text; none where something else stands, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) Option<String>);

impl Text {
    /// The text, if there is one.
    pub(crate) fn get(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// An object, read into `T`; none where something else stands, or nothing.
#[derive(Clone, Debug)]
pub(crate) struct Part<T>(pub(crate) Option<T>);

impl<T> Default for Part<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Part<T> {
    /// A text inside the object.
    pub(crate) fn text(&self, pick: impl Fn(&T) -> &Text) -> Option<String> {
        self.0.as_ref().and_then(|part| pick(part).0.clone())
    }

    /// A moment inside the object.
    pub(crate) fn moment(&self, pick: impl Fn(&T) -> &Moment) -> Option<Timestamp> {
        self.0.as_ref().and_then(|part| pick(part).0)
    }
}

/// A moment: RFC 3339, or seconds or milliseconds since 1970, told apart by magnitude.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moment(pub(crate) Option<Timestamp>);

/// Whether a key is there, whatever its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Present(pub(crate) bool);

/// A yes or no; no where something else stands, or nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flag(pub(crate) bool);

/// What a JSON value is turned into; whatever is not overridden means "nothing".
trait Lenient<'de>: Sized + Default {
    fn of_text<E: Error>(_: &str) -> Result<Self, E> {
        Ok(Self::default())
    }
    fn of_number(_: i128) -> Self {
        Self::default()
    }
    fn of_bool(_: bool) -> Self {
        Self::default()
    }
    fn of_object<A: MapAccess<'de>>(mut fields: A) -> Result<Self, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::default())
    }
}

struct LenientVisitor<T>(PhantomData<T>);

impl<'de, T: Lenient<'de>> Visitor<'de> for LenientVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::of_text(text)
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        Ok(T::of_number(number.into()))
    }
    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        Ok(T::of_number(number.into()))
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<T, E> {
        Ok(T::default())
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<T, E> {
        Ok(T::of_bool(value))
    }
    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Ok(T::default())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<T, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(T::default())
    }
    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        T::of_object(fields)
    }
}

fn leniently<'de, T: Lenient<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_any(LenientVisitor(PhantomData))
}

impl Lenient<'_> for Text {
    fn of_text<E: Error>(text: &str) -> Result<Self, E> {
        if text.len() > LONGEST_TEXT {
            return Err(E::custom(format_args!("a text of {} bytes, of at most {LONGEST_TEXT}", text.len())));
        }
        if !is_plain(text) {
            return Err(E::custom("a control character in a text that is kept"));
        }
        Ok(Self((!text.is_empty()).then(|| text.to_owned())))
    }

    fn of_number(number: i128) -> Self {
        Self(Some(number.to_string()))
    }
}

impl<'de, T: Deserialize<'de>> Lenient<'de> for Part<T> {
    fn of_object<A: MapAccess<'de>>(fields: A) -> Result<Self, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields)).map(|part| Self(Some(part)))
    }
}

/// A moment as the ledgers keep it and `CloudEvents` writes it: in microseconds, in a year of four digits.
fn kept(moment: Timestamp) -> Option<Timestamp> {
    let micros = DateTime::from_timestamp_micros(moment.timestamp_micros())?;
    (0..=9999).contains(&micros.year()).then_some(micros)
}

/// From here on a number can only be milliseconds: as seconds it would be the year 5138.
const FIRST_MILLISECONDS: i128 = 100_000_000_000;

impl Lenient<'_> for Moment {
    fn of_text<E: Error>(text: &str) -> Result<Self, E> {
        Ok(Self(DateTime::parse_from_rfc3339(text).ok().and_then(|moment| kept(moment.to_utc()))))
    }

    fn of_number(number: i128) -> Self {
        let Ok(value) = i64::try_from(number) else { return Self(None) };
        let moment = if number < FIRST_MILLISECONDS {
            DateTime::from_timestamp_secs(value)
        } else {
            DateTime::from_timestamp_millis(value)
        };
        Self(moment.and_then(kept))
    }
}

impl Lenient<'_> for Flag {
    fn of_bool(value: bool) -> Self {
        Self(value)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        leniently(deserializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Part<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        leniently(deserializer)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        leniently(deserializer)
    }
}

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        leniently(deserializer)
    }
}

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self(true))
    }
}
