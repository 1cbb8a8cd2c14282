-- What is to be announced to other programs. postgres/0005_announcements.sql has the same tables and columns, and the
-- functions of the triggers that are made when announcing is turned on.

-- Written in the transactions in which events are accepted and jobs end, while announcing is on; forgotten once announced.
create table announcement (
    -- In the order in which they were written.
    id integer primary key,
    -- Given when it is first read, and the order in which they are announced.
    number integer,
    -- 0 an event, 1 a job.
    what integer not null,
    subject_id blob not null,
    at integer not null,
    fact text not null
) strict;
create index announcement_number on announcement (number) where number is not null;

-- One row: whether announcing is on, whose turn it is, and the last number that was given.
create table herald (
    id integer primary key check (id = 1),
    is_on integer not null,
    last integer not null default 0,
    holder blob,
    until integer
) strict;
