-- What a schedule has fired, apart from the times that it skipped: work may outlast any number of those.
-- postgres/0010_fired_work.sql has the same.
create index fired_work on fired (schedule, nominal) where outcome = 0;
