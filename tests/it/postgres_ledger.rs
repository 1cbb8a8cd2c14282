//! What the distributed ledger keeps beyond the contract of every engine.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use queue::OpenError;
use queue::ledger::{self, Ended, LedgerError};
use schemas::{AttemptId, JobId, Key, NewJob};
use sqlx::{Connection, Executor, PgConnection};
use tests::ledgers::{LEASE, TestLedger, completed};
use tests::porter::eventually;
use tests::postgres::fresh_database;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

#[tokio::test]
async fn a_job_of_a_process_whose_clock_is_late_is_found() {
    let t = TestLedger::postgres().await;
    assert!(t.claim(10).await.is_empty());
    t.clock.advance(Duration::from_secs(5));
    assert!(t.claim(10).await.is_empty());
    let late = t.now() - Duration::from_secs(4);
    t.ledger.enqueue(&[t.job()], late).await.unwrap();
    t.clock.advance(Duration::from_secs(6));
    assert_eq!(t.claim(10).await.len(), 1);
}

#[tokio::test]
async fn jobs_are_stored_all_or_not_at_all_though_the_owner_of_a_key_cannot_be_told() {
    let url = fresh_database().await;
    let t = TestLedger::postgres_at(&url).await;
    let key = Key { scope: "noop".into(), key: "one".into(), hold: Duration::from_hours(1) };
    t.enqueue(&[NewJob { key: Some(key.clone()), ..t.job() }]).await;
    // The owner of the key lets go of it between the two questions.
    sqlx::raw_sql(
        "create function nightporter.meddle() returns trigger language plpgsql
         as $$ begin delete from nightporter.held_key; return null; end $$;
         create trigger meddle after insert on nightporter.job for each statement execute function nightporter.meddle()",
    )
    .execute(&mut connect(&url).await)
    .await
    .unwrap();
    let batch = [t.job(), NewJob { key: Some(key), ..t.job() }];
    let answer = t.ledger.enqueue(&batch, t.now()).await;
    assert!(matches!(answer, Err(LedgerError::Unavailable(_))), "{answer:?}");
    assert!(t.ledger.job(batch[0].id).await.unwrap().is_none(), "who is told so asks again, and has it twice");
}

/// Passes everything on to the server at `behind`, until it is told to swallow what goes over the connections that are
/// open then; later ones are passed on. Where it listens.
async fn swallowing_proxy(behind: String, swallow: Arc<Notify>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(&behind).await.unwrap();
            let swallow = Arc::clone(&swallow);
            tokio::spawn(async move {
                tokio::select! {
                    () = swallow.notified() => std::future::pending().await, // both ends stay open
                    _ = copy_bidirectional(&mut near, &mut far) => {}
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn connections_that_the_network_swallowed_are_replaced() {
    let url = fresh_database().await;
    let behind = url.split(['@', '/']).nth(3).unwrap().to_owned();
    let swallow = Arc::new(Notify::new());
    let front = swallowing_proxy(behind.clone(), Arc::clone(&swallow)).await;
    let t = TestLedger::postgres_at(&url.replace(&behind, &front)).await;
    let all_at_once = || join_all((0..40).map(|_| t.ledger.time()));
    let stores = async || t.ledger.enqueue(&[t.job()], t.now()).await;
    assert!(all_at_once().await.iter().all(Result::is_ok) && stores().await.is_ok());
    swallow.notify_waiters();
    let (answers, enqueued) = tokio::join!(all_at_once(), stores());
    assert!(answers.iter().any(Result::is_err), "nothing was swallowed");
    assert!(matches!(enqueued, Err(LedgerError::Unknown(_))), "{enqueued:?}");
    assert!(stores().await.is_ok());
    eventually("the ledger answers again", async || t.ledger.time().await.ok()).await;
}

#[tokio::test]
async fn a_ledger_of_a_newer_binary_is_refused() {
    let url = fresh_database().await;
    drop(ledger::open(&url, None).await.unwrap());
    let newer = "insert into nightporter._sqlx_migrations (version, description, success, checksum, execution_time)
                 values (9999, 'of the future', true, '', 0)";
    connect(&url).await.execute(newer).await.unwrap();
    let Err(refused) = ledger::open(&url, None).await else { panic!("it was opened") };
    assert!(matches!(refused, OpenError::Newer { found: 9999, .. }), "{refused:?}");
}

#[tokio::test]
async fn a_database_is_shared_with_an_application_of_the_same_tools() {
    let url = fresh_database().await;
    let mut application = connect(&url).await;
    for statement in [
        "create table _sqlx_migrations (version bigint primary key, description text not null, installed_on timestamptz,
                                        success boolean not null, checksum bytea not null, execution_time bigint)",
        "insert into _sqlx_migrations values (20250101000000, 'users', now(), true, '', 1)",
        "create table job (title text)",
    ] {
        application.execute(statement).await.unwrap();
    }
    let t = TestLedger::postgres_at(&url).await;
    let id = t.enqueue(&[t.job()]).await[0];
    assert_eq!(t.complete_next(None).await, id);
    let applied = "select count(*) from public._sqlx_migrations";
    assert_eq!(sqlx::query_scalar::<_, i64>(applied).fetch_one(&mut application).await.unwrap(), 1);
}

#[tokio::test]
async fn processes_that_start_together_all_open_it() {
    let url = fresh_database().await;
    for opened in join_all((0..6).map(|_| ledger::open(&url, None))).await {
        opened.map(drop).unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_named_without_the_password() {
    let Err(error) = ledger::open("postgres://porter:geheim@127.0.0.1:9/ledger", None).await else {
        panic!("nothing listens there");
    };
    let text = format!("{error} {error:?}");
    assert!(text.contains("127.0.0.1:9") && !text.contains("geheim"), "{text}");
}

#[tokio::test]
async fn lost_connections_are_said_and_replaced() {
    let url = fresh_database().await;
    let t = TestLedger::postgres_at(&url).await;
    t.enqueue(&[t.job()]).await;
    let mut meddler = connect(&url).await;
    let others = "select pg_terminate_backend(pid) from pg_stat_activity
                  where datname = current_database() and pid <> pg_backend_pid()";
    meddler.execute(others).await.unwrap();
    let mut failures = 0;
    while let Err(error) = t.ledger.enqueue(&[t.job()], t.now()).await {
        assert!(matches!(error, LedgerError::Unavailable(_) | LedgerError::Unknown(_)), "{error:?}");
        failures += 1;
        assert!(failures <= 10, "the pool keeps its dead connections");
    }
    assert!(!t.claim(10).await.is_empty());
}

#[tokio::test]
async fn who_waits_too_long_for_a_lock_is_told_so_and_nothing_is_written() {
    let url = fresh_database().await;
    let t = TestLedger::postgres_at(&url).await;
    t.enqueue(&[t.job()]).await;
    let attempt = t.claim_one().await.id;
    let mut meddler = connect(&url).await;
    let mut held = meddler.begin().await.unwrap();
    held.execute("select 1 from nightporter.job for update").await.unwrap();
    let late = t.ledger.finish(&[Ended { attempt, outcome: completed(None) }], t.now()).await;
    assert!(matches!(late, Err(LedgerError::Unavailable(_))), "{late:?}");
    held.rollback().await.unwrap();
    assert!(t.finish(attempt, completed(None)).await);
}

#[tokio::test]
async fn rescuers_of_several_processes_share_the_orphans() {
    let url = fresh_database().await;
    let t = TestLedger::postgres_at(&url).await;
    t.enqueue(&(0..60).map(|_| t.job()).collect::<Vec<_>>()).await;
    let claimed: Vec<AttemptId> = t.claim(60).await.into_iter().map(|job| job.id).collect();
    t.clock.advance(LEASE * 2);
    let now = t.now();
    let all = join_all((0..4).map(|_| t.ledger.rescue(now, 100, now))).await;
    let mut jobs: Vec<JobId> =
        all.into_iter().flat_map(|rescued| rescued.unwrap().jobs).map(|job| job.attempt.job).collect();
    jobs.sort_unstable();
    assert_eq!(jobs, claimed.iter().map(|attempt| attempt.job).collect::<Vec<_>>());
}
