//! Faults of the broker itself, on a node of the test's own.

use std::time::Duration;

use queue::Bell;
use queue::broker::{self, BrokerError, Heard};
use schemas::{JobId, TraceContext};
use tests::bell_world::{self as world, BROKER_QUEUE, World};
use tests::porter::eventually;
use tests::proxy::Proxy;
use tests::rabbitmq::RabbitNode;
use uuid::Uuid;

use super::JOBS;

/// RabbitMQ 3.10 writes down a moment later which queues it has: killed within it, it never finds a leader for the newest
/// ones again. Nothing tells when that is done.
const WRITTEN_DOWN: Duration = Duration::from_secs(3);

/// In one test, for starting nodes is what takes the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_wiped_away_for_long_or_short_of_memory_loses_nothing_and_doubles_nothing() {
    let mut node = RabbitNode::start().await;
    let proxy = Proxy::to(world::address_of(&node.url())).await;
    let url = world::through(&proxy, &node.url(), "");
    let world = World::start(&url).await;
    let broker = broker::open(&url).await.unwrap();
    let kept = a_bell("kept");
    broker.ring(std::slice::from_ref(&kept)).await.unwrap();

    tokio::time::sleep(WRITTEN_DOWN).await;
    world.enqueue(JOBS).await;
    node.kill();
    world.enqueue(JOBS).await;
    eventually("the loss is noticed", async || (!broker.is_well()).then_some(())).await;
    let silent = broker.ring(std::slice::from_ref(&kept)).await;
    assert!(matches!(silent, Err(BrokerError::Unavailable(_))), "{silent:?}");
    node.start_again().await;
    world.recovered("node killed and restarted", JOBS).await;
    consumes_as_it_should(&node).await;
    assert_eq!(taken(broker.listen("kept").await.unwrap().heard().await), kept, "a bell outlives a crash");
    broker.close().await;

    world.enqueue(JOBS).await;
    let outage = Duration::from_secs(if tests::is_long() { 120 } else { 4 });
    node.kill();
    for _ in 0..outage.as_secs() {
        world.enqueue(JOBS).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    world.settled().await; // Without a broker: by polling.
    node.wipe();
    world.enqueue(JOBS).await;
    node.start_again().await;
    world.recovered(&format!("an outage of {outage:?}, then data wiped"), JOBS).await;
    consumes_as_it_should(&node).await;

    let connections = proxy.made();
    node.ctl(&["set_vm_memory_high_watermark", "absolute", "1"]).await;
    for _ in 0..6 {
        world.enqueue(JOBS).await;
        tokio::time::sleep(Duration::from_secs(1)).await; // Longer in all than a call to the broker may take.
    }
    world.settled().await;
    // And from now on, a channel in which a bell is held for longer than a second is closed by the broker.
    let all_is_well = r#"vm_memory_monitor:set_vm_memory_high_watermark({absolute, "1GB"}),
        application:set_env(rabbit, consumer_timeout, 1000), application:set_env(rabbit, channel_tick_interval, 500)."#;
    node.ctl(&["eval", all_is_well]).await;
    world.recovered("publishers blocked by the memory alarm", JOBS).await;
    assert_eq!(proxy.made(), connections, "a blocked connection is waited for, not replaced by another blocked one");
    world.ends("a node of its own").await;

    a_queue_without_a_leader_and_a_channel_closed_under_its_consumer_disturb_no_other_queue(&node).await;
}

/// One consumer, with the prefetch that it always has.
async fn consumes_as_it_should(node: &RabbitNode) {
    eventually("one consumer, with prefetch 1", async || {
        let consumers = node.ctl(&["list_consumers", "queue_name", "prefetch_count", "active"]).await;
        let ours: Vec<_> = consumers.lines().filter(|line| line.starts_with(BROKER_QUEUE)).collect();
        if ours.len() != 1 {
            println!("consumers: {ours:?}"); // An old one is still being buried.
            return None;
        }
        assert_eq!(ours[0].split_whitespace().collect::<Vec<_>>(), [BROKER_QUEUE, "1", "true"]);
        Some(())
    })
    .await;
}

fn a_bell(queue: &str) -> Bell {
    Bell { queue: queue.into(), count: 1, job_id: JobId(Uuid::new_v4()), trace: TraceContext::default() }
}

fn taken(heard: Heard) -> Bell {
    let bell = heard.bell.clone();
    heard.take();
    bell
}

async fn a_queue_without_a_leader_and_a_channel_closed_under_its_consumer_disturb_no_other_queue(node: &RabbitNode) {
    let proxy = Proxy::to(world::address_of(&node.url())).await;
    let broker = broker::open(&world::through(&proxy, &node.url(), "")).await.unwrap();
    let (well, ill) = (a_bell("well"), a_bell("ill"));
    let (mut on_well, mut on_ill) = (broker.listen("well").await.unwrap(), broker.listen("ill").await.unwrap());
    broker.ring(&[well.clone(), ill.clone()]).await.unwrap();
    assert_eq!((taken(on_well.heard().await), taken(on_ill.heard().await)), (well.clone(), ill.clone()));
    let connections = proxy.made();

    let server = r#"{list_to_atom("%2F_nightporter.ill"), node()}"#;
    node.ctl(&["eval", &format!("ok = ra:stop_server(quorum_queues, {server}).")]).await;
    let (ringing_ill, mut rung) = (broker.ring(std::slice::from_ref(&ill)), 0);
    tokio::pin!(ringing_ill);
    let silent = loop {
        tokio::select! {
            biased;
            silent = &mut ringing_ill => break silent,
            heard = async {
                broker.ring(std::slice::from_ref(&well)).await.unwrap();
                on_well.heard().await
            } => {
                assert_eq!(taken(heard), well);
                rung += 1;
            }
        }
    };
    silent.unwrap_err();
    assert!(rung > 10, "only {rung} bells rang while another queue had no leader");
    assert!(broker.is_well());
    assert_eq!(proxy.made(), connections, "the connection is as good as before");
    node.ctl(&["eval", &format!("ok = ra:restart_server(quorum_queues, {server}).")]).await;
    eventually("the queue that was ill rings again", async || broker.ring(std::slice::from_ref(&ill)).await.ok()).await;
    assert_eq!(taken(on_ill.heard().await), ill);
    println!("{rung} bells rang in one queue while another had no leader");

    broker.ring(std::slice::from_ref(&well)).await.unwrap();
    let held = on_well.heard().await;
    let again = on_well.heard().await; // On a new channel: the broker has closed the first one.
    assert_eq!((&held.bell, &again.bell), (&well, &well));
    held.take(); // On a channel that is gone: the broker hears nothing of it.
    again.take();
    broker.ring(std::slice::from_ref(&ill)).await.unwrap();
    assert_eq!(taken(on_ill.heard().await), ill);
    assert_eq!(proxy.made(), connections, "a channel is replaced, not the connection");
    broker.close().await;
}
