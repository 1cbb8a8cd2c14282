//! A copy of a ledger goes on, on another machine.
//!
//! What the lost machine did after the copy is nowhere. So whatever it may have done (it ran, it could be claimed, its time
//! has come) asks a person first; the numbers of attempts jump, so that nothing which still bears an old one is taken for a
//! new one; and a schedule's times since are recorded as missed.

use std::path::Path;

use schemas::{AttemptId, EventId, JobId, JobState, Role, RunId, Timestamp};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};
use uuid::Uuid;

use super::super::door::{Aftermath, FOR_APPROVAL};
use super::super::firing::carry_out;
use super::super::rows::{micros, moment, state};
use super::super::storing::Stores;
use super::super::{Due, Fired, Firing, LastEvent, LedgerError, OpenJob, Operator, Recovered, Recovery};
use super::door::settle;
use super::firing::meet;
use super::runs::{Ending, end_jobs};
use super::storing::ids;
use super::work::record_attempt;
use super::{cannot_open, migrate, time, unavailable};
use crate::OpenError;
use crate::config::MissedTimes;

/// How an interrupted attempt ended, in words.
const INTERRUPTED: &str = "its machine was lost";

/// Why an open job asks.
const HELD: &str =
    "the lost machine may have done it after the copy: approve it to have it done, refuse it to cancel it";

/// How long an open job waits for a person's word, in days.
const PATIENCE: i64 = 30;

pub(in super::super) async fn recover(file: &Path, recovery: &Recovery<'_>) -> Result<Recovered, OpenError> {
    let failed = |error: LedgerError| cannot_open("the copy cannot go on", error);
    // With a journal of its own: when it is closed, all that it is is in the one file.
    let options = SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Delete)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging();
    let mut connection = options.connect().await.map_err(|error| cannot_open("the copy cannot be read", error))?;
    check(&mut connection).await?;
    migrate(&mut connection).await?;
    let recovered = go_on(&mut connection, recovery, time()).await.map_err(failed)?;
    connection.close().await.map_err(|error| cannot_open("the copy cannot be closed", error))?;
    Ok(recovered)
}

/// That `SQLite` finds nothing wrong with it.
async fn check(connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let said = sqlx::query_scalar::<_, String>("pragma integrity_check(5)").fetch_all(connection).await;
    let said = said.map_err(|error| cannot_open("the copy cannot be read", error))?;
    if said != ["ok"] {
        return Err(OpenError::Damaged(said.join("; ")));
    }
    Ok(())
}

async fn go_on(
    connection: &mut SqliteConnection,
    recovery: &Recovery<'_>,
    now: Timestamp,
) -> Result<Recovered, LedgerError> {
    let mut tx = connection.begin_with("begin immediate").await.map_err(unavailable)?;
    let mut after = Aftermath::default();
    let instance = become_another(&mut tx, recovery, now).await?;
    let interrupted = interrupt(&mut tx, &mut after, now).await?;
    let open = open_jobs(&mut tx, now).await?;
    renumber(&mut tx).await?;
    if recovery.go_on {
        let_go_on(&mut tx, now).await?;
    } else {
        hold(&mut tx, &open, now).await?;
    }
    settle(&mut tx, &mut after, None, now).await?;
    let missed = miss(&mut tx, recovery, now).await?;
    let sources = last_events(&mut tx).await?;
    let by = Operator { reason: format!("{} (from {})", recovery.by.reason, recovery.from), ..recovery.by.clone() };
    tx.write_audit(&by, "recover", &"the ledger", now).await?;
    tx.commit().await.map_err(unavailable)?;
    Ok(Recovered { instance, at: now, interrupted, open, sources, missed })
}

async fn become_another(
    tx: &mut SqliteConnection,
    recovery: &Recovery<'_>,
    now: Timestamp,
) -> Result<Uuid, LedgerError> {
    let instance = Uuid::new_v4();
    sqlx::query(
        "insert into instance (one, id, since, recovered_from, showed) values (1, ?1, ?2, ?3, ?4)
         on conflict (one) do update set id = excluded.id, since = excluded.since,
                                         recovered_from = excluded.recovered_from, showed = excluded.showed",
    )
    .bind(instance)
    .bind(micros(now))
    .bind(&recovery.from)
    .bind(micros(recovery.shows))
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(instance)
}

/// Writes down that what ran does not run any more. What somebody wanted cancelled while it ran is cancelled.
async fn interrupt(
    tx: &mut SqliteConnection,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<Vec<AttemptId>, LedgerError> {
    let running: Vec<(Uuid, i32, Option<String>, Option<Uuid>)> =
        sqlx::query_as("select id, attempt, cancel, run_id from job where state = 3 order by id")
            .fetch_all(&mut *tx)
            .await
            .map_err(unavailable)?;
    let mut interrupted = Vec::new();
    for (job, number, cancel, run) in running {
        let attempt = AttemptId { job: JobId(job), number };
        interrupted.push(attempt);
        match cancel {
            None => record_attempt(tx, attempt, "interrupted", Some(INTERRUPTED), now).await?,
            Some(reason) => {
                let ending = Ending::new(attempt.job, JobState::Cancelled, Some(reason));
                end_jobs(tx, &[ending], after, now).await?;
                after.runs.extend(run);
            }
        }
    }
    Ok(interrupted)
}

/// What the lost machine may have done after the copy: what ran, what could be claimed, and what it could have let in.
async fn open_jobs(tx: &mut SqliteConnection, now: Timestamp) -> Result<Vec<OpenJob>, LedgerError> {
    let rows: Vec<OpenRow> = sqlx::query_as(
        "select j.id, j.kind, j.queue, j.state, a.event_id, j.run_id
         from job j join job_args a on a.id = j.id
         where j.state in (2, 3) or (j.state in (1, 4) and j.run_at <= ?1) or (j.state = 0 and j.waits_for = 1)
         order by j.id",
    )
    .bind(micros(now))
    .fetch_all(tx)
    .await
    .map_err(unavailable)?;
    let open = |OpenRow { id, kind, queue, state: code, event_id, run_id }| {
        let (event, run) = (event_id.map(EventId), run_id.map(RunId));
        Ok(OpenJob { job: JobId(id), kind, queue, was: state(code)?, event, run })
    };
    rows.into_iter().map(open).collect()
}

#[derive(sqlx::FromRow)]
struct OpenRow {
    id: Uuid,
    kind: String,
    queue: String,
    state: i16,
    event_id: Option<Uuid>,
    run_id: Option<Uuid>,
}

/// The next attempt of each job has a number that no attempt on the lost machine had.
async fn renumber(tx: &mut SqliteConnection) -> Result<(), LedgerError> {
    sqlx::query("update job set attempt = (attempt / 100 + 1) * 100").execute(tx).await.map_err(unavailable)?;
    Ok(())
}

/// As the start of a process has it that finds orphans, but at no charge: nothing says that they crashed anything.
async fn let_go_on(tx: &mut SqliteConnection, now: Timestamp) -> Result<(), LedgerError> {
    sqlx::query("update job set state = 2, run_at = ?1, lease_until = null, worker = null where state = 3")
        .bind(micros(now))
        .execute(tx)
        .await
        .map_err(unavailable)?;
    Ok(())
}

/// Has these ask for a person's word. Whose it must be stays as it was, where they asked for one before.
async fn hold(tx: &mut SqliteConnection, open: &[OpenJob], now: Timestamp) -> Result<(), LedgerError> {
    let jobs = ids(open.iter().map(|open| open.job.0));
    sqlx::query(
        "update job set state = 0, waits_for = ?2, gated = 1, run_at = ?3, lease_until = null, worker = null, reason = ?4
         where id in (select unhex(value) from json_each(?1))",
    )
    .bind(&jobs)
    .bind(FOR_APPROVAL)
    .bind(micros(now))
    .bind(HELD)
    .execute(&mut *tx)
    .await
    .map_err(unavailable)?;
    for statement in [
        "update job_limit set standing = 0, has_turn = 0 where job_id in (select unhex(value) from json_each(?1))",
        "delete from consent where job_id in (select unhex(value) from json_each(?1))",
    ] {
        sqlx::query(statement).bind(&jobs).execute(&mut *tx).await.map_err(unavailable)?;
    }
    let patience = chrono::TimeDelta::days(PATIENCE).num_microseconds().unwrap_or(i64::MAX);
    sqlx::query(
        "insert into approval (job_id, needed, role, own, within, requested_at, expires_at)
         select unhex(value), 1, ?2, 1, ?3, ?4, ?4 + ?3 from json_each(?1) where true
         on conflict (job_id) do update set requested_at = excluded.requested_at, expires_at = excluded.expires_at,
                                            granted_at = null",
    )
    .bind(&jobs)
    .bind(Role::Operator.code())
    .bind(patience)
    .bind(micros(now))
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}

/// Records what came of the schedules since the copy: the lost machine may have fired it.
async fn miss(
    tx: &mut SqliteConnection,
    recovery: &Recovery<'_>,
    now: Timestamp,
) -> Result<Vec<MissedTimes>, LedgerError> {
    let mut all = Vec::new();
    let mut after = Aftermath::default();
    for progress in meet(tx, &recovery.schedules, now).await? {
        let Some(times) = (recovery.missed)(&progress, now) else { continue };
        let due = Due::Missed { first: times.first, times: times.times, reason: times.reason.clone(), notice: None };
        let firing = Firing {
            schedule: times.schedule.clone(),
            nominal: times.last,
            config_digest: recovery.config_digest.clone(),
            due,
        };
        // One that is paused is skipped, as it would have been.
        if let Fired::Missed(_) = carry_out(&mut *tx, &firing, &mut after, now).await? {
            all.push(times);
        }
    }
    Ok(all)
}

async fn last_events(tx: &mut SqliteConnection) -> Result<Vec<LastEvent>, LedgerError> {
    let rows: Vec<(String, i64, String)> =
        // SQLite gives the other columns of the row that has the greatest.
        sqlx::query_as("select source, max(received_at), delivery_id from event group by source order by source")
            .fetch_all(tx)
            .await
            .map_err(unavailable)?;
    let event = |(source, at, delivery_id)| LastEvent { source, received_at: moment(at), delivery_id };
    Ok(rows.into_iter().map(event).collect())
}
