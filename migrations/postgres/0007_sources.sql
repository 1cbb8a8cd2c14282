-- The sources that producers listen to. sqlite/0007_sources.sql has the same table and columns.
create table source (
    name text primary key,
    -- Since when somebody listens to it: what it sent before was not for us.
    since bigint not null,
    -- When it was last heard; null: never.
    heard_at bigint,
    -- When a producer last looked, and for how long by then somebody had listened and heard nothing.
    looked_at bigint not null,
    quiet bigint not null,
    -- When people were told that it is silent; null: it speaks, or nobody was told.
    silent_at bigint
);
