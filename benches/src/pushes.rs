//! GitHub pushes: bodies of 8 to 24 KB made of a real one, each signed.

use anyhow::Context;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use uuid::Uuid;

/// What the bodies are signed with.
pub(crate) const SECRET: &str = "a secret of nobody's, for measuring alone";

/// So many bodies differ in all but their last field.
const BODIES: usize = 64;
const SMALLEST: usize = 8 * 1024;
const LARGEST: usize = 24 * 1024;
const REAL: &str = include_str!("../../tests/fixtures/webhooks/github/push.1.json");

/// The beginning of a body, hashed once: a load generator that hashes 16 KB for each request measures itself.
pub(crate) struct Push {
    beginning: String,
    hashed: Hmac<Sha256>,
}

/// All bodies, from the smallest to the largest.
pub(crate) fn all() -> anyhow::Result<Vec<Push>> {
    (0..BODIES).map(|number| Push::of_size(SMALLEST + (LARGEST - SMALLEST) * number / (BODIES - 1))).collect()
}

impl Push {
    fn of_size(size: usize) -> anyhow::Result<Self> {
        let mut body: Value = serde_json::from_str(REAL)?;
        let fields = body.as_object_mut().context("the fixture is an object")?;
        fields.remove("after");
        fields.insert("ref".into(), json!("refs/heads/main"));
        fields.insert("commits".into(), json!([]));
        let mut commits = Vec::new();
        let mut length = serde_json::to_string(fields)?.len();
        while length < size {
            let commit = commit();
            length += commit.to_string().len();
            commits.push(commit);
        }
        fields.insert("commits".into(), Value::from(commits));
        let mut beginning = serde_json::to_string(fields)?;
        beginning.pop(); // its last brace
        let mut hashed = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes())?;
        hashed.update(beginning.as_bytes());
        Ok(Self { beginning, hashed })
    }

    /// Writes a request that there was none like before.
    pub(crate) fn write_request(&self, path: &str, host: &str, request: &mut Vec<u8>) {
        let delivery = Uuid::new_v4();
        let end = format!(r#","after":"{}{:08x}"}}"#, delivery.simple(), self.beginning.len());
        let signature = hex::encode(self.hashed.clone().chain_update(end.as_bytes()).finalize().into_bytes());
        let length = self.beginning.len() + end.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nUser-Agent: GitHub-Hookshot/044aadd\r\n\
             X-GitHub-Event: push\r\nX-GitHub-Delivery: {delivery}\r\nX-Hub-Signature-256: sha256={signature}\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        request.clear();
        request.extend_from_slice(head.as_bytes());
        request.extend_from_slice(self.beginning.as_bytes());
        request.extend_from_slice(end.as_bytes());
    }
}

/// A commit as GitHub tells it.
fn commit() -> Value {
    let (id, tree, place) = (Uuid::new_v4().simple(), Uuid::new_v4().simple(), Uuid::new_v4().simple().to_string());
    let person = json!({"name": "Codertocat", "email": "21031067+Codertocat@users.noreply.github.com", "username": "Codertocat"});
    json!({
        "id": format!("{id}{}", &place[..8]),
        "tree_id": format!("{tree}{}", &place[8..16]),
        "distinct": true,
        "message": format!("Handle {} in the {} path\n\nFixes #{}", &place[..12], &place[12..20], place.as_bytes()[0]),
        "timestamp": "2026-05-15T15:20:41-05:00",
        "url": format!("https://github.com/Codertocat/Hello-World/commit/{id}{}", &place[..8]),
        "author": person,
        "committer": person,
        "added": [format!("src/{}/mod.rs", &place[..10])],
        "removed": [],
        "modified": [format!("src/{}.rs", &place[10..24]), "README.md", "Cargo.lock"],
    })
}
