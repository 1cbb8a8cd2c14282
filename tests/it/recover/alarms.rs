//! Who is told that the ledger is not copied, and that it is again: once each, also where the process began anew between.

use std::path::PathBuf;
use std::time::Duration;

use queue::ledger::JobFilter;
use schemas::Names;
use secrets::Resolver;
use serde_json::json;
use tests::backup_world::{BackupWorld, store_config};
use tests::receiver::Receiver;
use tokio_util::sync::CancellationToken;
use worker::WorldConfig;
use worker::ledger_copies::{Copier, CopierConfig, CopyMetrics, NoticeOfCopies, STALE};

use super::*;

/// A store that can be taken away.
struct Safe(TempDir);

impl Safe {
    fn folder(&self) -> PathBuf {
        self.0.path().join("safe")
    }

    /// A file where its folder was.
    fn is_away(&self) {
        std::fs::rename(self.folder(), self.0.path().join("away")).unwrap();
        std::fs::write(self.folder(), "").unwrap();
    }

    fn is_back(&self) {
        std::fs::remove_file(self.folder()).unwrap();
        std::fs::rename(self.0.path().join("away"), self.folder()).unwrap();
    }

    fn has_copies(&self) -> bool {
        let lines = std::fs::read_dir(self.folder().join("nightporter-ledger")).into_iter().flatten().flatten();
        let mut files = lines.flat_map(|line| std::fs::read_dir(line.path()).into_iter().flatten().flatten());
        files.any(|file| file.file_name().to_string_lossy().ends_with(".copy.json"))
    }
}

/// A porter whose ledger is copied, and whom its channel `oncall` leads to.
struct Porter {
    world: BackupWorld,
    receiver: Receiver,
    safe: Safe,
}

impl Porter {
    async fn new() -> Self {
        let (receiver, safe) = (Receiver::start().await, Safe(TempDir::new().unwrap()));
        let channel = json!({"webhook": {"url": format!("{}/oncall", receiver.url), "secret": TEAM_SECRET}});
        let channels = [("oncall".to_owned(), serde_json::from_value(channel).unwrap())].into();
        let world = BackupWorld::of(WorldConfig { channels, ..WorldConfig::default() }).await;
        Self { world, receiver, safe }
    }

    fn copier(&self, stale_after: Duration) -> Copier {
        let names = Names { channels: ["oncall".to_owned()].into(), ..Names::default() };
        let notice: NoticeOfCopies = worker::notice::on_copies("oncall", worker::jobs::registry().catalog(names));
        Copier::new(CopierConfig {
            queue: self.world.queue.clone(),
            store_name: "safe".into(),
            store: store_config(&format!("file:{}", self.safe.folder().display())),
            secrets: Arc::new(Resolver::new(None)),
            every: Duration::ZERO,
            machine: "here".into(),
            stale_after,
            metrics: CopyMetrics::default(),
            notice: Some(notice),
        })
    }

    /// A process that ends at once: it looks once, and once more at its end.
    async fn lives_shortly(&self, stale_after: Duration) {
        let stop = CancellationToken::new();
        stop.cancel();
        self.copier(stale_after).run(stop).await;
    }

    /// What people were told, in order, when all of it has come.
    async fn told(&self, count: usize) -> Vec<(String, String)> {
        self.receiver.requested(count).await;
        let filter = JobFilter { limit: 100, ..JobFilter::default() };
        let all_said = async || {
            let jobs = self.world.queue.ledger().jobs(&filter).await.unwrap();
            jobs.iter().all(|job| job.state.is_finished()).then_some(())
        };
        eventually("all is said", all_said).await;
        let said = self.receiver.requests().into_iter().map(|request| request.body["data"].clone());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        said.map(|said| {
            assert_eq!(said["alarm"]["key"], "ledger copies", "{said}");
            (text(&said["alarm"]["action"]), text(&said["title"]))
        })
        .collect()
    }
}

fn stale() -> (String, String) {
    ("trigger".into(), "The ledger is not copied".into())
}

fn fresh() -> (String, String) {
    ("resolve".into(), "The ledger is copied again".into())
}

#[tokio::test]
async fn copies_that_are_too_old_are_an_alarm_and_fresh_ones_end_it() {
    let porter = Porter::new().await;
    let stop = CancellationToken::new();
    let copying = tokio::spawn(porter.copier(Duration::ZERO).run(stop.clone()));
    eventually("there is a copy", async || porter.safe.has_copies().then_some(())).await;
    porter.safe.is_away();
    assert_eq!(porter.told(1).await, [stale()]);
    porter.safe.is_back();
    assert_eq!(porter.told(2).await, [stale(), fresh()]);
    stop.cancel();
    copying.await.unwrap();
    assert_eq!(porter.told(2).await.len(), 2, "once each");
    porter.world.close().await;
}

#[tokio::test]
async fn a_copy_that_fails_is_no_alarm_before_the_last_one_is_too_old() {
    let porter = Porter::new().await;
    porter.lives_shortly(Duration::ZERO).await;
    assert!(porter.safe.has_copies());
    porter.safe.is_away();
    porter.lives_shortly(STALE).await;
    porter.safe.is_back();
    porter.lives_shortly(STALE).await;
    assert_eq!(porter.told(0).await, []);
    porter.world.close().await;
}

#[tokio::test]
async fn an_alarm_of_the_process_before_is_ended_by_the_next_that_copies() {
    let porter = Porter::new().await;
    porter.lives_shortly(STALE).await;
    porter.safe.is_away();
    porter.lives_shortly(Duration::ZERO).await;
    assert_eq!(porter.told(1).await, [stale()], "once, though it failed twice");
    porter.safe.is_back();
    for _ in 0..2 {
        porter.lives_shortly(STALE).await;
    }
    assert_eq!(porter.told(2).await, [stale(), fresh()]);
    porter.world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_porters_from_one_ledger_are_an_alarm_until_a_person_has_decided() {
    let (safe, receiver) = (TempDir::new().unwrap(), Receiver::start().await);
    let mut team = Team::copying_to(&format!("file:{}", safe.path().display()), "").await;
    let more = format!(
        "[channels.oncall]\nwebhook = {{ url = \"{}/\", secret = \"{TEAM_SECRET}\" }}\n[defaults]\non_failure = \"oncall\"\n",
        receiver.url
    );
    team.configuration.push_str(&more);
    let (old, new) = (team.machine(), team.machine());
    let first = old.start("up");
    deliver_all(&first, &commits(1..2)).await;
    team.copied(&delivery_of(&commits(1..2)[0]).to_string()).await;
    new.run(&["recover"]).exits(0);
    let second = new.start("up");
    receiver.requested(1).await;
    assert!(second.stop().success() && first.stop().success());
    old.run(&["recover", "--this-ledger"]).exits(0);
    let first = old.start("up");
    receiver.requested(2).await;
    assert!(first.stop().success());
    let said: Vec<Value> = receiver.requests().into_iter().map(|request| request.body["data"].clone()).collect();
    let alarm = |action: &str| json!({"key": "ledger copies", "action": action});
    assert_eq!(
        (&said[0]["title"], &said[0]["alarm"]),
        (&json!("Two porters go on from one ledger"), &alarm("trigger"))
    );
    assert_eq!((&said[1]["alarm"], said.len()), (&alarm("resolve"), 2), "{said:?}");
}
