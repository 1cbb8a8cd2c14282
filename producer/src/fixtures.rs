//! Every fixture in `tests/fixtures/webhooks`: bodies, whole signed requests, signature vectors. What is dropped in there
//! and named in its manifest is picked up.

use std::fs;
use std::path::PathBuf;

use http::{HeaderMap, HeaderName, HeaderValue};
use schemas::Timestamp;
use secrets::SecretString;
use serde_json::Value;

use crate::signature::BASE64;
use crate::sources::{Normalized, SourceType, source_type};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/webhooks")
}

fn json(file: &str) -> Value {
    serde_json::from_slice(&fs::read(folder().join(file)).unwrap()).unwrap()
}

/// The files of the manifest whose `kind` is a request, or is none.
fn manifest(requests: bool) -> Vec<Value> {
    let manifest = json("manifest.json");
    let files = manifest["files"].as_array().unwrap().iter();
    files.filter(|file| (file["kind"] == "signed-request") == requests).cloned().collect()
}

fn text<'value>(value: &'value Value, key: &str) -> &'value str {
    value[key].as_str().unwrap_or_else(|| panic!("no text `{key}` in {value}"))
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pairs = pairs.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), *value));
    pairs.map(|(name, value)| (name, HeaderValue::from_str(value).unwrap())).collect()
}

fn normalized(file: &Value) -> Normalized {
    let body = fs::read(folder().join(text(file, "file"))).unwrap();
    let headers = headers(&[
        ("x-github-event", text(file, "event")),
        ("x-github-delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
        ("svix-id", "msg_fixture"),
    ]);
    let source = source_type(text(file, "provider")).unwrap();
    source.normalize(&headers, &body).unwrap_or_else(|error| panic!("{}: {error}", file["file"]))
}

#[test]
fn every_body_is_an_event_of_the_type_that_its_manifest_names() {
    let files = manifest(false);
    assert_eq!(files.len(), 67);
    for file in &files {
        let normalized = normalized(file);
        let provider = text(file, "provider");
        let action = file["action"].as_str().map(|action| format!(".{action}")).unwrap_or_default();
        let kind = format!("{provider}.{}{action}", text(file, "event"));
        assert_eq!(normalized.kind, source_type(provider).unwrap().canonical(&kind), "{}", file["file"]);
        assert!(normalized.delivery_id.is_some(), "{}", file["file"]);
    }
}

#[test]
fn shared_facts_of_the_bodies_stay_what_they_are() {
    let facts = |name: &str| {
        let files = manifest(false);
        let normalized = normalized(files.iter().find(|file| file["file"] == name).unwrap());
        let mut facts = serde_json::to_value(&normalized.facts).unwrap();
        facts["subject"] = normalized.subject.into();
        facts["time"] = normalized.time.map(|time| time.to_rfc3339()).into();
        facts
    };
    let vercel = facts("vercel/deployment.succeeded.production.json");
    assert_eq!(vercel["project"]["name"], "shop");
    assert_eq!(vercel["repository"], serde_json::json!({"id": "123456789", "full_name": "octo-org/shop"}));
    assert_eq!(vercel["git"]["sha"], "7fd1a60b01f91b314f59955a4e4d4e80d8edf11d");
    assert_eq!(vercel["target"], "production");
    assert_eq!(vercel["url"], "https://shop-9xykq2mwv-octo.vercel.app");
    assert_eq!(vercel["subject"], "dpl_9xYkQ2mWvN4rTsB7cLh8PzKd3FgA");
    assert_eq!(facts("vercel/deployment.succeeded.preview.json")["target"], "preview");
    assert_eq!(facts("vercel/deployment.canceled.json")["target"], "preview");
    let status = facts("github/deployment_status.json");
    assert_eq!(status["state"], "success");
    assert_eq!(status["git"]["sha"], "f95f852bd8fca8fcc58a9a2d6c842781e32a215e");
    assert_eq!(status["time"], "2019-05-15T15:20:55+00:00");
    assert_eq!(facts("github/push.1.json")["git"]["sha"], Value::Null, "a deleted tag");
    assert_eq!(facts("github/workflow_run.completed.json")["state"], "success");
    let clerk = facts("clerk/user.created.json");
    assert_eq!(clerk["subject"], "user_2g7np7Hrk0SN6kj5EDMLDaKNL0S");
    assert_eq!(clerk["time"], "2024-05-28T08:00:00+00:00", "its timestamp is in seconds");
}

#[test]
fn every_request_is_verified_or_refused_as_it_expects() {
    let files = manifest(true);
    assert_eq!(files.len(), 10);
    for file in &files {
        let request = json(text(file, "file"));
        let source = source_type(text(&request, "provider")).unwrap();
        let pairs = request["headers"].as_object().unwrap();
        let headers =
            headers(&pairs.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect::<Vec<_>>());
        let body = base64::Engine::decode(&BASE64, text(&request, "body_base64")).unwrap();
        let secrets = request["configured_secrets"].as_array().unwrap().iter();
        let secrets: Vec<SecretString> = secrets.map(|secret| secret.as_str().unwrap().into()).collect();
        let now = Timestamp::from_timestamp_secs(request["now_unix"].as_i64().unwrap()).unwrap();
        let verdict = source.verify(&headers, &body, &secrets, now);
        let expected = request["expect"]["verified"].as_bool().unwrap();
        assert_eq!(verdict.is_ok(), expected, "{}: {verdict:?}", request["name"]);
        if expected {
            let kind = source.normalize(&headers, &body).unwrap().kind;
            assert_eq!(kind, format!("{}.{}", source.name(), text(&request["expect"], "event")));
        }
    }
}

#[test]
fn every_published_vector_is_right() {
    let vectors = json("vectors.json");
    let vectors = vectors["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 6);
    for vector in vectors {
        let scheme = text(vector, "scheme");
        let (source, headers) = match scheme {
            "svix-v1" => ("clerk", signed_headers("svix", vector)),
            "standard-webhooks-v1" => ("standard", signed_headers("webhook", vector)),
            _ if scheme.starts_with("vercel") => {
                ("vercel", headers(&[(text(vector, "header"), text(vector, "value"))]))
            }
            _ => ("github", headers(&[(text(vector, "header"), text(vector, "value"))])),
        };
        let secret = vector["secret"].as_str().or_else(|| vector["secret_utf8"].as_str()).unwrap();
        let now = vector["timestamp"].as_str().map_or(0, |seconds| seconds.parse().unwrap());
        let now = Timestamp::from_timestamp_secs(now).unwrap();
        let source: &dyn SourceType = source_type(source).unwrap();
        let verdict = source.verify(&headers, text(vector, "body_utf8").as_bytes(), &[secret.into()], now);
        assert_eq!(verdict.is_ok(), !scheme.contains("must NOT be accepted"), "{scheme}: {verdict:?}");
    }
}

fn signed_headers(family: &str, vector: &Value) -> HeaderMap {
    headers(&[
        (&format!("{family}-id"), text(vector, "id")),
        (&format!("{family}-timestamp"), text(vector, "timestamp")),
        (&format!("{family}-signature"), text(vector, "value")),
    ])
}
