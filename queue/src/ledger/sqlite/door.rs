//! Who is let in, and what follows from a change. There is one writer: nobody else lets in meanwhile.

use std::collections::BTreeSet;

use schemas::{JobId, JobState, NewJob, Timestamp};
use serde_json::{Value, json};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::super::LedgerError;
use super::super::door::{
    Aftermath, Door, DoorRow, INSIDE, LOOKED_AT, Place, SUPERSEDED, WAITING, note_pauses, rates_taken,
};
use super::super::rows::{micros, moment};
use super::runs::{Ending, advance_run, end_jobs};
use super::storing::{hex, ids};
use super::unavailable;
use crate::admission::House;
use crate::config::NoticeOfDiscard;

/// Does what follows from a change, until nothing follows any more.
pub(super) async fn settle(
    tx: &mut SqliteConnection,
    after: &mut Aftermath,
    notice: Option<&NoticeOfDiscard>,
    now: Timestamp,
) -> Result<(), LedgerError> {
    loop {
        if let Some(run) = after.runs.pop_first() {
            advance_run(tx, run, notice, now, after).await?;
        } else if !after.arrived.is_empty() {
            let arrived = std::mem::take(&mut after.arrived);
            let_in(tx, arrived, after, now).await?;
        } else if !after.freed.is_empty() {
            let freed: Vec<String> = std::mem::take(&mut after.freed).into_iter().collect();
            after.arrived = waiting_at(tx, &freed, LOOKED_AT).await?;
        } else {
            return Ok(());
        }
    }
}

/// Takes jobs out of the room that they have at their limits: the keys where there is room now.
pub(super) async fn leave(tx: &mut SqliteConnection, jobs: &[Uuid]) -> Result<BTreeSet<String>, LedgerError> {
    if jobs.is_empty() {
        return Ok(BTreeSet::new());
    }
    let jobs = ids(jobs.iter().copied());
    let freed: Vec<String> = sqlx::query_scalar(
        "select distinct key from job_limit
         where job_id in (select unhex(value) from json_each(?1)) and standing = ?2",
    )
    .bind(&jobs)
    .bind(INSIDE)
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    sqlx::query(
        "update job_limit set standing = 0, has_turn = 0 where job_id in (select unhex(value) from json_each(?1))",
    )
    .bind(&jobs)
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(freed.into_iter().collect())
}

/// Those who wait at these keys, the first `limit` of each.
pub(super) async fn waiting_at(
    tx: &mut SqliteConnection,
    keys: &[String],
    limit: u32,
) -> Result<BTreeSet<Uuid>, LedgerError> {
    let mut waiting = BTreeSet::new();
    for key in keys {
        let at_key: Vec<Uuid> = sqlx::query_scalar(
            "select job_id from job_limit where key = ?1 and standing = 1 order by priority, since, job_id limit ?2",
        )
        .bind(key)
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(unavailable)?;
        waiting.extend(at_key);
    }
    Ok(waiting)
}

/// Stores what new jobs must find room at and whose consent they wait for. `by` is who started them.
pub(super) async fn insert_gates(
    tx: &mut SqliteConnection,
    jobs: &[&NewJob],
    by: Option<&str>,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let rows: Vec<Value> = (0_u64..).zip(jobs).flat_map(|(at, job)| limit_rows(job, at, now)).collect();
    sqlx::query(
        "insert into job_limit (job_id, key, at_once, starts, period, newest, priority, since)
         select unhex(value ->> 'job'), value ->> 'key', value ->> 'at_once', value ->> 'starts', value ->> 'period',
                value ->> 'newest', value ->> 'priority', value ->> 'since'
         from json_each(?1) where true
         on conflict do nothing",
    )
    .bind(Value::from(rows).to_string())
    .execute(&mut *tx)
    .await
    .map_err(unavailable)?;
    for job in jobs {
        let Some(ask) = &job.approval else { continue };
        sqlx::query("insert into approval (job_id, needed, role, own, within, requested_by) values (?, ?, ?, ?, ?, ?)")
            .bind(job.id.0)
            .bind(ask.count.get())
            .bind(ask.role.code())
            .bind(ask.own)
            .bind(period(ask.within))
            .bind(by)
            .execute(&mut *tx)
            .await
            .map_err(unavailable)?;
    }
    Ok(())
}

fn limit_rows(job: &NewJob, at: u64, now: Timestamp) -> Vec<Value> {
    let row = |limit: &schemas::Limit| {
        json!({
            "job": hex(job.id.0),
            "key": limit.key,
            "at_once": limit.at_once,
            "starts": limit.rate.map(|rate| rate.starts),
            "period": limit.rate.map(|rate| period(rate.period)),
            "newest": i32::from(limit.newest),
            "priority": job.priority.code(),
            // Who came first in a batch stands first.
            "since": micros(now).saturating_add_unsigned(at),
        })
    };
    job.limits.iter().map(row).collect()
}

fn period(time: std::time::Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// Decides about jobs whose needs have ended, and writes where they stand now.
async fn let_in(
    tx: &mut SqliteConnection,
    jobs: impl IntoIterator<Item = Uuid>,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let rows: Vec<DoorRow> = sqlx::query_as(
        "select j.id, j.kind, j.queue, a.traceparent, a.tracestate,
                exists (select 1 from approval p where p.job_id = j.id and p.granted_at is null) as unapproved,
                l.key, l.at_once, l.starts, l.period, l.newest, l.has_turn
         from job j join job_args a on a.id = j.id left join job_limit l on l.job_id = j.id
         where j.id in (select unhex(value) from json_each(?1)) and j.state = 0
         order by j.priority, coalesce(l.since, j.run_at), j.id, l.key",
    )
    .bind(ids(jobs))
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    let door = Door::of(rows);
    if door.is_empty() {
        return Ok(());
    }
    let mut house = look_around(tx, &door.keys()).await?;
    let full_before = house.full_at.clone();
    let places = door.decide(&mut house, now, &mut after.bells);
    write_places(tx, &places, now).await?;
    write_rates(tx, &rates_taken(&house, &full_before)).await?;
    supersede(tx, &door.keys_of_newest(&places), after, now).await
}

/// What is known of these keys.
async fn look_around(tx: &mut SqliteConnection, keys: &[String]) -> Result<House, LedgerError> {
    let keys = json!(keys).to_string();
    let mut house = House::default();
    let inside: Vec<(String, u32)> = sqlx::query_as(
        "select l.key, count(*) from job_limit l join job j on j.id = l.job_id
         where l.key in (select value from json_each(?1)) and l.standing = 2 and j.state in (2, 3) group by l.key",
    )
    .bind(&keys)
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    house.inside = inside.into_iter().collect();
    let full_at: Vec<(String, i64)> =
        sqlx::query_as("select key, full_at from rate where key in (select value from json_each(?1))")
            .bind(&keys)
            .fetch_all(&mut *tx)
            .await
            .map_err(unavailable)?;
    house.full_at = full_at.into_iter().map(|(key, full_at)| (key, moment(full_at))).collect();
    let pauses = sqlx::query_as("select what, name from pause").fetch_all(tx).await.map_err(unavailable)?;
    note_pauses(&mut house, pauses);
    Ok(house)
}

async fn write_places(tx: &mut SqliteConnection, places: &[Place], now: Timestamp) -> Result<(), LedgerError> {
    let rows: Vec<Value> = places
        .iter()
        .map(|place| {
            json!({
                "id": hex(place.job),
                "state": place.state,
                "waits_for": place.waits_for,
                "run_at": place.run_at,
                "reason": place.reason,
                "standing": place.standing,
                "has_turn": place.has_turn.map(i32::from),
            })
        })
        .collect();
    let rows = Value::from(rows).to_string();
    for statement in [
        "update job set state = value ->> 'state', waits_for = value ->> 'waits_for',
                        run_at = coalesce(value ->> 'run_at', run_at), reason = value ->> 'reason'
         from json_each(?1) where job.id = unhex(value ->> 'id') and ?2 > 0",
        "update job_limit set standing = value ->> 'standing', has_turn = coalesce(value ->> 'has_turn', has_turn)
         from json_each(?1) where job_id = unhex(value ->> 'id') and ?2 > 0",
        "update approval set requested_at = ?2, expires_at = ?2 + within
         from json_each(?1) where job_id = unhex(value ->> 'id') and value ->> 'waits_for' = 2 and requested_at is null",
    ] {
        sqlx::query(statement).bind(&rows).bind(micros(now)).execute(&mut *tx).await.map_err(unavailable)?;
    }
    Ok(())
}

async fn write_rates(tx: &mut SqliteConnection, taken: &[(String, i64)]) -> Result<(), LedgerError> {
    for (key, full_at) in taken {
        sqlx::query(
            "insert into rate (key, full_at) values (?, ?) on conflict (key) do update set full_at = excluded.full_at",
        )
        .bind(key)
        .bind(full_at)
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    }
    Ok(())
}

/// Cancels whoever waits at these keys behind a newer one of its kind.
async fn supersede(
    tx: &mut SqliteConnection,
    keys: &[String],
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    if keys.is_empty() {
        return Ok(());
    }
    let older: Vec<(Uuid, Option<Uuid>)> = sqlx::query_as(
        "select distinct older.id, older.run_id
         from job_limit o join job older on older.id = o.job_id
         where o.key in (select value from json_each(?1)) and o.standing = ?2 and o.newest and exists (
           select 1 from job_limit n join job newer on newer.id = n.job_id
           where n.key = o.key and n.standing = ?2 and newer.kind = older.kind
             and (n.since, n.job_id) > (o.since, o.job_id))
         order by older.id",
    )
    .bind(json!(keys).to_string())
    .bind(WAITING)
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    let ending = |(job, _): &(Uuid, _)| Ending::new(JobId(*job), JobState::Cancelled, Some(SUPERSEDED.into()));
    end_jobs(tx, &older.iter().map(ending).collect::<Vec<_>>(), after, now).await?;
    after.runs.extend(older.iter().filter_map(|(_, run)| *run));
    Ok(())
}
