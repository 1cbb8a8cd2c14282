//! A restored database takes the place of the live one, by names: both are renamed in one transaction, so that a crash
//! leaves the old one or the new one, and never none. The old one is kept under another name.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor};
use tracing::info;

use super::{Postgres, connect_with, execute, identifier, mark, within};
use crate::databases::Scratch;
use crate::handler::{Failure, OrFail};

/// The live database may not be renamed by a session in it: one in another database does it.
const ELSEWHERE: [&str; 2] = ["postgres", "template1"];
/// While the renaming waits for sessions to end, these are ended so often. Nobody new comes in: it holds the lock.
const END_EVERY: Duration = Duration::from_millis(200);
/// The server itself waits for five seconds.
const RENAME_DEADLINE: Duration = Duration::from_secs(30);

/// The sessions in a database.
const SESSIONS: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                        WHERE datname = ANY($1) AND pid <> pg_backend_pid()";

/// The name that the old database is kept under.
fn kept(scratch: Scratch) -> String {
    format!("nightporter_before_{}", scratch.job.0.simple())
}

/// Whether the new database has taken its place already.
pub(super) async fn is_taken(server: &Postgres, scratch: Scratch) -> Result<bool, Failure> {
    let mut connection = server.connect().await?;
    let found = server.mark_of(&mut connection, server.database()).await?;
    Ok(found == Some(mark(&scratch.job.to_string())))
}

pub(super) async fn take(server: &Postgres, scratch: Scratch) -> Result<String, Failure> {
    let (live, new, kept) = (server.database().to_owned(), scratch.name(), kept(scratch));
    let mut connection = elsewhere(server).await?;
    let mark = mark(&scratch.job.to_string());
    if server.mark_of(&mut connection, &live).await?.as_ref() == Some(&mark) {
        return Ok(kept); // An earlier attempt did it and could not say so.
    }
    if server.mark_of(&mut connection, &new).await?.as_ref() != Some(&mark) {
        return Err(Failure::Discard(anyhow::anyhow!(
            "the restored database `{new}` is gone: somebody dropped it; the live one was not touched"
        )));
    }
    let mut ender = elsewhere(server).await?;
    exchange(&mut connection, &mut ender, [&live, &new, &kept]).await?;
    info!(database = live, kept, "the restored database has taken its place");
    Ok(kept)
}

/// Renames both, and ends the sessions in them meanwhile.
async fn exchange(connection: &mut PgConnection, ender: &mut PgConnection, names: [&str; 3]) -> Result<(), Failure> {
    let both: Vec<String> = names[..2].iter().map(|name| (*name).to_owned()).collect();
    let renaming = rename(connection, names);
    tokio::pin!(renaming);
    loop {
        let told = within(sqlx::query(SESSIONS).bind(&both).execute(&mut *ender)).await;
        told.map_err(|failure| {
            failure.context("ending the sessions in the database (GRANT pg_signal_backend TO its user)")
        })?;
        tokio::select! {
            renamed = &mut renaming => return renamed,
            () = tokio::time::sleep(END_EVERY) => {}
        }
    }
}

async fn rename(connection: &mut PgConnection, [live, new, kept]: [&str; 3]) -> Result<(), Failure> {
    let [live, new, kept] = [live, new, kept].map(identifier);
    let both = format!("BEGIN; ALTER DATABASE {live} RENAME TO {kept}; ALTER DATABASE {new} RENAME TO {live}; COMMIT");
    let renaming = connection.execute(sqlx::raw_sql(AssertSqlSafe(both)));
    let renamed = tokio::time::timeout(RENAME_DEADLINE, renaming).await.or_retry("the server did not answer")?;
    renamed.or_retry("putting the restored database in the place of the live one; nothing was changed")?;
    Ok(())
}

/// A session in another database of the same server.
async fn elsewhere(server: &Postgres) -> Result<PgConnection, Failure> {
    let mut last = None;
    for name in ELSEWHERE.into_iter().filter(|name| *name != server.database()) {
        match connect_with(&server.options.clone().database(name)).await {
            Ok(connection) => return Ok(connection),
            Err(failure) => last = Some(failure),
        }
    }
    let failure =
        last.unwrap_or_else(|| Failure::Discard(anyhow::anyhow!("there is no other database to rename it from")));
    Err(failure.context("a database is renamed from another one (`postgres`), where its user may connect"))
}

/// Gives a new database what is no part of a dump, as the live one has it: its owner, its settings, and who may connect.
pub(super) async fn furnish(server: &Postgres, connection: &mut PgConnection, new: &str) -> Result<(), Failure> {
    let statements: Vec<String> =
        within(sqlx::query_scalar(FURNITURE).bind(server.database()).bind(identifier(new)).fetch_all(&mut *connection))
            .await?;
    for statement in statements {
        execute(connection, statement).await.map_err(|failure| {
            failure.context("giving the new database the owner, the settings and the privileges of the old")
        })?;
    }
    Ok(())
}

/// What is a list is kept as it is written. The owner comes last: others may change less.
const FURNITURE: &str = "
    WITH old AS (SELECT * FROM pg_database WHERE datname = $1),
    settings AS (
      SELECT setrole, split_part(setting, '=', 1) AS name, substr(setting, strpos(setting, '=') + 1) AS value
      FROM old JOIN pg_db_role_setting ON setdatabase = old.oid, unnest(setconfig) AS setting),
    written AS (
      SELECT setrole, quote_ident(name) AS name, CASE WHEN name IN ('search_path', 'temp_tablespaces',
               'local_preload_libraries', 'session_preload_libraries') THEN value ELSE quote_literal(value) END AS value
      FROM settings)
    SELECT statement FROM (
      SELECT 9 AS place, format('ALTER DATABASE %s OWNER TO %I', $2, r.rolname) AS statement
        FROM old JOIN pg_roles r ON r.oid = datdba WHERE r.rolname <> current_user
      UNION ALL
      SELECT 2, format('ALTER DATABASE %s CONNECTION LIMIT %s', $2, datconnlimit) FROM old WHERE datconnlimit <> -1
      UNION ALL
      SELECT 3, format('REVOKE ALL ON DATABASE %s FROM PUBLIC', $2) FROM old WHERE datacl IS NOT NULL
      UNION ALL
      SELECT 4, format('GRANT %s ON DATABASE %s TO %s%s', privilege_type, $2,
                       CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
                       CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
        FROM old, aclexplode(datacl)
      UNION ALL
      SELECT 5, format('ALTER DATABASE %s SET %s TO %s', $2, name, value) FROM written WHERE setrole = 0
      UNION ALL
      SELECT 6, format('ALTER ROLE %I IN DATABASE %s SET %s TO %s', r.rolname, $2, name, value)
        FROM written JOIN pg_roles r ON r.oid = setrole
    ) AS all_of_it ORDER BY place";
