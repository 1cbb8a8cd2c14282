//! Patience with deliveries that fail verification: so many at once, so many each second. One that verifies costs none.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So many failures are answered one by one.
const BURST: f64 = 60.0;

/// Then one in this time.
const REFILL: Duration = Duration::from_secs(1);

/// A token bucket for the failures of one source.
#[derive(Debug)]
pub(crate) struct Patience(Mutex<Bucket>);

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    since: Instant,
}

impl Patience {
    /// A full bucket.
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Bucket { tokens: BURST, since: now }))
    }

    /// Takes a failure; false where there have been too many.
    pub(crate) fn takes_failure(&self, now: Instant) -> bool {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refilled = now.saturating_duration_since(bucket.since).as_secs_f64() / REFILL.as_secs_f64();
        bucket.tokens = (bucket.tokens + refilled).min(BURST);
        bucket.since = now;
        let enough = bucket.tokens >= 1.0;
        if enough {
            bucket.tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_with_the_burst_and_comes_back_with_time() {
        let start = Instant::now();
        let patience = Patience::new(start);
        let taken = (0..100).filter(|_| patience.takes_failure(start)).count();
        assert_eq!(taken, 60);
        let later = start + Duration::from_secs(3);
        assert_eq!((0..100).filter(|_| patience.takes_failure(later)).count(), 3);
        let much_later = start + Duration::from_secs(100_000);
        assert_eq!((0..100).filter(|_| patience.takes_failure(much_later)).count(), 60);
    }
}
