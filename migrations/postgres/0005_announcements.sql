-- What is to be announced to other programs. sqlite/0005_announcements.sql has the same tables and columns; there the
-- triggers are made whole when announcing is turned on.

-- Written in the transactions in which events are accepted and jobs end, while announcing is on; forgotten once announced.
create table announcement (
    -- In the order in which they were written. One with a lower id may be committed later: whoever reads must not skip it.
    id bigint generated always as identity primary key,
    -- Given when it is first read, and the order in which they are announced.
    number bigint,
    -- 0 an event, 1 a job.
    what smallint not null,
    subject_id uuid not null,
    at bigint not null,
    fact text not null
);
create index announcement_number on announcement (number) where number is not null;

-- One row: whether announcing is on, whose turn it is, and the last number that was given.
create table herald (
    id smallint primary key check (id = 1),
    is_on boolean not null,
    last bigint not null default 0,
    holder uuid,
    until bigint
);

-- No trigger calls them until announcing is turned on. They do nothing that could fail: a delivery that cannot be announced
-- is to be booked nevertheless.
create function announce_events() returns trigger language plpgsql as $$
begin
    insert into nightporter.announcement (what, subject_id, at, fact)
    select 0, id, received_at, json_build_object(
               'source', source, 'kind', kind, 'delivery_id', delivery_id, 'subject', subject, 'time', time, 'data', data,
               'traceparent', traceparent, 'tracestate', tracestate)::text
    from added where standing = 0 order by id;
    return null;
end $$;

create function announce_release() returns trigger language plpgsql as $$
begin
    insert into nightporter.announcement (what, subject_id, at, fact)
    values (0, new.id, new.received_at, json_build_object(
               'source', new.source, 'kind', new.kind, 'delivery_id', new.delivery_id, 'subject', new.subject,
               'time', new.time, 'data', new.data, 'traceparent', new.traceparent, 'tracestate', new.tracestate)::text);
    return null;
end $$;

create function announce_ends() returns trigger language plpgsql as $$
begin
    insert into nightporter.announcement (what, subject_id, at, fact)
    select 1, h.id, h.finished_at, json_build_object(
               'kind', h.kind, 'queue', h.queue, 'state', h.state, 'attempt', h.attempt, 'failures', h.failures,
               'reason', h.reason, 'created_at', h.created_at, 'started_at', h.started_at, 'finished_at', h.finished_at,
               'run_id', h.run_id, 'event_id', a.event_id, 'traceparent', a.traceparent, 'tracestate', a.tracestate)::text
    from added h left join lateral (
        select event_id, traceparent, tracestate from nightporter.job_args where id = h.id limit 1) a on true;
    return null;
end $$;
