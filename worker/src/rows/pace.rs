//! How much to do at once, and how long to rest: nobody else is to notice.

use std::time::Duration;

const FIRST: u32 = 1000;
const SMALLEST: u32 = 50;
const LARGEST: u32 = 10_000;
/// A statement that takes longer is too large.
const TOO_LONG: Duration = Duration::from_millis(200);
/// A statement that takes less may be larger.
const SHORT: Duration = Duration::from_millis(50);
/// After so many refusals in a row somebody else needs the table more.
const MOST_REFUSALS: u32 = 20;

/// The size of steps, by how the last ones went.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    size: u32,
    refusals: u32,
}

impl Pace {
    pub(crate) const fn new() -> Self {
        Self { size: FIRST, refusals: 0 }
    }

    /// How many keys the next step looks at.
    pub(crate) const fn size(&self) -> u32 {
        self.size
    }

    /// A step was done: how long to rest, which is as long as it took.
    pub(crate) fn done(&mut self, took: Duration) -> Duration {
        self.refusals = 0;
        if took > TOO_LONG {
            self.size = (self.size / 2).max(SMALLEST);
        } else if took < SHORT {
            self.size = (self.size + self.size / 2).min(LARGEST);
        }
        took.min(Duration::from_secs(1))
    }

    /// A step did not get its locks, or took too long, and did nothing: how long to rest; none where it is better to come
    /// back much later.
    pub(crate) fn refused(&mut self) -> Option<Duration> {
        self.refusals += 1;
        self.size = (self.size / 2).max(SMALLEST);
        (self.refusals < MOST_REFUSALS).then(|| Duration::from_millis(100) * self.refusals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_grow_while_they_are_short_and_shrink_when_they_are_long() {
        let mut pace = Pace::new();
        assert_eq!(pace.done(Duration::from_millis(100)), Duration::from_millis(100), "half of the time is rest");
        assert_eq!(pace.size(), FIRST);
        for _ in 0..20 {
            pace.done(Duration::from_millis(1));
        }
        assert_eq!(pace.size(), LARGEST);
        for _ in 0..20 {
            pace.done(Duration::from_secs(5));
        }
        assert_eq!(pace.size(), SMALLEST);
    }

    #[test]
    fn who_is_refused_again_and_again_comes_back_later() {
        let mut pace = Pace::new();
        let rests: Vec<_> = (0..MOST_REFUSALS).map(|_| pace.refused()).collect();
        assert!(rests[..rests.len() - 1].iter().all(Option::is_some) && rests[rests.len() - 1].is_none());
        pace.done(Duration::ZERO);
        assert!(pace.refused().is_some(), "a step that went well ends the row");
    }
}
