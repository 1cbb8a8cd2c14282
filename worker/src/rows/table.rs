//! What is known of a table before its rows are deleted: its key, its column of time, and what else a deletion would do.

use std::time::Duration;

use sqlx::PgConnection;

use crate::handler::{Failure, OrFail};

/// Questions about the catalog.
const DEADLINE: Duration = Duration::from_secs(30);

/// A table and what makes its rows due, as an operator names them.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// `table` or `schema.table`.
    pub table: &'a str,
    /// The column that says how old a row is.
    pub column: &'a str,
    /// A condition in SQL; rows for which it holds stay.
    pub hold: Option<&'a str>,
}

/// A table that was found fit. Everything in it is quoted, ready for a statement.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// With its schema.
    pub(crate) name: String,
    /// The columns of its primary key, with their types.
    pub(crate) key: Vec<(String, String)>,
    /// All columns that can be inserted.
    pub(crate) columns: Vec<String>,
    /// `column < moment`, where `$1` is the moment.
    older: String,
    hold: Option<String>,
}

impl Table {
    /// Looks the table up, and refuses one whose rows can't be deleted safely.
    pub(crate) async fn find(connection: &mut PgConnection, named: Named<'_>) -> Result<Self, Failure> {
        let Named { table, column, hold } = named;
        let found: Option<(String, String)> = ask(sqlx::query_as(
            "SELECT c.oid::regclass::text, c.relkind::text FROM pg_class c WHERE c.oid = to_regclass($1)",
        )
        .bind(table)
        .fetch_optional(&mut *connection))
        .await?;
        let Some((name, kind)) = found else { return Err(no(format!("there is no table `{table}`"))) };
        if !matches!(kind.as_str(), "r" | "p") {
            return Err(no(format!("`{table}` is not a table")));
        }
        let key = key_of(connection, &name).await?;
        if key.is_empty() {
            return Err(no(format!("`{table}` has no primary key to walk along; give it one")));
        }
        refuse_cascades(connection, &name).await?;
        let older = older(connection, &name, column).await?;
        let columns = ask(sqlx::query_scalar(
            "SELECT quote_ident(attname) FROM pg_attribute
                 WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
                 ORDER BY attnum",
        )
        .bind(&name)
        .fetch_all(connection))
        .await?;
        Ok(Self { name, key, columns, older, hold: hold.map(str::to_owned) })
    }

    /// The condition for a row to be due, where `$1` is the moment.
    pub(crate) fn due(&self) -> String {
        match &self.hold {
            Some(hold) => format!("({} AND NOT coalesce(({hold}), false))", self.older),
            None => self.older.clone(),
        }
    }

    /// The condition for a row to be old enough and held.
    pub(crate) fn held(&self) -> String {
        let hold = self.hold.as_deref().unwrap_or("false");
        format!("({} AND coalesce(({hold}), false))", self.older)
    }

    /// The key's columns, with commas between them.
    pub(crate) fn key_columns(&self) -> String {
        self.key.iter().map(|(column, _)| column.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The key's columns as texts.
    pub(crate) fn key_texts(&self) -> String {
        self.key.iter().map(|(column, _)| format!("{column}::text")).collect::<Vec<_>>().join(", ")
    }

    /// The key's columns, the last key first.
    pub(crate) fn key_backwards(&self) -> String {
        self.key.iter().map(|(column, _)| format!("{column} DESC")).collect::<Vec<_>>().join(", ")
    }

    /// A key whose texts are the parameters from this one on.
    pub(crate) fn key_from(&self, first: usize) -> String {
        let typed = self.key.iter().enumerate().map(|(at, (_, kind))| format!("${}::text::{kind}", first + at));
        format!("({})", typed.collect::<Vec<_>>().join(", "))
    }
}

async fn key_of(connection: &mut PgConnection, table: &str) -> Result<Vec<(String, String)>, Failure> {
    ask(sqlx::query_as(
        "SELECT quote_ident(a.attname), format_type(a.atttypid, a.atttypmod)
         FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k(attnum, place)
         JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
         WHERE i.indrelid = $1::regclass AND i.indisprimary ORDER BY k.place",
    )
    .bind(table)
    .fetch_all(connection))
    .await
}

/// What would be deleted with a row is in no count: such a table is refused.
async fn refuse_cascades(connection: &mut PgConnection, table: &str) -> Result<(), Failure> {
    let others: Vec<String> = ask(sqlx::query_scalar(
        "SELECT DISTINCT conrelid::regclass::text FROM pg_constraint
             WHERE confrelid = $1::regclass AND contype = 'f' AND confdeltype = 'c' ORDER BY 1",
    )
    .bind(table)
    .fetch_all(connection))
    .await?;
    if others.is_empty() {
        return Ok(());
    }
    Err(no(format!(
        "deleting from {table} would delete rows of {} with it (ON DELETE CASCADE), which nobody counted; delete those \
         by a retention of their own first, and let the constraint restrict",
        others.join(", ")
    )))
}

/// `column < $1`, for each type that tells a time.
async fn older(connection: &mut PgConnection, table: &str, column: &str) -> Result<String, Failure> {
    let found: Option<(String, String)> = ask(sqlx::query_as(
        "SELECT quote_ident(attname), format_type(atttypid, NULL) FROM pg_attribute
             WHERE attrelid = $1::regclass AND attname = $2 AND attnum > 0 AND NOT attisdropped",
    )
    .bind(table)
    .bind(column)
    .fetch_optional(connection))
    .await?;
    let Some((column, kind)) = found else { return Err(no(format!("{table} has no column `{column}`"))) };
    match kind.as_str() {
        "timestamp with time zone" => Ok(format!("{column} < $1::text::timestamptz")),
        // Without a zone it is UTC by all conventions that are known to us: Prisma's, Rails', Django's.
        "timestamp without time zone" => Ok(format!("{column} < ($1::text::timestamptz AT TIME ZONE 'UTC')")),
        "date" => Ok(format!("{column} < ($1::text::timestamptz AT TIME ZONE 'UTC')::date")),
        other => Err(no(format!("the column {column} of {table} is {other}: it must be a timestamp or a date"))),
    }
}

fn no(words: String) -> Failure {
    Failure::Discard(anyhow::anyhow!(words))
}

async fn ask<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Failure> {
    tokio::time::timeout(DEADLINE, asked)
        .await
        .or_retry("the database did not answer")?
        .or_retry("looking at the table")
}
