-- Limits, rates, pauses, approvals, schedules and tokens. sqlite/0002_gates.sql has the same tables and columns.

-- What a pending job waits for: 0 the jobs that it needs, 1 room at its limits or the end of a pause, 2 an approval.
alter table job add column waits_for smallint not null default 0;
-- Whether it has limits or an approval: only then do its ways in and out concern others.
alter table job add column gated boolean not null default false;
create index job_parked on job (kind, id) where state = 0 and waits_for = 1;
create index job_due_gated on job (run_at) where state in (1, 4) and gated;

alter table job_args add column replay_of uuid;
alter table run add column replay_of uuid;

-- What jobs must find room at. The room that is taken is what the rows say, there is no counter that could go wrong.
create table job_limit (
    job_id uuid not null,
    key text not null,
    at_once integer,
    -- So many starts in so many microseconds.
    starts integer,
    period bigint,
    newest boolean not null,
    priority smallint not null,
    since bigint not null,
    -- 0 outside, 1 waits for room, 2 inside.
    standing smallint not null default 0,
    -- Its turn in the rate was given to it and not used yet.
    has_turn boolean not null default false,
    primary key (job_id, key)
);
create index job_limit_waiting on job_limit (key, priority, since, job_id) where standing = 1;
create index job_limit_inside on job_limit (key) where standing = 2;

-- When the bucket of a rate is full again.
create table rate (
    key text primary key,
    full_at bigint not null
);

-- What operators have paused: a queue, a kind or a key.
create table pause (
    what text not null,
    name text not null,
    at bigint not null,
    actor text not null,
    reason text not null,
    primary key (what, name)
);

-- Whose consent jobs wait for.
create table approval (
    job_id uuid primary key,
    needed integer not null,
    role smallint not null,
    own boolean not null,
    within bigint not null,
    requested_by text,
    requested_at bigint,
    expires_at bigint,
    granted_at bigint
);
create index approval_waiting on approval (expires_at) where granted_at is null and expires_at is not null;

-- Who consented.
create table consent (
    job_id uuid not null,
    actor text not null,
    at bigint not null,
    reason text not null,
    own boolean not null,
    primary key (job_id, actor)
);

-- Which nominal times of schedules have fired.
create table fired (
    schedule text not null,
    nominal bigint not null,
    fired_at bigint not null,
    primary key (schedule, nominal)
);

-- Which configurations producers have, the newest with the highest number.
create table generation (
    digest text primary key,
    number integer not null,
    seen_at bigint not null
);

-- What was done last is read first.
create index audit_at on audit (at, id);

-- What opens the API: only the SHA-256 of each token.
create table token (
    id uuid primary key,
    name text not null unique,
    hash bytea not null unique,
    role smallint not null,
    created_at bigint not null,
    created_by text not null,
    expires_at bigint,
    revoked_at bigint
);

create or replace view every_job as
    select j.id, j.kind, j.queue, j.priority, j.state, j.run_at, j.attempt, j.failures, j.crashes, j.created_at,
           j.started_at, cast(null as bigint) as finished_at, j.worker, j.run_id, j.reason, cast(null as text) as output,
           a.args, a.event_id, a.traceparent, a.replay_of
    from job j join job_args a on a.id = j.id
    union all
    select h.id, h.kind, h.queue, h.priority, h.state, null, h.attempt, h.failures, h.crashes, h.created_at,
           h.started_at, h.finished_at, h.worker, h.run_id, h.reason, h.output,
           a.args, a.event_id, a.traceparent, a.replay_of
    from history h join job_args a on a.id = h.id;
