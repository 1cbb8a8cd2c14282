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

/// There is a round so often: other processes put jobs off as well, and a lease is rescued at most so much later than it
/// ended.
const ROUND: Duration = Duration::from_secs(5);
/// One round in so many reviews what waits at the door.
const REVIEW_EVERY: u64 = 2;
/// Between two looks at the least: what is due may be locked by another promoter.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
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
        look: start,
        round: start,
        rounds: 0,
        prune: start + PRUNE_EVERY,
        forget: start + FORGET_EVERY,
        was_away: false,
    };
    loop {
        let due = turns.look.min(turns.prune).min(turns.forget);
        tokio::select! {
            () = stop.cancelled() => return,
            () = put_off.notified() => turns.look = Instant::now(),
            () = tokio::time::sleep_until(due) => {}
        }
        turns.take(queue, &mut forgetting).await;
    }
}

struct Turns {
    /// The next look at what there is to do: when a job is due, and in each round.
    look: Instant,
    /// The next round: beside what is due, what was left behind and what waits.
    round: Instant,
    /// Rounds so far in which the ledger answered.
    rounds: u64,
    prune: Instant,
    forget: Instant,
    /// Whether the ledger was away in the last round, or since.
    was_away: bool,
}

impl Turns {
    async fn take(&mut self, queue: &Queue, forgetting: &mut Forgetting) {
        let now = Instant::now();
        if self.look <= now {
            self.look(queue).await;
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

    /// Asks what there is to do, takes the ledger's time from the answer, and does it.
    async fn look(&mut self, queue: &Queue) {
        let asked = Instant::now();
        let is_round = self.round <= asked;
        let chores = said(queue.ledger().chores(queue.clock().now()).await, "tell what there is to do");
        if is_round {
            self.round = Instant::now() + ROUND;
        }
        self.look = self.round;
        let Some(chores) = chores else {
            self.was_away = true;
            return;
        };
        queue.clock().correct(chores.time, asked.elapsed());
        if let Some(due) = chores.next_due {
            self.wait_or_promote(queue, due).await;
        }
        if is_round {
            self.rescue(queue, chores.has_orphans).await;
            if chores.has_waiting && self.rounds.is_multiple_of(REVIEW_EVERY) {
                said(review(queue).await, "review what waits at the door");
            }
            self.rounds += 1;
        }
    }

    /// After promoting, what comes next is not known: it is asked soon. After a failure it is the next round's.
    async fn wait_or_promote(&mut self, queue: &Queue, due: Timestamp) {
        let until = (due - queue.clock().now()).to_std().unwrap_or_default();
        if !until.is_zero() || said(promote(queue).await, "promote").is_some() {
            self.look = self.round.min(Instant::now() + until.max(LOOK_AGAIN));
        }
    }

    /// While the ledger is away no worker can beat. When it is back, they have until the next round to do so, or to give
    /// back what they have stopped, before all their jobs are taken for crashed.
    async fn rescue(&mut self, queue: &Queue, has_orphans: bool) {
        if std::mem::take(&mut self.was_away) || !has_orphans {
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

/// Makes available what is due.
async fn promote(queue: &Queue) -> Result<(), LedgerError> {
    loop {
        let bells = queue.ledger().promote(ROWS, queue.clock().now()).await?;
        let promoted = bells.iter().map(|bell| bell.count).sum::<u32>();
        if promoted > 0 {
            reached("promoted");
        }
        queue.ring(bells);
        if promoted < ROWS {
            return Ok(());
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
