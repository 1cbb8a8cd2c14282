-- Limits, rates, pauses, approvals, schedules and tokens. postgres/0002_gates.sql has the same tables and columns.

-- What a pending job waits for: 0 the jobs that it needs, 1 room at its limits or the end of a pause, 2 an approval.
alter table job add column waits_for integer not null default 0;
-- Whether it has limits or an approval: only then do its ways in and out concern others.
alter table job add column gated integer not null default 0;
create index job_parked on job (kind, id) where state = 0 and waits_for = 1;
create index job_due_gated on job (run_at) where state in (1, 4) and gated;

alter table job_args add column replay_of blob;
alter table run add column replay_of blob;

-- What jobs must find room at. The room that is taken is what the rows say, there is no counter that could go wrong.
create table job_limit (
    job_id blob not null,
    key text not null,
    at_once integer,
    -- So many starts in so many microseconds.
    starts integer,
    period integer,
    newest integer not null,
    priority integer not null,
    since integer not null,
    -- 0 outside, 1 waits for room, 2 inside.
    standing integer not null default 0,
    -- Its turn in the rate was given to it and not used yet.
    has_turn integer not null default 0,
    primary key (job_id, key)
) strict, without rowid;
create index job_limit_waiting on job_limit (key, priority, since, job_id) where standing = 1;
create index job_limit_inside on job_limit (key) where standing = 2;

-- When the bucket of a rate is full again.
create table rate (
    key text primary key,
    full_at integer not null
) strict, without rowid;

-- What operators have paused: a queue, a kind or a key.
create table pause (
    what text not null,
    name text not null,
    at integer not null,
    actor text not null,
    reason text not null,
    primary key (what, name)
) strict, without rowid;

-- Whose consent jobs wait for.
create table approval (
    job_id blob primary key,
    needed integer not null,
    role integer not null,
    own integer not null,
    within integer not null,
    requested_by text,
    requested_at integer,
    expires_at integer,
    granted_at integer
) strict, without rowid;
create index approval_waiting on approval (expires_at) where granted_at is null and expires_at is not null;

-- Who consented.
create table consent (
    job_id blob not null,
    actor text not null,
    at integer not null,
    reason text not null,
    own integer not null,
    primary key (job_id, actor)
) strict, without rowid;

-- Which nominal times of schedules have fired.
create table fired (
    schedule text not null,
    nominal integer not null,
    fired_at integer not null,
    primary key (schedule, nominal)
) strict, without rowid;

-- Which configurations producers have, the newest with the highest number.
create table generation (
    digest text primary key,
    number integer not null,
    seen_at integer not null
) strict, without rowid;

-- What was done last is read first.
create index audit_at on audit (at, id);

-- What opens the API: only the SHA-256 of each token.
create table token (
    id blob primary key,
    name text not null unique,
    hash blob not null unique,
    role integer not null,
    created_at integer not null,
    created_by text not null,
    expires_at integer,
    revoked_at integer
) strict, without rowid;

drop view every_job;
create view every_job as
    select j.id, j.kind, j.queue, j.priority, j.state, j.run_at, j.attempt, j.failures, j.crashes, j.created_at,
           j.started_at, cast(null as integer) as finished_at, j.worker, j.run_id, j.reason, cast(null as text) as output,
           a.args, a.event_id, a.traceparent, a.replay_of
    from job j join job_args a on a.id = j.id
    union all
    select h.id, h.kind, h.queue, h.priority, h.state, null, h.attempt, h.failures, h.crashes, h.created_at,
           h.started_at, h.finished_at, h.worker, h.run_id, h.reason, h.output,
           a.args, a.event_id, a.traceparent, a.replay_of
    from history h join job_args a on a.id = h.id;
