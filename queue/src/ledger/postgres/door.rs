//! Who is let in, and what follows from a change. Whoever lets in, or changes what waits, takes the house's turn first:
//! a lock of the transaction's, so that of two changes at the same time the second one sees what the first one did. Jobs
//! without limits, approvals or runs need no turn.

use std::collections::{BTreeSet, HashMap};

use schemas::{NewJob, Timestamp};
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::LedgerError;
use super::super::door::{
    Aftermath, Door, DoorRow, INSIDE, LOOKED_AT, Place, SUPERSEDED, WAITING, note_pauses, rates_taken,
};
use super::super::rows::{micros, moment, storable};
use super::runs::{Ending, advance_run, end_jobs, lock_runs};
use super::unavailable;
use crate::admission::House;
use crate::config::NoticeOfDiscard;
use schemas::JobState;

/// The turn's name among the locks of this database: "nightprt" in ASCII.
const TURN: i64 = 0x6e69_6768_7470_7274;

/// Takes the turn: it is given back when the transaction ends. Before every other lock, so that no two wait for each other.
pub(super) async fn take_turn(tx: &mut PgConnection) -> Result<(), LedgerError> {
    sqlx::query("select pg_advisory_xact_lock($1)").bind(TURN).execute(tx).await.map_err(unavailable)?;
    Ok(())
}

/// Does what follows from a change, until nothing follows any more.
pub(super) async fn settle(
    tx: &mut PgConnection,
    after: &mut Aftermath,
    notice: Option<&NoticeOfDiscard>,
    now: Timestamp,
) -> Result<(), LedgerError> {
    loop {
        if let Some(run) = after.runs.pop_first() {
            advance_run(tx, run, notice, now, after).await?;
        } else if !after.arrived.is_empty() {
            let arrived: Vec<Uuid> = std::mem::take(&mut after.arrived).into_iter().collect();
            let_in(tx, &arrived, after, now).await?;
        } else if !after.freed.is_empty() {
            let freed: Vec<String> = std::mem::take(&mut after.freed).into_iter().collect();
            after.arrived = waiting_at(tx, &freed, LOOKED_AT).await?;
        } else {
            return Ok(());
        }
    }
}

/// Takes jobs out of the room that they have at their limits: the keys where there is room now.
pub(super) async fn leave(tx: &mut PgConnection, jobs: &[Uuid]) -> Result<BTreeSet<String>, LedgerError> {
    if jobs.is_empty() {
        return Ok(BTreeSet::new());
    }
    let left: Vec<(String, i16)> = sqlx::query_as(
        "update job_limit l set standing = 0, has_turn = false
         from (select job_id, key, standing from job_limit where job_id = any($1)) before
         where l.job_id = any($1) and l.job_id = before.job_id and l.key = before.key
         returning l.key, before.standing",
    )
    .bind(jobs)
    .fetch_all(tx)
    .await
    .map_err(unavailable)?;
    Ok(left.into_iter().filter(|(_, standing)| *standing == INSIDE).map(|(key, _)| key).collect())
}

/// Those who wait at these keys, the first `limit` of each.
pub(super) async fn waiting_at(
    tx: &mut PgConnection,
    keys: &[String],
    limit: u32,
) -> Result<BTreeSet<Uuid>, LedgerError> {
    let waiting: Vec<Uuid> = sqlx::query_scalar(
        "select waiting.job_id from unnest($1::text[]) as k(key)
         cross join lateral (select job_id from job_limit l where l.key = k.key and l.standing = 1
                             order by l.priority, l.since, l.job_id limit $2) waiting",
    )
    .bind(keys)
    .bind(i64::from(limit))
    .fetch_all(tx)
    .await
    .map_err(unavailable)?;
    Ok(waiting.into_iter().collect())
}

/// Stores what new jobs must find room at and whose consent they wait for. `by` is who started them.
pub(super) async fn insert_gates(
    tx: &mut PgConnection,
    jobs: &[&NewJob],
    by: Option<&str>,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let limits = || jobs.iter().enumerate().flat_map(|(at, job)| job.limits.iter().map(move |limit| (at, *job, limit)));
    sqlx::query(
        "insert into job_limit (job_id, key, at_once, starts, period, newest, priority, since)
         select * from unnest($1::uuid[], $2::text[], $3::integer[], $4::integer[], $5::bigint[], $6::boolean[],
                              $7::smallint[], $8::bigint[])
         on conflict do nothing",
    )
    .bind(limits().map(|(_, job, _)| job.id.0).collect::<Vec<_>>())
    .bind(limits().map(|(.., limit)| storable(&limit.key)).collect::<Vec<_>>())
    .bind(limits().map(|(.., limit)| limit.at_once.map(|most| most.get().cast_signed())).collect::<Vec<_>>())
    .bind(limits().map(|(.., limit)| limit.rate.map(|rate| rate.starts.get().cast_signed())).collect::<Vec<_>>())
    .bind(limits().map(|(.., limit)| limit.rate.map(|rate| period(rate.period))).collect::<Vec<_>>())
    .bind(limits().map(|(.., limit)| limit.newest).collect::<Vec<_>>())
    .bind(limits().map(|(_, job, _)| job.priority.code()).collect::<Vec<_>>())
    // Who came first in a batch stands first.
    .bind(limits().map(|(at, ..)| micros(now).saturating_add_unsigned(at as u64)).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await
    .map_err(unavailable)?;
    let asks: Vec<_> = jobs.iter().filter_map(|job| Some((job.id.0, job.approval.as_ref()?))).collect();
    if asks.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into approval (job_id, needed, role, own, within, requested_by)
         select *, $6::text from unnest($1::uuid[], $2::integer[], $3::smallint[], $4::boolean[], $5::bigint[])",
    )
    .bind(asks.iter().map(|(job, _)| *job).collect::<Vec<_>>())
    .bind(asks.iter().map(|(_, ask)| ask.count.get().cast_signed()).collect::<Vec<_>>())
    .bind(asks.iter().map(|(_, ask)| ask.role.code()).collect::<Vec<_>>())
    .bind(asks.iter().map(|(_, ask)| ask.own).collect::<Vec<_>>())
    .bind(asks.iter().map(|(_, ask)| period(ask.within)).collect::<Vec<_>>())
    .bind(by.map(storable))
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}

fn period(time: std::time::Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// Decides about jobs whose needs have ended, and writes where they stand now.
async fn let_in(
    tx: &mut PgConnection,
    jobs: &[Uuid],
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let rows: Vec<DoorRow> = sqlx::query_as(
        "select j.id, j.kind, j.queue, a.traceparent, a.tracestate,
                exists (select 1 from approval p where p.job_id = j.id and p.granted_at is null) as unapproved,
                l.key, l.at_once, l.starts, l.period, l.newest, l.has_turn
         from job j cross join lateral (select traceparent, tracestate from job_args where id = j.id limit 1) a
         left join job_limit l on l.job_id = j.id and l.job_id = any($1)
         where j.id = any($1) and j.state = 0
         order by j.priority, coalesce(l.since, j.run_at), j.id, l.key",
    )
    .bind(jobs)
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
async fn look_around(tx: &mut PgConnection, keys: &[String]) -> Result<House, LedgerError> {
    let mut house = House::default();
    let inside: Vec<(String, i64)> = sqlx::query_as(
        "select l.key, count(*) from job_limit l
         cross join lateral (select state from job where id = l.job_id limit 1) j
         where l.key = any($1) and l.standing = 2 and j.state in (2, 3) group by l.key",
    )
    .bind(keys)
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    house.inside = inside.into_iter().map(|(key, count)| (key, u32::try_from(count).unwrap_or(u32::MAX))).collect();
    let full_at: Vec<(String, i64)> = sqlx::query_as("select key, full_at from rate where key = any($1)")
        .bind(keys)
        .fetch_all(&mut *tx)
        .await
        .map_err(unavailable)?;
    house.full_at = full_at.into_iter().map(|(key, full_at)| (key, moment(full_at))).collect::<HashMap<_, _>>();
    let pauses = sqlx::query_as("select what, name from pause").fetch_all(tx).await.map_err(unavailable)?;
    note_pauses(&mut house, pauses);
    Ok(house)
}

async fn write_places(tx: &mut PgConnection, places: &[Place], now: Timestamp) -> Result<(), LedgerError> {
    sqlx::query(
        "with u as (
           select * from unnest($1::uuid[], $2::smallint[], $3::smallint[], $4::bigint[], $5::text[], $6::smallint[],
                                $7::boolean[])
                as u(id, state, waits_for, run_at, reason, standing, has_turn)),
         limits as (
           update job_limit l set standing = u.standing, has_turn = coalesce(u.has_turn, l.has_turn)
           from u where l.job_id = any($1) and l.job_id = u.id),
         asked as (
           update approval p set requested_at = $8, expires_at = $8 + p.within
           from u where p.job_id = any($1) and p.job_id = u.id and u.waits_for = 2 and p.requested_at is null)
         update job j set state = u.state, waits_for = u.waits_for, run_at = coalesce(u.run_at, j.run_at),
                          reason = u.reason
         from u where j.id = any($1) and j.id = u.id",
    )
    .bind(places.iter().map(|place| place.job).collect::<Vec<_>>())
    .bind(places.iter().map(|place| place.state).collect::<Vec<_>>())
    .bind(places.iter().map(|place| place.waits_for).collect::<Vec<_>>())
    .bind(places.iter().map(|place| place.run_at).collect::<Vec<_>>())
    .bind(places.iter().map(|place| place.reason.as_deref()).collect::<Vec<_>>())
    .bind(places.iter().map(|place| place.standing).collect::<Vec<_>>())
    .bind(places.iter().map(|place| place.has_turn).collect::<Vec<_>>())
    .bind(micros(now))
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}

async fn write_rates(tx: &mut PgConnection, taken: &[(String, i64)]) -> Result<(), LedgerError> {
    if taken.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into rate (key, full_at) select * from unnest($1::text[], $2::bigint[])
         on conflict (key) do update set full_at = excluded.full_at",
    )
    .bind(taken.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>())
    .bind(taken.iter().map(|(_, full_at)| *full_at).collect::<Vec<_>>())
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}

/// Cancels whoever waits at these keys behind a newer one of its kind.
async fn supersede(
    tx: &mut PgConnection,
    keys: &[String],
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    if keys.is_empty() {
        return Ok(());
    }
    let older: Vec<(Uuid, Option<Uuid>)> = sqlx::query_as(
        "select distinct older.id, older.run_id
         from job_limit o cross join lateral (select id, run_id, kind from job where id = o.job_id limit 1) older
         where o.key = any($1) and o.standing = $2 and o.newest and exists (
           select 1 from job_limit n cross join lateral (select kind from job where id = n.job_id limit 1) newer
           where n.key = o.key and n.standing = $2 and newer.kind = older.kind
             and (n.since, n.job_id) > (o.since, o.job_id))
         order by older.id",
    )
    .bind(keys)
    .bind(WAITING)
    .fetch_all(&mut *tx)
    .await
    .map_err(unavailable)?;
    let runs: Vec<Uuid> = older.iter().filter_map(|(_, run)| *run).collect();
    lock_runs(tx, &runs).await?;
    let ending = |(job, _): &(Uuid, _)| Ending::new(schemas::JobId(*job), JobState::Cancelled, Some(SUPERSEDED.into()));
    end_jobs(tx, &older.iter().map(ending).collect::<Vec<_>>(), after, now).await?;
    after.runs.extend(runs);
    Ok(())
}
