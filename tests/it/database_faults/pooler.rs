//! `PgBouncer` between us and the ledger.

use std::sync::Arc;

use futures_util::future::join_all;
use queue::ledger;
use sqlx::{Connection, PgConnection};
use tests::binary::House;
use tests::pgbouncer::PgBouncer;
use tests::porter::eventually;
use tests::postgres::fresh_database;
use tests::sender::{Sender, configuration};

use super::Load;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_of_sessions_is_passed_through_though_it_is_killed_under_load() {
    let (url, mut pooler) = (fresh_database().await, PgBouncer::start("session").await);
    let through = pooler.url(&url);
    for opened in join_all((0..4).map(|_| ledger::open(&through, None))).await {
        drop(opened.expect("processes that start together all open it"));
    }
    let house = House::new(&configuration(&through));
    let (mut up, sender) = (house.start("up"), Arc::new(Sender::default()));
    let load = Load::start(&up.server(), &sender);
    load.wait_for(50).await;
    pooler.kill();
    load.wait_for_spooled(5).await;
    pooler.start_again().await;
    load.wait_for(50).await;
    load.stop().await;
    eventually("what was signed for is booked", async || sender.is_all_booked(&url).await.then_some(())).await;
    tests::load::done(&url).await;
    assert!(up.is_alive());
    println!("{:?} signed for and by the spool, all done", sender.acknowledged());
}

#[tokio::test]
async fn the_settings_of_the_ledgers_connections_hold_behind_a_pooler() {
    let (url, pooler) = (fresh_database().await, PgBouncer::start("session").await);
    let ledger = ledger::open(&pooler.url(&url), None).await.unwrap();
    ledger.time().await.unwrap();
    // Who may wait for a lock for ten seconds and no longer has the limit.
    let mut meddler = PgConnection::connect(&url).await.unwrap();
    let mut held = meddler.begin().await.unwrap();
    sqlx::query("lock table nightporter.job").execute(&mut *held).await.unwrap();
    let late = ledger.promote(1, ledger.time().await.unwrap()).await.unwrap_err();
    let text = format!("{late:?}");
    assert!(text.contains("57014"), "the server itself ended it: {text}");
}

#[tokio::test]
async fn a_pooler_of_transactions_is_refused_with_what_to_do() {
    let (url, pooler) = (fresh_database().await, PgBouncer::start("transaction").await);
    let Err(refused) = ledger::open(&pooler.url(&url), None).await else { panic!("it was opened") };
    let text = refused.to_string();
    assert!(text.contains("pool_mode = session") && text.contains("queue.ledger"), "{text}");
    let mut reader = PgConnection::connect(&url).await.unwrap();
    let made: bool =
        sqlx::query_scalar("select to_regnamespace('nightporter') is not null").fetch_one(&mut reader).await.unwrap();
    assert!(!made, "nothing is written before it is known");
}
