//! The walk along a table's primary key.

use std::time::Duration;

use schemas::Timestamp;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Postgres, Row};

use super::{Key, Named, Plan, Table};
use crate::handler::{Failure, OrFail};

/// Counting reads the whole table.
const COUNT_WITHIN: Duration = Duration::from_mins(30);

/// Each statement of the walk, on the server and here. A lock that is not had at once is waited for by those behind it.
const SETTINGS: &str = "SET statement_timeout = '5s'; SET lock_timeout = '200ms';
    SET idle_in_transaction_session_timeout = '15s'; SET TimeZone = 'UTC'";
const STEP_WITHIN: Duration = Duration::from_secs(15);

/// Whoever reads an old state of the database for so long keeps what is deleted from being cleaned up.
const LONG_TRANSACTION: &str = "10 minutes";
/// A standby that is so far behind is not to fall behind further.
const LAG: &str = "10 seconds";

/// A walk over one table.
pub struct Walk {
    connection: PgConnection,
    pub(crate) table: Table,
}

/// How a statement of the walk went.
pub(crate) enum Stepped<T> {
    /// It was done.
    Done(T),
    /// Others were in its way, or it took too long; nothing was done.
    Refused,
}

/// The sign by which a key's texts are joined.
const JOINT: char = '\u{1f}';

/// Rows as they were read, in the order of their keys: each with its key, its version and what it held.
#[derive(Default)]
pub(crate) struct Versions {
    /// Joined by [`JOINT`], as they are compared.
    pub(crate) keys: Vec<String>,
    pub(crate) stamps: Vec<String>,
    /// JSON.
    pub(crate) rows: Vec<String>,
}

impl Walk {
    /// A walk over a table that was found fit.
    pub(crate) async fn over(mut connection: PgConnection, named: Named<'_>) -> Result<Self, Failure> {
        connection.execute(sqlx::raw_sql(SETTINGS)).await.or_retry("preparing the session")?;
        let table = Table::find(&mut connection, named).await?;
        Ok(Self { connection, table })
    }

    /// Counts what is due, and finds where the walk ends.
    pub(crate) async fn plan(&mut self, before: Timestamp) -> Result<Plan, Failure> {
        let Table { name, .. } = &self.table;
        let (due, held) = (self.table.due(), self.table.held());
        let count =
            format!("SELECT count(*) FILTER (WHERE {due}), count(*) FILTER (WHERE {held}), count(*) FROM {name}");
        let last = format!(
            "SELECT ARRAY[{}] FROM {name} WHERE {due} ORDER BY {} LIMIT 1",
            self.table.key_texts(),
            self.table.key_backwards()
        );
        let counting = async {
            let mut tx = self.connection.begin().await?;
            tx.execute(sqlx::raw_sql(AssertSqlSafe(format!(
                "SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = {}",
                COUNT_WITHIN.as_millis()
            ))))
            .await?;
            let (due, held, rows): (i64, i64, i64) =
                sqlx::query_as(AssertSqlSafe(count)).bind(moment(before)).fetch_one(&mut *tx).await?;
            let last: Option<Vec<String>> = match due {
                0 => None,
                _ => sqlx::query_scalar(AssertSqlSafe(last)).bind(moment(before)).fetch_optional(&mut *tx).await?,
            };
            tx.rollback().await?;
            let [due, held, rows] = [due, held, rows].map(i64::unsigned_abs);
            Ok::<_, sqlx::Error>(Plan { before, due, held, rows, last })
        };
        let counted = tokio::time::timeout(COUNT_WITHIN, counting).await;
        match counted.or_retry("the database did not answer")? {
            Err(error) if is_mistaken(&error) => Err(error).or_discard("counting what is due"),
            counted => counted.or_retry("counting what is due"),
        }
    }

    /// Where the next step ends: so many keys after the cursor, and not behind the last key.
    pub(crate) async fn boundary(
        &mut self,
        before: Timestamp,
        cursor: Option<&Key>,
        last: &Key,
        size: u32,
    ) -> Result<Stepped<Key>, Failure> {
        let statement = format!(
            // The moment is bound in every statement of the walk, so that the others have the same numbers.
            "SELECT ARRAY[{}] FROM {} WHERE $1::text IS NOT NULL AND {} ORDER BY {} OFFSET {} LIMIT 1",
            self.table.key_texts(),
            self.table.name,
            self.range(cursor),
            self.table.key_columns(),
            size.saturating_sub(1)
        );
        let found = bound(&statement, before, cursor, last).fetch_optional(&mut self.connection);
        match judged(tokio::time::timeout(STEP_WITHIN, found).await)? {
            Stepped::Done(Some(row)) => Ok(Stepped::Done(row.try_get(0).or_retry("reading a key")?)),
            Stepped::Done(None) => Ok(Stepped::Done(last.clone())),
            Stepped::Refused => Ok(Stepped::Refused),
        }
    }

    /// Deletes what is due between the cursor and the boundary, into another table where one is named; how many.
    pub(crate) async fn delete(
        &mut self,
        before: Timestamp,
        cursor: Option<&Key>,
        boundary: &Key,
        into: Option<&str>,
    ) -> Result<Stepped<u64>, Failure> {
        let delete = format!("DELETE FROM {} WHERE {} AND {}", self.table.name, self.range(cursor), self.table.due());
        let columns = self.table.columns.join(", ");
        let statement = match into {
            Some(archive) => format!(
                "WITH gone AS ({delete} RETURNING *) INSERT INTO {archive} ({columns}) SELECT {columns} FROM gone"
            ),
            None => delete,
        };
        let deleting = bound(&statement, before, cursor, boundary).execute(&mut self.connection);
        let deleted = judged(tokio::time::timeout(STEP_WITHIN, deleting).await)?;
        Ok(deleted.map(|deleted| deleted.rows_affected()))
    }

    /// Reads what is due between the cursor and the boundary, until so many bytes are read: then also the key of the last
    /// one, behind which it goes on. One row is read however large it is.
    pub(crate) async fn read(
        &mut self,
        before: Timestamp,
        cursor: Option<&Key>,
        boundary: &Key,
        most_bytes: usize,
    ) -> Result<Stepped<(Versions, Option<Key>)>, Failure> {
        let Table { name, .. } = &self.table;
        // The server adds up, so that what is too much is not sent at all. OFFSET keeps it from making each text twice.
        let statement = format!(
            "SELECT key, version, text, place FROM (
               SELECT concat_ws(chr(31), {texts}) AS key, xmin::text AS version, np_text AS text, ARRAY[{texts}] AS place,
                      row_number() OVER np_way AS number,
                      sum(octet_length(np_text)) OVER np_way - octet_length(np_text) AS ahead
               FROM {name}, LATERAL (SELECT to_jsonb({name}.*)::text AS np_text OFFSET 0) np_texts WHERE {} AND {}
               WINDOW np_way AS (ORDER BY {} ROWS UNBOUNDED PRECEDING)) np_rows
             WHERE ahead < {most_bytes} ORDER BY number",
            self.range(cursor),
            self.table.due(),
            self.table.key_columns(),
            texts = self.table.key_texts(),
        );
        let reading = bound(&statement, before, cursor, boundary).fetch_all(&mut self.connection);
        let read = judged(tokio::time::timeout(STEP_WITHIN, reading).await)?;
        let Stepped::Done(rows) = read else { return Ok(Stepped::Refused) };
        let (mut found, mut place) = (Versions::default(), None);
        for row in rows {
            let (key, version, text) = cells(&row).or_retry("reading rows")?;
            place = Some(row.try_get::<Key, _>(3).or_retry("reading a key")?);
            found.keys.push(key);
            found.stamps.push(version);
            found.rows.push(text);
        }
        let is_cut = found.bytes() >= most_bytes;
        Ok(Stepped::Done((found, place.filter(|_| is_cut))))
    }

    /// Deletes rows between the cursor and the boundary that are still as they were read, and due; how many.
    pub(crate) async fn delete_read(
        &mut self,
        before: Timestamp,
        cursor: Option<&Key>,
        boundary: &Key,
        read: &Versions,
    ) -> Result<Stepped<u64>, Failure> {
        let width = self.table.key.len() * if cursor.is_some() { 2 } else { 1 };
        let statement = format!(
            "DELETE FROM {} WHERE {} AND {}
               AND (concat_ws(chr(31), {}), xmin::text) IN (SELECT * FROM unnest(${}::text[], ${}::text[]))",
            self.table.name,
            self.range(cursor),
            self.table.due(),
            self.table.key_texts(),
            width + 2,
            width + 3
        );
        let deleting = bound(&statement, before, cursor, boundary).bind(&read.keys).bind(&read.stamps);
        let deleted = tokio::time::timeout(STEP_WITHIN, deleting.execute(&mut self.connection)).await;
        Ok(judged(deleted)?.map(|deleted| deleted.rows_affected()))
    }

    /// The key of a row that was read; none where its texts cannot be told apart.
    pub(crate) fn key_of(&self, joined: &str) -> Option<Key> {
        let texts: Key = joined.split(JOINT).map(str::to_owned).collect();
        (texts.len() == self.table.key.len()).then_some(texts)
    }

    /// Why it is better not to delete now; none where nothing speaks against it.
    pub(crate) async fn busy(&mut self) -> Result<Option<String>, Failure> {
        let asked = format!(
            "SELECT CASE
               WHEN EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                            AND backend_type = 'client backend' AND xact_start < now() - interval '{LONG_TRANSACTION}')
                 THEN 'a transaction has been open for more than {LONG_TRANSACTION}'
               WHEN EXISTS (SELECT 1 FROM pg_stat_progress_vacuum WHERE relid = $1::regclass)
                 THEN 'the table is being vacuumed'
               WHEN EXISTS (SELECT 1 FROM pg_stat_replication WHERE replay_lag > interval '{LAG}')
                 THEN 'a standby is more than {LAG} behind'
             END"
        );
        let asking = sqlx::query_scalar(AssertSqlSafe(asked)).bind(&self.table.name).fetch_one(&mut self.connection);
        let answered = tokio::time::timeout(STEP_WITHIN, asking).await;
        answered.or_retry("the database did not answer")?.or_retry("asking whether the database is busy")
    }

    /// Between the cursor, if there is one, and the boundary.
    fn range(&self, cursor: Option<&Key>) -> String {
        let key = format!("({})", self.table.key_columns());
        let until = format!("{key} <= {}", self.table.key_from(2));
        match cursor {
            Some(_) => format!("{until} AND {key} > {}", self.table.key_from(2 + self.table.key.len())),
            None => until,
        }
    }
}

impl Versions {
    /// How many bytes what the rows held has.
    pub(crate) fn bytes(&self) -> usize {
        self.rows.iter().map(String::len).sum()
    }

    /// Adds others behind them.
    pub(crate) fn append(&mut self, mut others: Self) {
        self.keys.append(&mut others.keys);
        self.stamps.append(&mut others.stamps);
        self.rows.append(&mut others.rows);
    }

    /// Some of them, without what the rows held.
    pub(crate) fn part(&self, which: std::ops::Range<usize>) -> Self {
        let of = |all: &[String]| all.get(which.clone()).unwrap_or_default().to_vec();
        Self { keys: of(&self.keys), stamps: of(&self.stamps), rows: Vec::new() }
    }
}

impl<T> Stepped<T> {
    fn map<U>(self, of: impl FnOnce(T) -> U) -> Stepped<U> {
        match self {
            Self::Done(done) => Stepped::Done(of(done)),
            Self::Refused => Stepped::Refused,
        }
    }
}

/// A statement of the walk: the moment, the boundary and the cursor are its first parameters.
fn bound<'q>(
    statement: &str,
    before: Timestamp,
    cursor: Option<&'q Key>,
    boundary: &'q Key,
) -> Query<'q, Postgres, PgArguments> {
    let query = sqlx::query(AssertSqlSafe(statement.to_owned())).bind(moment(before));
    let query = boundary.iter().fold(query, Query::bind);
    cursor.into_iter().flatten().fold(query, Query::bind)
}

fn cells(row: &PgRow) -> Result<(String, String, String), sqlx::Error> {
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

fn moment(at: Timestamp) -> String {
    at.to_rfc3339()
}

fn judged<T>(answered: Result<Result<T, sqlx::Error>, tokio::time::error::Elapsed>) -> Result<Stepped<T>, Failure> {
    match answered.or_retry("the database did not answer")? {
        Ok(done) => Ok(Stepped::Done(done)),
        Err(error) if is_in_the_way(&error) => Ok(Stepped::Refused),
        Err(error) if is_mistaken(&error) => Err(error).or_discard("deleting rows"),
        Err(error) => Err(error).or_retry("deleting rows"),
    }
}

/// A lock or a statement's time that ran out, a deadlock, a conflict.
fn is_in_the_way(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| ["55P03", "57014", "40P01", "40001"].contains(&&*code))
}

/// What nobody but a person mends: a condition that is no SQL, a table that refers to these rows, a missing privilege.
fn is_mistaken(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| ["42", "23", "22", "0A"].iter().any(|class| code.starts_with(class)))
}
