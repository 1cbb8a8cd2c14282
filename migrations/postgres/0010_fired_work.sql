-- What a schedule has fired, apart from the times that it skipped: work may outlast any number of those.
create index fired_work on fired (schedule, nominal) where outcome = 0;
