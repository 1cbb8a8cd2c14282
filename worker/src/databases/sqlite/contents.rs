//! What a `SQLite` file that nobody else uses holds.

use serde_json::Value;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row, TypeInfo, ValueRef};
use tracing::Instrument;

use super::COPY_DEADLINE;
use crate::databases::contents::COUNTS;
use crate::databases::{Contents, Table, bare, identifier, one_value};
use crate::handler::{Failure, OrFail};
use crate::outside;

/// The tables that hold rows themselves: a virtual table's lie in others, or nowhere.
const TABLES: &str = "
    SELECT name FROM sqlite_schema
    WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND sql NOT LIKE 'CREATE VIRTUAL TABLE%'
    ORDER BY name";

/// The rows of each table, without digests: the file's own covers them.
pub(super) async fn count(connection: &mut SqliteConnection) -> Result<Contents, Failure> {
    let names: Vec<String> =
        sqlx::query_scalar(TABLES).fetch_all(&mut *connection).await.or_retry("listing the tables")?;
    let mut contents = Contents { method: COUNTS.to_owned(), ..Contents::default() };
    for name in names {
        let sql = format!("SELECT count(*) FROM {}", identifier(&name));
        let asked = sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql)).persistent(false).fetch_one(&mut *connection);
        let asked = asked.instrument(outside::database("sqlite", "count"));
        let answered = tokio::time::timeout(COPY_DEADLINE, asked).await.or_retry("counting rows took too long")?;
        let rows = answered.or_retry(&format!("counting the rows of {name}"))?;
        contents.tables.insert(name, Table { rows: rows.cast_unsigned(), digest: None });
    }
    Ok(contents)
}

/// The one value that a query reads.
pub(super) async fn ask(connection: &mut SqliteConnection, sql: &str) -> Result<Value, Failure> {
    let sql = format!("SELECT * FROM (\n{}\n) LIMIT 2", bare(sql));
    let asked = sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch_all(connection);
    let asked = asked.instrument(outside::database("sqlite", "assert"));
    let answered = tokio::time::timeout(COPY_DEADLINE, asked).await.or_retry("the question took too long")?;
    let rows = answered.or_discard("asking the database")?;
    one_value(rows.iter().map(column).collect::<Result<_, _>>()?)
}

fn column(row: &SqliteRow) -> Result<Value, Failure> {
    if row.len() != 1 {
        return Err(Failure::Discard(anyhow::anyhow!("it answers {} columns; it must answer one value", row.len())));
    }
    let kind = row.try_get_raw(0).or_discard("reading the answer")?.type_info().name().to_owned();
    let value = match kind.as_str() {
        "NULL" => Ok(Value::Null),
        "INTEGER" => row.try_get_unchecked::<i64, _>(0).map(Value::from),
        "REAL" => row.try_get_unchecked::<f64, _>(0).map(Value::from),
        _ => row.try_get_unchecked::<String, _>(0).map(Value::from),
    };
    value.or_discard("reading the answer")
}
