//! What is raised is resolved: at each channel, in that order, and once.

use std::collections::BTreeMap;
use std::time::Duration;

use schemas::{JobId, JobState};
use serde_json::{Value, json};
use tests::receiver::{Receiver, Reply};
use tests::services::{Alert, Fault, Services};
use worker::WorldConfig;

use super::house::House;
use super::jobs::operator;
use super::{SECRET, config};

/// A house with the channel `pager`, `oncall` to the same service of `PagerDuty`'s, and `ops`, a signed webhook.
async fn paging() -> (House, Services) {
    let (services, receiver) = (Services::start().await, Receiver::start().await);
    let ops = json!({"webhook": {"url": format!("{}/ops", receiver.url), "secret": SECRET}});
    let channels = [("pager", services.pagerduty()), ("oncall", services.pagerduty()), ("ops", ops)];
    let channels: BTreeMap<_, _> =
        channels.into_iter().map(|(name, channel)| (name.to_owned(), config(channel))).collect();
    (House::of(WorldConfig { channels, ..WorldConfig::default() }, receiver).await, services)
}

fn about(alarm: &str, action: &str) -> Value {
    json!({"channel": "pager", "title": "the disk is full", "alarm": alarm, "action": action, "severity": "P0"})
}

fn actions(services: &Services) -> Vec<String> {
    services.events().iter().map(|event| event["event_action"].as_str().unwrap().to_owned()).collect()
}

/// Lets so much time pass, in steps in which whatever is due is done.
async fn live(house: &House, hours: u32) {
    for _ in 0..hours {
        house.pass(Duration::from_hours(1)).await;
        house.at_rest().await;
    }
}

#[tokio::test]
async fn a_resolve_waits_for_its_trigger_that_is_still_being_tried_and_arrives_after_it() {
    let (house, services) = paging().await;
    services.then([Fault::TooMany]);
    let trigger = house.enqueue("notify", about("disk-full", "trigger")).await;
    house.once(trigger, JobState::Retryable).await;
    let resolve = house.enqueue("notify", about("disk-full", "resolve")).await;
    let waits = house.once(resolve, JobState::Scheduled).await;
    assert!(waits.reason.unwrap().contains(&trigger.to_string()));
    // Another alarm, and another channel, need not wait.
    house.once(house.enqueue("notify", about("other", "resolve")).await, JobState::Completed).await;
    services.then([Fault::Refused(503, "{}")]);
    live(&house, 4).await;
    house.once(resolve, JobState::Completed).await;
    assert_eq!(actions(&services), ["resolve", "trigger", "resolve"]);
    assert_eq!(services.alert("disk-full"), Alert { open: false, incidents: 1, absorbed: 0 });
}

#[tokio::test]
async fn a_resolve_is_sent_though_nobody_knows_what_became_of_its_trigger() {
    let (house, services) = paging().await;
    // Each try is taken, and no answer comes, until the trigger is given up.
    services.then(std::iter::repeat_n(Fault::Lost, 200));
    let trigger = house.enqueue("notify", about("disk-full", "trigger")).await;
    house.once(trigger, JobState::Retryable).await;
    let resolve = house.enqueue("notify", about("disk-full", "resolve")).await;
    house.once(resolve, JobState::Scheduled).await;
    live(&house, 50).await;
    house.once(trigger, JobState::Discarded).await;
    services.mend();
    live(&house, 3).await;
    house.once(resolve, JobState::Completed).await;
    assert!(!services.alert("disk-full").open);
    assert_eq!(services.alert("disk-full").incidents, 1);
}

#[tokio::test]
async fn what_is_raised_again_after_a_resolve_is_not_ended_by_it() {
    let (house, services) = paging().await;
    services.then([Fault::TooMany]);
    let first = house.enqueue("notify", about("disk-full", "trigger")).await;
    house.once(first, JobState::Retryable).await;
    let resolve = house.enqueue("notify", about("disk-full", "resolve")).await;
    house.once(resolve, JobState::Scheduled).await;
    let second = house.enqueue("notify", about("disk-full", "trigger")).await;
    house.once(second, JobState::Scheduled).await;
    live(&house, 4).await;
    assert_eq!(actions(&services), ["trigger", "resolve", "trigger"]);
    assert!(services.alert("disk-full").open);
}

/// A message to `ops` that is refused for good, and completes when it is retried.
async fn discarded(house: &House) -> JobId {
    house.receiver.then([Reply::Refused(410, "")]);
    let job = house.enqueue("notify", json!({"channel": "ops", "text": "hello"})).await;
    house.once(job, JobState::Discarded).await;
    job
}

#[tokio::test]
async fn a_discarded_job_that_is_retried_and_completes_ends_the_incident_that_it_opened() {
    let (house, services) = paging().await;
    let job = discarded(&house).await;
    house.at_rest().await;
    assert_eq!(actions(&services), ["trigger"]);
    house.queue.retry(job, &operator()).await.unwrap();
    house.once(job, JobState::Completed).await;
    live(&house, 2).await;
    assert_eq!(actions(&services), ["trigger", "resolve"]);
    let alert = services.alerts().into_values().next().unwrap();
    assert_eq!((services.alerts().len(), alert), (1, Alert { open: false, incidents: 1, absorbed: 0 }));
}

#[tokio::test]
async fn the_incident_of_a_group_ends_with_the_last_of_its_jobs_and_once() {
    let (house, services) = paging().await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(discarded(&house).await);
    }
    house.at_rest().await;
    live(&house, 1).await;
    assert_eq!(actions(&services), ["trigger", "trigger"], "the first, and how many more");
    let last = jobs.pop().unwrap();
    for job in jobs {
        house.queue.retry(job, &operator()).await.unwrap();
        house.once(job, JobState::Completed).await;
    }
    live(&house, 2).await;
    assert_eq!(actions(&services).len(), 2, "one of them is still discarded");
    house.queue.retry(last, &operator()).await.unwrap();
    house.once(last, JobState::Completed).await;
    live(&house, 2).await;
    assert_eq!(actions(&services), ["trigger", "trigger", "resolve"]);
    let alert = services.alerts().into_values().next().unwrap();
    assert_eq!(alert, Alert { open: false, incidents: 1, absorbed: 1 });
    // The job that found it over, run again, finds it told.
    let over = house.jobs().await.into_iter().find(|job| {
        job.args["template"] == "completed" && job.output.as_ref().is_some_and(|output| output["told"] != json!({}))
    });
    house.once_more(&over.unwrap()).await;
    live(&house, 2).await;
    assert_eq!(actions(&services).len(), 3);
}

#[tokio::test]
async fn an_alarm_whose_jobs_are_done_while_it_is_told_ends_when_all_has_been_told() {
    let (house, services) = paging().await;
    let jobs = [discarded(&house).await, discarded(&house).await];
    house.at_rest().await;
    for job in jobs {
        house.queue.retry(job, &operator()).await.unwrap();
        house.once(job, JobState::Completed).await;
    }
    house.at_rest().await;
    assert_eq!(actions(&services), ["trigger"], "how many more there were is still to be told");
    live(&house, 2).await;
    assert_eq!(actions(&services), ["trigger", "trigger", "resolve"]);
    assert!(services.alerts().into_values().all(|alert| !alert.open));
}

#[tokio::test]
async fn an_alarm_about_a_job_that_is_under_way_again_when_it_is_told_is_ended_too() {
    let (house, services) = paging().await;
    let now = house.queue.clock().now();
    let mut later = house.catalog.job("noop", &json!({}), now).unwrap();
    later.run_at = Some(now + Duration::from_mins(90));
    let job = house.queue.enqueue(later).await.unwrap().id();
    let notice = worker::notice::on_discard("oncall", house.catalog.clone());
    house.queue.enqueue(notice(job, "noop", "late", now).unwrap()).await.unwrap();
    house.at_rest().await;
    assert_eq!(actions(&services), ["trigger"]);
    live(&house, 4).await;
    house.once(job, JobState::Completed).await;
    assert_eq!(actions(&services), ["trigger", "resolve"]);
    assert!(services.alerts().into_values().all(|alert| !alert.open));
}

#[tokio::test]
async fn an_alarm_about_a_job_that_is_done_before_it_is_told_is_ended_too() {
    let (house, services) = paging().await;
    let job = house.enqueue("noop", json!({})).await;
    house.once(job, JobState::Completed).await;
    let notice = worker::notice::on_discard("oncall", house.catalog.clone());
    house.queue.enqueue(notice(job, "noop", "late", house.queue.clock().now()).unwrap()).await.unwrap();
    house.at_rest().await;
    live(&house, 3).await;
    assert_eq!(actions(&services), ["trigger", "resolve"]);
    assert!(services.alerts().into_values().all(|alert| !alert.open));
}

#[tokio::test]
async fn a_job_that_failed_and_was_never_given_up_resolves_nothing() {
    let (house, services) = paging().await;
    house.receiver.then([Reply::Refused(503, "")]);
    let job = house.enqueue("notify", json!({"channel": "ops", "text": "hello"})).await;
    house.once(job, JobState::Retryable).await;
    live(&house, 2).await;
    house.once(job, JobState::Completed).await;
    assert_eq!((house.jobs().await.len(), services.events().len()), (1, 0));
}
