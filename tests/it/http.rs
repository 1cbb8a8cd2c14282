//! `http`: requests to a receiver that answers by a script.

use serde_json::{Value, json};
use tests::backup_world::BackupWorld;
use tests::log::Log;
use tests::receiver::{Receiver, Reply, nowhere};
use worker::WorldConfig;
use worker::credentials::CredentialsConfig;

const CANARY: &str = "canary-of-the-health-check";

/// A world with the credentials `app`, which may be sent to one address.
async fn world(to: &str) -> BackupWorld {
    let app = json!({"to": [to], "headers": {"x-token": format!("Bearer {CANARY}")}});
    let app: CredentialsConfig = serde_json::from_value(app).unwrap();
    let credentials = [("app".to_owned(), app)].into();
    BackupWorld::of(WorldConfig { credentials, ..WorldConfig::default() }).await
}

async fn receiver_and_world() -> (Receiver, BackupWorld) {
    let receiver = Receiver::start().await;
    let world = world(&receiver.url).await;
    (receiver, world)
}

fn get(receiver: &Receiver, more: Value) -> Value {
    let mut args = json!({"url": format!("{}/health", receiver.url), "pause": "1s"});
    args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    args
}

fn post(receiver: &Receiver, on_unknown: &str, tries: u8) -> Value {
    get(receiver, json!({"method": "POST", "body": {"n": 1}, "on_unknown": on_unknown, "tries": tries}))
}

fn keys(receiver: &Receiver) -> Vec<String> {
    receiver.requests().iter().map(|request| request.header("idempotency-key").to_owned()).collect()
}

#[tokio::test]
async fn a_check_that_passes_says_so_each_time_it_is_run() {
    let (receiver, world) = receiver_and_world().await;
    for _ in 0..2 {
        let output = world.complete("http", &get(&receiver, json!({"expect": {"contains": "ok"}}))).await;
        assert_eq!((&output["status"], &output["tries"], &output["excerpt"]), (&json!(200), &json!(1), &json!("ok")));
        assert!(output["millis"].is_u64());
    }
    let requests = receiver.requests();
    assert_eq!((requests.len(), requests[0].method.as_str(), requests[0].path.as_str()), (2, "GET", "/health"));
    assert_eq!(requests[0].header("idempotency-key"), "");
    world.close().await;
}

#[tokio::test]
async fn only_failures_in_a_row_are_a_failure_and_one_success_ends_it() {
    let (receiver, world) = receiver_and_world().await;
    receiver.then([Reply::Refused(503, "starting"), Reply::Lost, Reply::Taken]);
    let output = world.complete("http", &get(&receiver, json!({"tries": 3}))).await;
    assert_eq!((&output["tries"], receiver.requests().len()), (&json!(3), 3));
    receiver.then([Reply::Refused(503, "starting"), Reply::Refused(500, "broken  \n inside"), Reply::Taken]);
    let args = get(&receiver, json!({"tries": 2}));
    let job = world.enqueue("http", &args).await;
    let reason = world.wait_discarded(job).await;
    let wanted = format!(
        "GET {}/health failed 2 times in a row, the last time: it answered 500, not 2xx; its body begins `broken inside`",
        receiver.url
    );
    assert_eq!((reason, receiver.requests().len()), (wanted, 5), "no retry of the queue comes on top");
    world.close().await;
}

#[tokio::test]
async fn what_cannot_be_reached_or_does_not_answer_is_a_failure_that_says_so() {
    let (receiver, world) = receiver_and_world().await;
    let reason = world.discarded("http", &json!({"url": nowhere()})).await;
    assert!(reason.contains("failed: it cannot be reached"), "{reason}");
    receiver.then([Reply::Silence]);
    let reason = world.discarded("http", &get(&receiver, json!({"timeout": "1s"}))).await;
    assert!(reason.ends_with("did not answer within 1s") || reason.contains("did not answer in time"), "{reason}");
    world.close().await;
}

#[tokio::test]
async fn an_answer_is_looked_through_by_status_header_and_json() {
    let (receiver, world) = receiver_and_world().await;
    receiver.then([Reply::TooMany("37"), Reply::Refused(200, r#"{"db": "down"}"#)]);
    let limited = json!({"expect": {"status": [429], "headers": {"retry-after": "37"}}});
    assert_eq!(world.complete("http", &get(&receiver, limited)).await["status"], 429);
    let reason = world.discarded("http", &get(&receiver, json!({"expect": {"json": {"/db": "ok"}}}))).await;
    assert!(reason.contains("its `/db` is \"down\", not \"ok\""), "{reason}");
    world.close().await;
}

#[tokio::test]
async fn redirects_are_followed_only_when_asked_and_credentials_do_not_go_along() {
    let (receiver, world) = receiver_and_world().await;
    let elsewhere = Receiver::start().await;
    let redirect = || Reply::Redirect(format!("{}/login", elsewhere.url));
    receiver.then([redirect()]);
    let reason = world.discarded("http", &get(&receiver, json!({}))).await;
    assert!(reason.contains("it answered 307, not 2xx") && elsewhere.requests().is_empty(), "{reason}");
    receiver.then([redirect()]);
    assert_eq!(world.complete("http", &get(&receiver, json!({"redirects": 1}))).await["status"], 200);
    assert_eq!(elsewhere.requests()[0].path, "/login");
    receiver.then([redirect()]);
    let reason = world.discarded("http", &get(&receiver, json!({"redirects": 1, "credentials": "app"}))).await;
    assert!(reason.contains(&format!("may not be sent to {}", elsewhere.url)), "{reason}");
    assert_eq!(elsewhere.requests().len(), 1);
    receiver.then([Reply::Redirect(format!("{}/round", receiver.url)), Reply::Redirect(receiver.url.clone())]);
    let reason = world.discarded("http", &get(&receiver, json!({"redirects": 1}))).await;
    assert!(reason.contains("it answered 307"), "{reason}");
    world.close().await;
}

#[tokio::test]
async fn credentials_go_to_their_address_alone_and_are_in_no_log_error_output_or_argument() {
    let log = Log::keep();
    let (receiver, world) = receiver_and_world().await;
    receiver.then([
        Reply::Refused(200, "you sent Bearer canary-of-the-health-check"),
        Reply::Refused(500, r#"{"token": "canary-of-the-health-check"}"#),
        Reply::Refused(200, r#"{"token": "canary-of-the-health-check"}"#),
    ]);
    let args = get(&receiver, json!({"credentials": "app"}));
    let mut said = Vec::new();
    let passed = world.complete("http", &args).await;
    assert_eq!(passed["excerpt"], "you sent …");
    said.push(passed.to_string());
    said.push(world.discarded("http", &args).await);
    said.push(
        world
            .discarded("http", &get(&receiver, json!({"credentials": "app", "expect": {"json": {"/token": 1}}})))
            .await,
    );
    assert!(receiver.requests().iter().all(|request| request.header("x-token") == format!("Bearer {CANARY}")));
    let elsewhere = Receiver::start().await;
    let refused = world.discarded("http", &get(&elsewhere, json!({"credentials": "app"}))).await;
    assert!(refused.contains("the credentials `app` may not be sent to"), "{refused}");
    assert!(elsewhere.requests().is_empty());
    said.push(refused);
    let folder = world.folder.path().to_owned();
    for said in said {
        assert!(!said.contains(CANARY), "{said}");
    }
    assert!(!log.lines_with("http.request.method").is_empty(), "the call's span is there");
    assert_eq!(log.lines_with(CANARY), [""; 0]);
    for file in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()), "in the ledger");
    }
    world.close().await;
}

#[tokio::test]
async fn a_reference_in_the_arguments_is_sent_as_it_stands_and_never_resolved() {
    let (receiver, world) = receiver_and_world().await;
    // As a template makes it of an event: the configuration's check never saw it.
    let args = get(&receiver, json!({"body": {"title": "${env:PATH}"}, "method": "PUT"}));
    world.complete("http", &args).await;
    assert_eq!(receiver.requests()[0].body["title"], "${env:PATH}");
    world.close().await;
}

#[tokio::test]
async fn a_post_of_unknown_effect_is_not_made_again_but_when_a_person_says_so() {
    let (receiver, world) = receiver_and_world().await;
    for (reply, count) in [(Reply::Lost, 1), (Reply::Refused(502, ""), 3)] {
        receiver.then([reply]);
        let job = world.enqueue("http", &post(&receiver, "report", 3)).await;
        let reason = world.wait_discarded(job).await;
        assert!(reason.contains("nobody knows") && reason.contains(&format!("jobs retry {job}")), "{reason}");
        assert_eq!(receiver.requests().len(), count);
        world.retry(job).await;
        world.completed(job).await;
        assert_eq!(receiver.requests().len(), count + 1);
        assert_eq!(keys(&receiver)[count], job.to_string());
    }
    receiver.then([Reply::Refused(422, "no")]);
    let reason = world.discarded("http", &post(&receiver, "report", 1)).await;
    assert!(reason.contains("it answered 422") && !reason.contains("nobody knows"), "{reason}");
    world.close().await;
}

#[tokio::test]
async fn a_post_that_may_be_repeated_carries_one_key_in_all_its_tries() {
    let (receiver, world) = receiver_and_world().await;
    receiver.then([Reply::Lost, Reply::Refused(429, ""), Reply::Taken]);
    let job = world.enqueue("http", &post(&receiver, "repeat", 3)).await;
    assert_eq!(world.completed(job).await["tries"], 3);
    assert_eq!(keys(&receiver), [job.to_string(), job.to_string(), job.to_string()]);
    assert_eq!(receiver.requests()[0].header("content-type"), "application/json");
    world.close().await;
}

#[tokio::test]
async fn interrupted_in_a_request_a_post_is_told_or_repeated_and_a_get_is_asked_again() {
    for (args, told) in [
        (post as fn(&Receiver, &str, u8) -> Value, "report"),
        (post, "repeat"),
        (|receiver: &Receiver, _: &str, _| get(receiver, json!({})), "get"),
    ] {
        let (receiver, mut world) = receiver_and_world().await;
        receiver.then([Reply::Silence]);
        let job = world.enqueue("http", &args(&receiver, told, 1)).await;
        receiver.requested(1).await;
        world.stop_worker().await;
        world.start_worker();
        if told == "report" {
            let reason = world.wait_discarded(job).await;
            assert!(reason.starts_with("an earlier attempt was interrupted"), "{reason}");
            assert_eq!(receiver.requests().len(), 1);
        } else {
            world.completed(job).await;
            assert_eq!(receiver.requests().len(), 2);
            assert_eq!(keys(&receiver)[0], keys(&receiver)[1]);
        }
        world.close().await;
    }
}

#[tokio::test]
async fn killed_after_its_answer_was_noted_a_post_is_not_made_again() {
    let (receiver, mut world) = receiver_and_world().await;
    world.stop_worker().await;
    let output = json!({"status": 201, "millis": 5, "tries": 1, "excerpt": ""});
    let noted = [("request 1", Some(json!("not_done"))), ("request 2", Some(json!({"done": output})))];
    let job = world.die_after("http", &post(&receiver, "report", 1), &noted).await;
    world.start_worker();
    assert_eq!(world.completed(job).await, output);
    assert!(receiver.requests().is_empty());
    world.close().await;
}

#[tokio::test]
async fn the_output_has_the_names_that_conditions_may_use() {
    let (receiver, world) = receiver_and_world().await;
    let output = world.complete("http", &get(&receiver, json!({}))).await;
    tests::backup_world::has_the_names_of("http", &output);
    world.close().await;
}
