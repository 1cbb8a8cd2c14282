//! `maintain`: the upkeep of live databases.

use schemas::JobState;
use serde_json::{Value, json};
use sqlx::Executor;
use tests::backup_world::{BackupWorld, database_config, has_the_names_of};
use tests::migration_world::Target;
use tests::porter::eventually;
use worker::WorldConfig;

/// A table with dead rows and a bloated index that autovacuum leaves alone; and a world with the database `main`.
async fn neglected() -> (Target, BackupWorld) {
    let target = neglected_target().await;
    let world = BackupWorld::with(&[("main", &target.url())], &[]).await;
    (target, world)
}

async fn neglected_target() -> Target {
    let target = Target::postgres().await;
    for sql in [
        "create table \"Guest\" (id integer primary key, name text) with (autovacuum_enabled = false)",
        "insert into \"Guest\" select n, 'guest ' || n from generate_series(1, 120000) n",
        "analyze \"Guest\"",
        "delete from \"Guest\" where id % 20 <> 0",
    ] {
        target.run(sql).await;
    }
    eventually("the statistics have come", async || {
        let dead = target.texts("select n_dead_tup::text from pg_stat_user_tables where relname = 'Guest'").await;
        (dead[0].parse::<i64>().unwrap() >= 100_000).then_some(())
    })
    .await;
    target
}

fn maintain(more: Value) -> Value {
    let mut args = json!({"database": "main"});
    args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    args
}

const DONE: [&str; 2] = ["vacuum public.\"Guest\"", "reindex public.\"Guest_pkey\""];

#[tokio::test]
async fn what_the_statistics_ask_for_is_done_once_and_a_second_job_finds_nothing() {
    let (target, world) = neglected().await;
    let size = "select pg_relation_size('\"Guest_pkey\"')::text";
    let before: u64 = target.texts(size).await[0].parse().unwrap();
    let output = world.complete("maintain", &maintain(json!({}))).await;
    assert_eq!((&output["done"], &output["count"], &output["left"]), (&json!(DONE), &json!(2), &json!([])));
    has_the_names_of("maintain", &output);
    let after: u64 = target.texts(size).await[0].parse().unwrap();
    assert!(after * 4 < before, "{before} bytes, then {after}");
    let again = world.complete("maintain", &maintain(json!({}))).await;
    assert_eq!(again["done"], json!([]));
    world.close().await;
}

#[tokio::test]
async fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let (target, world) = neglected().await;
    let output = world.complete("maintain", &maintain(json!({"dry_run": true}))).await;
    let statements: Vec<&str> =
        output["plan"].as_array().unwrap().iter().map(|it| it["statement"].as_str().unwrap()).collect();
    assert_eq!(
        statements,
        ["VACUUM (ANALYZE) public.\"Guest\""],
        "its index is bloated once the vacuum has counted it"
    );
    assert!(output["plan"][0]["why"].as_str().unwrap().contains("dead rows"));
    has_the_names_of("maintain", &output);
    let vacuums = "select vacuum_count::text from pg_stat_user_tables where relname = 'Guest'";
    assert_eq!(target.texts(vacuums).await, ["0"]);
    let only = world.complete("maintain", &maintain(json!({"dry_run": true, "tasks": ["reindex"]}))).await;
    assert_eq!(only["plan"], json!([]));
    world.close().await;
}

#[tokio::test]
async fn leftovers_are_dropped_invalid_indexes_built_anew_and_what_is_refused_is_told_at_the_end() {
    let target = Target::postgres().await;
    for sql in [
        "create table guest (id integer, name text) with (autovacuum_enabled = false)",
        "insert into guest values (1, 'a'), (2, 'a')",
        "create index guest_name on guest (name)",
        "create index guest_name_ccnew on guest (name)",
        "create index guest_name_ccold1 on guest (name)",
        "create index a_ccnew on guest (name)",
        "create unique index twice on guest (id)",
        // As an interrupted build leaves them.
        "update pg_index set indisvalid = false where indexrelid in
         ('guest_name'::regclass, 'guest_name_ccnew'::regclass, 'guest_name_ccold1'::regclass)",
    ] {
        target.run(sql).await;
    }
    let world = BackupWorld::with(&[("main", &target.url())], &[]).await;
    let args = maintain(json!({"tasks": ["leftovers", "reindex"]}));
    let output = world.complete("maintain", &args).await;
    let done = json!(["drop public.guest_name_ccnew", "drop public.guest_name_ccold1", "reindex public.guest_name"]);
    assert_eq!(output["done"], done);
    let indexes = "select relname || ' ' || indisvalid from pg_index join pg_class on oid = indexrelid
                   where indrelid = 'guest'::regclass order by 1";
    assert_eq!(target.texts(indexes).await, ["a_ccnew true", "guest_name true", "twice true"]);

    for sql in [
        "drop index twice",
        "alter table guest add column copy text default 'same'",
        "create index twice on guest (copy)",
        "update pg_index set indisvalid = false, indisunique = true where indexrelid = 'twice'::regclass",
        "update pg_index set indisvalid = false where indexrelid = 'guest_name'::regclass",
    ] {
        target.run(sql).await;
    }
    let reason = world.discarded("maintain", &args).await;
    assert!(reason.contains("1 of 2 things were refused") && reason.contains("reindex public.twice: "), "{reason}");
    assert!(target.texts(indexes).await.contains(&"guest_name true".to_owned()), "the others are done all the same");
    let left = "select relname from pg_class where relname ~ 'twice_cc'";
    assert!(target.texts(left).await.is_empty(), "a refused build leaves nothing behind");
    world.close().await;
}

#[tokio::test]
async fn a_long_transaction_is_waited_for_without_cost_and_the_rest_is_done_after_it() {
    let target = neglected_target().await;
    let databases = [("main".to_owned(), database_config(&target.url()))].into();
    let world = BackupWorld::by_hand(WorldConfig { databases, ..WorldConfig::default() }).await;
    let mut other = target.session().await;
    other.execute("begin; select count(*) from \"Guest\"").await.unwrap();
    eventually("it is long", async || {
        let open = "select count(*)::text from pg_stat_activity where datname = current_database() \
                    and xact_start < clock_timestamp() - interval '1 s'";
        (target.texts(open).await == ["1"]).then_some(())
    })
    .await;
    let job = world.enqueue("maintain", &maintain(json!({"long_transaction": "1s"}))).await;
    let view = world.wait_for(job, &[JobState::Scheduled]).await;
    assert_eq!(view.attempts[0].outcome.as_deref(), Some("snoozed"));
    let reason = view.attempts[0].error.clone().unwrap_or_default() + &view.reason.unwrap_or_default();
    assert!(reason.contains("has been open for"), "{reason}");
    other.execute("rollback").await.unwrap();
    world.pass(std::time::Duration::from_mins(2)).await;
    assert_eq!(world.completed(job).await["done"], json!(DONE));
    world.close().await;
}

#[tokio::test]
async fn when_its_time_is_up_it_ends_and_says_what_is_left_and_why() {
    let (target, world) = neglected().await;
    let mut other = target.session().await;
    other.execute("begin; lock table \"Guest\" in share mode").await.unwrap();
    let args = maintain(json!({"within": "10s", "tasks": ["vacuum"]}));
    let output = world.complete("maintain", &args).await;
    assert_eq!((&output["done"], &output["left"]), (&json!([]), &json!(["vacuum public.\"Guest\""])));
    assert!(output["why"].as_str().unwrap().contains("others hold the table's lock"), "{output}");
    world.close().await;
}

#[tokio::test]
async fn interrupted_while_it_builds_an_index_it_goes_on_and_leaves_nothing_behind() {
    let (target, mut world) = neglected().await;
    // The build waits for this one to end.
    let mut other = target.session().await;
    other.execute("vacuum analyze \"Guest\"").await.unwrap();
    other.execute("begin; insert into \"Guest\" values (-1, 'late')").await.unwrap();
    let job = world.enqueue("maintain", &maintain(json!({"tasks": ["vacuum", "reindex"]}))).await;
    let building = "select count(*)::text from pg_stat_activity where query like 'REINDEX INDEX CONCURRENTLY%' and state = 'active'";
    eventually("it builds", async || (target.texts(building).await == ["1"]).then_some(())).await;
    eventually("a half-built index is there", async || {
        (target.texts("select relname::text from pg_class where relname ~ '_ccnew'").await.len() == 1).then_some(())
    })
    .await;
    world.stop_worker().await;
    eventually("the build ends with the attempt", async || (target.texts(building).await == ["0"]).then_some(())).await;
    other.execute("rollback").await.unwrap();
    world.start_worker();
    assert_eq!(world.completed(job).await["done"], json!(["reindex public.\"Guest_pkey\""]));
    let indexes = "select relname || ' ' || indisvalid from pg_index join pg_class on oid = indexrelid
                   where indrelid = '\"Guest\"'::regclass";
    assert_eq!(target.texts(indexes).await, ["Guest_pkey true"]);
    world.close().await;
}

#[tokio::test]
async fn what_an_earlier_attempt_finished_is_not_done_again() {
    let (target, mut world) = neglected().await;
    world.stop_worker().await;
    let chore =
        json!({"task": "vacuum", "name": "public.\"Guest\"", "why": "", "statement": "VACUUM public.\"Guest\""});
    let now = world.queue.clock().now();
    let steps = [
        ("begin", Some(json!(now))),
        ("plan tables", Some(json!([chore]))),
        ("vacuum public.\"Guest\"", Some(Value::Null)),
        ("plan indexes", None),
    ];
    let job = world.die_after("maintain", &maintain(json!({})), &steps).await;
    world.start_worker();
    assert_eq!(world.completed(job).await["done"], json!([DONE[0]]));
    let vacuums = "select vacuum_count::text from pg_stat_user_tables where relname = 'Guest'";
    assert_eq!(target.texts(vacuums).await, ["0"]);
    world.close().await;
}

#[tokio::test]
async fn sqlite_is_analyzed_where_it_asks_for_it_and_gives_back_free_pages() {
    let target = Target::sqlite().await;
    for sql in [
        "pragma auto_vacuum = incremental; vacuum",
        "create table guest (id integer primary key, name text)",
        "create index guest_name on guest (name)",
        "with recursive n(x) as (select 1 union all select x + 1 from n where x < 20000) \
         insert into guest select x, 'a rather long name of a guest ' || x from n",
        "delete from guest where id > 100",
    ] {
        target.run(sql).await;
    }
    let world = BackupWorld::with(&[("main", &target.url())], &[]).await;
    let plan = world.complete("maintain", &maintain(json!({"dry_run": true}))).await;
    assert_eq!(plan["left_count"], 2, "{plan}");
    assert!(target.texts("select name from sqlite_schema where name = 'sqlite_stat1'").await.is_empty());
    let output = world.complete("maintain", &maintain(json!({}))).await;
    assert_eq!(output["done"], json!(["vacuum main", "analyze \"main\".\"guest\""]));
    assert_eq!(target.texts("select cast(freelist_count as text) from pragma_freelist_count").await, ["0"]);
    assert_eq!(target.texts("select name from sqlite_schema where name = 'sqlite_stat1'").await.len(), 1);
    let again = world.complete("maintain", &maintain(json!({}))).await;
    assert_eq!(again["done"], json!([]));
    world.close().await;
}
