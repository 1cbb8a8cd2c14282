//! Standard Webhooks (<https://www.standardwebhooks.com>): Render, Resend, GitLab and others. The one generic scheme that
//! signs id and time with the body; Clerk is it too, under Svix's header names.

use http::{HeaderMap, HeaderName, HeaderValue};
use queue::ledger::Repeats;
use schemas::{Facts, Problem, Timestamp};
use secrets::SecretString;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{Normalized, Sample, SourceType, header};
use crate::readable::{LONGEST_NAME, Moment, Part, Text, Unreadable, bounded_name, read, text_of};
use crate::rejection::Rejection;
use crate::signature::{Algorithm, BASE64, Verified, verify, whsec_key};

/// How far the signed time may be from ours, in seconds, both ways. Each retry is signed anew, so a late one passes.
const TOLERANCE: i64 = 300;

/// The headers of one request. A family is read whole, never mixed with the other: an id of one and a signature of the
/// other would make a message that nobody signed.
pub(super) struct Family {
    pub(super) id: &'static str,
    timestamp: &'static str,
    signature: &'static str,
}

const WEBHOOK: Family = Family { id: "webhook-id", timestamp: "webhook-timestamp", signature: "webhook-signature" };
pub(super) const SVIX: Family = Family { id: "svix-id", timestamp: "svix-timestamp", signature: "svix-signature" };

/// The family that a request speaks: Svix's where it has an id of it.
fn family(headers: &HeaderMap) -> &'static Family {
    if headers.contains_key(SVIX.id) { &SVIX } else { &WEBHOOK }
}

/// The delivery's id, if it may stand in a signed message: a dot would make that message ambiguous.
pub(super) fn delivery_id(headers: &HeaderMap) -> Option<String> {
    let id = header(headers, family(headers).id)?;
    (id.len() <= LONGEST_NAME && !id.contains('.')).then(|| id.to_owned())
}

/// Verifies `v1` signatures (HMAC-SHA256 over `id.timestamp.body`); other versions in the list are ignored.
pub(super) fn verify_v1(
    headers: &HeaderMap,
    body: &[u8],
    secrets: &[SecretString],
    now: Timestamp,
) -> Result<Verified, Rejection> {
    let family = family(headers);
    let given = headers.get(family.signature).ok_or(Rejection::NoSignature)?;
    let given = given.to_str().map_err(|_| Rejection::Malformed)?;
    let id = delivery_id(headers).ok_or(Rejection::Malformed)?;
    let timestamp = header(headers, family.timestamp).ok_or(Rejection::Malformed)?;
    let signed_at = seconds(timestamp).ok_or(Rejection::Malformed)?;
    let entries = given.split(' ').filter_map(|entry| entry.strip_prefix("v1,"));
    let signatures: Vec<Vec<u8>> = entries.filter_map(|entry| base64::Engine::decode(&BASE64, entry).ok()).collect();
    if signatures.is_empty() {
        return Err(Rejection::WrongAlgorithm);
    }
    let message: [&[u8]; 5] = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
    let verified = verify(Algorithm::Sha256, &message, &signatures, secrets.iter().map(whsec_key))?;
    let off = signed_at.saturating_sub(now.timestamp());
    if (-TOLERANCE..=TOLERANCE).contains(&off) { Ok(verified) } else { Err(Rejection::Clock) }
}

fn seconds(timestamp: &str) -> Option<i64> {
    let digits = timestamp.bytes().all(|byte| byte.is_ascii_digit());
    if digits { timestamp.parse().ok() } else { None }
}

/// Adds the headers of a family; the id must be there.
pub(super) fn sign_v1(
    family: &Family,
    secret: &SecretString,
    headers: &mut HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> Result<(), Problem> {
    let key = whsec_key(secret).filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| Problem::new("the secret is not `whsec_` and base64"))?;
    let id = header(headers, family.id).unwrap_or_default();
    let timestamp = now.timestamp().to_string();
    let message: [&[u8]; 5] = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
    let signature = base64::Engine::encode(&BASE64, Algorithm::Sha256.sign(&key, &message));
    insert(headers, family.timestamp, &timestamp)?;
    insert(headers, family.signature, &format!("v1,{signature}"))
}

/// Adds a header of our own making.
pub(super) fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), Problem> {
    let value = HeaderValue::from_str(value).map_err(|_| Problem::new(format!("the header {name} cannot be sent")))?;
    headers.insert(HeaderName::from_static(name), value);
    Ok(())
}

/// Any sender by the standard.
#[derive(Debug)]
pub(super) struct Standard;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Body {
    r#type: Text,
    timestamp: Moment,
    data: Part<Data>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
    id: Text,
    status: Text,
    url: Text,
}

impl SourceType for Standard {
    fn name(&self) -> &'static str {
        "standard"
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
            kind: bounded_name("type", format!("standard.{kind}"))?,
            delivery_id: delivery_id(headers),
            subject: body.data.text(|data| &data.id),
            time: body.timestamp.0,
            facts: Facts {
                url: body.data.text(|data| &data.url),
                state: body.data.text(|data| &data.status),
                ..Facts::default()
            },
            repeats: Repeats::AreNew,
        })
    }

    fn sample_types(&self) -> Vec<String> {
        vec!["standard.example.created".to_owned()]
    }

    /// Of any type: the standard names none.
    fn sample(&self, kind: &str) -> Option<Sample> {
        let kind = kind.strip_prefix("standard.").filter(|kind| !kind.is_empty())?;
        Some(Sample::new(json!({
            "type": kind,
            "timestamp": "2026-11-20T10:00:00Z",
            "data": {"id": "example_1", "status": "ok", "url": "https://example.com/example_1"},
        })))
    }

    fn make_new(&self, sample: &mut Sample, nonce: Uuid, now: Timestamp) {
        sample.body["timestamp"] = json!(now);
        let _always_ascii = insert(&mut sample.headers, WEBHOOK.id, &format!("msg_{}", nonce.simple()));
    }

    fn sign(&self, secret: &SecretString, headers: &mut HeaderMap, body: &[u8], now: Timestamp) -> Result<(), Problem> {
        sign_v1(&WEBHOOK, secret, headers, body, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_timestamp_secs(seconds).unwrap()
    }

    fn signed(family: &Family, at_seconds: i64) -> HeaderMap {
        let mut headers = HeaderMap::new();
        insert(&mut headers, family.id, "msg_1").unwrap();
        sign_v1(family, &SECRET.into(), &mut headers, b"{}", at(at_seconds)).unwrap();
        headers
    }

    fn verdict(headers: &HeaderMap) -> Result<Verified, Rejection> {
        verify_v1(headers, b"{}", &[SECRET.into()], at(1_000_000))
    }

    #[test]
    fn five_minutes_either_way_are_accepted_and_not_a_second_more() {
        for (signed_at, fine) in [(999_700, true), (1_000_300, true), (999_699, false), (1_000_301, false)] {
            let expected = if fine { Ok(Verified { key: 0 }) } else { Err(Rejection::Clock) };
            assert_eq!(verdict(&signed(&WEBHOOK, signed_at)), expected, "{signed_at}");
        }
    }

    #[test]
    fn header_families_are_not_mixed() {
        let mut headers = signed(&WEBHOOK, 1_000_000);
        insert(&mut headers, SVIX.id, "msg_1").unwrap();
        assert_eq!(verdict(&headers), Err(Rejection::NoSignature));
        headers.extend(signed(&SVIX, 1_000_000));
        assert_eq!(verdict(&headers), Ok(Verified { key: 0 }), "both families whole: one of them is read");
    }

    #[test]
    fn unknown_versions_are_ignored_and_alone_they_are_not_enough() {
        let mut headers = signed(&WEBHOOK, 1_000_000);
        let good = headers[WEBHOOK.signature].to_str().unwrap().to_owned();
        insert(&mut headers, WEBHOOK.signature, &format!("v1a,AAAA v2,x v1,AAAA {good}")).unwrap();
        assert_eq!(verdict(&headers), Ok(Verified { key: 0 }));
        insert(&mut headers, WEBHOOK.signature, &good.replace("v1,", "v2,")).unwrap();
        assert_eq!(verdict(&headers), Err(Rejection::WrongAlgorithm));
    }

    #[test]
    fn an_id_with_a_dot_and_a_timestamp_with_a_sign_are_malformed() {
        for (name, value) in [(WEBHOOK.id, "a.b"), (WEBHOOK.timestamp, "+1000000"), (WEBHOOK.timestamp, "")] {
            let mut headers = signed(&WEBHOOK, 1_000_000);
            insert(&mut headers, name, value).unwrap();
            assert_eq!(verdict(&headers), Err(Rejection::Malformed), "{name}: {value}");
        }
    }
}
