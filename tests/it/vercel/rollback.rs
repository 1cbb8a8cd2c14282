//! `rollback`: the emergency backup, the domains, and what people must know afterwards, with everything going wrong.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use schemas::api::JobView;
use schemas::{JobId, JobState};
use secrets::SecretText;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::backup_world::{BackupWorld, database_config, has_the_names_of, http, store_config};
use tests::migration_world::{Files, Github, REPOSITORY, SOON, TOKEN, Target, apply_pending};
use tests::porter::eventually;
use tests::vercel::{DOMAINS, Fault, OWN_COMMIT, PROJECT, PROJECT_NAME, TEAM};
use worker::WorldConfig;
use worker::databases::{MigrationsConfig, Tool};
use worker::world::{Connections, GithubConnection, VercelConnection};

const SOON_AGAIN: Duration = Duration::from_secs(20);

/// A project with two deployments, of which the newer one serves, and a database.
struct Site {
    world: BackupWorld,
    vercel: tests::vercel::Vercel,
    api: url::Url,
    github: Github,
    target: Target,
    folder: TempDir,
    old: String,
    new: String,
}

impl Site {
    async fn open() -> Self {
        let (github, vercel) = (Github::default(), tests::vercel::Vercel::default());
        let commit = github.commit(&[("0001_users.sql", "create table users (id integer primary key);")]);
        let (target, folder) = (Target::sqlite().await, tempfile::tempdir().unwrap());
        target.run("create table sessions (id integer primary key)").await;
        let mut main = database_config(&target.url());
        let (repository, path) = (Some(REPOSITORY.to_owned()), "db/migrations".to_owned());
        main.migrations = Some(MigrationsConfig { tool: Tool::Sql, path, repository, branch: None });
        let token = |text| SecretText::parse(text).unwrap();
        let api = vercel.start().await;
        let connections = Connections {
            github: Some(GithubConnection { token: token(TOKEN), api_url: github.start().await }),
            vercel: Some(VercelConnection {
                token: token(tests::vercel::TOKEN),
                team: Some(TEAM.to_owned()),
                api_url: api.clone(),
            }),
        };
        let nightly = store_config(&format!("file:{}", folder.path().display()));
        let config = WorldConfig {
            databases: [("main".to_owned(), main)].into(),
            stores: [("nightly".to_owned(), nightly)].into(),
            connections,
            ..WorldConfig::default()
        };
        let world = BackupWorld::by_hand(config).await;
        let old = vercel.deploy(Some("production"), &commit);
        vercel.promote(&old);
        let new = vercel.deploy(Some("production"), OWN_COMMIT);
        vercel.promote_by_hand(&new);
        Self { world, vercel, api, github, target, folder, old, new }
    }

    /// Without a backup, and so without a database.
    fn bare(&self, more: Value) -> Value {
        let mut args = json!({"project": PROJECT_NAME, "deployment": self.old, "without_backup": "a test"});
        args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        args
    }

    /// Waits until the job sleeps after so many attempts.
    async fn sleeps(&self, job: JobId, attempts: usize) -> JobView {
        eventually("it sleeps", async || {
            let view = self.world.queue.ledger().job(job).await.unwrap().unwrap();
            assert!(!view.state.is_finished(), "{:?} {:?}", view.state, view.reason);
            let asleep = matches!(view.state, JobState::Scheduled | JobState::Retryable);
            (asleep && view.attempts.len() >= attempts).then_some(view)
        })
        .await
    }

    /// Vercel has done it; the job's output.
    async fn finished(&self, job: JobId) -> Value {
        self.vercel.finish_move("succeeded");
        self.world.pass(SOON_AGAIN).await;
        self.world.completed(job).await
    }

    fn asked(&self) -> usize {
        self.vercel.count(&Method::POST, "rollback")
    }

    /// Asks as the job does, behind its back.
    async fn ask(&self) {
        let path = format!("/v1/projects/{PROJECT}/rollback/{}?teamId={TEAM}", self.old);
        let request = http().post(self.api.join(&path).unwrap()).bearer_auth(tests::vercel::TOKEN);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::CREATED);
    }

    fn aim(&self) -> Value {
        let before = self.vercel.hub(|hub| hub.project(PROJECT).unwrap()["lastAliasRequest"]["requestedAt"].clone());
        json!({
            "project": PROJECT, "name": PROJECT_NAME, "deployment": self.old, "url": "x", "commit": null,
            "from": self.new, "before": before,
        })
    }

    fn backups(&self) -> usize {
        fn manifests(folder: &std::path::Path) -> usize {
            let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
            files.map(|path| if path.is_dir() { manifests(&path) } else { is_manifest(&path).into() }).sum()
        }
        fn is_manifest(path: &std::path::Path) -> bool {
            path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("manifest.json"))
        }
        manifests(self.folder.path())
    }
}

#[tokio::test]
async fn it_makes_a_backup_moves_the_domains_and_says_what_the_older_code_does_not_know() {
    let site = Site::open().await;
    let files = Files::of(&[
        ("0001_users.sql", "create table users (id integer primary key);"),
        ("0002_mail.sql", "alter table users add column mail text;"),
    ]);
    apply_pending(&site.target, &files, Tool::Sql, SOON).await.unwrap();
    let args = json!({
        "project": PROJECT_NAME, "deployment": site.old, "database": "main", "store": "nightly",
        "reason": "the checkout is broken",
    });
    let job = site.world.enqueue("rollback", &args).await;
    let view = site.sleeps(job, 1).await;
    assert_eq!(view.attempts[0].outcome.as_deref(), Some("snoozed"), "Vercel is waited for at no cost");
    assert_eq!(site.backups(), 1, "the backup is there before anything moves");
    let asked = site.vercel.requests().into_iter().find(|it| it.method == Method::POST).unwrap();
    assert_eq!(asked.path, format!("v1/projects/{PROJECT}/rollback/{}", site.old));
    assert_eq!(asked.query["description"], "the checkout is broken");
    let output = site.finished(job).await;
    has_the_names_of("rollback", &output);
    assert_eq!(output["domains"], json!(DOMAINS));
    assert_eq!((&output["from"], &output["pinned"]), (&json!(site.new), &json!(true)));
    assert_eq!(output["migrations_since"], json!(["0002_mail.sql"]));
    assert_eq!(output["unknown"], Value::Null);
    let backup = output["backup"].as_str().unwrap();
    let manifest = std::fs::read_to_string(site.folder.path().join(backup)).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["tier"], "before_migration", "no retention takes it for a nightly one");
    assert!(backup.starts_with("main/"), "{output}");
    let summary = output["summary"].as_str().unwrap();
    assert!(summary.contains("until somebody promotes one") && summary.contains("0002_mail"), "{summary}");
    assert_eq!((site.asked(), site.backups()), (1, 1));
    site.world.close().await;
}

#[tokio::test]
async fn without_a_deployment_it_is_the_one_that_served_before() {
    let site = Site::open().await;
    let staged = site.vercel.deploy(Some("production"), OWN_COMMIT);
    let mut args = site.bare(json!({}));
    args.as_object_mut().unwrap().remove("deployment");
    let job = site.world.enqueue("rollback", &args).await;
    site.sleeps(job, 1).await;
    let output = site.finished(job).await;
    assert_eq!(output["deployment"], json!(site.old), "not {staged}, which never served");
    assert_eq!(output["without_backup"], "a test");
    assert!(output["unknown"].as_str().unwrap().contains("no `database` is named"), "{output}");
    site.world.close().await;
}

#[tokio::test]
async fn an_answer_that_was_lost_is_looked_up_and_a_request_that_never_arrived_is_made_again() {
    for (fault, times) in [(Fault::Lost, 1), (Fault::Broken, 2)] {
        let site = Site::open().await;
        site.vercel.next(&Method::POST, "rollback", fault);
        let job = site.world.enqueue("rollback", &site.bare(json!({}))).await;
        assert!(site.world.first_failure(job).await.contains("asking Vercel to roll back"));
        site.world.pass(SOON_AGAIN).await;
        site.sleeps(job, 2).await;
        site.finished(job).await;
        assert_eq!(site.asked(), times);
        site.world.close().await;
    }
}

#[tokio::test]
async fn killed_at_every_step_it_asks_once_and_makes_one_backup() {
    let taken = |at: schemas::Timestamp| json!({"taken": at});
    for (asks, steps) in [
        (true, &["aim!", "emergency backup!", "roll back 1!", "moved 1"][..]),
        (false, &["aim"]),
        (false, &["aim!"]),
        (false, &["aim!", "emergency backup"]),
        (false, &["aim!", "emergency backup!"]),
        (false, &["aim!", "emergency backup!", "roll back 1"]),
        (true, &["aim!", "emergency backup!", "roll back 1"]),
        (true, &["aim!", "emergency backup!", "roll back 1!"]),
    ] {
        let mut site = Site::open().await;
        site.world.stop_worker().await;
        let (aim, now) = (site.aim(), site.world.queue.clock().now());
        let result = |step: &str| match step {
            "aim!" => Some(aim.clone()),
            "emergency backup!" => Some(json!("main/made.manifest.json")),
            "roll back 1!" => Some(taken(now)),
            _ => None,
        };
        let steps: Vec<(&str, Option<Value>)> =
            steps.iter().map(|step| (step.trim_end_matches('!'), result(step))).collect();
        let args = json!({"project": PROJECT_NAME, "deployment": site.old, "database": "main", "store": "nightly"});
        let job = site.world.die_after("rollback", &args, &steps).await;
        if asks {
            site.ask().await;
        }
        site.world.start_worker();
        site.sleeps(job, 2).await;
        site.finished(job).await;
        let made_before = steps.iter().any(|(name, result)| *name == "emergency backup" && result.is_some());
        assert_eq!((site.asked(), site.backups()), (1, usize::from(!made_before)), "{steps:?}");
        site.world.close().await;
    }
}

#[tokio::test]
async fn without_the_backup_nothing_is_rolled_back() {
    let site = Site::open().await;
    let Target::Sqlite(_, path) = &site.target else { unreachable!() };
    std::fs::remove_file(path).unwrap();
    let args = json!({"project": PROJECT_NAME, "deployment": site.old, "database": "main", "store": "nightly"});
    let job = site.world.enqueue("rollback", &args).await;
    let why = site.world.first_failure(job).await;
    assert!(why.contains("nothing is rolled back") && why.contains("without_backup"), "{why}");
    assert_eq!(site.asked(), 0);
    site.world.close().await;
}

#[tokio::test]
async fn what_is_no_target_is_refused_before_anything_is_done() {
    let site = Site::open().await;
    let preview = site.vercel.deploy(None, OWN_COMMIT);
    let staged = site.vercel.deploy(Some("production"), OWN_COMMIT);
    let broken = site.vercel.deploy(Some("production"), OWN_COMMIT);
    site.vercel.change(&broken, &json!({"readyState": "ERROR"}));
    let others = site.vercel.deploy(Some("production"), OWN_COMMIT);
    site.vercel.change(&others, &json!({"projectId": "prj_other"}));
    for (deployment, why) in [
        (&preview, "is a deployment of `preview`"),
        (&staged, "has never served production"),
        (&broken, "is ERROR, not READY"),
        (&others, "of another project"),
        (&site.new, "serves production now"),
        (&"dpl_none".to_owned(), "404"),
    ] {
        let reason = site.world.discarded("rollback", &site.bare(json!({"deployment": deployment}))).await;
        assert!(reason.contains(why), "{reason}");
    }
    assert_eq!(site.asked(), 0);
    site.world.close().await;
}

#[tokio::test]
async fn what_vercel_refuses_is_said_in_words_and_another_move_is_waited_for() {
    let refused = |status: u16| {
        let status = StatusCode::from_u16(status).unwrap();
        Fault::Refused(status, Vec::new(), json!({"error": {"code": "why_not"}}))
    };
    let site = Site::open().await;
    for (status, why) in [(402, "on Hobby"), (422, "does not take this deployment"), (403, "may not roll back")] {
        site.vercel.next(&Method::POST, "rollback", refused(status));
        let reason = site.world.discarded("rollback", &site.bare(json!({}))).await;
        assert!(reason.contains(why) && reason.contains(&status.to_string()), "{reason}");
    }
    site.vercel.next(&Method::POST, "rollback", refused(409));
    let job = site.world.enqueue("rollback", &site.bare(json!({}))).await;
    assert!(site.world.first_failure(job).await.contains("another move of the domains is under way"));
    site.world.pass(SOON_AGAIN).await;
    site.sleeps(job, 2).await;
    site.finished(job).await;
    site.world.close().await;
}

#[tokio::test]
async fn a_rollback_that_failed_or_was_skipped_or_never_ends_is_red() {
    for (status, why) in [("failed", "failed; the domains may lead"), ("skipped", "nothing was moved")] {
        let site = Site::open().await;
        let job = site.world.enqueue("rollback", &site.bare(json!({}))).await;
        site.sleeps(job, 1).await;
        site.vercel.finish_move(status);
        site.vercel.hub(|hub| hub.project(PROJECT).unwrap()["aliases"] = json!([]));
        site.world.pass(SOON_AGAIN).await;
        let reason = site.world.wait_discarded(job).await;
        assert!(reason.contains(why), "{reason}");
        // Whoever retries it wants it asked for again.
        site.world.retry(job).await;
        site.sleeps(job, 3).await;
        assert_eq!(site.asked(), 2);
        site.finished(job).await;
        site.world.close().await;
    }
    let site = Site::open().await;
    let job = site.world.enqueue("rollback", &site.bare(json!({"within": "2m"}))).await;
    site.sleeps(job, 1).await;
    site.world.pass(Duration::from_mins(3)).await;
    let reason = site.world.wait_discarded(job).await;
    assert!(reason.contains("Vercel's rollback is in-progress, 2m after"), "{reason}");
    site.world.close().await;
}

#[tokio::test]
async fn the_domains_that_failed_are_named() {
    let site = Site::open().await;
    let job = site.world.enqueue("rollback", &site.bare(json!({}))).await;
    site.sleeps(job, 1).await;
    site.vercel.finish_move("failed");
    let failed = json!([
        {"alias": DOMAINS[0], "id": "x", "status": "completed"}, {"alias": DOMAINS[1], "id": "y", "status": "failed"},
    ]);
    site.vercel.hub(|hub| hub.project(PROJECT).unwrap()["aliases"] = failed);
    site.world.pass(SOON_AGAIN).await;
    let reason = site.world.wait_discarded(job).await;
    assert!(reason.contains(&format!("failed for {};", DOMAINS[1])), "{reason}");
    site.world.close().await;
}

#[tokio::test]
async fn a_domain_that_leads_elsewhere_is_found_though_vercel_says_that_it_succeeded() {
    let site = Site::open().await;
    let job = site.world.enqueue("rollback", &site.bare(json!({"within": "2m"}))).await;
    site.sleeps(job, 1).await;
    site.vercel.finish_move("succeeded");
    site.vercel.leave_behind(DOMAINS[1], &site.new);
    site.world.pass(SOON_AGAIN).await;
    let view = site.sleeps(job, 2).await;
    assert_eq!(view.attempts[1].outcome.as_deref(), Some("snoozed"));
    site.world.pass(Duration::from_mins(3)).await;
    let reason = site.world.wait_discarded(job).await;
    assert!(reason.contains(&format!("{} leads to {}", DOMAINS[1], site.new)), "{reason}");
    // Mended, it is retried.
    site.vercel.promote(&site.old);
    site.world.retry(job).await;
    assert_eq!(site.world.completed(job).await["domains"], json!(DOMAINS));
    assert_eq!(site.asked(), 1);
    site.world.close().await;
}

#[tokio::test]
async fn it_gives_way_to_whoever_moves_the_domains_meanwhile() {
    // Before it has asked.
    let mut site = Site::open().await;
    site.world.stop_worker().await;
    let aim = site.aim();
    let job = site.world.die_after("rollback", &site.bare(json!({})), &[("aim", Some(aim))]).await;
    site.vercel.promote_by_hand(&site.new);
    site.world.start_worker();
    let reason = site.world.wait_discarded(job).await;
    assert!(reason.contains("somebody else moved") && reason.contains(&format!("promote to {}", site.new)), "{reason}");
    assert_eq!(site.asked(), 0);
    // And after it.
    let job = site.world.enqueue("rollback", &site.bare(json!({}))).await;
    site.sleeps(job, 1).await;
    site.vercel.promote_by_hand(&site.new);
    site.world.pass(SOON_AGAIN).await;
    assert!(site.world.wait_discarded(job).await.contains("has the last word"));
    // As to a rollback to another deployment.
    let third = site.vercel.deploy(Some("production"), OWN_COMMIT);
    let job = site.world.enqueue("rollback", &site.bare(json!({}))).await;
    site.sleeps(job, 1).await;
    site.vercel.promote_by_hand(&third);
    site.vercel.hub(|hub| hub.project(PROJECT).unwrap()["lastAliasRequest"]["type"] = json!("rollback"));
    site.world.pass(SOON_AGAIN).await;
    let reason = site.world.wait_discarded(job).await;
    assert!(reason.contains(&format!("rollback to {third}")), "{reason}");
    // Somebody's promotion of the very deployment is another move too: it holds no new deployment back.
    let job = site.world.enqueue("rollback", &site.bare(json!({}))).await;
    site.sleeps(job, 1).await;
    site.vercel.promote_by_hand(&site.old);
    site.world.pass(SOON_AGAIN).await;
    let reason = site.world.wait_discarded(job).await;
    assert!(reason.contains(&format!("promote to {}", site.old)), "{reason}");
    site.world.close().await;
}

#[tokio::test]
async fn what_github_cannot_tell_does_not_hold_up_the_rollback_and_is_said() {
    let site = Site::open().await;
    let args = json!({
        "project": PROJECT_NAME, "deployment": site.old, "database": "main", "without_backup": "a test",
    });
    let job = site.world.enqueue("rollback", &args).await;
    site.sleeps(job, 1).await;
    site.github.truncate();
    let output = site.finished(job).await;
    assert_eq!((&output["migrations_since"], &output["domains"]), (&Value::Null, &json!(DOMAINS)));
    let unknown = output["unknown"].as_str().unwrap();
    assert!(output["summary"].as_str().unwrap().ends_with(unknown), "{output}");
    site.world.close().await;
}

#[tokio::test]
async fn a_project_without_a_domain_and_a_domain_that_leads_nowhere_are_red() {
    let site = Site::open().await;
    for nowhere in [false, true] {
        let job = site.world.enqueue("rollback", &site.bare(json!({"within": "2m"}))).await;
        site.sleeps(job, 1).await;
        site.vercel.finish_move("succeeded");
        let why = if nowhere {
            site.vercel.leave_behind(DOMAINS[1], "dpl_none");
            format!("{} leads to nothing", DOMAINS[1])
        } else {
            site.vercel.hub(|hub| hub.project(PROJECT).unwrap()["domains"] = json!([]));
            "names no production domain".to_owned()
        };
        site.world.pass(Duration::from_mins(3)).await;
        let reason = site.world.wait_discarded(job).await;
        assert!(reason.contains(&why), "{reason}");
        site.vercel.hub(|hub| hub.project(PROJECT).unwrap()["domains"] = Value::Null);
        site.vercel.promote_by_hand(&site.new);
    }
    site.world.close().await;
}

#[tokio::test]
async fn whether_new_deployments_are_held_back_is_asked_and_not_assumed() {
    for (assigns, target, pinned) in
        [(true, Value::Null, false), (true, json!({"id": "dpl_1"}), true), (false, Value::Null, true)]
    {
        let site = Site::open().await;
        let job = site.world.enqueue("rollback", &site.bare(json!({}))).await;
        site.sleeps(job, 1).await;
        site.vercel.hub(|hub| {
            let project = hub.project(PROJECT).unwrap();
            project["autoAssignCustomDomains"] = json!(assigns);
            project["lastRollbackTarget"] = target.clone();
        });
        let output = site.finished(job).await;
        assert_eq!(output["pinned"], pinned, "{assigns} {target}");
        assert_eq!(output["summary"].as_str().unwrap().contains("it may get the domains"), !pinned, "{output}");
        site.world.close().await;
    }
}

#[tokio::test]
async fn a_github_that_stays_away_is_asked_a_few_times_and_then_people_are_told() {
    let site = Site::open().await;
    let args = json!({
        "project": PROJECT_NAME, "deployment": site.old, "database": "main", "without_backup": "a test",
    });
    let job = site.world.enqueue("rollback", &args).await;
    site.sleeps(job, 1).await;
    site.vercel.finish_move("succeeded");
    for attempts in 2..=4 {
        site.github.answer_first(StatusCode::BAD_GATEWAY, &[]);
        site.world.pass(Duration::from_mins(1)).await;
        let view = site.sleeps(job, attempts).await;
        assert_eq!(view.failures, i32::try_from(attempts).unwrap() - 1);
    }
    site.github.answer_first(StatusCode::BAD_GATEWAY, &[]);
    site.world.pass(Duration::from_mins(1)).await;
    let output = site.world.completed(job).await;
    assert!(output["unknown"].as_str().unwrap().contains("GitHub"), "{output}");
    assert_eq!(site.asked(), 1);
    site.world.close().await;
}

#[tokio::test]
async fn it_waits_for_who_is_alone_at_the_database_unless_there_is_no_backup() {
    let site = Site::open().await;
    let with = json!({"project": PROJECT_NAME, "deployment": site.old, "database": "main", "store": "nightly"});
    let migrate = site.world.new_job("migrate", &json!({"database": "main"}));
    let [backed_up, bare] =
        [with, site.bare(json!({"database": "main"}))].map(|it| site.world.new_job("rollback", &it));
    assert!(migrate.limits.iter().any(|limit| backed_up.limits.contains(limit)), "{:?}", backed_up.limits);
    assert!(bare.limits.is_empty(), "{:?}", bare.limits);
    site.world.close().await;
}
