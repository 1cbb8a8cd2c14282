//! The ledger's own part: snapshots while others write, and what becomes of a copy that goes on.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use producer::ScheduleConfig;
use queue::ledger::{self, Announced, Ledger, Operator, Progress, Recovery, Snapped, Snapshot, Upkeep};
use schemas::{Catalog, Names, Schedule, Timestamp};
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::*;

async fn opened(folder: &TempDir) -> Arc<dyn Ledger> {
    ledger::open(&format!("sqlite:{}", folder.path().join("book.db").display()), None).await.unwrap()
}

async fn taken(ledger: &Arc<dyn Ledger>) -> Snapshot {
    match ledger.snapshot(None).await.unwrap() {
        Snapped::Taken(snapshot) => snapshot,
        _ => panic!("no snapshot"),
    }
}

/// Writes a snapshot into a file, slowly: others write meanwhile.
async fn write_down(snapshot: Snapshot, to: &Path) {
    let mut bytes = vec![0; usize::try_from(snapshot.bytes).unwrap()];
    for (number, piece) in (0_u64..).zip(bytes.chunks_mut(4096)) {
        snapshot.read_at(number * 4096, piece).unwrap();
        if number % 16 == 0 {
            tokio::task::yield_now().await;
        }
    }
    std::fs::write(to, bytes).unwrap();
}

async fn open_copy(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path).connect().await.unwrap()
}

fn catalog() -> Catalog {
    worker::jobs::registry().catalog(Names::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_is_one_moment_of_the_ledger_however_much_is_written_meanwhile() {
    let folder = TempDir::new().unwrap();
    let ledger = opened(&folder).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|_| {
            let (ledger, stop, catalog) = (Arc::clone(&ledger), Arc::clone(&stop), catalog());
            tokio::spawn(async move {
                let mut written = 0_i64;
                while !stop.load(Ordering::SeqCst) {
                    // Large ones, so that the log is copied into the file again and again.
                    let args = json!({"message": "x".repeat(20_000)});
                    let jobs: Vec<_> = (0..20).map(|_| catalog.job("noop", &args, Utc::now()).unwrap()).collect();
                    written += i64::try_from(ledger.enqueue(&jobs, Utc::now()).await.unwrap().0.len()).unwrap();
                }
                written
            })
        })
        .collect();
    let mut before = -1;
    for round in 0..15 {
        let copy = folder.path().join(format!("copy-{round}.db"));
        write_down(taken(&ledger).await, &copy).await;
        let mut copy = open_copy(&copy).await;
        let said: String = sqlx::query_scalar("pragma integrity_check").fetch_one(&mut copy).await.unwrap();
        assert_eq!(said, "ok", "round {round}");
        let (jobs, args): (i64, i64) =
            sqlx::query_as("select (select count(*) from job), (select count(*) from job_args)")
                .fetch_one(&mut copy)
                .await
                .unwrap();
        assert!(jobs == args && jobs % 20 == 0 && jobs > before, "{jobs} jobs, {args} arguments, {before} before");
        before = jobs;
        copy.close().await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    assert!(written > before && before > 0, "{written} were written, {before} are in the last copy");
    let version = taken(&ledger).await.version;
    assert!(matches!(ledger.snapshot(Some(version)).await.unwrap(), Snapped::Unchanged));
    let job = catalog().job("noop", &json!({}), Utc::now()).unwrap();
    ledger.enqueue(&[job], Utc::now()).await.unwrap();
    assert!(matches!(ledger.snapshot(Some(version)).await.unwrap(), Snapped::Taken(_)), "a change is seen");
}

fn schedule(cron: &str) -> Schedule {
    let config = json!({"cron": cron, "run": {"job": "noop", "with": {}}, "catch_up": "all"});
    let config: ScheduleConfig = serde_json::from_value(config).unwrap();
    let startable = producer::Startable { catalog: Arc::new(catalog()), runbooks: Arc::default() };
    config.build("often", &startable).unwrap_or_else(|problems| panic!("{problems:?}"))
}

#[tokio::test]
async fn times_of_schedules_since_the_copy_are_missed_and_not_made_up_for() {
    let folder = TempDir::new().unwrap();
    let often = schedule("*/10 * * * *");
    let announced = Announced { schedule: often.name.clone(), timetable: often.timetable.to_string() };
    let two_hours_ago = Utc::now() - chrono::TimeDelta::hours(2);
    let ledger = opened(&folder).await;
    ledger.announce("digest", std::slice::from_ref(&announced), two_hours_ago).await.unwrap();
    let snapshot = taken(&ledger).await;
    let (copy, was) = (folder.path().join("copy.db"), snapshot.instance);
    write_down(snapshot, &copy).await;
    drop(ledger);

    let missed =
        |progress: &Progress, now: Timestamp| producer::scheduler::since(&often, progress.settled, now, "it was lost");
    let recovery = Recovery {
        by: Operator { actor: "ann".into(), reason: "it burned".into() },
        from: "a test".into(),
        shows: two_hours_ago,
        go_on: false,
        schedules: vec![announced.clone()],
        config_digest: "digest".into(),
        missed: &missed,
    };
    let recovered = ledger::recover(&copy, &recovery).await.unwrap();
    assert_ne!(recovered.instance, was, "it is another ledger now");
    let [times] = &recovered.missed[..] else { panic!("{:?}", recovered.missed) };
    assert!((11..=13).contains(&times.times), "{times:?}");

    let ledger = ledger::open(&format!("sqlite:{}", copy.display()), None).await.unwrap();
    let firings = queue::ledger::Books::firings(&*ledger, "often", 10).await.unwrap();
    assert_eq!((firings.len(), firings[0].times, firings[0].nominal), (1, times.times, times.last));
    assert_eq!(firings[0].reason.as_deref(), Some("it was lost"));
    let progress = ledger.announce("digest", &[announced], Utc::now()).await.unwrap().unwrap();
    assert_eq!(progress[0].settled, times.last, "the scheduler goes on behind them");
    assert!(
        Upkeep::time(&*ledger).await.unwrap() - times.last
            < chrono::TimeDelta::from_std(Duration::from_mins(11)).unwrap()
    );
}
