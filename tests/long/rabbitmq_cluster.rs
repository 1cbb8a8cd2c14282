//! Three `RabbitMQ` nodes, of which one after the other dies, always the one that leads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use queue::Bell;
use queue::broker;
use schemas::{JobId, TraceContext};
use tests::bell_world::{BROKER_QUEUE, World};
use tests::porter::eventually;
use tests::rabbit_cluster::RabbitCluster;
use uuid::Uuid;

/// How many leaders are killed.
const KILLS: usize = 6;
/// How many jobs are enqueued together.
const JOBS: usize = 20;
/// `RabbitMQ` writes down a moment later which queues it has; nothing tells when.
const WRITTEN_DOWN: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_leaders_are_killed_under_load_loses_nothing_and_doubles_nothing() {
    let mut cluster = RabbitCluster::start().await;
    let url = cluster.url();
    let world = World::start(&url).await;
    eventually("the queue has three members", async || {
        let members = cluster.members(0, BROKER_QUEUE).await;
        (members.all == 3 && members.online == 3).then_some(())
    })
    .await;
    tokio::time::sleep(WRITTEN_DOWN).await;
    for kill in 1..=KILLS {
        let over = AtomicBool::new(false);
        let load = async {
            while !over.load(Ordering::SeqCst) {
                world.enqueue(JOBS).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let fault = async {
            let before = lead_of(&cluster, 0).await;
            let leader = cluster.nodes.iter().position(|node| node.name() == before).unwrap();
            cluster.nodes[leader].kill();
            let other = (leader + 1) % cluster.nodes.len();
            eventually("another node leads", async || (lead_of(&cluster, other).await != before).then_some(())).await;
            world.recovered(&format!("kill {kill}, of {before}; two nodes are left"), JOBS).await;
            a_new_process_finds_a_node_that_lives(&url).await;
            cluster.nodes[leader].start_again().await;
            eventually("all three are there again, and one worker listens", async || {
                let members = cluster.members(leader, BROKER_QUEUE).await;
                (members.all == 3 && members.online == 3 && members.consumers == 1).then_some(())
            })
            .await;
            over.store(true, Ordering::SeqCst);
        };
        tokio::join!(load, fault);
        world.recovered(&format!("kill {kill}: three nodes again"), JOBS).await;
    }
    world.ends(&format!("{KILLS} leaders of a cluster of three killed under load")).await;
}

/// The node that leads, as the nth one knows it; nobody leads for a moment after a death.
async fn lead_of(cluster: &RabbitCluster, node: usize) -> String {
    eventually("a node leads", async || {
        let leader = cluster.members(node, BROKER_QUEUE).await.leader;
        (!leader.is_empty()).then_some(leader)
    })
    .await
}

/// Also where it is the first address that is dead.
async fn a_new_process_finds_a_node_that_lives(url: &str) {
    let broker = broker::open(url).await.unwrap();
    let queue = format!("new_{}", Uuid::new_v4().simple());
    let bell = Bell { queue: queue.clone(), count: 1, job_id: JobId(Uuid::new_v4()), trace: TraceContext::default() };
    broker.ring(std::slice::from_ref(&bell)).await.unwrap();
    let heard = broker.listen(&queue).await.unwrap().heard().await;
    assert_eq!(heard.bell, bell);
    heard.take();
    broker.close().await;
}
