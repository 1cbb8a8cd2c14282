//! A `SQLite` ledger without room, and one whose process is killed as it writes. (That a second process is refused is
//! shown with the commands.)

use std::path::Path;
use std::sync::Arc;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};
use tests::binary::{House, limit_files};
use tests::porter::eventually;
use tests::sender::Sender;

use super::{Load, deploy, deploy_again, with_vercel};

/// How often the process is killed.
fn kills() -> usize {
    if tests::is_long() { 100 } else { 6 }
}

async fn reader(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).read_only(true).connect().await.unwrap()
}

async fn booked_and_done(sender: &Sender, path: &Path) {
    eventually("what was signed for is booked and done", async || {
        let mut ledger = reader(path).await;
        let select = "select delivery_id, count(distinct event.id), count(job_args.id), min(standing) from event
                      left join job_args on event_id = event.id group by delivery_id";
        let booked: Vec<(String, i64, i64, i16)> = sqlx::query_as(select).fetch_all(&mut ledger).await.ok()?;
        let left: i64 = sqlx::query_scalar("select count(*) from job").fetch_one(&mut ledger).await.ok()?;
        (sender.is_all_in(&booked) && left == 0).then_some(())
    })
    .await;
    let others = "select count(*) from history where state <> 5";
    assert_eq!(sqlx::query_scalar::<_, i64>(others).fetch_one(&mut reader(path).await).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_without_room_is_waited_for() {
    // Like a full disk, a file that may not grow gives an error, and no signal.
    let house = House::new(&with_vercel("sqlite:ledger.db")).with_prelude("trap '' XFSZ");
    let (mut up, sender) = (house.start("up"), Arc::new(Sender::default()));
    let load = Load::start(&up.server(), &sender);
    load.wait_for(50).await;
    // Deliveries in the spool are smaller.
    limit_files(up.pid(), "20000");
    load.wait_for_spooled(20).await;
    assert_eq!(deploy(&up, 1).await, 503);
    assert!(up.is_alive(), "it does not crash");
    limit_files(up.pid(), "unlimited");
    load.wait_for(50).await;
    load.stop().await;
    booked_and_done(&sender, &house.path("ledger.db")).await;
    assert_eq!(deploy_again(&up, 1).await, 202, "what was refused is taken");
    println!("{:?} signed for and by the spool, all done", sender.acknowledged());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_as_it_writes_leaves_a_whole_ledger() {
    let house = House::new(&with_vercel("sqlite:ledger.db"));
    let sender = Arc::new(Sender::default());
    for kill in 0..kills() {
        let up = house.start("up");
        let load = Load::start(&up.server(), &sender);
        load.wait_for(5 + kill * 7).await;
        up.kill();
        load.stop().await;
        let whole: String = sqlx::query_scalar("pragma integrity_check")
            .fetch_one(&mut SqliteConnectOptions::new().filename(house.path("ledger.db")).connect().await.unwrap())
            .await
            .unwrap();
        assert_eq!(whole, "ok", "after kill {kill}");
    }
    let _up = house.start("up");
    booked_and_done(&sender, &house.path("ledger.db")).await;
    println!("{} kills, {} signed for, all done", kills(), sender.acknowledged().0);
}
