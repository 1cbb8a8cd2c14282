//! Histories in `PostgreSQL`: one direct session for each, which holds the tool's own lock.

mod lock;
mod prisma;
mod session;
mod sql;
mod sqlx;

use ::sqlx::ConnectOptions;
use ::sqlx::postgres::PgConnectOptions;
use url::Url;

use crate::databases::Tool;
use crate::databases::pooler::pooled;
use crate::handler::{Failure, OrFail};
use crate::migrations::{History, Patience};
use session::Session;

/// Takes the tool's lock on the database at this address, a direct one, and opens the tool's history.
pub async fn open_postgres(url: &Url, tool: Tool) -> Result<Box<dyn History>, Failure> {
    open_postgres_with(url, tool, Patience::default()).await
}

/// As [`open_postgres`], with another patience.
pub async fn open_postgres_with(url: &Url, tool: Tool, patience: Patience) -> Result<Box<dyn History>, Failure> {
    let (options, schema) = options(url)?;
    let mut session = Session::connect(&options, patience).await?;
    match tool {
        Tool::Sql => {
            lock::take(&mut session, lock::SQL).await?;
            Ok(Box::new(sql::SqlHistory(session)))
        }
        Tool::Sqlx => {
            let key = lock::of_sqlx(&session.database().await?);
            lock::take(&mut session, key).await?;
            Ok(Box::new(sqlx::SqlxHistory(session)))
        }
        Tool::Prisma => {
            session.say(&format!("SET search_path = {}", identifier(&schema)), "choosing the schema").await?;
            lock::take(&mut session, lock::PRISMA).await?;
            Ok(Box::new(prisma::PrismaHistory::new(session, schema)))
        }
    }
}

/// How to connect, and the schema that Prisma is to use. Parameters that only other programs know are left out.
fn options(url: &Url) -> Result<(PgConnectOptions, String), Failure> {
    let mut url = url.clone();
    if let Some(reason) = pooled(&url) {
        return Err(Failure::Discard(anyhow::anyhow!(
            "migrations need the database's direct address, because they hold a lock in their session: {reason}"
        )));
    }
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    let schema = pairs.iter().find(|(key, _)| key == "schema").map_or("public", |(_, value)| value).to_owned();
    let known: Vec<_> = pairs.into_iter().filter(|(key, _)| is_known(key)).collect();
    url.set_query(None);
    if !known.is_empty() {
        url.query_pairs_mut().extend_pairs(known);
    }
    // The error is not shown: it may quote the address, which holds a password.
    let options: PgConnectOptions = url.as_str().parse().map_err(|_| unreadable())?;
    // The text of migrations does not belong in the log.
    Ok((options.application_name("nightporter").disable_statement_logging(), schema))
}

fn is_known(key: &str) -> bool {
    key.starts_with("ssl") && key != "sslaccept" && key != "sslidentity" && key != "sslpassword"
        || key.starts_with("options")
        || matches!(key, "host" | "hostaddr" | "port" | "dbname" | "user" | "password")
}

fn unreadable() -> Failure {
    Failure::Discard(anyhow::anyhow!(
        "the database's address cannot be read; it must be like postgres://user:password@host:5432/database"
    ))
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL, whatever the session's settings are.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

fn time_of(micros: i64) -> Result<schemas::Timestamp, Failure> {
    schemas::Timestamp::from_timestamp_micros(micros)
        .ok_or("it is out of range")
        .map_err(anyhow::Error::msg)
        .or_discard("reading a time in the history")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_other_programs_are_left_out_and_the_schema_is_kept() {
        let url = "postgres://u:p@h:5433/d?schema=app&sslmode=require&channel_binding=require&connection_limit=1";
        let (options, schema) = options(&url.parse().unwrap()).unwrap();
        assert_eq!((options.get_host(), options.get_database(), schema.as_str()), ("h", Some("d"), "app"));
        assert!(matches!(options.get_ssl_mode(), ::sqlx::postgres::PgSslMode::Require));
    }

    #[test]
    fn a_poolers_address_is_refused_without_showing_the_password() {
        let failure = options(&"postgres://u:hunter2@ep-x-pooler.eu.aws.neon.tech/d".parse().unwrap()).unwrap_err();
        let Failure::Discard(error) = failure else { panic!("{failure:?}") };
        let text = format!("{error:#}");
        assert!(text.contains("`ep-x.eu.aws.neon.tech`") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn texts_become_literals() {
        assert_eq!(literal(r"a'b\c"), r"E'a''b\\c'");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
    }
}
