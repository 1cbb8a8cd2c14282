//! What is to be settled next of a schedule: a time that is fired, or times that were missed. Pure.

use std::time::Duration;

use queue::MissedTimes;
use queue::clock::earlier;
use schemas::{CatchUp, Schedule, Timestamp};

/// Of missed times so many are counted: nobody reads a larger number differently.
const COUNTED: usize = 1000;

/// What is to be settled next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This nominal time is fired.
    Fire(Timestamp),
    /// These are recorded as missed.
    Miss(Missed),
}

/// Times that were missed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missed {
    pub(super) times: MissedTimes,
    /// Whether people are told.
    pub(super) tell: bool,
}

impl Next {
    /// How many nominal times it settles.
    pub(super) fn times(&self) -> u32 {
        match self {
            Self::Fire(_) => 1,
            Self::Miss(missed) => missed.times.times,
        }
    }

    /// Up to which nominal time it settles.
    pub(super) fn last(&self) -> Timestamp {
        match self {
            Self::Fire(nominal) => *nominal,
            Self::Miss(missed) => missed.times.last,
        }
    }
}

/// What is next after `settled`, if it is time: first what is recorded as missed, then what is fired, the oldest first.
///
/// The newest of the times that have come is fired if it is late by less than `grace`; whether others are, and which,
/// says `catch_up`.
pub(super) fn next(schedule: &Schedule, settled: Timestamp, now: Timestamp, grace: Duration) -> Option<Next> {
    let table = &schedule.timetable;
    let first = table.after(settled).filter(|first| schedule.due(*first) <= now)?;
    let second = table.after(first).filter(|second| schedule.due(*second) <= now);
    let in_time = |nominal: Timestamp| schedule.due(nominal) > earlier(now, grace);
    if second.is_none() && (in_time(first) || schedule.catch_up != CatchUp::Skip) {
        return Some(Next::Fire(first));
    }
    // Of jittered times the newest may not be due yet.
    let newest = table.latest(now)?;
    let newest =
        if schedule.due(newest) <= now { newest } else { table.latest(newest - chrono::TimeDelta::seconds(1))? };
    let kept = match schedule.catch_up {
        CatchUp::Skip => usize::from(in_time(newest)),
        CatchUp::Once => 1,
        CatchUp::All => schedule.catch_up_limit,
    };
    let fired_from = first_of_last(schedule, first, newest, kept);
    if fired_from == Some(first) {
        return Some(Next::Fire(first));
    }
    Some(Next::Miss(missed(schedule, first, fired_from, newest)))
}

/// What came of a schedule after `settled`, for whatever reason nobody is to make up for it; none where nothing came.
pub fn since(schedule: &Schedule, settled: Timestamp, now: Timestamp, reason: &str) -> Option<MissedTimes> {
    let has_come = |time: &Timestamp| schedule.due(*time) <= now;
    let first = schedule.timetable.after(settled).filter(has_come)?;
    let newest = schedule.timetable.latest(now).filter(|newest| *newest > first).unwrap_or(first);
    // Of jittered times the newest may not be due yet.
    let before = || schedule.timetable.latest(newest - chrono::TimeDelta::seconds(1));
    let last = if has_come(&newest) { newest } else { before().filter(|last| *last > first).unwrap_or(first) };
    let counted = schedule.timetable.times_after(settled).take_while(|time| *time <= last).take(COUNTED).count();
    let times = u32::try_from(counted).unwrap_or(u32::MAX);
    Some(MissedTimes { schedule: schedule.name.clone(), first, last, times, reason: reason.to_owned() })
}

/// The oldest of the last `count` times from `first` to `newest`; none where that is none of them.
fn first_of_last(schedule: &Schedule, first: Timestamp, newest: Timestamp, count: usize) -> Option<Timestamp> {
    let mut oldest = (count > 0).then_some(newest)?;
    for _ in 1..count {
        match schedule.timetable.latest(oldest - chrono::TimeDelta::seconds(1)) {
            Some(before) if before >= first => oldest = before,
            _ => break,
        }
    }
    Some(oldest)
}

/// The times from `first` on that are not fired.
fn missed(schedule: &Schedule, first: Timestamp, fired_from: Option<Timestamp>, newest: Timestamp) -> Missed {
    let is_missed = |time: &Timestamp| fired_from.map_or(*time <= newest, |from| *time < from);
    let counted = schedule.timetable.times_after(first).take_while(is_missed).take(COUNTED).count() + 1;
    let before = |from: Timestamp| schedule.timetable.latest(from - chrono::TimeDelta::seconds(1));
    let last = fired_from.map_or(Some(newest), before).unwrap_or(first);
    let (reason, tell) = match schedule.catch_up {
        CatchUp::Skip => ("no producer was there to fire it, and catch_up = \"skip\"".to_owned(), true),
        CatchUp::Once => ("no producer was there to fire it; the newest one is made up for".to_owned(), false),
        CatchUp::All => {
            let most = schedule.catch_up_limit;
            (format!("no producer was there to fire it, and catch_up_limit = {most}"), true)
        }
    };
    let times = u32::try_from(counted).unwrap_or(u32::MAX);
    Missed { times: MissedTimes { schedule: schedule.name.clone(), first, last, times, reason }, tell }
}

#[cfg(test)]
mod tests {
    use schemas::{Overlap, Starts, Template, Timetable};
    use serde_json::json;

    use super::*;

    const GRACE: Duration = Duration::from_mins(10);

    fn schedule(cron: &str, catch_up: CatchUp) -> Schedule {
        Schedule {
            name: "nightly".into(),
            timetable: Timetable::read(cron, "UTC").unwrap(),
            catch_up,
            catch_up_limit: 3,
            overlap: Overlap::default(),
            jitter: Duration::ZERO,
            starts: Starts::Job("noop".into()),
            with: Template::parse(json!({})).unwrap(),
        }
    }

    /// What becomes of all times from one moment to another: `fire 02:00`, `miss 02:00-04:00 3`.
    fn settled(schedule: &Schedule, from: &str, now: &str) -> Vec<String> {
        let (mut settled, now) = (from.parse().unwrap(), now.parse().unwrap());
        let said = |moment: Timestamp| moment.format("%H:%M").to_string();
        let mut all = Vec::new();
        while let Some(next) = next(schedule, settled, now, GRACE) {
            assert!(next.last() > settled, "it goes on");
            settled = next.last();
            all.push(match next {
                Next::Fire(nominal) => format!("fire {}", said(nominal)),
                Next::Miss(Missed { times, tell }) => {
                    let told = if tell { " told" } else { "" };
                    format!("miss {}-{} {}{told}", said(times.first), said(times.last), times.times)
                }
            });
        }
        all
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn what_is_in_time_fires_whatever_is_caught_up_with() {
        for catch_up in [CatchUp::Skip, CatchUp::Once, CatchUp::All] {
            let hourly = schedule("0 * * * *", catch_up);
            assert_eq!(settled(&hourly, "2026-11-20T01:30:00Z", "2026-11-20T01:59:59Z"), NONE);
            assert_eq!(settled(&hourly, "2026-11-20T01:30:00Z", "2026-11-20T02:00:00Z"), ["fire 02:00"]);
            assert_eq!(settled(&hourly, "2026-11-20T01:30:00Z", "2026-11-20T02:09:59Z"), ["fire 02:00"], "a restart");
            assert_eq!(settled(&hourly, "2026-11-20T02:00:00Z", "2026-11-20T02:09:59Z"), NONE);
        }
    }

    #[test]
    fn what_was_missed_is_skipped_or_made_up_for() {
        let (from, now) = ("2026-11-20T01:30:00Z", "2026-11-20T06:30:00Z");
        assert_eq!(settled(&schedule("0 * * * *", CatchUp::Skip), from, now), ["miss 02:00-06:00 5 told"]);
        assert_eq!(settled(&schedule("0 * * * *", CatchUp::Once), from, now), ["miss 02:00-05:00 4", "fire 06:00"]);
        let all = ["miss 02:00-03:00 2 told", "fire 04:00", "fire 05:00", "fire 06:00"];
        assert_eq!(settled(&schedule("0 * * * *", CatchUp::All), from, now), all);
        let some = settled(&schedule("0 * * * *", CatchUp::All), "2026-11-20T04:30:00Z", now);
        assert_eq!(some, ["fire 05:00", "fire 06:00"]);
        // The newest is only late.
        let late = "2026-11-20T06:05:00Z";
        assert_eq!(
            settled(&schedule("0 * * * *", CatchUp::Skip), from, late),
            ["miss 02:00-05:00 4 told", "fire 06:00"]
        );
        assert_eq!(settled(&schedule("0 2 * * *", CatchUp::Skip), from, now), ["miss 02:00-02:00 1 told"]);
        assert_eq!(settled(&schedule("0 2 * * *", CatchUp::Once), from, now), ["fire 02:00"]);
    }

    #[test]
    fn what_came_since_is_said_whole_whatever_is_made_up_for() {
        let said = |cron: &str, now: &str| {
            let (settled, now) = ("2026-11-20T01:30:00Z".parse().unwrap(), now.parse().unwrap());
            let times = since(&schedule(cron, CatchUp::All), settled, now, "why")?;
            let said = |moment: Timestamp| moment.format("%H:%M").to_string();
            Some(format!("{}-{} {}", said(times.first), said(times.last), times.times))
        };
        assert_eq!(said("0 * * * *", "2026-11-20T01:59:59Z"), None);
        assert_eq!(said("0 * * * *", "2026-11-20T02:00:00Z").unwrap(), "02:00-02:00 1");
        assert_eq!(said("0 * * * *", "2026-11-20T05:59:00Z").unwrap(), "02:00-05:00 4");
        assert_eq!(said("0 3 * * *", "2026-11-20T05:59:00Z").unwrap(), "03:00-03:00 1");
    }

    #[test]
    fn a_year_of_minutes_is_counted_only_so_far() {
        let minutes = schedule("* * * * *", CatchUp::Skip);
        let all = settled(&minutes, "2025-11-20T00:00:30Z", "2026-11-20T00:00:30Z");
        assert_eq!(all, ["miss 00:01-23:59 1001 told", "fire 00:00"]);
    }

    #[test]
    fn with_jitter_each_time_is_settled_once_and_never_before_it_is_due() {
        let jittered = Schedule { jitter: Duration::from_mins(50), ..schedule("0 * * * *", CatchUp::All) };
        let start: Timestamp = "2026-11-20T00:30:00Z".parse().unwrap();
        let (mut settled, mut fired) = (start, Vec::new());
        for minute in 0..48 * 60 {
            let now = start + chrono::TimeDelta::minutes(minute);
            while let Some(next) = next(&jittered, settled, now, GRACE) {
                let Next::Fire(nominal) = next else { panic!("nothing is missed: {next:?}") };
                assert!(jittered.due(nominal) <= now);
                settled = nominal;
                fired.push(nominal);
            }
        }
        let expected: Vec<Timestamp> = jittered.timetable.times_after(start).take(fired.len()).collect();
        assert_eq!(fired, expected);
        assert!(fired.len() >= 46, "{}", fired.len());
    }
}
