//! `restore` into a live database: approved by somebody else, after a safety backup, at once or not at all.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use queue::ledger::Operator;
use schemas::{JobId, Role};
use tests::binary::House;
use tests::porter::eventually;

use super::*;

fn replace(database: &str, backup: &Value) -> Value {
    json!({"backup": backup, "database": database, "store": "nightly", "replace": true})
}

/// Starts it by hand as `ann`, and has `bob` approve it.
async fn approved(world: &BackupWorld, args: &Value) -> JobId {
    let by = |actor: &str| Operator { actor: actor.into(), reason: "a test".into() };
    let job = world.new_job("restore", args);
    let job = world.queue.start_job(&job, &by("ann")).await.unwrap().id();
    let waits = world.wait_for(job, &[JobState::Pending, JobState::Running, JobState::Completed]).await;
    assert_eq!(waits.state, JobState::Pending, "it runs without an approval");
    let own = world.queue.approve(job, Role::Admin, &by("ann")).await;
    assert!(own.is_err(), "nobody approves what they started themselves");
    world.queue.approve(job, Role::Operator, &by("bob")).await.unwrap();
    job
}

/// A role that may read customers, by what stands in no dump and what does.
async fn with_a_reader(url: &str) -> String {
    let role = format!("reader_{}", uuid::Uuid::new_v4().simple());
    let name = url::Url::parse(url).unwrap().path().trim_start_matches('/').to_owned();
    let mut connection = PgConnection::connect(url).await.unwrap();
    let statements = format!(
        "CREATE ROLE {role} LOGIN; GRANT SELECT ON customer TO {role}; GRANT TEMPORARY ON DATABASE {name} TO {role};
         ALTER DATABASE {name} SET search_path TO public, \"$user\"; ALTER ROLE {role} IN DATABASE {name} SET statement_timeout TO '7s';
         ALTER TABLE purchase OWNER TO {role}"
    );
    connection.execute(AssertSqlSafe(statements)).await.unwrap();
    role
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_takes_the_place_of_a_live_postgres_database_which_is_kept() {
    let (source, folder) = (shop().await, TempDir::new().unwrap());
    let role = with_a_reader(&source).await;
    let world = BackupWorld::with(&[("main", &source)], &[("nightly", &directory(&folder))]).await;
    let made = world.complete("backup", &json!({"database": "main", "store": "nightly"})).await;
    let wanted = fingerprint(&source).await;
    // The application goes on, and is connected.
    let mut application = PgConnection::connect(&source).await.unwrap();
    application
        .execute("DELETE FROM purchase WHERE id % 2 = 0; INSERT INTO customer VALUES (0, 'new', null)")
        .await
        .unwrap();
    let changed = fingerprint(&source).await;

    let job = approved(&world, &replace("main", &made["backup"])).await;
    let done = world.completed(job).await;
    assert_eq!(fingerprint(&source).await, wanted, "the live database is the backup's");
    let kept = done["kept"].as_str().unwrap();
    assert_eq!(fingerprint(&with_database(&source, kept)).await, changed, "the old one is kept as it was");
    assert!(application.execute("SELECT 1").await.is_err(), "the application's session is ended");
    let listing = listed(&directory(&folder)).await;
    let safety = listing.backups.iter().find(|backup| backup.key == done["safety_backup"].as_str().unwrap()).unwrap();
    assert_eq!(
        safety.manifest.name.as_deref(),
        Some(format!("before the restore of {}", made["backup"].as_str().unwrap()).as_str())
    );
    let back = new_name();
    world
        .complete("restore", &json!({"backup": safety.key, "database": "main", "store": "nightly", "into": back}))
        .await;
    assert_eq!(fingerprint(&with_database(&source, &back)).await, changed, "the safety backup is of just before");

    let mut connection = PgConnection::connect(&source).await.unwrap();
    let rights: (bool, bool, String, String, String) = sqlx::query_as(
        "SELECT has_table_privilege($1, 'customer', 'SELECT'), has_database_privilege($1, current_database(), 'TEMPORARY'),
                current_setting('search_path'), pg_get_userbyid(relowner)::text,
                (SELECT array_to_string(setconfig, ',') FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase
                 WHERE datname = current_database() AND setrole = $1::regrole)
         FROM pg_class WHERE relname = 'purchase'",
    )
    .bind(&role)
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(rights, (true, true, "public, \"$user\"".into(), role, "statement_timeout=7s".into()));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_runbook_takes_away_the_approval_and_what_is_refused_touches_nothing() {
    let (source, folder) = (shop().await, TempDir::new().unwrap());
    let world = BackupWorld::with(&[("main", &source)], &[("nightly", &directory(&folder))]).await;
    let made = world.complete("backup", &json!({"database": "main", "store": "nightly"})).await;
    // However it is stored: here as a route's, which nobody started.
    let job = world.enqueue("restore", &replace("main", &made["backup"])).await;
    world.wait_for(job, &[JobState::Pending]).await;
    let by = Operator { actor: "bob".into(), reason: "no".into() };
    world.queue.refuse(job, Role::Operator, &by).await.unwrap();
    world.wait_for(job, &[JobState::Cancelled]).await;
    assert_eq!(listed(&directory(&folder)).await.backups.len(), 1, "not even a safety backup");
    let runbook = json!({"jobs": {"back": {"job": "restore", "approval": {"own": true, "within": "1h"},
                                           "with": replace("main", &made["backup"])}}});
    let config: schemas::runbook::RunbookConfig = serde_json::from_value(runbook).unwrap();
    let catalog = world.catalog();
    let runbook = schemas::Runbook::build("back", &config, &catalog).unwrap();
    let run = runbook
        .plan(&serde_json::Map::new(), schemas::runbook::Start::default(), &catalog, world.queue.clock().now())
        .unwrap();
    assert!(run.jobs[0].job.approval.as_ref().is_some_and(|approval| !approval.own), "{:?}", run.jobs[0].job.approval);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_takes_the_place_of_a_live_sqlite_file_when_nobody_else_has_it_open() {
    let (folder, lake) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let source = sqlite(&folder, 1).await;
    let world = BackupWorld::with(&[("app", &source)], &[("nightly", &directory(&lake))]).await;
    let made = world.complete("backup", &json!({"database": "app", "store": "nightly"})).await;
    let wanted = contents(&source).await;
    let mut connection = SqliteConnection::connect(&source).await.unwrap();
    connection.execute("PRAGMA journal_mode = WAL").await.unwrap();
    connection.execute("INSERT INTO note (text) VALUES ('later')").await.unwrap();
    connection.close().await.unwrap();
    let changed = contents(&source).await;
    // The application has it open, and does nothing.
    let mut application = Command::new("sqlite3")
        .arg(folder.path().join("app.db"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sqlite3 is installed");
    let mut stdin = application.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"SELECT count(*) FROM note;\n").unwrap();
    let mut answer = [0; 1];
    std::io::Read::read_exact(application.stdout.as_mut().unwrap(), &mut answer).unwrap();

    let job = approved(&world, &replace("app", &made["backup"])).await;
    assert!(world.first_failure(job).await.contains("stop the application"));
    assert_eq!(contents(&source).await, changed, "nothing was changed");
    drop(stdin);
    application.wait().unwrap();
    let ended = world.wait_for(job, &[JobState::Completed, JobState::Discarded]).await;
    let done = ended.output.unwrap_or_else(|| panic!("{:?}", ended.reason));
    assert_eq!(contents(&source).await, wanted);
    let mut connection = SqliteConnection::connect(&source).await.unwrap();
    let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut connection).await.unwrap();
    assert_eq!(journal, "wal", "it has a log, as before");
    connection.close().await.unwrap();
    assert_eq!(contents(&format!("sqlite:{}", done["kept"].as_str().unwrap())).await, changed, "the old one is kept");
    assert_eq!(listed(&directory(&lake)).await.backups.len(), 2, "and so is the safety backup");
    let left = files(&folder);
    assert_eq!(
        left.iter().filter(|name| name.contains("scratch") || name.contains("unfinished")).count(),
        0,
        "{left:?}"
    );
    world.close().await;
}

/// One is seen by its handle alone, as it holds no lock; the other by its lock alone, as no process but this one has a handle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_only_has_a_live_sqlite_file_open_or_only_reads_it_is_in_the_way() {
    let (folder, lake) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let source = sqlite(&folder, 1).await;
    let world = BackupWorld::with(&[("app", &source)], &[("nightly", &directory(&lake))]).await;
    let made = world.complete("backup", &json!({"database": "app", "store": "nightly"})).await;
    let wanted = contents(&source).await;
    let mut connection = SqliteConnection::connect(&source).await.unwrap();
    connection.execute("INSERT INTO note (text) VALUES ('later')").await.unwrap();
    let changed = contents(&source).await;
    let failure = async |job, number: usize| {
        eventually(&format!("attempt {number} has failed"), async || {
            let view = world.queue.ledger().job(job).await.unwrap().unwrap();
            assert_ne!(view.state, JobState::Completed, "nobody was in the way");
            view.attempts.into_iter().nth(number)?.error
        })
        .await
    };
    let opened = std::fs::File::open(folder.path().join("app.db")).unwrap();
    let mut holder = Command::new("sleep").arg("600").stdin(opened).spawn().unwrap();
    let job = approved(&world, &replace("app", &made["backup"])).await;
    let said = failure(job, 0).await;
    assert!(said.contains("has it open"), "{said}");
    connection.execute("BEGIN; SELECT count(*) FROM note").await.unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    let said = failure(job, 1).await;
    assert!(said.contains("others use the live database") && !said.contains("has it open"), "{said}");
    assert_eq!(contents(&source).await, changed, "nothing was changed");
    connection.close().await.unwrap();
    world.wait_for(job, &[JobState::Completed]).await;
    assert_eq!(contents(&source).await, wanted);
    world.close().await;
}

/// Points of the steps `upload`, `manifest`, `restore` and `take its place`, which come behind `choose`.
const DEATHS: [(&str, usize); 9] = [
    ("step finishing", 2),
    ("step finished", 3),
    ("step started", 4),
    ("step finishing", 4),
    ("step finished", 4),
    ("step started", 5),
    ("step finishing", 5),
    ("step finished", 5),
    ("finishing", 1),
];

struct Site {
    house: House,
    database: String,
}

impl Site {
    fn new(database: &str, lake: &TempDir) -> Self {
        let config = format!(
            r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
[queue]
ledger = "sqlite:book.db"
[worker]
grace = "0s"
[databases.main]
url = "{database}"
[stores.nightly]
url = "{}"
"#,
            directory(lake)
        );
        Self { house: House::new(&config), database: database.to_owned() }
    }

    /// Has a restore of that backup die at a point, and another process finish it; what it put out.
    async fn restore_dying_at(&self, backup: &str, point: &str, visit: usize) -> Value {
        let up = self.house.start("up");
        let ask = |server: &str, token: &str, arguments: &[&str]| {
            let token = self.house.path(token);
            let to = ["--server", server, "--token-file", token.to_str().unwrap(), "--json"];
            self.house.run(&[arguments, &to].concat())
        };
        if !self.house.path("bob").exists() {
            let first = self.house.path("book.db.token");
            let made = ["token", "create", "bob", "--role", "operator", "--reason", "x", "--token-file"];
            let made = self.house.run(&[&made[..], &[first.to_str().unwrap(), "--server", &up.operators()]].concat());
            std::fs::write(self.house.path("bob"), made.exits(0).stdout).unwrap();
        }
        let with = [format!("backup={backup}"), "database=main".into(), "store=nightly".into(), "replace=true".into()];
        let with = with.iter().flat_map(|text| ["--with", text.as_str()]);
        let start: Vec<&str> = ["run", "restore", "--reason", "x"].into_iter().chain(with).collect();
        let job = ask(&up.operators(), "book.db.token", &start).exits(0).json()["job"].as_str().unwrap().to_owned();
        assert!(up.stop().success());
        let mut dying = self.house.start_to_end("up", &[("NIGHTPORTER_KILL_AT", &format!("{point}:{visit}"))]);
        let deadline = Instant::now() + Duration::from_mins(2);
        let mut approved = false;
        let status = loop {
            if let Some(status) = dying.ended() {
                break status;
            }
            assert!(Instant::now() < deadline, "it never came to `{point}` for the {visit}. time");
            if let Some(house) = dying.operators().filter(|_| !approved) {
                ask(&house, "bob", &["approvals", "approve", &job, "--reason", "x"]).exits(0);
                approved = true;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(status.signal(), Some(9), "it ended otherwise than by our hand at `{point}`");
        let up = self.house.start("up");
        let done = eventually("it is done", async || {
            let view = ask(&up.operators(), "bob", &["jobs", "show", &job]).exits(0).json();
            assert_ne!(view["state"], "discarded", "{view}");
            (view["state"] == "completed").then(|| view["output"].clone())
        })
        .await;
        assert!(up.stop().success());
        done
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_restore_that_dies_at_any_step_is_done_once_by_the_next_process() {
    let (source, lake) = (shop().await, TempDir::new().unwrap());
    let world = BackupWorld::with(&[("main", &source)], &[("nightly", &directory(&lake))]).await;
    let made = world.complete("backup", &json!({"database": "main", "store": "nightly"})).await;
    world.close().await;
    let (wanted, site) = (fingerprint(&source).await, Site::new(&source, &lake));
    for (round, (point, visit)) in DEATHS.into_iter().enumerate() {
        let mut application = PgConnection::connect(&source).await.unwrap();
        let change = format!("DELETE FROM purchase WHERE id = {}", round + 1);
        application.execute(AssertSqlSafe(change)).await.unwrap();
        application.close().await.unwrap();
        let changed = fingerprint(&source).await;
        let done = site.restore_dying_at(made["backup"].as_str().unwrap(), point, visit).await;
        assert_eq!(fingerprint(&site.database).await, wanted, "after `{point}` {visit}");
        let kept = with_database(&source, done["kept"].as_str().unwrap());
        assert_eq!(fingerprint(&kept).await, changed, "what was live is kept, after `{point}` {visit}");
        let safety = done["safety_backup"].as_str().unwrap().to_owned();
        let listing = listed(&directory(&lake)).await;
        assert_eq!(listing.backups.len(), round + 2, "one safety backup for each");
        assert!(listing.backups.iter().any(|backup| backup.key == safety));
        let beside = done["kept"].as_str().unwrap().replace("before", "scratch");
        assert_eq!(databases_like(&source, &beside).await, 0, "after `{point}` {visit}");
    }
    println!("{} deaths of a restore into a live database", DEATHS.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_restore_that_dies_at_any_step_is_done_once_by_the_next_process() {
    let (folder, lake) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let source = sqlite(&folder, 1).await;
    let world = BackupWorld::with(&[("main", &source)], &[("nightly", &directory(&lake))]).await;
    let made = world.complete("backup", &json!({"database": "main", "store": "nightly"})).await;
    world.close().await;
    let (wanted, site) = (contents(&source).await, Site::new(&source, &lake));
    for (point, visit) in DEATHS {
        let mut application = SqliteConnection::connect(&source).await.unwrap();
        application.execute("INSERT INTO note (text) VALUES ('later')").await.unwrap();
        application.close().await.unwrap();
        let changed = contents(&source).await;
        let done = site.restore_dying_at(made["backup"].as_str().unwrap(), point, visit).await;
        assert_eq!(contents(&site.database).await, wanted, "after `{point}` {visit}");
        let kept = format!("sqlite:{}", done["kept"].as_str().unwrap());
        assert_eq!(contents(&kept).await, changed, "what was live is kept, after `{point}` {visit}");
    }
}
