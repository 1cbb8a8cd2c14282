//! The ledger goes away under load: what was signed for is in it later, once.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tests::binary::{House, Running};
use tests::porter::eventually;
use tests::postgres::PostgresServer;
use tests::sender::{Sender, configuration};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// So many senders, each of which waits a moment between its deliveries.
const SENDERS: usize = 16;
const BETWEEN: Duration = Duration::from_millis(250);

/// How long each outage lasts.
fn outage() -> Duration {
    Duration::from_secs(if tests::is_long() { 60 } else { 7 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_signed_for_while_the_ledger_was_frozen_or_killed_is_in_it_later_and_once() {
    let mut postgres = PostgresServer::start().await;
    let house = House::new(&configuration(&postgres.url()));
    let spool = house.path("nightporter-spool");
    let up = house.start("up");
    let load = Load::start(&up);

    load.wait_for(50).await;
    postgres.freeze();
    sleep(outage()).await;
    postgres.thaw();
    let frozen = load.sender.acknowledged();
    booked(&load.sender, &postgres).await;
    assert!(frozen.1 > 0, "nothing was spooled while the ledger was frozen");

    postgres.kill();
    sleep(outage()).await;
    let killed = load.sender.acknowledged();
    assert!(killed.1 > frozen.1, "nothing was spooled while the ledger was away");
    // Who never sends again is never refused while there is room, and has an answer before it hangs up.
    assert_eq!((load.sender.answered(503), load.sender.answered(0)), (0, 0), "{}", load.sender.answers());

    up.kill(); // In the midst of spooling.
    let sender = load.stop().await;
    let left = waiting(&spool);
    assert!(left > 10, "only {left} deliveries wait in the spool");
    postgres.start_again().await;
    let mut kills = 0;
    while kills < 3 {
        let up = house.start("up");
        let before = waiting(&spool);
        eventually("the spool is being drained", async || (waiting(&spool) < before || before == 0).then_some(()))
            .await;
        up.kill(); // In the midst of draining.
        kills += 1;
    }
    let half = waiting(&spool);
    let up = house.start("up");
    booked(&sender, &postgres).await;
    eventually("the spool is empty", async || (waiting(&spool) == 0).then_some(())).await;
    let (acknowledged, spooled) = sender.acknowledged();
    println!(
        "{acknowledged} signed for, {spooled} of them by the spool in two outages of {:?}, {left} left by a kill, {half} after \
         {kills} kills while draining; all booked once. Answers: {}",
        outage(),
        sender.answers()
    );
    assert!(std::fs::read_dir(&spool).unwrap().next().is_none(), "nothing is set aside or left");
    assert!(up.stop().success());
}

/// Senders that go on until told to stop.
struct Load {
    sender: Arc<Sender>,
    stop: Arc<AtomicBool>,
    senders: JoinSet<()>,
}

impl Load {
    fn start(up: &Running) -> Self {
        let (sender, stop) = (Arc::new(Sender::default()), Arc::new(AtomicBool::new(false)));
        let mut senders = JoinSet::new();
        for _ in 0..SENDERS {
            let (sender, stop, door) = (Arc::clone(&sender), Arc::clone(&stop), up.server());
            senders.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    sender.push(&door, 8 * 1024).await;
                    sleep(BETWEEN).await;
                }
            });
        }
        Self { sender, stop, senders }
    }

    async fn wait_for(&self, deliveries: usize) {
        eventually("deliveries are signed for", async || (self.sender.acknowledged().0 >= deliveries).then_some(()))
            .await;
    }

    async fn stop(mut self) -> Arc<Sender> {
        self.stop.store(true, Ordering::SeqCst);
        while self.senders.join_next().await.is_some() {}
        self.sender
    }
}

async fn booked(sender: &Sender, postgres: &PostgresServer) {
    let url = postgres.url();
    eventually("what was signed for is booked", async || sender.is_all_booked(&url).await.then_some(())).await;
}

/// How many deliveries wait in the spool.
fn waiting(spool: &Path) -> usize {
    let files = std::fs::read_dir(spool).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "delivery")).count()
}
