//! A `PostgreSQL` that is killed, read-only, or has no room.

use std::sync::Arc;

use sqlx::{Connection, Executor, PgConnection};
use tests::binary::House;
use tests::ledgers::TestLedger;
use tests::load::{booked, count, done};
use tests::porter::eventually;
use tests::postgres::PostgresServer;
use tests::proxy::Proxy;
use tests::sender::Sender;

use super::{Load, deploy, deploy_again, with_vercel};

/// How often the server is killed.
fn kills() -> usize {
    if tests::is_long() { 30 } else { 2 }
}

async fn run(url: &str, statements: &[&'static str]) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    for statement in statements {
        connection.execute(*statement).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_and_workers_go_on_by_themselves_when_a_killed_server_is_back() {
    let mut postgres = PostgresServer::start().await;
    let (url, sender) = (postgres.url(), Arc::new(Sender::default()));
    let house = House::new(&with_vercel(&url));
    let mut up = house.start("up");
    for kill in 1..=kills() {
        let load = Load::start(&up.server(), &sender);
        load.wait_for(30).await;
        postgres.kill();
        load.wait_for_spooled(5).await;
        assert_eq!(deploy(&up, 0x1000 + kill as u128).await, 503);
        postgres.start_again().await;
        load.wait_for(30).await;
        load.stop().await;
        booked(&sender, &url).await; // and so the spool is empty again: many outages in a row would fill it
    }
    done(&url).await;
    assert!(up.is_alive());
    assert_eq!(deploy_again(&up, 0x1001).await, 202, "what was refused is taken");
    println!("{} kills of PostgreSQL, {:?} signed for and by the spool, all done", kills(), sender.acknowledged());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_only_reads_is_waited_for() {
    let postgres = PostgresServer::start().await;
    let (url, sender) = (postgres.url(), Arc::new(Sender::default()));
    let house = House::new(&with_vercel(&url));
    let mut up = house.start("up");
    let load = Load::start(&up.server(), &sender);
    load.wait_for(30).await;
    run(&url, &["alter system set default_transaction_read_only = on", "select pg_reload_conf()"]).await;
    load.wait_for_spooled(20).await;
    assert_eq!(deploy(&up, 1).await, 503);
    assert!(up.is_alive(), "workers do not crash");
    let back = [
        "set default_transaction_read_only = off",
        "alter system reset default_transaction_read_only",
        "select pg_reload_conf()",
    ];
    run(&url, &back).await;
    load.wait_for(50).await;
    load.stop().await;
    booked(&sender, &url).await;
    done(&url).await;
    assert_eq!(deploy_again(&up, 1).await, 202, "what was refused is taken");
    println!("{:?} signed for and by the spool, all done", sender.acknowledged());
}

/// More than a segment of the write-ahead log has, which must not be what is cut short.
const ROOM: u64 = 18 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_room_is_waited_for() {
    let postgres = PostgresServer::start().await;
    let (url, sender) = (postgres.url(), Arc::new(Sender::default()));
    let house = House::new(&with_vercel(&url));
    let mut up = house.start("up");
    let load = Load::start(&up.server(), &sender);
    load.wait_for(30).await;
    // Old events, so many that their file is longer than there is room, and so small that they fill it.
    let fill = "insert into nightporter.event (id, source, kind, delivery_id, time, data, standing, received_at, config_digest)
                select gen_random_uuid(), 'old', 'old', n::text, 0, repeat(md5(n::text), 4), 1, 0, '' from generate_series(1, 120000) n";
    run(&url, &[fill, "checkpoint"]).await;
    postgres.limit_files(Some(ROOM));
    let mut meddler = PgConnection::connect(&url).await.unwrap();
    assert!(meddler.execute(fill).await.is_err(), "there is room");
    load.wait_for_spooled(20).await;
    // Some still find a place in what there is.
    let mut nonce = 0;
    let refused = async || {
        nonce += 1;
        (deploy(&up, nonce).await == 503).then_some(())
    };
    eventually("a deployment is refused", refused).await;
    assert!(up.is_alive(), "workers do not crash");
    postgres.limit_files(None);
    load.wait_for(50).await;
    load.stop().await;
    run(&url, &["delete from nightporter.event where source = 'old'"]).await;
    booked(&sender, &url).await;
    done(&url).await;
    assert_eq!(deploy_again(&up, nonce).await, 202, "what was refused is taken");
    println!("{:?} signed for and by the spool, all done", sender.acknowledged());
}

#[tokio::test]
async fn a_standby_that_the_name_leads_to_by_mistake_is_not_kept_by_whoever_only_reads() {
    let primary = PostgresServer::start().await;
    let standby = primary.start_standby().await;
    let name = Proxy::to(primary.address()).await;
    let t = TestLedger::postgres_at(&format!("postgres://postgres@{}/postgres", name.address())).await;
    let asks = async || t.ledger.chores(t.now()).await;
    asks().await.unwrap();
    let tables = "select count(*) from nightporter.job";
    eventually("the standby has the tables", async || count(&standby.url(), tables).await.ok()).await;

    name.switch(standby.address());
    let ours = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'nightporter'";
    count(&primary.url(), ours).await.unwrap();
    asks().await.expect_err("it was hung up");
    let refused = asks().await.expect_err("a standby has nothing to do");
    assert!(std::error::Error::source(&refused).unwrap().to_string().contains("is a standby"), "{refused:?}");

    name.switch(primary.address());
    asks().await.expect("the connection to the standby was given up at once");
}
