//! Proofs: a backup is restored into a scratch database and compared with what was dumped, or it is red.

use schemas::JobId;
use tests::proxy::{Line, Proxy};
use worker::backups::marks;
use worker::databases::{Contents, Scratch};

use super::*;

/// What makes a digest differ where it should not: settings of the database that no dump carries, columns that a restore
/// orders anew, names that need quoting, a column with the name of an alias, tables without rows and without columns.
const ODDITIES: &str = r#"
    CREATE SCHEMA "Odd one";
    CREATE TABLE "Odd one"."a.b" ("t" float8, "Ü x" timestamptz, b bytea, i interval, m money, d date, r regclass);
    INSERT INTO "Odd one"."a.b" SELECT n / 3.0, 'epoch'::timestamptz + n * interval '1 hour', decode(md5(n::text), 'hex'),
      n * interval '1 day 1 second', (n * 1.5)::numeric::money, 'epoch'::date + n, 'customer'::regclass
      FROM generate_series(1, 100) n;
    INSERT INTO "Odd one"."a.b" VALUES (NULL, NULL, NULL, NULL, NULL, NULL, NULL), ('NaN', 'infinity', '', NULL, NULL, NULL, NULL);
    INSERT INTO "Odd one"."a.b" VALUES (NULL, NULL, NULL, NULL, NULL, NULL, NULL);
    CREATE TABLE nothing ();
    CREATE TABLE empty (id int);
    CREATE TABLE doubled (n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
    INSERT INTO doubled (n) SELECT generate_series(1, 50);
    CREATE TABLE parent (a int, b text);
    CREATE TABLE child (z text, b text, a int);
    ALTER TABLE child INHERIT parent;
    INSERT INTO child SELECT 'z' || n, 'b' || n, n FROM generate_series(1, 50) n;
    INSERT INTO parent SELECT n, 'p' || n FROM generate_series(1, 5) n;"#;

#[tokio::test]
async fn what_the_tables_held_is_taken_in_the_dumps_own_snapshot_and_any_other_row_is_found() {
    let source = shop().await;
    run(&source, ODDITIES).await;
    for setting in [
        "DateStyle = 'SQL, DMY'",
        "TimeZone = 'Asia/Kathmandu'",
        "bytea_output = 'escape'",
        "extra_float_digits = -10",
        "IntervalStyle = 'iso_8601'",
        "search_path = 'Odd one'",
        "quote_all_identifiers = on",
        "xmloption = 'document'",
    ] {
        let name = source.rsplit('/').next().unwrap();
        run(&source, &format!("ALTER DATABASE \"{name}\" SET {setting}")).await;
    }
    let mut writer = PgConnection::connect(&source).await.unwrap();
    let database = open_database(&source).await;
    let mut dump = right(database.dump("x").await);
    writer.execute("INSERT INTO public.customer VALUES (0, 'too late', NULL)").await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = right(dump.next().await) {
        bytes.extend_from_slice(&piece);
    }
    let contents = right(dump.finish().await).contents.unwrap();
    let rows = |table: &str| contents.tables[table].rows;
    assert_eq!((rows("public.customer"), rows("public.purchase")), (20_000, 60_000));
    assert_eq!((rows("\"Odd one\".\"a.b\""), rows("public.parent"), rows("public.child")), (103, 5, 50));
    assert_eq!((rows("public.nothing"), rows("public.empty"), rows("public.part_one")), (0, 0, 10));
    assert!(!contents.tables.contains_key("public.parted"), "its rows are those of its partition");
    let large = &contents.tables["public.purchase"];
    assert!(large.digest.is_none() && contents.digested() == contents.tables.len() - 1, "{contents:?}");

    let scratch = Scratch { job: JobId::at(chrono::Utc::now()) };
    let reader = Box::new(std::io::Cursor::new(bytes));
    right(database.restore(&scratch.name(), &scratch.job.to_string(), reader).await);
    let copy = with_database(&source, &scratch.name());
    assert_eq!(differences(&*database, scratch, &contents).await, Vec::<String>::new());
    for (change, said) in [
        ("UPDATE customer SET name = name || ' ' WHERE id = 7", "public.customer holds other rows"),
        ("UPDATE customer SET note = NULL WHERE id = 7", "public.customer holds other rows"),
        (
            "UPDATE customer a SET name = b.name FROM customer b WHERE a.id + b.id = 15",
            "public.customer holds other rows",
        ),
        ("DELETE FROM purchase WHERE id = 9", "public.purchase has 59999 rows instead of 60000"),
        ("TRUNCATE child", "public.child has 0 rows instead of 50"),
        ("UPDATE \"Odd one\".\"a.b\" SET \"t\" = 0.1 + 0.2 WHERE \"t\" > 33", "\"Odd one\".\"a.b\" holds other rows"),
        ("DELETE FROM doubled WHERE n < 3; INSERT INTO doubled VALUES (50), (50)", "public.doubled holds other rows"),
        ("DROP TABLE empty", "public.empty is missing"),
        ("CREATE TABLE more (id int)", "public.more was not there"),
    ] {
        let mut changed = PgConnection::connect(&copy).await.unwrap();
        changed.execute(AssertSqlSafe(change)).await.unwrap();
        let found = differences(&*database, scratch, &contents).await.join("; ");
        assert!(found.contains(said), "{change}: {found}");
    }
    right(database.drop_scratch(scratch).await);
    assert!(!right(database.scratches().await).contains(&scratch));
}

#[tokio::test]
async fn the_dump_joins_the_snapshot_that_is_counted_however_late_it_begins() {
    let source = shop().await;
    let url = url::Url::parse(&source).unwrap();
    let server = url.socket_addrs(|| None).unwrap()[0];
    let proxy = Proxy::to(server).await;
    // The first connection counts; the second one is pg_dump's.
    proxy.set(Line::HoldsFrom(1));
    let mut through = url.clone();
    through.set_port(Some(proxy.address().port())).unwrap();
    let mut dump = right(open_database(through.as_str()).await.dump("x").await);
    run(&source, "INSERT INTO customer VALUES (0, 'too late', NULL)").await;
    proxy.set(Line::Good);
    let mut bytes = Vec::new();
    while let Some(piece) = right(dump.next().await) {
        bytes.extend_from_slice(&piece);
    }
    let contents = right(dump.finish().await).contents.unwrap();
    assert_eq!(contents.tables["public.customer"].rows, 20_000);
    let (database, scratch) = (open_database(&source).await, Scratch { job: JobId::at(chrono::Utc::now()) });
    let reader = Box::new(std::io::Cursor::new(bytes));
    right(database.restore(&scratch.name(), &scratch.job.to_string(), reader).await);
    assert_eq!(differences(&*database, scratch, &contents).await, Vec::<String>::new());
    right(database.drop_scratch(scratch).await);
}

#[tokio::test]
async fn a_backup_is_proven_by_a_restore_and_the_store_says_so_without_the_ledger() {
    let (source, bucket) = (shop().await, Bucket::on_server().await);
    let world = BackupWorld::with(&[("main", &source)], &[("nightly", &bucket.store_url())]).await;
    let made = world.complete("backup", &json!({"database": "main", "store": "nightly"})).await;
    let key = made["backup"].as_str().unwrap();
    assert_eq!(listed(&bucket.store_url()).await.marks(key).proven_at(), None);
    let args = json!({"database": "main", "store": "nightly", "assert": [
        {"sql": "SELECT count(*) FROM customer;", "equals": 20000},
        {"sql": "SELECT sum(total) > 0 FROM spent -- a comment"},
        {"sql": "WITH x AS (SELECT 7.5 AS n) SELECT n FROM x", "at_least": 7, "at_most": 8},
    ]});
    let proven = proves(&world, &source, &args).await;
    assert_eq!((&proven["backup"], &proven["proven"]), (&made["backup"], &json!(true)));
    assert_eq!(proven["rows"], json!(80_010));
    let first = listed(&bucket.store_url()).await.marks(key).proven_at().expect("it is proven");
    let store = open_store(&bucket.store_url()).await;
    let proof = right(marks::last_proof(&*store, key).await).unwrap();
    assert_eq!((proof.at.timestamp(), proof.tables, proof.assertions.len()), (first.timestamp(), 3, 3));

    // Once more: the later proof takes the earlier one's place.
    until_another_second(first).await;
    proves(&world, &source, &args).await;
    assert!(listed(&bucket.store_url()).await.marks(key).proven_at().unwrap() > first);
    assert_eq!(right(store.list("").await).len(), 3, "data, manifest, proof");
    world.close().await;
}

#[tokio::test]
async fn a_manifest_that_says_something_else_than_what_comes_back_is_written_down_as_wrong() {
    let (source, folder) = (shop().await, TempDir::new().unwrap());
    let world = BackupWorld::with(&[("main", &source)], &[("nightly", &directory(&folder))]).await;
    let made = world.complete("backup", &json!({"database": "main", "store": "nightly"})).await;
    let key = made["backup"].as_str().unwrap();
    let args = json!({"database": "main", "store": "nightly"});
    proves(&world, &source, &args).await;
    let proven_at = listed(&directory(&folder)).await.marks(key).proven_at().unwrap();
    until_another_second(proven_at).await;
    alter_manifest(&folder, key, |manifest| {
        let rows = &mut manifest["contents"]["tables"]["public.purchase"]["rows"];
        *rows = json!(rows.as_u64().unwrap() + 1);
    });
    let said = refused(&world, &source, &args).await;
    assert!(said.contains("public.purchase has 60000 rows instead of 60001"), "{said}");
    let marks = listed(&directory(&folder)).await.marks(key);
    assert!(marks.disproved() && marks.proven_at().is_none(), "{marks:?}");
    world.close().await;
}

#[tokio::test]
async fn one_flipped_byte_in_the_store_is_written_down_as_wrong() {
    let (source, folder) = (shop().await, TempDir::new().unwrap());
    let world = BackupWorld::with(&[("main", &source)], &[("nightly", &directory(&folder))]).await;
    let made = world.complete("backup", &json!({"database": "main", "store": "nightly"})).await;
    let data = folder.path().join(made["key"].as_str().unwrap());
    let mut bytes = std::fs::read(&data).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&data, bytes).unwrap();
    refused(&world, &source, &json!({"database": "main", "store": "nightly"})).await;
    assert!(listed(&directory(&folder)).await.marks(made["backup"].as_str().unwrap()).disproved());
    world.close().await;
}

#[tokio::test]
async fn an_assertion_that_does_not_hold_or_cannot_be_asked_is_red() {
    let (folder, lake) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let app = sqlite(&folder, 1).await;
    let source = shop().await;
    let databases = [("main", source.as_str()), ("app", app.as_str())];
    let world = BackupWorld::with(&databases, &[("nightly", &directory(&lake))]).await;
    for (database, table) in [("main", "customer"), ("app", "note")] {
        let made = world.complete("backup", &json!({"database": database, "store": "nightly"})).await;
        let key = made["backup"].as_str().unwrap();
        let with = |sql: &str| json!({"database": database, "store": "nightly", "assert": [{"sql": sql}]});
        proves(&world, &source, &with(&format!("SELECT count(*) > 0 FROM {table}"))).await;
        // What cannot be asked says nothing about the backup: it stays proven, and the job is red.
        for (cannot, why) in [
            ("SELECT count(*) FROM missing", "missing"),
            ("SELECT 1 WHERE 1 = 2", "no row"),
            ("SELECT 1 UNION SELECT 2", "several rows"),
            ("SELECT 1, 2", "2 columns"),
            (&*format!("SELECT 1) AS x; DROP TABLE {table}; SELECT * FROM (SELECT 1"), "asking"),
        ] {
            let said = refused(&world, &source, &with(cannot)).await;
            assert!(said.contains(why), "{cannot}: {said}");
            assert!(listed(&directory(&lake)).await.marks(key).proven_at().is_some());
        }
        let proven_at = listed(&directory(&lake)).await.marks(key).proven_at().unwrap();
        until_another_second(proven_at).await;
        let said = refused(&world, &source, &with(&format!("SELECT count(*) FROM {table} WHERE 1 = 2"))).await;
        assert!(said.contains("answers 0 and not true"), "{said}");
        assert!(listed(&directory(&lake)).await.marks(key).disproved());
    }
    assert_eq!(files(&folder), ["app.db"]);
    world.close().await;
}

#[tokio::test]
async fn a_manifest_without_counts_is_still_a_backup_and_cannot_be_proven() {
    let (folder, lake) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (app, source) = (sqlite(&folder, 1).await, tests::postgres::fresh_database().await);
    let world = BackupWorld::with(&[("app", &app)], &[("nightly", &directory(&lake))]).await;
    let made = world.complete("backup", &json!({"database": "app", "store": "nightly"})).await;
    let key = made["backup"].as_str().unwrap();
    alter_manifest(&lake, key, |manifest| drop(manifest.as_object_mut().unwrap().remove("contents")));
    let said = refused(&world, &source, &json!({"database": "app", "store": "nightly"})).await;
    assert!(said.contains("does not say what its tables held"), "{said}");
    let listing = listed(&directory(&lake)).await;
    assert_eq!((listing.backups.len(), listing.marks(key)), (1, backups::Marks::default()));
    let restore = json!({"backup": key, "database": "app", "store": "nightly", "into": "copy.db"});
    world.complete("restore", &restore).await;
    world.close().await;
}

#[tokio::test]
async fn the_scratch_database_is_made_where_it_is_said_and_never_on_an_engine_of_another_kind() {
    let (folder, other, lake) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let (app, source) = (sqlite(&folder, 1).await, tests::postgres::fresh_database().await);
    let elsewhere = format!("sqlite:{}", other.path().join("any.db").display());
    let databases = [("app", app.as_str()), ("elsewhere", &elsewhere), ("main", &source)];
    let world = BackupWorld::with(&databases, &[("nightly", &directory(&lake))]).await;
    world.complete("backup", &json!({"database": "app", "store": "nightly"})).await;
    let with = |scratch: &str| json!({"database": "app", "store": "nightly", "scratch": scratch});
    // The database itself is not asked for anything: a proof needs the backup alone.
    std::fs::remove_file(folder.path().join("app.db")).unwrap();
    proves(&world, &source, &with("elsewhere")).await;
    assert_eq!((files(&folder), files(&other)), (Vec::new(), Vec::new()));
    let said = refused(&world, &source, &with("main")).await;
    assert!(said.contains("a backup of sqlite cannot be restored into postgresql"), "{said}");
    world.close().await;
}

#[tokio::test]
async fn a_verification_killed_while_it_restores_is_done_again_and_leaves_no_scratch_database() {
    let held = |method: &Method, target: &str| held_if(method == Method::GET && target.contains(".dump.zst"));
    killed_verifying(held).await;
}

#[tokio::test]
async fn a_verification_killed_before_its_proof_is_written_writes_it_once() {
    let held = |method: &Method, target: &str| held_if(method == Method::PUT && target.contains(".verified.json"));
    killed_verifying(held).await;
}

#[tokio::test]
async fn what_a_job_left_that_ended_is_dropped_by_the_next_and_what_another_ledger_may_own_is_not() {
    let (source, folder) = (shop().await, TempDir::new().unwrap());
    let world = BackupWorld::with(&[("main", &source)], &[("nightly", &directory(&folder))]).await;
    world.complete("backup", &json!({"database": "main", "store": "nightly"})).await;
    let ended = world.enqueue("noop", &json!({})).await;
    world.completed(ended).await;
    let (left, unfinished) = (Scratch { job: ended }, format!("nightporter_{}", ended.0.simple()));
    let unknown = Scratch { job: JobId::at(chrono::Utc::now()) };
    for name in [&left.name(), &unfinished, &unknown.name()] {
        run(&source, &format!("CREATE DATABASE {name}")).await;
    }
    proves(&world, &source, &json!({"database": "main", "store": "nightly"})).await;
    let there = async |name: String| databases_like(&source, &name).await;
    assert_eq!((there(left.name()).await, there(unfinished).await, there(unknown.name()).await), (0, 0, 1));
    right(open_database(&source).await.drop_scratch(unknown).await);
    world.close().await;
}

/// Holds a verification at the door, stops its worker there, opens the door and lets another worker finish the job.
async fn killed_verifying(rule: fn(&Method, &str) -> Passage) {
    let (source, bucket) = (shop().await, Bucket::on_server().await);
    let mut door = Door::before(&bucket.endpoint, rule).await;
    let stores = [("direct", bucket.store_url()), ("door", bucket.store_url_through(&door.endpoint))];
    let stores: Vec<(&str, &str)> = stores.iter().map(|(name, url)| (*name, url.as_str())).collect();
    let mut world = BackupWorld::with(&[("main", &source)], &stores).await;
    world.complete("backup", &json!({"database": "main", "store": "direct"})).await;
    let job = world.enqueue("verify", &json!({"database": "main", "store": "door"})).await;
    door.holds().await;
    world.stop_worker().await;
    door.open();
    world.start_worker();
    world.completed(job).await;
    world.close().await;
    gone(&source, job).await;
    let store = open_store(&bucket.store_url()).await;
    assert_eq!(right(store.list("").await).len(), 3, "data, manifest, one proof");
}

/// Verifies, for nothing; why.
async fn refused(world: &BackupWorld, server: &str, args: &Value) -> String {
    let job = world.enqueue("verify", args).await;
    let ends = [JobState::Completed, JobState::Discarded, JobState::Retryable];
    let ended = world.wait_for(job, &ends).await;
    assert_eq!(ended.state, JobState::Discarded, "{:?}", ended.reason);
    gone(server, job).await;
    ended.reason.unwrap_or_default()
}

/// Verifies; the output.
async fn proves(world: &BackupWorld, server: &str, args: &Value) -> Value {
    let job = world.enqueue("verify", args).await;
    let output = world.completed(job).await;
    gone(server, job).await;
    output
}

async fn differences(database: &dyn Database, scratch: Scratch, contents: &Contents) -> Vec<String> {
    contents.differences(&right(database.contents(scratch, contents).await))
}

fn alter_manifest(folder: &TempDir, key: &str, alter: impl FnOnce(&mut Value)) {
    let path = folder.path().join(key);
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    alter(&mut manifest);
    std::fs::write(&path, manifest.to_string()).unwrap();
}

/// Keys of proofs tell seconds apart.
async fn until_another_second(than: schemas::Timestamp) {
    tests::porter::eventually("the next second begins", async || {
        (chrono::Utc::now().timestamp() > than.timestamp()).then_some(())
    })
    .await;
}

async fn run(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
}

/// That nothing is left on a server of what a job restored.
async fn gone(server: &str, job: JobId) {
    let unfinished = format!("nightporter_{}", job.0.simple());
    assert_eq!(databases_like(server, &Scratch { job }.name()).await + databases_like(server, &unfinished).await, 0);
}
