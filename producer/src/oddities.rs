//! A test for each line of the policy in [`crate::readable`], on every source, and that nothing at all makes any of them
//! panic.

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use schemas::Timestamp;
use serde_json::{Value, json};

use crate::delivery::KeptHeaders;
use crate::readable::{Unreadable, is_plain, made_plain};
use crate::sources::{Normalized, TYPES, source_type};

fn headers() -> HeaderMap {
    let pairs = [
        ("content-type", "application/json"),
        ("x-github-event", "push"),
        ("x-github-delivery", "d"),
        ("svix-id", "m"),
    ];
    pairs.into_iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn read(source: &str, body: &[u8]) -> Result<Normalized, Unreadable> {
    source_type(source).unwrap().normalize(&headers(), body)
}

/// A readable body of each source, with one more field at the root.
fn with_field(source: &str, field: &str) -> Vec<u8> {
    let body = match source {
        "github" => r#""ref": "refs/heads/main", "before": "a", "after": "b", "commits": []"#,
        "vercel" => r#""id": "v", "type": "deployment.succeeded", "payload": {}"#,
        _ => r#""type": "user.created", "data": {"id": "u"}"#,
    };
    format!("{{{body}, {field}}}").into_bytes()
}

fn names() -> impl Iterator<Item = &'static str> {
    TYPES.iter().map(|source| source.name())
}

#[test]
fn what_is_not_a_json_object_in_utf_8_is_unreadable() {
    for source in names() {
        assert!(read(source, &with_field(source, r#""x": 1"#)).is_ok(), "{source}: else this test shows nothing");
        let mut trailing = with_field(source, r#""x": 1"#);
        trailing.extend(b" {}");
        let mut invalid = with_field(source, r#""x": "?""#);
        let place = invalid.iter().position(|byte| *byte == b'?').unwrap();
        invalid[place] = 0xff;
        let bodies: [&[u8]; 9] =
            [b"", b" ", b"null", b"7", b"\"x\"", b"[]", br#"["push", "a", "b"]"#, &trailing, &invalid];
        for body in bodies {
            assert!(read(source, body).is_err(), "{source}: {}", String::from_utf8_lossy(body));
        }
    }
}

/// The field of each source that is read as a text.
fn text_field(source: &str, value: &str) -> Vec<u8> {
    match source {
        "github" => with_field(source, &format!(r#""repository": {{"full_name": {value}}}"#)),
        "vercel" => format!(r#"{{"type": "deployment.error", "payload": {{"name": {value}}}}}"#).into_bytes(),
        _ => format!(r#"{{"type": "user.created", "data": {{"status": {value}}}}}"#).into_bytes(),
    }
}

#[test]
fn control_characters_and_lone_surrogates_are_unreadable_where_they_are_read_and_kept_elsewhere() {
    for source in names() {
        for odd in [r#""a\u0000b""#, r#""a\u001bb""#, r#""a\u0085b""#, r#""a\uffffb""#, r#""a\ud800b""#] {
            let error = read(source, &text_field(source, odd)).map(drop).unwrap_err().to_string();
            assert!(is_plain(&error), "{error:?}");
            assert!(read(source, &with_field(source, &format!(r#""unread": [{odd}]"#))).is_ok(), "{source} {odd}");
        }
    }
}

#[test]
fn a_key_twice_is_unreadable_where_it_is_read_and_kept_elsewhere() {
    for source in names() {
        let read_twice =
            with_field(source, if source == "github" { r#""ref": "refs/heads/evil""# } else { r#""type": "other""# });
        assert!(read(source, &read_twice).is_err(), "{source}");
        assert!(read(source, &with_field(source, r#""unread": 1, "unread": 2"#)).is_ok(), "{source}");
    }
}

#[test]
fn whole_numbers_above_2_to_the_53_keep_every_digit() {
    let body =
        with_field("github", r#""repository": {"id": 9007199254740993}, "sender": {"id": 18446744073709551615}"#);
    let facts = read("github", &body).unwrap().facts;
    assert_eq!(facts.repository.id.as_deref(), Some("9007199254740993"));
    assert_eq!(facts.actor.id.as_deref(), Some("18446744073709551615"));
    let body = with_field("github", r#""repository": {"id": 184467440737095516150}, "sender": {"id": 1.5}"#);
    let facts = read("github", &body).unwrap().facts;
    assert_eq!((facts.repository.id, facts.actor.id), (None, None));
}

#[test]
fn deep_nesting_is_kept_where_it_is_not_read() {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    for source in names() {
        assert!(read(source, &with_field(source, &format!(r#""unread": {deep}"#))).is_ok(), "{source}");
        // In a place that is read, it is another type than expected.
        assert!(read(source, &text_field(source, &deep)).is_ok(), "{source}");
    }
}

#[test]
fn texts_types_and_ids_are_bounded() {
    for source in names() {
        assert!(read(source, &text_field(source, &json!("x".repeat(2048)).to_string())).is_ok(), "{source}");
        assert!(read(source, &text_field(source, &json!("x".repeat(2049)).to_string())).is_err(), "{source}");
    }
    for source in ["vercel", "clerk", "standard"] {
        let body = json!({"type": "x".repeat(256), "payload": {}, "data": {}}).to_string();
        assert!(read(source, body.as_bytes()).is_err(), "{source}");
    }
    let body = json!({"type": "deployment.error", "id": "x".repeat(256)}).to_string();
    assert!(read("vercel", body.as_bytes()).is_err());
}

#[test]
fn other_types_than_expected_are_null() {
    for odd in ["5.5", "true", "null", "[]", "[1]", "{}", "{\"a\": [1]}", "\"\""] {
        for source in names() {
            let normalized =
                read(source, &text_field(source, odd)).unwrap_or_else(|error| panic!("{source} {odd}: {error}"));
            let facts = normalized.facts;
            let place = match source {
                "github" => facts.repository.full_name,
                "vercel" => facts.project.name,
                _ => facts.state,
            };
            assert_eq!(place, None, "{source} {odd}");
        }
    }
}

#[test]
fn our_own_texts_are_made_plain_and_short() {
    assert_eq!(made_plain("a\0b\u{1b}[31m"), "a\u{fffd}b\u{fffd}[31m");
    assert_eq!(made_plain(&"x".repeat(9999)).len(), 500);
}

/// JSON that looks like something, with odd bytes here and there.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let texts = proptest::string::string_regex("[a-z.\\-\u{0}-\u{2f}]{0,12}").unwrap();
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        texts.prop_map(Value::from),
    ];
    let keys = prop_oneof![
        Just("type"),
        Just("id"),
        Just("payload"),
        Just("data"),
        Just("repository"),
        Just("ref"),
        Just("deployment"),
        Just("target"),
        Just("timestamp"),
        Just("createdAt"),
        Just("pull_request"),
        Just("commits"),
        Just("meta"),
    ];
    let value = leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map(keys.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    });
    prop_oneof![
        3 => (value, any::<u16>(), any::<u8>()).prop_map(|(value, place, byte)| {
            let mut bytes = value.to_string().into_bytes();
            let place = usize::from(place) % bytes.len();
            bytes[place] = byte;
            bytes
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..64),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn no_bytes_make_any_source_panic_and_what_is_read_is_plain(
        body in body(),
        values in proptest::collection::vec(proptest::collection::vec(0x20_u8..=0xff, 0..40), 9),
        form in any::<bool>(),
    ) {
        let names = ["x-github-event", "x-github-delivery", "svix-id", "svix-timestamp", "svix-signature",
            "x-hub-signature-256", "x-vercel-signature", "webhook-id", "user-agent"];
        let mut headers: HeaderMap = names
            .iter()
            .zip(values)
            .filter_map(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::from_bytes(&value).ok()?)))
            .collect();
        if form {
            headers.insert("content-type", HeaderValue::from_static("application/x-www-form-urlencoded"));
            headers.insert("x-github-event", HeaderValue::from_static("anything"));
        }
        let kept = KeptHeaders::of(&headers);
        for source in TYPES {
            let _refused = source.verify(&headers, &body, &["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into()], Timestamp::UNIX_EPOCH);
            if let Ok(normalized) = source.normalize(kept.map(), &body) {
                let facts = serde_json::to_value(&normalized.facts).unwrap();
                let texts = [Some(normalized.kind), normalized.delivery_id, normalized.subject];
                prop_assert!(texts.iter().flatten().all(|text| is_plain(text)));
                prop_assert!(!facts.to_string().contains("\\u00"), "{}", facts);
            }
        }
    }
}
