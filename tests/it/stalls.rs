//! Workers that stand still (SIGSTOP) for longer than their lease, and wall clocks that are wrong by ten minutes: no stale
//! write is accepted, a stale attempt stops itself and the programs that it runs, and nothing has its effect twice.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use queue::bell::Bells;
use queue::{Queue, QueueConfig};
use schemars::JsonSchema;
use schemas::api::JobView;
use schemas::{Catalog, JobId, JobState, Names, TraceContext};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use tests::binary::{House, Running};
use tests::porter::{LEASE, Porter, eventually};
use tests::receiver::{Receiver, Reply};
use tests::sender::{SECRET, Sender};
use tokio_util::task::AbortOnDropHandle;
use worker::{Context, Failure, Handler, Output, Registry};

const TEAM_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// How many jobs of a kind are under way when a worker stands still.
const JOBS: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_worker_loses_its_jobs_to_another_and_stops_itself_and_its_programs() {
    let world = Stalls::new("3s").await;
    let mut jobs = Vec::new();
    let first = world.houses[0].start("work");
    let mut lock = world.lock_what_is_dumped().await;
    let backup = world.enqueue("backup", json!({"database": "main", "store": "here"})).await;
    world.receiver.then(std::iter::repeat_n(Reply::Silence, JOBS));
    for _ in 0..JOBS {
        jobs.push(world.enqueue("noop", json!({"steps": 3, "step_millis": 1500})).await);
        jobs.push(world.enqueue("notify", json!({"channel": "team", "text": "hello"})).await);
    }
    for job in &jobs {
        eventually("it is in the middle of a step", async || {
            world.view(*job).await.steps.iter().any(|step| step.finished_at.is_none()).then_some(())
        })
        .await;
    }
    world.receiver.requested(JOBS).await;
    let stale = eventually("the first worker dumps", async || dump_of(&first)).await;

    first.signal("STOP");
    let second = world.houses[1].start("work");
    for job in &jobs {
        world.ended(*job).await;
    }
    let fresh = eventually("the second worker dumps as well", async || dump_of(&second)).await;
    assert!(is_alive(stale), "a program does not stand still with the worker that runs it");
    first.signal("CONT");

    eventually("the stale attempt's program is killed", async || (!is_alive(stale)).then_some(())).await;
    assert!(is_alive(fresh), "the second worker's is left alone");
    let log = world.houses[0].path("work.log");
    let stopped = 2 * JOBS + 1;
    eventually("all stale attempts have stopped", async || (count(&log, "attempt was stale") == stopped).then_some(()))
        .await;
    lock.execute("rollback").await.unwrap();
    jobs.push(backup);
    for job in &jobs {
        let view = world.ended(*job).await;
        assert_eq!(outcomes(&view), ["crashed", "completed"]);
        assert!(view.steps.iter().all(|step| step.attempt == 2 && step.finished_at.is_some()), "{:?}", view.steps);
    }
    assert_eq!(world.receiver.effects(), JOBS, "one effect for each notification");
    assert_eq!(world.receiver.requests().len(), 2 * JOBS, "nothing was sent after the pause");

    assert!(second.stop().success());
    for _ in 0..JOBS {
        let job = world.enqueue("noop", json!({"steps": 1})).await;
        assert_eq!(outcomes(&world.ended(job).await), ["completed"], "the first worker goes on with new work");
    }
    println!("{stopped} attempts and 1 program of a stalled worker: all stopped, no stale write; {JOBS} new jobs done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_goes_on_after_a_pause_within_its_lease() {
    let world = Stalls::new("30s").await;
    let first = world.houses[0].start("work");
    let mut jobs = Vec::new();
    for _ in 0..JOBS {
        jobs.push(world.enqueue("noop", json!({"steps": 2, "step_millis": 1500})).await);
    }
    for job in &jobs {
        eventually("it runs", async || (!world.view(*job).await.steps.is_empty()).then_some(())).await;
    }
    first.signal("STOP");
    let _second = world.houses[1].start("work");
    tokio::time::sleep(Duration::from_secs(2)).await; // the pause itself
    first.signal("CONT");
    for job in &jobs {
        assert_eq!(outcomes(&world.ended(*job).await), ["completed"]);
    }
    println!("{JOBS} jobs went on after a short pause");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_porter_that_stood_still_stops_its_attempts_and_makes_them_again() {
    let receiver = Receiver::start().await;
    let routes = r#"
[[routes]]
on = "github.push"
run = { job = "notify", with = { channel = "team", text = "hello" } }
[[routes]]
on = "github.push"
run = { job = "noop", with = { steps = 2, step_millis = 1500 } }
"#;
    let house = House::new(&(configuration("sqlite:ledger.db", "in-process", "3s", &receiver.url) + routes));
    let up = house.start("up");
    receiver.then(std::iter::repeat_n(Reply::Silence, JOBS));
    let sender = Sender::default();
    for _ in 0..JOBS {
        sender.push(&up.server(), 0).await;
    }
    receiver.requested(JOBS).await;
    let jobs = eventually("all jobs are in the middle of a step", async || {
        let jobs = asked(&up, "jobs").await;
        let ids: Vec<String> = jobs.as_array()?.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect();
        for id in &ids {
            asked(&up, &format!("jobs/{id}")).await["steps"].get(0)?;
        }
        (ids.len() == 2 * JOBS).then_some(ids)
    })
    .await;
    up.signal("STOP");
    tokio::time::sleep(Duration::from_secs(4)).await; // the pause itself: longer than the lease
    up.signal("CONT");
    for id in &jobs {
        let view = eventually("it is done", async || {
            let view: JobView = serde_json::from_value(asked(&up, &format!("jobs/{id}")).await).unwrap();
            view.finished_at.is_some().then_some(view)
        })
        .await;
        // Whoever comes first, the rescuer or the attempt itself, gives it back.
        let outcomes = outcomes(&view);
        assert!(
            [["interrupted", "completed"], ["crashed", "completed"]].iter().any(|right| outcomes == right),
            "{outcomes:?}"
        );
        assert!(view.steps.iter().all(|step| step.attempt == 2 && step.finished_at.is_some()), "{:?}", view.steps);
    }
    assert_eq!(receiver.effects(), JOBS, "one effect for each notification");
    assert_eq!(receiver.requests().len(), 2 * JOBS, "each was sent again once");
    println!("{} attempts of a porter that stood still stopped and were made again, once", jobs.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wall_clocks_that_are_wrong_by_ten_minutes_change_nothing_but_the_age_of_signatures() {
    let mut world = Stalls::new("3s").await;
    let [first, second] = world.houses.each_mut();
    *first = std::mem::replace(first, House::new("")).with_environment(&wrong_by("+10m"));
    *second = std::mem::replace(second, House::new("")).with_environment(&wrong_by("-10m"));
    let first = world.houses[0].start("work");
    // It dies; what it ran is not left, whatever time the other believes it is.
    let mut orphans = Vec::new();
    for _ in 0..JOBS {
        orphans.push(world.enqueue("noop", json!({"steps": 2, "step_millis": 1500})).await);
    }
    for job in &orphans {
        eventually("it runs", async || (!world.view(*job).await.steps.is_empty()).then_some(())).await;
    }
    first.kill();
    let (_late, door) = (world.houses[1].start("work"), world.houses[1].start("serve"));
    for job in &orphans {
        let view = world.ended(*job).await;
        assert_eq!(outcomes(&view), ["crashed", "completed"]);
        world.is_of_now(&view).await;
    }
    let _early = world.houses[0].start("work");
    let mut long = Vec::new();
    let mut failing = Vec::new();
    for _ in 0..JOBS {
        // Longer than a lease.
        long.push(world.enqueue("noop", json!({"steps": 4, "step_millis": 1500})).await);
        failing.push(world.enqueue("noop", json!({"fail_first": 1})).await);
    }
    for job in &long {
        let view = world.ended(*job).await;
        assert_eq!(outcomes(&view), ["completed"], "not rescued early");
        world.is_of_now(&view).await;
    }
    for job in &failing {
        let view = world.ended(*job).await;
        assert_eq!(outcomes(&view), ["failed", "completed"]);
        let waited = view.attempts[1].started_at - view.attempts[0].ended_at.unwrap();
        assert!((0..60).contains(&waited.num_seconds()), "tried again after {waited}");
        world.is_of_now(&view).await;
    }
    // GitHub signs no time; Standard Webhooks do.
    let (sender, http) = (Sender::default(), worker::world::http_client());
    assert_eq!(sender.push(&door.server(), 0).await.unwrap(), 202);
    let clerk = producer::source_type("clerk").unwrap();
    let nonce = uuid::Uuid::new_v4();
    let sample =
        producer::sources::signed_sample(clerk, "user.created", &[], &TEAM_SECRET.into(), nonce, chrono::Utc::now());
    let sample = sample.unwrap();
    let sent = http.post(format!("{}/webhooks/clerk", door.server())).headers(sample.headers).body(sample.body);
    assert_eq!(sent.send().await.unwrap().status(), 401);
    assert_eq!(count(&world.houses[1].path("serve.log"), "a clock that is wrong"), 1, "the log says why");
    println!("{} jobs under clocks that are wrong by ten minutes", long.len() + failing.len() + orphans.len());
}

/// A ledger, two folders for processes on it, a database to be dumped, and a receiver.
struct Stalls {
    houses: [House; 2],
    receiver: Receiver,
    queue: Queue,
    catalog: Catalog,
    ledger: String,
    dumped: String,
    _ringing: AbortOnDropHandle<()>,
}

impl Stalls {
    async fn new(lease: &str) -> Self {
        let ledger = tests::postgres::fresh_database().await;
        let dumped = tests::postgres::fresh_database().await;
        let broker = tests::server("NIGHTPORTER_TEST_AMQP");
        let receiver = Receiver::start().await;
        let store = tempfile::tempdir().expect("a folder").keep();
        let config = configuration(&ledger, &broker, lease, &receiver.url)
            + &format!("[databases.main]\nurl = \"{dumped}\"\n[stores.here]\nurl = \"file:{}\"\n", store.display());
        let houses = [House::new(&config), House::new(&config)];
        let queue = Queue::open(&QueueConfig::new(&ledger, &broker)).await.unwrap();
        let ringing = AbortOnDropHandle::new(tokio::spawn(keep_ringing(queue.clone())));
        let [databases, stores, channels] = ["main", "here", "team"].map(|name| [name.to_owned()].into());
        let names = Names { databases, stores, channels, ..Names::default() };
        let catalog = Arc::new(worker::jobs::registry()).catalog(names);
        Self { houses, receiver, queue, catalog, ledger, dumped, _ringing: ringing }
    }

    async fn enqueue(&self, kind: &str, args: Value) -> JobId {
        let job = self.catalog.job(kind, &args, self.queue.clock().now()).unwrap();
        self.queue.enqueue(job).await.unwrap().id()
    }

    async fn view(&self, job: JobId) -> JobView {
        self.queue.ledger().job(job).await.unwrap().unwrap()
    }

    async fn ended(&self, job: JobId) -> JobView {
        let ended = async || Some(self.view(job).await).filter(|view| view.finished_at.is_some());
        let view = eventually(&format!("job {job} has ended"), ended).await;
        assert_eq!(view.state, JobState::Completed, "{view:?}");
        view
    }

    /// Makes every `pg_dump` wait until the transaction ends: by a table that it reads and nobody else does.
    async fn lock_what_is_dumped(&self) -> PgConnection {
        let mut connection = PgConnection::connect(&self.dumped).await.unwrap();
        connection.execute("create table guest (name text)").await.unwrap();
        connection.execute("begin; lock table pg_catalog.pg_ts_template in access exclusive mode").await.unwrap();
        connection
    }

    /// All times of a job are the database's.
    async fn is_of_now(&self, job: &JobView) {
        let mut connection = PgConnection::connect(&self.ledger).await.unwrap();
        let now: i64 =
            sqlx::query_scalar("select extract(epoch from now())::bigint").fetch_one(&mut connection).await.unwrap();
        let steps = job.steps.iter().flat_map(|step| [Some(step.started_at), step.finished_at]);
        let attempts = job.attempts.iter().flat_map(|attempt| [Some(attempt.started_at), attempt.ended_at]);
        for time in steps.chain(attempts).chain([job.finished_at]).flatten() {
            assert!((now - time.timestamp()).abs() < 300, "{time} in the ledger, {now} in the database");
        }
    }
}

/// Rings for all queues again and again: the workers of other tests take bells of these queues too.
async fn keep_ringing(queue: Queue) {
    let mut due = tokio::time::interval(Duration::from_millis(250));
    loop {
        due.tick().await;
        let mut bells = Bells::default();
        for name in ["default", "notify", "databases"] {
            bells.add(name, JobId(uuid::Uuid::nil()), &TraceContext::default());
        }
        queue.ring(bells);
    }
}

fn configuration(ledger: &str, broker: &str, lease: &str, receiver: &str) -> String {
    format!(
        r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
token = "{SECRET} {SECRET}"
[queue]
ledger = "{ledger}"
broker = "{broker}"
[worker]
lease = "{lease}"
[sources.github]
secrets = ["{SECRET}"]
[sources.clerk]
secrets = ["{TEAM_SECRET}"]
[channels.team]
webhook = {{ url = "{receiver}/", secret = "{TEAM_SECRET}" }}
"#
    )
}

/// The environment of a process whose wall clock is wrong. Its monotonic clock is not: no machine's is.
fn wrong_by(offset: &str) -> [(&'static str, &str); 3] {
    const LIBRARIES: [&str; 2] = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    ];
    let library = LIBRARIES.into_iter().find(|path| Path::new(path).exists());
    let library = library.expect("libfaketime is not installed: run the tests by `tests/run`, which does that");
    [("LD_PRELOAD", library), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]
}

fn outcomes(view: &JobView) -> Vec<&str> {
    view.attempts.iter().map(|attempt| attempt.outcome.as_deref().unwrap_or("running")).collect()
}

/// How many lines of a log hold these words.
fn count(log: &Path, words: &str) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().lines().filter(|line| line.contains(words)).count()
}

async fn asked(up: &Running, what: &str) -> Value {
    let request = worker::world::http_client().get(format!("{}/api/v1/{what}", up.operators()));
    let answer = request.bearer_auth(format!("{SECRET} {SECRET}")).send().await.unwrap();
    answer.error_for_status().unwrap().json().await.unwrap()
}

/// The `pg_dump` that a process runs.
fn dump_of(process: &Running) -> Option<u32> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.id())).ok()?;
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let children = children.collect::<String>();
    let mut pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.find(|pid: &u32| {
        let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.contains("pg_dump") && arguments.contains("--format=custom")
    })
}

/// Whether a process lives: one that has ended, but is not waited for yet, does not.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

static REPEATED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// The whole process stands still for longer than the lease, with the handler the first to be woken after it.
#[tokio::test]
async fn after_a_pause_a_handler_is_not_woken_before_its_lease_was_looked_at() {
    let mut porter = Porter::start(Registry::default().with::<Pauses>()).await;
    let id = porter.enqueue("pauses", json!({})).await;
    let view = porter.wait(id, JobState::Completed).await;
    assert_eq!(outcomes(&view), ["interrupted", "completed"]);
    assert_eq!(view.crashes, 0);
    assert_eq!(REPEATED.load(std::sync::atomic::Ordering::SeqCst), 1, "the stale attempt had its effect");
    porter.stop().await;
}

/// Holds the only thread of its process in the first attempt; then has an effect.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Pauses {}

#[async_trait]
impl Handler for Pauses {
    const KIND: &'static str = "pauses";
    const SUMMARY: &'static str = "stands still, and all its process with it";
    const RETRY: queue::retry::RetryPolicy = queue::retry::RetryPolicy::PROMPT;
    const TIME_LIMIT: Duration = Duration::from_mins(1);

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        if cx.job().attempt.number == 1 {
            std::thread::sleep(LEASE); // not to wait for anything: this is the pause, of the thread that runs it all
            let mut yielded = false;
            std::future::poll_fn(|waking| {
                waking.waker().wake_by_ref(); // before any timer can fire
                if std::mem::replace(&mut yielded, true) {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            })
            .await;
        }
        REPEATED.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(Value::Null)
    }
}
