//! The ledger's database fails in each way that databases do: what was signed for is in the ledger afterwards, once; and
//! when the fault ends everything goes on by itself.

mod cuts;
mod pooler;
mod postgres;
mod sqlite;

use axum::http::StatusCode;
use chrono::Utc;
use producer::source_type;
use producer::sources::signed_sample;
use tests::binary::Running;
use tests::load::Load;
use tests::porter::eventually;
use tests::sender::{SECRET, configuration};
use uuid::Uuid;

/// A porter with a source that sends again, beside the one that never does.
fn with_vercel(ledger: &str) -> String {
    let more = "[[routes]]\non = \"vercel.*\"\nrun = { job = \"noop\" }\n[sources.vercel]\n";
    format!("{}{more}secrets = [\"{SECRET}\"]\n", configuration(ledger))
}

/// Sends a deployment under this nonce; the status.
async fn deploy(up: &Running, nonce: u128) -> StatusCode {
    let vercel = source_type("vercel").unwrap();
    let sample = signed_sample(vercel, "deployment.succeeded", &[], &SECRET.into(), Uuid::from_u128(nonce), Utc::now());
    let sample = sample.unwrap();
    let sent = worker::world::http_client().post(format!("{}/webhooks/vercel", up.server()));
    sent.headers(sample.headers).body(sample.body).send().await.expect("an answer").status()
}

/// Sends a deployment again until it is not refused, as its sender would; the status then.
async fn deploy_again(up: &Running, nonce: u128) -> StatusCode {
    eventually("the deployment is taken", async || {
        let status = deploy(up, nonce).await;
        (status != StatusCode::SERVICE_UNAVAILABLE).then_some(status)
    })
    .await
}
