//! Samples: deliveries of our own making, for `trigger`, `demo` and the checks of routes.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use schemas::{Event, EventId, Problem, Timestamp};
use secrets::SecretString;
use serde_json::{Value, json};
use uuid::Uuid;

use super::SourceType;

/// A sample delivery, unsigned.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its headers, without id and signature.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Value,
}

/// A sample delivery, ready to be sent by POST.
#[derive(Clone, Debug)]
pub struct SignedSample {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

impl Sample {
    /// A JSON delivery without further headers.
    pub(super) fn new(body: Value) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Self { headers, body }
    }

    /// A bundled one. Bundled samples are JSON: a test reads them all.
    pub(super) fn bundled(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().map(Self::new)
    }

    /// Changes one value, named by its dotted path (`payload.deployment.meta.githubCommitSha`, `commits.0.id`). The text
    /// is taken as JSON where it is some, and as text otherwise, or where a text stood before.
    fn set(&mut self, path: &str, text: &str) -> Result<(), Problem> {
        let mut here = &mut self.body;
        for key in path.split('.') {
            here = match here {
                Value::Array(items) => key.parse().ok().and_then(|index: usize| items.get_mut(index)),
                Value::Object(fields) => Some(fields.entry(key).or_insert(json!({}))),
                _ => None,
            }
            .ok_or_else(|| Problem::new(format!("`{path}`: there is no place named `{key}` in the sample")))?;
        }
        let stays_text = here.is_string() && text != "null" && !text.starts_with('"');
        let as_json = serde_json::from_str(text).ok().filter(|_| !stays_text);
        *here = as_json.unwrap_or_else(|| Value::String(text.to_owned()));
        Ok(())
    }
}

/// The event that the bundled sample of this type is, and its body, for checks. None where there is no sample.
pub fn example(source: &dyn SourceType, kind: &str) -> Option<(Event, Value)> {
    let mut sample = source.sample(kind)?;
    source.make_new(&mut sample, Uuid::nil(), Timestamp::UNIX_EPOCH);
    let normalized = source.normalize(&sample.headers, sample.body.to_string().as_bytes()).ok()?;
    let event = Event {
        id: EventId(Uuid::nil()),
        source: source.name().to_owned(),
        kind: normalized.kind,
        delivery_id: "sample".to_owned(),
        subject: normalized.subject,
        time: normalized.time.unwrap_or(Timestamp::UNIX_EPOCH),
        data: normalized.facts,
    };
    Some((event, sample.body))
}

/// A sample delivery of an event type (with or without the sender's name in front), with changes by path, new under this
/// nonce and signed.
pub fn signed_sample(
    source: &dyn SourceType,
    kind: &str,
    changes: &[(String, String)],
    secret: &SecretString,
    nonce: Uuid,
    now: Timestamp,
) -> Result<SignedSample, Problem> {
    let prefix = format!("{}.", source.name());
    let kind = if kind.starts_with(&prefix) { kind.to_owned() } else { format!("{prefix}{kind}") };
    let mut sample = source
        .sample(&source.canonical(&kind))
        .ok_or_else(|| Problem::unknown("sample event", &kind, source.sample_types().iter().map(String::as_str)))?;
    source.make_new(&mut sample, nonce, now);
    for (path, value) in changes {
        sample.set(path, value)?;
    }
    let Sample { mut headers, body } = sample;
    let body = body.to_string().into_bytes();
    source.sign(secret, &mut headers, &body, now)?;
    Ok(SignedSample { headers, body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::TYPES;

    fn now() -> Timestamp {
        Timestamp::from_timestamp_secs(1_790_000_000).unwrap()
    }

    #[test]
    fn every_sample_is_an_event_of_its_type_and_verifies_once_signed() {
        for source in TYPES {
            assert!(!source.sample_types().is_empty(), "{}", source.name());
            for kind in source.sample_types() {
                let (event, _) = example(*source, &kind).unwrap_or_else(|| panic!("{kind} is not readable"));
                assert_eq!(event.kind, kind);
                let secret = SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
                let signed = signed_sample(*source, &kind, &[], &secret, Uuid::from_u128(7), now()).unwrap();
                source.verify(&signed.headers, &signed.body, &[secret], now()).unwrap();
                let other = [SecretString::from("whsec_plJ3nmyCDGBKInavdOK15jsl")];
                assert!(source.verify(&signed.headers, &signed.body, &other, now()).is_err());
            }
        }
    }

    #[test]
    fn two_samples_of_one_type_are_two_deliveries() {
        for source in TYPES {
            let kind = source.sample_types().remove(0);
            let secret = SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
            let ids = [1, 2].map(|nonce| {
                let signed = signed_sample(*source, &kind, &[], &secret, Uuid::from_u128(nonce), now()).unwrap();
                let normalized = source.normalize(&signed.headers, &signed.body).unwrap();
                (normalized.delivery_id.unwrap(), signed.body)
            });
            assert_ne!(ids[0].0, ids[1].0, "{kind}");
            let signed_id = normalize_repeats(*source, &kind) == queue::ledger::Repeats::AreNew;
            assert!(signed_id || ids[0].1 != ids[1].1, "{kind}: the second one would be held as a replay");
        }
    }

    fn normalize_repeats(source: &dyn SourceType, kind: &str) -> queue::ledger::Repeats {
        let sample = source.sample(kind).unwrap();
        source.normalize(&sample.headers, sample.body.to_string().as_bytes()).unwrap().repeats
    }

    #[test]
    fn a_sample_is_changed_by_path_before_it_is_signed() {
        let mut sample = Sample::new(json!({"a": {"sha": "abc", "target": null}, "list": [{"n": 1}]}));
        for (path, value) in [("a.sha", "1234567"), ("a.target", "preview"), ("list.0.n", "5"), ("b.c", "true")] {
            sample.set(path, value).unwrap();
        }
        assert_eq!(
            sample.body,
            json!({"a": {"sha": "1234567", "target": "preview"}, "list": [{"n": 5}], "b": {"c": true}})
        );
        sample.set("a.sha", "null").unwrap();
        assert_eq!(sample.body["a"]["sha"], Value::Null);
        assert!(sample.set("list.7.n", "1").is_err());
        assert!(sample.set("a.target.deeper", "1").is_err());
    }

    #[test]
    fn an_unknown_sample_names_the_nearest_one() {
        let github = crate::sources::source_type("github").unwrap();
        let problem = signed_sample(github, "pul_request.closed", &[], &"x".into(), Uuid::nil(), now()).unwrap_err();
        assert!(problem.to_string().contains("did you mean `github.pull_request.closed`?"), "{problem}");
    }
}
