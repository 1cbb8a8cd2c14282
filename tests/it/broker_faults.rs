//! The broker fails in every way that we know. No job is lost, none has its effect twice, and when the broker is back,
//! workers live by bells again.

mod node;

use std::time::Duration;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use tests::bell_world::{self as world, BROKER_QUEUE, World};
use tests::porter::eventually;
use tests::proxy::{Line, Proxy};

/// How many jobs are enqueued before, during and after each fault.
const JOBS: usize = 40;

/// Long enough that every deadline of a call to the broker has passed.
const LONGER_THAN_DEADLINES: Duration = Duration::from_secs(9);

/// A hand in the broker beside ours.
struct Meddler {
    _connection: Connection,
    channel: Channel,
}

impl Meddler {
    async fn at(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        Self { _connection: connection, channel }
    }

    /// One listens on the workers' queue, as soon as those that ended are gone.
    async fn sees_one_consumer(&self) {
        let passive = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        eventually("one consumer", async || {
            let queue = self.channel.queue_declare(BROKER_QUEUE.into(), passive, FieldTable::default()).await;
            (queue.unwrap().consumer_count() == 1).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_that_are_purged_and_deleted_and_lines_that_go_bad_lose_nothing_and_double_nothing() {
    let url = tests::server("NIGHTPORTER_TEST_AMQP");
    let meddler = Meddler::at(&url).await;
    let proxy = Proxy::to(world::address_of(&url)).await;
    // A heartbeat of a second, so that a line that swallows everything is noticed in two.
    let world = World::start(&world::through(&proxy, &url, "?heartbeat=1")).await;
    let queue = BROKER_QUEUE;

    world.forgets_the_consumer();
    world.recovered("a consumer forgotten by the broker", JOBS).await;

    world.enqueue(JOBS).await;
    let purging = async {
        for _ in 0..20 {
            meddler.channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await.unwrap();
        }
    };
    tokio::join!(world.enqueue(JOBS), purging);
    world.recovered("queue purged", JOBS).await;

    world.enqueue(JOBS).await;
    let deleted = meddler.channel.queue_delete(queue.into(), QueueDeleteOptions::default());
    let ((), deleted) = tokio::join!(world.enqueue(JOBS), deleted);
    deleted.unwrap(); // The broker cancels the consumer with it.
    world.recovered("queue deleted, consumer cancelled by the broker", JOBS).await;
    meddler.sees_one_consumer().await;

    world.enqueue(JOBS).await;
    proxy.set(Line::HoldsServer);
    world.enqueue(JOBS).await;
    world.settled().await; // While no confirm and no bell comes through: by polling.
    proxy.set(Line::Good);
    world.recovered("confirms and bells held back", JOBS).await;

    world.enqueue(JOBS).await;
    proxy.set(Line::Silent);
    world.enqueue(JOBS).await;
    tokio::time::sleep(LONGER_THAN_DEADLINES).await;
    world.settled().await;
    proxy.set(Line::Good);
    world.recovered("connections accepted, nothing said", JOBS).await;

    world.enqueue(JOBS).await;
    proxy.swallow();
    world.enqueue(JOBS).await;
    world.recovered("half-open connections", JOBS).await;
    meddler.sees_one_consumer().await;
    world.ends("lines and queues").await;
}
