//! The ledger's own part: snapshots while others write, and what becomes of a copy that goes on.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use producer::ScheduleConfig;
use queue::ledger::{self, Announced, Claim, Desk, Ledger, Operator, Progress, Recovery, Snapped, Snapshot, Upkeep};
use schemas::{ApprovalPolicy, Catalog, JobState, Limit, Names, NewJob, Role, Schedule, Timestamp};
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tests::ledgers::{ada, new_job};

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
    let (mut before, mut round) = (-1, 0);
    // On a busy machine nothing may have been written between two rounds.
    while round < 15 || before < 1 {
        round += 1;
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
        assert!(jobs == args && jobs % 20 == 0 && jobs >= before, "{jobs} jobs, {args} arguments, {before} before");
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

/// Whoever reads a snapshot keeps the log from being copied into the file, and so nobody else can take one.
#[tokio::test]
async fn while_a_snapshot_is_read_its_bytes_stay_and_no_other_is_taken() {
    let folder = TempDir::new().unwrap();
    let ledger = opened(&folder).await;
    let write = async |message: &str| {
        let job = catalog().job("noop", &json!({"message": message}), Utc::now()).unwrap();
        ledger.enqueue(&[job], Utc::now()).await.unwrap();
    };
    write("before").await;
    let held = taken(&ledger).await;
    let bytes = || {
        let mut bytes = vec![0; usize::try_from(held.bytes).unwrap()];
        held.read_at(0, &mut bytes).unwrap();
        bytes
    };
    let shown = bytes();
    write("meanwhile").await;
    assert!(ledger.snapshot(None).await.is_err(), "it would not show what was written meanwhile");
    assert!(bytes() == shown, "the file changed under its reader");
    drop(held);
    let copy = folder.path().join("copy.db");
    write_down(taken(&ledger).await, &copy).await;
    let mut copy = open_copy(&copy).await;
    let jobs: i64 = sqlx::query_scalar("select count(*) from job").fetch_one(&mut copy).await.unwrap();
    assert_eq!(jobs, 2);
}

fn schedule(cron: &str) -> Schedule {
    let config = json!({"cron": cron, "run": {"job": "noop", "with": {}}, "catch_up": "all"});
    let config: ScheduleConfig = serde_json::from_value(config).unwrap();
    let startable = producer::Startable { catalog: Arc::new(catalog()), runbooks: Arc::default() };
    config.build("often", &startable).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// Has a copy go on that shows the ledger of that moment, whose schedules are none.
async fn goes_on(copy: &Path, shows: Timestamp) -> Result<ledger::Recovered, queue::OpenError> {
    let recovery = Recovery {
        by: ada(),
        from: "a test".into(),
        shows,
        go_on: false,
        schedules: Vec::new(),
        config_digest: "digest".into(),
        missed: &|_, _| None,
    };
    ledger::recover(copy, &recovery).await
}

#[tokio::test]
async fn a_copy_in_which_sqlite_finds_something_wrong_does_not_go_on() {
    let folder = TempDir::new().unwrap();
    let ledger = opened(&folder).await;
    let copy = folder.path().join("copy.db");
    write_down(taken(&ledger).await, &copy).await;
    // An index that is another's, in a file that can be opened.
    let mut damaged = open_copy(&copy).await;
    sqlx::raw_sql(
        "pragma writable_schema = on;
         update sqlite_schema set rootpage = (select rootpage from sqlite_schema where name = 'job')
         where name = 'announcement_number'",
    )
    .execute(&mut damaged)
    .await
    .unwrap();
    damaged.close().await.unwrap();
    let refused = goes_on(&copy, Utc::now()).await;
    assert!(matches!(refused, Err(queue::OpenError::Damaged(_))), "{refused:?}");
}

#[tokio::test]
async fn whatever_the_lost_machine_may_have_done_asks_and_nothing_else_does() {
    let folder = TempDir::new().unwrap();
    let (ledger, then) = (opened(&folder).await, Utc::now() - chrono::TimeDelta::hours(1));
    let at = |minutes: i64| then + chrono::TimeDelta::minutes(minutes);
    let job = || new_job("noop", "{}", then);
    let limited = || NewJob { limits: vec![Limit::one("a key")], ..job() };
    let [running, ending, behind, due, later] = [
        limited(),
        job(),
        limited(),
        NewJob { run_at: Some(at(1)), ..job() },
        NewJob { run_at: Some(at(600)), ..job() },
    ];
    let policy = ApprovalPolicy {
        count: NonZeroU32::new(2).unwrap(),
        role: Role::Operator,
        within: Duration::from_hours(9),
        own: true,
    };
    let agreed = NewJob { approval: Some(policy), ..job() };
    let ids = [&running, &ending, &behind, &due, &later, &agreed].map(|job| job.id);
    let claim = Claim {
        queue: "default".into(),
        kinds: vec!["noop".into()],
        limit: 2,
        worker: schemas::WorkerId::at(then),
        lease: Duration::from_secs(30),
    };
    ledger.enqueue(&[running, ending], then).await.unwrap();
    assert_eq!(ledger.claim(&claim, then).await.unwrap().len(), 2);
    ledger.enqueue(&[behind, due, later, agreed], then).await.unwrap();
    let bob = Operator { actor: "bob".into(), ..ada() };
    for by in [&ada(), &bob] {
        ledger.approve(ids[5], Role::Operator, by, then).await.unwrap();
    }
    Desk::cancel(&*ledger, ids[1], &ada(), then).await.unwrap();
    let copy = folder.path().join("copy.db");
    write_down(taken(&ledger).await, &copy).await;
    drop(ledger);

    let recovered = goes_on(&copy, then).await.unwrap();
    assert_eq!(
        recovered.open.iter().map(|open| open.job).collect::<BTreeSet<_>>(),
        [0, 2, 3, 5].map(|at| ids[at]).into()
    );
    let ledger = ledger::open(&format!("sqlite:{}", copy.display()), None).await.unwrap();
    let mut states = Vec::new();
    for id in ids {
        states.push(ledger.job(id).await.unwrap().unwrap().state);
    }
    let (pending, scheduled) = (JobState::Pending, JobState::Scheduled);
    assert_eq!(states, [pending, JobState::Cancelled, pending, pending, scheduled, pending]);
    // What ran holds its place no more: whoever waited behind it may go first, if a person says so. And who agreed before
    // are asked again, each.
    for (at, by, wanted) in [(2, &ada(), JobState::Available), (5, &ada(), pending), (5, &bob, JobState::Available)] {
        ledger.approve(ids[at], Role::Operator, by, Utc::now()).await.unwrap();
        assert_eq!(ledger.job(ids[at]).await.unwrap().unwrap().state, wanted);
    }
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
