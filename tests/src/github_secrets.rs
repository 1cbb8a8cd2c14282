//! GitHub's Actions secrets and webhooks, as far as rotations need them: sealed values, times to the second, hooks that sign
//! what they send, and the two calls that change a hook, of which one takes away what is not repeated.

use std::collections::BTreeMap;

use axum::http::{Method, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, TimeDelta, Utc};
use crypto_box::SecretKey;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use uuid::Uuid;

use crate::github_workflows::Answer;

/// The only hook that there is.
pub const HOOK: u64 = 4711;

/// What a repository keeps of secrets and hooks.
pub struct Secrets {
    /// Opens what is sealed for it.
    key: SecretKey,
    /// Values by their place: `actions/secrets/NAME` or `environments/ENV/secrets/NAME`.
    pub values: BTreeMap<String, Vec<u8>>,
    updated_at: BTreeMap<String, DateTime<Utc>>,
    now: DateTime<Utc>,
    /// How many seconds pass with each value that is put.
    pub passes: i64,
    /// The hook's configuration, its secret in clear.
    pub hook: Value,
    /// All secrets that the hook ever had, the oldest first; an empty one where it was taken away.
    pub hook_secrets: Vec<String>,
    /// How often it was pinged.
    pub pings: usize,
    /// So many of the next requests are done, and their answers lost.
    pub lost: usize,
    /// Whether pings are taken and never sent.
    pub mute: bool,
    number: u64,
}

impl Default for Secrets {
    fn default() -> Self {
        let seed: Vec<u8> = (0..32).collect();
        Self {
            key: SecretKey::from_slice(&seed).expect("32 bytes"),
            values: BTreeMap::new(),
            updated_at: BTreeMap::new(),
            now: DateTime::from_timestamp_secs(1_795_000_000).expect("a time"),
            passes: 1,
            hook: json!({"url": "", "content_type": "json", "insecure_ssl": "0", "secret": ""}),
            hook_secrets: Vec::new(),
            pings: 0,
            lost: 0,
            mute: false,
            number: 0,
        }
    }
}

/// A delivery that the hook sends.
pub struct Outgoing {
    /// Where to.
    pub url: String,
    /// Its headers.
    pub headers: Vec<(&'static str, String)>,
    /// Its body.
    pub body: String,
}

impl Secrets {
    /// Answers a request, if it is about secrets or hooks; with it what the hook sends because of it.
    pub fn answer(&mut self, method: &Method, path: &str, body: &Value) -> Option<(Answer, Option<Outgoing>)> {
        let steps: Vec<&str> = path.split('/').collect();
        let mut outgoing = None;
        let answer = match (method.as_str(), steps.as_slice()) {
            ("GET", ["actions", "secrets", "public-key"] | ["environments", _, "secrets", "public-key"]) => {
                let key = STANDARD.encode(self.key.public_key().as_bytes());
                Answer::Say(StatusCode::OK, json!({"key_id": "568250167242549743", "key": key}))
            }
            ("GET", ["actions", "secrets", _] | ["environments", _, "secrets", _]) => self.secret(path),
            ("PUT", ["actions", "secrets", _] | ["environments", _, "secrets", _]) => self.put(path, body),
            (method, ["hooks", id, below @ ..]) => {
                // One that sends nowhere is the other stub's, which knows deliveries.
                if *id != HOOK.to_string() || self.hook["url"] == "" {
                    return None;
                }
                let (answer, sends) = self.at_hook(method, below, body)?;
                outgoing = sends;
                answer
            }
            _ => return None,
        };
        if self.lost > 0 && *method != Method::GET {
            self.lost -= 1;
            return Some((Answer::Break, outgoing));
        }
        Some((answer, outgoing))
    }

    fn secret(&self, path: &str) -> Answer {
        let Some(updated_at) = self.updated_at.get(path) else { return not_found() };
        let name = path.rsplit('/').next();
        Answer::Say(StatusCode::OK, json!({"name": name, "created_at": updated_at, "updated_at": updated_at}))
    }

    fn put(&mut self, path: &str, body: &Value) -> Answer {
        let sealed = body["encrypted_value"].as_str().and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
        if body["key_id"] != "568250167242549743" {
            return Answer::Say(StatusCode::UNPROCESSABLE_ENTITY, json!({"message": "Bad request - key_id"}));
        }
        let Ok(value) = self.key.unseal(&sealed) else {
            let refused = json!({"message": "Bad request - encrypted_value"});
            return Answer::Say(StatusCode::UNPROCESSABLE_ENTITY, refused);
        };
        self.now += TimeDelta::seconds(self.passes);
        self.updated_at.insert(path.to_owned(), self.now);
        match self.values.insert(path.to_owned(), value) {
            None => Answer::Say(StatusCode::CREATED, json!({})),
            Some(_) => Answer::Say(StatusCode::NO_CONTENT, Value::Null),
        }
    }

    /// Somebody puts another value there.
    pub fn change_by_hand(&mut self, path: &str) {
        self.now += TimeDelta::seconds(1);
        self.updated_at.insert(path.to_owned(), self.now);
        self.values.insert(path.to_owned(), b"by hand".to_vec());
    }

    fn at_hook(&mut self, method: &str, below: &[&str], body: &Value) -> Option<(Answer, Option<Outgoing>)> {
        match (method, below) {
            ("GET", []) => {
                let mut config = self.hook.clone();
                config["secret"] = json!("********");
                let hook = json!({"id": HOOK, "name": "web", "active": true, "events": ["push"], "config": config});
                Some((Answer::Say(StatusCode::OK, hook), None))
            }
            // The call that must not be used: a configuration without a secret takes the secret away.
            ("PATCH", []) => {
                if let Some(config) = body.get("config") {
                    self.hook = config.clone();
                    let secret = config["secret"].as_str().unwrap_or_default().to_owned();
                    self.hook["secret"] = json!(secret);
                    self.hook_secrets.push(secret);
                }
                Some((Answer::Say(StatusCode::OK, json!({"id": HOOK})), None))
            }
            ("PATCH", ["config"]) => {
                self.hook.as_object_mut()?.extend(body.as_object()?.clone());
                self.hook_secrets.push(self.hook["secret"].as_str().unwrap_or_default().to_owned());
                let mut config = self.hook.clone();
                config["secret"] = json!("********");
                Some((Answer::Say(StatusCode::OK, config), None))
            }
            ("POST", ["pings"]) => {
                self.pings += 1;
                let ping = self.delivery("ping", &json!({"zen": "Keep it logically awesome.", "hook_id": HOOK}));
                let sent = (!self.mute).then_some(ping);
                Some((Answer::Say(StatusCode::NO_CONTENT, Value::Null), sent))
            }
            _ => None,
        }
    }

    /// A delivery of the hook, signed with the secret that it has now.
    pub fn delivery(&mut self, event: &str, body: &Value) -> Outgoing {
        self.number += 1;
        let mut body = body.clone();
        body["number"] = json!(self.number);
        let body = body.to_string();
        let secret = self.hook["secret"].as_str().unwrap_or_default();
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret.as_bytes()).expect("any length");
        mac.update(body.as_bytes());
        let signature = hex::encode(mac.finalize().into_bytes());
        let headers = vec![
            ("content-type", "application/json".to_owned()),
            ("x-github-event", event.to_owned()),
            ("x-github-delivery", Uuid::new_v4().to_string()),
            ("x-github-hook-id", HOOK.to_string()),
            ("x-hub-signature-256", format!("sha256={signature}")),
        ];
        Outgoing { url: self.hook["url"].as_str().unwrap_or_default().to_owned(), headers, body }
    }
}

impl Outgoing {
    /// Sends it; the status of the answer.
    pub async fn send(self, http: &reqwest::Client) -> Option<StatusCode> {
        let mut request = http.post(&self.url).body(self.body);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        request.send().await.ok().map(|answer| answer.status())
    }
}

fn not_found() -> Answer {
    Answer::Say(StatusCode::NOT_FOUND, json!({"message": "Not Found"}))
}
