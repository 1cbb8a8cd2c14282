//! Routers: each target has a job of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use schemas::JobState;
use schemas::api::JobView;
use serde_json::{Value, json};
use tests::receiver::{Receiver, Reply};
use worker::WorldConfig;

use super::house::House;
use super::{SECRET, config};

/// A house with the targets `a` and `b`, signed webhooks, and the router `oncall`.
pub(super) async fn routed(route: Value) -> House {
    let receiver = Receiver::start().await;
    let target = |name: &str| json!({"webhook": {"url": format!("{}/{name}", receiver.url), "secret": SECRET}});
    let channels = [("a", target("a")), ("b", target("b")), ("oncall", json!({"route": route}))];
    let channels: BTreeMap<_, _> =
        channels.into_iter().map(|(name, channel)| (name.to_owned(), config(channel))).collect();
    House::of(WorldConfig { channels, ..WorldConfig::default() }, receiver).await
}

pub(super) fn both() -> Value {
    json!({"critical": ["a", "b"], "warning": ["a", "b"], "info": []})
}

fn paths(house: &House) -> Vec<String> {
    let mut paths: Vec<String> = house.receiver.requests().into_iter().map(|request| request.path).collect();
    paths.sort();
    paths
}

#[tokio::test]
async fn each_severity_goes_to_the_channels_that_it_names_or_to_nobody() {
    let house = routed(json!({"P0": ["a", "b"], "P1": ["b"], "P2": []})).await;
    for (severity, expected) in
        [("P0", vec!["/a", "/b"]), ("warning", vec!["/a", "/b", "/b"]), ("P2", vec!["/a", "/b", "/b"])]
    {
        let args = json!({"channel": "oncall", "text": "hello", "severity": severity});
        let job = house.once(house.enqueue("notify", args).await, JobState::Completed).await;
        let told = job.output.unwrap()["told"].clone();
        house.at_rest().await;
        assert_eq!(paths(&house), expected, "{severity}: {told}");
    }
}

#[tokio::test]
async fn a_target_that_fails_holds_back_and_doubles_no_other() {
    let house = routed(both()).await;
    house.receiver.then([Reply::Refused(503, ""), Reply::Taken, Reply::Refused(503, ""), Reply::Taken]);
    let args = json!({"channel": "oncall", "text": "hello", "severity": "critical"});
    house.once(house.enqueue("notify", args).await, JobState::Completed).await;
    house.at_rest().await;
    for _ in 0..2 {
        house.pass(Duration::from_hours(1)).await;
        house.at_rest().await;
    }
    let bodies = |path: &str| house.receiver.requests().into_iter().filter(|request| request.path == path).count();
    assert_eq!((bodies("/a") + bodies("/b"), bodies("/a").min(bodies("/b"))), (4, 1), "{:?}", paths(&house));
}

#[tokio::test]
async fn a_router_killed_before_it_ended_tells_each_target_once() {
    let house = routed(both()).await;
    let args = json!({"channel": "oncall", "text": "hello", "severity": "critical"});
    let first = house.once(house.enqueue("notify", args).await, JobState::Completed).await;
    house.at_rest().await;
    // Run again from its start, as after a kill: what it made is there under its key.
    let again = house.once_more(&first).await;
    assert_eq!(again.output, first.output, "the same jobs");
    assert_eq!(paths(&house), ["/a", "/b"]);
}

#[tokio::test]
async fn a_router_killed_before_it_noted_a_message_that_it_made_makes_no_second_one() {
    let house = routed(both()).await;
    let args = json!({"channel": "oncall", "text": "hello", "severity": "critical"});
    let first = house.once(house.enqueue("notify", args).await, JobState::Completed).await;
    house.at_rest().await;
    house.open_step(first.id, "to a").await;
    house.open_step(first.id, "to b").await;
    let again = house.once_more(&first).await;
    house.at_rest().await;
    assert_eq!(again.output, first.output, "the same jobs, by their keys");
    assert_eq!(paths(&house), ["/a", "/b"]);
}

#[tokio::test]
async fn a_broken_target_of_the_router_that_is_told_of_failures_makes_no_storm_and_the_other_is_told() {
    let house = routed(both()).await;
    // `a` is gone for good, whatever comes; `b` takes everything.
    house.receiver.refuse_at("/a", 410);
    house.hopeless("many").await;
    for _ in 0..3 {
        house.receiver.requested(2).await;
        house.at_rest().await;
        house.pass(Duration::from_hours(1)).await;
    }
    let jobs = house.at_rest().await;
    let discarded: Vec<&JobView> = jobs.iter().filter(|job| job.state == JobState::Discarded).collect();
    assert_eq!(discarded.len(), 3, "the job, the message about it at `a`, and the one about that: {discarded:#?}");
    let told: Vec<String> = house
        .receiver
        .requests()
        .iter()
        .filter(|request| request.path == "/b")
        .map(|request| request.body["data"]["title"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(told, ["noop job discarded", "notify job discarded"]);
}
