-- Which ledger this is. A copy that goes on elsewhere becomes another one: of two, one keeps still.
-- postgres/0009_recover.sql has the same.
create table instance (
    -- There is one.
    one integer primary key check (one = 1),
    id blob not null,
    since integer not null,
    -- Where it was recovered from, and the moment that this showed; null where it never was.
    recovered_from text,
    showed integer
) strict;
