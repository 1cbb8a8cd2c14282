//! `sql`: questions to live databases.

use serde_json::{Value, json};
use tests::backup_world::{BackupWorld, has_the_names_of};
use tests::migration_world::Target;
use tests::porter::eventually;
use tests::receiver::nowhere;

/// Two guests, and a world with the database `main`.
async fn with_guests(target: &Target) -> BackupWorld {
    target.run("create table guest (id integer primary key, name text)").await;
    target.run("insert into guest values (1, 'Ada'), (2, 'Grace')").await;
    BackupWorld::with(&[("main", &target.url())], &[]).await
}

fn ask(statement: &str, expect: Value) -> Value {
    json!({"database": "main", "statement": statement, "expect": expect})
}

fn slowly(statement: &str) -> Value {
    json!({"database": "main", "statement": statement, "expect": {"at_least": 0}, "time_limit": "1s"})
}

async fn targets() -> [Target; 2] {
    [Target::postgres().await, Target::sqlite().await]
}

#[tokio::test]
async fn an_answer_as_expected_completes_the_job_each_time_and_any_other_discards_it() {
    for target in targets().await {
        let world = with_guests(&target).await;
        for _ in 0..2 {
            let output = world.complete("sql", &ask("select count(*) from guest", json!({"equals": 2}))).await;
            assert_eq!(output, json!({"database": "main", "value": 2, "found": true}));
            has_the_names_of("sql", &output);
        }
        let passes = [
            ask("select name, id from guest order by id desc", json!({"equals": "Grace"})),
            ask("select 0.5", json!({"at_least": 0.25, "at_most": 0.5})),
            ask("select null", json!({"empty": false})),
            ask("with old as (select * from guest where id > 9) select id from old;", json!({"empty": true})),
            ask("-- comments\nvalues (7) -- are no matter", json!({"equals": 7})),
        ];
        for args in passes {
            world.complete("sql", &args).await;
        }
        let job = world.enqueue("sql", &ask("select count(*) from guest", json!({"at_most": 1}))).await;
        assert_eq!(world.wait_discarded(job).await, "the database `main`: the value is 2, not at most 1");
        let found = world.discarded("sql", &ask("select id from guest where id = 2", json!({"empty": true}))).await;
        assert_eq!(found, "the database `main`: the answer has a row, which begins with 2");
        world.close().await;
    }
}

#[tokio::test]
async fn of_what_a_statement_finds_only_the_first_value_is_kept_and_only_its_beginning() {
    for target in targets().await {
        let world = with_guests(&target).await;
        let output = world.complete("sql", &ask("select id, name from guest order by id", json!({"equals": 1}))).await;
        assert!(!output.to_string().contains("Ada"), "{output}");
        let long = "select replace('aaaaaaaaaa', 'a', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb')";
        let output = world.complete("sql", &ask(long, json!({"empty": false}))).await;
        assert!(output["value"].as_str().unwrap().len() <= 200);
        let longer = "select max(name) from (select replace(replace('aaaaaaaaaa', 'a', 'bbbbbbbbbbbbbbbbbbbb'), 'b', 'cccccccccccccccccccccccccc') as name) as x";
        let reason = world.discarded("sql", &ask(longer, json!({"empty": false}))).await;
        assert!(reason.contains("longer than 4096"), "{reason}");
        world.close().await;
    }
}

#[tokio::test]
async fn a_statement_that_tries_to_write_fails_and_the_reason_says_so() {
    let target = Target::postgres().await;
    target.run("create sequence s").await;
    let world = with_guests(&target).await;
    target
        .run("create function add() returns int language sql as 'insert into guest values (9, null) returning id'")
        .await;
    target
        .run(
            "create function sneak() returns int language plpgsql as \
             $$ begin set local transaction_read_only = off; insert into guest values (8, null); return 1; end $$",
        )
        .await;
    for statement in [
        "select add()",
        "select nextval('s')",
        "select id from guest for update",
        "select * from (with x as (insert into guest values (7, null) returning id) select id from x) as y",
        "with x as (insert into guest values (7, null) returning id) select id from x",
    ] {
        let reason = world.discarded("sql", &ask(statement, json!({"empty": false}))).await;
        assert!(reason.starts_with("the statement tries to write, and here it may only read: "), "{reason}");
    }
    for statement in
        ["select sneak()", "select set_config('transaction_read_only', 'off', true)", "select wrong from guest"]
    {
        let reason = world.discarded("sql", &ask(statement, json!({"empty": false}))).await;
        assert!(reason.starts_with("the statement failed: "), "{reason}");
    }
    assert_eq!(target.texts("select count(*)::text from guest").await, ["2"]);
    world.close().await;

    let target = Target::sqlite().await;
    let world = with_guests(&target).await;
    let reason = world.discarded("sql", &ask("select wrong from guest", json!({"empty": false}))).await;
    assert!(reason.starts_with("the statement failed: "), "{reason}");
    world.close().await;
}

#[tokio::test]
async fn what_is_no_question_is_refused_before_it_is_stored() {
    let catalog = worker::jobs::registry()
        .catalog(schemas::Names { databases: ["main".to_owned()].into(), ..Default::default() });
    for (statement, why) in [
        ("insert into guest values (1)", "does not only read"),
        ("with x as (select 1) delete from guest", "does not only read"),
        ("copy guest to program 'sh'", "does not only read"),
        ("select 1; select 2", "several statements"),
        ("select 1) as x; insert into guest values (6, null); select * from (select 1", "several statements"),
    ] {
        let problems = catalog.check("sql", &ask(statement, json!({"equals": 1})));
        assert!(problems.len() == 1 && problems[0].message.contains(why), "{statement}: {problems:?}");
    }
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_stopped_in_the_database_and_tried_again() {
    let endless = "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n";
    for (target, statement) in targets().await.into_iter().zip(["select 1 from pg_sleep(600)", endless]) {
        let world = with_guests(&target).await;
        let job = world.enqueue("sql", &slowly(statement)).await;
        let error = world.first_failure(job).await;
        assert!(error.contains("stopped after 1s"), "{error}");
        world.close().await;
    }
}

#[tokio::test]
async fn an_interrupted_question_does_not_go_on_in_the_database_and_is_asked_again() {
    let target = Target::postgres().await;
    let mut world = with_guests(&target).await;
    let asking = "select count(*)::text from pg_stat_activity where query like '%marked_by_the_test%' and state = 'active' \
                  and pid <> pg_backend_pid()";
    // It waits for a lock of ours, so that the second attempt can end.
    let mut other = target.session().await;
    sqlx::Executor::execute(&mut other, "begin; lock table guest in access exclusive mode").await.unwrap();
    let mut args = ask("select count(*) as marked_by_the_test from guest", json!({"equals": 2}));
    args["time_limit"] = json!("5m");
    let job = world.enqueue("sql", &args).await;
    let count = async |wanted: &str| (target.texts(asking).await == [wanted]).then_some(());
    eventually("it is asked", async || count("1").await).await;
    world.stop_worker().await;
    eventually("the question has ended with the attempt", async || count("0").await).await;
    world.start_worker();
    eventually("it is asked again", async || count("1").await).await;
    sqlx::Executor::execute(&mut other, "rollback").await.unwrap();
    assert_eq!(world.completed(job).await["value"], 2);
    world.close().await;
}

#[tokio::test]
async fn a_database_that_is_away_is_waited_for_and_its_password_is_not_shown() {
    let gone = nowhere().replace("http://", "postgres://app:hunter2-canary@") + "/shop";
    let world = BackupWorld::with(&[("main", &gone)], &[]).await;
    let job = world.enqueue("sql", &ask("select 1", json!({"equals": 1}))).await;
    let error = world.first_failure(job).await;
    assert!(error.contains("connecting to the database") && !error.contains("hunter2"), "{error}");
    world.close().await;
}
