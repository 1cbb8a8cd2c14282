//! A storm is one message, and a count.

use std::time::Duration;

use schemas::JobState;
use schemas::api::JobView;
use serde_json::{Value, json};

use super::house::House;
use super::routing::{both, routed};
use super::{slack, webhook};

/// The titles and texts that came to `oncall`, in order.
fn told(house: &House) -> Vec<(String, String)> {
    let text = |data: &Value, field: &str| data[field].as_str().unwrap().to_owned();
    let requests = house.receiver.requests();
    let bodies = requests.iter().filter(|request| request.path != "/services").map(|request| &request.body["data"]);
    bodies.map(|data| (text(data, "title"), text(data, "text"))).collect()
}

/// The jobs that leave it to another to speak.
fn behind(jobs: &[JobView]) -> usize {
    let is_behind = |job: &&JobView| job.output.as_ref().is_some_and(|output| output["behind"].is_string());
    jobs.iter().filter(is_behind).count()
}

async fn storm(house: &House, jobs: usize) {
    let all = (0..jobs).map(|_| house.hopeless("many"));
    futures_util::future::join_all(all).await;
}

/// A thousand jobs are discarded at once; fewer in the short form.
#[tokio::test]
async fn a_storm_is_two_messages_at_each_target_and_nothing_of_it_is_uncounted() {
    let many = if tests::is_long() { 1_000 } else { 150 };
    println!("{many} jobs are discarded");
    let house = routed(both()).await;
    storm(&house, many).await;
    let jobs = house.at_rest().await;
    assert_eq!(jobs.iter().filter(|job| job.state == JobState::Discarded).count(), many);
    assert_eq!(house.receiver.requests().len(), 2, "one at once, at each of the two targets");
    assert_eq!(behind(&jobs), many - 1);
    house.pass(Duration::from_hours(1)).await;
    house.at_rest().await;
    let told = told(&house);
    assert_eq!(told.len(), 4);
    assert_eq!(told[0].0, "noop job discarded");
    assert_eq!(told[3].0, format!("{} more: noop job discarded", many - 1));
    assert!(told[3].1.contains("nightporter jobs list --state discarded --kind noop"), "{}", told[3].1);
}

#[tokio::test]
async fn what_comes_after_the_window_is_a_new_message_at_once() {
    let house = House::with(webhook).await;
    storm(&house, 3).await;
    house.at_rest().await;
    house.pass(Duration::from_mins(5)).await; // the window has ended, its count is not told yet
    storm(&house, 1).await;
    house.at_rest().await;
    assert_eq!(told(&house).len(), 2, "the first of each window");
    house.pass(Duration::from_hours(1)).await;
    house.at_rest().await;
    let titles: Vec<String> = told(&house).into_iter().map(|(title, _)| title).collect();
    assert_eq!(titles, ["noop job discarded", "noop job discarded", "2 more: noop job discarded"]);
}

#[tokio::test]
async fn what_differs_in_kind_reason_severity_or_channel_is_not_grouped() {
    let house = House::with(webhook).await;
    for (channel, severity, group) in [
        ("ops", "info", "a"),
        ("ops", "critical", "a"),
        ("ops", "info", "b"),
        ("oncall", "info", "a"),
        ("ops", "info", "a"),
    ] {
        let args = json!({"channel": channel, "severity": severity, "group": group, "window": "1h", "text": "hello"});
        house.enqueue("notify", args).await;
        house.at_rest().await;
    }
    assert_eq!(house.receiver.requests().len(), 4);
}

#[tokio::test]
async fn a_group_whose_first_message_fails_for_good_is_still_counted_and_told() {
    let house = House::with(slack).await;
    house.receiver.refuse_at("/oncall", 410);
    storm(&house, 5).await;
    house.at_rest().await;
    house.pass(Duration::from_hours(1)).await;
    let jobs = house.at_rest().await;
    let tried: Vec<&str> = jobs
        .iter()
        .filter(|job| job.kind == "notify" && job.state == JobState::Discarded)
        .map(|job| job.args["title"].as_str().unwrap())
        .collect();
    assert_eq!(tried.len(), 2, "{tried:?}");
    assert!(tried.contains(&"4 more: noop job discarded"), "{tried:?}");
}

#[tokio::test]
async fn a_first_message_that_an_operator_cancels_speaks_for_nobody_after_it() {
    let house = House::with(slack).await;
    let message = || json!({"channel": "oncall", "group": "x", "window": "1h", "text": "hello"});
    let first = house.enqueue("notify", message()).await;
    house.once(first, JobState::Scheduled).await;
    house.queue.cancel(first, &super::jobs::operator()).await.unwrap();
    house.once(house.enqueue("notify", message()).await, JobState::Scheduled).await;
    house.at_rest().await;
    assert_eq!(told(&house).len(), 2);
}

#[tokio::test]
async fn run_twice_and_killed_between_its_effects_and_their_steps_a_group_says_nothing_twice() {
    let house = House::with(slack).await;
    let message = || json!({"channel": "oncall", "group": "x", "text": "hello"});
    let first = house.enqueue("notify", message()).await;
    house.once(first, JobState::Scheduled).await;
    let second = house.once(house.enqueue("notify", message()).await, JobState::Completed).await;
    // The step that says who is the first was begun, and not finished.
    house.open_step(first, "group").await;
    for _ in 0..2 {
        house.pass(Duration::from_hours(1)).await;
        house.at_rest().await;
    }
    let first = house.once(first, JobState::Completed).await;
    assert_eq!(first.output.as_ref().unwrap()["more"], 1);
    for job in [&first, &second] {
        assert_eq!(house.once_more(job).await.output, job.output);
    }
    house.at_rest().await;
    let titles: Vec<String> = told(&house).into_iter().map(|(title, _)| title).collect();
    assert_eq!(titles, ["Nightporter", "1 more: Nightporter"]);
}
