//! Sources: who sends webhooks. A source type verifies and normalizes, and can sign samples of its own.
//!
//! A new one is a file here and a line in [`TYPES`].

mod clerk;
mod config;
mod github;
mod sample;
mod standard;
mod vercel;

use std::borrow::Cow;

use http::HeaderMap;
use queue::ledger::Repeats;
use schemas::{Facts, Problem, Timestamp};
use secrets::SecretString;
use uuid::Uuid;

pub use config::{Source, SourceConfig, Sources};
pub use sample::{Sample, SignedSample, example, signed_sample};

use crate::readable::{Unreadable, text_of};
use crate::rejection::Rejection;
use crate::signature::Verified;

/// All source types.
pub const TYPES: &[&dyn SourceType] = &[&github::GitHub, &vercel::Vercel, &clerk::Clerk, &standard::Standard];

/// The source type of that name.
pub fn source_type(name: &str) -> Result<&'static dyn SourceType, Problem> {
    let known = || TYPES.iter().map(|known| known.name());
    TYPES
        .iter()
        .copied()
        .find(|known| known.name() == name)
        .ok_or_else(|| Problem::unknown("source type", name, known()))
}

/// What a sender's webhooks look like. Everything here is pure: time is passed in, nothing is stored.
pub trait SourceType: Send + Sync {
    /// Its name in the configuration, and the first word of its event types.
    fn name(&self) -> &'static str;

    /// Whether the sender sends again what was not answered by a 2xx. For one that does not, a delivery that cannot be
    /// booked is spooled.
    fn sends_again(&self) -> bool {
        true
    }

    /// Whether it may send forms beside JSON.
    fn sends_forms(&self) -> bool {
        false
    }

    /// Looks for the active secret that signed these bytes. `now` is the wall clock's.
    fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        secrets: &[SecretString],
        now: Timestamp,
    ) -> Result<Verified, Rejection>;

    /// What a verified delivery says. Must not read a header that [`crate::Door`] does not keep.
    fn normalize(&self, headers: &HeaderMap, body: &[u8]) -> Result<Normalized, Unreadable>;

    /// The delivery's id, where it is in a header.
    fn delivery_id(&self, headers: &HeaderMap) -> Option<String> {
        let _ = headers;
        None
    }

    /// The JSON in a body of that content type: what a route reads as `event.raw`.
    fn json<'body>(&self, content_type: &str, body: &'body [u8]) -> Result<Cow<'body, str>, Unreadable> {
        let _ = content_type;
        text_of(body)
    }

    /// The one spelling of an event type for which the sender has several.
    fn canonical(&self, kind: &str) -> String {
        kind.to_owned()
    }

    /// The event types that there are samples of.
    fn sample_types(&self) -> Vec<String>;

    /// A sample delivery of that event type, unsigned.
    fn sample(&self, kind: &str) -> Option<Sample>;

    /// Makes a sample a new delivery: gives it an id and, where that is in the body, a time.
    fn make_new(&self, sample: &mut Sample, nonce: Uuid, now: Timestamp);

    /// Signs a body: adds the headers that [`SourceType::verify`] reads.
    fn sign(&self, secret: &SecretString, headers: &mut HeaderMap, body: &[u8], now: Timestamp) -> Result<(), Problem>;
}

/// A verified delivery in names that are the same whoever sends.
#[derive(Clone, Debug)]
pub struct Normalized {
    /// `<sender>.<event>[.<action>]`.
    pub kind: String,
    /// The sender's id for the delivery; none where it has none.
    pub delivery_id: Option<String>,
    /// What it is about.
    pub subject: Option<String>,
    /// When it happened, where the sender says so.
    pub time: Option<Timestamp>,
    /// What it says.
    pub facts: Facts,
    /// What the same body under another delivery id means.
    pub repeats: Repeats,
}

/// A header's value, if it is visible ASCII.
fn header<'headers>(headers: &'headers HeaderMap, name: &str) -> Option<&'headers str> {
    headers.get(name)?.to_str().ok().filter(|value| !value.is_empty())
}

/// The media type of a `content-type`, without its parameters, in lower case.
pub(crate) fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}
