//! A steady trickle of jobs while somebody holds a snapshot, as a dump of an hour does: what is dead cannot be cleaned up
//! meanwhile, and claims must not get slower by it.

use std::time::Duration;

use queue::ledger::{Claim, Ended};
use schemas::{Outcome, TraceContext, WorkerId};
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::{Instant, sleep_until};

use super::Plan;
use super::probe::{self, Jobs};
use super::report::{Round, Scenario};
use super::scenarios::failed;
use super::stage::{Engine, Stage};
use crate::failure::Failure;

/// 800 jobs a second.
const EVERY: Duration = Duration::from_millis(10);
const JOBS: usize = 8;
/// The time is looked at in so many parts.
const PARTS: u32 = 6;
const CLAIM: u32 = 64;

pub(super) async fn measure(plan: &Plan, stage: &Stage) -> Result<Vec<Scenario>, Failure> {
    if stage.engine() == Engine::Sqlite {
        return Err(Failure::usage("`pinned` needs --ledger postgres://...: SQLite has no such snapshots"));
    }
    let queue = stage.open().await?;
    stage.settle().await?;
    let broken = |error: sqlx::Error| Failure::failed(format!("no snapshot can be held: {error}"));
    let mut dump = PgConnection::connect(stage.url()).await.map_err(broken)?;
    let pin = "begin isolation level repeatable read; select 1 from nightporter.job limit 1";
    dump.execute(pin).await.map_err(broken)?;
    let part = plan.limit / PARTS;
    let mut scenarios = Vec::new();
    for number in 0..PARTS {
        eprintln!("pinned, part {} of {PARTS}", number + 1);
        let round = trickle(plan, &queue, part).await?;
        scenarios.push(Scenario::of(&format!("claim, pinned for {} s", (part * number).as_secs()), &[round]));
    }
    dump.close().await.map_err(broken)?;
    queue.close(Duration::from_secs(1)).await;
    Ok(scenarios)
}

/// Stores, claims and ends a few jobs in each tick; times are those of the claims.
async fn trickle(plan: &Plan, queue: &queue::Queue, lasting: Duration) -> Result<Round, Failure> {
    let (ledger, clock) = (queue.ledger(), queue.clock());
    let jobs = Jobs::new(false);
    let kinds = probe::registry().queues().remove(probe::QUEUE).unwrap_or_default();
    let lease = queue::QueueConfig::LEASE;
    let claim = Claim { queue: probe::QUEUE.into(), kinds, limit: CLAIM, worker: WorkerId::at(clock.now()), lease };
    let (mut done, mut claims) = (0, Vec::new());
    let meter = plan.watch.start();
    let mut due = meter.began();
    while meter.began().elapsed() < lasting {
        due += EVERY;
        sleep_until(due).await;
        let some: Vec<_> = (0..JOBS).map(|_| jobs.next(clock.now(), TraceContext::default())).collect();
        ledger.enqueue(&some, clock.now()).await.map_err(|error| failed(&error))?;
        let began = Instant::now();
        let claimed = ledger.claim(&claim, clock.now()).await.map_err(|error| failed(&error))?;
        claims.push(began.elapsed());
        let end = |job: schemas::ClaimedJob| Ended {
            attempt: job.id,
            outcome: Outcome::Completed { output: None, notice: None },
        };
        let ends: Vec<Ended> = claimed.into_iter().map(end).collect();
        done += ends.len() as u64;
        ledger.finish(&ends, clock.now()).await.map_err(|error| failed(&error))?;
    }
    Ok(meter.end(done, claims))
}
