//! The ledger's database fails in each way that databases do: what was signed for is in the ledger afterwards, once; and
//! when the fault ends everything goes on by itself.

mod cuts;
mod pooler;
mod postgres;
mod sqlite;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use chrono::Utc;
use producer::source_type;
use producer::sources::signed_sample;
use tests::binary::Running;
use tests::porter::eventually;
use tests::sender::{SECRET, Sender, configuration};
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

/// So many senders, each of which waits a moment between its deliveries.
const SENDERS: usize = 8;
const BETWEEN: Duration = Duration::from_millis(50);

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

/// Senders that go on until told to stop.
struct Load {
    sender: Arc<Sender>,
    stop: Arc<AtomicBool>,
    senders: JoinSet<()>,
}

impl Load {
    fn start(up: &Running, sender: &Arc<Sender>) -> Self {
        let (sender, stop) = (Arc::clone(sender), Arc::new(AtomicBool::new(false)));
        let mut senders = JoinSet::new();
        for _ in 0..SENDERS {
            let (sender, stop, door) = (Arc::clone(&sender), Arc::clone(&stop), up.server());
            senders.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    sender.push(&door, 1024).await;
                    sleep(BETWEEN).await;
                }
            });
        }
        Self { sender, stop, senders }
    }

    /// Waits until so many more are signed for.
    async fn wait_for(&self, more: usize) {
        let before = self.sender.acknowledged().0;
        eventually("deliveries are signed for", async || (self.sender.acknowledged().0 >= before + more).then_some(()))
            .await;
    }

    /// Waits until so many more are in the spool.
    async fn wait_for_spooled(&self, more: usize) {
        let before = self.sender.acknowledged().1;
        eventually("deliveries are spooled", async || (self.sender.acknowledged().1 >= before + more).then_some(()))
            .await;
    }

    async fn stop(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        while self.senders.join_next().await.is_some() {}
    }
}
