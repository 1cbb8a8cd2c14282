//! Deliveries that the door has verified with a given version of a secret: the ledger keeps beside each which it was.

use queue::ledger::SIGNED_WITH;
use schemas::Timestamp;
use secrets::vaults::Token;
use serde_json::Value;

use crate::context::Context;
use crate::handler::{Failure, OrFail};

/// So many of the newest events are looked through. Those that are looked for came seconds ago.
const NEWEST: u32 = 1000;

/// So many of them that are the source's are looked at more closely.
const CLOSELY: usize = 200;

/// The header that names a hook of GitHub.
const HOOK: &str = "x-github-hook-id";

/// A delivery that was signed with that version.
pub(super) struct Delivered {
    /// GitHub's hook that sent it.
    pub(super) hook: Option<u64>,
}

/// Those of a source that were signed with that version.
pub(super) async fn deliveries(
    cx: &Context,
    source: &str,
    version: &Token,
    since: Timestamp,
) -> Result<Vec<Delivered>, Failure> {
    let ledger = cx.queue().ledger();
    let events = ledger.events(NEWEST).await.or_retry("looking for deliveries")?;
    let mut found = Vec::new();
    let of_source = events.iter().filter(|event| event.event.source == source && event.received_at >= since);
    for event in of_source.take(CLOSELY) {
        let Some(body) = ledger.body(event.event.id).await.or_retry("looking at a delivery")? else { continue };
        let headers: Value = serde_json::from_str(&body.headers).unwrap_or_default();
        if headers[SIGNED_WITH] == version.as_str() {
            found.push(Delivered { hook: headers[HOOK].as_str().and_then(|hook| hook.parse().ok()) });
        }
    }
    Ok(found)
}
