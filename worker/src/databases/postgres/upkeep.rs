//! Upkeep of `PostgreSQL`: VACUUM, ANALYZE and REINDEX CONCURRENTLY where the statistics ask for them.
//!
//! All of it runs beside reads and writes (SHARE UPDATE EXCLUSIVE). What a killed REINDEX CONCURRENTLY leaves is an
//! invalid index named `..._ccnew` (unfinished) or `..._ccold` (the new one is in place): either is dropped. That nobody
//! else is building it is what its drop proves: it needs a lock that a builder holds to its end.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor};
use tracing::{Instrument, debug};

use super::{Postgres, hang_up, within};
use crate::databases::upkeep::{Chore, Ended, Task, Upkeep};
use crate::handler::Failure;
use crate::outside;

/// A table's lock is waited for so long: whoever holds it changes the table, or vacuums it.
const TABLE_LOCK: &str = "2s";

/// Building an index without stopping anybody waits for transactions that are open; nobody waits for it meanwhile.
const INDEX_LOCK: &str = "1min";

/// For the answer to come when the server has stopped a statement.
const GRACE: Duration = Duration::from_secs(30);

/// Invalid indexes that only an interrupted REINDEX CONCURRENTLY makes.
const LEFTOVERS: &str = r"
SELECT format('%I.%I', n.nspname, c.relname), 'an interrupted REINDEX left it',
       format('DROP INDEX CONCURRENTLY IF EXISTS %I.%I', n.nspname, c.relname)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT i.indisvalid AND c.relkind = 'i' AND c.relname ~ '_cc(new|old)[0-9]*$' AND pg_has_role(c.relowner, 'USAGE')
ORDER BY 1";

/// Tables with many dead rows, and those that autovacuum will soon have to freeze at an hour of its own choice.
const VACUUM: &str = r"
SELECT name, CASE WHEN dead THEN format('%s dead rows beside %s', n_dead_tup, n_live_tup)
                  ELSE format('its oldest row is %s transactions old', age) END,
       format('VACUUM (ANALYZE) %s', name)
FROM (SELECT format('%I.%I', s.schemaname, s.relname) AS name, s.n_dead_tup, s.n_live_tup, age(c.relfrozenxid) AS age,
             s.n_dead_tup >= 1000 AND s.n_dead_tup * 10 >= s.n_live_tup AS dead
      FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
      WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND pg_has_role(c.relowner, 'USAGE')) AS of
WHERE dead OR age > current_setting('autovacuum_freeze_max_age')::int / 2
ORDER BY n_dead_tup DESC, name";

/// Tables of which the planner knows nothing, or too little since they changed.
const ANALYZE: &str = r"
SELECT format('%I.%I', s.schemaname, s.relname),
       CASE WHEN never THEN 'it has no statistics' ELSE format('%s rows have changed of %s', s.changed, s.live) END,
       format('ANALYZE %I.%I', s.schemaname, s.relname)
FROM (SELECT s.schemaname, s.relname, s.n_mod_since_analyze AS changed, s.n_live_tup AS live,
             coalesce(s.last_analyze, s.last_autoanalyze) IS NULL AND s.n_live_tup > 0 AS never
      FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
      WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND pg_has_role(c.relowner, 'USAGE')) AS s
WHERE never OR (changed >= 1000 AND changed * 10 >= live)
ORDER BY changed DESC, 1";

/// Indexes that are invalid, and B-trees of a megabyte and more that are over twice as large as their entries need: an
/// item of 4 bytes, a header of 8 and the columns' average widths, in pages that are nine tenths full. What the server
/// saves by deduplication is not counted, so that few are built anew in vain.
const REINDEX: &str = r"
WITH indexes AS (
    SELECT i.indexrelid, i.indrelid, i.indisvalid, i.indnatts, c.relname, n.nspname, c.reltuples, a.amname,
           pg_relation_size(i.indexrelid) AS bytes, t.relname AS table_name, c.relpages
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class t ON t.oid = i.indrelid JOIN pg_am a ON a.oid = c.relam
    WHERE c.relkind = 'i' AND c.relpersistence = 'p' AND NOT i.indisexclusion AND pg_has_role(t.relowner, 'USAGE')
      AND n.nspname NOT IN ('pg_catalog', 'pg_toast', 'information_schema') AND c.relname !~ '_cc(new|old)[0-9]*$'
), widths AS (
    SELECT x.indexrelid, count(s.avg_width) AS known, sum(s.avg_width) AS width
    FROM indexes x JOIN pg_attribute a ON a.attrelid = x.indexrelid
    JOIN pg_index i ON i.indexrelid = x.indexrelid
    LEFT JOIN pg_attribute o ON o.attrelid = x.indrelid AND o.attnum = i.indkey[a.attnum - 1] AND o.attnum > 0
    LEFT JOIN pg_stats s ON s.schemaname = x.nspname AND NOT s.inherited
        AND s.tablename = CASE WHEN o.attname IS NULL THEN x.relname ELSE x.table_name END
        AND s.attname = coalesce(o.attname, a.attname)
    GROUP BY x.indexrelid
), sizes AS (
    SELECT x.*, ceil(greatest(x.reltuples, 0) * (4 + 8 * ceil((8 + w.width) / 8.0)) / (8152 * 0.9)) * 8192 + 16384 AS needed
    FROM indexes x JOIN widths w USING (indexrelid) WHERE w.known = x.indnatts OR NOT x.indisvalid
)
SELECT format('%I.%I', nspname, relname),
       CASE WHEN NOT indisvalid THEN 'it is invalid'
            ELSE format('it has %s, and its entries need %s', pg_size_pretty(bytes), pg_size_pretty(needed::bigint)) END,
       format('REINDEX INDEX CONCURRENTLY %I.%I', nspname, relname)
FROM sizes
WHERE NOT indisvalid OR (amname = 'btree' AND reltuples >= 0 AND bytes >= 1048576 AND bytes > 2 * needed)
ORDER BY indisvalid, bytes DESC, 1";

/// What speaks against upkeep now, as far as this role may see it.
const BUSY: &str = r"
SELECT CASE
    WHEN long IS NOT NULL THEN long
    WHEN waiting >= 3 THEN format('%s sessions wait for locks', waiting)
    WHEN active >= greatest(8, current_setting('max_connections')::int / 2) THEN format('%s sessions are active', active)
END
FROM (SELECT count(*) FILTER (WHERE wait_event_type = 'Lock') AS waiting,
             count(*) FILTER (WHERE state = 'active') AS active,
             (array_agg(format('a transaction of pid %s, application `%s`, has been open for %s s', pid, application_name,
                               extract(epoch FROM clock_timestamp() - xact_start)::bigint) ORDER BY xact_start)
              FILTER (WHERE xact_start < clock_timestamp() - make_interval(secs => $1)))[1] AS long
      FROM pg_stat_activity
      WHERE pid <> pg_backend_pid() AND datname = current_database() AND backend_type = 'client backend') AS of";

struct Session(PgConnection);

impl Postgres {
    pub(super) async fn keep(&self) -> Result<Box<dyn Upkeep>, Failure> {
        let mut connection = self.watched().await?;
        // As gently as autovacuum does it.
        for set in ["SET vacuum_cost_delay = '2ms'", "SET idle_session_timeout = 0"] {
            if let Err(error) = within(connection.execute(set)).await {
                debug!("an older server: {}", error.words());
            }
        }
        Ok(Box::new(Session(connection)))
    }
}

#[async_trait]
impl Upkeep for Session {
    async fn chores(&mut self, tasks: &[Task]) -> Result<Vec<Chore>, Failure> {
        let mut chores: Vec<Chore> = Vec::new();
        for task in tasks {
            let asked = match task {
                Task::Leftovers => LEFTOVERS,
                Task::Vacuum => VACUUM,
                Task::Analyze => ANALYZE,
                Task::Reindex => REINDEX,
            };
            let found: Vec<(String, String, String)> = within(sqlx::query_as(asked).fetch_all(&mut self.0)).await?;
            for (name, why, statement) in found {
                // VACUUM (ANALYZE) makes statistics too.
                if *task == Task::Analyze && chores.iter().any(|it| it.task == Task::Vacuum && it.name == name) {
                    continue;
                }
                chores.push(Chore { task: *task, name, why, statement });
            }
        }
        Ok(chores)
    }

    async fn busy(&mut self, long: Duration) -> Result<Option<String>, Failure> {
        within(sqlx::query_scalar(BUSY).bind(long.as_secs_f64()).fetch_one(&mut self.0)).await
    }

    async fn work(&mut self, chore: &Chore, limit: Duration) -> Result<Ended, Failure> {
        let span = outside::database("postgresql", "maintain");
        if chore.task == Task::Reindex {
            // An earlier attempt's, which the new build would not replace.
            for leftover in self.leftovers_of(chore).await? {
                if let ended @ (Ended::Locked | Ended::OutOfTime) = self.run(&leftover, INDEX_LOCK, limit).await? {
                    return Ok(ended);
                }
            }
        }
        let concurrent = matches!(chore.task, Task::Reindex | Task::Leftovers);
        let lock = if concurrent { INDEX_LOCK } else { TABLE_LOCK };
        let ended = self.run(&chore.statement, lock, limit).instrument(span).await?;
        if !matches!(ended, Ended::Done) && chore.task == Task::Reindex {
            for leftover in self.leftovers_of(chore).await? {
                if !matches!(self.run(&leftover, INDEX_LOCK, GRACE).await?, Ended::Done) {
                    debug!(chore.name, "what is left of it is dropped by a later attempt");
                }
            }
        }
        Ok(ended)
    }

    async fn close(self: Box<Self>) {
        hang_up(self.0).await;
    }
}

impl Session {
    /// The drops of what interrupted builds of this index left.
    async fn leftovers_of(&mut self, chore: &Chore) -> Result<Vec<String>, Failure> {
        // The name that the server makes is cut to its longest: the index's table tells them, whatever their names.
        let asked = format!(
            "SELECT statement FROM ({LEFTOVERS}) AS of(name, why, statement)
             WHERE to_regclass(name)::oid IN (SELECT indexrelid FROM pg_index WHERE indrelid =
                 (SELECT indrelid FROM pg_index WHERE indexrelid = to_regclass($1)::oid))"
        );
        within(sqlx::query_scalar(AssertSqlSafe(asked)).bind(&chore.name).fetch_all(&mut self.0)).await
    }

    async fn run(&mut self, statement: &str, lock: &str, limit: Duration) -> Result<Ended, Failure> {
        let limits = format!("SET lock_timeout = '{lock}'; SET statement_timeout = {}", limit.as_millis());
        within(self.0.execute(sqlx::raw_sql(AssertSqlSafe(limits)))).await?;
        let running = self.0.execute(sqlx::raw_sql(AssertSqlSafe(statement.to_owned())));
        let ended = match tokio::time::timeout(limit + GRACE, running).await {
            Err(_) => {
                return Err(Failure::retry(anyhow::anyhow!("`{statement}`: the database did not answer in time")));
            }
            Ok(Ok(_)) => Ended::Done,
            Ok(Err(error)) => ended(error, statement)?,
        };
        within(self.0.execute("SET statement_timeout = 0")).await?;
        Ok(ended)
    }
}

fn ended(error: sqlx::Error, statement: &str) -> Result<Ended, Failure> {
    let said = error.as_database_error();
    let code = said.and_then(sqlx::error::DatabaseError::code).unwrap_or_default().into_owned();
    match code.as_str() {
        // lock_not_available, deadlock_detected.
        "55P03" | "40P01" => Ok(Ended::Locked),
        "57014" => Ok(Ended::OutOfTime),
        // undefined_table, undefined_object: dropped meanwhile.
        "42P01" | "42704" => Ok(Ended::Done),
        code if code.is_empty() || ["57P", "08"].iter().any(|class| code.starts_with(class)) => {
            Err(Failure::retry(error).context(format!("`{statement}`")))
        }
        _ => Ok(Ended::Failed(said.map_or_else(String::new, |said| said.message().to_owned()))),
    }
}
