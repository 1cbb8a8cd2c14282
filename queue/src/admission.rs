//! Who is let in among the jobs whose needs have ended. Pure: both engines ask it inside the transaction that made room,
//! while nobody else may let anyone in.

use std::collections::{HashMap, HashSet};

use schemas::{JobId, Limit, Rate, Timestamp};

use crate::clock::{earlier, later};

/// A job that stands at the door.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    pub(crate) job: JobId,
    pub(crate) kind: String,
    pub(crate) limits: Vec<Limit>,
    /// Its turn in the rates has been given to it, and has come.
    pub(crate) has_turn: bool,
}

/// What is known of the keys that the waiters name.
#[derive(Clone, Debug, Default)]
pub(crate) struct House {
    /// How many jobs are under way, by key.
    pub(crate) inside: HashMap<String, u32>,
    /// When the bucket of a rate is full again, by key.
    pub(crate) full_at: HashMap<String, Timestamp>,
    pub(crate) paused_kinds: HashSet<String>,
    pub(crate) paused_keys: HashSet<String>,
}

/// What becomes of one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It is available.
    Now,
    /// There is room, and its turn in a rate comes then.
    At(Timestamp),
    /// It waits, for this reason.
    Wait(String),
}

impl House {
    /// Lets one in, if it may; what it takes is noted.
    pub(crate) fn enter(&mut self, waiter: &Waiter, now: Timestamp) -> Entry {
        if let Some(reason) = self.pause_of(waiter).or_else(|| self.full_for(waiter)) {
            return Entry::Wait(reason);
        }
        let turn = if waiter.has_turn { now } else { self.take_turn(&waiter.limits, now) };
        if turn > now {
            return Entry::At(turn);
        }
        for limit in &waiter.limits {
            *self.inside.entry(limit.key.clone()).or_default() += 1;
        }
        Entry::Now
    }

    fn pause_of(&self, waiter: &Waiter) -> Option<String> {
        if self.paused_kinds.contains(&waiter.kind) {
            return Some(format!("the kind `{}` is paused", waiter.kind));
        }
        let key = waiter.limits.iter().find(|limit| self.paused_keys.contains(&limit.key))?;
        Some(format!("the key `{}` is paused", key.key))
    }

    fn full_for(&self, waiter: &Waiter) -> Option<String> {
        let inside = |limit: &Limit| self.inside.get(&limit.key).copied().unwrap_or(0);
        let full = waiter.limits.iter().find(|limit| limit.at_once.is_some_and(|most| inside(limit) >= most.get()))?;
        Some(format!("waits for room at `{}`", full.key))
    }

    /// The first moment at which every rate has a start left, taken from each of them.
    fn take_turn(&mut self, limits: &[Limit], now: Timestamp) -> Timestamp {
        let rated = || limits.iter().filter_map(|limit| Some((&limit.key, limit.rate?)));
        let turn = rated().map(|(key, rate)| self.next_turn(key, rate, now)).max().unwrap_or(now);
        for (key, rate) in rated() {
            let full_at = self.full_at.get(key).copied().unwrap_or(turn).max(turn);
            self.full_at.insert(key.clone(), later(full_at, rate.interval()));
        }
        turn
    }

    /// A start is left while the bucket needs less than a period, less one start, to be full.
    fn next_turn(&self, key: &str, rate: Rate, now: Timestamp) -> Timestamp {
        let Some(full_at) = self.full_at.get(key) else { return now };
        let slack = rate.period.saturating_sub(rate.interval());
        earlier(*full_at, slack).max(now)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;

    fn waiter(limits: Vec<Limit>) -> Waiter {
        Waiter { job: JobId(Uuid::nil()), kind: "backup".into(), limits, has_turn: false }
    }

    fn at(seconds: i64) -> Timestamp {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn one_at_a_time_lets_in_one() {
        let mut house = House::default();
        let one = waiter(vec![Limit::one("database:main")]);
        assert_eq!(house.enter(&one, at(0)), Entry::Now);
        assert_eq!(house.enter(&one, at(0)), Entry::Wait("waits for room at `database:main`".into()));
        assert_eq!(house.enter(&waiter(vec![Limit::one("database:other")]), at(0)), Entry::Now);
    }

    #[test]
    fn who_finds_one_key_full_takes_no_room_at_the_others() {
        let mut house = House::default();
        house.inside.insert("b".into(), 1);
        let both = waiter(vec![Limit::one("a"), Limit::one("b")]);
        assert_eq!(house.enter(&both, at(0)), Entry::Wait("waits for room at `b`".into()));
        assert_eq!(house.enter(&waiter(vec![Limit::one("a")]), at(0)), Entry::Now);
    }

    #[test]
    fn a_pause_of_the_kind_or_of_a_key_keeps_it_out() {
        let one = waiter(vec![Limit::one("database:main")]);
        let mut house = House { paused_kinds: ["backup".to_owned()].into(), ..House::default() };
        assert_eq!(house.enter(&one, at(0)), Entry::Wait("the kind `backup` is paused".into()));
        house = House { paused_keys: ["database:main".to_owned()].into(), ..House::default() };
        assert_eq!(house.enter(&one, at(0)), Entry::Wait("the key `database:main` is paused".into()));
    }

    #[test]
    fn a_rate_lets_in_a_bucketful_at_once_and_then_one_for_each_interval() {
        let rate = Rate { starts: NonZeroU32::new(3).unwrap(), period: Duration::from_mins(1) };
        let rated = waiter(vec![Limit { rate: Some(rate), ..Limit::none("channel:ops") }]);
        let mut house = House::default();
        let entries: Vec<Entry> = (0..5).map(|_| house.enter(&rated, at(100))).collect();
        assert_eq!(entries, [Entry::Now, Entry::Now, Entry::Now, Entry::At(at(120)), Entry::At(at(140))]);
        // Two turns were promised; after a minute without anyone the bucket is nearly full again.
        let entries: Vec<Entry> = (0..3).map(|_| house.enter(&rated, at(180))).collect();
        assert_eq!(entries, [Entry::Now, Entry::Now, Entry::At(at(200))]);
    }

    #[test]
    fn who_has_a_turn_pays_no_second_one() {
        let rate = Rate { starts: NonZeroU32::MIN, period: Duration::from_mins(1) };
        let rated = waiter(vec![Limit { rate: Some(rate), ..Limit::none("channel:ops") }]);
        let mut house = House::default();
        assert_eq!(house.enter(&rated, at(0)), Entry::Now);
        assert_eq!(house.enter(&rated, at(0)), Entry::At(at(60)));
        assert_eq!(house.enter(&Waiter { has_turn: true, ..rated.clone() }, at(60)), Entry::Now);
        assert_eq!(house.enter(&rated, at(60)), Entry::At(at(120)));
    }

    #[test]
    fn who_must_wait_for_room_takes_no_turn() {
        let rate = Rate { starts: NonZeroU32::MIN, period: Duration::from_mins(1) };
        let limit = Limit { rate: Some(rate), ..Limit::one("channel:ops") };
        let mut house = House::default();
        house.inside.insert("channel:ops".into(), 1);
        assert!(matches!(house.enter(&waiter(vec![limit.clone()]), at(0)), Entry::Wait(_)));
        house.inside.clear();
        assert_eq!(house.enter(&waiter(vec![limit]), at(0)), Entry::Now);
    }
}
