-- Which ledger this is. sqlite/0009_recover.sql has the same; PostgreSQL's is copied by PostgreSQL's own means.
create table instance (
    -- There is one.
    one integer primary key check (one = 1),
    id uuid not null,
    since bigint not null,
    -- Where it was recovered from, and the moment that this showed; null where it never was.
    recovered_from text,
    showed bigint
);
