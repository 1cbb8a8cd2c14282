//! A gate before a database: stubs of Vercel and GitHub, a real `PostgreSQL` database, and a worker with a clock by hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use schemas::api::{JobView, RunView};
use schemas::runbook::{RunbookConfig, Start};
use schemas::{JobId, JobState, Key, Runbook};
use secrets::SecretText;
use serde_json::{Value, json};
use worker::WorldConfig;
use worker::databases::{DatabaseConfig, MigrationsConfig, Tool};
use worker::world::{Connections, GithubConnection, VercelConnection};

use crate::backup_world::BackupWorld;
use crate::migration_world::{Github, REPOSITORY, Target};
use crate::vercel::{PROJECT, TEAM, Vercel};

/// The gate's looks are so far apart.
pub const LOOK: Duration = Duration::from_secs(6);

/// Everything that a gate meets.
pub struct GateWorld {
    /// Vercel.
    pub vercel: Vercel,
    /// GitHub.
    pub github: Github,
    /// The database.
    pub target: Target,
    /// The worker.
    pub world: BackupWorld,
    config: WorldConfig,
}

impl GateWorld {
    /// A world with the runbook `deploy`: `plan`, then `migrate`.
    pub async fn start() -> Self {
        let deploy = json!({
            "inputs": {"ref": "git-sha", "url": "string"},
            "jobs": {
                "plan": {"job": "plan", "with": {"database": "main", "ref": "{{ inputs.ref }}"}},
                "migrate": {"job": "migrate", "needs": ["plan"], "with": {"database": "main", "ref": "{{ inputs.ref }}"}},
            },
        });
        Self::with(&deploy).await
    }

    /// A world with this runbook `deploy`.
    pub async fn with(deploy: &Value) -> Self {
        let (vercel, github, target) = (Vercel::default(), Github::default(), Target::postgres().await);
        let config = config(&vercel, &github, &target, deploy).await;
        let world = BackupWorld::by_hand(config.clone()).await;
        Self { vercel, github, target, world, config }
    }

    /// A production deployment from a new commit on `main` with these migrations; its id and its commit.
    pub fn deploy(&self, files: &[(&str, &str)]) -> (String, String) {
        let commit = self.github.commit(files);
        (self.vercel.deploy(Some("production"), &commit), commit)
    }

    /// The arguments of a gate before a deployment, for a run of the check.
    pub fn args(deployment: &str, check_run: &str, more: &Value) -> Value {
        let mut args = json!({
            "runbook": "deploy", "deployment": deployment, "project": PROJECT, "check_run": check_run,
        });
        args.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        args
    }

    /// Lets time pass until a gate has ended.
    pub async fn ended(&self, gate: JobId) -> JobView {
        let look = async || {
            let view = self.world.queue.ledger().job(gate).await.expect("read").expect("it is there");
            if view.state.is_finished() {
                return Some(view);
            }
            self.look_again(&view).await;
            None
        };
        crate::porter::eventually("the gate has ended", look).await
    }

    /// Lets time pass until the gate looks again, unless its run is just being worked at: that takes real time.
    pub async fn look_again(&self, gate: &JobView) {
        let runs = self.runs().await;
        let works =
            |run: &RunView| run.jobs.iter().any(|job| matches!(job.state, JobState::Available | JobState::Running));
        if matches!(gate.state, JobState::Scheduled | JobState::Retryable) && !runs.iter().any(works) {
            self.world.pass(LOOK).await;
        }
    }

    /// Waits until the gate waits for its run, and that for nothing but a paused kind.
    pub async fn waits(&self, gate: JobId) {
        self.world.wait_for(gate, &[JobState::Scheduled]).await;
        crate::porter::eventually("the plan is made", async || {
            let runs = self.runs().await;
            runs.last()?.jobs.iter().any(|job| job.state == JobState::Completed).then_some(())
        })
        .await;
    }

    /// Starts the run of a gate, as a gate does that dies before it can write so.
    pub async fn start_run_of(&self, gate: JobId, inputs: &Value) {
        let hold = Duration::from_hours(24);
        let key = Some(Key { scope: "gate".into(), key: format!("run of {gate}"), hold });
        let catalog = worker::jobs::registry().catalog(self.config.names());
        let (inputs, now) = (inputs.as_object().expect("an object"), self.world.queue.clock().now());
        let start = Start { key, ..Start::default() };
        let run = self.config.runbooks["deploy"].plan(inputs, start, &catalog, now).expect("a right run");
        let (_, bells) = self.world.queue.ledger().start(&run, now).await.expect("started");
        self.world.queue.ring(bells);
    }

    /// All runs, the oldest first.
    pub async fn runs(&self) -> Vec<RunView> {
        let mut runs = self.world.queue.ledger().runs(100).await.expect("read");
        runs.reverse();
        runs
    }

    /// The tables of the database that migrations made.
    pub async fn tables(&self) -> Vec<String> {
        let sql =
            "select tablename::text from pg_tables where schemaname = 'public' and tablename like 't%' order by 1";
        self.target.texts(sql).await
    }
}

async fn config(vercel: &Vercel, github: &Github, target: &Target, deploy: &Value) -> WorldConfig {
    let text = |text: &str| SecretText::parse(text).expect("a text");
    let github_at = GithubConnection { token: text(crate::migration_world::TOKEN), api_url: github.start().await };
    let vercel_at = VercelConnection {
        token: text(crate::vercel::TOKEN),
        team: Some(TEAM.to_owned()),
        api_url: vercel.start().await,
    };
    let migrations = MigrationsConfig {
        tool: Tool::Sql,
        path: "db/migrations".into(),
        repository: Some(REPOSITORY.into()),
        branch: None,
    };
    let main = DatabaseConfig { migrations: Some(migrations), ..crate::backup_world::database_config(&target.url()) };
    let app = json!({"deployments_of": PROJECT, "headers": {"x-vercel-protection-bypass": "canary-of-the-bypass"}});
    let mut config = WorldConfig {
        databases: BTreeMap::from([("main".to_owned(), main)]),
        connections: Connections { github: Some(github_at), vercel: Some(vercel_at) },
        credentials: [("bypass".to_owned(), serde_json::from_value(app).expect("credentials"))].into(),
        ..WorldConfig::default()
    };
    let catalog = worker::jobs::registry().catalog(config.names());
    let deploy: RunbookConfig = serde_json::from_value(deploy.clone()).expect("a runbook");
    let deploy = Runbook::build("deploy", &deploy, &catalog).expect("a right runbook");
    config.runbooks = Arc::new([("deploy".to_owned(), deploy)].into());
    config
}
