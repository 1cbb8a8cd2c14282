//! Writing down what happens, for other programs.
//!
//! Whoever commits with a lower id than what was announced already is not skipped: nothing is asked for by "above the last
//! one". Rows are numbered when they are first seen, under the lock of the one row of `herald`, and deleted when announced.

use async_trait::async_trait;
use schemas::{Timestamp, WorkerId};
use sqlx::{Executor, PgConnection};

use super::super::announcing::{AnnouncementRow, ToAnnounce, Turn};
use super::super::rows::{micros, moment};
use super::super::{Herald, LedgerError};
use super::intake::announce;
use super::{Postgres, begin, commit, in_time, unavailable, unknown};

/// Until this is run a delivery costs no more than if there were no announcements. `create or replace`: a half-made state
/// is mended.
const TURN_ON: &str = "
    create or replace trigger announce_events after insert on nightporter.event
        referencing new table as added for each statement execute function nightporter.announce_events();
    create or replace trigger announce_release after update of standing on nightporter.event
        for each row when (old.standing <> 0 and new.standing = 0) execute function nightporter.announce_release();
    create or replace trigger announce_ends after insert on nightporter.history
        referencing new table as added for each statement execute function nightporter.announce_ends();";

const TURN_OFF: &str = "
    drop trigger if exists announce_events on nightporter.event;
    drop trigger if exists announce_release on nightporter.event;
    drop trigger if exists announce_ends on nightporter.history;
    truncate nightporter.announcement;";

#[async_trait]
impl Herald for Postgres {
    async fn set_announcing(&self, on: bool, config_digest: &str, now: Timestamp) -> Result<bool, LedgerError> {
        in_time(async {
            let mut tx = begin(&self.hot).await?;
            if !announce(&mut tx, config_digest, now).await? {
                return Ok(false);
            }
            let changed: Option<i16> = sqlx::query_scalar(
                "insert into herald (id, is_on) select 1, $1::boolean where $1::boolean or exists (select 1 from herald)
                 on conflict (id) do update set is_on = excluded.is_on, holder = null, until = null
                 where herald.is_on <> excluded.is_on returning id",
            )
            .bind(on)
            .fetch_optional(&mut *tx)
            .await
            .map_err(unavailable)?;
            if changed.is_some() {
                tx.execute(if on { TURN_ON } else { TURN_OFF }).await.map_err(unavailable)?;
            }
            commit(tx).await?;
            Ok(true)
        })
        .await
    }

    async fn next_announcements(
        &self,
        herald: WorkerId,
        limit: u32,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<Turn, LedgerError> {
        in_time(async {
            let mut tx = begin(&self.hot).await?;
            let row: Option<(bool, i64, bool)> = sqlx::query_as(
                "select is_on, last, holder is not distinct from $1 or coalesce(until, 0) <= $2
                 from herald where id = 1 for update",
            )
            .bind(herald.0)
            .bind(micros(now))
            .fetch_optional(&mut *tx)
            .await
            .map_err(unavailable)?;
            let last = match row {
                None | Some((false, ..)) => return Ok(Turn::Off),
                Some((true, _, false)) => return Ok(Turn::Theirs),
                Some((true, last, true)) => last,
            };
            let next = next(&mut tx, last, limit).await?;
            let last = next.last().map_or(last, |next| next.number.max(last));
            sqlx::query("update herald set holder = $1, until = $2, last = $3 where id = 1")
                .bind(herald.0)
                .bind(micros(until))
                .bind(last)
                .execute(&mut *tx)
                .await
                .map_err(unavailable)?;
            commit(tx).await?;
            Ok(Turn::Ours(next))
        })
        .await
    }

    async fn announced(&self, herald: WorkerId, numbers: &[i64], now: Timestamp) -> Result<bool, LedgerError> {
        in_time(async {
            // Whoever's turn it is now: what was announced was announced.
            sqlx::query_scalar(
                "with gone as (delete from announcement where id = any(array(
                                 select id from announcement where number is not null and number = any($3))))
                 select exists (select 1 from herald where id = 1 and is_on and holder = $1 and until > $2)",
            )
            .bind(herald.0)
            .bind(micros(now))
            .bind(numbers)
            .fetch_one(&mut *self.hot().await?)
            .await
            .map_err(unknown)
        })
        .await
    }

    async fn pass_turn(&self, herald: WorkerId) -> Result<(), LedgerError> {
        in_time(async {
            sqlx::query("update herald set holder = null, until = null where id = 1 and holder = $1")
                .bind(herald.0)
                .execute(&mut *self.hot().await?)
                .await
                .map_err(unknown)?;
            Ok(())
        })
        .await
    }

    async fn oldest_unannounced(&self) -> Result<Option<Timestamp>, LedgerError> {
        in_time(async {
            let at: Option<i64> = sqlx::query_scalar("select at from announcement order by id limit 1")
                .fetch_optional(&mut *self.hot().await?)
                .await
                .map_err(unavailable)?;
            Ok(at.map(moment))
        })
        .await
    }
}

/// What was given out before and is not announced yet; where that is nothing, what is visible now, numbered.
async fn next(tx: &mut PgConnection, last: i64, limit: u32) -> Result<Vec<ToAnnounce>, LedgerError> {
    let given: Vec<AnnouncementRow> = sqlx::query_as(
        "select id, number, what, subject_id, fact from announcement where number is not null order by number limit $1",
    )
    .bind(i64::from(limit))
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    if !given.is_empty() {
        return given.into_iter().map(AnnouncementRow::read_again).collect();
    }
    let new: Vec<AnnouncementRow> =
        sqlx::query_as("select id, number, what, subject_id, fact from announcement order by id limit $1")
            .bind(i64::from(limit))
            .fetch_all(&mut *tx)
            .await
            .map_err(unavailable)?;
    let ids: Vec<i64> = new.iter().map(|row| row.id).collect();
    let numbers: Vec<i64> = (last + 1..).take(ids.len()).collect();
    sqlx::query(
        "update announcement a set number = u.number from unnest($1::bigint[], $2::bigint[]) as u(id, number)
         where a.id = any($1) and a.id = u.id",
    )
    .bind(&ids)
    .bind(&numbers)
    .execute(tx)
    .await
    .map_err(unavailable)?;
    new.into_iter().zip(numbers).map(|(row, number)| row.read(number)).collect()
}

/// Forgets what is older than anything is kept, though nobody could be told: the numbers that it would have had are left
/// out, so that whoever listens sees that something is missing. How many.
pub(super) async fn forget_unannounced(
    tx: &mut PgConnection,
    before: Timestamp,
    limit: u32,
) -> Result<u64, LedgerError> {
    // Locked first, as it is by whoever gives numbers.
    let is_on: Option<bool> = sqlx::query_scalar("select is_on from herald where id = 1 for update")
        .fetch_optional(&mut *tx)
        .await
        .map_err(unavailable)?;
    if is_on != Some(true) {
        return Ok(0);
    }
    let gone: Vec<Option<i64>> = sqlx::query_scalar(
        "delete from announcement where id = any(array(
           select id from (select id, at from announcement order by id limit $2) oldest where at < $1))
         returning number",
    )
    .bind(micros(before))
    .bind(i64::from(limit))
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    let without_number = gone.iter().filter(|number| number.is_none()).count();
    if without_number > 0 {
        sqlx::query("update herald set last = last + $1 where id = 1")
            .bind(i64::try_from(without_number).unwrap_or(i64::MAX))
            .execute(tx)
            .await
            .map_err(unavailable)?;
    }
    Ok(gone.len() as u64)
}
