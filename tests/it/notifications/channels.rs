//! Each channel against a receiver that answers by a script.

use std::time::Duration;

use chrono::TimeDelta;
use schemas::{JobId, Timestamp};
use secrets::Resolver;
use serde_json::Value;
use tests::log::Log;
use tests::receiver::{Receiver, Reply, nowhere};
use worker::Failure;
use worker::channels::{Channel, Fate, Message, NotSent, Posting, Severity, open};

use super::{CANARY, SECRET, config, slack, webhook};

async fn opened(channel: Value) -> Box<dyn Channel> {
    opened_with(channel, &worker::world::http_client()).await
}

async fn opened_with(channel: Value, http: &reqwest::Client) -> Box<dyn Channel> {
    open("ops", &config(channel), &Resolver::default(), http).await.expect("a channel")
}

fn message() -> Message {
    let (title, text) = ("deploy failed".into(), "<!channel> see above".into());
    Message { title, text, severity: Severity::Warning, alarm: None }
}

fn posting() -> Posting {
    let now = Timestamp::UNIX_EPOCH;
    Posting { job: JobId::at(now), created_at: now, may_repeat: false }
}

fn wall() -> Timestamp {
    Timestamp::UNIX_EPOCH + TimeDelta::days(20_000)
}

async fn sent(channel: &dyn Channel) -> Result<(), NotSent> {
    channel.send(&message(), &posting(), wall()).await
}

/// The fate, what is to be done, and what people read.
fn words(sent: Result<(), NotSent>) -> (Fate, &'static str, String) {
    let NotSent { fate, failure } = sent.expect_err("it was not delivered");
    match failure {
        Failure::Retry { error, .. } => (fate, "retry", format!("{error:#}")),
        Failure::Discard(error) => (fate, "discard", format!("{error:#}")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn slack_gets_blocks_in_which_nothing_can_call_people() {
    let receiver = Receiver::start().await;
    let channel = opened(slack(&receiver.url)).await;
    sent(&*channel).await.unwrap();
    let requests = receiver.requests();
    assert_eq!(requests[0].path, format!("/services/{CANARY}"));
    assert_eq!(requests[0].header("content-type"), "application/json");
    assert_eq!(requests[0].body["blocks"][0]["text"]["text"], "*[warning] deploy failed*");
    assert_eq!(requests[0].body["blocks"][1]["text"]["text"], "&lt;!channel&gt; see above");
}

#[tokio::test]
async fn a_possible_repeat_is_marked_where_the_receiver_does_not_know_messages() {
    let receiver = Receiver::start().await;
    let posting = Posting { may_repeat: true, ..posting() };
    opened(slack(&receiver.url)).await.send(&message(), &posting, wall()).await.unwrap();
    let text = receiver.requests()[0].body["text"].as_str().unwrap().to_owned();
    assert!(text.starts_with("(possibly repeated) [warning] deploy failed"), "{text}");
}

#[tokio::test]
async fn at_429_the_message_is_put_off_for_as_long_as_slack_asks() {
    let receiver = Receiver::start().await;
    receiver.then([Reply::TooMany("37")]);
    let channel = opened(slack(&receiver.url)).await;
    let NotSent { fate, failure } = sent(&*channel).await.unwrap_err();
    assert_eq!(fate, Fate::NotDelivered);
    assert!(matches!(failure, Failure::Retry { after: Some(after), .. } if after == Duration::from_secs(37)));
    sent(&*channel).await.unwrap();
}

#[tokio::test]
async fn what_slack_refuses_is_retried_or_given_up_by_its_meaning() {
    let receiver = Receiver::start().await;
    let channel = opened(slack(&receiver.url)).await;
    receiver.then([Reply::Refused(500, "rollup_error"), Reply::Refused(404, "channel_not_found")]);
    assert_eq!(words(sent(&*channel).await).1, "retry");
    let (fate, what, text) = words(sent(&*channel).await);
    assert_eq!((fate, what), (Fate::NotDelivered, "discard"));
    assert_eq!(text, "it answered 404: the Slack channel is gone; make a new webhook");
}

#[tokio::test]
async fn a_lost_answer_and_a_missing_one_leave_the_outcome_unknown() {
    let receiver = Receiver::start().await;
    // The channel's own deadline is 10 s; a client that is less patient takes the same way.
    drop(worker::world::http_client()); // sets up the TLS library
    let impatient = reqwest::Client::builder().read_timeout(Duration::from_millis(200)).build().unwrap();
    for reply in [Reply::Lost, Reply::Silence] {
        for channel in [slack(&receiver.url), webhook(&receiver.url)] {
            receiver.then([reply.clone()]);
            let (fate, what, text) = words(sent(&*opened_with(channel, &impatient).await).await);
            assert_eq!((fate, what), (Fate::Unknown, "retry"), "{text}");
            assert!(text.contains("the message may have been delivered"), "{text}");
        }
    }
    assert_eq!(receiver.requests().len(), 4, "no library sends again by itself");
}

#[tokio::test]
async fn without_a_connection_the_message_was_certainly_not_delivered() {
    let gone = nowhere();
    let (fate, what, text) = words(sent(&*opened(slack(&gone)).await).await);
    assert_eq!((fate, what), (Fate::NotDelivered, "retry"));
    assert!(text.starts_with("it cannot be reached"), "{text}");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Receiver::start().await;
    let receiver = Receiver::start().await;
    for channel in [slack(&receiver.url), webhook(&receiver.url)] {
        receiver.then([Reply::Redirect(elsewhere.url.clone())]);
        let (fate, _, text) = words(sent(&*opened(channel).await).await);
        assert_eq!(fate, Fate::NotDelivered);
        assert!(text.starts_with("it answered 307: it redirects"), "{text}");
    }
    assert_eq!(elsewhere.requests().len(), 0);
}

#[tokio::test]
async fn a_signed_webhook_keeps_its_id_over_tries_and_signs_each_anew() {
    let receiver = Receiver::start().await;
    receiver.then([Reply::Lost]);
    let channel = opened(webhook(&receiver.url)).await;
    let posting = posting();
    channel.send(&message(), &posting, wall()).await.unwrap_err();
    channel.send(&message(), &posting, wall() + TimeDelta::seconds(60)).await.unwrap();
    let requests = receiver.requests();
    assert_eq!(requests[0].header("webhook-id"), format!("msg_{}", posting.job.0.simple()));
    assert_eq!(requests[0].header("webhook-id"), requests[1].header("webhook-id"));
    assert_eq!(requests[0].raw, requests[1].raw, "one message, one body");
    assert_eq!(requests[0].header("webhook-timestamp"), wall().timestamp().to_string());
    assert_eq!(requests[1].header("webhook-timestamp"), (wall().timestamp() + 60).to_string());
    assert!(requests.iter().all(|request| request.is_signed_with(SECRET)));
    assert!(!requests[0].is_signed_with("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"));
    assert_eq!(receiver.effects(), 1);
    assert_eq!(requests[1].body["data"]["title"], "deploy failed");
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_given_up_and_any_other_trouble_is_not() {
    let receiver = Receiver::start().await;
    let channel = opened(webhook(&receiver.url)).await;
    receiver.then([Reply::Refused(404, ""), Reply::Refused(503, ""), Reply::Refused(410, "")]);
    assert_eq!(words(sent(&*channel).await).1, "retry");
    assert_eq!(words(sent(&*channel).await).1, "retry");
    let (_, what, text) = words(sent(&*channel).await);
    assert_eq!(what, "discard");
    assert!(text.contains("the endpoint is gone for good"), "{text}");
}

#[tokio::test]
async fn secrets_that_cannot_be_used_are_named_and_not_shown() {
    let refused = async |channel: Value| {
        let error =
            open("ops", &config(channel), &Resolver::default(), &worker::world::http_client()).await.err().unwrap();
        match error {
            Failure::Discard(error) => format!("{error:#}"),
            other => panic!("{other:?}"),
        }
    };
    for channel in [serde_json::json!({"slack": CANARY}), serde_json::json!({"slack": format!("ftp://x/{CANARY}")})] {
        let text = refused(channel).await;
        assert!(text.contains("`ops`") && !text.contains(CANARY), "{text}");
    }
    let mut short = webhook("http://127.0.0.1:1");
    short["webhook"]["secret"] = "whsec_Y2FuYXJ5".into();
    let text = refused(short).await;
    assert!(text.contains("24 to 64 bytes") && !text.contains("Y2FuYXJ5"), "{text}");
    let text = refused(serde_json::json!({})).await;
    assert!(text.contains("no target"), "{text}");
}

#[tokio::test]
async fn the_slack_url_is_in_no_error_log_or_span() {
    let log = Log::keep();
    let receiver = Receiver::start().await;
    let gone = nowhere();
    receiver.then([
        Reply::Lost,
        Reply::Refused(500, "rollup_error"),
        Reply::Refused(404, CANARY),
        Reply::Redirect(format!("{}/{CANARY}", receiver.url)),
    ]);
    let channel = opened(slack(&receiver.url)).await;
    let mut errors = Vec::new();
    for _ in 0..4 {
        errors.push(sent(&*channel).await.unwrap_err());
    }
    errors.push(sent(&*opened(slack(&gone)).await).await.unwrap_err());
    sent(&*channel).await.unwrap();
    let errors = format!("{errors:?}");
    assert!(!errors.contains(CANARY), "{errors}");
    let is_said = |text: &str| !log.lines_with(text).is_empty();
    assert!(is_said("server.address") && is_said("http.response.status_code"), "the call's span is there");
    let lines = log.lines_with(CANARY);
    assert!(lines.is_empty(), "{lines:#?}");
}
