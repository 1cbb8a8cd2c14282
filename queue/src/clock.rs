//! The one clock: the database's time, advanced monotonically.
//!
//! Leases, retries and schedules are compared with one clock only, whatever the wall clocks of the machines say.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta};
use schemas::Timestamp;

/// A sample that was asked for longer ago says too little. Where a process was stopped before it read the answer, that is as
/// old as the stop was long.
const FRESH: Duration = Duration::from_secs(1);

/// Tells the ledger's time. Cheap to clone; all clones tell the same time.
#[derive(Clone, Debug)]
pub struct LedgerClock(Arc<Source>);

#[derive(Debug)]
enum Source {
    /// The ledger's time at `origin`, in microseconds, corrected whenever it is sampled again.
    Sampled { origin: Instant, at_origin: AtomicI64, latest: AtomicI64 },
    /// Stands still until told.
    ByHand(AtomicI64),
}

impl LedgerClock {
    /// A clock that goes on from the ledger's present time.
    pub fn sampled(now: Timestamp) -> Self {
        let micros = now.timestamp_micros();
        Self(Arc::new(Source::Sampled {
            origin: Instant::now(),
            at_origin: AtomicI64::new(micros),
            latest: AtomicI64::new(micros),
        }))
    }

    /// A clock for tests, moved by [`LedgerClock::advance`] alone.
    pub fn by_hand(now: Timestamp) -> Self {
        Self(Arc::new(Source::ByHand(AtomicI64::new(now.timestamp_micros()))))
    }

    /// The ledger's time. Never less than what was told before.
    pub fn now(&self) -> Timestamp {
        let micros = match &*self.0 {
            Source::ByHand(micros) => micros.load(Ordering::SeqCst),
            Source::Sampled { origin, at_origin, latest } => {
                let now = at_origin.load(Ordering::Relaxed) + micros_since(*origin);
                latest.fetch_max(now, Ordering::Relaxed).max(now)
            }
        };
        DateTime::from_timestamp_micros(micros).unwrap_or_default()
    }

    /// Takes a new sample of the ledger's time, unless its answer took too long.
    pub fn correct(&self, now: Timestamp, took: Duration) {
        if let Source::Sampled { origin, at_origin, .. } = &*self.0
            && took < FRESH
        {
            at_origin.store(now.timestamp_micros() - micros_since(*origin), Ordering::Relaxed);
        }
    }

    /// Moves a clock that is driven by hand; does nothing to any other.
    pub fn advance(&self, by: Duration) {
        if let Source::ByHand(micros) = &*self.0 {
            micros.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }
}

fn micros_since(origin: Instant) -> i64 {
    i64::try_from(origin.elapsed().as_micros()).unwrap_or(i64::MAX)
}

/// A moment and a duration after it.
pub fn later(now: Timestamp, by: Duration) -> Timestamp {
    TimeDelta::from_std(by).ok().and_then(|by| now.checked_add_signed(by)).unwrap_or(Timestamp::MAX_UTC)
}

/// A moment and a duration before it.
pub fn earlier(now: Timestamp, by: Duration) -> Timestamp {
    TimeDelta::from_std(by).ok().and_then(|by| now.checked_sub_signed(by)).unwrap_or(Timestamp::MIN_UTC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn a_sample_that_lies_in_the_past_does_not_turn_time_back() {
        let clock = LedgerClock::sampled(at(1000));
        let before = clock.now();
        clock.correct(at(10), Duration::ZERO);
        assert!(clock.now() >= before);
        clock.correct(at(2000), Duration::ZERO);
        assert!(clock.now() >= at(2000));
    }

    #[test]
    fn a_sample_whose_answer_took_long_is_not_taken() {
        let clock = LedgerClock::sampled(at(1000));
        clock.correct(at(2000), FRESH);
        assert!(clock.now() < at(2000));
    }

    #[test]
    fn a_clock_by_hand_moves_only_when_it_is_moved() {
        let clock = LedgerClock::by_hand(at(1000));
        clock.correct(at(5000), Duration::ZERO);
        assert_eq!(clock.now(), at(1000));
        clock.clone().advance(Duration::from_secs(5));
        assert_eq!(clock.now(), at(1005));
    }
}
