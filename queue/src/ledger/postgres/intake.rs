//! Deliveries and work coming in.

use std::collections::HashMap;

use async_trait::async_trait;
use schemas::{EventId, JobId, NewJob, NewRun, RunId, Standing, Timestamp};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::rows::{HELD, micros, storable};
use super::super::{DELIVERY_MEMORY, Enqueued, Intake, LedgerError, NewDelivery, Receipt, Repeats};
use super::storing::{JobRows, enqueued, insert_jobs, insert_run};
use super::{Postgres, begin, begin_on, commit, in_time, unavailable, unknown};
use crate::clock::later;

#[async_trait]
impl Intake for Postgres {
    async fn accept(&self, deliveries: &[NewDelivery], now: Timestamp) -> Result<Vec<Receipt>, LedgerError> {
        in_time(async {
            // Without work one statement is all, and commits itself.
            if deliveries.iter().all(|delivery| delivery.jobs.is_empty() && delivery.runs.is_empty()) {
                let mut hot = self.kept().await?;
                let new = insert_deliveries(&mut hot, deliveries, now).await.map_err(unknown)?;
                let receipts = receipts(&mut hot, deliveries, &new, &HashMap::new()).await?;
                hot.keep();
                return Ok(receipts);
            }
            let mut hot = self.kept().await?;
            let mut tx = begin_on(&mut hot).await?;
            let new = insert_deliveries(&mut tx, deliveries, now).await.map_err(unavailable)?;
            let work = insert_work(&mut tx, deliveries, &new, now).await?;
            let receipts = receipts(&mut tx, deliveries, &new, &work).await?;
            commit(tx).await?;
            hot.keep();
            Ok(receipts)
        })
        .await
    }

    async fn enqueue(&self, jobs: &[NewJob], now: Timestamp) -> Result<Vec<Enqueued<JobId>>, LedgerError> {
        in_time(async {
            // Without keys one statement is all, and commits itself.
            if jobs.iter().all(|job| job.key.is_none()) {
                let mut hot = self.kept().await?;
                let stored = JobRows::of(jobs, now).insert(&mut hot, now).await.map_err(unknown)?;
                let enqueued = enqueued(&mut hot, jobs, &stored).await?;
                hot.keep();
                return Ok(enqueued);
            }
            // With keys their owners are asked for: if that fails, nothing must have been written.
            let mut hot = self.kept().await?;
            let mut tx = begin_on(&mut hot).await?;
            let enqueued = insert_jobs(&mut tx, jobs, now).await?;
            commit(tx).await?;
            hot.keep();
            Ok(enqueued)
        })
        .await
    }

    async fn start(&self, run: &NewRun, now: Timestamp) -> Result<Enqueued<RunId>, LedgerError> {
        in_time(async {
            let mut tx = begin(&self.hot).await?;
            let started = insert_run(&mut tx, run, now).await?;
            commit(tx).await?;
            Ok(started)
        })
        .await
    }
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
    now: Timestamp,
) -> Result<HashMap<Uuid, Vec<JobId>>, LedgerError> {
    let accepted = deliveries.iter().filter(|delivery| new.get(&delivery.event.id.0) == Some(&Standing::Accepted));
    let accepted: Vec<&NewDelivery> = accepted.collect();
    let jobs: Vec<NewJob> = accepted.iter().flat_map(|delivery| &delivery.jobs).cloned().collect();
    let mut stored = insert_jobs(tx, &jobs, now).await?.into_iter();
    let mut work = HashMap::with_capacity(accepted.len());
    for delivery in accepted {
        let mut made: Vec<JobId> = stored.by_ref().take(delivery.jobs.len()).map(|job| job.id()).collect();
        for run in &delivery.runs {
            if let Enqueued::New(_) = insert_run(tx, run, now).await? {
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
         join delivery_key k on k.source = u.source and k.delivery_id = u.delivery_id",
    )
    .bind(keys.iter().map(|[source, _]| source.as_str()).collect::<Vec<_>>())
    .bind(keys.iter().map(|[_, delivery]| delivery.as_str()).collect::<Vec<_>>())
    .fetch_all(connection)
    .await
    .map_err(unavailable)?;
    Ok(rows.into_iter().map(|(source, delivery, event)| ([source, delivery], event)).collect())
}
