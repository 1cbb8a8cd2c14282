//! `retention` of rows, on a real `PostgreSQL`: exactly what is due and not held goes, once, whatever dies on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use schemas::JobState;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tests::backup_world::BackupWorld;
use tests::porter::eventually;

/// Rows of every third day are held; ids are in no order of time; some rows have no time at all.
const SESSIONS: &str = "
    create table sessions (id bigint primary key, note text, legal_hold boolean, created_at timestamptz);
    insert into sessions
      select (n * 7919) % 30011, repeat('x', 20), n % 3 = 0, case when n % 100 <> 1 then now() - n * interval '1 hour' end
      from generate_series(1, 5000) n";

/// Those of them that are older than thirty days, and not held.
const DUE: &str = "created_at < now() - interval '30 days' and not coalesce(legal_hold, false)";

struct Shop {
    world: BackupWorld,
    url: String,
}

impl Shop {
    async fn open(tables: &str) -> Self {
        let url = tests::postgres::fresh_database().await;
        let shop = Self { world: BackupWorld::with(&[("shop", &url)], &[("nightly", "file:nowhere")]).await, url };
        shop.run(tables).await;
        shop
    }

    /// One with a store in a folder.
    async fn with_store(tables: &str, folder: &Path) -> Self {
        let url = tests::postgres::fresh_database().await;
        let store = format!("file:{}", folder.display());
        let shop = Self { world: BackupWorld::with(&[("shop", &url)], &[("nightly", &store)]).await, url };
        shop.run(tables).await;
        shop
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    async fn run(&self, statement: &str) {
        let statement = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
        self.connect().await.execute(statement).await.unwrap();
    }

    async fn count(&self, of: &str) -> i64 {
        let question = AssertSqlSafe(format!("select count(*) from {of}"));
        sqlx::query_scalar(question).fetch_one(&mut self.connect().await).await.unwrap()
    }

    /// All rows of a table, by id.
    async fn rows(&self, table: &str) -> BTreeMap<i64, Value> {
        let question = AssertSqlSafe(format!("select id, to_jsonb({table}.*)::text from {table}"));
        let rows: Vec<(i64, String)> = sqlx::query_as(question).fetch_all(&mut self.connect().await).await.unwrap();
        rows.into_iter().map(|(id, row)| (id, serde_json::from_str(&row).unwrap())).collect()
    }

    /// Runs a retention of the sessions with more arguments; its output.
    async fn retain(&self, more: Value) -> Value {
        self.world.complete("retention", &arguments("sessions", more)).await
    }

    /// Its sessions after the stock programs, by the commands in `docs/retention.md`, have put an object back.
    async fn with_its_archive_back(&self, object: &Path) -> BTreeMap<i64, Value> {
        let copy = format!(
            r"\copy lines from program 'zstd -dc {} | tail -n +2' csv quote e'\x01' delimiter e'\x02'",
            object.display()
        );
        let insert = "insert into sessions select r.* from lines, jsonb_populate_record(null::sessions, line->'row') r
                      on conflict do nothing";
        let psql = std::process::Command::new("psql")
            .args([&self.url, "-v", "ON_ERROR_STOP=1", "-c", "create temporary table lines (line jsonb)"])
            .args(["-c", &copy, "-c", insert])
            .output()
            .expect("psql is installed");
        assert!(psql.status.success(), "{psql:?}");
        self.rows("sessions").await
    }

    /// Why a retention of a table is given up.
    async fn refused(&self, table: &str, more: Value) -> String {
        let job = self.world.enqueue("retention", &arguments(table, more)).await;
        self.world.wait_for(job, &[JobState::Discarded]).await.reason.unwrap()
    }
}

fn arguments(table: &str, more: Value) -> Value {
    let mut args =
        json!({"of": "rows", "database": "shop", "table": table, "keep": "30d", "at_most": {"percent": 100}});
    args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    args
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_what_is_due_and_not_held_is_deleted_and_a_dry_run_says_it_before() {
    let shop = Shop::open(SESSIONS).await;
    let due = shop.count(&format!("sessions where {DUE}")).await;
    let before = shop.rows("sessions").await;
    let hold = json!({"hold": "legal_hold"});
    let said = shop.retain(json!({"hold": "legal_hold", "dry_run": true})).await;
    assert_eq!(
        (said["due"].as_i64(), said["deleted"].as_i64(), said["rows"].as_i64()),
        (Some(due), Some(0), Some(5000))
    );
    assert!(due > 2000 && said["held"].as_i64() > Some(1000), "{said}");
    assert_eq!(shop.rows("sessions").await, before, "a dry run deletes nothing");

    let done = shop.retain(hold.clone()).await;
    assert_eq!(done["deleted"].as_i64(), Some(due), "{done}");
    assert_eq!(shop.count(&format!("sessions where {DUE}")).await, 0);
    assert_eq!(shop.count("sessions").await, 5000 - due, "and nothing else");
    assert_eq!(shop.retain(hold).await["deleted"], 0, "twice is once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_several_columns_and_of_text_and_times_without_zones_are_walked() {
    let shop = Shop::open(
        "create schema app;
         create table app.\"Log\" (tenant text, seq integer, \"createdAt\" timestamp default now(), primary key (tenant, seq));
         insert into app.\"Log\" select chr(97 + n % 26) || '''é', n, (now() at time zone 'UTC') - n * interval '1 day'
         from generate_series(1, 3000) n",
    )
    .await;
    let args = arguments("app.\"Log\"", json!({"column": "createdAt", "keep": "1000d"}));
    let done = shop.world.complete("retention", &args).await;
    assert!((2000..=2001).contains(&done["deleted"].as_i64().unwrap()), "{done}");
    assert_eq!(shop.count("app.\"Log\" where seq > 1000").await, 0);
    assert_eq!(shop.count("app.\"Log\" where seq < 1000").await, 999);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_person_must_decide_is_refused_before_anything_is_deleted() {
    let shop = Shop::open(&format!(
        "{SESSIONS};
         create table users (id integer primary key, created_at date default '2020-01-01');
         create table orders (id integer primary key, owner integer references users on delete cascade);
         create table bare (id integer, created_at timestamptz);
         create table parents (id integer primary key, created_at timestamptz default '2020-01-01');
         create table children (parent integer references parents);
         insert into parents values (1), (2); insert into children values (2)"
    ))
    .await;
    let typo = shop.refused("sessions", json!({"keep": "1d", "at_most": {}})).await;
    assert!(typo.contains("of the 5000 rows") && typo.contains("more than the 2500"), "{typo}");
    let rows = shop.refused("sessions", json!({"at_most": {"percent": 100, "rows": 7}})).await;
    assert!(rows.contains("more than the 7"), "{rows}");
    let cascades = shop.refused("users", json!({})).await;
    assert!(cascades.contains("orders") && cascades.contains("ON DELETE CASCADE"), "{cascades}");
    assert!(shop.refused("bare", json!({})).await.contains("no primary key"));
    assert!(shop.refused("nothing", json!({})).await.contains("there is no table `nothing`"));
    assert!(shop.refused("sessions", json!({"column": "note"})).await.contains("must be a timestamp or a date"));
    assert!(shop.refused("sessions", json!({"hold": "no_such_column"})).await.contains("no_such_column"));
    assert!(shop.refused("parents", json!({})).await.contains("children"), "rows that others refer to stay");
    assert_eq!((shop.count("sessions").await, shop.count("parents").await), (5000, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_move_into_a_table_are_in_one_of_both() {
    let shop = Shop::open(&format!("{SESSIONS}; create table old_sessions (like sessions)")).await;
    let before = shop.rows("sessions").await;
    let done = shop.retain(json!({"hold": "legal_hold", "archive": {"table": "old_sessions"}})).await;
    let (live, mut archived) = (shop.rows("sessions").await, shop.rows("old_sessions").await);
    assert_eq!(done["deleted"].as_u64(), Some(archived.len() as u64), "{done}");
    assert_eq!(live.len() + archived.len(), before.len());
    archived.extend(live);
    assert_eq!(archived, before);
}

/// The rows of all objects in a store.
fn archived(folder: &Path) -> BTreeMap<i64, Value> {
    let mut rows = BTreeMap::new();
    for object in objects(folder) {
        let text = zstd_text(&object);
        for line in text.lines().skip(1) {
            let row = serde_json::from_str::<Value>(line).unwrap()["row"].clone();
            assert!(rows.insert(row["id"].as_i64().unwrap(), row).is_none(), "a row was archived twice");
        }
    }
    rows
}

fn objects(folder: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(objects(&path));
        } else if path.to_string_lossy().ends_with(".jsonl.zst") {
            found.push(path);
        }
    }
    found
}

/// What the stock program makes of it.
fn zstd_text(object: &Path) -> String {
    let output = std::process::Command::new("zstd").arg("-dc").arg(object).output().expect("zstd is installed");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go_into_a_store_before_they_go_and_none_is_lost_where_a_worker_dies_between() {
    let folder = tempfile::tempdir().unwrap();
    let mut shop = Shop::with_store(SESSIONS, folder.path()).await;
    let before = shop.rows("sessions").await;
    let due: BTreeSet<i64> =
        sqlx::query_scalar(AssertSqlSafe(format!("select id from sessions where {DUE} order by id")))
            .fetch_all(&mut shop.connect().await)
            .await
            .unwrap()
            .into_iter()
            .collect();
    let mut some = due.iter().copied();
    let [locked, changed, held] = std::array::from_fn(|_| some.next().unwrap());

    // A lock on one of the rows keeps the deletion waiting while the object is there already.
    let mut other = shop.connect().await;
    let mut lock = other.begin().await.unwrap();
    sqlx::query("select 1 from sessions where id = $1 for update").bind(locked).execute(&mut *lock).await.unwrap();
    let args = arguments("sessions", json!({"hold": "legal_hold", "archive": {"store": "nightly"}}));
    let job = shop.world.enqueue("retention", &args).await;
    eventually("the object is written", async || (!objects(folder.path()).is_empty()).then_some(())).await;
    shop.world.stop_worker().await;
    assert_eq!(shop.rows("sessions").await, before, "nothing is deleted yet");
    shop.run(&format!("update sessions set note = 'changed' where id = {changed}")).await;
    shop.run(&format!("update sessions set legal_hold = true where id = {held}")).await;
    lock.rollback().await.unwrap();
    shop.world.start_worker();

    let done = shop.world.completed(job).await;
    assert_eq!(done["deleted"].as_u64(), Some(due.len() as u64 - 2), "{done}");
    let (live, archived) = (shop.rows("sessions").await, archived(folder.path()));
    assert_eq!(live[&changed]["note"], "changed", "what changed after it was archived stays");
    assert_eq!(live[&held]["legal_hold"], true, "what was held meanwhile stays");
    for (id, row) in &before {
        let gone = !live.contains_key(id);
        assert_eq!(gone, due.contains(id) && ![changed, held].contains(id), "row {id}");
        if gone {
            assert_eq!(&archived[id], row, "row {id} is in neither");
        }
    }
    assert_eq!(shop.with_its_archive_back(&objects(folder.path())[0]).await.len(), before.len());
    assert_eq!(shop.rows("sessions").await[&locked], before[&locked], "what was archived is back as it was");
    shop.run(&format!("delete from sessions where {DUE} and id <> {changed}")).await;
    // The next run takes what changed, as it is now.
    let next = shop.world.complete("retention", &args).await;
    assert_eq!(next["deleted"], 1, "{next}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_archived_is_found_again_without_reading_the_whole_stretch_for_each_part_of_it() {
    const ROWS: i64 = 60_000;
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::with_store(
        &format!(
            "create table logs (id bigint primary key, created_at timestamptz) with (autovacuum_enabled = false);
             insert into logs select n, now() - case when n % 4 = 0 then interval '60 days' else interval '0' end
               from generate_series(1, {ROWS}) n;
             analyze logs;
             do $$ begin
               execute format('alter database %I set enable_seqscan = off', current_database());
               execute format('alter database %I set enable_bitmapscan = off', current_database());
             end $$"
        ),
        folder.path(),
    )
    .await;
    let done = shop.world.complete("retention", &arguments("logs", json!({"archive": {"store": "nightly"}}))).await;
    assert_eq!(done["deleted"], ROWS / 4, "{done}");
    let deleted = format!("pg_stat_user_tables where relname = 'logs' and n_tup_del = {}", ROWS / 4);
    eventually("the statistics are written", async || (shop.count(&deleted).await == 1).then_some(())).await;
    let question = "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'logs_pkey'";
    let read: i64 = sqlx::query_scalar(question).fetch_one(&mut shop.connect().await).await.unwrap();
    // Counted, measured, read and deleted: each looks at each row once.
    assert!((ROWS * 3..ROWS * 5).contains(&read), "{read} entries of the index were read for {ROWS} rows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_in_the_middle_is_followed_by_one_that_deletes_the_rest() {
    let mut shop = Shop::open(SESSIONS).await;
    let due = shop.count(&format!("sessions where {DUE}")).await;
    let last: i64 = sqlx::query_scalar(AssertSqlSafe(format!("select max(id) from sessions where {DUE}")))
        .fetch_one(&mut shop.connect().await)
        .await
        .unwrap();
    let mut other = shop.connect().await;
    let mut lock = other.begin().await.unwrap();
    sqlx::query("select 1 from sessions where id = $1 for update").bind(last).execute(&mut *lock).await.unwrap();
    let job = shop.world.enqueue("retention", &arguments("sessions", json!({"hold": "legal_hold"}))).await;
    let left = format!("sessions where {DUE}");
    eventually("some are deleted", async || (shop.count(&left).await < due).then_some(())).await;
    shop.world.stop_worker().await;
    assert!(shop.count(&left).await > 0, "the locked one is there");
    lock.rollback().await.unwrap();
    shop.world.start_worker();
    shop.world.completed(job).await;
    assert_eq!(shop.count(&left).await, 0);
    assert_eq!(shop.count("sessions").await, 5000 - due);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_rows_go_into_objects_of_bounded_size_and_none_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    // Thirty rows of three megabytes, and one that is larger than an object alone: nothing that could be compressed away
    // would fill the memory.
    let shop = Shop::with_store(
        "create table pages (id bigint primary key, text text, created_at timestamptz default '2020-01-01');
         insert into pages select n, repeat(md5(n::text), 100000) from generate_series(1, 30) n;
         insert into pages select 0, repeat(md5('0'), 1200000)",
        folder.path(),
    )
    .await;
    let before = shop.rows("pages").await;
    let done = shop.world.complete("retention", &arguments("pages", json!({"archive": {"store": "nightly"}}))).await;
    assert_eq!((done["deleted"].as_u64(), shop.count("pages").await), (Some(31), 0), "{done}");
    let objects = objects(folder.path());
    assert!(objects.len() >= 4, "{} objects", objects.len());
    let mut back = BTreeMap::new();
    for object in &objects {
        let text = zstd_text(object);
        let rows: Vec<Value> = text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(text.len() < 36 << 20 || rows.len() == 1, "{} rows of {} bytes in one", rows.len(), text.len());
        back.extend(rows.into_iter().map(|line| (line["row"]["id"].as_i64().unwrap(), line["row"].clone())));
    }
    assert!(back == before, "what is in the objects is what was in the table");
}
