//! Schedules: how far each has come, and what becomes of a nominal time. The house's turn has been taken.

use schemas::{NewWork, Schedule, Timestamp, WorkId};
use sqlx::PgConnection;

use super::super::door::Aftermath;
use super::super::firing::{
    FIRED, FORGOTTEN, LOOKED_BACK, MISSED, REPLACED, Record, SKIPPED, ScheduleRow, Situation, Unfinished, Verdict,
    WAITS, are_these, canceller, progress, replaces_waiting,
};
use super::super::rows::{micros, storable};
use super::super::{Announced, Due, Enqueued, Fired, Firing, LedgerError, Progress};
use super::cancel::cancel;
use super::storing::{insert_jobs, insert_run};
use super::unavailable;
use crate::bell::Bells;

/// Brings the schedules that there are into line with those that are announced; how far they have come.
pub(super) async fn meet(
    tx: &mut PgConnection,
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

async fn schedules(tx: &mut PgConnection) -> Result<Vec<ScheduleRow>, LedgerError> {
    sqlx::query_as("select name, timetable, settled from schedule order by name")
        .fetch_all(tx)
        .await
        .map_err(unavailable)
}

/// What is new begins now, and not before what is recorded of it.
async fn bring_into_line(tx: &mut PgConnection, announced: &[Announced], now: Timestamp) -> Result<(), LedgerError> {
    let names: Vec<_> = announced.iter().map(|one| storable(&one.schedule)).collect();
    sqlx::query("update fired set outcome = $3, reason = $2 where outcome = 1 and schedule <> all($1)")
        .bind(&names)
        .bind(FORGOTTEN)
        .bind(SKIPPED)
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    sqlx::query("delete from schedule where name <> all($1)")
        .bind(&names)
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    sqlx::query(
        "insert into schedule (name, timetable, settled)
         select name, timetable,
                greatest($3, (select max(nominal) from fired where schedule = u.name))
         from unnest($1::text[], $2::text[]) as u(name, timetable)
         on conflict (name) do update set timetable = excluded.timetable, settled = excluded.settled
         where schedule.timetable <> excluded.timetable",
    )
    .bind(&names)
    .bind(announced.iter().map(|one| storable(&one.timetable)).collect::<Vec<_>>())
    .bind(micros(now))
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}

/// Settles a nominal time, or says that it was. The bells are not yet in the answer: what follows is still to be done.
pub(super) async fn carry_out(
    tx: &mut PgConnection,
    firing: &Firing,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<Fired, LedgerError> {
    let situation = situation(tx, firing).await?;
    let verdict = situation.decide(firing);
    let (fired, record) = match (verdict, &firing.due) {
        (Verdict::Before, _) => return Ok(Fired::Before),
        (Verdict::Skip(reason), _) => (Fired::Skipped(reason.clone()), Record::of(SKIPPED, Some(reason))),
        (Verdict::Wait { cancel: true }, _) => {
            for work in situation.unfinished.iter().filter_map(Unfinished::work) {
                match cancel(tx, work, &canceller(firing), after, now).await {
                    // It has just ended by itself.
                    Ok(()) | Err(LedgerError::Conflict(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            replace_waiting(tx, firing).await?;
            (Fired::Waits(Bells::default()), Record::of(WAITS, None))
        }
        (Verdict::Wait { cancel: false }, _) => (Fired::Waits(Bells::default()), Record::of(WAITS, None)),
        (Verdict::Fire, Due::Work { work, .. }) => {
            if replaces_waiting(&firing.due) {
                replace_waiting(tx, firing).await?;
            }
            let record = store(tx, firing, work, after, now).await?;
            debug_assert_eq!(record.outcome, FIRED);
            (Fired::Now(Bells::default()), record)
        }
        (Verdict::Fire | Verdict::Miss, due) => {
            if let Due::Missed { notice: Some(notice), .. } = due {
                insert_jobs(tx, std::slice::from_ref(&**notice), None, after, now).await?;
            }
            let record = Record::missed(due);
            debug_assert_eq!(record.outcome, MISSED);
            (Fired::Missed(Bells::default()), record)
        }
    };
    write(tx, firing, &record, now).await?;
    Ok(fired)
}

async fn situation(tx: &mut PgConnection, firing: &Firing) -> Result<Situation, LedgerError> {
    let (schedule, nominal) = (storable(&firing.schedule), micros(firing.nominal));
    let (recorded, settled, waiting): (Option<i16>, Option<i64>, i64) = sqlx::query_as(
        "select (select outcome from fired where schedule = $1 and nominal = $2),
                (select settled from schedule where name = $1),
                (select count(*) from fired where outcome = 1 and schedule = $1 and nominal < $2)",
    )
    .bind(&schedule)
    .bind(nominal)
    .fetch_one(&mut *tx)
    .await
    .map_err(unavailable)?;
    let paused: Option<(String, String)> =
        sqlx::query_as("select actor, reason from pause where what = 'schedule' and name = $1")
            .bind(&schedule)
            .fetch_optional(&mut *tx)
            .await
            .map_err(unavailable)?;
    let unfinished: Vec<Unfinished> = sqlx::query_as(
        "select f.nominal, f.job_id, f.run_id
         from (select nominal, job_id, run_id, outcome from fired where schedule = $1 and nominal < $2
               order by nominal desc limit $3) f
         left join lateral (select id from job where id = f.job_id limit 1) j on true
         left join lateral (select id from run where id = f.run_id and state = 0 limit 1) r on true
         where f.outcome = 0 and (j.id is not null or r.id is not null) order by f.nominal desc",
    )
    .bind(&schedule)
    .bind(nominal)
    .bind(LOOKED_BACK)
    .fetch_all(tx)
    .await
    .map_err(unavailable)?;
    Ok(Situation { recorded, settled, paused, unfinished, waiting: usize::try_from(waiting).unwrap_or(usize::MAX) })
}

/// Stores the work of a nominal time.
async fn store(
    tx: &mut PgConnection,
    firing: &Firing,
    work: &NewWork,
    after: &mut Aftermath,
    now: Timestamp,
) -> Result<Record, LedgerError> {
    let by = Schedule::actor(&firing.schedule);
    Ok(match work {
        NewWork::Job(job) => {
            let stored = insert_jobs(tx, std::slice::from_ref(&**job), Some(&by), after, now).await?[0];
            Record::fired(WorkId::Job(stored.id()), matches!(stored, Enqueued::Existing(_)))
        }
        NewWork::Run(run) => {
            let stored = insert_run(tx, run, after, now).await?;
            Record::fired(WorkId::Run(stored.id()), matches!(stored, Enqueued::Existing(_)))
        }
    })
}

async fn replace_waiting(tx: &mut PgConnection, firing: &Firing) -> Result<(), LedgerError> {
    sqlx::query("update fired set outcome = $3, reason = $4 where outcome = 1 and schedule = $1 and nominal < $2")
        .bind(storable(&firing.schedule))
        .bind(micros(firing.nominal))
        .bind(SKIPPED)
        .bind(REPLACED)
        .execute(tx)
        .await
        .map_err(unavailable)?;
    Ok(())
}

/// Writes what became of it, and that the schedule has come so far.
async fn write(tx: &mut PgConnection, firing: &Firing, record: &Record, now: Timestamp) -> Result<(), LedgerError> {
    sqlx::query(
        "with fired as (
           insert into fired (schedule, nominal, fired_at, outcome, reason, job_id, run_id, times)
           values ($1, $2, $3, $4, $5, $6, $7, $8)
           on conflict (schedule, nominal) do update
           set fired_at = excluded.fired_at, outcome = excluded.outcome, reason = excluded.reason,
               job_id = excluded.job_id, run_id = excluded.run_id, times = excluded.times)
         insert into schedule (name, timetable, settled) values ($1, '', $2)
         on conflict (name) do update set settled = greatest(schedule.settled, excluded.settled)",
    )
    .bind(storable(&firing.schedule))
    .bind(micros(firing.nominal))
    .bind(micros(now))
    .bind(record.outcome)
    .bind(record.reason.as_deref().map(storable))
    .bind(record.job)
    .bind(record.run)
    .bind(record.times)
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}
