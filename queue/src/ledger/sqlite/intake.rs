//! Deliveries and work coming in.

use std::collections::HashSet;

use async_trait::async_trait;
use schemas::{EventId, JobId, NewJob, NewRun, RunId, Standing, Timestamp};
use serde_json::{Value, json};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::super::door::Aftermath;
use super::super::firing::carry_out;
use super::super::rows::{HELD, micros, moment, standing_of_repeat};
use super::super::{
    Announced, DELIVERY_MEMORY, Enqueued, Fired, Firing, GENERATION_MEMORY, Intake, LedgerError, Listened, NewDelivery,
    Progress, Receipt, Repeats, Silence,
};
use super::door::settle;
use super::firing::meet;
use super::silence::hear;
use super::storing::{hex, insert_jobs, insert_run};
use super::writer::SharedWrite;
use super::{Sqlite, commit, in_time, unavailable};
use crate::bell::Bells;
use crate::clock::{earlier, later};
use crate::config::{NoticeOfDiscard, NoticeOfSilence};

#[async_trait]
impl Intake for Sqlite {
    async fn accept(&self, deliveries: &[NewDelivery], now: Timestamp) -> Result<(Vec<Receipt>, Bells), LedgerError> {
        self.share(&Acceptance { deliveries, notice: self.notice.as_ref(), now }).await
    }

    async fn enqueue(&self, jobs: &[NewJob], now: Timestamp) -> Result<(Vec<Enqueued<JobId>>, Bells), LedgerError> {
        self.share(&Storing { jobs, notice: self.notice.as_ref(), now }).await
    }

    async fn start(&self, run: &NewRun, now: Timestamp) -> Result<(Enqueued<RunId>, Bells), LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            let mut after = Aftermath::default();
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
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            let newest = announce(&mut tx, config_digest, now).await?;
            let progress = if newest { Some(meet(&mut tx, schedules, now).await?) } else { None };
            commit(tx).await?;
            Ok(progress)
        })
        .await
    }

    async fn fire(&self, firing: &Firing, now: Timestamp) -> Result<Fired, LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
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
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            let mut after = Aftermath::default();
            let changed = hear(&mut tx, sources, now).await?;
            let notices: Vec<_> = changed.iter().filter_map(|silence| notice?(silence, now)).collect();
            insert_jobs(&mut tx, &notices, None, &mut after, now).await?;
            settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
            commit(tx).await?;
            Ok((changed, after.bells))
        })
        .await
    }
}

struct Acceptance<'a> {
    deliveries: &'a [NewDelivery],
    notice: Option<&'a NoticeOfDiscard>,
    now: Timestamp,
}

#[async_trait]
impl SharedWrite for Acceptance<'_> {
    type Answer = (Vec<Receipt>, Bells);

    async fn write(&self, tx: &mut SqliteConnection) -> Result<Self::Answer, LedgerError> {
        let mut after = Aftermath::default();
        let new = insert_delivery_keys(tx, self.deliveries, self.now).await?;
        let mut receipts = Vec::with_capacity(self.deliveries.len());
        for delivery in self.deliveries {
            receipts.push(if new.contains(&delivery.event.id.0) {
                book(tx, delivery, &mut after, self.now).await?
            } else {
                receipt_of_known(tx, delivery).await?
            });
        }
        settle(tx, &mut after, self.notice, self.now).await?;
        Ok((receipts, after.bells))
    }
}

struct Storing<'a> {
    jobs: &'a [NewJob],
    notice: Option<&'a NoticeOfDiscard>,
    now: Timestamp,
}

#[async_trait]
impl SharedWrite for Storing<'_> {
    type Answer = (Vec<Enqueued<JobId>>, Bells);

    async fn write(&self, tx: &mut SqliteConnection) -> Result<Self::Answer, LedgerError> {
        let mut after = Aftermath::default();
        let enqueued = insert_jobs(tx, self.jobs, None, &mut after, self.now).await?;
        settle(tx, &mut after, self.notice, self.now).await?;
        Ok((enqueued, after.bells))
    }
}

/// Notes that a configuration is alive: whether no newer one is.
pub(super) async fn announce(
    tx: &mut SqliteConnection,
    config_digest: &str,
    now: Timestamp,
) -> Result<bool, LedgerError> {
    let mine: i64 = sqlx::query_scalar(
        "insert into generation (digest, number, seen_at)
         values (?1, (select coalesce(max(number), 0) + 1 from generation), ?2)
         on conflict (digest) do update set seen_at = max(seen_at, excluded.seen_at)
         returning number",
    )
    .bind(config_digest)
    .bind(micros(now))
    .fetch_one(&mut *tx)
    .await
    .map_err(unavailable)?;
    sqlx::query_scalar("select not exists (select 1 from generation where number > ? and seen_at > ?)")
        .bind(mine)
        .bind(micros(earlier(now, GENERATION_MEMORY)))
        .fetch_one(tx)
        .await
        .map_err(unavailable)
}

/// Takes the delivery ids; the events of those that were not known.
async fn insert_delivery_keys(
    tx: &mut SqliteConnection,
    deliveries: &[NewDelivery],
    now: Timestamp,
) -> Result<HashSet<Uuid>, LedgerError> {
    let rows: Vec<Value> = deliveries
        .iter()
        .map(|delivery| {
            let event = &delivery.event;
            json!({"source": event.source, "delivery": event.delivery_id, "event": hex(event.id.0)})
        })
        .collect();
    let new: Vec<Uuid> = sqlx::query_scalar(
        "insert into delivery_key (source, delivery_id, event_id, expires_at)
         select value ->> 'source', value ->> 'delivery', unhex(value ->> 'event'), ?2 from json_each(?1) where true
         on conflict do nothing returning event_id",
    )
    .bind(Value::from(rows).to_string())
    .bind(micros(later(now, DELIVERY_MEMORY)))
    .fetch_all(tx)
    .await
    .map_err(unavailable)?;
    Ok(new.into_iter().collect())
}

async fn receipt_of_known(tx: &mut SqliteConnection, delivery: &NewDelivery) -> Result<Receipt, LedgerError> {
    let event: Uuid = sqlx::query_scalar("select event_id from delivery_key where source = ? and delivery_id = ?")
        .bind(&delivery.event.source)
        .bind(&delivery.event.delivery_id)
        .fetch_one(tx)
        .await
        .map_err(unavailable)?;
    Ok(Receipt { event: EventId(event), duplicate: true, standing: Standing::Accepted, jobs: Vec::new() })
}

/// Books one delivery that was not known, with its work.
async fn book(
    tx: &mut SqliteConnection,
    delivery: &NewDelivery,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<Receipt, LedgerError> {
    let standing = match delivery.unreadable {
        Some(_) => Standing::Quarantined,
        None => standing_of_repeat(delivery.repeats, first_seen(tx, delivery, now).await?, now),
    };
    insert_event(tx, delivery, standing, now).await?;
    let mut jobs = Vec::new();
    if standing == Standing::Accepted {
        jobs.extend(insert_jobs(tx, &delivery.jobs, None, after, now).await?.iter().map(Enqueued::id));
        for run in &delivery.runs {
            if let Enqueued::New(_) = insert_run(tx, run, after, now).await? {
                jobs.extend(run.jobs.iter().map(|planned| planned.job.id));
            }
        }
    }
    Ok(Receipt { event: delivery.event.id, duplicate: false, standing, jobs })
}

/// When this body was first seen under another delivery id; remembers it where that matters.
async fn first_seen(
    tx: &mut SqliteConnection,
    delivery: &NewDelivery,
    now: Timestamp,
) -> Result<Option<Timestamp>, LedgerError> {
    if delivery.repeats == Repeats::AreNew {
        return Ok(None);
    }
    let (source, digest) = (&delivery.event.source, &delivery.body.digest[..]);
    let inserted = sqlx::query(
        "insert into delivery_digest (source, digest, event_id, seen_at, expires_at) values (?, ?, ?, ?, ?)
         on conflict do nothing",
    )
    .bind(source)
    .bind(digest)
    .bind(delivery.event.id.0)
    .bind(micros(now))
    .bind(micros(later(now, DELIVERY_MEMORY)))
    .execute(&mut *tx)
    .await
    .map_err(unavailable)?;
    if inserted.rows_affected() == 1 {
        return Ok(None);
    }
    let seen: i64 = sqlx::query_scalar("select seen_at from delivery_digest where source = ? and digest = ?")
        .bind(source)
        .bind(digest)
        .fetch_one(tx)
        .await
        .map_err(unavailable)?;
    Ok(Some(moment(seen)))
}

async fn insert_event(
    tx: &mut SqliteConnection,
    delivery: &NewDelivery,
    standing: Standing,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let event = &delivery.event;
    let held = (standing == Standing::Held).then_some(HELD);
    let route_errors = (!delivery.route_errors.is_empty()).then(|| json!(delivery.route_errors).to_string());
    sqlx::query(
        "insert into event (id, source, kind, delivery_id, subject, time, data, standing, reason, received_at,
                            route_errors, config_digest, traceparent, tracestate)
         values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(event.id.0)
    .bind(&event.source)
    .bind(&event.kind)
    .bind(&event.delivery_id)
    .bind(&event.subject)
    .bind(micros(event.time))
    .bind(json!(event.data).to_string())
    .bind(standing.code())
    .bind(delivery.unreadable.as_deref().or(held))
    .bind(micros(now))
    .bind(route_errors)
    .bind(&delivery.config_digest)
    .bind(&delivery.trace.traceparent)
    .bind(&delivery.trace.tracestate)
    .execute(&mut *tx)
    .await
    .map_err(unavailable)?;
    sqlx::query("insert into delivery_body (event_id, digest, content_type, headers, bytes) values (?, ?, ?, ?, ?)")
        .bind(event.id.0)
        .bind(&delivery.body.digest[..])
        .bind(&delivery.body.content_type)
        .bind(&delivery.body.headers)
        .bind(&delivery.body.compressed)
        .execute(tx)
        .await
        .map_err(unavailable)?;
    Ok(())
}
