//! Questions to `SQLite`.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, TypeInfo, ValueRef};
use tokio::time::Instant;
use tracing::Instrument;

use super::{BUSY, Sqlite};
use crate::databases::question::{Answer, LONGEST_VALUE, Question, refused, too_long, too_slow};
use crate::handler::{Failure, OrFail};
use crate::outside;

/// After so many steps of its machine `SQLite` asks whether it may go on.
const STEPS: i32 = 10_000;

impl Sqlite {
    /// Asks through a connection that only reads.
    pub(super) async fn answer(&self, question: &Question) -> Result<Answer, Failure> {
        let options = SqliteConnectOptions::new().filename(&self.path).create_if_missing(false).read_only(true);
        let options = options.busy_timeout(BUSY.min(question.time_limit)).disable_statement_logging();
        let mut connection = options.connect().await.or_retry("opening the SQLite database")?;
        let asked = ask(&mut connection, question).instrument(outside::database("sqlite", "ask")).await;
        connection.close().await.or_retry("closing the database")?;
        asked
    }
}

async fn ask(connection: &mut SqliteConnection, question: &Question) -> Result<Answer, Failure> {
    stop_at(connection, question.time_limit).await?;
    // In brackets, where nothing but a query fits.
    let statement = format!("SELECT * FROM (\n{}\n) LIMIT 1", question.statement);
    let query = sqlx::query(AssertSqlSafe(statement)).persistent(false);
    match query.fetch_optional(connection).await {
        Ok(None) => Ok(Answer::Empty),
        Ok(Some(row)) => value_of(&row).map(Answer::Value),
        Err(error) => Err(failed(error, question)),
    }
}

/// Has `SQLite` stop what takes longer: what is dropped here would go on in its thread.
async fn stop_at(connection: &mut SqliteConnection, limit: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    let mut handle = connection.lock_handle().await.or_retry("reaching the SQLite database")?;
    handle.set_progress_handler(STEPS, move || Instant::now() < deadline);
    Ok(())
}

fn value_of(row: &SqliteRow) -> Result<Value, Failure> {
    let raw = row.try_get_raw(0).or_discard("reading the value")?;
    let kind = raw.type_info().name().to_owned();
    if raw.is_null() {
        return Ok(Value::Null);
    }
    match kind.as_str() {
        "INTEGER" | "INT8" | "BOOLEAN" => row.try_get_unchecked::<i64, _>(0).map(Value::from).or_discard("reading it"),
        "REAL" => row.try_get_unchecked::<f64, _>(0).map(Value::from).or_discard("reading the value"),
        "BLOB" => Ok(json!({"bytes": row.try_get_unchecked::<Vec<u8>, _>(0).or_discard("reading the value")?.len()})),
        _ => {
            let text: String = row.try_get_unchecked(0).or_discard("reading the value")?;
            if text.len() > LONGEST_VALUE { Err(too_long()) } else { Ok(text.into()) }
        }
    }
}

fn failed(error: sqlx::Error, question: &Question) -> Failure {
    let Some(said) = error.as_database_error() else { return Failure::retry(error).context("asking the database") };
    // The primary result code.
    match said.code().and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff) {
        Some(9) => too_slow(question.time_limit), // interrupted
        Some(8) => refused(said.message(), true), // read-only
        Some(5 | 6 | 10) => Failure::retry(error).context("asking the database"), // busy, locked, I/O
        _ => refused(said.message(), false),
    }
}
