//! Backups and restores, from a job to bytes in a store and back, with everything going wrong in between.

mod elsewhere;
mod encryption;
mod live;
mod retention;
mod verify;

use std::time::Duration;

use axum::http::Method;
use schemas::JobState;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqliteConnection};
use tempfile::TempDir;
use tests::backup_world::{BackupWorld, database_config, store_config};
use tests::log::Log;
use tests::s3::{Bucket, Door, Passage};
use worker::backups::{self, Listing, Manifest};
use worker::databases::Database;
use worker::stores::Store;
use worker::{Failure, databases, stores};

/// Rows enough that a dump does not fit into pipes and buffers.
const SHOP: &str = "
    CREATE TABLE customer (id bigint PRIMARY KEY, name text NOT NULL, note jsonb);
    CREATE TABLE purchase (id bigserial PRIMARY KEY, customer bigint REFERENCES customer, at timestamptz, total numeric);
    CREATE INDEX ON purchase (customer, at);
    INSERT INTO customer SELECT n, 'Zoë ' || n, jsonb_build_object('n', n, 'hash', md5(n::text))
      FROM generate_series(1, 20000) n;
    INSERT INTO purchase (customer, at, total)
      SELECT 1 + n % 20000, 'epoch'::timestamptz + n * interval '1 minute', n / 7.0 FROM generate_series(1, 60000) n;
    CREATE VIEW spent AS SELECT customer, sum(total) AS total FROM purchase GROUP BY customer;
    CREATE TABLE parted (id int) PARTITION BY RANGE (id);
    CREATE TABLE part_one PARTITION OF parted FOR VALUES FROM (0) TO (100);
    INSERT INTO parted SELECT generate_series(1, 10);";

/// What only `pg_dump` waits for: the table has no rows of its own, so that nobody counts them.
const BLOCK: &str = "BEGIN; LOCK TABLE ONLY parted IN ACCESS EXCLUSIVE MODE";

const CANARY: &str = "canary-7f3a-never-shown";

#[tokio::test]
async fn a_postgres_database_comes_back_row_by_row_from_s3() {
    let (source, bucket) = (shop().await, Bucket::on_server().await);
    let world = BackupWorld::with(&[("main", &source)], &[("nightly", &bucket.store_url())]).await;
    let made = world.complete("backup", &json!({"database": "main", "store": "nightly", "name": "by hand"})).await;
    assert!(made["stored_bytes"].as_u64().unwrap() < made["bytes"].as_u64().unwrap());

    let listing = listed(&bucket.store_url()).await;
    let [backup] = &listing.backups[..] else { panic!("{listing:?}") };
    assert_eq!(
        (backup.key.as_str(), backup.manifest.name.as_deref()),
        (made["backup"].as_str().unwrap(), Some("by hand"))
    );
    assert_eq!(backup.manifest.dump.engine, "postgresql");

    let into = new_name();
    let args = json!({"backup": "latest", "database": "main", "store": "nightly", "into": into});
    let restored = world.complete("restore", &args).await;
    assert_eq!(restored["backup"], made["backup"]);
    let copy = with_database(&source, &into);
    assert_eq!(fingerprint(&copy).await, fingerprint(&source).await);

    let again = world.enqueue("restore", &args).await;
    let refused = world.wait_for(again, &[JobState::Discarded, JobState::Completed]).await;
    assert!(refused.reason.unwrap_or_default().contains("exists"), "a restore never fills what is there");
    assert_eq!(fingerprint(&copy).await, fingerprint(&source).await);
    world.close().await;
}

#[tokio::test]
async fn stock_programs_alone_restore_a_backup_by_the_commands_in_its_manifest() {
    let (source, folder) = (shop().await, TempDir::new().unwrap());
    let world = BackupWorld::with(&[("main", &source)], &[("nightly", &directory(&folder))]).await;
    world.complete("backup", &json!({"database": "main", "store": "nightly"})).await;
    let listing = listed(&directory(&folder)).await;
    let copy = tests::postgres::fresh_database().await;
    restore_by_hand(&folder, &listing.backups[0].manifest, &source, &copy, &[]);
    assert_eq!(fingerprint(&copy).await, fingerprint(&source).await);
    world.close().await;
}

#[tokio::test]
async fn a_sqlite_database_comes_back_through_an_s3_server_that_checks_digests() {
    let (folder, bucket) = (TempDir::new().unwrap(), Bucket::in_process().await);
    let source = sqlite(&folder, 20).await;
    let world = BackupWorld::with(&[("app", &source)], &[("nightly", &bucket.store_url())]).await;
    let made = world.complete("backup", &json!({"database": "app", "store": "nightly"})).await;
    assert!(made["stored_bytes"].as_u64().unwrap() > 16 * 1024 * 1024, "it took several parts");
    let args = json!({"backup": made["backup"], "database": "app", "store": "nightly", "into": "copy.db"});
    world.complete("restore", &args).await;
    let copy = format!("sqlite:{}", folder.path().join("copy.db").display());
    assert_eq!(contents(&copy).await, contents(&source).await);
    // The same bytes are there: another restore of the same backup has nothing to do; of another, it refuses.
    world.complete("restore", &args).await;
    let mut connection = SqliteConnection::connect(&copy).await.unwrap();
    connection.execute("DELETE FROM note").await.unwrap();
    connection.close().await.unwrap();
    let job = world.enqueue("restore", &args).await;
    assert_eq!(world.wait_for(job, &[JobState::Discarded, JobState::Completed]).await.state, JobState::Discarded);
    assert_eq!(files(&folder), ["app.db", "copy.db"], "nothing unfinished is left");
    world.close().await;
}

#[tokio::test]
async fn a_dump_whose_server_process_dies_in_the_middle_is_not_taken_for_whole() {
    let source = shop().await;
    let database = open_database(&source).await;
    let mut dump = right(database.dump("a-test").await);
    let first = right(dump.next().await).expect("a dump has bytes");
    assert!(first.starts_with(b"PGDMP"));
    // The rest does not fit into the pipe: pg_dump waits for us in the middle of its tables.
    assert_eq!(terminate(&source, "active").await, 1);
    while right(dump.next().await).is_some() {}
    let Err(Failure::Retry { error, .. }) = dump.finish().await else { panic!("taken for whole") };
    assert!(format!("{error:#}").contains("pg_dump failed"), "{error:#}");
}

#[tokio::test]
async fn a_failed_dump_leaves_no_backup_and_nothing_else_and_the_next_attempt_makes_one() {
    let (source, folder) = (shop().await, TempDir::new().unwrap());
    let world = BackupWorld::with(&[("main", &source)], &[("nightly", &directory(&folder))]).await;
    let mut blocker = PgConnection::connect(&source).await.unwrap();
    blocker.execute(BLOCK).await.unwrap();
    let job = world.enqueue("backup", &json!({"database": "main", "store": "nightly"})).await;
    until_pg_dump_waits(&source).await;
    assert_eq!(terminate(&source, "waiting").await, 1);
    // The next attempt may have begun already, and waits for the same lock.
    assert!(world.first_failure(job).await.contains("pg_dump failed"));
    assert!(listed(&directory(&folder)).await.backups.is_empty());
    blocker.execute("ROLLBACK").await.unwrap();
    world.wait_for(job, &[JobState::Completed]).await;
    assert_eq!(listed(&directory(&folder)).await.backups.len(), 1);
    assert_eq!(files(&folder).len(), 2, "the data and its manifest: {:?}", files(&folder));
    world.close().await;
}

#[tokio::test]
async fn an_upload_that_fails_at_its_second_part_leaves_nothing() {
    let (folder, bucket) = (TempDir::new().unwrap(), Bucket::on_server().await);
    let source = sqlite(&folder, 40).await;
    let door = Door::before(&bucket.endpoint, |_, target| refused_if(target.contains("partNumber=2"))).await;
    let through = bucket.store_url_through(&door.endpoint);
    let world = BackupWorld::with(&[("app", &source)], &[("nightly", &through)]).await;
    let job = world.enqueue("backup", &json!({"database": "app", "store": "nightly"})).await;
    let failed = world.wait_for(job, &[JobState::Discarded, JobState::Completed]).await;
    assert!(failed.reason.unwrap_or_default().contains("part 2"));
    let store = open_store(&bucket.store_url()).await;
    assert!(right(store.list("").await).is_empty());
    assert_eq!(right(store.sweep_uploads("", Duration::ZERO, chrono::Utc::now()).await), 0);
    world.close().await;
}

#[tokio::test]
async fn what_the_store_did_not_keep_as_it_was_sent_never_becomes_a_backup() {
    let (folder, bucket) = (TempDir::new().unwrap(), Bucket::on_server().await);
    let source = sqlite(&folder, 1).await;
    let altered = |method: &Method, target: &str| {
        if method == Method::PUT && target.contains(".dump.zst") { Passage::Altered } else { Passage::Free }
    };
    let door = Door::before(&bucket.endpoint, altered).await;
    let through = bucket.store_url_through(&door.endpoint);
    let world = BackupWorld::with(&[("app", &source)], &[("nightly", &through)]).await;
    let job = world.enqueue("backup", &json!({"database": "app", "store": "nightly"})).await;
    let failed = world.wait_for(job, &[JobState::Retryable, JobState::Completed]).await;
    assert!(failed.reason.unwrap_or_default().contains("not what was sent"));
    door.open();
    world.wait_for(job, &[JobState::Completed]).await;
    let listing = listed(&bucket.store_url()).await;
    assert_eq!(listing.backups.len(), 1);
    assert!(listing.backups[0].manifest.attempt > 1, "not the attempt whose data was damaged");
    assert_eq!(right(open_store(&bucket.store_url()).await.list("").await).len(), 2, "the damaged data is gone");
    world.close().await;
}

#[tokio::test]
async fn an_attempt_killed_while_it_uploads_is_followed_by_one_that_makes_exactly_one_backup() {
    let held = |_: &Method, target: &str| held_if(target.contains("partNumber=2"));
    let (store, listing) = killed_at(held, 40).await;
    assert_eq!((listing.backups.len(), listing.backups[0].manifest.attempt), (1, 2));
    assert_eq!(right(store.list("").await).len(), 2);
    assert_eq!(right(store.sweep_uploads("", Duration::ZERO, chrono::Utc::now()).await), 0);
}

#[tokio::test]
async fn an_attempt_killed_between_upload_and_manifest_is_followed_by_one_that_makes_exactly_one_backup() {
    let held = |method: &Method, target: &str| held_if(method == Method::PUT && target.contains("manifest.json"));
    let (store, listing) = killed_at(held, 1).await;
    // The first attempt's upload was whole: the second goes on from it.
    assert_eq!((listing.backups.len(), listing.backups[0].manifest.attempt), (1, 1));
    assert_eq!(right(store.list("").await).len(), 2);
}

#[tokio::test]
async fn an_attempt_killed_after_its_manifest_is_followed_by_one_that_makes_nothing() {
    let held = |method: &Method, target: &str| held_if(method == Method::GET && target.contains("list-type=2"));
    let (store, listing) = killed_at(held, 1).await;
    assert_eq!((listing.backups.len(), listing.backups[0].manifest.attempt), (1, 1));
    assert_eq!(right(store.list("").await).len(), 2);
}

#[tokio::test]
async fn one_flipped_byte_in_the_store_and_the_restore_refuses_and_drops_what_it_made() {
    let (source, folder) = (shop().await, TempDir::new().unwrap());
    let world = BackupWorld::with(&[("main", &source)], &[("nightly", &directory(&folder))]).await;
    let made = world.complete("backup", &json!({"database": "main", "store": "nightly"})).await;
    let data = folder.path().join(made["key"].as_str().unwrap());
    let mut bytes = std::fs::read(&data).unwrap();
    let last = bytes.len() - 1; // In the frame's checksum: every byte before it decodes.
    bytes[last] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    refuses_to_restore(&world, &source).await;
    world.close().await;
}

#[tokio::test]
async fn a_manifest_with_another_digest_and_the_restore_refuses_and_drops_what_it_made() {
    let (source, folder) = (shop().await, TempDir::new().unwrap());
    let world = BackupWorld::with(&[("main", &source)], &[("nightly", &directory(&folder))]).await;
    let made = world.complete("backup", &json!({"database": "main", "store": "nightly"})).await;
    let path = folder.path().join(made["backup"].as_str().unwrap());
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["data"]["plain"]["sha256"] = json!("0".repeat(64));
    std::fs::write(&path, manifest.to_string()).unwrap();
    refuses_to_restore(&world, &source).await;
    world.close().await;
}

#[tokio::test]
async fn a_backup_whose_data_is_gone_or_cut_is_not_listed_and_never_the_latest() {
    let (folder, lake) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let source = sqlite(&folder, 1).await;
    let world = BackupWorld::with(&[("app", &source)], &[("nightly", &directory(&lake))]).await;
    let args = json!({"database": "app", "store": "nightly"});
    let first = world.complete("backup", &args).await;
    let second = world.complete("backup", &args).await;
    assert_eq!(listed(&directory(&lake)).await.backups.len(), 2);
    let data = lake.path().join(second["key"].as_str().unwrap());
    std::fs::File::options().write(true).open(data).unwrap().set_len(10).unwrap();
    let listing = listed(&directory(&lake)).await;
    assert_eq!(listing.backups.len(), 1);
    assert_eq!(listing.backups[0].key, first["backup"].as_str().unwrap());
    assert!(listing.broken[0].1.contains("10 bytes"), "{:?}", listing.broken);
    let store = open_store(&directory(&lake)).await;
    let Err(Failure::Discard(error)) = backups::latest(&*store, "app").await else { panic!("passed over silently") };
    assert!(error.to_string().contains(second["backup"].as_str().unwrap()));
    world.close().await;
}

#[tokio::test]
async fn the_password_is_in_no_process_list_log_ledger_manifest_or_error() {
    let log = Log::keep();
    let folder = TempDir::new().unwrap();
    let mut source = url::Url::parse(&shop().await).unwrap();
    source.set_password(Some(CANARY)).unwrap();
    let wrong = format!("postgres://someone:{CANARY}@127.0.0.1:1/nothing");
    let databases = [("main", source.as_str()), ("wrong", wrong.as_str())];
    let world = BackupWorld::with(&databases, &[("nightly", &directory(&folder))]).await;

    let mut blocker = PgConnection::connect(source.as_str()).await.unwrap();
    blocker.execute(BLOCK).await.unwrap();
    let job = world.enqueue("backup", &json!({"database": "main", "store": "nightly"})).await;
    until_pg_dump_waits(source.as_str()).await;
    let running = command_lines();
    assert!(running.iter().any(|line| line.contains("pg_dump")), "pg_dump runs");
    assert!(!running.iter().any(|line| line.contains(CANARY)));
    blocker.execute("ROLLBACK").await.unwrap();
    world.completed(job).await;

    let fails = world.enqueue("backup", &json!({"database": "wrong", "store": "nightly"})).await;
    let failed = world.wait_for(fails, &[JobState::Retryable, JobState::Discarded]).await;
    assert!(!serde_json::to_string(&failed).unwrap().contains(CANARY));
    let key = listed(&directory(&folder)).await.backups[0].key.clone();
    assert!(!std::fs::read_to_string(folder.path().join(key)).unwrap().contains(CANARY));
    for entry in std::fs::read_dir(world.folder.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains(CANARY));
    }
    assert!(!log.lines_with("backup begins").is_empty(), "the log is heard");
    assert_eq!(log.lines_with(CANARY), Vec::<String>::new());
    world.close().await;
}

#[tokio::test]
async fn a_restore_that_could_not_say_that_it_was_done_is_done_but_only_for_its_own_job() {
    let source = shop().await;
    let database = open_database(&source).await;
    let mut dump = right(database.dump("x").await);
    let mut bytes = Vec::new();
    while let Some(piece) = right(dump.next().await) {
        bytes.extend_from_slice(&piece);
    }
    right(dump.finish().await);
    let (into, reader) = (new_name(), || Box::new(std::io::Cursor::new(bytes.clone())));
    right(database.restore(&into, "job-1", reader()).await);
    right(database.restore(&into, "job-1", reader()).await);
    assert!(database.restore(&into, "job-2", reader()).await.is_err());
    // A torn dump leaves no database of either name.
    let torn = Box::new(std::io::Cursor::new(bytes[..bytes.len() / 2].to_vec()));
    let other = new_name();
    assert!(database.restore(&other, "job-3", torn).await.is_err());
    assert_eq!(databases_like(&source, &other).await + databases_like(&source, "nightporter_job3").await, 0);
}

/// Runs the commands of a manifest where its data lies, with these files beside it, into a database that is there.
fn restore_by_hand(folder: &TempDir, manifest: &Manifest, server: &str, into: &str, files: &[(&str, &str)]) {
    let data = folder.path().join(&manifest.data.key);
    let place = data.parent().unwrap();
    for (name, text) in files {
        std::fs::write(place.join(name), text).unwrap();
    }
    let (name, server) = (into.rsplit('/').next().unwrap(), url::Url::parse(server).unwrap());
    for command in manifest.restore_with.iter().filter(|command| !command.starts_with("createdb")) {
        let status = std::process::Command::new("bash")
            .args(["-o", "pipefail", "-ec", &command.replace("--dbname=restored", &format!("--dbname={name}"))])
            .env("PGHOST", server.host_str().unwrap())
            .env("PGPORT", server.port().unwrap().to_string())
            .env("PGUSER", server.username())
            .env("PGPASSWORD", server.password().unwrap_or_default())
            .current_dir(place)
            .status();
        assert!(status.unwrap().success(), "{command}");
    }
    for (name, _) in files {
        std::fs::remove_file(place.join(name)).unwrap();
    }
}

/// Holds a backup's attempt at the door, stops its worker there, opens the door and lets another worker finish the job.
async fn killed_at(rule: fn(&Method, &str) -> Passage, megabytes: usize) -> (Box<dyn Store>, Listing) {
    let (folder, bucket) = (TempDir::new().unwrap(), Bucket::on_server().await);
    let source = sqlite(&folder, megabytes).await;
    let mut door = Door::before(&bucket.endpoint, rule).await;
    let through = bucket.store_url_through(&door.endpoint);
    let mut world = BackupWorld::with(&[("app", &source)], &[("nightly", &through)]).await;
    let job = world.enqueue("backup", &json!({"database": "app", "store": "nightly"})).await;
    door.holds().await;
    world.stop_worker().await;
    door.open();
    world.start_worker();
    world.completed(job).await;
    world.close().await;
    let listing = listed(&bucket.store_url()).await;
    (open_store(&bucket.store_url()).await, listing)
}

async fn refuses_to_restore(world: &BackupWorld, source: &str) {
    let into = new_name();
    let args = json!({"backup": "latest", "database": "main", "store": "nightly", "into": into});
    let job = world.enqueue("restore", &args).await;
    let refused = world.wait_for(job, &[JobState::Discarded, JobState::Completed, JobState::Retryable]).await;
    assert_eq!(refused.state, JobState::Discarded, "{:?}", refused.reason);
    let unfinished = format!("nightporter_{}", job.to_string().replace('-', ""));
    assert_eq!(databases_like(source, &into).await + databases_like(source, &unfinished).await, 0);
}

fn held_if(condition: bool) -> Passage {
    if condition { Passage::Held } else { Passage::Free }
}

fn refused_if(condition: bool) -> Passage {
    if condition { Passage::Refused } else { Passage::Free }
}

async fn shop() -> String {
    let url = tests::postgres::fresh_database().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute(SHOP).await.unwrap();
    url
}

async fn sqlite(folder: &TempDir, megabytes: usize) -> String {
    let url = format!("sqlite:{}", folder.path().join("app.db").display());
    let mut connection = SqliteConnection::connect(&format!("{url}?mode=rwc")).await.unwrap();
    connection.execute("CREATE TABLE note (id INTEGER PRIMARY KEY, text BLOB)").await.unwrap();
    for _ in 0..megabytes {
        connection.execute("INSERT INTO note (text) VALUES (randomblob(1048576))").await.unwrap();
    }
    connection.close().await.unwrap();
    url
}

async fn contents(url: &str) -> Vec<(i64, Vec<u8>)> {
    let mut connection = SqliteConnection::connect(url).await.unwrap();
    sqlx::query_as("SELECT id, text FROM note ORDER BY id").fetch_all(&mut connection).await.unwrap()
}

/// Counts and digests of all rows, and what else a copy must have.
async fn fingerprint(url: &str) -> Vec<String> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let asked = "
        SELECT concat('customer ', count(*), ' ', sum(hashtextextended(t::text, 0)::numeric)) FROM customer t UNION ALL
        SELECT concat('purchase ', count(*), ' ', sum(hashtextextended(t::text, 0)::numeric)) FROM purchase t UNION ALL
        SELECT concat('spent ', count(*), ' ', sum(total)) FROM spent UNION ALL
        SELECT concat('sequence ', last_value) FROM purchase_id_seq UNION ALL
        SELECT concat('index ', indexdef) FROM pg_indexes WHERE schemaname = 'public' UNION ALL
        SELECT concat('constraint ', conname, ' ', convalidated) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        ORDER BY 1";
    sqlx::query_scalar(asked).fetch_all(&mut connection).await.unwrap()
}

const SESSIONS: &str = "
    FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'nightporter'
    AND pid <> pg_backend_pid() AND query LIKE CASE $1 WHEN 'waiting' THEN 'LOCK%' ELSE 'COPY%' END
    AND ($1 <> 'waiting' OR wait_event_type = 'Lock')";

async fn until_pg_dump_waits(url: &str) {
    let waits = async {
        while ask(url, format!("SELECT count(*) {SESSIONS}"), "waiting").await == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), waits).await.expect("pg_dump waits for the lock");
}

/// Ends the server's side of a `pg_dump` that waits for a lock, or that is in the middle of a table.
async fn terminate(url: &str, which: &str) -> i64 {
    ask(url, format!("SELECT count(pg_terminate_backend(pid)) {SESSIONS}"), which).await
}

async fn databases_like(url: &str, name: &str) -> i64 {
    ask(url, "SELECT count(*) FROM pg_database WHERE datname = $1".to_owned(), name).await
}

async fn ask(url: &str, sql: String, with: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(AssertSqlSafe(sql)).bind(with).fetch_one(&mut connection).await.unwrap()
}

async fn listed(url: &str) -> Listing {
    right(backups::list(&*open_store(url).await, None).await)
}

async fn open_store(url: &str) -> Box<dyn Store> {
    right(stores::open("test", &store_config(url), &secrets::Resolver::default()).await)
}

async fn open_database(url: &str) -> Box<dyn Database> {
    right(databases::open("test", &database_config(url), &secrets::Resolver::default()).await)
}

fn directory(folder: &TempDir) -> String {
    format!("file:{}", folder.path().display())
}

/// All files below a folder that are not folders, by their names.
fn files(folder: &TempDir) -> Vec<String> {
    fn walk(path: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(path).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => walk(&path, found),
                path => found.push(path.file_name().unwrap().to_string_lossy().into_owned()),
            }
        }
    }
    let mut found = Vec::new();
    walk(folder.path(), &mut found);
    found.sort();
    found
}

fn command_lines() -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).into_owned()).collect()
}

fn new_name() -> String {
    format!("test_{}", uuid::Uuid::new_v4().simple())
}

fn with_database(url: &str, name: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    url.set_path(name);
    url.into()
}

fn right<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| panic!("{}", failure.words()))
}
