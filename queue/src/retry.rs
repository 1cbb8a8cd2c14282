//! Retries: the policy of a job kind, and short retries of a call that failed in passing.
//!
//! This module is the only one that knows the `backoff` crate, so that it can be exchanged.

use std::time::Duration;

use backoff::backoff::Backoff;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use rand::Rng;
use schemas::Timestamp;

use crate::clock::later;

/// When a failed job is tried again, and when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The first wait is between nothing and this.
    pub first: Duration,
    /// No wait is longer than this.
    pub longest: Duration,
    /// The job is given up with this failure.
    pub max_failures: u32,
    /// The job is given up when it is older than this.
    pub max_age: Duration,
}

impl RetryPolicy {
    /// For work that nobody waits for: up to 12 failures in up to a day, waits up to an hour.
    pub const PATIENT: Self = Self {
        first: Duration::from_secs(10),
        longest: Duration::from_hours(1),
        max_failures: 12,
        max_age: Duration::from_hours(24),
    };

    /// For work that a person waits for: up to 5 failures in up to an hour, waits up to a minute.
    pub const PROMPT: Self = Self {
        first: Duration::from_secs(2),
        longest: Duration::from_mins(1),
        max_failures: 5,
        max_age: Duration::from_hours(1),
    };

    /// When to try again after the given number of failures, this one included; none where the job is to be given up.
    ///
    /// The wait is random between nothing and a bound that doubles (full jitter), but never shorter than what the other
    /// side asked for (`Retry-After`). `chance` is between 0 and 1.
    pub fn next(
        &self,
        failures: u32,
        created_at: Timestamp,
        asked: Option<Duration>,
        now: Timestamp,
        chance: f64,
    ) -> Option<Timestamp> {
        if failures >= self.max_failures || now >= later(created_at, self.max_age) {
            return None;
        }
        let doubled = self.first.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        let wait = doubled.min(self.longest).mul_f64(chance.clamp(0.0, 1.0));
        Some(later(now, wait.max(asked.unwrap_or_default())))
    }
}

/// The waits between the tries of a call that failed in passing: short, doubling, jittered, in number bounded.
#[derive(Debug)]
pub struct Pauses {
    backoff: ExponentialBackoff,
    longest: Duration,
    left: u32,
}

impl Pauses {
    /// At most `tries - 1` pauses, from `first` to `longest`.
    pub fn new(first: Duration, longest: Duration, tries: u32) -> Self {
        let backoff = ExponentialBackoffBuilder::new()
            .with_initial_interval(first)
            .with_max_interval(longest)
            .with_max_elapsed_time(None)
            .build();
        Self { backoff, longest, left: tries.saturating_sub(1) }
    }

    /// Pauses without end, for a supervisor that must come back.
    pub fn endless(first: Duration, longest: Duration) -> Self {
        Self::new(first, longest, u32::MAX)
    }

    /// The next pause; none when the tries are used up.
    pub fn next_pause(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        // The crate applies its jitter after its bound, so that 87 s may come back for a bound of 60 s.
        self.backoff.next_backoff().map(|pause| pause.min(self.longest))
    }

    /// Starts again after a success.
    pub fn reset(&mut self, tries: u32) {
        self.backoff.reset();
        self.left = tries.saturating_sub(1);
    }
}

/// Calls until it succeeds, the error is not transient, or the tries are used up.
pub async fn with_pauses<T, E, F>(mut pauses: Pauses, transient: impl Fn(&E) -> bool, mut call: F) -> Result<T, E>
where
    F: AsyncFnMut() -> Result<T, E>,
{
    loop {
        let error = match call().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        match pauses.next_pause() {
            Some(pause) if transient(&error) => tokio::time::sleep(pause).await,
            _ => return Err(error),
        }
    }
}

/// A random number between 0 and 1, for [`RetryPolicy::next`].
pub fn chance() -> f64 {
    rand::rng().random()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        first: Duration::from_secs(1),
        longest: Duration::from_mins(1),
        max_failures: 10,
        max_age: Duration::from_hours(1),
    };

    fn wait(failures: u32, asked: Option<Duration>, chance: f64) -> Option<i64> {
        let now = Timestamp::UNIX_EPOCH;
        POLICY.next(failures, now, asked, now, chance).map(|at| (at - now).num_seconds())
    }

    #[test]
    fn waits_double_up_to_the_longest_and_are_jittered_in_full() {
        assert_eq!([1, 2, 3, 6, 7, 9].map(|failures| wait(failures, None, 1.0).unwrap()), [1, 2, 4, 32, 60, 60]);
        assert_eq!(wait(9, None, 0.0), Some(0));
        assert_eq!(wait(9, None, 0.5), Some(30));
    }

    #[test]
    fn what_the_other_side_asks_for_is_waited_even_beyond_the_longest() {
        assert_eq!(wait(1, Some(Duration::from_mins(10)), 0.1), Some(600));
        assert_eq!(wait(7, Some(Duration::from_secs(2)), 1.0), Some(60));
    }

    #[test]
    fn too_many_failures_and_too_old_a_job_end_it() {
        assert_eq!(wait(10, None, 0.5), None);
        let created = Timestamp::UNIX_EPOCH;
        assert_eq!(POLICY.next(1, created, None, later(created, Duration::from_hours(1)), 0.5), None);
    }

    #[test]
    fn pauses_are_bounded_in_length_and_number() {
        let mut pauses = Pauses::new(Duration::from_millis(100), Duration::from_secs(1), 50);
        let all: Vec<Duration> = std::iter::from_fn(|| pauses.next_pause()).collect();
        assert_eq!(all.len(), 49);
        assert!(all.iter().all(|pause| *pause <= Duration::from_secs(1)), "{all:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_repeated_while_its_error_is_transient() {
        let pauses = || Pauses::new(Duration::from_millis(1), Duration::from_millis(2), 5);
        let mut calls = 0;
        let answer = with_pauses(
            pauses(),
            |_: &&str| true,
            async || {
                calls += 1;
                if calls < 3 { Err("busy") } else { Ok(calls) }
            },
        );
        assert_eq!(answer.await, Ok(3));
        let refused = with_pauses(pauses(), |error: &&str| *error == "busy", async || Err::<(), _>("refused"));
        assert_eq!(refused.await, Err("refused"));
    }
}
