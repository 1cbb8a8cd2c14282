//! Locks that cannot deadlock, stick, or queue the site.

use sqlx::{Connection, Executor, PgConnection};
use tests::migration_world::{FOR_EVER, Files, SOON, Target, apply_pending, words};
use tests::porter::eventually;
use worker::databases::Tool;
use worker::migrations::{AppliedState, Patience};

/// Waits until so many sessions of ours are in the database.
async fn sessions(target: &Target, count: usize) {
    let query = "select pid::text from pg_stat_activity where datname = current_database() and application_name = 'nightporter'";
    eventually(&format!("{count} sessions of ours are there"), async || {
        (target.texts(query).await.len() == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_index_is_built_concurrently_while_five_others_wait_for_the_lock() {
    for tool in [Tool::Sql, Tool::Sqlx, Tool::Prisma] {
        let target = Target::postgres().await;
        let (name, text) = match tool {
            Tool::Prisma => ("2_index/migration.sql", "create index concurrently i on a (id);"),
            _ => ("2_index.sql", "-- no-transaction\ncreate index concurrently i on a (id);"),
        };
        let table = if tool == Tool::Prisma { "1_table/migration.sql" } else { "1_table.sql" };
        let files = Files::of(&[(table, "create table a (id int)")]);
        apply_pending(&target, &files, tool, SOON).await.unwrap();
        files.write(name, text);
        let folder = files.read(tool, target.engine()).await;
        let mut history = target.history(tool, FOR_EVER).await.unwrap();
        let waiters: Vec<_> = (0..5)
            .map(|_| {
                let other = Target::Postgres(target.url());
                tokio::spawn(async move {
                    let mut history = other.history(tool, FOR_EVER).await.unwrap();
                    let applied = history.applied().await.unwrap().len();
                    history.close().await;
                    applied
                })
            })
            .collect();
        sessions(&target, 6).await;
        history.apply(&folder.migrations[1]).await.unwrap();
        assert!(waiters.iter().all(|waiter| !waiter.is_finished()), "the lock is held");
        history.close().await;
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), 2);
        }
        let valid = "select indisvalid::text from pg_index where indexrelid = 'i'::regclass";
        assert_eq!(target.texts(valid).await, ["true"]);
    }
}

#[tokio::test]
async fn a_lock_that_another_session_holds_is_reported_with_its_holder() {
    let target = Target::postgres().await;
    let mut holder = target.session().await;
    holder.execute("set application_name = 'somebody'; select pg_advisory_lock(72707369)").await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
    let short = Patience { tool_lock: std::time::Duration::from_millis(300), ..SOON };
    let said = words(&target.history(Tool::Prisma, short).await.err().unwrap());
    assert!(said.starts_with("retry: ") && said.contains(&format!("pid {pid}, application `somebody`")), "{said}");
    holder.close().await.unwrap();
    target.history(Tool::Prisma, FOR_EVER).await.unwrap();
}

#[tokio::test]
async fn a_file_lock_in_sqlite_is_reported_with_its_holder_and_ends_with_it() {
    let target = Target::sqlite().await;
    let holder = target.history(Tool::Sql, SOON).await.unwrap();
    let short = Patience { tool_lock: std::time::Duration::from_millis(300), ..SOON };
    let said = words(&target.history(Tool::Sqlx, short).await.err().unwrap());
    assert!(said.contains(&format!("pid {}", std::process::id())), "{said}");
    drop(holder);
    target.history(Tool::Sqlx, SOON).await.unwrap();
}

#[tokio::test]
async fn a_change_that_a_long_reader_blocks_gives_way_to_other_readers_and_is_tried_again() {
    let target = Target::postgres().await;
    let files = Files::of(&[("1.sql", "create table a (id int)")]);
    apply_pending(&target, &files, Tool::Sql, SOON).await.unwrap();
    files.write("2.sql", "create table b (id int); alter table a add column c int");
    let mut reader = target.session().await;
    reader.execute("begin; select * from a").await.unwrap();

    let failure = apply_pending(&target, &files, Tool::Sql, SOON).await.unwrap_err();
    assert!(words(&failure).starts_with("retry: ") && words(&failure).contains("nothing of this file remains"));
    assert_eq!(target.texts("select coalesce(to_regclass('b')::text, 'none')").await, ["none"]);

    let patient = Patience { tries: 10_000, ..SOON };
    let other = Target::Postgres(target.url());
    let change = tokio::spawn(async move { apply_pending(&other, &files, Tool::Sql, patient).await });
    let waits = "select pid::text from pg_locks where not granted and relation = 'a'::regclass";
    for _ in 0..5 {
        // Each of these queues behind the change, which gives way before the reader ends.
        eventually("the change waits for the reader", async || (!target.texts(waits).await.is_empty()).then_some(()))
            .await;
        target.texts("select id::text from a").await;
    }
    assert!(!change.is_finished(), "the reader still reads");
    reader.execute("commit").await.unwrap();
    assert_eq!(change.await.unwrap().unwrap(), ["2.sql"]);
}

/// A gate that a migration waits at: an advisory lock that the test holds.
async fn closed_gate(target: &Target) -> PgConnection {
    let mut gate = target.session().await;
    gate.execute("select pg_advisory_lock(42)").await.unwrap();
    gate
}

/// Waits until somebody waits at the gate.
async fn at_the_gate(target: &Target) {
    let waiting = "select pid::text from pg_locks where locktype = 'advisory' and objid = 42 and not granted
                   and database = (select oid from pg_database where datname = current_database())";
    eventually("somebody waits at the gate", async || (!target.texts(waiting).await.is_empty()).then_some(())).await;
}

#[tokio::test]
async fn an_attempt_that_is_killed_in_a_file_is_followed_by_one_that_needs_no_help() {
    for tool in [Tool::Sql, Tool::Sqlx, Tool::Prisma] {
        let target = Target::postgres().await;
        let path = if tool == Tool::Prisma { "1_a/migration.sql" } else { "1_a.sql" };
        let files = Files::of(&[(path, "create table a (id int); select pg_advisory_lock(42);")]);
        let mut gate = closed_gate(&target).await;
        let (other, folder) = (Target::Postgres(target.url()), files.read(tool, target.engine()).await);
        let attempt = tokio::spawn(async move {
            let mut history = other.history(tool, FOR_EVER).await.unwrap();
            history.apply(&folder.migrations[0]).await
        });
        at_the_gate(&target).await;
        attempt.abort();
        assert!(attempt.await.unwrap_err().is_cancelled());
        // The server ends the killed session by itself; only then is the tool's lock free.
        let mut history = target.history(tool, FOR_EVER).await.unwrap();
        let finished = |state: &AppliedState| matches!(state, AppliedState::Finished(_));
        assert!(!history.applied().await.unwrap().iter().any(|applied| finished(&applied.state)));
        history.close().await;
        gate.execute("select pg_advisory_unlock(42)").await.unwrap();
        assert_eq!(apply_pending(&target, &files, tool, FOR_EVER).await.unwrap().len(), 1);
        assert!(apply_pending(&target, &files, tool, SOON).await.unwrap().is_empty());
        if tool == Tool::Prisma {
            let rows = "select (rolled_back_at is null)::text || (finished_at is null)::text from _prisma_migrations
                        order by started_at";
            assert_eq!(target.texts(rows).await, ["falsetrue", "truefalse"]);
        }
    }
}

#[tokio::test]
async fn an_attempt_that_is_killed_before_its_row_is_whole_leaves_nothing_of_the_file() {
    for (tool, table, change) in [
        (Tool::Sql, "nightporter_migrations", "insert"),
        (Tool::Sqlx, "_sqlx_migrations", "insert"),
        (Tool::Prisma, "_prisma_migrations", "update"),
    ] {
        let target = Target::postgres().await;
        let path =
            |name: &str| if tool == Tool::Prisma { format!("{name}/migration.sql") } else { format!("{name}.sql") };
        let files = Files::of(&[(&path("1_a"), "create table a (id int)")]);
        apply_pending(&target, &files, tool, SOON).await.unwrap();
        files.write(&path("2_b"), "create table b (id int)");
        target
            .run(&format!(
                "create function wait() returns trigger as $$ begin perform pg_advisory_lock(42);
                     perform pg_advisory_unlock(42); return new; end $$ language plpgsql;
                 create trigger wait before {change} on {table} for each row execute function wait();"
            ))
            .await;
        let mut gate = closed_gate(&target).await;
        let (other, folder) = (Target::Postgres(target.url()), files.read(tool, target.engine()).await);
        let attempt = tokio::spawn(async move {
            let mut history = other.history(tool, FOR_EVER).await.unwrap();
            history.apply(&folder.migrations[1]).await
        });
        at_the_gate(&target).await;
        attempt.abort();
        assert!(attempt.await.unwrap_err().is_cancelled());
        target.history(tool, FOR_EVER).await.unwrap().close().await;
        gate.execute("select pg_advisory_unlock(42)").await.unwrap();
        assert_eq!(target.texts("select coalesce(to_regclass('b')::text, 'none')").await, ["none"]);
        assert_eq!(apply_pending(&target, &files, tool, SOON).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn an_index_that_a_killed_attempt_left_invalid_is_built_again() {
    for tool in [Tool::Sql, Tool::Sqlx, Tool::Prisma] {
        let target = Target::postgres().await;
        let (table, index) = match tool {
            Tool::Prisma => ("1_a/migration.sql", "2_i/migration.sql"),
            _ => ("1_a.sql", "2_i.sql"),
        };
        let files = Files::of(&[(table, "create table a (id int)")]);
        apply_pending(&target, &files, tool, SOON).await.unwrap();
        files.write(index, "-- no-transaction\ncreate index concurrently if not exists i on a (id)");
        let mut writer = target.session().await;
        writer.execute("begin; insert into a values (1)").await.unwrap();
        let (other, folder) = (Target::Postgres(target.url()), files.read(tool, target.engine()).await);
        let attempt = tokio::spawn(async move {
            let mut history = other.history(tool, SOON).await.unwrap();
            history.apply(&folder.migrations[1]).await
        });
        let invalid = "select indexrelid::regclass::text from pg_index where not indisvalid";
        eventually("the index is begun", async || (target.texts(invalid).await == ["i"]).then_some(())).await;
        attempt.abort();
        assert!(attempt.await.unwrap_err().is_cancelled());
        target.history(tool, FOR_EVER).await.unwrap().close().await;
        assert_eq!(target.texts(invalid).await, ["i"], "the killed attempt left it");
        writer.execute("commit").await.unwrap();
        assert_eq!(apply_pending(&target, &files, tool, SOON).await.unwrap().len(), 1);
        assert!(target.texts(invalid).await.is_empty());
    }
}

#[tokio::test]
async fn two_at_once_apply_each_migration_once() {
    for tool in [Tool::Sql, Tool::Sqlx] {
        for target in [Target::postgres().await, Target::sqlite().await] {
            let files = Files::of(&[("1_a.sql", "create table a (id int)"), ("2_b.sql", "insert into a values (1)")]);
            let (first, second) = tokio::join!(
                apply_pending(&target, &files, tool, FOR_EVER),
                apply_pending(&target, &files, tool, FOR_EVER)
            );
            assert_eq!(first.unwrap().len() + second.unwrap().len(), 2);
            assert_eq!(target.texts("select cast(id as text) from a").await, ["1"]);
        }
    }
}
