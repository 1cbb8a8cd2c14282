//! Forgetting what is older than it is to be kept, and telling people before what waits for them goes with it.
//!
//! A held event, or one in quarantine, waits for a person, who is told in time: once for all that came within one step of
//! time. That people were told stands in the ledger, as the key of the message's job: so of many processes one tells, a
//! message that was given up is told again, and nothing that waits goes sooner than some time after it was told of.

use std::sync::Arc;
use std::time::Duration;

use schemas::{EventId, Key, NewJob, Timestamp};
use tracing::warn;

use crate::Queue;
use crate::clock::{earlier, later};
use crate::config::Keep;
use crate::ledger::{HeldKey, Horizons, LedgerError};

/// So long before the first of them goes people are told, at the earliest; sooner where nothing is kept for twice as long.
const LEAD: Duration = Duration::from_hours(72);
/// One message for all that came within this part of it. At least as long before, people are told.
const STEPS: u32 = 3;
/// The scope of the keys by which it is known up to when people were told.
const TOLD: &str = "forgetting";
/// So long that is known: longer than any message goes on trying.
const MEMORY: Duration = Duration::from_hours(24 * 40);
/// More such keys there are not.
const MOST_KEYS: u32 = 10_000;
/// So many of those that wait are named.
const NAMED: u32 = 10;

/// Events that wait for a person, and go soon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many are held.
    pub held: u64,
    /// How many are in quarantine.
    pub quarantined: u64,
    /// The oldest of them.
    pub oldest: Vec<EventId>,
}

/// Makes the job that tells people about them: what waits, and within which time it goes. None where nobody is to be told.
pub type NoticeOfForgetting = Arc<dyn Fn(&Waiting, Duration, Timestamp) -> Option<NewJob> + Send + Sync>;

/// Forgets, turn by turn.
pub(crate) struct Forgetting {
    keep: Keep,
    notice: Option<NoticeOfForgetting>,
    /// Up to here there was nothing to tell of when this process last looked.
    nothing_until: Option<Timestamp>,
}

impl Forgetting {
    pub(crate) fn new(keep: Keep, notice: Option<NoticeOfForgetting>) -> Self {
        Self { keep, notice, nothing_until: None }
    }

    /// Forgets at most so many of each; how many of what there were most.
    pub(crate) async fn turn(&mut self, queue: &Queue, limit: u32) -> Result<u64, LedgerError> {
        let now = queue.clock().now();
        let waiting = match (self.keep.first_loss(), self.notice.clone()) {
            (Some(age), Some(notice)) => Some(self.tell(queue, age, &notice, now).await?),
            _ => None,
        };
        queue.ledger().forget(&Horizons { waiting, ..self.keep.horizons(now) }, limit).await
    }

    /// Tells people of what waits and will be that old soon; before when what waits may go.
    async fn tell(
        &mut self,
        queue: &Queue,
        age: Duration,
        notice: &NoticeOfForgetting,
        now: Timestamp,
    ) -> Result<Timestamp, LedgerError> {
        let lead = LEAD.min(age / 2);
        let until = begun(later(earlier(now, age), lead), lead / STEPS);
        let told = queue.ledger().held(TOLD, MOST_KEYS, now).await?;
        let told: Vec<Told> = told.iter().filter_map(Told::read).collect();
        let told_until = told.iter().map(|told| told.until).max();
        if told_until.is_none_or(|told| told < until) && self.nothing_until != Some(until) {
            let waiting = queue.ledger().waiting_events(told_until, until, NAMED).await?;
            if waiting == Waiting::default() {
                self.nothing_until = Some(until);
            } else if let Some(job) = notice(&waiting, lead, now) {
                let key = Key { scope: TOLD.into(), key: until.to_rfc3339(), hold: MEMORY };
                let told = queue.enqueue(NewJob { key: Some(key), ..job }).await;
                if let Err(error) = told {
                    warn!(
                        error = &*error as &dyn std::error::Error,
                        "people cannot be told now of what is forgotten soon"
                    );
                }
            }
        }
        let long_ago = earlier(now, lead / STEPS);
        let heard = told.iter().filter(|told| told.is_heard && told.at <= long_ago);
        Ok(heard.map(|told| told.until).max().unwrap_or(Timestamp::MIN_UTC))
    }
}

/// That people were told.
struct Told {
    /// Of what was received before this.
    until: Timestamp,
    at: Timestamp,
    /// Whether the message is no longer under way.
    is_heard: bool,
}

impl Told {
    fn read(key: &HeldKey) -> Option<Self> {
        let until = chrono::DateTime::parse_from_rfc3339(&key.key).ok()?.to_utc();
        let (seconds, nanos) = key.owner.0.get_timestamp()?.to_unix();
        let at = Timestamp::from_timestamp(i64::try_from(seconds).ok()?, nanos)?;
        Some(Self { until, at, is_heard: !key.under_way })
    }
}

/// The beginning of the step that a moment is in.
fn begun(moment: Timestamp, step: Duration) -> Timestamp {
    let step = i64::try_from(step.as_secs()).unwrap_or(i64::MAX).max(1);
    Timestamp::from_timestamp(moment.timestamp().div_euclid(step) * step, 0).unwrap_or(moment)
}
