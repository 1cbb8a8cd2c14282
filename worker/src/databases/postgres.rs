//! `PostgreSQL`, by its own programs: `pg_dump` and `pg_restore` in the version that suits the server.
//!
//! The password goes to them through the environment, never through arguments, which everyone on the machine can read.

mod ask;
mod contents;
mod dump;
mod place;
mod scratch;
mod upkeep;

use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tokio::io::AsyncRead;
use tracing::debug;
use url::Url;

use super::pooler::pooled;
use super::program::{Program, suited};
use super::{Answer, Contents, Database, Digests, Dump, Question, Scratch, Tool, Upkeep, identifier};
use crate::examination::Remark;
use crate::handler::{Failure, OrFail};
use crate::migrations::History;
use crate::rows::{Named, Walk};

/// As dumps name it.
const ENGINE: &str = "postgresql";
/// Connecting and each short statement must be done within this.
const DEADLINE: Duration = Duration::from_secs(30);
/// The last word of a session.
const FAREWELL: Duration = Duration::from_secs(5);
/// Making or dropping a database, which waits for a checkpoint.
const DATABASE_DEADLINE: Duration = Duration::from_mins(5);

/// To whom what is restored belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    /// To whoever restores: it is to be looked at.
    Ours,
    /// To whom it belonged, and open to whom it was: it takes the place of the one that it is a backup of.
    AsBefore,
}

/// A `PostgreSQL` database.
pub(super) struct Postgres {
    url: Url,
    options: PgConnectOptions,
    /// Dumps take digests of tables up to so many bytes.
    digests_up_to: u64,
}

impl Postgres {
    pub(super) fn new(name: &str, address: &str, digests_up_to: u64) -> Result<Self, Failure> {
        // The parser's own words may quote the address, and the password with it.
        let wrong = || Failure::Discard(anyhow::anyhow!("the address of the database `{name}` is not a URL"));
        let url = Url::parse(address).map_err(|_| wrong())?;
        if let Some(reason) = pooled(&url) {
            return Err(Failure::Discard(anyhow::anyhow!("the address of the database `{name}` is refused: {reason}")));
        }
        let options = PgConnectOptions::from_str(address).map_err(|_| wrong())?;
        Ok(Self { url, options: options.application_name("nightporter").disable_statement_logging(), digests_up_to })
    }

    async fn connect(&self) -> Result<PgConnection, Failure> {
        connect_with(&self.options).await
    }

    /// A session that ends with us: the server looks each second whether we are still there (14 and later, not on every
    /// system), so that what a killed attempt began does not outlive it.
    async fn watched(&self) -> Result<PgConnection, Failure> {
        let mut connection = self.connect().await?;
        let watching =
            "SELECT set_config(name, '1s', false) FROM pg_settings WHERE name = 'client_connection_check_interval'";
        if let Err(failure) = within(sqlx::query(watching).execute(&mut connection)).await {
            debug!("the server does not watch its connections: {}", failure.words());
        }
        Ok(connection)
    }

    async fn server(&self, connection: &mut PgConnection) -> Result<(u32, String, u64), Failure> {
        let asked = sqlx::query_as(
            "SELECT current_setting('server_version_num')::int4, current_setting('server_version'), pg_database_size(current_database())",
        );
        let (number, version, size): (i32, String, i64) = within(asked.fetch_one(connection)).await?;
        Ok((number.cast_unsigned() / 10_000, version, size.cast_unsigned()))
    }

    /// What the programs are told through the environment; `database` replaces the address' own.
    fn environment(&self, database: Option<&str>) -> Vec<(String, String)> {
        let mut variables = vec![
            ("PGHOST".to_owned(), self.host()),
            ("PGPORT".to_owned(), self.options.get_port().to_string()),
            ("PGUSER".to_owned(), self.options.get_username().to_owned()),
            ("PGDATABASE".to_owned(), database.unwrap_or_else(|| self.database()).to_owned()),
            ("PGAPPNAME".to_owned(), "nightporter".to_owned()),
            ("PGCONNECT_TIMEOUT".to_owned(), "30".to_owned()),
        ];
        variables.extend(self.password().map(|password| ("PGPASSWORD".to_owned(), password)));
        for (key, value) in self.url.query_pairs() {
            let variable = match &*key {
                "sslmode" => "PGSSLMODE",
                "sslrootcert" => "PGSSLROOTCERT",
                "sslcert" => "PGSSLCERT",
                "sslkey" => "PGSSLKEY",
                "channel_binding" => "PGCHANNELBINDING",
                "options" => "PGOPTIONS",
                _ => continue,
            };
            variables.push((variable.to_owned(), value.into_owned()));
        }
        variables
    }

    fn host(&self) -> String {
        let socket = self.options.get_socket().map(|path| path.display().to_string());
        socket.unwrap_or_else(|| self.options.get_host().trim_matches(['[', ']']).to_owned())
    }

    fn database(&self) -> &str {
        self.options.get_database().unwrap_or_else(|| self.options.get_username())
    }

    fn password(&self) -> Option<String> {
        let decoded = percent_encoding::percent_decode_str(self.url.password()?).decode_utf8_lossy();
        Some(decoded.into_owned())
    }

    async fn start(
        &self,
        name: &'static str,
        arguments: &[&str],
        major: u32,
        database: Option<&str>,
    ) -> Result<(Program, String), Failure> {
        let installed = suited(name, major).await?;
        let environment = self.environment(database);
        let program = Program::start(name, &installed.path, arguments, &environment, self.password())?;
        Ok((program, installed.version))
    }
}

#[async_trait]
impl Database for Postgres {
    fn engine(&self) -> &'static str {
        ENGINE
    }

    async fn dump(&self, _tag: &str) -> Result<Box<dyn Dump>, Failure> {
        dump::begin(self).await
    }

    async fn read_through(&self, dump: Box<dyn AsyncRead + Send + Unpin>) -> Result<(), Failure> {
        // No server is needed for it, so the version is that of the program which made the dump, or newer.
        let mut connection = self.connect().await?;
        let (major, ..) = self.server(&mut connection).await?;
        drop(connection);
        let installed = suited("pg_restore", major).await?;
        let arguments = ["--file=/dev/null", "--exit-on-error"];
        let mut program = Program::start("pg_restore", &installed.path, &arguments, &[], None)?;
        program.feed(dump).await?;
        program.end_well().await.map_err(|failure| failure.context("reading the backup through"))?;
        Ok(())
    }

    async fn restore(&self, new_name: &str, tag: &str, dump: Box<dyn AsyncRead + Send + Unpin>) -> Result<(), Failure> {
        self.make(new_name, tag, Rights::Ours, dump).await
    }

    async fn restore_beside(&self, scratch: Scratch, dump: Box<dyn AsyncRead + Send + Unpin>) -> Result<bool, Failure> {
        if place::is_taken(self, scratch).await? {
            return Ok(false);
        }
        self.make(&scratch.name(), &scratch.job.to_string(), Rights::AsBefore, dump).await.map(|()| true)
    }

    async fn take_place(&self, scratch: Scratch) -> Result<String, Failure> {
        place::take(self, scratch).await
    }

    async fn examine(&self) -> Result<Vec<Remark>, Failure> {
        let mut connection = self.connect().await?;
        let (major, version, bytes) = self.server(&mut connection).await?;
        let mut remarks = vec![Remark::well(format!("PostgreSQL {version} answers, {bytes} bytes"))];
        for program in ["pg_dump", "pg_restore"] {
            remarks.push(match suited(program, major).await {
                Ok(installed) => Remark::well(format!("{} suits it", installed.version)),
                Err(failure) => Remark::ill(failure.words()),
            });
        }
        remarks.extend(privileges(&mut connection).await?);
        Ok(remarks)
    }

    async fn walk(&self, named: Named<'_>) -> Result<Walk, Failure> {
        Walk::over(self.connect().await?, named).await
    }

    async fn drop_scratch(&self, scratch: Scratch) -> Result<(), Failure> {
        scratch::drop_it(self, scratch).await
    }

    async fn scratches(&self) -> Result<Vec<Scratch>, Failure> {
        scratch::all(self).await
    }

    async fn contents(&self, scratch: Scratch, like: &Contents) -> Result<Contents, Failure> {
        let mut connection = scratch::connect(self, scratch).await?;
        contents::contents(&mut connection, Digests::As(like)).await
    }

    async fn ask_scratch(&self, scratch: Scratch, sql: &str) -> Result<Value, Failure> {
        let mut connection = scratch::connect(self, scratch).await?;
        scratch::ask(&mut connection, sql).await
    }

    async fn ask(&self, question: &Question) -> Result<Answer, Failure> {
        self.answer(question).await
    }

    async fn upkeep(&self) -> Result<Box<dyn Upkeep>, Failure> {
        self.keep().await
    }

    async fn migrate_with(&self, tool: Tool) -> Result<Box<dyn History>, Failure> {
        crate::migrations::open_postgres(&self.url, tool).await
    }
}

impl Postgres {
    /// The comment on a database of that name, empty where it has none; none where there is no such database.
    async fn mark_of(&self, connection: &mut PgConnection, name: &str) -> Result<Option<String>, Failure> {
        let asked = sqlx::query_scalar::<_, String>(
            "SELECT coalesce(shobj_description(oid, 'pg_database'), '') FROM pg_database WHERE datname = $1",
        );
        within(asked.bind(name).fetch_optional(connection)).await
    }

    /// Makes a new database of that name from a dump.
    async fn make(
        &self,
        new_name: &str,
        tag: &str,
        rights: Rights,
        dump: Box<dyn AsyncRead + Send + Unpin>,
    ) -> Result<(), Failure> {
        let mut connection = self.connect().await?;
        let mark = mark(tag);
        match self.mark_of(&mut connection, new_name).await? {
            Some(found) if found == mark => return Ok(()), // An earlier attempt did it and could not say so.
            Some(_) => {
                return Err(Failure::Discard(anyhow::anyhow!(
                    "a database named `{new_name}` exists; a restore only fills a new one: choose another name"
                )));
            }
            None => {}
        }
        // It gets its name when it is whole. What an earlier attempt of this job left unfinished is dropped.
        let unfinished = unfinished(tag);
        drop_database(&mut connection, &unfinished).await?;
        let filled = self.fill(&mut connection, &unfinished, rights, dump).await;
        let furnished = match (filled, rights) {
            (Ok(()), Rights::AsBefore) => place::furnish(self, &mut connection, &unfinished).await,
            (filled, _) => filled,
        };
        let settled = match furnished {
            Ok(()) => settle(&mut connection, &unfinished, new_name, &mark).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = settled {
            // The connection may have died of the same cause.
            let dropped = match self.connect().await {
                Ok(mut connection) => drop_database(&mut connection, &unfinished).await,
                Err(failure) => Err(failure),
            };
            return Err(match dropped {
                Ok(()) => failure,
                Err(_) => failure.context(format!("the unfinished database `{unfinished}` could not be dropped")),
            });
        }
        Ok(())
    }

    async fn fill(
        &self,
        connection: &mut PgConnection,
        name: &str,
        rights: Rights,
        dump: Box<dyn AsyncRead + Send + Unpin>,
    ) -> Result<(), Failure> {
        let (major, ..) = self.server(connection).await?;
        // With the encoding and the locale of the database that we are connected to: a dump does not carry them.
        let like: (String, String, String) = within(
            sqlx::query_as(
                "SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database
                 WHERE datname = current_database()",
            )
            .fetch_one(&mut *connection),
        )
        .await?;
        let create = format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
            identifier(name),
            literal(&like.0),
            literal(&like.1),
            literal(&like.2)
        );
        execute(connection, create).await.map_err(|failure| failure.context("making the new database"))?;
        let to = format!("--dbname={name}"); // A name of our own making, no secret.
        let mut arguments = vec![to.as_str(), "--exit-on-error", "--single-transaction", "--no-password"];
        if rights == Rights::Ours {
            arguments.extend(["--no-owner", "--no-privileges"]);
        }
        let (mut program, _) = self.start("pg_restore", &arguments, major, Some(name)).await?;
        program.feed(dump).await?;
        program.end_well().await?;
        Ok(())
    }
}

/// What the user may not do that backups and restores need.
async fn privileges(connection: &mut PgConnection) -> Result<Vec<Remark>, Failure> {
    let (unreadable, example): (i64, Option<String>) = within(
        sqlx::query_as(
            "SELECT count(*), min(c.oid::regclass::text) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p', 'm', 'S') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
               AND NOT CASE c.relkind WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT')
                                      ELSE has_table_privilege(c.oid, 'SELECT') END",
        )
        .fetch_one(&mut *connection),
    )
    .await?;
    let (filtered, bypasses, may_create): (i64, bool, bool) = within(
        sqlx::query_as(
            "SELECT (SELECT count(*) FROM pg_class WHERE relrowsecurity
                     AND (relforcerowsecurity OR NOT pg_has_role(relowner, 'USAGE'))),
                    r.rolsuper OR r.rolbypassrls, r.rolsuper OR r.rolcreatedb
             FROM pg_roles r WHERE r.rolname = current_user",
        )
        .fetch_one(&mut *connection),
    )
    .await?;
    let mut remarks = Vec::new();
    if unreadable > 0 {
        let example = example.unwrap_or_default();
        remarks.push(Remark::ill(format!(
            "its user cannot read {unreadable} tables or sequences, such as {example}: backups will fail; \
             GRANT pg_read_all_data TO that user"
        )));
    }
    if filtered > 0 && !bypasses {
        remarks.push(Remark::ill(format!(
            "row security hides rows of {filtered} tables from its user: backups will fail; take the owner, or a user \
             with BYPASSRLS"
        )));
    }
    if !may_create {
        remarks.push(Remark::doubtful(
            "its user may not create databases: a restore cannot make one here; ALTER ROLE ... CREATEDB",
        ));
    }
    Ok(remarks)
}

async fn settle(connection: &mut PgConnection, unfinished: &str, name: &str, mark: &str) -> Result<(), Failure> {
    execute(connection, format!("COMMENT ON DATABASE {} IS {}", identifier(unfinished), literal(mark))).await?;
    execute(connection, format!("ALTER DATABASE {} RENAME TO {}", identifier(unfinished), identifier(name))).await
}

async fn drop_database(connection: &mut PgConnection, name: &str) -> Result<(), Failure> {
    // A session of an attempt that was killed may linger in it.
    let end = sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1").bind(name);
    within(end.execute(&mut *connection)).await?;
    execute(connection, format!("DROP DATABASE IF EXISTS {}", identifier(name))).await
}

/// Says good-bye; the server ends the session by itself when the socket closes.
async fn hang_up(connection: PgConnection) {
    match tokio::time::timeout(FAREWELL, connection.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(error = &error as &dyn std::error::Error, "the session did not end in order"),
        Err(_) => debug!("the session did not end in time"),
    }
}

async fn execute(connection: &mut PgConnection, sql: String) -> Result<(), Failure> {
    let done = tokio::time::timeout(DATABASE_DEADLINE, sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection)).await;
    done.or_retry("the database did not answer")?.or_retry("changing the server's databases")?;
    Ok(())
}

async fn within<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Failure> {
    tokio::time::timeout(DEADLINE, asked).await.or_retry("the database did not answer")?.or_retry("asking the database")
}

async fn connect_with(options: &PgConnectOptions) -> Result<PgConnection, Failure> {
    let connected = tokio::time::timeout(DEADLINE, PgConnection::connect_with(options)).await;
    connected.or_retry("connecting to the database: no answer")?.or_retry("connecting to the database")
}

/// What the database says of itself that a job restored.
fn mark(tag: &str) -> String {
    format!("restored by nightporter, job {tag}")
}

/// The name of what a job restores until it is whole.
fn unfinished(tag: &str) -> String {
    format!("nightporter_{}", tag.replace('-', ""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_told_by_environment_what_the_address_says() {
        let database = Postgres::new("main", "postgres://app:p%40ss@db.example.com:5433/shop?sslmode=require", 0);
        let Ok(database) = database else { panic!("refused") };
        let told = database.environment(None);
        let of = |name: &str| told.iter().find(|(variable, _)| variable == name).map(|(_, value)| value.as_str());
        assert_eq!(of("PGHOST"), Some("db.example.com"));
        assert_eq!(of("PGPORT"), Some("5433"));
        assert_eq!(of("PGUSER"), Some("app"));
        assert_eq!(of("PGPASSWORD"), Some("p@ss"));
        assert_eq!(of("PGDATABASE"), Some("shop"));
        assert_eq!(of("PGSSLMODE"), Some("require"));
    }

    #[test]
    fn a_poolers_address_is_refused_without_showing_the_password() {
        let refused = Postgres::new("main", "postgres://app:hunter2@ep-x-pooler.neon.tech/shop", 0);
        let Err(Failure::Discard(error)) = refused else { panic!("taken") };
        let words = format!("{error:#}");
        assert!(
            words.contains("`main`") && words.contains("`ep-x.neon.tech`") && !words.contains("hunter2"),
            "{words}"
        );
    }
}
