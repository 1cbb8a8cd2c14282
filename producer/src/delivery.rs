//! A verified delivery, before it is an event: what is booked, or spooled until it can be.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use queue::ledger::SIGNED_WITH;
use schemas::{Timestamp, TraceContext};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// The headers worth keeping: what normalizing reads and what helps an operator. Signatures are not among them.
const KEPT: &[&str] = &[
    "content-type",
    "user-agent",
    "x-github-event",
    "x-github-delivery",
    "x-github-hook-id",
    "x-github-hook-installation-target-id",
    "x-github-hook-installation-target-type",
    "svix-id",
    "svix-timestamp",
    "webhook-id",
    "webhook-timestamp",
];

/// A longer value of a kept header is none that a sender sends.
const LONGEST_VALUE: usize = 512;

/// Headers that were kept of a request; each is visible ASCII and not long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeptHeaders(HeaderMap);

/// A delivery whose signature was right.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    /// The configured source's name.
    pub(crate) source: String,
    pub(crate) headers: KeptHeaders,
    /// The version of the source's secret that signed it, where that lies in the vault.
    pub(crate) signed_with: Option<String>,
    /// The sender's bytes, exactly.
    pub(crate) body: Bytes,
    /// By the ledger's clock.
    pub(crate) received_at: Timestamp,
    /// The position of the request that brought it.
    pub(crate) trace: TraceContext,
}

impl Delivery {
    /// The headers as the ledger keeps them, and beside them which version of the secret signed it. No sender can say that
    /// by a header of its own: none of that name is kept.
    pub(crate) fn headers_to_keep(&self) -> Value {
        let mut kept = self.headers.to_json();
        if let Some(version) = &self.signed_with {
            kept[SIGNED_WITH] = version.as_str().into();
        }
        kept
    }
}

impl KeptHeaders {
    /// Those of a request that are worth it.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut kept = HeaderMap::new();
        for name in KEPT {
            let value = headers.get(*name).filter(|value| value.len() <= LONGEST_VALUE && value.to_str().is_ok());
            kept.extend(value.map(|value| (HeaderName::from_static(name), value.clone())));
        }
        Self(kept)
    }

    /// As headers.
    pub(crate) fn map(&self) -> &HeaderMap {
        &self.0
    }

    /// The content type, empty where there was none.
    pub(crate) fn content_type(&self) -> &str {
        self.0.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// As a JSON object, for the ledger.
    pub(crate) fn to_json(&self) -> Value {
        let fields = self.0.iter().filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.into())));
        Value::Object(fields.collect())
    }
}

impl Serialize for KeptHeaders {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for KeptHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields: Map<String, Value> = Map::deserialize(deserializer)?;
        let headers = fields.iter().filter_map(|(name, value)| {
            Some((name.parse::<HeaderName>().ok()?, HeaderValue::from_str(value.as_str()?).ok()?))
        });
        Ok(Self::of(&headers.collect()))
    }
}
