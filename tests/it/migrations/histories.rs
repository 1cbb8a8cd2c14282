//! Histories are left as the tools themselves would leave them.

use sqlx::migrate::Migrator;
use sqlx::{Connection, PgConnection, SqliteConnection};
use tests::migration_world::{Files, SOON, Target, apply_pending, words};
use worker::databases::Tool;
use worker::migrations::AppliedState;

const SQLX: [(&str, &str); 4] = [
    ("1_make_notes.sql", "create table notes (id integer primary key);\ninsert into notes values (1);"),
    ("2_it's_a_title.up.sql", "alter table notes add column title text;\n-- the end"),
    ("2_it's_a_title.down.sql", "alter table notes drop column title;"),
    ("10_index.sql", "-- no-transaction\ncreate index notes_title on notes (title);"),
];

async fn migrate_with_sqlx(target: &Target, files: &Files) {
    let migrator = Migrator::new(files.path()).await.unwrap();
    match target {
        Target::Postgres(url) => migrator.run(&mut PgConnection::connect(url).await.unwrap()).await.unwrap(),
        Target::Sqlite(..) => migrator.run(&mut SqliteConnection::connect(&target.url()).await.unwrap()).await.unwrap(),
    }
}

/// All rows of sqlx's history, without the times; that there are times is in it.
async fn sqlx_rows(target: &Target) -> Vec<String> {
    let hex = if matches!(target, Target::Postgres(_)) { "encode(checksum, 'hex')" } else { "lower(hex(checksum))" };
    let query = format!(
        "select version || '|' || description || '|' || success || '|' || {hex} || '|' || (execution_time > 0)
                || '|' || (installed_on is not null) from _sqlx_migrations order by version"
    );
    target.texts(&query).await
}

#[tokio::test]
async fn sqlx_goes_on_after_us_and_we_after_sqlx_and_the_rows_are_the_same() {
    for targets in [
        [Target::postgres().await, Target::postgres().await, Target::postgres().await],
        [Target::sqlite().await, Target::sqlite().await, Target::sqlite().await],
    ] {
        let [by_sqlx, by_us_then_sqlx, by_sqlx_then_us] = targets;
        let (half, whole) = (Files::of(&SQLX[..1]), Files::of(&SQLX));
        migrate_with_sqlx(&by_sqlx, &whole).await;
        let expected = sqlx_rows(&by_sqlx).await;
        assert_eq!(expected.len(), 3);

        assert_eq!(apply_pending(&by_us_then_sqlx, &half, Tool::Sqlx, SOON).await.unwrap(), ["1_make_notes"]);
        migrate_with_sqlx(&by_us_then_sqlx, &whole).await;
        assert_eq!(sqlx_rows(&by_us_then_sqlx).await, expected);

        migrate_with_sqlx(&by_sqlx_then_us, &half).await;
        let applied = apply_pending(&by_sqlx_then_us, &whole, Tool::Sqlx, SOON).await.unwrap();
        assert_eq!(applied, ["2_it's_a_title", "10_index"]);
        assert_eq!(sqlx_rows(&by_sqlx_then_us).await, expected);
        migrate_with_sqlx(&by_sqlx_then_us, &whole).await; // sqlx checks all digests and finds nothing to do.
    }
}

#[tokio::test]
async fn a_failed_file_says_its_line_and_that_nothing_remains_and_leaves_no_row() {
    for (target, tool) in [
        (Target::postgres().await, Tool::Sqlx),
        (Target::postgres().await, Tool::Sql),
        (Target::sqlite().await, Tool::Sqlx),
        (Target::sqlite().await, Tool::Sql),
    ] {
        let files = Files::of(&[("1_a.sql", "create table a (id int);\n\nselect wrong from a;")]);
        let failure = apply_pending(&target, &files, tool, SOON).await.unwrap_err();
        let said = words(&failure);
        assert!(said.starts_with("discard: the migration `1_a") && said.contains("wrong"), "{said}");
        assert!(said.contains("Nothing of this file remains applied"), "{said}");
        if matches!(target, Target::Postgres(_)) {
            assert!(said.contains("line 3") && said.contains("42703"), "{said}");
        }
        files.write("1_a.sql", "create table a (id int);");
        assert_eq!(apply_pending(&target, &files, tool, SOON).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_migration_that_was_merged_late_is_applied() {
    let target = Target::postgres().await;
    let files = Files::of(&[("1.sql", "create table a (id int)"), ("3.sql", "create table c (id int)")]);
    apply_pending(&target, &files, Tool::Sql, SOON).await.unwrap();
    files.write("2.sql", "create table b (id int)");
    assert_eq!(apply_pending(&target, &files, Tool::Sql, SOON).await.unwrap(), ["2.sql"]);
}

#[tokio::test]
async fn plain_sql_outside_a_transaction_that_fails_half_way_is_on_record_and_stops_the_next() {
    for (target, text) in [
        (Target::postgres().await, "-- no-transaction\nbegin; create table a (id int); commit; select wrong;"),
        (Target::sqlite().await, "-- no-transaction\ncreate table a (id int); select wrong;"),
    ] {
        let files = Files::of(&[("1.sql", text)]);
        let said = words(&apply_pending(&target, &files, Tool::Sql, SOON).await.unwrap_err());
        assert!(said.contains("Parts of this file may remain applied"), "{said}");
        let said = words(&apply_pending(&target, &files, Tool::Sql, SOON).await.unwrap_err());
        assert!(said.contains("unfinished migrations: `1.sql`") && said.contains("wrong"), "{said}");
        target.run("update nightporter_migrations set finished_at = current_timestamp").await;
        assert!(apply_pending(&target, &files, Tool::Sql, SOON).await.unwrap().is_empty());
    }
}

const INIT: (&str, &str) =
    ("20240101000000_init/migration.sql", "CREATE TABLE \"A\" (id int);\nCREATE TABLE b (id int);\n");
const SECOND: (&str, &str) = ("20240102000000_b/migration.sql", "ALTER TABLE b ADD COLUMN c text;\n");
const LOCK: (&str, &str) = ("migration_lock.toml", "provider = \"postgresql\"\n");

/// The table as Prisma makes it, from its contract.
const PRISMA_TABLE: &str =
    "CREATE TABLE _prisma_migrations (id VARCHAR(36) PRIMARY KEY NOT NULL, checksum VARCHAR(64) NOT NULL,
    finished_at TIMESTAMPTZ, migration_name VARCHAR(255) NOT NULL, logs TEXT, rolled_back_at TIMESTAMPTZ,
    started_at TIMESTAMPTZ NOT NULL DEFAULT now(), applied_steps_count INTEGER NOT NULL DEFAULT 0)";

const PRISMA_ROWS: &str =
    "select migration_name || '|' || checksum || '|' || applied_steps_count || '|' || coalesce(logs, 'null')
    || '|' || (finished_at >= started_at)::text || '|' || coalesce(rolled_back_at::text, 'null')
    || '|' || (id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$')::text
    from _prisma_migrations order by started_at";

const COLUMNS: &str =
    "select column_name || ' ' || data_type || ' ' || is_nullable || ' ' || coalesce(column_default, '')
    || coalesce(character_maximum_length, 0) from information_schema.columns where table_name = '_prisma_migrations'
    order by ordinal_position";

#[tokio::test]
async fn prismas_table_and_rows_are_as_prisma_makes_them() {
    let (ours, prismas) = (Target::postgres().await, Target::postgres().await);
    let files = Files::of(&[LOCK, INIT, SECOND]);
    assert_eq!(apply_pending(&ours, &files, Tool::Prisma, SOON).await.unwrap().len(), 2);
    prismas.run(PRISMA_TABLE).await;
    assert_eq!(ours.texts(COLUMNS).await, prismas.texts(COLUMNS).await);
    // By sha256sum, of the two files.
    let digests = [
        "0b1f8720514ac85f324553a1a33a02fc6723bee9185d5af40b0925faabeda012",
        "b24aeed6f9fdf3cddb5f0cca3fdfa316fedb2a4d9a3c974d005078d77cd9fa3e",
    ];
    let rows = ours.texts(PRISMA_ROWS).await;
    let expected = |name: &str, digest: &str| format!("{name}|{digest}|1|null|true|null|true");
    assert_eq!(rows, [expected("20240101000000_init", digests[0]), expected("20240102000000_b", digests[1])]);
}

#[tokio::test]
async fn prismas_own_rows_are_read_as_prisma_reads_them() {
    let target = Target::postgres().await;
    target.run(&format!("{PRISMA_TABLE}; {}", INIT.1)).await;
    // Applied from a checkout with other line breaks; failed, rolled back, then resolved as applied.
    let unix = INIT.1;
    let digest = "encode(sha256(convert_to($$";
    let windows = unix.replace('\n', "\r\n");
    target
        .run(&format!(
            "insert into _prisma_migrations (id, checksum, finished_at, migration_name, applied_steps_count)
             values ('1', {digest}{windows}$$, 'utf8')), 'hex'), now(), '20240101000000_init', 1)"
        ))
        .await;
    target
        .run(
            "insert into _prisma_migrations (id, checksum, migration_name, logs, rolled_back_at, finished_at) values
             ('2', 'old', '20240102000000_b', 'it failed', now(), null), ('3', 'old', '20240102000000_b', null, now(), null)",
        )
        .await;
    let files = Files::of(&[LOCK, INIT, SECOND]);
    assert_eq!(apply_pending(&target, &files, Tool::Prisma, SOON).await.unwrap(), ["20240102000000_b"]);
}

#[tokio::test]
async fn a_failed_prisma_file_is_on_record_and_stops_the_next_until_it_is_resolved() {
    let target = Target::postgres().await;
    target.run("create schema app").await;
    let files = Files::of(&[LOCK, ("1_a/migration.sql", "CREATE TABLE a (id int);\nSELECT wrong;\n")]);
    let said = words(&apply_pending(&target, &files, Tool::Prisma, SOON).await.unwrap_err());
    assert!(said.contains("line 2") && said.contains("Nothing of this file remains"), "{said}");
    assert!(said.contains("prisma migrate resolve --rolled-back NAME"), "{said}");
    let logs = "select (logs like '%wrong%')::text || (finished_at is null)::text from _prisma_migrations";
    assert_eq!(target.texts(logs).await, ["truetrue"]);
    files.write("1_a/migration.sql", "CREATE TABLE a (id int);\n");
    let said = words(&apply_pending(&target, &files, Tool::Prisma, SOON).await.unwrap_err());
    assert!(said.starts_with("discard: the history has unfinished migrations: `1_a`"), "{said}");
    // What `prisma migrate resolve --rolled-back 1_a` does.
    target.run("update _prisma_migrations set rolled_back_at = now()").await;
    assert_eq!(apply_pending(&target, &files, Tool::Prisma, SOON).await.unwrap(), ["1_a"]);
}

#[tokio::test]
async fn tables_without_prismas_history_are_not_migrated_over() {
    let target = Target::postgres().await;
    target.run("create table old (id int)").await;
    let files = Files::of(&[LOCK, INIT]);
    let said = words(&apply_pending(&target, &files, Tool::Prisma, SOON).await.unwrap_err());
    assert!(said.contains("`old`") && said.contains("--applied"), "{said}");
}

#[tokio::test]
async fn prismas_schema_is_the_one_of_the_address() {
    let Target::Postgres(url) = Target::postgres().await else { unreachable!() };
    let target = Target::Postgres(format!("{url}?schema=App"));
    let files = Files::of(&[LOCK, INIT]);
    let folder = files.read(Tool::Prisma, target.engine()).await;
    let mut history = target.history(Tool::Prisma, SOON).await.unwrap();
    history.apply(&folder.migrations[0]).await.unwrap();
    let applied = history.applied().await.unwrap();
    assert!(matches!(applied[0].state, AppliedState::Finished(_)));
    let places =
        "select table_schema || '.' || table_name from information_schema.tables where table_schema = 'App' order by 1";
    assert_eq!(Target::Postgres(url).texts(places).await, ["App.A", "App._prisma_migrations", "App.b"]);
}

#[tokio::test]
async fn prisma_on_sqlite_and_a_missing_file_are_refused_clearly() {
    let target = Target::sqlite().await;
    let said = words(&target.history(Tool::Prisma, SOON).await.err().unwrap());
    assert!(said.starts_with("discard: Prisma's migrations of SQLite"), "{said}");
    let Target::Sqlite(folder, path) = target else { unreachable!() };
    std::fs::remove_file(&path).unwrap();
    let gone = Target::Sqlite(folder, path);
    let said = words(&gone.history(Tool::Sql, SOON).await.err().unwrap());
    assert!(said.contains("there is no database file"), "{said}");
}
