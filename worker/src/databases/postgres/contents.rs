//! Counts and digests of a `PostgreSQL` database's tables, in one snapshot that others can join.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};
use tracing::Instrument;

use super::{identifier, within};
use crate::databases::contents::{Contents, Digests, SUM_OF_HASHES, Table, table_name};
use crate::handler::{Failure, OrFail};
use crate::outside;

/// More tables are not counted: each is locked until the dump ends, and a server has room for some thousand locks.
const MOST_TABLES: usize = 2000;
/// One table must be counted and digested within this.
const TABLE_DEADLINE: Duration = Duration::from_hours(6);
/// The tables must be locked within this; a little more than the server is given.
const LOCK_DEADLINE: Duration = Duration::from_mins(11);

/// Everything that changes how a value is written, or which rows are seen. With `row_security` off, a role that sees only
/// some rows gets an error, as `pg_dump` does, and not a smaller count.
const SETTINGS: &str = "
    SET search_path = pg_catalog; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC';
    SET extra_float_digits = 3; SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET xmloption = 'content';
    SET quote_all_identifiers = off; SET row_security = off; SET lock_timeout = '10min';
    SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN
      ('statement_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')";

/// The tables whose rows `pg_dump` puts out: no parents of partitions, which have none, and nothing that belongs to an
/// extension, which makes its own. Columns by name; no generated ones.
const TABLES: &str = "
    SELECT n.nspname::text, c.relname::text, coalesce(pg_table_size(c.oid), 0),
           ARRAY(SELECT a.attname::text FROM pg_attribute a
                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                 ORDER BY a.attname COLLATE \"C\")
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_depend d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY 1, 2";

/// A snapshot in which all tables stay as they are. It lasts as long as this does.
pub(super) struct Snapshot {
    connection: PgConnection,
    tables: Vec<Found>,
    /// What another session joins it by.
    pub(super) id: String,
}

struct Found {
    schema: String,
    name: String,
    bytes: u64,
    columns: Vec<String>,
}

impl Found {
    /// `"schema"."table"`, as statements name it.
    fn quoted(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }

    /// Of this table alone, without those that inherit from it: they stand for themselves.
    fn question(&self, digest: bool) -> String {
        let columns: Vec<String> = self.columns.iter().map(|column| format!("t.{}", identifier(column))).collect();
        let row = format!("ROW({})::text COLLATE \"C\"", columns.join(", "));
        let digest = if digest {
            format!("coalesce(sum(hashtextextended({row}, 0)::numeric), 0)::text")
        } else {
            "NULL::text".to_owned()
        };
        format!("SELECT count(*), {digest} FROM ONLY {} AS t", self.quoted())
    }
}

impl Snapshot {
    /// Opens a snapshot; the number of tables where there are too many to count them.
    ///
    /// All tables are locked as readers lock them, before anybody joins: a table that is truncated or rewritten looks
    /// empty in older snapshots, so nobody may until all have read.
    pub(super) async fn open(mut connection: PgConnection) -> Result<Result<Self, usize>, Failure> {
        within(sqlx::raw_sql(SETTINGS).execute(&mut connection)).await?;
        within(sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut connection)).await?;
        let tables = tables(&mut connection).await?;
        if tables.len() > MOST_TABLES {
            return Ok(Err(tables.len()));
        }
        if !tables.is_empty() {
            let names: Vec<String> = tables.iter().map(|table| format!("ONLY {}", table.quoted())).collect();
            let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
            let locked = sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut connection);
            let locked = tokio::time::timeout(LOCK_DEADLINE, locked).await.or_retry("the database did not answer")?;
            locked.or_retry("locking the tables as a reader does (is one being changed?)")?;
        }
        let id = within(sqlx::query_scalar("SELECT pg_export_snapshot()").fetch_one(&mut connection)).await?;
        Ok(Ok(Self { connection, tables, id }))
    }

    /// Counts and digests all tables. Itself again, because the snapshot must last until all have joined it.
    pub(super) async fn contents(mut self, digests: Digests<'_>) -> Result<(Contents, Self), Failure> {
        let contents = count(&mut self.connection, &self.tables, digests).await?;
        Ok((contents, self))
    }
}

/// Counts and digests the tables of a database that nobody else uses.
pub(super) async fn contents(connection: &mut PgConnection, digests: Digests<'_>) -> Result<Contents, Failure> {
    within(sqlx::raw_sql(SETTINGS).execute(&mut *connection)).await?;
    let tables = tables(connection).await?;
    count(connection, &tables, digests).await
}

async fn tables(connection: &mut PgConnection) -> Result<Vec<Found>, Failure> {
    let rows = tokio::time::timeout(LOCK_DEADLINE, sqlx::query(TABLES).fetch_all(connection)).await;
    let rows = rows.or_retry("the database did not answer")?.or_retry("listing the tables")?;
    let found = |row: &sqlx::postgres::PgRow| -> Result<Found, sqlx::Error> {
        let bytes: i64 = row.try_get(2)?;
        Ok(Found {
            schema: row.try_get(0)?,
            name: row.try_get(1)?,
            bytes: bytes.cast_unsigned(),
            columns: row.try_get(3)?,
        })
    };
    rows.iter().map(found).collect::<Result<_, _>>().or_discard("reading the list of tables")
}

async fn count(connection: &mut PgConnection, tables: &[Found], digests: Digests<'_>) -> Result<Contents, Failure> {
    let mut contents = Contents { method: SUM_OF_HASHES.to_owned(), ..Contents::default() };
    for table in tables {
        let name = table_name(&table.schema, &table.name);
        let question = table.question(digests.wanted(&name, table.bytes));
        let asked = sqlx::query_as::<_, (i64, Option<String>)>(AssertSqlSafe(question)).persistent(false);
        let asked = asked.fetch_one(&mut *connection).instrument(outside::database("postgresql", "count"));
        let answer = tokio::time::timeout(TABLE_DEADLINE, asked).await;
        let answer = answer.or_retry(&format!("counting {name} took too long"))?;
        let (rows, digest) = answer.or_retry(&format!("counting and digesting {name}"))?;
        contents.tables.insert(name, Table { rows: rows.cast_unsigned(), digest });
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_asked_for_by_quoted_names_alone() {
        let table = Found { schema: "a\"b".into(), name: "t".into(), bytes: 1, columns: vec!["t".into(), "Ü".into()] };
        assert_eq!(
            table.question(true),
            "SELECT count(*), coalesce(sum(hashtextextended(ROW(t.\"t\", t.\"Ü\")::text COLLATE \"C\", 0)::numeric), \
             0)::text FROM ONLY \"a\"\"b\".\"t\" AS t"
        );
        assert_eq!(table.question(false), "SELECT count(*), NULL::text FROM ONLY \"a\"\"b\".\"t\" AS t");
    }
}
