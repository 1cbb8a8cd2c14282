//! What every broker keeps, and what `RabbitMQ` survives.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use queue::Bell;
use queue::broker::{self, Broker, BrokerError, Heard};
use schemas::{JobId, TraceContext};
use uuid::Uuid;

/// Every broker that there is.
async fn brokers() -> [Arc<dyn Broker>; 2] {
    [broker::open("in-process").await.unwrap(), broker::open(&amqp()).await.unwrap()]
}

fn amqp() -> String {
    tests::server("NIGHTPORTER_TEST_AMQP")
}

fn a_queue() -> String {
    format!("test-{}", Uuid::new_v4())
}

fn a_bell(queue: &str) -> Bell {
    let trace = TraceContext {
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        tracestate: None,
    };
    Bell { queue: queue.into(), count: 1, job_id: JobId(Uuid::new_v4()), trace }
}

/// Fails where something that must happen does not.
async fn soon<T>(what: &str, happens: impl Future<Output = T>) -> T {
    let deadline = Duration::from_mins(1);
    tokio::time::timeout(deadline, happens).await.unwrap_or_else(|_| panic!("not within {deadline:?}: {what}"))
}

/// Looks until it is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    soon(what, async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Takes a bell and says which it was.
fn taken(heard: Heard) -> Bell {
    let bell = heard.bell.clone();
    heard.take();
    bell
}

#[tokio::test]
async fn a_bell_reaches_exactly_one_of_two_listeners() {
    for broker in brokers().await {
        let queue = a_queue();
        let (first, second) = (a_bell(&queue), a_bell(&queue));
        let (mut one, mut other) = (broker.listen(&queue).await.unwrap(), broker.listen(&queue).await.unwrap());
        let hear_either = async {
            broker.ring(std::slice::from_ref(&first)).await.unwrap();
            tokio::select! {
                heard = one.heard() => (taken(heard), true),
                heard = other.heard() => (taken(heard), false),
            }
        };
        let (heard, by_one) = soon("the first bell", hear_either).await;
        assert_eq!(heard, first);
        let (winner, loser) = if by_one { (&mut one, &mut other) } else { (&mut other, &mut one) };
        winner.pause().await;
        broker.ring(std::slice::from_ref(&second)).await.unwrap();
        assert_eq!(taken(soon("the second bell", loser.heard()).await), second, "the first one was heard twice");
    }
}

#[tokio::test]
async fn a_bell_that_is_dropped_rings_for_another() {
    for broker in brokers().await {
        let queue = a_queue();
        let bell = a_bell(&queue);
        let (mut one, mut other) = (broker.listen(&queue).await.unwrap(), broker.listen(&queue).await.unwrap());
        broker.ring(std::slice::from_ref(&bell)).await.unwrap();
        drop(soon("the bell", one.heard()).await);
        one.pause().await;
        assert_eq!(taken(soon("the bell that was dropped", other.heard()).await), bell);
    }
}

#[tokio::test]
async fn bells_that_ring_before_anyone_listens_are_kept() {
    for broker in brokers().await {
        let queue = a_queue();
        let bell = a_bell(&queue);
        broker.ring(std::slice::from_ref(&bell)).await.unwrap();
        let mut listener = broker.listen(&queue).await.unwrap();
        assert_eq!(taken(soon("the bell", listener.heard()).await), bell);
    }
}

#[tokio::test]
async fn who_pauses_holds_no_bell_and_hears_again_afterwards() {
    for broker in brokers().await {
        let queue = a_queue();
        let (first, second, third) = (a_bell(&queue), a_bell(&queue), a_bell(&queue));
        let (mut one, mut other) = (broker.listen(&queue).await.unwrap(), broker.listen(&queue).await.unwrap());
        broker.ring(std::slice::from_ref(&first)).await.unwrap();
        assert_eq!(taken(soon("the first bell", one.heard()).await), first);
        // The second goes to the only one that listens, which does not look.
        broker.ring(std::slice::from_ref(&second)).await.unwrap();
        one.pause().await;
        assert_eq!(taken(soon("the bell that was given back", other.heard()).await), second);
        other.pause().await;
        broker.ring(std::slice::from_ref(&third)).await.unwrap();
        assert_eq!(taken(soon("a bell after a pause", one.heard()).await), third);
    }
}

#[tokio::test]
async fn of_many_bells_every_one_is_heard() {
    const BELLS: u32 = 300;
    for broker in brokers().await {
        let queue = a_queue();
        let (mut one, mut other) = (broker.listen(&queue).await.unwrap(), broker.listen(&queue).await.unwrap());
        let bells: Vec<Bell> = (0..BELLS).map(|_| a_bell(&queue)).collect();
        let ring = async {
            for some in bells.chunks(50) {
                broker.ring(some).await.unwrap();
            }
        };
        let hear = async {
            let mut heard = 0;
            while heard < BELLS {
                heard += tokio::select! {
                    heard = one.heard() => taken(heard).count,
                    heard = other.heard() => taken(heard).count,
                };
            }
            heard
        };
        let ((), heard) = soon("all bells", async { tokio::join!(ring, hear) }).await;
        assert_eq!(heard, BELLS);
    }
}

#[tokio::test]
async fn a_broker_that_is_away_at_start_is_named_without_its_password() {
    let started = broker::open("amqp://porter:geheim@127.0.0.1:9/%2f").await;
    let Err(error) = soon("an answer", async { started }).await else { panic!("nothing listens there") };
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    let text = format!("{error}: {source}");
    assert!(text.contains("127.0.0.1:9") && text.contains("porter") && !text.contains("geheim"), "{text}");
    let Err(error) = broker::open("amqp://porter:geheim@[::").await else { panic!("no address") };
    assert!(!format!("{error:?}").contains("geheim"), "{error:?}");
}

/// A hand in the broker beside ours.
async fn meddler() -> (Connection, Channel) {
    let connection = Connection::connect(&amqp(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

#[tokio::test]
async fn a_queue_deleted_under_its_listener_is_made_again() {
    let broker = broker::open(&amqp()).await.unwrap();
    let queue = a_queue();
    let mut listener = broker.listen(&queue).await.unwrap();
    broker.ring(&[a_bell(&queue)]).await.unwrap();
    taken(soon("a bell", listener.heard()).await);

    let (_connection, channel) = meddler().await;
    let name = format!("nightporter.{queue}");
    channel.queue_purge(name.as_str().into(), QueuePurgeOptions::default()).await.unwrap();
    channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let bell = a_bell(&queue);
    let ring_until_heard = async {
        loop {
            // One that rings before the queue is back is lost, and that is said.
            let rung = broker.ring(std::slice::from_ref(&bell)).await;
            assert!(matches!(rung, Ok(()) | Err(BrokerError::Unroutable(_))), "{rung:?}");
            if let Ok(heard) = tokio::time::timeout(Duration::from_secs(2), listener.heard()).await {
                break taken(heard);
            }
        }
    };
    assert_eq!(soon("a bell in the new queue", ring_until_heard).await, bell);
    assert!(broker.is_well());
}

#[tokio::test]
async fn a_bell_for_a_deleted_queue_is_said_to_be_unroutable_and_the_next_one_rings() {
    let broker = broker::open(&amqp()).await.unwrap();
    let queue = a_queue();
    let bell = a_bell(&queue);
    broker.ring(std::slice::from_ref(&bell)).await.unwrap();
    let (_connection, channel) = meddler().await;
    channel.queue_delete(format!("nightporter.{queue}").into(), QueueDeleteOptions::default()).await.unwrap();
    let lost = broker.ring(std::slice::from_ref(&bell)).await;
    assert!(matches!(&lost, Err(BrokerError::Unroutable(of)) if *of == queue), "{lost:?}");
    broker.ring(std::slice::from_ref(&bell)).await.unwrap();
}

#[tokio::test]
async fn a_channel_that_the_broker_closes_is_replaced_and_other_queues_do_not_notice() {
    let broker = broker::open(&amqp()).await.unwrap();
    let (queue, healthy) = (a_queue(), a_queue());
    // A classic queue of that name: declaring ours beside it is an error that closes the channel.
    let (_connection, channel) = meddler().await;
    let name = format!("nightporter.{queue}");
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.as_str().into(), options, FieldTable::default()).await.unwrap();

    let (bell, other_bell) = (a_bell(&queue), a_bell(&healthy));
    let mut listener = broker.listen(&queue).await.unwrap();
    let silent = broker.ring(std::slice::from_ref(&bell)).await;
    assert!(matches!(silent, Err(BrokerError::Unavailable(_))), "{silent:?}");
    let mut other = broker.listen(&healthy).await.unwrap();
    broker.ring(std::slice::from_ref(&other_bell)).await.unwrap();
    let hear_other = async {
        tokio::select! {
            heard = listener.heard() => panic!("{:?} came from a queue that is not ours", heard.bell),
            heard = other.heard() => taken(heard),
        }
    };
    assert_eq!(soon("a bell of the healthy queue", hear_other).await, other_bell);
    assert!(broker.is_well());

    channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
    until("the bell rings", async || broker.ring(std::slice::from_ref(&bell)).await.is_ok()).await;
    assert_eq!(taken(soon("the bell", listener.heard()).await), bell);
}

#[tokio::test]
async fn a_message_that_is_no_bell_is_refused_for_good() {
    let broker = broker::open(&amqp()).await.unwrap();
    let queue = a_queue();
    let bell = a_bell(&queue);
    broker.ring(std::slice::from_ref(&bell)).await.unwrap();
    let mut listener = broker.listen(&queue).await.unwrap();
    assert_eq!(taken(soon("a bell", listener.heard()).await), bell);
    let (_connection, channel) = meddler().await;
    let strange = serde_json::to_vec(&a_bell("another")).unwrap();
    for payload in [b"ding".as_slice(), strange.as_slice()] {
        let (name, options) = (format!("nightporter.{queue}"), BasicPublishOptions::default());
        let confirm = channel.basic_publish("".into(), name.into(), options, payload, BasicProperties::default());
        confirm.await.unwrap().await.unwrap();
    }
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let name = format!("nightporter.{queue}");
    until("both lie in the queue or are on their way", async || {
        // A second listener would get what the first one gave back.
        tokio::select! {
            heard = listener.heard() => panic!("{:?} is no bell of this queue", heard.bell),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        let found = channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await.unwrap();
        found.message_count() == 0
    })
    .await;
    broker.ring(std::slice::from_ref(&bell)).await.unwrap();
    assert_eq!(taken(soon("the next bell", listener.heard()).await), bell);
    listener.pause().await;
    // Closed, the channel has given back whatever it held.
    until("nothing is left", async || {
        let found = channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await.unwrap();
        found.message_count() == 0 && found.consumer_count() == 0
    })
    .await;
}
