//! Deliveries and work coming in.

use std::collections::HashSet;

use async_trait::async_trait;
use schemas::{EventId, JobId, JobState, Key, NewJob, NewRun, PlannedJob, RunId, Standing, Timestamp};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, SqliteConnection};
use uuid::Uuid;

use super::super::door::{Aftermath, FOR_ROOM, first_state};
use super::super::rows::{HELD, micros, moment, standing_of_repeat};
use super::super::{
    DELIVERY_MEMORY, Enqueued, Fired, Firing, GENERATION_MEMORY, Intake, LedgerError, NewDelivery, Receipt, Repeats,
};
use super::door::{insert_gates, settle};
use super::{Sqlite, commit, in_time, unavailable};
use crate::bell::Bells;
use crate::clock::{earlier, later};

#[async_trait]
impl Intake for Sqlite {
    async fn accept(&self, deliveries: &[NewDelivery], now: Timestamp) -> Result<(Vec<Receipt>, Bells), LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            let mut after = Aftermath::default();
            let new = insert_delivery_keys(&mut tx, deliveries, now).await?;
            let mut receipts = Vec::with_capacity(deliveries.len());
            for delivery in deliveries {
                receipts.push(if new.contains(&delivery.event.id.0) {
                    book(&mut tx, delivery, &mut after, now).await?
                } else {
                    receipt_of_known(&mut tx, delivery).await?
                });
            }
            settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
            commit(tx).await?;
            Ok((receipts, after.bells))
        })
        .await
    }

    async fn enqueue(&self, jobs: &[NewJob], now: Timestamp) -> Result<(Vec<Enqueued<JobId>>, Bells), LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            let mut after = Aftermath::default();
            let enqueued = insert_jobs(&mut tx, jobs, None, &mut after, now).await?;
            settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
            commit(tx).await?;
            Ok((enqueued, after.bells))
        })
        .await
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

    async fn announce(&self, config_digest: &str, now: Timestamp) -> Result<bool, LedgerError> {
        in_time(async {
            let mut turn = self.write().await;
            let mut tx = turn.begin().await?;
            let newest = announce(&mut tx, config_digest, now).await?;
            commit(tx).await?;
            Ok(newest)
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
            let fired =
                sqlx::query("insert into fired (schedule, nominal, fired_at) values (?, ?, ?) on conflict do nothing")
                    .bind(&firing.schedule)
                    .bind(micros(firing.nominal))
                    .bind(micros(now))
                    .execute(&mut *tx)
                    .await
                    .map_err(unavailable)?;
            if fired.rows_affected() == 0 {
                return Ok(Fired::Before);
            }
            let mut after = Aftermath::default();
            insert_jobs(&mut tx, &firing.jobs, None, &mut after, now).await?;
            for run in &firing.runs {
                insert_run(&mut tx, run, &mut after, now).await?;
            }
            settle(&mut tx, &mut after, self.notice.as_ref(), now).await?;
            commit(tx).await?;
            Ok(Fired::Now(after.bells))
        })
        .await
    }
}

/// Notes that a configuration is alive: whether no newer one is.
async fn announce(tx: &mut SqliteConnection, config_digest: &str, now: Timestamp) -> Result<bool, LedgerError> {
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

/// Stores the jobs whose keys are free; `by` is who started them.
pub(super) async fn insert_jobs(
    tx: &mut SqliteConnection,
    jobs: &[NewJob],
    by: Option<&str>,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<Vec<Enqueued<JobId>>, LedgerError> {
    let mut enqueued = Vec::with_capacity(jobs.len());
    let mut new = Vec::with_capacity(jobs.len());
    for job in jobs {
        let owner = match &job.key {
            Some(key) => take_key(tx, key, job.id.0, now).await?,
            None => job.id.0,
        };
        enqueued.push(if owner == job.id.0 { Enqueued::New(job.id) } else { Enqueued::Existing(JobId(owner)) });
        if owner == job.id.0 {
            new.push((job, first_state(job, true, now)));
        }
    }
    insert_new(tx, &new, None, by, after, now).await?;
    Ok(enqueued)
}

/// Stores new jobs with the state that each begins in. What is available is rung for, whoever must wait has come to the
/// door.
async fn insert_new(
    tx: &mut SqliteConnection,
    new: &[(&NewJob, (JobState, i16))],
    run: Option<RunId>,
    by: Option<&str>,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<(), LedgerError> {
    for some in new.chunks(MOST_ROWS) {
        insert_job_rows(tx, some, run, now).await?;
        insert_args_rows(tx, some).await?;
    }
    for (job, (state, waits_for)) in new {
        match state {
            JobState::Available => after.bells.add_new(job),
            JobState::Scheduled => after.bells.put_off(),
            _ if *waits_for == FOR_ROOM => after.arrived.extend([job.id.0]),
            _ => {}
        }
    }
    let gated: Vec<&NewJob> = new.iter().map(|(job, _)| *job).filter(|job| job.is_gated()).collect();
    if gated.is_empty() { Ok(()) } else { insert_gates(tx, &gated, by, now).await }
}

/// Stores a run whose key is free, with all its jobs.
pub(super) async fn insert_run(
    tx: &mut SqliteConnection,
    run: &NewRun,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<Enqueued<RunId>, LedgerError> {
    if let Some(key) = &run.key {
        let owner = take_key(tx, key, run.id.0, now).await?;
        if owner != run.id.0 {
            return Ok(Enqueued::Existing(RunId(owner)));
        }
    }
    sqlx::query(
        "insert into run (id, runbook, state, inputs, created_at, event_id, actor, reason, key_scope, key,
                          traceparent, tracestate, replay_of)
         values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(run.id.0)
    .bind(&run.runbook)
    .bind(schemas::RunState::Running.code())
    .bind(run.inputs.to_string())
    .bind(micros(now))
    .bind(run.event.map(|event| event.0))
    .bind(&run.actor)
    .bind(&run.reason)
    .bind(run.key.as_ref().map(|key| &key.scope))
    .bind(run.key.as_ref().map(|key| &key.key))
    .bind(&run.trace.traceparent)
    .bind(&run.trace.tracestate)
    .bind(run.replay_of.map(|run| run.0))
    .execute(&mut *tx)
    .await
    .map_err(unavailable)?;
    insert_run_jobs(tx, run).await?;
    let first = |planned: &PlannedJob| first_state(&planned.job, planned.needs.is_empty(), now);
    let new: Vec<_> = run.jobs.iter().map(|planned| (&planned.job, first(planned))).collect();
    insert_new(tx, &new, Some(run.id), run.actor.as_deref(), after, now).await?;
    Ok(Enqueued::New(run.id))
}

async fn insert_run_jobs(tx: &mut SqliteConnection, run: &NewRun) -> Result<(), LedgerError> {
    for (position, planned) in (0_i64..).zip(&run.jobs) {
        sqlx::query("insert into run_job (run_id, name, position, job_id, needs, condition) values (?, ?, ?, ?, ?, ?)")
            .bind(run.id.0)
            .bind(&planned.name)
            .bind(position)
            .bind(planned.job.id.0)
            .bind(json!(planned.needs).to_string())
            .bind(&planned.condition)
            .execute(&mut *tx)
            .await
            .map_err(unavailable)?;
    }
    Ok(())
}

/// One statement for any number of rows: through this driver each statement costs a change of threads.
async fn insert_job_rows(
    tx: &mut SqliteConnection,
    new: &[(&NewJob, (JobState, i16))],
    run: Option<RunId>,
    now: Timestamp,
) -> Result<(), LedgerError> {
    const COLUMNS: usize = 9;
    let statement = format!(
        "insert into job (id, queue, kind, state, waits_for, gated, priority, run_at, created_at, run_id)
         select column1, column2, column3, iif(paused, 0, column4), iif(paused, 1, column5), column6, column7, column8,
                ?, column9
         from (select *, column4 = 2 and column3 in (select name from pause where what = 'kind') as paused from {})",
        values(COLUMNS, new.len())
    );
    let mut insert = sqlx::query(AssertSqlSafe(statement)).bind(micros(now));
    for (job, (state, waits_for)) in new {
        insert = insert
            .bind(job.id.0)
            .bind(job.queue.as_str())
            .bind(job.kind.as_str())
            .bind(state.code())
            .bind(*waits_for)
            .bind(job.is_gated())
            .bind(job.priority.code())
            .bind(micros(job.run_at.map_or(now, |at| at.max(now))))
            .bind(run.map(|run| run.0));
    }
    execute_padded(tx, insert, COLUMNS, new.len()).await
}

async fn insert_args_rows(tx: &mut SqliteConnection, new: &[(&NewJob, (JobState, i16))]) -> Result<(), LedgerError> {
    const COLUMNS: usize = 8;
    let statement = format!(
        "insert into job_args (id, args, event_id, key_scope, key, traceparent, tracestate, replay_of) select * from {}",
        values(COLUMNS, new.len())
    );
    let mut insert = sqlx::query(AssertSqlSafe(statement));
    for (job, _) in new {
        insert = insert
            .bind(job.id.0)
            .bind(job.args.get())
            .bind(job.event.map(|event| event.0))
            .bind(job.key.as_ref().map(|key| key.scope.as_str()))
            .bind(job.key.as_ref().map(|key| key.key.as_str()))
            .bind(job.trace.traceparent.as_deref())
            .bind(job.trace.tracestate.as_deref())
            .bind(job.replay_of.map(|job| job.0));
    }
    execute_padded(tx, insert, COLUMNS, new.len()).await
}

/// No statement takes more rows.
const MOST_ROWS: usize = 256;

/// Rows of values, in number rounded up, so that there are few statements to keep prepared; what was added has no id and is
/// left out. They are not JSON, which `SQLite` reads and writes again for each column of each row.
fn values(columns: usize, rows: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(","));
    format!("(values {}) where column1 is not null", vec![row; rows.next_power_of_two()].join(","))
}

async fn execute_padded(
    tx: &mut SqliteConnection,
    mut insert: sqlx::query::Query<'_, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>,
    columns: usize,
    rows: usize,
) -> Result<(), LedgerError> {
    for _ in 0..columns * (rows.next_power_of_two() - rows) {
        insert = insert.bind(None::<i64>);
    }
    insert.execute(tx).await.map_err(unavailable)?;
    Ok(())
}

/// Takes a key that is free or has expired; its owner, whoever that is.
pub(super) async fn take_key(
    tx: &mut SqliteConnection,
    key: &Key,
    owner: Uuid,
    now: Timestamp,
) -> Result<Uuid, LedgerError> {
    let taken: Option<Uuid> = sqlx::query_scalar(
        "insert into held_key (scope, key, owner, expires_at) values (?1, ?2, ?3, ?4)
         on conflict (scope, key) do update set owner = excluded.owner, expires_at = excluded.expires_at
         where expires_at <= ?5
         returning owner",
    )
    .bind(&key.scope)
    .bind(&key.key)
    .bind(owner)
    .bind(micros(later(now, key.hold)))
    .bind(micros(now))
    .fetch_optional(&mut *tx)
    .await
    .map_err(unavailable)?;
    match taken {
        Some(owner) => Ok(owner),
        None => sqlx::query_scalar("select owner from held_key where scope = ? and key = ?")
            .bind(&key.scope)
            .bind(&key.key)
            .fetch_one(tx)
            .await
            .map_err(unavailable),
    }
}

/// An id as `unhex` reads it.
pub(super) fn hex(id: Uuid) -> String {
    id.simple().to_string()
}

/// Ids as a JSON array for `json_each`.
pub(super) fn ids(ids: impl IntoIterator<Item = Uuid>) -> String {
    Value::from(ids.into_iter().map(hex).collect::<Vec<_>>()).to_string()
}
