//! What the door answers, and what is in the book by then.

use axum::body::{Body, Bytes};
use http::{Request, StatusCode};
use queue::ledger::JobFilter;
use schemas::{Standing, TraceContext};
use serde_json::{Value, json};

use super::fault::Now;
use super::*;

fn noop_route(on: &str) -> Value {
    json!([{"on": on, "run": {"job": "noop"}}])
}

#[tokio::test]
async fn a_delivery_of_each_sender_is_in_the_book_with_its_bytes_when_it_is_signed_for() {
    let world = World::new().await;
    for (source, kind, event) in [
        ("github", "github", "push"),
        ("vercel", "vercel", "deployment.succeeded"),
        ("clerk", "clerk", "user.deleted"),
        ("render", "standard", "anything.at.all"),
    ] {
        let sample = sample(kind, event, 1);
        let answered = world.deliver(source, &sample).await;
        assert_eq!(answered.status, StatusCode::ACCEPTED, "{source}: {}", answered.body);
        let booked = world.event(&answered).await;
        assert_eq!((booked.event.source.as_str(), booked.event.kind), (source, format!("{kind}.{event}")));
        assert_eq!(booked.standing, Standing::Accepted);
        let body = world.body(&answered).await;
        assert_eq!(body.bytes().unwrap(), sample.body);
        assert!(!body.headers.contains("signature"), "signatures are not kept: {}", body.headers);
    }
}

#[tokio::test]
async fn the_jobs_of_its_routes_are_committed_with_the_event_and_named_in_the_answer() {
    let world = World::with(SpoolLimits::default(), noop_route("github.push")).await;
    let answered = world.deliver("github", &sample("github", "push", 1)).await;
    let jobs = world.queue.ledger().jobs(&JobFilter { limit: 10, ..JobFilter::default() }).await.unwrap();
    assert_eq!(jobs.len(), 1);
    assert_eq!(answered.body["jobs"], json!([jobs[0].id]));
    assert_eq!(jobs[0].event, Some(event_id(&answered)));
}

#[tokio::test]
async fn a_repeat_is_answered_with_the_first_event_and_changes_nothing() {
    let world = World::with(SpoolLimits::default(), noop_route("github.push")).await;
    let push = sample("github", "push", 1);
    let first = world.deliver("github", &push).await;
    let second = world.deliver("github", &push).await;
    assert_eq!(second.status, StatusCode::OK);
    assert_eq!(second.body, json!({"event_id": first.body["event_id"], "duplicate": true}));
    assert_eq!(world.queue.ledger().events(10).await.unwrap().len(), 1);
    let jobs = world.queue.ledger().jobs(&JobFilter { limit: 10, ..JobFilter::default() }).await.unwrap();
    assert_eq!(jobs.len(), 1);
}

#[tokio::test]
async fn a_known_body_under_a_new_id_is_held_and_today_s_routes_know_its_work() {
    let world = World::with(SpoolLimits::default(), noop_route("github.push")).await;
    let push = sample("github", "push", 1);
    world.deliver("github", &push).await;
    let mut replayed = push.clone();
    replayed.headers.insert("x-github-delivery", "another".parse().unwrap());
    let answered = world.deliver("github", &replayed).await;
    assert_eq!((answered.status, &answered.body["held"]), (StatusCode::ACCEPTED, &json!(true)));
    assert_eq!(answered.body.get("jobs"), None);
    let held = world.event(&answered).await;
    assert_eq!(held.standing, Standing::Held);
    let work = world.door.work_of(&held.event, &world.body(&answered).await, &TraceContext::default());
    assert_eq!((work.jobs.len(), work.jobs[0].event), (1, Some(held.event.id)));
}

#[tokio::test]
async fn a_delivery_whose_id_was_stripped_is_known_by_its_digest() {
    let world = World::new().await;
    let mut push = sample("github", "push", 1);
    push.headers.remove("x-github-delivery");
    let first = world.deliver("github", &push).await;
    assert!(world.event(&first).await.event.delivery_id.starts_with("sha256:"));
    assert_eq!(world.deliver("github", &push).await.body["duplicate"], json!(true));
}

#[tokio::test]
async fn a_dispatch_may_honestly_repeat_for_ten_minutes_and_is_held_after_them() {
    let world = World::new().await;
    let body = br#"{"action": "go", "branch": "main", "client_payload": {}, "repository": {"id": 1}}"#;
    let deliver = async |id: &str| world.deliver("github", &github("repository_dispatch", id, body)).await.body;
    assert_eq!(deliver("1").await.get("held"), None);
    assert_eq!(deliver("2").await.get("held"), None);
    world.clock.advance(11 * MINUTE);
    assert_eq!(deliver("3").await["held"], json!(true));
}

#[tokio::test]
async fn what_is_verified_but_not_readable_is_quarantined_with_its_bytes() {
    let world = World::with(SpoolLimits::default(), noop_route("github.*")).await;
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let odd: [&[u8]; 7] = [
        b"not json",
        b"",
        b"[1, 2]",
        b"\xff\xfe",
        br#"{"ref": "a\u0000", "before": "a", "after": "b", "commits": []}"#,
        br#"{"ref": "a\ud800", "before": "a", "after": "b", "commits": []}"#,
        deep.as_bytes(),
    ];
    for (number, body) in odd.into_iter().enumerate() {
        let answered = world.deliver("github", &github("push", &number.to_string(), body)).await;
        assert_eq!((answered.status, &answered.body["quarantined"]), (StatusCode::ACCEPTED, &json!(true)), "{number}");
        let booked = world.event(&answered).await;
        assert_eq!((booked.standing, booked.event.kind.as_str()), (Standing::Quarantined, "github.unreadable"));
        assert!(booked.reason.is_some() && booked.jobs.is_empty());
        assert_eq!(world.body(&answered).await.bytes().unwrap(), body);
    }
}

#[tokio::test]
async fn a_route_that_errs_is_recorded_and_the_delivery_is_kept() {
    let routes = json!([{"on": "github.push", "when": "event.raw.deep != null", "run": {"job": "noop"}}]);
    let world = World::with(SpoolLimits::default(), routes).await;
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let body = format!(r#"{{"ref": "r", "before": "a", "after": "b", "commits": [], "deep": {deep}}}"#);
    let answered = world.deliver("github", &github("push", "1", body.as_bytes())).await;
    assert_eq!(answered.status, StatusCode::ACCEPTED);
    let booked = world.event(&answered).await;
    assert_eq!(booked.standing, Standing::Accepted);
    assert!(booked.route_errors[0].contains("event.raw cannot be read"), "{:?}", booked.route_errors);
    assert_eq!(world.body(&answered).await.bytes().unwrap(), body.as_bytes());
}

#[tokio::test]
async fn what_the_ledger_refuses_is_quarantined_and_not_sent_again_for_ever() {
    let world = World::new().await;
    world.fault.set(Now::Refuses);
    let answered = world.deliver("vercel", &sample("vercel", "deployment.error", 1)).await;
    assert_eq!((answered.status, &answered.body["quarantined"]), (StatusCode::ACCEPTED, &json!(true)));
}

#[tokio::test]
async fn every_wrong_signature_gets_the_same_answer_and_leaves_nothing() {
    let world = World::new().await;
    let good = sample("github", "push", 1);
    let changed = |change: &dyn Fn(&mut SignedSample)| {
        let mut sample = good.clone();
        change(&mut sample);
        request("github", &sample)
    };
    let stale = signed_sample(
        source_type("clerk").unwrap(),
        "user.created",
        &[],
        &SECRET.into(),
        Uuid::nil(),
        wall_clock() - chrono::TimeDelta::seconds(301),
    );
    let requests = [
        changed(&|sample| drop(sample.headers.remove("x-hub-signature-256"))),
        changed(&|sample| {
            sample.headers.remove("x-hub-signature-256");
            sample.headers.insert("x-hub-signature", "sha1=01dc10d0c83e72ed246219cdd91669667fe2ca59".parse().unwrap());
        }),
        changed(&|sample| sample.body.push(b' ')),
        changed(&|sample| drop(sample.headers.insert("x-hub-signature-256", "sha256=xyz".parse().unwrap()))),
        request("clerk", &stale.unwrap()),
    ];
    for request in requests {
        let answered = world.send(request).await;
        assert_eq!(answered.status, StatusCode::UNAUTHORIZED);
        assert_eq!(answered.body, json!({"error": "the signature is missing or wrong"}));
    }
    assert!(world.queue.ledger().events(10).await.unwrap().is_empty());
    let metrics = world.metrics();
    for (source, reason) in [
        ("github", "no_signature"),
        ("github", "wrong_algorithm"),
        ("github", "malformed"),
        ("github", "mismatch"),
        ("clerk", "clock"),
    ] {
        let line = format!("deliveries_rejected_total{{source=\"{source}\",reason=\"{reason}\"}} 1\n");
        assert!(metrics.contains(&line), "{line} is not in:\n{metrics}");
    }
    assert!(metrics.contains("deliveries_total{source=\"github\",result=\"rejected\"} 4\n"), "{metrics}");
}

#[tokio::test]
async fn a_secret_that_is_not_known_now_is_our_fault_and_not_the_sender_s() {
    let world = World::new().await;
    let answered = world.deliver("unset", &sample("vercel", "deployment.error", 1)).await;
    assert_eq!(answered.status, StatusCode::SERVICE_UNAVAILABLE);
    let unsigned = Request::post("/webhooks/unset").header("content-type", "application/json").body(Body::empty());
    assert_eq!(world.send(unsigned.unwrap()).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn failures_have_a_rate_and_verified_deliveries_have_none() {
    let world = World::new().await;
    tokio::time::pause();
    let mut forged = sample("vercel", "deployment.error", 1);
    forged.body.push(b' ');
    let mut refused = 0;
    for _ in 0..100 {
        let answered = world.deliver("vercel", &forged).await;
        if answered.status == StatusCode::TOO_MANY_REQUESTS {
            assert!(answered.headers.contains_key("retry-after"));
            refused += 1;
        }
    }
    assert_eq!(refused, 40);
    tokio::time::resume();
    let answered = world.deliver("vercel", &sample("vercel", "deployment.error", 2)).await;
    assert_eq!(answered.status, StatusCode::ACCEPTED);
    assert_eq!(world.deliver("clerk", &sample("clerk", "user.created", 1)).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn what_is_no_delivery_at_all_is_said_so() {
    let world = World::new().await;
    let post = |path: &str, kind: &str| Request::post(path).header("content-type", kind);
    let status = async |request: http::Result<Request<Body>>| world.send(request.unwrap()).await.status;
    let json = "application/json";
    assert_eq!(status(post("/webhooks/gitlab", json).body(Body::empty())).await, StatusCode::NOT_FOUND);
    let got = world.send(Request::get("/webhooks/github").body(Body::empty()).unwrap()).await;
    assert_eq!((got.status, got.headers["allow"].to_str().unwrap()), (StatusCode::METHOD_NOT_ALLOWED, "POST"));
    let form = "application/x-www-form-urlencoded";
    for (source, kind, expected) in [
        ("github", "text/plain", StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("vercel", form, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("github", form, StatusCode::UNAUTHORIZED),
        ("github", "Application/JSON; charset=utf-8", StatusCode::UNAUTHORIZED),
    ] {
        assert_eq!(status(post(&format!("/webhooks/{source}"), kind).body(Body::empty())).await, expected, "{kind}");
    }
    let bare = Request::post("/webhooks/github").body(Body::empty());
    assert_eq!(status(bare).await, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn more_than_25_mib_is_too_large_whether_it_says_so_or_not() {
    let world = World::new().await;
    let post = || Request::post("/webhooks/github").header("content-type", "application/json");
    let announced = post().header("content-length", 25 * 1024 * 1024 + 1).body(Body::empty()).unwrap();
    assert_eq!(world.send(announced).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    let chunk = Bytes::from(vec![b' '; 1024 * 1024]);
    let chunked = |count| {
        Body::from_stream(futures_util::stream::iter((0..count).map({
            let chunk = chunk.clone();
            move |_| Ok::<_, std::io::Error>(chunk.clone())
        })))
    };
    assert_eq!(world.send(post().body(chunked(26)).unwrap()).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(world.send(post().body(chunked(25)).unwrap()).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let world = World::new().await;
    tokio::time::pause();
    let never = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
    let request = Request::post("/webhooks/github").header("content-type", "application/json").body(never).unwrap();
    assert_eq!(world.send(request).await.status, StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test]
async fn a_forged_traceparent_changes_nothing() {
    use opentelemetry::trace::TracerProvider;
    use tracing_subscriber::layer::SubscriberExt;
    let tracer = opentelemetry_sdk::trace::SdkTracerProvider::builder().build().tracer("test");
    let _guard = tracing::subscriber::set_default(
        tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(tracer)),
    );
    // With one subscriber alone, a thread of another test that comes to the span first would switch it off for all.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let world = World::with(SpoolLimits::default(), noop_route("github.push")).await;
    let forged = "0af7651916cd43dd8448eb211c80319c";
    let mut found = Vec::new();
    let outer = tracing::info_span!("whatever stands around the door");
    for number in [1, 2] {
        let mut push = sample("github", "push", number);
        push.headers.insert("traceparent", format!("00-{forged}-b7ad6b7169203331-01").parse().unwrap());
        let answered = tracing::Instrument::instrument(world.deliver("github", &push), outer.clone()).await;
        let job = answered.body["jobs"][0].as_str().unwrap().parse().unwrap();
        found.push(world.queue.ledger().job(job).await.unwrap().unwrap().trace_id.unwrap());
    }
    assert_ne!(found[0], found[1], "each delivery begins a trace of its own");
    assert!(!found.contains(&forged.to_owned()));
}

#[tokio::test]
async fn answers_say_nothing_about_the_house() {
    let world = World::new().await;
    let answered = world.deliver("github", &sample("github", "push", 1)).await;
    let allowed = ["content-type", "content-length"];
    assert!(answered.headers.keys().all(|name| allowed.contains(&name.as_str())), "{:?}", answered.headers);
}
