//! The jobs `plan` and `migrate`, through a worker.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::api::JobView;
use schemas::{JobId, JobState, NewRun, PlannedJob, RunId, TraceContext};
use secrets::SecretText;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tests::ledgers::ada;
use tests::migration_world::{Files, Github, REPOSITORY, SOON, TOKEN, Target, apply_pending};
use tests::porter::{LEASE, Porter, eventually};
use worker::databases::{DatabaseConfig, MigrationsConfig, Tool};
use worker::world::{Connections, GithubConnection};
use worker::{Context, Failure, Handler, Output, WorkerConfig, WorldConfig, jobs};

/// A porter with the database `main`, whose migrations are as given.
async fn porter(target: &Target, migrations: MigrationsConfig, github: Option<url::Url>) -> Porter {
    let url = SecretText::parse(&target.url()).unwrap();
    let main = DatabaseConfig { url, environment: None, migrations: Some(migrations), digests_up_to_mib: 0 };
    let token = SecretText::parse(TOKEN).unwrap();
    let world = WorldConfig {
        databases: BTreeMap::from([("main".to_owned(), main)]),
        connections: Connections {
            github: github.map(|api_url| GithubConnection { token, api_url }),
            ..Connections::default()
        },
        ..WorldConfig::default()
    };
    Porter::start_in(world, jobs::registry().with::<Hold>(), WorkerConfig { lease: LEASE, ..WorkerConfig::default() })
        .await
}

fn local(files: &Files) -> MigrationsConfig {
    let path = files.path().to_str().unwrap().to_owned();
    MigrationsConfig { tool: Tool::Sql, path, repository: None, branch: None }
}

fn remote(tool: Tool) -> MigrationsConfig {
    let (repository, branch) = (Some(REPOSITORY.into()), Some("main".into()));
    MigrationsConfig { tool, path: "db/migrations".into(), repository, branch }
}

/// Runs a job to its end.
async fn run(porter: &Porter, kind: &str, args: Value) -> JobView {
    let id = porter.enqueue(kind, args).await;
    ended(porter, id).await
}

/// A job that waits until a file is there.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Hold {
    until: PathBuf,
}

#[async_trait]
impl Handler for Hold {
    const KIND: &'static str = "hold";
    const SUMMARY: &'static str = "waits until a file is there";
    const RETRY: RetryPolicy = RetryPolicy::PROMPT;
    const TIME_LIMIT: Duration = Duration::from_mins(1);

    async fn run(&self, _: &Context) -> Result<Output, Failure> {
        if self.until.exists() {
            return Ok(Value::Null);
        }
        Err(Failure::Snooze { wait: Duration::from_millis(10), reason: "the file is not there".into() })
    }
}

/// Runs `plan` and then `migrate` in a run, with something in between; how both ended.
async fn run_both(porter: &Porter, args: &Value, between: impl AsyncFnOnce()) -> [JobView; 2] {
    let folder = tempfile::tempdir().unwrap();
    let sign = folder.path().join("go on");
    let planned = |kind: &str, needs: &[&str], args: &Value| PlannedJob {
        name: kind.into(),
        needs: needs.iter().map(|need| (*need).to_owned()).collect(),
        condition: None,
        job: porter.job(kind, args).unwrap(),
    };
    let jobs = vec![
        planned("plan", &[], args),
        planned("hold", &["plan"], &json!({"until": sign})),
        planned("migrate", &["plan", "hold"], args),
    ];
    let ids: Vec<JobId> = jobs.iter().map(|planned| planned.job.id).collect();
    let run = NewRun {
        id: RunId::at(porter.queue.clock().now()),
        runbook: "deploy".into(),
        inputs: json!({}),
        jobs,
        event: None,
        actor: None,
        reason: None,
        key: None,
        replay_of: None,
        trace: TraceContext::default(),
    };
    porter.queue.start_run(&run, &ada()).await.unwrap();
    let plan = ended(porter, ids[0]).await;
    between().await;
    std::fs::write(&sign, "").unwrap();
    [plan, ended(porter, ids[2]).await]
}

async fn ended(porter: &Porter, id: JobId) -> JobView {
    eventually("the job has ended", async || {
        let job = porter.queue.ledger().job(id).await.unwrap().unwrap();
        job.state.is_finished().then_some(job)
    })
    .await
}

fn output(job: &JobView) -> Value {
    assert_eq!(job.state, JobState::Completed, "{:?}", job.reason);
    job.output.clone().unwrap()
}

fn reason(job: &JobView) -> String {
    assert_eq!(job.state, JobState::Discarded, "{:?}", job.output);
    job.reason.clone().unwrap()
}

fn main_database() -> Value {
    json!({"database": "main"})
}

#[tokio::test]
async fn a_run_plans_applies_and_reports_and_the_next_one_finds_nothing_to_do() {
    for target in [Target::sqlite().await, Target::postgres().await] {
        let files = Files::of(&[
            ("1_a.sql", "create table a (id int);"),
            ("2_b.sql", "alter table a rename to b;"),
            ("notes.md", ""),
        ]);
        let mut porter = porter(&target, local(&files), None).await;
        let [plan, migrate] = run_both(&porter, &main_database(), async || {}).await;
        let (plan, migrate) = (output(&plan), output(&migrate));
        assert_eq!(
            (&plan["pending"], &plan["risk"], &plan["names"]),
            (&json!(2), &json!("additive"), &json!(["1_a.sql", "2_b.sql"]))
        );
        assert_eq!(plan["statements"][1]["statement"], "alter table a rename to b");
        assert_eq!(plan["ignored"], json!(["notes.md: not SQL"]));
        assert_eq!((&migrate["applied"], &migrate["count"]), (&plan["names"], &json!(2)));
        assert_eq!(migrate["last_five"][0]["name"], "2_b.sql");
        assert_eq!(migrate["hash"], plan["hash"]);

        let [plan, migrate] = run_both(&porter, &main_database(), async || {}).await;
        let (plan, migrate) = (output(&plan), output(&migrate));
        assert_eq!((&plan["pending"], &plan["risk"], &plan["superseded"]), (&json!(0), &json!("none"), &json!(false)));
        assert_eq!((&migrate["count"], migrate["last_five"].as_array().unwrap().len()), (&json!(0), 2));
        porter.stop().await;
    }
}

#[tokio::test]
async fn every_name_that_conditions_may_use_is_in_the_output() {
    let files = Files::of(&[("1_a.sql", "create table a (id int);")]);
    let target = Target::sqlite().await;
    let mut porter = porter(&target, local(&files), None).await;
    let catalog = jobs::registry().catalog(schemas::Names::default());
    for (kind, job) in ["plan", "migrate"].iter().zip(run_both(&porter, &main_database(), async || {}).await) {
        let keys = |value: Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(keys((catalog.kind(kind).unwrap().output)()), keys(output(&job)));
    }
    porter.stop().await;
}

#[tokio::test]
async fn what_has_been_applied_of_the_plan_meanwhile_is_not_applied_again() {
    let files = Files::of(&[("1_a.sql", "create table a (id int);"), ("2_b.sql", "create table b (id int);")]);
    let first = Files::of(&[("1_a.sql", "create table a (id int);")]);
    for done in [&first, &files] {
        let target = Target::sqlite().await;
        let mut porter = porter(&target, local(&files), None).await;
        let [plan, migrate] = run_both(&porter, &main_database(), async || {
            apply_pending(&target, done, Tool::Sql, SOON).await.unwrap();
        })
        .await;
        assert_eq!(output(&migrate)["hash"], output(&plan)["hash"]);
        assert!(apply_pending(&target, &files, Tool::Sql, SOON).await.unwrap().is_empty());
        porter.stop().await;
    }
}

#[tokio::test]
async fn what_was_not_planned_is_not_applied() {
    for (path, text) in [("2_b.sql", "create table other (id int);"), ("3_c.sql", "create table c (id int);")] {
        let target = Target::sqlite().await;
        let files = Files::of(&[("1_a.sql", "create table a (id int);"), ("2_b.sql", "create table b (id int);")]);
        let mut porter = porter(&target, local(&files), None).await;
        let [plan, migrate] = run_both(&porter, &main_database(), async || files.write(path, text)).await;
        assert!(reason(&migrate).contains("start the run again"), "{}", reason(&migrate));
        let hash = output(&plan)["hash"].clone();
        let by_hash = run(&porter, "migrate", json!({"database": "main", "plan": hash})).await;
        assert!(reason(&by_hash).contains("start the run again"));
        assert!(target.texts("select name from sqlite_schema where name = 'a'").await.is_empty());
        porter.stop().await;
    }
}

#[tokio::test]
async fn a_plan_given_by_its_hash_is_applied() {
    let target = Target::sqlite().await;
    let files = Files::of(&[("1_a.sql", "create table a (id int);")]);
    let mut porter = porter(&target, local(&files), None).await;
    let hash = output(&run(&porter, "plan", main_database()).await)["hash"].clone();
    let migrated = output(&run(&porter, "migrate", json!({"database": "main", "plan": hash})).await);
    assert_eq!((&migrated["applied"], &migrated["hash"]), (&json!(["1_a.sql"]), &hash));
    porter.stop().await;
}

#[tokio::test]
async fn two_jobs_at_once_apply_each_migration_once() {
    let target = Target::sqlite().await;
    let files = Files::of(&[("1_a.sql", "create table a (id int);"), ("2_b.sql", "insert into a values (1);")]);
    let mut porter = porter(&target, local(&files), None).await;
    let (first, second) =
        tokio::join!(run(&porter, "migrate", main_database()), run(&porter, "migrate", main_database()));
    assert_eq!(output(&first)["count"].as_u64().unwrap() + output(&second)["count"].as_u64().unwrap(), 2);
    assert_eq!(target.texts("select cast(id as text) from a").await, ["1"]);
    porter.stop().await;
}

#[tokio::test]
async fn a_file_that_fails_ends_the_job_and_a_corrected_one_goes_on() {
    let target = Target::postgres().await;
    let files =
        Files::of(&[("1_a.sql", "create table a (id int);"), ("2_b.sql", "create table b (id int);\nselect wrong;")]);
    let mut porter = porter(&target, local(&files), None).await;
    let said = reason(&run(&porter, "migrate", main_database()).await);
    assert!(
        said.contains("`2_b.sql` failed (2_b.sql, line 2)") && said.contains("Nothing of this file remains"),
        "{said}"
    );
    files.write("2_b.sql", "create table b (id int);");
    assert_eq!(output(&run(&porter, "migrate", main_database()).await)["applied"], json!(["2_b.sql"]));
    porter.stop().await;
}

#[tokio::test]
async fn a_late_older_commit_is_superseded_and_a_diverged_one_refused() {
    let (github, target) = (Github::default(), Target::postgres().await);
    let api = github.start().await;
    let one = ("1_a.sql", "create table a (id int);");
    let two = ("2_b.sql", "create table b (id int);");
    let older = github.commit(&[one]);
    let newer = github.commit(&[one, two]);
    let other = github.commit(&[one, ("3_c.sql", "create table c (id int);")]);
    let edited = github.commit(&[("1_a.sql", "create table a (id bigint);"), two]);
    let beside = github.commit_beside(&[one, two]);
    let mut porter = porter(&target, remote(Tool::Sqlx), Some(api)).await;
    let of = |commit: &str| json!({"database": "main", "ref": commit});

    let [plan, migrate] = run_both(&porter, &of(&newer), async || {}).await;
    assert_eq!((&output(&plan)["pending"], &output(&migrate)["count"]), (&json!(2), &json!(2)));
    let [plan, migrate] = run_both(&porter, &of(&older), async || {}).await;
    for late in [output(&plan), output(&migrate)] {
        assert_eq!((&late["superseded"], &late["by"]), (&json!(true), &json!(["2_b"])));
    }
    for (commit, why) in
        [(&other, "diverged"), (&edited, "changed after they were applied: `1_a`"), (&beside, "not on the branch")]
    {
        for kind in ["plan", "migrate"] {
            let said = reason(&run(&porter, kind, of(commit)).await);
            assert!(said.contains(why) && !said.contains("canary"), "{said}");
        }
    }
    for short in [json!({"database": "main"}), of("main"), of(&newer[..12])] {
        assert!(reason(&run(&porter, "plan", short).await).contains("whole commit hash"));
    }
    porter.stop().await;
}

#[tokio::test]
async fn a_database_and_a_commit_have_one_migration() {
    let (github, target) = (Github::default(), Target::postgres().await);
    let api = github.start().await;
    let commit = github.commit(&[("1_a.sql", "create table a (id int);")]);
    let mut porter = porter(&target, remote(Tool::Sqlx), Some(api)).await;
    let args = json!({"database": "main", "ref": commit});
    let first = porter.enqueue("migrate", args.clone()).await;
    assert_eq!(porter.enqueue("migrate", args).await, first);
    output(&ended(&porter, first).await);
    let unknown = porter.job("migrate", &json!({"database": "mian"})).unwrap_err();
    assert_eq!(unknown.to_string(), "database: there is no database named `mian` (did you mean `main`?)");
    porter.stop().await;
}

#[tokio::test]
async fn a_limit_of_github_is_a_retry_and_not_the_end() {
    let (github, target) = (Github::default(), Target::postgres().await);
    let api = github.start().await;
    let commit = github.commit(&[("1_a.sql", "create table a (id int);")]);
    github.answer_first(axum::http::StatusCode::TOO_MANY_REQUESTS, &[("retry-after", "1")]);
    let mut porter = porter(&target, remote(Tool::Sqlx), Some(api)).await;
    let job = run(&porter, "plan", json!({"database": "main", "ref": commit})).await;
    assert_eq!((job.attempts.len(), &output(&job)["pending"]), (2, &json!(1)));
    porter.stop().await;
}
