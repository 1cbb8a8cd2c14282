//! The secrets of our own sources: a door that takes deliveries in all the while, and a stub of GitHub whose hook signs them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use producer::{Door, DoorConfig, Routes, Sources, Spool, SpoolLimits, Startable};
use schemas::{JobId, JobState};
use secrets::vaults::{Label, Token};
use secrets::{Resolver, SecretText};
use serde_json::{Value, json};
use tests::github_secrets::{HOOK, Outgoing, Secrets};
use tests::line::{Line, Wrong};
use tests::migration_world::{Github, REPOSITORY, TOKEN};
use tests::rotation_world::RotationWorld;
use tests::vaults::TestVault;
use tokio_util::task::AbortOnDropHandle;
use worker::world::{Connections, GithubConnection};

const FIRST: &str = "the-first-canary";

/// How long the world sleeps between looks.
const STEP: Duration = Duration::from_secs(10);
/// How long what the door knows of the vault stays fresh.
const FRESH: Duration = Duration::from_secs(30);

struct Scene {
    github: Github,
    line: Line,
    w: RotationWorld,
    door: Arc<Resolver>,
    /// How long ago the door asked the vault.
    age: Duration,
    _serving: AbortOnDropHandle<()>,
}

/// Rings at the door without an end, as GitHub does; whether it was ever turned away.
struct Ringing {
    refused: Arc<AtomicBool>,
    _ringing: AbortOnDropHandle<()>,
}

impl Scene {
    async fn new() -> Self {
        Self::with(json!([{"repository": REPOSITORY, "id": HOOK}])).await
    }

    async fn with(hooks: Value) -> Self {
        let github = Github::default();
        let line = Line::to(github.start().await.as_str()).await;
        let webhook = json!({"source": "github", "field": "webhook", "github": hooks});
        let rotation = json!({"webhook": webhook, "within": "1h", "overlap": "30m"});
        let connection = GithubConnection { token: SecretText::parse(TOKEN).unwrap(), api_url: line.url.clone() };
        let connections = Connections { github: Some(connection), ..Connections::default() };
        let value = json!({"webhook": FIRST, "token": "another"}).to_string();
        let w = RotationWorld::connected(TestVault::file().await, &value, rotation, connections).await;
        let door = Arc::new(Resolver::new(Some(w.t.vault.clone())));
        let (url, serving) = open_door(&w, &door).await;
        github.secrets(|it| {
            it.hook["url"] = json!(format!("{url}/webhooks/github"));
            it.hook["secret"] = json!(FIRST);
        });
        Self { github, line, w, door, age: Duration::ZERO, _serving: serving }
    }

    /// A delivery of the hook as it is now; the answer.
    async fn deliver(&self) -> StatusCode {
        let delivery = self.github.secrets(push);
        delivery.send(&tests::backup_world::http()).await.unwrap()
    }

    /// A delivery that is signed with this secret.
    async fn deliver_signed_with(&self, secret: &str) -> StatusCode {
        let delivery = self.github.secrets(|it| {
            let now = std::mem::replace(&mut it.hook["secret"], json!(secret));
            let delivery = push(it);
            it.hook["secret"] = now;
            delivery
        });
        delivery.send(&tests::backup_world::http()).await.unwrap()
    }

    fn ring(&self) -> Ringing {
        let (refused, github) = (Arc::new(AtomicBool::new(false)), self.github.clone());
        let told = Arc::clone(&refused);
        let ringing = tokio::spawn(async move {
            let http = tests::backup_world::http();
            loop {
                let answer = github.secrets(push).send(&http).await;
                if answer != Some(StatusCode::ACCEPTED) {
                    told.store(true, Ordering::SeqCst);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Ringing { refused, _ringing: AbortOnDropHandle::new(ringing) }
    }

    /// Lets time pass until the job has ended. The door asks the vault again only when what it knows is no longer fresh.
    async fn drive(&mut self, job: JobId) -> schemas::api::JobView {
        let (door, secret, age) = (Arc::clone(&self.door), self.w.secret.clone(), &mut self.age);
        let view = self.w.drive_by(STEP, job, async || {
            *age += STEP;
            if *age >= FRESH {
                door.forget(&secret);
                *age = Duration::ZERO;
            }
        });
        view.await
    }

    async fn new_secret(&self, job: JobId) -> String {
        let value: Value = serde_json::from_str(&self.w.value_of(job).await).unwrap();
        assert_eq!(value["token"], "another");
        value["webhook"].as_str().unwrap().to_owned()
    }

    fn hook_secrets(&self) -> Vec<String> {
        self.github.secrets(|it| it.hook_secrets.clone())
    }
}

fn push(hub: &mut Secrets) -> Outgoing {
    let body = json!({
        "ref": "refs/heads/main", "before": "a", "after": "b", "commits": [], "repository": {"full_name": REPOSITORY},
    });
    hub.delivery("push", &body)
}

/// A door that takes in what the source `github` sends; its address.
async fn open_door(w: &RotationWorld, resolver: &Arc<Resolver>) -> (String, AbortOnDropHandle<()>) {
    let reference = SecretText::parse(&format!("${{vault:{}#webhook}}", w.secret)).unwrap();
    let source = producer::SourceConfig { kind: None, secrets: vec![reference], silent_after: None };
    let sources = Sources::build(&BTreeMap::from([("github".to_owned(), source)])).ok().unwrap();
    let catalog = Arc::new(worker::jobs::registry().catalog(schemas::Names::default()));
    let startable = Startable { catalog, runbooks: Arc::default() };
    let door = Door::new(DoorConfig {
        queue: w.world.queue.clone(),
        routes: Routes::build(&[], &startable, &sources).unwrap(),
        sources,
        startable,
        resolver: Arc::clone(resolver),
        config_digest: "digest".into(),
        spool: Spool::open(&w.world.folder.path().join("spool"), SpoolLimits::default()).unwrap(),
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, door.router()).await.unwrap() });
    (url, AbortOnDropHandle::new(serving))
}

#[tokio::test]
async fn no_delivery_is_refused_while_a_hooks_secret_is_rotated_and_the_old_one_is_forgotten_after_it() {
    let mut scene = Scene::new().await;
    assert_eq!(scene.deliver().await, StatusCode::ACCEPTED);
    let ringing = scene.ring();
    let job = scene.w.start().await;
    let view = scene.drive(job).await;
    assert_eq!(view.state, JobState::Completed, "{:?}", view.reason);
    assert!(!ringing.refused.load(Ordering::SeqCst), "a delivery was refused");
    drop(ringing);
    let new = scene.new_secret(job).await;
    assert_eq!(scene.hook_secrets(), std::slice::from_ref(&new), "it was set once, and never taken away");
    assert_eq!(scene.github.secrets(|it| it.hook["content_type"].clone()), "json", "nothing else was changed");
    assert_eq!(scene.w.holder(Label::Previous).await, None);
    assert_eq!(scene.w.holder(Label::Current).await, Some(Token::from(job.0)));
    scene.door.forget(&scene.w.secret);
    assert_eq!(scene.deliver().await, StatusCode::ACCEPTED);
    assert_eq!(scene.deliver_signed_with(FIRST).await, StatusCode::UNAUTHORIZED);
    let ledger = scene.w.ledger().await;
    assert!(!ledger.contains(&new) && !ledger.contains("canary"), "{ledger}");
    scene.w.world.close().await;
}

#[tokio::test]
async fn the_hook_of_an_organisation_is_rotated_too() {
    let mut scene = Scene::with(json!([{"organization": "acme", "id": HOOK}])).await;
    let job = scene.w.start().await;
    let view = scene.drive(job).await;
    assert_eq!(view.state, JobState::Completed, "{:?}", view.reason);
    let new = scene.new_secret(job).await;
    assert_eq!(scene.hook_secrets(), [new]);
    let asked = scene.line.requests();
    assert!(!asked.is_empty() && asked.iter().all(|path| path.contains("/orgs/acme/hooks/")), "{asked:?}");
    scene.w.world.close().await;
}

#[tokio::test]
async fn killed_at_each_request_or_unanswered_or_limited_no_delivery_is_refused_and_it_gets_through() {
    let mut scene = Scene::new().await;
    let job = scene.w.start().await;
    assert_eq!(scene.drive(job).await.state, JobState::Completed);
    let requests = scene.line.requests().len();
    scene.w.world.close().await;
    assert!(requests >= 3, "{requests}");
    let limited = Wrong::Answered(StatusCode::TOO_MANY_REQUESTS, vec![("retry-after", "7")], r#"{"message": "slow"}"#);
    for wrong in [Wrong::Held, Wrong::Lost, Wrong::Broken, limited] {
        for number in 1..=requests {
            let mut scene = Scene::new().await;
            assert_eq!(scene.deliver().await, StatusCode::ACCEPTED);
            let ringing = scene.ring();
            scene.line.at(number, wrong.clone());
            let job = scene.w.start().await;
            if matches!(wrong, Wrong::Held) {
                killed_when_it_goes_wrong(&mut scene, job).await;
            }
            let view = scene.drive(job).await;
            // Deliveries that come meanwhile may prove it before a ping is asked for.
            assert!(scene.line.went_wrong() || number > 2, "{wrong:?} {number}");
            assert_eq!(view.state, JobState::Completed, "{wrong:?} {number}: {:?}", view.reason);
            assert!(!ringing.refused.load(Ordering::SeqCst), "{wrong:?} {number}: a delivery was refused");
            let new = scene.new_secret(job).await;
            assert!(scene.hook_secrets().iter().all(|secret| *secret == new), "{wrong:?} {number}");
            scene.w.world.close().await;
        }
    }
}

async fn killed_when_it_goes_wrong(scene: &mut Scene, job: JobId) {
    for _ in 0..600 {
        let wrong = scene.line.has_gone_wrong();
        let sleeps = scene.w.world.wait_for(job, &[JobState::Scheduled, JobState::Retryable, JobState::Completed]);
        tokio::select! {
            () = wrong => break,
            view = sleeps => if view.state == JobState::Completed { break },
        }
        scene.age += STEP;
        if scene.age >= FRESH {
            scene.door.forget(&scene.w.secret);
            scene.age = Duration::ZERO;
        }
        scene.w.world.pass(STEP).await;
    }
    scene.w.world.stop_worker().await;
    scene.w.world.start_worker();
}

#[tokio::test]
async fn a_secret_that_no_delivery_proves_is_taken_back_and_none_is_refused_on_the_way() {
    let mut scene = Scene::new().await;
    assert_eq!(scene.deliver().await, StatusCode::ACCEPTED);
    scene.github.secrets(|it| it.mute = true);
    let job = scene.w.start().await;
    let view = scene.drive(job).await;
    let reason = view.reason.unwrap_or_default();
    assert!(reason.contains("not proven within 1h") && reason.contains("everything was taken back"), "{reason}");
    let secrets = scene.hook_secrets();
    assert_eq!((secrets.len(), secrets.last().map(String::as_str)), (2, Some(FIRST)), "set, and set back");
    // What was signed with the new one before that may be on its way still.
    let view = scene.w.world.queue.ledger().job(job).await.unwrap().unwrap();
    let at = |name: &str| view.steps.iter().find(|step| step.name == name).and_then(|step| step.finished_at).unwrap();
    assert!(at("drop the pending version") - at("restore") >= chrono::TimeDelta::minutes(2), "{:?}", view.steps);
    scene.w.is_as_before().await;
    assert_eq!(scene.deliver().await, StatusCode::ACCEPTED);
    scene.door.forget(&scene.w.secret);
    assert_eq!(scene.deliver_signed_with(&secrets[0]).await, StatusCode::UNAUTHORIZED);
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_delivery_signed_with_the_old_secret_proves_nothing() {
    let mut scene = Scene::new().await;
    assert_eq!(scene.deliver().await, StatusCode::ACCEPTED);
    // GitHub says that it set the secret, and goes on signing with the old one.
    scene.line.next("PATCH", Wrong::Answered(StatusCode::OK, vec![], "{}"));
    let ringing = scene.ring();
    let job = scene.w.start().await;
    let view = scene.drive(job).await;
    assert!(view.reason.unwrap_or_default().contains("not proven within 1h"));
    assert!(!ringing.refused.load(Ordering::SeqCst), "a delivery was refused");
    assert!(scene.github.secrets(|it| it.pings) > 1);
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_hook_of_another_address_is_left_alone() {
    let mut scene = Scene::new().await;
    scene.github.secrets(|it| it.hook["url"] = json!("https://elsewhere.example.com/webhooks/vercel"));
    let job = scene.w.start().await;
    let view = scene.drive(job).await;
    let reason = view.reason.unwrap_or_default();
    assert!(reason.contains("/webhooks/github") && reason.contains("everything was taken back"), "{reason}");
    assert_eq!(scene.hook_secrets().len(), 0);
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}

#[tokio::test]
async fn what_a_sender_makes_itself_is_handed_in_and_proven_by_a_delivery() {
    let mut scene = Scene::with(json!([])).await;
    assert_eq!(scene.deliver().await, StatusCode::ACCEPTED);
    let job = scene.w.start().await;
    let reason = scene.w.waits(job).await;
    assert!(reason.contains(&format!("secrets put {} --field webhook --pending {job}", scene.w.secret)), "{reason}");
    let handed_in = json!({"webhook": "made-by-the-sender", "token": "another"}).to_string();
    scene.w.t.vault.put_pending(&scene.w.secret, &Token::from(job.0), &handed_in.as_str().into()).await.unwrap();
    let (door, secret) = (Arc::clone(&scene.door), scene.w.secret.clone());
    let github = scene.github.clone();
    let mut age = Duration::ZERO;
    let view = scene.w.drive_by(STEP, job, async || {
        age += STEP;
        if age >= FRESH {
            door.forget(&secret);
            age = Duration::ZERO;
        }
        let answer = github.secrets(push).send(&tests::backup_world::http()).await;
        assert_eq!(answer, Some(StatusCode::ACCEPTED));
        let view = scene.w.world.queue.ledger().job(job).await.unwrap().unwrap();
        if view.reason.is_some_and(|reason| reason.contains("waiting for a delivery to `github`")) {
            github.secrets(|it| it.hook["secret"] = json!("made-by-the-sender"));
        }
    });
    assert_eq!(view.await.state, JobState::Completed);
    assert_eq!(scene.new_secret(job).await, "made-by-the-sender");
    assert_eq!(scene.github.secrets(|it| it.hook["secret"].clone()), "made-by-the-sender", "a delivery proved it");
    scene.age = age;
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_delivery_of_another_hook_proves_nothing_of_this_one() {
    let mut scene = Scene::new().await;
    scene.github.secrets(|it| it.mute = true);
    let job = scene.w.start().await;
    let (door, secret, github) = (Arc::clone(&scene.door), scene.w.secret.clone(), scene.github.clone());
    let (mut age, mut delivered) = (Duration::ZERO, false);
    let view = scene.w.drive_by(STEP, job, async || {
        age += STEP;
        if age >= FRESH {
            door.forget(&secret);
            age = Duration::ZERO;
        }
        if !delivered && github.secrets(|it| it.hook_secrets.len()) == 1 {
            let mut other = github.secrets(push);
            let hook = other.headers.iter_mut().find(|(name, _)| *name == "x-github-hook-id").unwrap();
            hook.1 = "1".to_owned();
            assert_eq!(other.send(&tests::backup_world::http()).await, Some(StatusCode::ACCEPTED));
            delivered = true;
        }
    });
    let reason = view.await.reason.unwrap_or_default();
    assert!(reason.contains("not proven within 1h") && delivered, "{reason}");
    scene.age = age;
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_hook_that_is_off_is_left_alone() {
    let mut scene = Scene::new().await;
    let off = r#"{"active": false, "config": {"url": "https://porter.example.com/webhooks/github"}}"#;
    scene.line.next("GET", Wrong::Answered(StatusCode::OK, vec![], off));
    let job = scene.w.start().await;
    let reason = scene.drive(job).await.reason.unwrap_or_default();
    assert!(reason.contains("is not active") && reason.contains("everything was taken back"), "{reason}");
    assert_eq!(scene.hook_secrets().len(), 0);
    scene.w.world.close().await;
}

#[tokio::test]
async fn what_github_refuses_to_set_is_not_set_back() {
    let mut scene = Scene::new().await;
    scene.line.next("PATCH", Wrong::Answered(StatusCode::FORBIDDEN, vec![], r#"{"message": "Forbidden"}"#));
    let job = scene.w.start().await;
    let reason = scene.drive(job).await.reason.unwrap_or_default();
    assert!(reason.contains("`webhooks: write`") && reason.contains("everything was taken back"), "{reason}");
    assert_eq!(scene.line.count("PATCH"), 1);
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}

#[tokio::test]
async fn a_secret_that_is_current_and_handed_in_again_is_no_new_one() {
    let mut scene = Scene::with(json!([])).await;
    let job = scene.w.start().await;
    scene.w.waits(job).await;
    let same = json!({"webhook": FIRST, "token": "another"}).to_string();
    scene.w.t.vault.put_pending(&scene.w.secret, &Token::from(job.0), &same.as_str().into()).await.unwrap();
    let reason = scene.drive(job).await.reason.unwrap_or_default();
    assert!(reason.contains("is the secret that is current") && reason.contains("was taken back"), "{reason}");
    scene.w.is_as_before().await;
    scene.w.world.close().await;
}
