//! GitHub's webhooks, as far as their deliveries are listed and asked for again: it sends them itself, signed, and never a
//! second time unless it is asked to.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, Method, StatusCode};
use producer::source_type;
use schemas::Timestamp;
use serde_json::{Value, json};

use crate::github_workflows::Answer;

/// The secret that it signs with.
pub const SECRET: &str = "a secret of GitHub's webhook";

/// The webhook that there is.
pub const HOOK: u64 = 4711;

/// The webhook, and what it sent.
#[derive(Default)]
pub struct Hooks {
    /// Where it delivers to; none: there is no webhook.
    pub url: Option<String>,
    /// Whether it is switched off.
    pub is_off: bool,
    /// So many of the next requests to deliver again are taken, and their answers lost.
    pub lost: usize,
    /// The ids of deliveries that were asked for again.
    pub asked: Vec<String>,
    /// What it has forgotten cannot be asked for.
    pub forgets: bool,
    /// Each time that it sent something, the oldest first.
    attempts: Vec<Attempt>,
}

struct Attempt {
    shown: Value,
    body: Vec<u8>,
}

/// A delivery on its way.
pub struct Sending {
    url: String,
    headers: HeaderMap,
    body: Vec<u8>,
    guid: String,
    event: String,
    redelivery: bool,
}

/// How many deliveries a page has here.
const PAGE: usize = 3;

impl Hooks {
    /// A delivery as it is sent the first time.
    pub fn sending(&self, event: &str, guid: &str, body: &Value) -> Sending {
        self.send(event, guid, body.to_string().into_bytes(), false)
    }

    fn send(&self, event: &str, guid: &str, body: Vec<u8>, redelivery: bool) -> Sending {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("content-type", "application/json"), ("x-github-event", event), ("x-github-delivery", guid)]
        {
            headers.insert(name, value.parse().expect("a header's value"));
        }
        let github = source_type("github").expect("there is one");
        github.sign(&SECRET.into(), &mut headers, &body, Timestamp::UNIX_EPOCH).expect("it is signed");
        let url = self.url.clone().expect("there is a webhook");
        Sending { url, headers, body, guid: guid.to_owned(), event: event.to_owned(), redelivery }
    }

    /// Writes down that it was sent, at this time, and what became of it.
    pub fn sent(&mut self, sending: Sending, at: Timestamp, status: u16) {
        let words = if (200..300).contains(&status) { "OK" } else { "failed to connect" };
        let shown = json!({
            "id": 1_000_000 + self.attempts.len(), "guid": sending.guid, "delivered_at": at,
            "redelivery": sending.redelivery, "duration": 0.1, "status": words, "status_code": status,
            "event": sending.event, "action": null, "installation_id": null, "repository_id": 1, "throttled_at": null,
        });
        self.attempts.push(Attempt { shown, body: sending.body });
    }

    /// How often it sent a delivery.
    pub fn times(&self, guid: &str) -> usize {
        self.attempts.iter().filter(|attempt| attempt.shown["guid"] == guid).count()
    }

    /// Answers a request below `hooks`; a delivery that is to be sent again.
    pub fn answer(
        &mut self,
        method: &Method,
        path: &str,
        query: &BTreeMap<String, String>,
        base: &str,
    ) -> (Answer, HeaderMap, Option<Sending>) {
        let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
        let hook = HOOK.to_string();
        let plain = |answer| (answer, HeaderMap::new(), None);
        match (method.as_str(), steps.as_slice()) {
            ("GET", []) => plain(Answer::Say(StatusCode::OK, self.hooks())),
            ("GET", [id]) if *id == hook && self.url.is_some() => {
                plain(Answer::Say(StatusCode::OK, self.hooks()[0].clone()))
            }
            ("GET", [id, "deliveries"]) if *id == hook => {
                let (page, links) = self.page(query, base);
                (Answer::Say(StatusCode::OK, page), links, None)
            }
            ("POST", [id, "deliveries", delivery, "attempts"]) if *id == hook => self.again(delivery),
            _ => plain(Answer::Say(StatusCode::NOT_FOUND, json!({"message": "Not Found"}))),
        }
    }

    fn hooks(&self) -> Value {
        let config = |url: &str| json!({"url": url, "content_type": "json", "insecure_ssl": "0"});
        let other = json!({"id": 1, "active": true, "name": "web", "config": config("https://ci.example.com/hook")});
        let ours = self.url.as_deref().map(
            |url| json!({"id": HOOK, "active": !self.is_off, "name": "web", "events": ["*"], "config": config(url)}),
        );
        ours.into_iter().chain([other]).collect()
    }

    /// The newest come first; the cursor is the delivery that a page begins with.
    fn page(&self, query: &BTreeMap<String, String>, base: &str) -> (Value, HeaderMap) {
        let newest: Vec<&Value> = self.attempts.iter().rev().map(|attempt| &attempt.shown).collect();
        let from = query.get("cursor").map_or(0, |cursor| {
            newest.iter().position(|it| format!("v1_{}", it["id"]) == *cursor).unwrap_or(newest.len())
        });
        let page: Vec<&Value> = newest.iter().skip(from).take(PAGE).copied().collect();
        let mut headers = HeaderMap::new();
        if let Some(next) = newest.get(from + PAGE) {
            let link = format!("<{base}/hooks/{HOOK}/deliveries?cursor=v1_{}>; rel=\"next\"", next["id"]);
            headers.insert("link", link.parse().expect("a header's value"));
        }
        (json!(page), headers)
    }

    fn again(&mut self, delivery: &str) -> (Answer, HeaderMap, Option<Sending>) {
        let id: Option<u64> = delivery.parse().ok();
        let found = self.attempts.iter().find(|attempt| attempt.shown["id"].as_u64() == id);
        let Some(attempt) = found.filter(|_| !self.forgets) else {
            return (Answer::Say(StatusCode::NOT_FOUND, json!({"message": "Not Found"})), HeaderMap::new(), None);
        };
        let text = |name: &str| attempt.shown[name].as_str().expect("a text").to_owned();
        let (event, guid) = (text("event"), text("guid"));
        let sending = self.send(&event, &guid, attempt.body.clone(), true);
        self.asked.push(guid);
        let answer = if self.lost > 0 {
            self.lost -= 1;
            Answer::Break
        } else {
            Answer::Say(StatusCode::ACCEPTED, json!({}))
        };
        (answer, HeaderMap::new(), Some(sending))
    }
}

impl Sending {
    /// Sends it; the status of the answer, 502 where there is none, as GitHub says it.
    pub async fn go(&self) -> u16 {
        let request = crate::backup_world::http().post(&self.url).headers(self.headers.clone());
        match request.body(self.body.clone()).send().await {
            Ok(answer) => answer.status().as_u16(),
            Err(_) => 502,
        }
    }
}
