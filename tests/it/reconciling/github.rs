//! GitHub's deliveries that never arrived.

use std::time::Duration;

use axum::http::StatusCode;
use schemas::JobState;
use serde_json::{Value, json};
use tests::backup_world::has_the_names_of;
use tests::github_hooks::HOOK;
use tests::migration_world::REPOSITORY;
use tests::porter::eventually;

use super::Site;

const A_WHILE: Duration = Duration::from_mins(10);

/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:9/webhooks/github";

fn args(more: Value) -> Value {
    let mut args = json!({"of": "github", "repository": REPOSITORY});
    args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    args
}

fn push(number: u32) -> Value {
    json!({
        "ref": "refs/heads/main", "before": format!("{number:040x}"), "after": format!("{:040x}", number + 1),
        "commits": [], "repository": {"id": 1, "full_name": REPOSITORY}, "pusher": {"name": "ada"},
    })
}

impl Site {
    /// Something happens that cannot be delivered.
    async fn miss(&self, guid: &str, number: u32) {
        let url = self.github.hooks(|hooks| hooks.url.replace(NOWHERE.to_owned()));
        assert_eq!(self.github.tell("push", guid, &push(number)).await, 502);
        self.github.hooks(|hooks| hooks.url = url);
    }

    async fn deliver(&self, guid: &str, number: u32) {
        assert_eq!(self.github.tell("push", guid, &push(number)).await, 202);
    }

    async fn has_events(&self, count: usize) {
        eventually("they come by the door", async || (self.door.events().await.len() >= count).then_some(())).await;
        assert_eq!((self.door.events().await.len(), self.door.jobs_made().await), (count, count));
    }
}

#[tokio::test]
async fn what_never_arrived_is_asked_for_again_and_comes_by_the_door_once() {
    let site = Site::open().await;
    // More than a page of the list.
    for number in 0..7 {
        site.miss(&format!("missed-{number}"), number).await;
    }
    site.deliver("came", 100).await;
    site.pass(A_WHILE).await;
    let output = site.reconcile(&args(json!({}))).await;
    has_the_names_of("reconcile", &output);
    assert_eq!((&output["looked_at"], &output["missing"], &output["asked"]), (&json!(8), &json!(7), &json!(7)));
    site.has_events(8).await;
    site.pass(A_WHILE).await;
    let output = site.reconcile(&args(json!({}))).await;
    assert_eq!((&output["looked_at"], &output["missing"], &output["asked"]), (&json!(8), &json!(0), &json!(0)));
    assert!((0..7).all(|number| site.github.hooks(|hooks| hooks.times(&format!("missed-{number}"))) == 2));
    site.has_events(8).await;
    site.world.close().await;
}

#[tokio::test]
async fn what_the_ledger_has_is_not_asked_for_whatever_github_says_became_of_it() {
    let site = Site::open().await;
    // It came, and its answer was too late for GitHub; and the other way round something else answered for us.
    let late = site.github.hooks(|hooks| hooks.sending("push", "late", &push(1)));
    assert_eq!(late.go().await, 202);
    let never = site.github.hooks(|hooks| hooks.sending("push", "never", &push(2)));
    let now = site.world.queue.clock().now();
    site.github.hooks(|hooks| {
        hooks.sent(late, now, 504);
        hooks.sent(never, now, 200);
    });
    site.pass(A_WHILE).await;
    let output = site.reconcile(&args(json!({}))).await;
    assert_eq!(output["asked"], 1);
    assert_eq!(site.github.hooks(|hooks| hooks.asked.clone()), ["never"]);
    site.has_events(2).await;
    site.world.close().await;
}

#[tokio::test]
async fn what_came_before_the_house_listened_is_left_unless_it_is_wanted() {
    let site = Site::open().await;
    let before = site.world.queue.clock().now() - chrono::TimeDelta::hours(2);
    site.github.at(before);
    site.miss("before", 1).await;
    let output = site.reconcile(&args(json!({}))).await;
    assert_eq!((&output["looked_at"], &output["asked"]), (&json!(0), &json!(0)));
    let output = site.reconcile(&args(json!({"from": before}))).await;
    assert_eq!(output["asked"], 1);
    site.has_events(1).await;
    site.world.close().await;
}

#[tokio::test]
async fn a_request_whose_answer_was_lost_and_a_killed_attempt_are_one_event() {
    let site = Site::open().await;
    site.miss("lost", 1).await;
    site.pass(A_WHILE).await;
    site.github.hooks(|hooks| hooks.lost = 1);
    let job = site.world.enqueue("reconcile", &args(json!({}))).await;
    assert!(site.world.first_failure(job).await.contains("asking for a delivery again"));
    site.has_events(1).await;
    site.pass(Duration::from_mins(1)).await;
    site.world.completed(job).await;
    site.has_events(1).await;
    // Killed after it had asked, before it could say so: it asks again, and again one event comes.
    site.miss("killed", 2).await;
    site.pass(A_WHILE).await;
    let mut site = site;
    site.world.stop_worker().await;
    let step = format!("redeliver {HOOK}");
    let job = site.world.die_after("reconcile", &args(json!({})), &[(&step, None)]).await;
    site.world.start_worker();
    assert_eq!(site.world.completed(job).await["asked"], 1);
    site.has_events(2).await;
    // Killed after it had said so: it is not asked again.
    site.world.stop_worker().await;
    let tally = json!({
        "looked_at": 2, "missing": 1, "asked": 1, "waiting": 0, "failing": 0, "named": [], "lost": 0,
    });
    let asked = site.github.hooks(|hooks| hooks.asked.len());
    let job = site.world.die_after("reconcile", &args(json!({})), &[(&step, Some(tally))]).await;
    site.world.start_worker();
    assert_eq!(site.world.completed(job).await["asked"], 1);
    assert_eq!(site.github.hooks(|hooks| hooks.asked.len()), asked);
    site.world.close().await;
}

#[tokio::test]
async fn what_is_refused_again_is_told_and_asked_for_less_and_less_often() {
    let site = Site::open().await;
    site.miss("refused", 1).await;
    site.github.hooks(|hooks| hooks.url = Some(NOWHERE.to_owned()));
    site.pass(A_WHILE).await;
    let times = |count| {
        let github = &site.github;
        async move {
            eventually("it is sent again", async || {
                github.hooks(|hooks| hooks.times("refused") == count).then_some(())
            })
            .await;
        }
    };
    assert_eq!(site.reconcile(&args(json!({}))).await["asked"], 1, "the first time it is no trouble yet");
    times(2).await;
    site.pass(Duration::from_mins(4)).await;
    assert_eq!(site.reconcile(&args(json!({}))).await["waiting"], 1);
    site.pass(Duration::from_mins(2)).await;
    let reason = site.world.discarded("reconcile", &args(json!({}))).await;
    assert!(reason.contains("push refused: 502") && reason.contains("/webhooks/github"), "{reason}");
    times(3).await;
    site.pass(Duration::from_mins(8)).await;
    assert_eq!(site.reconcile(&args(json!({}))).await["waiting"], 1, "after the next failure it waits for ten minutes");
    // What GitHub has forgotten is lost, and that is said.
    site.github.hooks(|hooks| hooks.forgets = true);
    site.pass(A_WHILE).await;
    let reason = site.world.discarded("reconcile", &args(json!({}))).await;
    assert!(reason.contains("1 deliveries of GitHub are lost") && reason.contains("push refused"), "{reason}");
    site.world.close().await;
}

#[tokio::test]
async fn a_webhook_that_is_missing_or_off_is_red_and_limits_are_waited_out() {
    let site = Site::open().await;
    site.github.answer_first(StatusCode::FORBIDDEN, &[("retry-after", "37")]);
    let job = site.world.enqueue("reconcile", &args(json!({}))).await;
    let view = site.world.wait_for(job, &[JobState::Retryable]).await;
    assert!((view.run_at.unwrap() - site.world.queue.clock().now()).num_seconds() >= 30);
    site.github.hooks(|hooks| hooks.is_off = true);
    let reason = site.world.discarded("reconcile", &args(json!({"hook": HOOK}))).await;
    assert!(reason.contains("is switched off at GitHub"), "{reason}");
    site.github.hooks(|hooks| hooks.url = Some("https://elsewhere.example.com/hook".to_owned()));
    let reason = site.world.discarded("reconcile", &args(json!({}))).await;
    assert!(reason.contains("no webhook of acme/app leads to `/webhooks/github`"), "{reason}");
    let reason = site.world.discarded("reconcile", &args(json!({"hook": 5}))).await;
    assert!(reason.contains("404") && reason.contains("may administer webhooks"), "{reason}");
    site.world.close().await;
}

#[tokio::test]
async fn an_organisations_webhooks_are_reconciled_too() {
    let site = Site::open().await;
    site.miss("of-acme", 1).await;
    site.pass(A_WHILE).await;
    let output = site.reconcile(&json!({"of": "github", "organization": "acme"})).await;
    assert_eq!((&output["hooks"], &output["asked"]), (&json!(1), &json!(1)));
    site.has_events(1).await;
    site.world.close().await;
}

#[tokio::test]
async fn what_is_older_than_the_time_that_is_looked_back_is_left() {
    let site = Site::open().await;
    site.miss("old", 1).await;
    site.pass(A_WHILE).await;
    site.miss("new", 2).await;
    site.pass(Duration::from_mins(3)).await;
    let output = site.reconcile(&args(json!({"within": "5m"}))).await;
    assert_eq!((&output["looked_at"], &output["asked"]), (&json!(1), &json!(1)));
    assert_eq!(site.github.hooks(|hooks| hooks.asked.clone()), ["new"]);
    site.world.close().await;
}

#[tokio::test]
async fn only_so_many_are_asked_for_at_once_and_the_rest_by_the_next_job() {
    let site = Site::open().await;
    for number in 0..62 {
        site.miss(&format!("missed-{number}"), number).await;
    }
    site.pass(A_WHILE).await;
    let output = site.reconcile(&args(json!({}))).await;
    assert_eq!((&output["asked"], &output["waiting"]), (&json!(60), &json!(2)));
    site.has_events(60).await;
    let output = site.reconcile(&args(json!({}))).await;
    assert_eq!((&output["missing"], &output["asked"]), (&json!(2), &json!(2)));
    site.has_events(62).await;
    site.world.close().await;
}

#[tokio::test]
async fn a_source_is_reconciled_by_one_job_at_a_time() {
    let site = Site::open().await;
    let limits = |more: Value| site.world.new_job("reconcile", &args(more)).limits;
    let one = limits(json!({}));
    assert_eq!(one.len(), 1);
    assert_eq!(one[0].at_once.map(std::num::NonZeroU32::get), Some(1));
    assert_eq!(limits(json!({"hook": HOOK})), one, "whatever else it says");
    site.world.close().await;
}

#[tokio::test]
async fn what_may_be_on_its_way_is_not_asked_for() {
    let site = Site::open().await;
    site.miss("fresh", 1).await;
    site.pass(Duration::from_mins(1)).await;
    let output = site.reconcile(&args(json!({}))).await;
    assert_eq!((&output["missing"], &output["asked"], &output["waiting"]), (&json!(1), &json!(0), &json!(1)));
    site.pass(Duration::from_mins(1)).await;
    assert_eq!(site.reconcile(&args(json!({}))).await["asked"], 1);
    site.world.close().await;
}
