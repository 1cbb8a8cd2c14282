//! Deliveries: what each source's verifier believes, and what its normalizer makes of it.

use std::path::PathBuf;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use chrono::DateTime;
use producer::source_type;
use producer::sources::SourceType;
use schemas::{Event, EventId, Facts, Timestamp};
use secrets::SecretString;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Corpus, kept_seeds};

/// A secret that every scheme takes.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_plJ3nmyCDGBKInavdOK15jsl";

/// The headers that carry signatures.
const SIGNATURES: [&str; 4] = ["x-hub-signature-256", "x-vercel-signature", "svix-signature", "webhook-signature"];

/// A delivery as bytes: in the first line the source, the event's name, the delivery's id and the content type; then the
/// body.
struct Delivery<'a> {
    source: &'static dyn SourceType,
    headers: HeaderMap,
    body: &'a [u8],
}

fn read(data: &[u8]) -> Option<Delivery<'_>> {
    let end = data.iter().position(|byte| *byte == b'\n')?;
    let mut words = data[..end].split(|byte| *byte == b' ');
    let source = source_type(std::str::from_utf8(words.next()?).ok()?).ok()?;
    let mut headers = HeaderMap::new();
    let names: [&[&'static str]; 3] =
        [&["x-github-event"], &["x-github-delivery", "svix-id", "webhook-id"], &["content-type"]];
    for (names, word) in names.iter().zip(words) {
        let Ok(value) = HeaderValue::from_bytes(word) else { continue };
        let ours = |name: &&&str| !name.starts_with("svix") || source.name() == "clerk";
        names.iter().filter(ours).for_each(|name| drop(headers.insert(HeaderName::from_static(name), value.clone())));
    }
    Some(Delivery { source, headers, body: &data[end + 1..] })
}

fn now() -> Timestamp {
    DateTime::from_timestamp_secs(1_790_000_000).expect("a moment")
}

/// No delivery verifies unless these bytes were signed; what is read of one can be kept, told and read back.
pub fn source(data: &[u8]) {
    let Some(Delivery { source, headers, body }) = read(data) else { return };
    is_believed_only_as_it_was_signed(source, &headers, body);
    no_signature_of_others_is_believed(source, &headers, body);
    if let Some(event) = delivery(data) {
        can_be_kept(source, &event);
    }
}

fn is_believed_only_as_it_was_signed(source: &dyn SourceType, headers: &HeaderMap, body: &[u8]) {
    let secret = SecretString::from(SECRET);
    let mut signed = headers.clone();
    if source.sign(&secret, &mut signed, body, now()).is_err() {
        return;
    }
    let verify =
        |body: &[u8], secret: &SecretString| source.verify(&signed, body, std::slice::from_ref(secret), now()).is_ok();
    let needs_id = matches!(source.name(), "clerk" | "standard");
    let has_id = source.delivery_id(headers).is_some();
    assert_eq!(verify(body, &secret), has_id || !needs_id, "what was signed");
    assert!(!verify(body, &OTHER_SECRET.into()), "another secret");
    assert!(!verify(&[body, b" "].concat(), &secret), "a longer body");
    if let Some((last, shorter)) = body.split_last() {
        assert!(!verify(shorter, &secret), "a shorter body");
        let mut changed = body.to_vec();
        let place = (usize::from(*last) * 257 + body.len()) % body.len();
        changed[place] ^= 1 << (body.len() % 8);
        assert!(!verify(&changed, &secret), "another bit at {place}");
    }
    if needs_id {
        let late = now() + chrono::TimeDelta::seconds(301);
        assert!(source.verify(&signed, body, &[secret], late).is_err(), "too late");
    }
}

/// The body's own bytes as a signature, and that in the form that the scheme has.
fn no_signature_of_others_is_believed(source: &dyn SourceType, headers: &HeaderMap, body: &[u8]) {
    let line = body.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = &line[..line.len().min(2_000)];
    for prefix in ["", "sha256=", "v1,"] {
        let Ok(value) = HeaderValue::from_bytes(&[prefix.as_bytes(), line].concat()) else { continue };
        let mut headers = headers.clone();
        SIGNATURES.iter().for_each(|name| drop(headers.insert(*name, value.clone())));
        headers.insert("svix-timestamp", HeaderValue::from_static("1790000000"));
        headers.insert("webhook-timestamp", HeaderValue::from_static("1790000000"));
        assert!(source.verify(&headers, body, &[SECRET.into()], now()).is_err(), "{value:?}");
        assert!(source.verify(&headers, body, &["".into()], now()).is_err(), "an empty secret");
    }
}

/// The event that a delivery is, if it can be read as one.
pub fn delivery(data: &[u8]) -> Option<Event> {
    let Delivery { source, headers, body } = read(data)?;
    let normalized = source.normalize(&headers, body).ok()?;
    Some(Event {
        id: EventId(Uuid::nil()),
        source: source.name().to_owned(),
        kind: normalized.kind,
        delivery_id: normalized.delivery_id.unwrap_or_default(),
        subject: normalized.subject,
        time: normalized.time.unwrap_or(now()),
        data: normalized.facts,
    })
}

fn can_be_kept(source: &dyn SourceType, event: &Event) {
    assert!(event.kind.strip_prefix(source.name()).is_some_and(|rest| rest.starts_with('.')), "{}", event.kind);
    assert_eq!(source.canonical(&event.kind), event.kind, "routes look for the one spelling");
    let json = serde_json::to_string(event).expect("JSON");
    assert_eq!(serde_json::from_str::<Event>(&json).expect("an event"), *event, "{json}");
    let facts = json!(event.data).to_string();
    assert_eq!(serde_json::from_str::<Facts>(&facts).expect("facts"), event.data);
    assert_eq!(
        DateTime::from_timestamp_micros(event.time.timestamp_micros()),
        Some(event.time),
        "as the ledger has it"
    );
    let told = event.to_cloud_event();
    let time = told["time"].as_str().expect("a text");
    assert!(DateTime::parse_from_rfc3339(time).is_ok(), "CloudEvents have RFC 3339: {time}");
    let texts = told.as_object().into_iter().flatten().chain(event_texts(&told["data"]));
    for (name, value) in texts {
        let plain = value.as_str().is_none_or(|text| !text.is_empty() && !text.chars().any(char::is_control));
        assert!(plain || name == "deliveryid", "{name}: {value:?}");
    }
}

fn event_texts(data: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let below = data.as_object().into_iter().flatten();
    below.flat_map(|(name, value)| match value {
        Value::Object(fields) => fields.iter().collect::<Vec<_>>(),
        _ => vec![(name, value)],
    })
}

/// Every body of the fixtures, as it would be delivered, and the seeds that are kept.
pub fn corpus() -> Corpus {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/webhooks"));
    let file = |name: &str| std::fs::read(folder.join(name)).expect("a fixture");
    let manifest: Value = serde_json::from_slice(&file("manifest.json")).expect("JSON");
    let files = manifest["files"].as_array().expect("a list").iter();
    let mut seeds: Vec<Vec<u8>> = files
        .filter(|entry| entry["kind"] != "signed-request")
        .map(|entry| {
            let text = |key: &str| entry[key].as_str().expect("a text");
            let head = format!(
                "{} {} 72d3162e-cc78-11e3-81ab-4c9367dc0958 application/json\n",
                text("provider"),
                text("event")
            );
            [head.into_bytes(), file(text("file"))].concat()
        })
        .collect();
    seeds.extend(kept_seeds("source"));
    Corpus {
        seeds,
        words: &[
            "\"type\":",
            "\"id\":",
            "\"ref\":",
            "\"after\":",
            "\"before\":",
            "\"commits\":",
            "\"payload\":",
            "\"data\":",
            "\"createdAt\":",
            "\"timestamp\":",
            "\"repository\":",
            "\"sender\":",
            "\"target\":null",
            "null",
            "true",
            "{}",
            "[]",
            "github",
            "vercel",
            "clerk",
            "standard",
            "push",
            "payload=",
            "%00",
            "%",
            "application/x-www-form-urlencoded",
        ],
        pairs: &[("[", "]"), ("{\"a\":", "}"), ("\"", "\"")],
    }
}
