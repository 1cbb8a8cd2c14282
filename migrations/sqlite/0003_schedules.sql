-- Schedules: how far each has come, and what became of each nominal time. postgres/0003_schedules.sql has the same.

-- Up to which nominal time a schedule is settled. One whose timetable changes begins anew.
create table schedule (
    name text primary key,
    timetable text not null,
    settled integer not null
) strict, without rowid;

-- 0 fired, 1 waits for the end of an earlier one, 2 skipped, 3 missed.
alter table fired add column outcome integer not null default 0;
alter table fired add column reason text;
alter table fired add column job_id blob;
alter table fired add column run_id blob;
-- How many nominal times the row stands for, up to its own.
alter table fired add column times integer not null default 1;
create index fired_job on fired (job_id) where job_id is not null;
create index fired_waiting on fired (schedule, nominal) where outcome = 1;
create index fired_expiry on fired (fired_at);
