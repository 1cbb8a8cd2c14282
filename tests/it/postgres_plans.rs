//! Plans: no statement reads more of a table than it touches, however old the statistics or the plan are.

use std::collections::BTreeMap;
use std::time::Duration;

use queue::clock::later;
use queue::ledger::{self, Ended, Horizons, Repeats};
use schemas::{AttemptId, JobState, Key, Limit, NewJob, NewRun, Outcome};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tests::ledgers::{LEASE, TestLedger, ada, completed, discarded};
use tests::porter::eventually;
use tests::postgres::fresh_database;
use tokio::time::{sleep, timeout};

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

/// Waits until the server's statistics, which it writes with some delay, say so.
async fn statistics_say(connection: &mut PgConnection, question: &'static str) {
    let said = async {
        while !sqlx::query_scalar::<_, bool>(question).fetch_one(&mut *connection).await.unwrap() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_mins(1), said).await.unwrap_or_else(|_| panic!("the statistics never say: {question}"));
}

#[tokio::test]
async fn claims_and_ends_read_what_they_touch_however_old_the_statistics_are() {
    const JOBS: usize = 3_000;
    let url = fresh_database().await;
    let t = TestLedger::postgres_at(&url).await;
    let mut meddler = connect(&url).await;
    meddler.execute("set search_path = nightporter").await.unwrap();
    meddler.execute("alter table job set (autovacuum_enabled = false)").await.unwrap();
    for _ in 0..JOBS / 250 {
        t.enqueue(&(0..250).map(|_| t.job()).collect::<Vec<_>>()).await;
    }
    // From now on the planner believes that nothing is running.
    meddler.execute("analyze job").await.unwrap();
    let mut claimed = Vec::new();
    while claimed.len() < JOBS {
        claimed.extend(t.claim(250).await.into_iter().map(|job| job.id));
    }
    for attempts in claimed.chunks(100).take(20) {
        t.ledger.heartbeat(attempts, later(t.now(), LEASE), t.now()).await.unwrap();
        let ends: Vec<Ended> =
            attempts.iter().map(|attempt| Ended { attempt: *attempt, outcome: completed(None) }).collect();
        assert!(t.ledger.finish(&ends, t.now()).await.unwrap().recorded.iter().all(|recorded| *recorded));
    }
    drop(t); // who hangs up hands in its statistics
    statistics_say(&mut meddler, "select n_tup_del = 2000 from pg_stat_user_tables where relname = 'job'").await;
    let read = |index: &'static str| {
        sqlx::query_scalar::<_, i64>("select idx_tup_read from pg_stat_user_indexes where indexrelname = $1")
            .bind(index)
    };
    let available = read("job_available").fetch_one(&mut meddler).await.unwrap();
    assert!(available >= i64::try_from(JOBS).unwrap(), "claims went another way");
    let leased = read("job_leased").fetch_one(&mut meddler).await.unwrap();
    assert_eq!(leased, 0, "fenced writes went through the rescuer's index");
    let table = "select seq_tup_read from pg_stat_user_tables where relname = 'job'";
    assert_eq!(sqlx::query_scalar::<_, i64>(table).fetch_one(&mut meddler).await.unwrap(), 0);
}

#[tokio::test]
async fn claims_do_not_walk_over_what_was_claimed_while_somebody_holds_a_snapshot() {
    const ROUNDS: usize = 40;
    const JOBS: usize = 50;
    let url = fresh_database().await;
    let t = TestLedger::postgres_at(&url).await;
    let mut meddler = connect(&url).await;
    let mut dump = connect(&url).await;
    dump.execute("begin isolation level repeatable read; select 1 from nightporter.job").await.unwrap();
    for _ in 0..ROUNDS {
        t.enqueue(&(0..JOBS).map(|_| t.job()).collect::<Vec<_>>()).await;
        let ends: Vec<Ended> =
            t.claim(100).await.into_iter().map(|job| Ended { attempt: job.id, outcome: completed(None) }).collect();
        assert_eq!(ends.len(), JOBS);
        t.ledger.finish(&ends, t.now()).await.unwrap();
        t.clock.advance(Duration::from_secs(2));
    }
    drop(t); // who hangs up hands in its statistics
    statistics_say(&mut meddler, "select n_tup_del = 2000 from pg_stat_user_tables where relname = 'job'").await;
    let read = "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'job_available'";
    let read: i64 = sqlx::query_scalar(read).fetch_one(&mut meddler).await.unwrap();
    // Each round reads its own jobs, and each fifth one all there were before it.
    let jobs = i64::try_from(ROUNDS * JOBS).unwrap();
    assert!((jobs..jobs * 7).contains(&read), "{read} entries of the index were read for {jobs} jobs");
}

#[tokio::test]
async fn claims_beats_and_ends_find_each_job_by_its_id_while_somebody_holds_a_snapshot() {
    const ROUNDS: usize = 200;
    const JOBS: usize = 10;
    let url = fresh_database().await;
    let t = TestLedger::postgres_at(&url).await;
    let mut meddler = connect(&url).await;
    // The planner believes in a table of one row, and its first plans are kept.
    meddler.execute("alter table nightporter.job set (autovacuum_enabled = false)").await.unwrap();
    t.enqueue(&[t.job()]).await;
    meddler.execute("vacuum analyze nightporter.job").await.unwrap();
    meddler.execute("vacuum analyze nightporter.job_args").await.unwrap();
    t.complete_next(None).await;
    let mut dump = connect(&url).await;
    dump.execute("begin isolation level repeatable read; select 1 from nightporter.job").await.unwrap();
    for _ in 0..ROUNDS {
        t.enqueue(&(0..JOBS).map(|_| t.job()).collect::<Vec<_>>()).await;
        let claimed: Vec<AttemptId> = t.claim(100).await.into_iter().map(|job| job.id).collect();
        t.ledger.heartbeat(&claimed, later(t.now(), LEASE), t.now()).await.unwrap();
        let ends: Vec<Ended> = claimed.into_iter().map(|attempt| Ended { attempt, outcome: completed(None) }).collect();
        assert_eq!(ends.len(), JOBS);
        t.ledger.finish(&ends, t.now()).await.unwrap();
    }
    drop(t); // who hangs up hands in its statistics
    statistics_say(&mut meddler, "select n_tup_del = 2001 from pg_stat_user_tables where relname = 'job'").await;
    // Each statement finds each job by its id; a walk would read what all rounds before have left.
    let jobs = i64::try_from(ROUNDS * JOBS).unwrap();
    for index in ["job_pkey", "job_args_pkey"] {
        let read = "select idx_tup_read from pg_stat_user_indexes where indexrelname = $1";
        let read: i64 = sqlx::query_scalar(read).bind(index).fetch_one(&mut meddler).await.unwrap();
        assert!((jobs..jobs * 20).contains(&read), "{read} entries of {index} were read for {jobs} jobs");
    }
}

/// Tables that grow, each with a statement that lays many rows into it.
const GROWN: [(&str, &str); 11] = [
    (
        "history",
        "insert into history (id, queue, kind, state, priority, attempt, failures, crashes, created_at, finished_at)
         select gen_random_uuid(), 'default', 'noop', 5, 2, 1, 0, 0, 1, 1 from generate_series(1, 20000)",
    ),
    ("job_args", "insert into job_args (id, args) select gen_random_uuid(), '{}' from generate_series(1, 20000)"),
    (
        "job",
        "insert into job (id, queue, kind, state, priority, run_at, created_at)
         select gen_random_uuid(), 'default', 'noop', 0, 2, 1, 1 from generate_series(1, 20000)",
    ),
    (
        "held_key",
        "insert into held_key (scope, key, owner, expires_at)
         select 'noop', n::text, gen_random_uuid(), 1::bigint << 60 from generate_series(1, 20000) n",
    ),
    (
        "delivery_key",
        "insert into delivery_key (source, delivery_id, event_id, expires_at)
         select 'github', n::text, gen_random_uuid(), 1::bigint << 60 from generate_series(1, 20000) n",
    ),
    (
        "delivery_digest",
        "insert into delivery_digest (source, digest, event_id, seen_at, expires_at)
         select 'github', sha256(n::text::bytea), gen_random_uuid(), 1, 1::bigint << 60 from generate_series(1, 20000) n",
    ),
    (
        "run_job",
        "insert into run_job (run_id, name, position, job_id, needs)
         select gen_random_uuid(), 'one', 0, gen_random_uuid(), '[]' from generate_series(1, 20000)",
    ),
    (
        "job_limit",
        "insert into job_limit (job_id, key, at_once, newest, priority, since)
         select gen_random_uuid(), 'a', 1, false, 2, 1 from generate_series(1, 20000)",
    ),
    (
        "fired",
        "insert into fired (schedule, nominal, fired_at, outcome)
         select 'nightly', -n, 1::bigint << 60, 2 from generate_series(1, 20000) n",
    ),
    (
        "step",
        "insert into step (job_id, name, attempt, started_at)
         select gen_random_uuid(), 'one', 1, 1 from generate_series(1, 20000)",
    ),
    (
        "announcement",
        r#"insert into announcement (what, subject_id, at, fact)
         select 0, gen_random_uuid(), 1::bigint << 60,
                '{"source": "a", "kind": "b", "delivery_id": "c", "time": 1, "data": "{}"}' from generate_series(1, 20000)"#,
    ),
];

/// Some of everything that happens on an ordinary day.
async fn a_day(t: &TestLedger, day: u32) {
    assert!(t.ledger.set_announcing(true, "a", t.now()).await.unwrap());
    let key = |name: &str| Key { scope: "noop".into(), key: format!("{name} {day}"), hold: Duration::from_secs(1) };
    let limited = |key: &str, newest: bool| NewJob { limits: vec![Limit { newest, ..Limit::one(key) }], ..t.job() };
    let keyed = NewJob { key: Some(key("one")), ..t.job() };
    t.enqueue(&[keyed.clone(), t.job(), limited("a", false), limited("a", false), t.job()]).await;
    t.enqueue(&[NewJob { key: keyed.key, ..t.job() }, limited("n", true), limited("n", true), limited("n", true)])
        .await;
    let delivery = |id: &str| {
        let delivery = t.delivery(&format!("{id} {day}"), day.to_string().as_bytes());
        ledger::NewDelivery { repeats: Repeats::AreHeldAfter(Duration::ZERO), ..delivery }
    };
    t.accept(&delivery("first")).await;
    t.accept(&delivery("first")).await;
    t.accept(&delivery("second")).await;
    let run = t.run(&[("plan", &[], None), ("go", &["plan"], Some("jobs.plan.pending > 0")), ("tell", &["go"], None)]);
    let run = NewRun { key: Some(key("run")), ..run };
    t.ledger.start(&run, t.now()).await.unwrap();

    let claimed = t.claim(100).await;
    let attempts: Vec<AttemptId> = claimed.iter().map(|job| job.id).collect();
    t.ledger.heartbeat(&attempts, later(t.now(), LEASE), t.now()).await.unwrap();
    t.ledger.start_step(attempts[0], "dump", t.now()).await.unwrap();
    t.ledger.finish_step(attempts[0], "dump", None, t.now()).await.unwrap();
    let ends = attempts.iter().enumerate().filter(|(at, _)| *at != 1).map(|(at, attempt)| {
        let outcome = match at {
            0 => discarded("no"),
            2 => Outcome::Retry { at: later(t.now(), Duration::from_secs(1)), error: "later".into() },
            _ => completed(Some(json!({"pending": 1}))),
        };
        Ended { attempt: *attempt, outcome }
    });
    t.ledger.finish(&ends.collect::<Vec<_>>(), t.now()).await.unwrap();
    t.ledger.outputs(run.id).await.unwrap();
    t.ledger.hold(attempts[1], &key("group"), t.now()).await.unwrap();
    t.ledger.held(&key("group").scope, 100, t.now()).await.unwrap();
    while let Some(job) = t.claim(1).await.pop() {
        let outcome = if job.run.is_some() { discarded("no") } else { completed(None) };
        assert!(t.finish(job.id, outcome).await);
    }
    t.clock.advance(LEASE * 2);
    t.ledger.chores(t.now()).await.unwrap();
    t.promote().await;
    assert_eq!(t.rescue().await.len(), 1);
    t.ledger.review(100, t.now()).await.unwrap();
    for job in t.claim(100).await {
        assert!(t.finish(job.id, completed(None)).await);
    }
    for schedule in ["nightly", "weekly"] {
        let work = schemas::NewWork::Job(Box::new(t.job()));
        let due = ledger::Due::Work { work, overlap: schemas::Overlap::Queue };
        let firing = ledger::Firing { schedule: schedule.into(), nominal: t.now(), config_digest: "a".into(), due };
        assert!(matches!(t.ledger.fire(&firing, t.now()).await.unwrap(), ledger::Fired::Now(_)));
        t.complete_next(None).await;
    }
    t.ledger.cancel(t.enqueue(&[t.job()]).await[0], &ada(), t.now()).await.unwrap();
    t.ledger.prune(100, t.now()).await.unwrap();
    let herald = schemas::WorkerId(uuid::Uuid::from_u128(1));
    for _ in 0..3 {
        let next = t.ledger.next_announcements(herald, 20, later(t.now(), LEASE), t.now()).await.unwrap();
        let ledger::Turn::Ours(next) = next else { panic!("it is nobody else's turn") };
        let numbers: Vec<i64> = next.iter().map(|one| one.number).collect();
        assert!(t.ledger.announced(herald, &numbers, t.now()).await.unwrap());
        assert!(t.ledger.oldest_unannounced().await.is_ok());
    }
    let long_ago = Some(chrono::DateTime::UNIX_EPOCH + chrono::TimeDelta::days(1));
    t.ledger
        .forget(&Horizons { bodies: long_ago, events: long_ago, jobs: long_ago, waiting: long_ago }, 100)
        .await
        .unwrap();
    assert_eq!(t.state(attempts[0].job).await, JobState::Discarded);
}

#[tokio::test]
async fn no_statement_walks_over_a_table_that_has_grown_since_its_plan_was_made() {
    const DAYS: u32 = 12;
    let url = fresh_database().await;
    let t = TestLedger::postgres_at(&url).await;
    let mut meddler = connect(&url).await;
    meddler.execute("set search_path = nightporter").await.unwrap();
    for (table, _) in GROWN {
        let statement = format!("alter table {table} set (autovacuum_enabled = false); analyze {table}");
        meddler.execute(AssertSqlSafe(statement)).await.unwrap();
    }
    // By now each statement has its plan, made for tables of a few rows, and keeps it.
    for day in 0..DAYS {
        a_day(&t, day).await;
    }
    // Nobody is told of what is laid here: a trigger would read other tables, by plans that are the meddler's own.
    meddler.execute("set session_replication_role = replica").await.unwrap();
    for (_, statement) in GROWN {
        meddler.execute(statement).await.unwrap();
    }
    for day in 0..3 {
        a_day(&t, DAYS + day).await;
    }
    drop(t); // who hangs up hands in its statistics
    let others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    eventually("everybody has hung up", async || {
        let left: i64 = sqlx::query_scalar(others).fetch_one(&mut connect(&url).await).await.unwrap();
        (left <= 1).then_some(())
    })
    .await;
    let read: Vec<(String, i64)> = sqlx::query_as(
        "select relname::text, (seq_tup_read + (select coalesce(sum(idx_tup_read), 0) from pg_stat_user_indexes i
                                                where i.relid = t.relid))::bigint
         from pg_stat_user_tables t where schemaname = 'nightporter'",
    )
    .fetch_all(&mut connect(&url).await)
    .await
    .unwrap();
    let read: BTreeMap<String, i64> = read.into_iter().collect();
    println!("rows read in {} days: {read:?}", DAYS + 3);
    for (table, _) in GROWN {
        assert!(read[table] < 20_000, "{table} was walked over: {read:?}");
    }
}
