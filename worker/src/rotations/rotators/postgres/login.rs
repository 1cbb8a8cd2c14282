//! Sessions: attempts to sign in, which say whether a password is valid, and the session of the one who sets passwords.

use std::time::Duration;

use percent_encoding::percent_decode_str;
use secrets::{ExposeSecret, SecretString};
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use url::Url;

use super::super::random_key::random_text;
use super::quiet::{Quiet, literal};
use super::value::{Value, options};
use crate::databases::pooler::pooled;
use crate::handler::{Failure, OrFail};
use crate::world::World;

/// Signing in and each statement must be done within this. Neon's control plane may hold a COMMIT up for 20 seconds.
const DEADLINE: Duration = Duration::from_secs(40);

/// What a server says of a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// It is valid, and the server would have refused another.
    Works,
    /// It is not: SQLSTATE 28P01.
    Refused,
}

/// Tries to sign in and to run a query. Any answer but yes and 28P01 is a failure, which says nothing about the password.
pub(super) async fn logs_in(options: &PgConnectOptions, query: &str) -> Result<Login, Failure> {
    let Some(mut session) = connect(options).await? else { return Ok(Login::Refused) };
    let asked = within(session.execute(AssertSqlSafe(query))).await;
    asked.map(drop).map_err(|failure| failure.context("signed in with that password, its query"))?;
    let _farewell = tokio::time::timeout(Duration::from_secs(5), session.close()).await;
    let nobodys = options.clone().password(random_text(16)?.expose_secret());
    if connect(&nobodys).await?.is_some() {
        return Err(Failure::Discard(anyhow::anyhow!(
            "the server lets `{}` in with any password (`trust` in pg_hba.conf?): a rotation would prove nothing",
            options.get_username()
        )));
    }
    Ok(Login::Works)
}

/// A session; none where the password is refused.
async fn connect(options: &PgConnectOptions) -> Result<Option<PgConnection>, Failure> {
    let options = options.clone().application_name("nightporter").disable_statement_logging();
    let connected = tokio::time::timeout(DEADLINE, PgConnection::connect_with(&options)).await;
    match connected.or_retry("signing in did not end in time")? {
        Ok(session) => Ok(Some(session)),
        Err(error) if code(&error).as_deref() == Some("28P01") => Ok(None),
        Err(error) => {
            let doing = format!(
                "signing in as `{}` at {}, which says nothing about the password",
                options.get_username(),
                options.get_host()
            );
            Err(error).or_retry(&doing)
        }
    }
}

/// The session of a user who may set passwords.
pub(super) struct Admin {
    session: PgConnection,
}

impl Admin {
    /// Signs in as the user of that database. Where that user is the very role that is being rotated, its own address holds
    /// the old password or the new one, whichever the vault gave: all are tried.
    pub(super) async fn connect(world: &World, database: &str, values: &[&Value]) -> Result<Self, Failure> {
        let config = world.database_config(database)?;
        let doing = format!("resolving the address of the database `{database}`");
        let address = world.secret(&config.url, &doing).await?;
        let wrong =
            || Failure::Discard(anyhow::anyhow!("the address of the database `{database}` is no `postgres://...`"));
        let url = Url::parse(address.expose_secret()).map_err(|_| wrong())?;
        if let Some(reason) = pooled(&url) {
            return Err(Failure::Discard(anyhow::anyhow!(
                "the address of the database `{database}` is refused: {reason}"
            )));
        }
        let own = options(&url)?;
        let same = values.iter().filter(|value| value.role() == percent_decode_str(url.username()).decode_utf8_lossy());
        let others = same.map(|value| own.clone().password(value.password().expose_secret()));
        for options in [own.clone()].into_iter().chain(others) {
            if let Some(session) = connect(&options).await? {
                return Ok(Self { session });
            }
        }
        Err(Failure::Discard(anyhow::anyhow!(
            "the server refuses the password of `{}`, the user of the database `{database}`",
            own.get_username()
        )))
    }

    /// Whether the role may log in; it must be there.
    pub(super) async fn role_can_login(&mut self, role: &str) -> Result<bool, Failure> {
        let asked = sqlx::query_scalar::<_, bool>("SELECT rolcanlogin FROM pg_roles WHERE rolname = $1").bind(role);
        let found = within(asked.fetch_optional(&mut self.session)).await?;
        found.ok_or_else(|| {
            Failure::Discard(anyhow::anyhow!("there is no role `{role}`: create it as docs/rotation.md says"))
        })
    }

    /// That two roles are members of the same roles: what one may do, the other may.
    pub(super) async fn same_rights(&mut self, one: &str, other: &str) -> Result<(), Failure> {
        let asked = sqlx::query_scalar::<_, Option<String>>(
            "SELECT string_agg(parent.rolname, ', ' ORDER BY parent.rolname) FROM pg_roles r
             LEFT JOIN pg_auth_members m ON m.member = r.oid LEFT JOIN pg_roles parent ON parent.oid = m.roleid
             WHERE r.rolname = ANY($1) GROUP BY r.oid",
        );
        let parents = within(asked.bind(vec![one, other]).fetch_all(&mut self.session)).await?;
        match parents.as_slice() {
            [first, second] if first == second => Ok(()),
            _ => Err(Failure::Discard(anyhow::anyhow!(
                "`{one}` and `{other}` are not both there and members of the same roles: what one may do, the other could \
                 not; docs/rotation.md says how to set them up"
            ))),
        }
    }

    /// Has the role log in with this password from now on: the password itself, or its verifier.
    pub(super) async fn set_password(
        &mut self,
        role: &str,
        told: &SecretString,
        may_be_logged: bool,
    ) -> Result<(), Failure> {
        let quiet = Quiet::of(&mut self.session).await?;
        if let (false, Some(where_it_is_written)) = (may_be_logged, quiet.written_down()) {
            return Err(Failure::Discard(anyhow::anyhow!(
                "the server would write the password down ({where_it_is_written}), and its user may not switch that off: \
                 `GRANT SET ON PARAMETER` for it, or say `accept_logged = true`"
            )));
        }
        // A role may set its own password, and not more of itself.
        let wakes = if self.role_can_login(role).await? { "" } else { "LOGIN " };
        // Each a message of its own: in one string with others, the whole string is logged before the settings hold.
        let mut statements = vec!["BEGIN".to_owned()];
        statements.extend(quiet.statements());
        statements.push(format!(
            "ALTER ROLE {} {wakes}PASSWORD {}",
            crate::databases::identifier(role),
            literal(told.expose_secret())
        ));
        statements.push("COMMIT".to_owned());
        for statement in statements {
            self.say(&statement)
                .await
                .map_err(|failure| failure.context(format!("setting the password of `{role}`")))?;
        }
        Ok(())
    }

    /// How many sessions a role has.
    pub(super) async fn sessions_of(&mut self, role: &str) -> Result<i64, Failure> {
        let asked = sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE usename = $1").bind(role);
        within(asked.fetch_one(&mut self.session)).await
    }

    /// Lets nobody log in as that role any more. Its password stays, so that a person can take this back.
    pub(super) async fn let_rest(&mut self, role: &str) -> Result<(), Failure> {
        let statement = format!("ALTER ROLE {} NOLOGIN", crate::databases::identifier(role));
        self.say(&statement).await.map_err(|failure| failure.context(format!("letting `{role}` rest")))
    }

    /// A statement by the simple protocol. What the server answers holds nothing of the statement.
    async fn say(&mut self, statement: &str) -> Result<(), Failure> {
        within(self.session.execute(sqlx::raw_sql(AssertSqlSafe(statement)))).await.map(drop)
    }
}

/// A statement's answer, within the deadline. A definite no of the server stays; what it does not know may pass.
pub(super) async fn within<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Failure> {
    let answered = tokio::time::timeout(DEADLINE, asked).await.or_retry("the server did not answer in time")?;
    answered.map_err(|error| {
        let definite = code(&error).is_some_and(|code| is_definite(&code, &error));
        let error = anyhow::Error::new(bare(error));
        if definite { Failure::Discard(error) } else { Failure::retry(error) }
    })
}

/// Whether the server will say the same again: mistakes in a statement, missing rights, a password that a policy refuses.
fn is_definite(code: &str, error: &sqlx::Error) -> bool {
    let message = error.as_database_error().map(DatabaseError::message).unwrap_or_default();
    match code {
        // Neon's control plane refuses at COMMIT, and says so only in words; two changes of a role at once are no refusal.
        "XX000" => message.contains("Received HTTP code 4") && !message.contains("HTTP code 429"),
        _ => ["0A", "22", "23", "28", "42", "P0"].iter().any(|class| code.starts_with(class)),
    }
}

/// The error with the server's first line alone: a detail may quote what it was given.
fn bare(error: sqlx::Error) -> sqlx::Error {
    match &error {
        sqlx::Error::Database(said) => match said.try_downcast_ref::<PgDatabaseError>() {
            Some(said) => sqlx::Error::Protocol(format!("{} (SQLSTATE {})", said.message(), said.code())),
            None => error,
        },
        _ => error,
    }
}

fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(DatabaseError::code).map(std::borrow::Cow::into_owned)
}
