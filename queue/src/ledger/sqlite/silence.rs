//! Sources: when each was last heard.

use schemas::Timestamp;
use sqlx::SqliteConnection;

use super::super::silence::{SourceRow, left_before};
use super::super::{LedgerError, Listened, Silence};
use super::unavailable;

/// Writes down what was heard; what changed by it, and of sources that are not configured any more.
pub(super) async fn hear(
    tx: &mut SqliteConnection,
    sources: &[Listened],
    now: Timestamp,
) -> Result<Vec<Silence>, LedgerError> {
    let mut changed = Vec::new();
    for listened in sources {
        let known: Option<SourceRow> = sqlx::query_as("select * from source where name = ?")
            .bind(&listened.source)
            .fetch_optional(&mut *tx)
            .await
            .map_err(unavailable)?;
        let mut row = known.unwrap_or_else(|| SourceRow::new(&listened.source, now));
        changed.extend(row.look(listened, now));
        write(tx, &row).await?;
    }
    let left: Vec<SourceRow> =
        sqlx::query_as("select * from source where silent_at is not null and looked_at < ? order by name")
            .bind(left_before(now))
            .fetch_all(&mut *tx)
            .await
            .map_err(unavailable)?;
    for mut row in left {
        changed.push(row.leave());
        write(tx, &row).await?;
    }
    Ok(changed)
}

async fn write(tx: &mut SqliteConnection, row: &SourceRow) -> Result<(), LedgerError> {
    sqlx::query(
        "insert into source (name, since, heard_at, looked_at, quiet, silent_at)
         values (?, ?, ?, ?, ?, ?)
         on conflict (name) do update
         set heard_at = excluded.heard_at, looked_at = excluded.looked_at, quiet = excluded.quiet,
             silent_at = excluded.silent_at",
    )
    .bind(&row.name)
    .bind(row.since)
    .bind(row.heard_at)
    .bind(row.looked_at)
    .bind(row.quiet)
    .bind(row.silent_at)
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}
