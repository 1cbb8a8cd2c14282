//! A world in which secrets are rotated: a vault, a worker, and what they rotate.

use std::time::Duration;

use schemas::api::JobView;
use schemas::{JobId, JobState};
use secrets::ExposeSecret;
use secrets::vaults::{Label, Token};
use serde_json::{Value, json};
use worker::WorldConfig;
use worker::rotations::RotationConfig;
use worker::world::Connections;

use crate::backup_world::{BackupWorld, database_config};
use crate::vaults::TestVault;

/// A world with one rotation, `app`, of one secret.
pub struct RotationWorld {
    /// The vault.
    pub t: TestVault,
    /// The worker, with a clock that stands still until it is moved.
    pub world: BackupWorld,
    /// The secret's name in the vault.
    pub secret: String,
    /// The version that was current first.
    pub first: Token,
}

impl RotationWorld {
    /// The secret with this value, rotated as `rotation` says; and the database `main` at that address.
    pub async fn new(t: TestVault, value: &str, rotation: Value, database: Option<&str>) -> Self {
        let (secret, first) = t.secret(value).await;
        let config = config(&secret, rotation, database);
        let world = BackupWorld::with_vault_by_hand(config, t.vault.clone()).await;
        Self { t, world, secret, first }
    }

    /// The same, with connections to services.
    pub async fn connected(t: TestVault, value: &str, rotation: Value, connections: Connections) -> Self {
        let (secret, first) = t.secret(value).await;
        let config = WorldConfig { connections, ..config(&secret, rotation, None) };
        let world = BackupWorld::with_vault_by_hand(config, t.vault.clone()).await;
        Self { t, world, secret, first }
    }

    /// Lets time pass in small steps until the job has ended, doing something outside before each; how it ended.
    pub async fn drive(&self, job: JobId, meanwhile: impl AsyncFnMut()) -> JobView {
        self.drive_by(Duration::from_secs(50), job, meanwhile).await
    }

    /// The same, in steps of that length.
    pub async fn drive_by(&self, step: Duration, job: JobId, mut meanwhile: impl AsyncFnMut()) -> JobView {
        const ENDS: [JobState; 3] = [JobState::Completed, JobState::Discarded, JobState::Cancelled];
        const SLEEPS: [JobState; 2] = [JobState::Scheduled, JobState::Retryable];
        for _ in 0..2000 {
            let view = self.world.wait_for(job, &[ENDS.as_slice(), &SLEEPS].concat()).await;
            if ENDS.contains(&view.state) {
                return view;
            }
            meanwhile().await;
            self.world.pass(step).await;
        }
        panic!("it does not end: {:?}", self.world.queue.ledger().job(job).await);
    }

    /// The job's arguments.
    pub fn args() -> Value {
        json!({"rotation": "app"})
    }

    /// Starts a rotation.
    pub async fn start(&self) -> JobId {
        self.world.enqueue("rotate", &Self::args()).await
    }

    /// Waits until the new value of a rotation is current, and its overlap is waited for.
    pub async fn waits(&self, job: JobId) -> String {
        let ends = [JobState::Scheduled, JobState::Completed, JobState::Discarded, JobState::Retryable];
        let view = self.world.wait_for(job, &ends).await;
        assert_eq!(view.state, JobState::Scheduled, "{:?}", view.reason);
        view.reason.unwrap_or_default()
    }

    /// Rotates, and lets the overlap pass.
    pub async fn rotate(&self) -> Value {
        let job = self.start().await;
        self.waits(job).await;
        self.world.pass(Duration::from_hours(1)).await;
        self.world.completed(job).await
    }

    /// The value that is current.
    pub async fn current(&self) -> String {
        self.t.vault.current(&self.secret).await.expect("there is one").expose_secret().to_owned()
    }

    /// The version that has a label.
    pub async fn holder(&self, label: Label) -> Option<Token> {
        self.t.vault.describe(&self.secret).await.expect("it is there").holder(label).cloned()
    }

    /// The value of a job's new version.
    pub async fn value_of(&self, job: JobId) -> String {
        let value = self.t.vault.value(&self.secret, &Token::from(job.0)).await;
        value.expect("it is there").expose_secret().to_owned()
    }

    /// That everything is as before the first rotation.
    pub async fn is_as_before(&self) {
        let described = self.t.vault.describe(&self.secret).await.expect("it is there");
        assert_eq!(described.holder(Label::Current), Some(&self.first));
        assert_eq!(described.versions.len(), 1, "{described:?}");
    }

    /// Everything that the ledger holds, as text.
    pub async fn ledger(&self) -> String {
        let jobs = self.world.queue.ledger().jobs(&queue::ledger::JobFilter { limit: 100, ..Default::default() }).await;
        let mut all = String::new();
        for job in jobs.expect("the ledger answers") {
            let view = self.world.queue.ledger().job(job.id).await.expect("the ledger answers");
            all += &serde_json::to_string(&view).expect("JSON");
        }
        all
    }
}

/// A configuration with that rotation.
pub fn config(secret: &str, mut rotation: Value, database: Option<&str>) -> WorldConfig {
    rotation["secret"] = secret.into();
    let rotation: RotationConfig = serde_json::from_value(rotation).expect("a rotation");
    let databases = database.map(|url| ("main".to_owned(), database_config(url)));
    WorldConfig {
        databases: databases.into_iter().collect(),
        rotations: [("app".to_owned(), rotation)].into(),
        ..WorldConfig::default()
    }
}
