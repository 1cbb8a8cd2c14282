//! The ledger is away: what is signed for lies on disk, and comes into the book later, once.

use std::fs;
use std::sync::atomic::Ordering;

use http::StatusCode;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::fault::Now;
use super::*;

async fn drain_once(world: &World) {
    world.door.drain_once(&world.door.0.config.spool).await.unwrap();
}

#[tokio::test]
async fn while_the_ledger_is_away_github_is_spooled_and_those_who_send_again_are_asked_to() {
    let world = World::new().await;
    for (number, fault) in [Now::Away, Now::Unknown].into_iter().enumerate() {
        world.fault.set(fault);
        let answered = world.deliver("github", &sample("github", "push", number as u128)).await;
        assert_eq!((answered.status, answered.body), (StatusCode::ACCEPTED, json!({"spooled": true})));
        for source in ["vercel", "clerk"] {
            let event = if source == "vercel" { "deployment.error" } else { "user.created" };
            let answered = world.deliver(source, &sample(source, event, number as u128)).await;
            assert_eq!(answered.status, StatusCode::SERVICE_UNAVAILABLE);
            assert!(answered.headers.contains_key("retry-after"));
        }
    }
    assert_eq!(world.spool_files(), ["delivery", "delivery"]);
    assert_eq!(world.door.spooled(), 2);
}

#[tokio::test]
async fn a_ledger_that_does_not_answer_is_away() {
    let world = World::new().await;
    world.fault.set(Now::Silent);
    tokio::time::pause();
    let answered = world.deliver("github", &sample("github", "push", 1)).await;
    assert_eq!((answered.status, answered.body), (StatusCode::ACCEPTED, json!({"spooled": true})));
    let answered = world.deliver("vercel", &sample("vercel", "deployment.error", 1)).await;
    assert_eq!(answered.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_ledger_that_is_known_to_be_away_is_offered_nothing_until_it_is_back() {
    let world = World::new().await;
    world.fault.set(Now::Away);
    for number in 1..=5 {
        assert_eq!(world.deliver("github", &sample("github", "push", number)).await.body["spooled"], json!(true));
        let refused = world.deliver("vercel", &sample("vercel", "deployment.error", number)).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(world.offered.load(Ordering::SeqCst), 1, "the first one found out for all");
    world.fault.set(Now::Fine);
    for number in 6.. {
        assert!(number < 1000, "it is back");
        if world.deliver("github", &sample("github", "push", number)).await.body["event_id"].is_string() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_large_delivery_is_worked_on_aside_and_booked_or_spooled_like_any_other() {
    let world = World::new().await;
    let large = |id: &str| github("push", id, format!(r#"{{"padding":"{}"}}"#, ".".repeat(1 << 20)).as_bytes());
    let answered = world.deliver("github", &large("1")).await;
    assert!(answered.body["event_id"].is_string(), "{}", answered.body);
    world.fault.set(Now::Away);
    assert_eq!(world.deliver("github", &large("2")).await.body["spooled"], json!(true));
    world.fault.set(Now::Fine);
    drain_once(&world).await;
    assert!(world.spool_files().is_empty());
    assert_eq!(world.queue.ledger().events(10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_was_spooled_is_booked_once_with_its_bytes_after_a_restart() {
    let world = World::new().await;
    world.fault.set(Now::Away);
    let samples: Vec<SignedSample> = (1..=3).map(|number| sample("github", "push", number)).collect();
    for sample in &samples {
        assert_eq!(world.deliver("github", sample).await.body["spooled"], json!(true));
    }
    drain_once(&world).await;
    assert_eq!(world.spool_files().len(), 3, "the ledger is still away");
    let world = world.restarted();
    assert_eq!(world.door.spooled(), 3);
    world.fault.set(Now::Fine);
    world.clock.advance(MINUTE);
    drain_once(&world).await;
    assert_eq!((world.spool_files().len(), world.door.spooled()), (0, 0));
    for sample in &samples {
        let answered = world.deliver("github", sample).await;
        assert_eq!(answered.body["duplicate"], json!(true));
        assert_eq!(world.body(&answered).await.bytes().unwrap(), sample.body);
        assert_eq!(world.event(&answered).await.event.delivery_id, sample.headers["x-github-delivery"]);
    }
    assert_eq!(world.queue.ledger().events(10).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_crash_between_the_commit_and_the_deletion_books_nothing_twice() {
    let world = World::new().await;
    world.fault.set(Now::Unknown); // It commits, and the door does not hear of it.
    let push = sample("github", "push", 1);
    assert_eq!(world.deliver("github", &push).await.body["spooled"], json!(true));
    assert_eq!(world.queue.ledger().events(10).await.unwrap().len(), 1);
    world.fault.set(Now::Fine);
    drain_once(&world).await;
    assert_eq!(world.queue.ledger().events(10).await.unwrap().len(), 1);
    assert!(world.spool_files().is_empty());
}

#[tokio::test]
async fn the_drain_books_what_comes_while_it_runs() {
    let world = World::new().await;
    let stop = CancellationToken::new();
    let draining = tokio::spawn({
        let (door, stop) = (world.door.clone(), stop.clone());
        async move { door.drain(stop).await }
    });
    world.fault.set(Now::Unknown);
    let push = sample("github", "push", 1);
    world.deliver("github", &push).await;
    world.fault.set(Now::Fine);
    while world.door.spooled() > 0 {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    draining.await.unwrap();
    assert_eq!(world.queue.ledger().events(10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_damaged_file_and_one_of_an_unknown_source_are_set_aside_and_never_deleted() {
    let world = World::new().await;
    world.fault.set(Now::Away);
    for number in 1..=2 {
        world.deliver("github", &sample("github", "push", number)).await;
    }
    let mut files: Vec<_> =
        fs::read_dir(spool_folder(&world.folder)).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut damaged = fs::read(&files[0]).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&files[0], &damaged).unwrap();
    let other = String::from_utf8(fs::read(&files[1]).unwrap()).unwrap();
    fs::write(&files[1], other.replacen(r#""source":"github""#, r#""source":"gitlab""#, 1)).unwrap();
    world.fault.set(Now::Fine);
    drain_once(&world).await;
    assert_eq!(world.spool_files(), ["bad", "bad"]);
    assert_eq!(fs::read(files[0].with_extension("bad")).unwrap(), damaged);
    assert!(world.queue.ledger().events(10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_file_that_was_never_finished_was_never_signed_for() {
    let world = World::new().await;
    fs::write(spool_folder(&world.folder).join("1.unfinished"), "half").unwrap();
    let world = world.restarted();
    assert!(world.spool_files().is_empty());
}

#[tokio::test]
async fn a_full_spool_keeps_nothing_and_signs_for_nothing() {
    let world = World::with(SpoolLimits { deliveries: 1, bytes: 1 << 20 }, json!([])).await;
    assert!(world.door.can_accept().await);
    world.fault.set(Now::Away);
    assert!(world.door.can_accept().await, "the spool has room");
    let first = world.deliver("github", &sample("github", "push", 1)).await;
    assert_eq!(first.status, StatusCode::ACCEPTED);
    assert!(!world.door.can_accept().await);
    let second = world.deliver("github", &sample("github", "push", 2)).await;
    assert_eq!(second.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(second.headers.contains_key("retry-after"));
    assert_eq!(world.spool_files(), ["delivery"]);
    world.fault.set(Now::Fine);
    assert!(world.door.can_accept().await);
}

#[tokio::test]
async fn a_spool_is_bounded_in_bytes_too() {
    let world = World::with(SpoolLimits { deliveries: 10, bytes: 100 }, json!([])).await;
    world.fault.set(Now::Away);
    let answered = world.deliver("github", &sample("github", "push", 1)).await;
    assert_eq!(answered.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(world.spool_files().is_empty());
}

#[tokio::test]
async fn a_spool_whose_folder_is_gone_keeps_nothing() {
    let world = World::new().await;
    world.fault.set(Now::Away);
    fs::remove_dir_all(spool_folder(&world.folder)).unwrap();
    assert!(!world.door.can_accept().await);
    let answered = world.deliver("github", &sample("github", "push", 1)).await;
    assert_eq!(answered.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.door.spooled(), 0, "what could not be written takes no room");
}
