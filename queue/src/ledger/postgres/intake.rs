//! Deliveries and work coming in.

use std::collections::HashMap;

use async_trait::async_trait;
use schemas::{EventId, JobId, NewJob, NewRun, RunId, Standing, Timestamp};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::door::Aftermath;
use super::super::firing::carry_out;
use super::super::rows::{HELD, micros, storable};
use super::super::{
    Announced, DELIVERY_MEMORY, Enqueued, Fired, Firing, GENERATION_MEMORY, Intake, LedgerError, Listened, NewDelivery,
    Progress, Receipt, Repeats, Silence,
};
use super::door::{settle, take_turn};
use super::firing::meet;
use super::silence::hear;
use super::storing::{JobRows, any_gated, enqueued, insert_jobs, insert_run, jobs_of};
use super::{Postgres, begin, begin_on, commit, in_time, unavailable, unknown};
use crate::bell::Bells;
use crate::clock::{earlier, later};
use crate::config::NoticeOfSilence;

#[async_trait]
impl Intake for Postgres {
    async fn accept(&self, deliveries: &[NewDelivery], now: Timestamp) -> Result<(Vec<Receipt>, Bells), LedgerError> {
        in_time(async {
            // Without work one statement is all, and commits itself.
            if deliveries.iter().all(|delivery| delivery.jobs.is_empty() && delivery.runs.is_empty()) {
                let mut hot = self.kept().await?;
                let new = insert_deliveries(&mut hot, deliveries, now).await.map_err(unknown)?;
                let receipts = receipts(&mut hot, deliveries, &new, &HashMap::new()).await?;
                hot.keep();
                return Ok((receipts, Bells::default()));
            }
            let mut hot = self.kept().await?;
            let mut tx = begin_on(&mut hot).await?;
            let mut after = Aftermath::default();
            let jobs_of_runs = deliveries.iter().flat_map(|delivery| &delivery.runs).flat_map(jobs_of);
            if any_gated(deliveries.iter().flat_map(|delivery| &delivery.jobs).chain(jobs_of_runs)) {
                take_turn(&mut tx).await?;
            }
            let new = insert_deliveries(&mut tx, deliveries, now).await.map_err(unavailable)?;
            let work = insert_work(&mut tx, deliveries, &new, &mut after, now).await?;
            settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
            let receipts = receipts(&mut tx, deliveries, &new, &work).await?;
            commit(tx).await?;
            hot.keep();
            Ok((receipts, after.bells))
        })
        .await
    }

    async fn enqueue(&self, jobs: &[NewJob], now: Timestamp) -> Result<(Vec<Enqueued<JobId>>, Bells), LedgerError> {
        in_time(async {
            let gated = any_gated(jobs);
            let mut hot = self.kept().await?;
            // Without keys and limits one statement is all, and commits itself.
            if !gated && jobs.iter().all(|job| job.key.is_none()) {
                let rows = JobRows::of(jobs, now);
                let stored = rows.insert(&mut hot, now).await.map_err(unknown)?;
                let enqueued = enqueued(&mut hot, jobs, &stored).await?;
                hot.keep();
                return Ok((enqueued, rows.bells(&stored)));
            }
            // With keys their owners are asked for: if that fails, nothing must have been written.
            let mut tx = begin_on(&mut hot).await?;
            let mut after = Aftermath::default();
            if gated {
                take_turn(&mut tx).await?;
            }
            let enqueued = insert_jobs(&mut tx, jobs, None, &mut after, now).await?;
            settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
            commit(tx).await?;
            hot.keep();
            Ok((enqueued, after.bells))
        })
        .await
    }

    async fn start(&self, run: &NewRun, now: Timestamp) -> Result<(Enqueued<RunId>, Bells), LedgerError> {
        in_time(async {
            let mut tx = begin(&self.hot).await?;
            let mut after = Aftermath::default();
            if any_gated(jobs_of(run)) {
                take_turn(&mut tx).await?;
            }
            let started = insert_run(&mut tx, run, &mut after, now).await?;
            settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
            commit(tx).await?;
            Ok((started, after.bells))
        })
        .await
    }

    async fn announce(
        &self,
        config_digest: &str,
        schedules: &[Announced],
        now: Timestamp,
    ) -> Result<Option<Vec<Progress>>, LedgerError> {
        in_time(async {
            let mut hot = self.kept().await?;
            let mut tx = begin_on(&mut hot).await?;
            let newest = announce(&mut tx, config_digest, now).await?;
            let progress = if newest { Some(meet(&mut tx, schedules, now).await?) } else { None };
            commit(tx).await?;
            hot.keep();
            Ok(progress)
        })
        .await
    }

    async fn fire(&self, firing: &Firing, now: Timestamp) -> Result<Fired, LedgerError> {
        in_time(async {
            let mut tx = begin(&self.hot).await?;
            if !announce(&mut tx, &firing.config_digest, now).await? {
                return Ok(Fired::Outdated);
            }
            let mut after = Aftermath::default();
            let mut fired = carry_out(&mut *tx, firing, &mut after, now).await?;
            if fired == Fired::Before {
                return Ok(fired);
            }
            settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
            commit(tx).await?;
            if let Fired::Now(bells) | Fired::Waits(bells) | Fired::Missed(bells) = &mut fired {
                *bells = after.bells;
            }
            Ok(fired)
        })
        .await
    }

    async fn listen(
        &self,
        sources: &[Listened],
        notice: Option<&NoticeOfSilence>,
        now: Timestamp,
    ) -> Result<(Vec<Silence>, Bells), LedgerError> {
        in_time(async {
            let mut hot = self.kept().await?;
            let mut tx = begin_on(&mut hot).await?;
            take_turn(&mut tx).await?;
            let mut after = Aftermath::default();
            let changed = hear(&mut tx, sources, now).await?;
            let notices: Vec<_> = changed.iter().filter_map(|silence| notice?(silence, now)).collect();
            insert_jobs(&mut tx, &notices, None, &mut after, now).await?;
            settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
            commit(tx).await?;
            hot.keep();
            Ok((changed, after.bells))
        })
        .await
    }
}

/// Notes that a configuration is alive: whether no newer one is. In turn, so that no two new ones get one number.
pub(super) async fn announce(tx: &mut PgConnection, config_digest: &str, now: Timestamp) -> Result<bool, LedgerError> {
    take_turn(tx).await?;
    sqlx::query_scalar(
        "with mine as (
           insert into generation (digest, number, seen_at)
           values ($1, (select coalesce(max(number), 0) + 1 from generation), $2)
           on conflict (digest) do update set seen_at = greatest(generation.seen_at, excluded.seen_at)
           returning number)
         select not exists (select 1 from generation g, mine where g.number > mine.number and g.seen_at > $3)",
    )
    .bind(storable(config_digest))
    .bind(micros(now))
    .bind(micros(earlier(now, GENERATION_MEMORY)))
    .fetch_one(tx)
    .await
    .map_err(unavailable)
}

/// Books the deliveries whose ids are not known, with their bodies: what became of each, by its event.
///
/// The body under a known digest is a suspected replay when it was first seen at least `hold_after` ago. A digest that
/// another transaction wrote a moment ago is not visible yet: it counts as seen now.
async fn insert_deliveries(
    connection: &mut PgConnection,
    deliveries: &[NewDelivery],
    now: Timestamp,
) -> Result<HashMap<Uuid, Standing>, sqlx::Error> {
    let events = || deliveries.iter().map(|delivery| &delivery.event);
    let bodies = || deliveries.iter().map(|delivery| &delivery.body);
    let column = |of: fn(&NewDelivery) -> Option<&str>| -> Vec<_> {
        deliveries.iter().map(|delivery| of(delivery).map(storable)).collect()
    };
    let route_errors = deliveries
        .iter()
        .map(|delivery| (!delivery.route_errors.is_empty()).then(|| json!(delivery.route_errors).to_string()));
    let rows: Vec<(Uuid, i16)> = sqlx::query_as(
        "with u as (
           select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[],
                                $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::bigint[],
                                $14::bytea[])
           with ordinality as u(id, source, kind, delivery_id, subject, time, data, unreadable, route_errors,
                                config_digest, traceparent, tracestate, hold_after, digest, position)),
         known as (
           insert into delivery_key (source, delivery_id, event_id, expires_at)
           select distinct on (source, delivery_id) source, delivery_id, id, $20 from u
           order by source, delivery_id, position
           on conflict do nothing returning event_id),
         fresh as (select u.* from u join known on known.event_id = u.id),
         digests as (
           insert into delivery_digest (source, digest, event_id, seen_at, expires_at)
           select distinct on (source, digest) source, digest, id, $19, $20 from fresh
           where hold_after is not null and unreadable is null
           order by source, digest, position
           on conflict do nothing returning event_id),
         judged as (
           select fresh.*,
                  case when unreadable is not null then 2
                       when hold_after is null or id in (select event_id from digests) then 0
                       when $19 - coalesce((select d.seen_at from delivery_digest d
                                            where d.source = fresh.source and d.digest = fresh.digest), $19)
                            >= hold_after then 1
                       else 0 end::smallint as standing
           from fresh),
         events as (
           insert into event (id, source, kind, delivery_id, subject, time, data, standing, reason, received_at,
                              route_errors, config_digest, traceparent, tracestate)
           select id, source, kind, delivery_id, subject, time, data, standing,
                  case standing when 2 then unreadable when 1 then $18 end, $19, route_errors, config_digest,
                  traceparent, tracestate
           from judged),
         bodies as (
           insert into delivery_body (event_id, digest, content_type, headers, bytes)
           select b.id, b.digest, b.content_type, b.headers, b.bytes
           from unnest($1::uuid[], $14::bytea[], $15::text[], $16::text[], $17::bytea[])
                as b(id, digest, content_type, headers, bytes)
           join known on known.event_id = b.id)
         select id, standing from judged",
    )
    .bind(events().map(|event| event.id.0).collect::<Vec<_>>())
    .bind(column(|delivery| Some(&delivery.event.source)))
    .bind(column(|delivery| Some(&delivery.event.kind)))
    .bind(column(|delivery| Some(&delivery.event.delivery_id)))
    .bind(column(|delivery| delivery.event.subject.as_deref()))
    .bind(events().map(|event| micros(event.time)).collect::<Vec<_>>())
    .bind(events().map(|event| json!(event.data).to_string()).collect::<Vec<_>>())
    .bind(column(|delivery| delivery.unreadable.as_deref()))
    .bind(route_errors.collect::<Vec<_>>())
    .bind(column(|delivery| Some(&delivery.config_digest)))
    .bind(column(|delivery| delivery.trace.traceparent.as_deref()))
    .bind(column(|delivery| delivery.trace.tracestate.as_deref()))
    .bind(deliveries.iter().map(|delivery| hold_after(delivery.repeats)).collect::<Vec<_>>())
    .bind(bodies().map(|body| &body.digest[..]).collect::<Vec<_>>())
    .bind(column(|delivery| Some(&delivery.body.content_type)))
    .bind(column(|delivery| Some(&delivery.body.headers)))
    .bind(bodies().map(|body| &body.compressed[..]).collect::<Vec<_>>())
    .bind(HELD)
    .bind(micros(now))
    .bind(micros(later(now, DELIVERY_MEMORY)))
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().filter_map(|(event, code)| Some((event, Standing::from_code(code)?))).collect())
}

/// From which age on, in microseconds, a known body is a suspected replay; none where it never is.
fn hold_after(repeats: Repeats) -> Option<i64> {
    match repeats {
        Repeats::AreNew => None,
        Repeats::AreHeld => Some(0),
        Repeats::AreHeldAfter(time) => Some(i64::try_from(time.as_micros()).unwrap_or(i64::MAX)),
    }
}

/// Stores the work of the deliveries that were accepted: the jobs of each, by its event.
async fn insert_work(
    tx: &mut PgConnection,
    deliveries: &[NewDelivery],
    new: &HashMap<Uuid, Standing>,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<HashMap<Uuid, Vec<JobId>>, LedgerError> {
    let accepted = deliveries.iter().filter(|delivery| new.get(&delivery.event.id.0) == Some(&Standing::Accepted));
    let accepted: Vec<&NewDelivery> = accepted.collect();
    let jobs: Vec<NewJob> = accepted.iter().flat_map(|delivery| &delivery.jobs).cloned().collect();
    let mut stored = insert_jobs(tx, &jobs, None, after, now).await?.into_iter();
    let mut work = HashMap::with_capacity(accepted.len());
    for delivery in accepted {
        let mut made: Vec<JobId> = stored.by_ref().take(delivery.jobs.len()).map(|job| job.id()).collect();
        for run in &delivery.runs {
            if let Enqueued::New(_) = insert_run(tx, run, after, now).await? {
                made.extend(run.jobs.iter().map(|planned| planned.job.id));
            }
        }
        work.insert(delivery.event.id.0, made);
    }
    Ok(work)
}

/// What to answer for each delivery; of a repeat, the first one's event.
async fn receipts(
    connection: &mut PgConnection,
    deliveries: &[NewDelivery],
    new: &HashMap<Uuid, Standing>,
    work: &HashMap<Uuid, Vec<JobId>>,
) -> Result<Vec<Receipt>, LedgerError> {
    let repeats = deliveries.iter().filter(|delivery| !new.contains_key(&delivery.event.id.0));
    let repeats: Vec<[String; 2]> = repeats.map(delivery_key).collect();
    let known = events_of(connection, &repeats).await?;
    let receipt = |delivery: &NewDelivery| match new.get(&delivery.event.id.0) {
        Some(standing) => Ok(Receipt {
            event: delivery.event.id,
            duplicate: false,
            standing: *standing,
            jobs: work.get(&delivery.event.id.0).cloned().unwrap_or_default(),
        }),
        None => known
            .get(&delivery_key(delivery))
            .map(|event| Receipt {
                event: EventId(*event),
                duplicate: true,
                standing: Standing::Accepted,
                jobs: Vec::new(),
            })
            // It was known, and was forgotten between two statements.
            .ok_or_else(|| LedgerError::Unavailable(sqlx::Error::RowNotFound)),
    };
    deliveries.iter().map(receipt).collect()
}

fn delivery_key(delivery: &NewDelivery) -> [String; 2] {
    [storable(&delivery.event.source).into_owned(), storable(&delivery.event.delivery_id).into_owned()]
}

async fn events_of(
    connection: &mut PgConnection,
    keys: &[[String; 2]],
) -> Result<HashMap<[String; 2], Uuid>, LedgerError> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<(String, String, Uuid)> = sqlx::query_as(
        "select k.source, k.delivery_id, k.event_id from unnest($1::text[], $2::text[]) as u(source, delivery_id)
         cross join lateral (
           select * from delivery_key where source = u.source and delivery_id = u.delivery_id limit 1) k",
    )
    .bind(keys.iter().map(|[source, _]| source.as_str()).collect::<Vec<_>>())
    .bind(keys.iter().map(|[_, delivery]| delivery.as_str()).collect::<Vec<_>>())
    .fetch_all(connection)
    .await
    .map_err(unavailable)?;
    Ok(rows.into_iter().map(|(source, delivery, event)| ([source, delivery], event)).collect())
}
