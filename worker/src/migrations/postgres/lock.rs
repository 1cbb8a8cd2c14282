//! The tools' own advisory locks, so that a stray run of the tool itself is excluded too.

use rand::Rng;
use sqlx::Row;
use tokio::time::Instant;

use super::session::{Session, in_time};
use crate::handler::Failure;
use crate::migrations::LOCK_POLL;

/// Prisma's key.
pub(super) const PRISMA: i64 = 72_707_369;

/// Our own, for plain SQL: `nightport` without its last letter, as a number.
pub(super) const SQL: i64 = i64::from_be_bytes(*b"nightpor");

/// sqlx's key for a database.
pub(super) fn of_sqlx(database: &str) -> i64 {
    0x3d32_ad9e * i64::from(crc32fast::hash(database.as_bytes()))
}

/// Takes the lock by polling; it is given back when the session ends.
pub(super) async fn take(session: &mut Session, key: i64) -> Result<(), Failure> {
    let deadline = Instant::now() + session.patience.tool_lock;
    loop {
        let taken = sqlx::query_scalar::<_, bool>("SELECT pg_try_advisory_lock($1)").bind(key);
        if in_time("taking the migration lock", taken.fetch_one(&mut session.connection)).await? {
            return Ok(());
        }
        let pause = rand::rng().random_range(LOCK_POLL.0..LOCK_POLL.1);
        if Instant::now() + pause >= deadline {
            let holder = holder(session, key).await?;
            return Err(Failure::retry(anyhow::anyhow!(
                "another session holds the migration lock on this database: {holder}; wait for it, or end it"
            )));
        }
        tokio::time::sleep(pause).await;
    }
}

async fn holder(session: &mut Session, key: i64) -> Result<String, Failure> {
    let query = sqlx::query(
        "SELECT a.pid, coalesce(a.application_name, '') AS application, coalesce(a.state, '') AS state,
                coalesce(extract(epoch FROM clock_timestamp() - a.backend_start), 0)::bigint AS age
         FROM pg_locks l JOIN pg_stat_activity a USING (pid)
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND l.classid::bigint = (($1::bigint >> 32) & 4294967295) AND l.objid::bigint = ($1::bigint & 4294967295)",
    );
    let found = in_time("looking who holds it", query.bind(key).fetch_optional(&mut session.connection)).await?;
    let Some(row) = found else { return Ok("one that has just ended".into()) };
    let said = || -> Result<String, sqlx::Error> {
        let (pid, age): (i32, i64) = (row.try_get("pid")?, row.try_get("age")?);
        let (application, state): (String, String) = (row.try_get("application")?, row.try_get("state")?);
        Ok(format!("pid {pid}, application `{application}`, {state}, connected for {age} s"))
    };
    said().map_err(Failure::retry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_sqlx_is_as_sqlx_makes_it() {
        // CRC-32/ISO-HDLC of `123456789` is 0xcbf43926, by its definition.
        assert_eq!(of_sqlx("123456789"), 0x3d32_ad9e * 0xcbf4_3926);
    }
}
