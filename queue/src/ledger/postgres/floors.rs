//! Where claims begin to look.
//!
//! What was claimed leaves dead entries in the index, which stay for as long as any snapshot in the whole database is
//! older, be it a dump of an hour. A claim that walks over them all costs more with each job. So it begins at a floor for
//! each priority: nothing available lies below, because whatever makes a job available gives it the time of that moment.
//! That holds but for clocks and commits that lag by more than the margin; a look at everything now and then finds what they
//! left.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use schemas::{Priority, Timestamp};

use super::super::Claim;
use super::super::rows::micros;

/// The clocks of processes may differ, and a commit take, by so much.
const MARGIN: Duration = Duration::from_secs(1);
/// How often a claim looks at everything.
const LOOK_AT_ALL: Duration = Duration::from_secs(10);

/// The floors of each queue. What one claim may take another may not, so they differ by the kinds too.
#[derive(Default)]
pub(super) struct Floors(Mutex<Vec<Floor>>);

struct Floor {
    queue: String,
    kinds: Vec<String>,
    /// For each priority, the least `run_at` to look at, in microseconds.
    least: [i64; Priority::ALL.len()],
    /// When everything was looked at.
    looked: i64,
}

impl Floors {
    /// The floors for a claim of this moment, by priority; the lowest of all when everything is due to be looked at.
    pub(super) fn of(&self, claim: &Claim, now: Timestamp) -> [i64; Priority::ALL.len()] {
        let floors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = floors.iter().find(|floor| floor.is_of(claim));
        let is_fresh = |floor: &&Floor| micros(now) < floor.looked + span(LOOK_AT_ALL);
        known.filter(is_fresh).map_or([i64::MIN; Priority::ALL.len()], |floor| floor.least)
    }

    /// Raises the floors that a claim began at. `last` is the priority and `run_at` of the last job that it took where it
    /// came back full; otherwise it took everything.
    pub(super) fn raise(
        &self,
        claim: &Claim,
        now: Timestamp,
        from: [i64; Priority::ALL.len()],
        last: Option<(i16, i64)>,
    ) {
        let settled = micros(now) - span(MARGIN);
        let mut raised = from;
        for (priority, floor) in Priority::ALL.iter().zip(&mut raised) {
            match last {
                Some((last, _)) if priority.code() > last => {}
                Some((last, run_at)) if priority.code() == last => *floor = run_at.min(settled),
                _ => *floor = settled,
            }
        }
        let mut floors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match floors.iter_mut().find(|floor| floor.is_of(claim)) {
            Some(floor) => {
                floor.least = raised;
                if from[0] == i64::MIN {
                    floor.looked = micros(now);
                }
            }
            None => floors.push(Floor {
                queue: claim.queue.clone(),
                kinds: claim.kinds.clone(),
                least: raised,
                looked: micros(now),
            }),
        }
    }
}

impl Floor {
    fn is_of(&self, claim: &Claim) -> bool {
        self.queue == claim.queue && self.kinds == claim.kinds
    }
}

fn span(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
