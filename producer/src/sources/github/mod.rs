//! GitHub: HMAC-SHA256 over the raw body, JSON or form. It never sends again by itself.
//!
//! No header is signed: neither the event's name nor the delivery's id. So the body's shape is checked against the name,
//! and a known body under a new id is a suspected replay. SHA-1 alone is a downgrade and refused.
//! Contract: <https://docs.github.com/en/webhooks>.

mod body;

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode;
use queue::ledger::Repeats;
use schemas::{Problem, Timestamp};
use secrets::SecretString;
use serde_json::json;
use uuid::Uuid;

use self::body::Body;
use super::standard::insert;
use super::{Normalized, Sample, SourceType, header, media_type};
use crate::readable::{LONGEST_NAME, Unreadable, bounded_name, read, text_of};
use crate::rejection::Rejection;
use crate::signature::{Algorithm, Verified, plain_key, verify};

const SIGNATURE: &str = "x-hub-signature-256";
const LEGACY_SIGNATURE: &str = "x-hub-signature";
const EVENT: &str = "x-github-event";
const DELIVERY: &str = "x-github-delivery";

/// The content type of hooks that were made without choosing one.
const FORM: &str = "application/x-www-form-urlencoded";

/// Within this, events whose body does not name its occurrence (a dispatch, a ping) may honestly be the same.
const HONEST_REPEAT: Duration = Duration::from_mins(10);

/// Events whose signed body names its occurrence, by a commit, a number or an id, with its state.
const NAME_THEIR_OCCURRENCE: &[&str] = &[
    "push",
    "create",
    "delete",
    "deployment",
    "deployment_status",
    "release",
    "pull_request",
    "pull_request_review",
    "issues",
    "issue_comment",
    "workflow_run",
    "workflow_job",
    "check_run",
    "check_suite",
    "status",
];

const SAMPLES: &[(&str, &str)] = &[
    ("github.push", include_str!("../../samples/github/push.json")),
    ("github.pull_request.closed", include_str!("../../samples/github/pull_request.closed.json")),
    ("github.release.published", include_str!("../../samples/github/release.published.json")),
    ("github.deployment_status.created", include_str!("../../samples/github/deployment_status.created.json")),
    ("github.workflow_run.completed", include_str!("../../samples/github/workflow_run.completed.json")),
    ("github.ping", include_str!("../../samples/github/ping.json")),
];

#[derive(Debug)]
pub(super) struct GitHub;

impl SourceType for GitHub {
    fn name(&self) -> &'static str {
        "github"
    }

    fn sends_again(&self) -> bool {
        false
    }

    fn sends_forms(&self) -> bool {
        true
    }

    fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        secrets: &[SecretString],
        _now: Timestamp,
    ) -> Result<Verified, Rejection> {
        let Some(given) = headers.get(SIGNATURE) else {
            let downgraded = headers.contains_key(LEGACY_SIGNATURE);
            return Err(if downgraded { Rejection::WrongAlgorithm } else { Rejection::NoSignature });
        };
        let hex = given.as_bytes().strip_prefix(b"sha256=").ok_or(Rejection::Malformed)?;
        let signature = hex::decode(hex).map_err(|_| Rejection::Malformed)?;
        verify(Algorithm::Sha256, &[body], &[signature], secrets.iter().map(|secret| Some(plain_key(secret))))
    }

    fn delivery_id(&self, headers: &HeaderMap) -> Option<String> {
        header(headers, DELIVERY).filter(|id| id.len() <= LONGEST_NAME).map(str::to_owned)
    }

    fn json<'body>(&self, content_type: &str, body: &'body [u8]) -> Result<Cow<'body, str>, Unreadable> {
        if media_type(content_type) == FORM { payload_of_form(body).map(Cow::Owned) } else { text_of(body) }
    }

    fn normalize(&self, headers: &HeaderMap, body: &[u8]) -> Result<Normalized, Unreadable> {
        let event = event_name(headers)?;
        let content_type = header(headers, "content-type").unwrap_or_default();
        let body: Body = read(&self.json(content_type, body)?)?;
        if !body.has_shape_of(event) {
            return Err(Unreadable::because(format!("the body is not that of a `{event}` event")));
        }
        let action = body.action.get().map(|action| format!(".{action}")).unwrap_or_default();
        let repeats = if NAME_THEIR_OCCURRENCE.contains(&event) {
            Repeats::AreHeld
        } else {
            Repeats::AreHeldAfter(HONEST_REPEAT)
        };
        Ok(Normalized {
            kind: bounded_name("type", format!("github.{event}{action}"))?,
            delivery_id: self.delivery_id(headers),
            subject: body.subject(event),
            time: body.time(event),
            facts: body.facts(event),
            repeats,
        })
    }

    fn sample_types(&self) -> Vec<String> {
        SAMPLES.iter().map(|(kind, _)| (*kind).to_owned()).collect()
    }

    fn sample(&self, kind: &str) -> Option<Sample> {
        let (_, text) = SAMPLES.iter().find(|(known, _)| *known == kind)?;
        let mut sample = Sample::bundled(text)?;
        let event = kind.split('.').nth(1)?;
        sample.headers.insert(EVENT, HeaderValue::from_str(event).ok()?);
        Some(sample)
    }

    /// The body must be new as well: a known one under a new id would be held as a replay.
    fn make_new(&self, sample: &mut Sample, nonce: Uuid, _now: Timestamp) {
        sample.body["sample"] = json!(nonce);
        let _always_ascii = insert(&mut sample.headers, DELIVERY, &nonce.to_string());
    }

    fn sign(&self, secret: &SecretString, headers: &mut HeaderMap, body: &[u8], _: Timestamp) -> Result<(), Problem> {
        let signature = Algorithm::Sha256.sign(&plain_key(secret), &[body]);
        insert(headers, SIGNATURE, &format!("sha256={}", hex::encode(signature)))
    }
}

/// The event's name. It is not signed, so it is checked to be one before it becomes part of a type.
fn event_name(headers: &HeaderMap) -> Result<&str, Unreadable> {
    let name = header(headers, EVENT).ok_or_else(|| Unreadable::because("there is no X-GitHub-Event header"))?;
    let is_name = name.len() <= 100 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    if is_name { Ok(name) } else { Err(Unreadable::because("the X-GitHub-Event header is not the name of an event")) }
}

/// The JSON in a form's `payload` field.
fn payload_of_form(body: &[u8]) -> Result<String, Unreadable> {
    let mut fields = body.split(|byte| *byte == b'&');
    let payload = fields.find_map(|field| field.strip_prefix(b"payload="));
    let payload = payload.ok_or_else(|| Unreadable::because("the form has no `payload`"))?;
    let spaced: Vec<u8> = payload.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    let json: Vec<u8> = percent_decode(&spaced).collect();
    String::from_utf8(json).map_err(|_| Unreadable::because("the form's `payload` is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(event: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(EVENT, HeaderValue::from_str(event).unwrap());
        headers.insert(DELIVERY, HeaderValue::from_static("72d3162e-cc78-11e3-81ab-4c9367dc0958"));
        headers
    }

    fn sample(kind: &str) -> Vec<u8> {
        GitHub.sample(kind).unwrap().body.to_string().into_bytes()
    }

    #[test]
    fn a_sha_1_signature_alone_is_refused_as_a_downgrade() {
        let secret = SecretString::from("It's a Secret to Everybody");
        let mut headers = HeaderMap::new();
        headers.insert(LEGACY_SIGNATURE, HeaderValue::from_static("sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59"));
        let verdict = GitHub.verify(&headers, b"Hello, World!", &[secret], Timestamp::UNIX_EPOCH);
        assert_eq!(verdict, Err(Rejection::WrongAlgorithm));
    }

    #[test]
    fn a_body_under_the_name_of_another_event_is_unreadable() {
        let kinds = GitHub.sample_types();
        for (body, name) in kinds.iter().flat_map(|body| kinds.iter().map(move |name| (body, name))) {
            let event = name.split('.').nth(1).unwrap();
            let read = GitHub.normalize(&headers(event), &sample(body));
            assert_eq!(read.is_ok(), body == name, "the body of {body} sent as {event}");
        }
    }

    #[test]
    fn unknown_events_are_kept_with_their_action() {
        let body = br#"{"action": "raised", "state": {"odd": []}, "ref": 5, "sender": {"id": 1}}"#;
        let event = GitHub.normalize(&headers("moon_landing"), body).unwrap();
        assert_eq!(event.kind, "github.moon_landing.raised");
        assert_eq!(event.facts.state, None);
        assert_eq!(event.repeats, Repeats::AreHeldAfter(HONEST_REPEAT));
    }

    #[test]
    fn a_name_that_is_none_does_not_become_a_type() {
        for name in ["", "Push", "push push", "../push", "push.closed"] {
            assert!(GitHub.normalize(&headers(name), &sample("github.push")).is_err(), "{name:?}");
        }
        assert!(GitHub.normalize(&HeaderMap::new(), &sample("github.push")).is_err());
    }

    #[test]
    fn a_push_says_what_changed() {
        let push = GitHub.normalize(&headers("push"), &sample("github.push")).unwrap();
        let facts = push.facts;
        assert_eq!(push.subject.as_deref(), Some("refs/heads/main"));
        assert_eq!(facts.reference.as_deref(), Some("refs/heads/main"));
        assert_eq!(facts.git.reference.as_deref(), Some("main"));
        assert_eq!(facts.git.sha.as_deref(), Some("7c1f0b4d9e2a6c3858f1d0a4b7e6c2d9f3a1b5e8"));
        assert_eq!(facts.repository.id.as_deref(), Some("424242001"));
        assert_eq!(facts.actor.login.as_deref(), Some("porter"));
        assert_eq!(push.repeats, Repeats::AreHeld);
    }

    #[test]
    fn a_deleted_branch_has_no_commit() {
        let mut push = GitHub.sample("github.push").unwrap().body;
        push["after"] = json!("0".repeat(40));
        push["deleted"] = json!(true);
        let push = GitHub.normalize(&headers("push"), push.to_string().as_bytes()).unwrap();
        assert_eq!((push.facts.git.sha, push.facts.state.as_deref()), (None, Some("deleted")));
    }

    #[test]
    fn a_merged_pull_request_is_merged_and_not_only_closed() {
        let mut body = GitHub.sample("github.pull_request.closed").unwrap().body;
        let state = |body: &serde_json::Value| {
            GitHub.normalize(&headers("pull_request"), body.to_string().as_bytes()).unwrap().facts.state
        };
        assert_eq!(state(&body).as_deref(), Some("merged"));
        body["pull_request"]["merged"] = json!(false);
        assert_eq!(state(&body).as_deref(), Some("closed"));
    }

    #[test]
    fn a_form_is_decoded_for_reading_only() {
        let mut headers = headers("push");
        headers.insert("content-type", HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8"));
        let encoded =
            percent_encoding::percent_encode(&sample("github.push"), percent_encoding::NON_ALPHANUMERIC).to_string();
        let form = format!("a=1&payload={}&b=2", encoded.replace("%20", "+"));
        assert_eq!(GitHub.normalize(&headers, form.as_bytes()).unwrap().kind, "github.push");
        assert!(GitHub.normalize(&headers, b"a=1").is_err());
        assert!(GitHub.normalize(&headers, b"payload=%ff").is_err());
    }
}
