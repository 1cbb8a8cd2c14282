//! Senders that go on through a fault, and what must be so when it is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::porter::eventually;
use crate::sender::Sender;

/// So many senders, each of which waits a moment between its deliveries.
const SENDERS: usize = 8;
const BETWEEN: Duration = Duration::from_millis(50);

/// Senders that go on until told to stop.
pub struct Load {
    sender: Arc<Sender>,
    stop: Arc<AtomicBool>,
    senders: JoinSet<()>,
}

impl Load {
    /// Begins to send to a public door.
    pub fn start(door: &str, sender: &Arc<Sender>) -> Self {
        let (sender, stop) = (Arc::clone(sender), Arc::new(AtomicBool::new(false)));
        let mut senders = JoinSet::new();
        for _ in 0..SENDERS {
            let (sender, stop, door) = (Arc::clone(&sender), Arc::clone(&stop), door.to_owned());
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
    pub async fn wait_for(&self, more: usize) {
        let before = self.sender.acknowledged().0;
        eventually("deliveries are signed for", async || (self.sender.acknowledged().0 >= before + more).then_some(()))
            .await;
    }

    /// Waits until so many more are in the ledger, and not in the spool.
    pub async fn wait_for_booked(&self, more: usize) {
        let booked = || {
            let (all, spooled) = self.sender.acknowledged();
            all - spooled
        };
        let before = booked();
        eventually("deliveries are booked", async || (booked() >= before + more).then_some(())).await;
    }

    /// Waits until so many more are in the spool.
    pub async fn wait_for_spooled(&self, more: usize) {
        let before = self.sender.acknowledged().1;
        eventually("deliveries are spooled", async || (self.sender.acknowledged().1 >= before + more).then_some(()))
            .await;
    }

    /// Stops; the answers that are still to come are waited for.
    pub async fn stop(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        while self.senders.join_next().await.is_some() {}
    }
}

/// Says what was answered, where a test fails meanwhile.
impl Drop for Load {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("answers so far: {}", self.sender.answers());
        }
    }
}

/// Waits until what was signed for is in the ledger, each once.
pub async fn booked(sender: &Sender, ledger: &str) {
    eventually("what was signed for is booked", async || sender.is_all_booked(ledger).await.then_some(())).await;
}

/// Waits until no job waits or runs, and checks that all completed; how many they were.
pub async fn done(ledger: &str) -> i64 {
    eventually("all jobs are done", async || {
        let left = count(ledger, "select count(*) from nightporter.job").await;
        left.is_ok_and(|left| left == 0).then_some(())
    })
    .await;
    let others = count(ledger, "select count(*) from nightporter.history where state <> 5").await;
    assert_eq!(others.expect("the ledger answers"), 0, "not all completed");
    count(ledger, "select count(*) from nightporter.history").await.expect("the ledger answers")
}

/// One number that the ledger is asked for.
pub async fn count(ledger: &str, question: &'static str) -> Result<i64, sqlx::Error> {
    let mut ledger = PgConnection::connect(ledger).await?;
    sqlx::query_scalar(question).fetch_one(&mut ledger).await
}
