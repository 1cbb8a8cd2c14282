//! Writing down what happens, for other programs.

use async_trait::async_trait;
use schemas::{Timestamp, WorkerId};
use sqlx::{Executor, SqliteConnection};

use super::super::announcing::{AnnouncementRow, ToAnnounce, Turn};
use super::super::rows::{micros, moment};
use super::super::{Herald, LedgerError};
use super::intake::announce;
use super::{Sqlite, commit, in_time, unavailable};

/// Until this is run a delivery costs no more than if there were no announcements. What the triggers do cannot fail: a
/// delivery that cannot be announced is to be booked nevertheless.
const TURN_ON: &str = "
    create trigger announce_events after insert on event when new.standing = 0 begin
        insert into announcement (what, subject_id, at, fact)
        values (0, new.id, new.received_at, json_object(
            'source', new.source, 'kind', new.kind, 'delivery_id', new.delivery_id, 'subject', new.subject,
            'time', new.time, 'data', new.data, 'traceparent', new.traceparent, 'tracestate', new.tracestate));
    end;
    create trigger announce_release after update of standing on event when old.standing <> 0 and new.standing = 0 begin
        insert into announcement (what, subject_id, at, fact)
        values (0, new.id, new.received_at, json_object(
            'source', new.source, 'kind', new.kind, 'delivery_id', new.delivery_id, 'subject', new.subject,
            'time', new.time, 'data', new.data, 'traceparent', new.traceparent, 'tracestate', new.tracestate));
    end;
    create trigger announce_ends after insert on history begin
        insert into announcement (what, subject_id, at, fact)
        select 1, new.id, new.finished_at, json_object(
            'kind', new.kind, 'queue', new.queue, 'state', new.state, 'attempt', new.attempt, 'failures', new.failures,
            'reason', new.reason, 'created_at', new.created_at, 'started_at', new.started_at,
            'finished_at', new.finished_at, 'run_id', nullif(hex(new.run_id), ''),
            'event_id', nullif(hex(a.event_id), ''),
            'traceparent', a.traceparent, 'tracestate', a.tracestate)
        from (select 1) left join job_args a on a.id = new.id;
    end;";

const TURN_OFF: &str = "
    drop trigger if exists announce_events;
    drop trigger if exists announce_release;
    drop trigger if exists announce_ends;
    delete from announcement;";

#[async_trait]
impl Herald for Sqlite {
    async fn set_announcing(&self, on: bool, config_digest: &str, now: Timestamp) -> Result<bool, LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            if !announce(&mut tx, config_digest, now).await? {
                return Ok(false);
            }
            let changed: Option<i64> = sqlx::query_scalar(
                "insert into herald (id, is_on) select 1, ?1 where ?1 or exists (select 1 from herald)
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
            let mut writer = self.write().await;
            let mut tx = writer.begin().await?;
            let row: Option<(bool, i64, bool)> =
                sqlx::query_as("select is_on, last, holder is ?1 or coalesce(until, 0) <= ?2 from herald where id = 1")
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
            sqlx::query("update herald set holder = ?, until = ?, last = ? where id = 1")
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
            let mut writer = self.write().await;
            let mut tx = writer.begin().await?;
            for number in numbers {
                // Whoever's turn it is now: what was announced was announced.
                sqlx::query("delete from announcement where number = ?")
                    .bind(number)
                    .execute(&mut *tx)
                    .await
                    .map_err(unavailable)?;
            }
            let ours: bool = sqlx::query_scalar(
                "select exists (select 1 from herald where id = 1 and is_on and holder = ? and until > ?)",
            )
            .bind(herald.0)
            .bind(micros(now))
            .fetch_one(&mut *tx)
            .await
            .map_err(unavailable)?;
            commit(tx).await?;
            Ok(ours)
        })
        .await
    }

    async fn pass_turn(&self, herald: WorkerId) -> Result<(), LedgerError> {
        in_time(async {
            let mut writer = self.write().await;
            sqlx::query("update herald set holder = null, until = null where id = 1 and holder = ?")
                .bind(herald.0)
                .execute(writer.connection())
                .await
                .map_err(unavailable)?;
            Ok(())
        })
        .await
    }

    async fn oldest_unannounced(&self) -> Result<Option<Timestamp>, LedgerError> {
        in_time(async {
            let at: Option<i64> = sqlx::query_scalar("select at from announcement order by id limit 1")
                .fetch_optional(&self.readers)
                .await
                .map_err(unavailable)?;
            Ok(at.map(moment))
        })
        .await
    }
}

/// What was given out before and is not announced yet; where that is nothing, what there is, numbered.
async fn next(tx: &mut SqliteConnection, last: i64, limit: u32) -> Result<Vec<ToAnnounce>, LedgerError> {
    let given: Vec<AnnouncementRow> = sqlx::query_as(
        "select id, number, what, subject_id, fact from announcement where number is not null order by number limit ?",
    )
    .bind(limit)
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    if !given.is_empty() {
        return given.into_iter().map(AnnouncementRow::read_again).collect();
    }
    let new: Vec<AnnouncementRow> =
        sqlx::query_as("select id, number, what, subject_id, fact from announcement order by id limit ?")
            .bind(limit)
            .fetch_all(&mut *tx)
            .await
            .map_err(unavailable)?;
    let mut next = Vec::with_capacity(new.len());
    for (row, number) in new.into_iter().zip(last + 1..) {
        sqlx::query("update announcement set number = ? where id = ?")
            .bind(number)
            .bind(row.id)
            .execute(&mut *tx)
            .await
            .map_err(unavailable)?;
        next.push(row.read(number)?);
    }
    Ok(next)
}

/// Forgets what is older than anything is kept, though nobody could be told: the numbers that it would have had are left
/// out, so that whoever listens sees that something is missing. How many.
pub(super) async fn forget_unannounced(
    tx: &mut SqliteConnection,
    before: Timestamp,
    limit: u32,
) -> Result<u64, LedgerError> {
    let gone: Vec<Option<i64>> = sqlx::query_scalar(
        "delete from announcement where id in
           (select id from (select id, at from announcement order by id limit ?2) where at < ?1)
         returning number",
    )
    .bind(micros(before))
    .bind(limit)
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    let without_number = gone.iter().filter(|number| number.is_none()).count();
    if without_number > 0 {
        sqlx::query("update herald set last = last + ? where id = 1")
            .bind(i64::try_from(without_number).unwrap_or(i64::MAX))
            .execute(tx)
            .await
            .map_err(unavailable)?;
    }
    Ok(gone.len() as u64)
}
