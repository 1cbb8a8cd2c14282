//! A `RabbitMQ` cluster of a test's own, for tests that kill its nodes.

use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::porter::eventually;
use crate::rabbitmq::{RabbitNode, three_free_ports};

/// Three nodes. End with the test, however that ends.
pub struct RabbitCluster {
    /// The nodes, in the order of their addresses.
    pub nodes: Vec<RabbitNode>,
    /// Where Erlang nodes find each other. Apart, so that it outlives each of them.
    mapper: Child,
}

/// Where the members of a quorum queue are.
#[derive(Debug, PartialEq, Eq)]
pub struct Members {
    /// The node that leads; empty while there is none.
    pub leader: String,
    /// How many members it has.
    pub all: usize,
    /// How many of them are up.
    pub online: usize,
    /// How many listen to it.
    pub consumers: u64,
}

impl RabbitCluster {
    /// Starts three nodes, and waits until they are one cluster.
    pub async fn start() -> Self {
        let mut ports: Vec<u16> = Vec::new();
        while ports.len() < 3 {
            let port = three_free_ports();
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        let mapper = Command::new("epmd")
            .args(["-address", "127.0.0.1", "-port", &(ports[0] + 2).to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("epmd, which comes with RabbitMQ");
        let nodes = ports.iter().map(|port| RabbitNode::of_cluster(*port, &ports)).collect();
        let mut cluster = Self { nodes, mapper };
        cluster.nodes.iter_mut().for_each(RabbitNode::spawn);
        for node in &cluster.nodes {
            node.answering().await;
        }
        eventually("three nodes are one cluster", async || (cluster.running().await == 3).then_some(())).await;
        cluster
    }

    /// Where it is: all three addresses.
    pub fn url(&self) -> String {
        self.nodes.iter().map(RabbitNode::url).collect::<Vec<_>>().join(",")
    }

    async fn running(&self) -> usize {
        let status = self.nodes[0].ctl(&["cluster_status", "--formatter", "json"]).await;
        let status: Value = serde_json::from_str(&status).unwrap_or_default();
        status["running_nodes"].as_array().map_or(0, Vec::len)
    }

    /// What the nth node knows of a quorum queue.
    pub async fn members(&self, node: usize, queue: &str) -> Members {
        let columns = ["name", "leader", "members", "online", "consumers"];
        let list = [&["list_queues", "--formatter", "json"][..], &columns].concat();
        let queues: Vec<Value> = serde_json::from_str(&self.nodes[node].ctl(&list).await).unwrap_or_default();
        let queue = queues.into_iter().find(|row| row["name"] == queue).unwrap_or_default();
        let length = |column: &str| queue[column].as_array().map_or(0, Vec::len);
        Members {
            leader: queue["leader"].as_str().unwrap_or_default().to_owned(),
            all: length("members"),
            online: length("online"),
            consumers: queue["consumers"].as_u64().unwrap_or_default(),
        }
    }
}

impl Drop for RabbitCluster {
    fn drop(&mut self) {
        let _gone = self.mapper.kill();
        let _reaped = self.mapper.wait();
    }
}
