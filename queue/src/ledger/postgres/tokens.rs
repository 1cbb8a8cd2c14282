//! Tokens that open the API: the ledger has their hashes alone.

use schemas::{JobId, Timestamp};
use sqlx::PgConnection;

use super::super::door::name_taken;
use super::super::rows::{micros, storable};
use super::super::{LedgerError, NewToken, Operator};
use super::unavailable;

/// Keeps a token; its name must never have been another's.
pub(super) async fn keep(
    tx: &mut PgConnection,
    token: &NewToken,
    by: &Operator,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let kept = sqlx::query(
        "insert into token (id, name, hash, role, created_at, created_by, expires_at)
         values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing",
    )
    .bind(JobId::at(now).0)
    .bind(storable(&token.name))
    .bind(&token.hash[..])
    .bind(token.role.code())
    .bind(micros(now))
    .bind(storable(&by.actor))
    .bind(token.expires_at.map(micros))
    .execute(tx)
    .await
    .map_err(unavailable)?;
    if kept.rows_affected() == 0 {
        return Err(name_taken(&token.name));
    }
    Ok(())
}

/// Ends a token.
pub(super) async fn revoke(tx: &mut PgConnection, name: &str, now: Timestamp) -> Result<(), LedgerError> {
    let revoked = sqlx::query("update token set revoked_at = $2 where name = $1 and revoked_at is null")
        .bind(storable(name))
        .bind(micros(now))
        .execute(tx)
        .await
        .map_err(unavailable)?;
    if revoked.rows_affected() == 0 {
        return Err(LedgerError::NotFound("living token of that name"));
    }
    Ok(())
}
