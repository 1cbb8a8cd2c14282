//! A ledger with a standby. The proxy is what users have in front of both: a name or an address that moves.

use axum::http::StatusCode;
use sqlx::{Connection, Executor, PgConnection};
use tests::load::{Load, count};
use tests::porter::eventually;
use tests::postgres::PostgresServer;
use tests::proxy::Proxy;
use tests::receiver::Reply;

use super::teams_world::{TeamsWorld, deploy, deploy_again};

/// How many primaries are killed.
const KILLS: u128 = 4;
/// How many deliveries are waited for before each fault, and after it.
const DELIVERIES: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_takes_over_has_everything_that_was_signed_for() {
    let mut primary = PostgresServer::start().await;
    let name = Proxy::to(primary.address()).await;
    let ledger = format!("postgres://postgres@{}/postgres", name.address());
    let world = TeamsWorld::new().await;
    let house = world.house(&ledger, &tests::server("NIGHTPORTER_TEST_AMQP"), "");
    let (mut serve, mut work) = (house.start("serve"), house.start("work"));
    let load = Load::start(&serve.server(), &world.sender);
    for kill in 1..=KILLS {
        let standby = with_standby(&primary).await;
        load.wait_for_booked(DELIVERIES).await;

        // Nothing is signed for that only one of them has.
        standby.freeze();
        load.wait_for_spooled(5).await;
        assert_eq!(deploy(&serve, 0x1000 + kill).await, StatusCode::SERVICE_UNAVAILABLE);
        standby.thaw();
        load.wait_for_booked(DELIVERIES).await;

        // The name leads to the standby by mistake, which reads only; then back. Nobody closes these connections for us.
        let before = count(&standby.url(), "select count(*) from nightporter.event").await.unwrap();
        world.team.then([const { Reply::Refused(503, "later") }; 40]); // To be promoted later.
        load.wait_for_booked(DELIVERIES / 4).await;
        name.switch(standby.address());
        hang_up(&primary).await;
        load.wait_for_spooled(20).await;
        assert_eq!(deploy(&serve, 0x2000 + kill).await, StatusCode::SERVICE_UNAVAILABLE);
        let started = house.run(&["work"]).exits(8);
        assert!(started.stderr.contains("leads to a standby"), "{}", started.stderr);
        name.switch(primary.address());
        load.wait_for_booked(DELIVERIES).await;
        assert!(count(&standby.url(), "select count(*) from nightporter.event").await.unwrap() > before);
        let stuck = "select count(*) from pg_stat_activity where application_name = 'nightporter'";
        let left = async || (count(&standby.url(), stuck).await.ok()? == 0).then_some(());
        eventually("no connection to the standby is kept", left).await;

        primary.kill();
        load.wait_for_spooled(20).await;
        let promoted = "select pg_promote()::int::bigint";
        assert_eq!(count(&standby.url(), promoted).await.unwrap(), 1, "it was promoted");
        name.switch(standby.address());
        load.wait_for_booked(DELIVERIES).await;
        primary = standby;
        assert!(serve.is_alive() && work.is_alive());
        println!("kill {kill}: {:?} signed for and by the spool", world.sender.acknowledged());
    }
    load.stop().await;
    for kill in 1..=KILLS {
        for nonce in [0x1000 + kill, 0x2000 + kill] {
            assert!(deploy_again(&serve, nonce).await.is_success(), "what was refused is taken");
        }
    }
    world.settle(&ledger, &format!("{KILLS} primaries killed and standbys promoted under load")).await;
    assert!(work.stop().success() && serve.stop().success());
}

/// A standby without which the primary acknowledges no commit.
async fn with_standby(primary: &PostgresServer) -> PostgresServer {
    let standby = primary.start_standby().await;
    let mut connection = PgConnection::connect(&primary.url()).await.unwrap();
    connection.execute("alter system set synchronous_standby_names = '*'").await.unwrap();
    connection.execute("select pg_reload_conf()").await.unwrap();
    eventually("the standby is waited for", async || {
        let sync = "select count(*) from pg_stat_replication where sync_state = 'sync'";
        (count(&primary.url(), sync).await.ok()? == 1).then_some(())
    })
    .await;
    standby
}

/// Ends all connections of Nightporter's, as a server does that is demoted.
async fn hang_up(server: &PostgresServer) {
    let ours = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'nightporter'";
    count(&server.url(), ours).await.unwrap();
}
