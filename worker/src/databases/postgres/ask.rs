//! Questions to `PostgreSQL`.

use std::time::Duration;

use serde_json::Value;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor};
use tracing::Instrument;

use super::{Postgres, hang_up, within};
use crate::databases::question::{Answer, LONGEST_VALUE, Question, refused, too_long, too_slow};
use crate::handler::{Failure, OrFail};
use crate::outside;

/// For the answer to come when the server has stopped the statement.
const GRACE: Duration = Duration::from_secs(10);

/// The limits of a transaction that asks.
const LIMITS: &str = "SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $1, true),
    set_config('idle_in_transaction_session_timeout', '30s', true)";

impl Postgres {
    /// Asks in a transaction that only reads, and is never committed.
    pub(super) async fn answer(&self, question: &Question) -> Result<Answer, Failure> {
        let mut connection = self.watched().await?;
        begin(&mut connection, question.time_limit).await?;
        let asked = ask(&mut connection, question).instrument(outside::database("postgresql", "ask")).await;
        hang_up(connection).await; // With it the server rolls back.
        asked
    }
}

async fn begin(connection: &mut PgConnection, limit: Duration) -> Result<(), Failure> {
    within(connection.execute("BEGIN READ ONLY")).await?;
    // After its first statement nothing can make the transaction a writing one.
    within(sqlx::query(LIMITS).bind(format!("{}ms", limit.as_millis())).execute(connection)).await?;
    Ok(())
}

async fn ask(connection: &mut PgConnection, question: &Question) -> Result<Answer, Failure> {
    // In brackets, in a message that holds one statement alone: nothing but a query fits there.
    let statement = format!(
        "SELECT left(to_json(asked.nightporter_value)::text, {}) FROM (\n{}\n) AS asked(nightporter_value) LIMIT 1",
        LONGEST_VALUE + 1,
        question.statement
    );
    let query = sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(statement)).persistent(false);
    let asked = tokio::time::timeout(question.time_limit + GRACE, query.fetch_optional(connection)).await;
    let row = asked.map_err(|_| too_slow(question.time_limit))?.map_err(|error| failed(error, question))?;
    match row {
        None => Ok(Answer::Empty),
        Some(None) => Ok(Answer::Value(Value::Null)),
        Some(Some(text)) if text.chars().count() > LONGEST_VALUE => Err(too_long()),
        Some(Some(text)) => serde_json::from_str(&text).map(Answer::Value).or_discard("reading the value"),
    }
}

fn failed(error: sqlx::Error, question: &Question) -> Failure {
    let Some(said) = error.as_database_error() else { return Failure::retry(error).context("asking the database") };
    let code = said.code().unwrap_or_default();
    match &*code {
        // query_canceled, lock_not_available.
        "57014" | "55P03" => too_slow(question.time_limit),
        // read_only_sql_transaction, and a WITH that writes in brackets (feature_not_supported).
        "25006" => refused(said.message(), true),
        "0A000" if said.message().contains("data-modifying") => refused(said.message(), true),
        // Going away, a full server, a conflict of a standby.
        code if ["57P", "08", "53", "40"].iter().any(|class| code.starts_with(class)) => {
            Failure::retry(error).context("asking the database")
        }
        _ => refused(said.message(), false),
    }
}
