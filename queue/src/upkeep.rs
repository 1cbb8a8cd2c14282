//! The promoter, the rescuer, the pruner and whoever forgets what is old. They run in every process and need no leader:
//! the ledger gives each row to one of them only.

use std::time::Duration;

use schemas::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Queue;
use crate::forgetting::Forgetting;
use crate::kill_point::reached;
use crate::ledger::LedgerError;

/// A look at least so often: other processes put jobs off as well.
const PROMOTE_EVERY: Duration = Duration::from_secs(5);
/// A lease is rescued at most so much later than it ended.
const RESCUE_EVERY: Duration = Duration::from_secs(5);
/// What waits at the door is reviewed so often.
const REVIEW_EVERY: Duration = Duration::from_secs(10);
/// The database's time is sampled so often.
const SAMPLE_EVERY: Duration = Duration::from_secs(30);
/// What has expired is forgotten so often.
const PRUNE_EVERY: Duration = Duration::from_mins(1);
/// What is old is looked for so often.
const FORGET_EVERY: Duration = Duration::from_mins(1);
/// While there is more to forget, it rests for so many times as long as it worked: nobody else is to notice.
const REST: u32 = 4;
/// At most so many rows in one transaction; a full one is followed at once by the next.
const ROWS: u32 = 500;

/// Works until told to stop. What fails is said, and done again at its next turn.
pub(crate) async fn run(queue: &Queue, put_off: &Notify, mut forgetting: Forgetting, stop: CancellationToken) {
    let start = Instant::now();
    let mut turns = Turns {
        promote: start,
        rescue: start,
        review: start,
        sample: start + SAMPLE_EVERY,
        prune: start + PRUNE_EVERY,
        forget: start + FORGET_EVERY,
        was_away: false,
    };
    loop {
        let due =
            turns.promote.min(turns.rescue).min(turns.review).min(turns.sample).min(turns.prune).min(turns.forget);
        tokio::select! {
            () = stop.cancelled() => return,
            () = put_off.notified() => turns.promote = Instant::now(),
            () = tokio::time::sleep_until(due) => {}
        }
        turns.take(queue, &mut forgetting).await;
    }
}

struct Turns {
    promote: Instant,
    rescue: Instant,
    review: Instant,
    sample: Instant,
    prune: Instant,
    forget: Instant,
    /// Whether the ledger was away at the last turn of the rescuer.
    was_away: bool,
}

impl Turns {
    async fn take(&mut self, queue: &Queue, forgetting: &mut Forgetting) {
        let now = Instant::now();
        if self.promote <= now {
            self.promote = Instant::now() + said(promote(queue).await, "promote").unwrap_or(PROMOTE_EVERY);
        }
        if self.rescue <= now {
            self.take_turn_of_rescuer(queue).await;
            self.rescue = Instant::now() + RESCUE_EVERY;
        }
        if self.review <= now {
            said(review(queue).await, "review what waits at the door");
            self.review = Instant::now() + REVIEW_EVERY;
        }
        if self.sample <= now {
            if let Some(time) = said(queue.ledger().time().await, "tell the time") {
                queue.clock().correct(time);
            }
            self.sample = Instant::now() + SAMPLE_EVERY;
        }
        if self.prune <= now {
            said(prune(queue).await, "prune");
            self.prune = Instant::now() + PRUNE_EVERY;
        }
        if self.forget <= now {
            let begun = Instant::now();
            let forgotten = said(forgetting.turn(queue, ROWS).await, "forget");
            let more = forgotten.is_some_and(|forgotten| forgotten >= u64::from(ROWS));
            self.forget = Instant::now() + if more { begun.elapsed() * REST } else { FORGET_EVERY };
        }
    }

    /// While the ledger is away no worker can beat. When it is back, they have until the next turn to do so, or to give
    /// back what they have stopped, before all their jobs are taken for crashed.
    async fn take_turn_of_rescuer(&mut self, queue: &Queue) {
        if self.was_away {
            self.was_away = said(queue.ledger().time().await, "tell the time").is_none();
            return;
        }
        let rescued = rescue(queue, queue.clock().now()).await;
        self.was_away = matches!(rescued, Err(LedgerError::Unavailable(_) | LedgerError::Unknown(_)));
        said(rescued, "rescue");
    }
}

fn said<T>(result: Result<T, LedgerError>, what: &str) -> Option<T> {
    result.inspect_err(|error| warn!(error = error as &dyn std::error::Error, "the ledger could not {what}")).ok()
}

/// Makes available what is due; how long until the next look.
async fn promote(queue: &Queue) -> Result<Duration, LedgerError> {
    loop {
        let now = queue.clock().now();
        let promoted = queue.ledger().promote(ROWS, now).await?;
        let done = promoted.bells.iter().map(|bell| bell.count).sum::<u32>();
        if done > 0 {
            reached("promoted");
        }
        queue.ring(promoted.bells);
        if done < ROWS {
            let next = promoted.next.and_then(|next| (next - now).to_std().ok());
            return Ok(next.unwrap_or(PROMOTE_EVERY).clamp(Duration::from_millis(10), PROMOTE_EVERY));
        }
    }
}

/// Takes back the jobs whose lease ended before the given time.
pub(crate) async fn rescue(queue: &Queue, before: Timestamp) -> Result<(), LedgerError> {
    loop {
        let rescued = queue.ledger().rescue(before, ROWS, queue.clock().now()).await?;
        if !rescued.jobs.is_empty() {
            reached("rescued");
        }
        for job in &rescued.jobs {
            info!(job.id = %job.attempt.job, job.kind, job.attempt = job.attempt.number, "lease ran out; now {}", job.state.as_str());
        }
        queue.ring(rescued.bells);
        if rescued.jobs.len() < ROWS as usize {
            return Ok(());
        }
    }
}

/// Lets in what waits where there is room, until nobody more comes in.
pub(crate) async fn review(queue: &Queue) -> Result<(), LedgerError> {
    loop {
        let bells = queue.ledger().review(ROWS, queue.clock().now()).await?;
        let nobody_came_in = bells.is_empty();
        queue.ring(bells); // also where some were only given a later turn: the promoter is to know
        if nobody_came_in {
            return Ok(());
        }
    }
}

async fn prune(queue: &Queue) -> Result<(), LedgerError> {
    while queue.ledger().prune(ROWS, queue.clock().now()).await? >= u64::from(ROWS) {}
    Ok(())
}
