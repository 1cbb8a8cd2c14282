//! Schedules: how far each has come, and what becomes of a nominal time.

use async_trait::async_trait;
use schemas::Timestamp;
use serde_json::json;
use sqlx::SqliteConnection;

use super::super::firing::{
    FORGOTTEN, Firings, LOOKED_BACK, REPLACED, Record, SKIPPED, ScheduleRow, Situation, are_these, progress,
};
use super::super::rows::micros;
use super::super::{Announced, Firing, LedgerError, Progress};
use super::unavailable;

/// Brings the schedules that there are into line with those that are announced; how far they have come.
pub(super) async fn meet(
    tx: &mut SqliteConnection,
    announced: &[Announced],
    now: Timestamp,
) -> Result<Vec<Progress>, LedgerError> {
    let mut rows = schedules(tx).await?;
    if !are_these(&rows, announced) {
        bring_into_line(tx, announced, now).await?;
        rows = schedules(tx).await?;
    }
    let waiting: Vec<(String, i64)> =
        sqlx::query_as("select schedule, nominal from fired where outcome = 1 order by schedule, nominal")
            .fetch_all(tx)
            .await
            .map_err(unavailable)?;
    Ok(progress(rows, &waiting))
}

async fn schedules(tx: &mut SqliteConnection) -> Result<Vec<ScheduleRow>, LedgerError> {
    sqlx::query_as("select name, timetable, settled from schedule order by name")
        .fetch_all(tx)
        .await
        .map_err(unavailable)
}

/// What is new begins now, and not before what is recorded of it.
async fn bring_into_line(
    tx: &mut SqliteConnection,
    announced: &[Announced],
    now: Timestamp,
) -> Result<(), LedgerError> {
    let names = json!(announced.iter().map(|one| &one.schedule).collect::<Vec<_>>()).to_string();
    sqlx::query(
        "update fired set outcome = ?3, reason = ?2
         where outcome = 1 and schedule not in (select value from json_each(?1))",
    )
    .bind(&names)
    .bind(FORGOTTEN)
    .bind(SKIPPED)
    .execute(&mut *tx)
    .await
    .map_err(unavailable)?;
    sqlx::query("delete from schedule where name not in (select value from json_each(?1))")
        .bind(&names)
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    for one in announced {
        sqlx::query(
            "insert into schedule (name, timetable, settled)
             values (?1, ?2, max(?3, coalesce((select max(nominal) from fired where schedule = ?1), ?3)))
             on conflict (name) do update set timetable = excluded.timetable, settled = excluded.settled
             where timetable <> excluded.timetable",
        )
        .bind(&one.schedule)
        .bind(&one.timetable)
        .bind(micros(now))
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    }
    Ok(())
}

#[async_trait]
impl Firings for SqliteConnection {
    async fn situation(&mut self, firing: &Firing) -> Result<Situation, LedgerError> {
        let (schedule, nominal) = (firing.schedule.as_str(), micros(firing.nominal));
        let (recorded, settled, waiting): (Option<i16>, Option<i64>, i64) = sqlx::query_as(
            "select (select outcome from fired where schedule = ?1 and nominal = ?2),
                    (select settled from schedule where name = ?1),
                    (select count(*) from fired where outcome = 1 and schedule = ?1 and nominal < ?2)",
        )
        .bind(schedule)
        .bind(nominal)
        .fetch_one(&mut *self)
        .await
        .map_err(unavailable)?;
        let paused: Option<(String, String)> =
            sqlx::query_as("select actor, reason from pause where what = 'schedule' and name = ?1")
                .bind(schedule)
                .fetch_optional(&mut *self)
                .await
                .map_err(unavailable)?;
        let unfinished = sqlx::query_as(
            "select nominal, job_id, run_id
             from (select nominal, job_id, run_id from fired where schedule = ?1 and nominal < ?2 and outcome = 0
                   order by nominal desc limit ?3) f
             where exists (select 1 from job where id = f.job_id)
                or exists (select 1 from run where id = f.run_id and state = 0)
             order by nominal desc",
        )
        .bind(schedule)
        .bind(nominal)
        .bind(LOOKED_BACK)
        .fetch_all(&mut *self)
        .await
        .map_err(unavailable)?;
        Ok(Situation { recorded, settled, paused, unfinished, waiting: usize::try_from(waiting).unwrap_or(usize::MAX) })
    }

    async fn replace_waiting(&mut self, firing: &Firing) -> Result<(), LedgerError> {
        sqlx::query("update fired set outcome = ?3, reason = ?4 where outcome = 1 and schedule = ?1 and nominal < ?2")
            .bind(&firing.schedule)
            .bind(micros(firing.nominal))
            .bind(SKIPPED)
            .bind(REPLACED)
            .execute(&mut *self)
            .await
            .map_err(unavailable)?;
        Ok(())
    }

    async fn write_firing(&mut self, firing: &Firing, record: &Record, now: Timestamp) -> Result<(), LedgerError> {
        sqlx::query(
            "insert into fired (schedule, nominal, fired_at, outcome, reason, job_id, run_id, times)
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             on conflict (schedule, nominal) do update
             set fired_at = excluded.fired_at, outcome = excluded.outcome, reason = excluded.reason,
                 job_id = excluded.job_id, run_id = excluded.run_id, times = excluded.times",
        )
        .bind(&firing.schedule)
        .bind(micros(firing.nominal))
        .bind(micros(now))
        .bind(record.outcome)
        .bind(&record.reason)
        .bind(record.job)
        .bind(record.run)
        .bind(record.times)
        .execute(&mut *self)
        .await
        .map_err(unavailable)?;
        sqlx::query(
            "insert into schedule (name, timetable, settled) values (?1, '', ?2)
             on conflict (name) do update set settled = max(settled, excluded.settled)",
        )
        .bind(&firing.schedule)
        .bind(micros(firing.nominal))
        .execute(&mut *self)
        .await
        .map_err(unavailable)?;
        Ok(())
    }
}
