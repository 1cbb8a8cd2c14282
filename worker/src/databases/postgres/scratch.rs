//! Scratch databases on a `PostgreSQL` server: what jobs restore a backup into to look at it.

use std::time::Duration;

use serde_json::Value;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;
use tracing::Instrument;

use super::{Postgres, connect_with, drop_database, unfinished, within};
use crate::databases::{Scratch, bare, one_value};
use crate::handler::{Failure, OrFail};
use crate::outside;

/// A question must be answered within this; a little more than the server is given.
const QUESTION_DEADLINE: Duration = Duration::from_mins(31);

/// A session that reads.
const READS: &str = "SET default_transaction_read_only = on; SET statement_timeout = '30min'";

pub(super) async fn connect(server: &Postgres, scratch: Scratch) -> Result<PgConnection, Failure> {
    connect_with(&server.options.clone().database(&scratch.name())).await
}

/// Drops it, and what a restore into it never finished.
pub(super) async fn drop_it(server: &Postgres, scratch: Scratch) -> Result<(), Failure> {
    let mut connection = server.connect().await?;
    drop_database(&mut connection, &scratch.name()).await?;
    drop_database(&mut connection, &unfinished(&scratch.job.to_string())).await
}

/// All of them, and those that are known by what was never finished of them.
pub(super) async fn all(server: &Postgres) -> Result<Vec<Scratch>, Failure> {
    let mut connection = server.connect().await?;
    let names = "SELECT datname::text FROM pg_database WHERE starts_with(datname::text, 'nightporter_')";
    let names: Vec<String> = within(sqlx::query_scalar(names).fetch_all(&mut connection)).await?;
    let unfinished_of = |name: &str| {
        let scratch = Scratch { job: name.strip_prefix("nightporter_")?.parse().ok()? };
        (unfinished(&scratch.job.to_string()) == name).then_some(scratch)
    };
    let mut found: Vec<Scratch> =
        names.iter().filter_map(|name| Scratch::named(name).or_else(|| unfinished_of(name))).collect();
    found.dedup();
    Ok(found)
}

/// The one value that a query reads. It is one statement: the server takes no more in this form.
pub(super) async fn ask(connection: &mut PgConnection, sql: &str) -> Result<Value, Failure> {
    within(sqlx::raw_sql(READS).execute(&mut *connection)).await?;
    // All columns, also those of one name.
    let values = "(SELECT json_agg(value) FROM json_each(row_to_json(answer)))::text";
    let sql = format!("SELECT {values} FROM (\n{}\n) AS answer LIMIT 2", bare(sql));
    let asked = sqlx::query_scalar::<_, String>(AssertSqlSafe(sql)).persistent(false).fetch_all(connection);
    let asked = asked.instrument(outside::database("postgresql", "assert"));
    let answered = tokio::time::timeout(QUESTION_DEADLINE, asked).await.or_retry("the database did not answer")?;
    let rows = answered.map_err(|error| match &error {
        // What it says about the query stays; that it is shut down, or out of memory, may pass.
        sqlx::Error::Database(said) if !said.code().is_some_and(|code| passes(&code)) => Failure::discard(error),
        _ => Failure::retry(error),
    })?;
    one_value(rows.iter().map(|row| column(row)).collect::<Result<_, _>>()?)
}

/// Classes of errors: connection, resources, intervention of an operator, other system errors.
fn passes(code: &str) -> bool {
    ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class))
}

fn column(row: &str) -> Result<Value, Failure> {
    let mut row: Vec<Value> = serde_json::from_str(row).or_discard("reading the answer")?;
    match (row.pop(), row.len()) {
        (Some(value), 0) => Ok(value),
        (_, more) => {
            Err(Failure::Discard(anyhow::anyhow!("it answers {} columns; it must answer one value", more + 1)))
        }
    }
}
