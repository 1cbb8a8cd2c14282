-- The ledger. Moments are microseconds since 1970-01-01 UTC; states and priorities are the codes of schemas/src/job.rs.
-- sqlite/0001_ledger.sql has the same tables and columns.

-- What senders said. The columns are CloudEvents attributes; data is JSON.
create table event (
    id uuid primary key,
    source text not null,
    kind text not null,
    delivery_id text not null,
    subject text,
    time bigint not null,
    data text not null,
    standing smallint not null,
    reason text,
    received_at bigint not null,
    route_errors text,
    config_digest text not null,
    traceparent text,
    tracestate text
);

-- The senders' own bytes: personal data, kept and pruned apart from the events. Compressed by us.
create table delivery_body (
    event_id uuid primary key,
    digest bytea not null,
    content_type text not null,
    headers text not null,
    bytes bytea not null
);
alter table delivery_body alter column bytes set storage external;

-- Which deliveries are known, longer than their events are kept.
create table delivery_key (
    source text not null,
    delivery_id text not null,
    event_id uuid not null,
    expires_at bigint not null,
    primary key (source, delivery_id)
);
create index delivery_key_expiry on delivery_key (expires_at);

-- Which bodies are known, of senders whose delivery id is not signed.
create table delivery_digest (
    source text not null,
    digest bytea not null,
    event_id uuid not null,
    seen_at bigint not null,
    expires_at bigint not null,
    primary key (source, digest)
);
create index delivery_digest_expiry on delivery_digest (expires_at);

-- Jobs that have not ended: narrow and hot. Arguments and history stand apart.
create table job (
    id uuid primary key,
    queue text not null,
    kind text not null,
    state smallint not null,
    priority smallint not null,
    run_at bigint not null,
    attempt integer not null default 0,
    failures integer not null default 0,
    crashes integer not null default 0,
    created_at bigint not null,
    started_at bigint,
    lease_until bigint,
    worker uuid,
    run_id uuid,
    reason text,
    cancel text
);
create index job_available on job (queue, priority, run_at, id) where state = 2;
create index job_due on job (run_at) where state in (1, 4);
create index job_leased on job (lease_until) where state = 3;

-- What is written once with a job and read with each claim.
create table job_args (
    id uuid primary key,
    args text not null,
    event_id uuid,
    key_scope text,
    key text,
    traceparent text,
    tracestate text
);
create index job_args_event on job_args (event_id) where event_id is not null;

-- Jobs that have ended.
create table history (
    id uuid primary key,
    queue text not null,
    kind text not null,
    state smallint not null,
    priority smallint not null,
    attempt integer not null,
    failures integer not null,
    crashes integer not null,
    created_at bigint not null,
    started_at bigint,
    finished_at bigint not null,
    worker uuid,
    run_id uuid,
    reason text,
    output text,
    -- Of a skipped job: whether a failed need is why, and not its own condition.
    for_failure boolean not null default false
);

-- Attempts that did not end their job. The last one stands in the history row.
create table attempt (
    job_id uuid not null,
    number integer not null,
    worker uuid,
    started_at bigint not null,
    ended_at bigint not null,
    outcome text not null,
    error text,
    primary key (job_id, number)
);

-- Checkpoints inside attempts.
create table step (
    job_id uuid not null,
    name text not null,
    attempt integer not null,
    started_at bigint not null,
    finished_at bigint,
    result text,
    primary key (job_id, name)
);

-- What may exist only once: held by a job or a run.
create table held_key (
    scope text not null,
    key text not null,
    owner uuid not null,
    expires_at bigint not null,
    primary key (scope, key)
);
create index held_key_expiry on held_key (expires_at);

-- Executions of runbooks.
create table run (
    id uuid primary key,
    runbook text not null,
    state smallint not null,
    inputs text not null,
    created_at bigint not null,
    finished_at bigint,
    event_id uuid,
    actor text,
    reason text,
    key_scope text,
    key text,
    traceparent text,
    tracestate text
);
create index run_event on run (event_id) where event_id is not null;

-- The jobs of a run and what they wait for; needs is a JSON array of names.
create table run_job (
    run_id uuid not null,
    name text not null,
    position integer not null,
    job_id uuid not null,
    needs text not null,
    condition text,
    primary key (run_id, name)
);

-- Who did what by hand, and why.
create table audit (
    id uuid primary key,
    at bigint not null,
    actor text not null,
    verb text not null,
    subject text not null,
    reason text not null
);

-- Every job, for readers, whether it has ended or not.
create view every_job as
    select j.id, j.kind, j.queue, j.priority, j.state, j.run_at, j.attempt, j.failures, j.crashes, j.created_at,
           j.started_at, cast(null as bigint) as finished_at, j.worker, j.run_id, j.reason, cast(null as text) as output,
           a.args, a.event_id, a.traceparent
    from job j join job_args a on a.id = j.id
    union all
    select h.id, h.kind, h.queue, h.priority, h.state, null, h.attempt, h.failures, h.crashes, h.created_at,
           h.started_at, h.finished_at, h.worker, h.run_id, h.reason, h.output,
           a.args, a.event_id, a.traceparent
    from history h join job_args a on a.id = h.id;
