//! Clerk, by Svix: Standard Webhooks under Svix's header names. The delivery id is `svix-id`, the same on every retry;
//! never `data.id`, which is the user's and would swallow all later events of that user.

use http::HeaderMap;
use queue::ledger::Repeats;
use schemas::event::Actor;
use schemas::{Facts, Problem, Timestamp};
use secrets::SecretString;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::standard::{SVIX, delivery_id, insert, sign_v1, verify_v1};
use super::{Normalized, Sample, SourceType};
use crate::readable::{Moment, Part, Text, Unreadable, bounded_name, read, text_of};
use crate::rejection::Rejection;
use crate::signature::Verified;

const SAMPLES: &[(&str, &str)] = &[
    ("clerk.user.created", include_str!("../samples/clerk/user.created.json")),
    ("clerk.user.deleted", include_str!("../samples/clerk/user.deleted.json")),
];

#[derive(Debug)]
pub(super) struct Clerk;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Body {
    r#type: Text,
    /// Documented in milliseconds, published examples in seconds.
    timestamp: Moment,
    data: Part<Data>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
    object: Text,
    id: Text,
    status: Text,
    user_id: Text,
    #[serde(rename = "public_user_data")]
    user: Part<PublicUser>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PublicUser {
    user_id: Text,
}

impl Data {
    /// The user that it is about, wherever that event type has its id.
    fn user(&self) -> Option<String> {
        let own = if self.object.get() == Some("user") { self.id.0.clone() } else { None };
        own.or_else(|| self.user_id.0.clone()).or_else(|| self.user.text(|user| &user.user_id))
    }
}

impl SourceType for Clerk {
    fn name(&self) -> &'static str {
        "clerk"
    }

    fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        secrets: &[SecretString],
        now: Timestamp,
    ) -> Result<Verified, Rejection> {
        verify_v1(headers, body, secrets, now)
    }

    fn delivery_id(&self, headers: &HeaderMap) -> Option<String> {
        delivery_id(headers)
    }

    fn normalize(&self, headers: &HeaderMap, body: &[u8]) -> Result<Normalized, Unreadable> {
        let body: Body = read(&text_of(body)?)?;
        let kind = body.r#type.get().ok_or_else(|| Unreadable::because("the body has no `type`"))?;
        Ok(Normalized {
            kind: bounded_name("type", format!("clerk.{kind}"))?,
            delivery_id: delivery_id(headers),
            subject: body.data.text(|data| &data.id),
            time: body.timestamp.0,
            facts: Facts {
                actor: Actor { id: body.data.0.as_ref().and_then(Data::user), login: None },
                state: body.data.text(|data| &data.status),
                ..Facts::default()
            },
            repeats: Repeats::AreNew,
        })
    }

    fn sample_types(&self) -> Vec<String> {
        SAMPLES.iter().map(|(kind, _)| (*kind).to_owned()).collect()
    }

    fn sample(&self, kind: &str) -> Option<Sample> {
        let (_, text) = SAMPLES.iter().find(|(known, _)| *known == kind)?;
        Sample::bundled(text)
    }

    fn make_new(&self, sample: &mut Sample, nonce: Uuid, now: Timestamp) {
        sample.body["timestamp"] = json!(now.timestamp_millis());
        let _always_ascii = insert(&mut sample.headers, SVIX.id, &format!("msg_{}", nonce.simple()));
    }

    fn sign(&self, secret: &SecretString, headers: &mut HeaderMap, body: &[u8], now: Timestamp) -> Result<(), Problem> {
        sign_v1(&SVIX, secret, headers, body, now)
    }
}
