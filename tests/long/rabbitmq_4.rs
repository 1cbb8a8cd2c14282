//! `RabbitMQ` 4: another metadata store, a limit of redeliveries, and no mirrored queues.

use lapin::options::{QueueDeleteOptions, QueuePurgeOptions};
use lapin::{Connection, ConnectionProperties};
use tests::bell_world::{BROKER_QUEUE, World, address_of};
use tests::porter::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How many jobs are enqueued around each fault.
const JOBS: usize = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_4_carries_bells_and_loses_nothing_when_queues_are_purged_and_deleted() {
    let url = std::env::var("NIGHTPORTER_TEST_AMQP_4").unwrap_or_default();
    assert!(
        !url.is_empty(),
        "NIGHTPORTER_TEST_AMQP_4 is not set: give the address of a RabbitMQ 4, or run tests/run-long as root on Debian"
    );
    let version = eventually("RabbitMQ 4 answers", async || version_of(&url).await.ok()).await;
    assert!(version.starts_with("4."), "it is RabbitMQ {version}");
    let meddler = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let channel = meddler.create_channel().await.unwrap();
    let world = World::start(&url).await;
    world.enqueue(JOBS).await;
    world.recovered(&format!("RabbitMQ {version}"), JOBS).await;
    let purge = async {
        for _ in 0..20 {
            channel.queue_purge(BROKER_QUEUE.into(), QueuePurgeOptions::default()).await.unwrap();
        }
    };
    tokio::join!(world.enqueue(JOBS), purge);
    world.recovered("RabbitMQ 4, queue purged", JOBS).await;
    let deleted = channel.queue_delete(BROKER_QUEUE.into(), QueueDeleteOptions::default());
    let ((), deleted) = tokio::join!(world.enqueue(JOBS), deleted);
    deleted.unwrap();
    world.recovered("RabbitMQ 4, queue deleted", JOBS).await;
    world.ends("RabbitMQ 4").await;
}

/// What it says of itself in its greeting: a table, in which `version` is a long string (`S`, its length in four bytes).
async fn version_of(url: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address_of(url)).await?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    let mut greeting = vec![0; 4096];
    let read = stream.read(&mut greeting).await?;
    let greeting = String::from_utf8_lossy(&greeting[..read]).into_owned();
    let version = greeting.split_once("versionS").and_then(|(_, rest)| rest.get(4..));
    let version = version.unwrap_or_default().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    Ok(version)
}
