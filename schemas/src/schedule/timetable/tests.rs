//! The rule about clocks that are put forward and back, by cases and against a walk over every minute of some years.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{Datelike, Timelike};
use proptest::prelude::*;

use super::*;

fn timetable(cron: &str, zone: &str) -> Timetable {
    Timetable::read(cron, zone).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The times after a moment, in UTC.
fn times(cron: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
    let times = timetable(cron, zone).times_after(at(from)).take(count).collect::<Vec<_>>();
    times.into_iter().map(|time| time.format("%d %H:%M").to_string()).collect()
}

#[test]
fn a_time_that_is_left_out_comes_once_after_the_gap() {
    // Berlin, 29 March 2026: 02:00 becomes 03:00, which is 01:00 UTC.
    let before = "2026-03-28T00:00:00Z";
    assert_eq!(times("30 2 * * *", "Europe/Berlin", before, 3), ["28 01:30", "29 01:00", "30 00:30"]);
    // All of them together, and with 03:00 itself; in the year after nothing is left out on that day.
    assert_eq!(times("*/20 2,3 29 3 *", "Europe/Berlin", before, 4), ["29 01:00", "29 01:20", "29 01:40", "29 00:00"]);
    // Lord Howe, 4 October 2026: 02:00 becomes 02:30, which is 15:30 UTC of the day before.
    assert_eq!(times("15 2 * * *", "Australia/Lord_Howe", "2026-10-02T16:00:00Z", 2), ["03 15:30", "04 15:15"]);
    // Apia, 2011: there was no 30 December. Its midnight is that of the 31st.
    let apia = times("0 12 30 12 *", "Pacific/Apia", "2011-12-01T00:00:00Z", 1);
    assert_eq!(apia, ["30 10:00"]);
}

#[test]
fn a_time_that_comes_twice_counts_once_the_first_time() {
    // Berlin, 25 October 2026: 03:00 becomes 02:00. 02:30 is 00:30 UTC, and again 01:30 UTC.
    let before = "2026-10-24T12:00:00Z";
    assert_eq!(times("30 2 * * *", "Europe/Berlin", before, 2), ["25 00:30", "26 01:30"]);
    assert_eq!(times("30 2,14 * * *", "Europe/Berlin", before, 3), ["24 12:30", "25 00:30", "25 13:30"]);
    assert_eq!(
        times("0 1-4 * * *", "America/New_York", "2026-11-01T04:30:00Z", 4),
        ["01 05:00", "01 07:00", "01 08:00", "01 09:00"]
    );
}

#[test]
fn what_leaves_the_hour_open_keeps_step_with_time() {
    let step = |zone: &str, from: &str, to: &str| {
        let (five, from, to) = (timetable("*/5 * * * *", zone), at(from), at(to));
        let times: Vec<_> = five.times_after(from).take_while(|time| *time <= to).collect();
        assert_eq!(i64::try_from(times.len()).unwrap(), (to - from).num_minutes() / 5, "{zone}");
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::minutes(5)), "{zone}");
    };
    step("Europe/Berlin", "2026-10-24T20:00:00Z", "2026-10-25T08:00:00Z");
    step("Europe/Berlin", "2026-03-28T20:00:00Z", "2026-03-29T08:00:00Z");
    step("Australia/Lord_Howe", "2026-04-04T10:00:00Z", "2026-04-05T00:00:00Z");
    let before = "2026-03-29T00:00:00Z";
    assert_eq!(times("30 * * * *", "Europe/Berlin", before, 2), ["29 00:30", "29 01:30"], "an hour apart, as always");
}

#[test]
fn the_latest_is_the_last_that_has_come() {
    let check = |cron: &str, until: &str, latest: Option<&str>| {
        assert_eq!(timetable(cron, "Europe/Berlin").latest(at(until)), latest.map(at), "{cron}");
    };
    check("0 2 * * *", "2026-11-20T01:00:00Z", Some("2026-11-20T01:00:00Z"));
    check("0 2 * * *", "2026-11-20T00:59:59Z", Some("2026-11-19T01:00:00Z"));
    check("* * * * *", "2026-11-20T00:59:59Z", Some("2026-11-20T00:59:00Z"));
    check("0 0 29 2 *", "2026-11-20T00:00:00Z", Some("2024-02-28T23:00:00Z"));
}

#[test]
fn a_wrong_zone_is_refused_with_a_suggestion() {
    let wrong = |zone: &str| Timetable::read("@daily", zone).unwrap_err()[0].to_string();
    assert_eq!(
        wrong("Europe/Berln"),
        "timezone: there is no time zone named `Europe/Berln` (did you mean `Europe/Berlin`?)"
    );
    assert!(wrong("!!").contains("such as `UTC` or `Europe/Berlin`"), "{}", wrong("!!"));
    assert_eq!(Timetable::read("* * *", "!!").unwrap_err().len(), 2, "both are said");
}

/// A simple expression of sets, read apart from the code under test.
#[derive(Clone, Debug)]
struct Sets {
    minutes: BTreeSet<u32>,
    /// None: `*`.
    hours: Option<BTreeSet<u32>>,
    weekdays: Option<BTreeSet<u32>>,
}

impl Sets {
    fn text(&self) -> String {
        let list = |set: &BTreeSet<u32>| set.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let open = |set: &Option<BTreeSet<u32>>| set.as_ref().map_or_else(|| "*".to_owned(), list);
        format!("{} {} * * {}", list(&self.minutes), open(&self.hours), open(&self.weekdays))
    }

    fn names(&self, wall: NaiveDateTime) -> bool {
        let is_in = |set: &Option<BTreeSet<u32>>, number: u32| set.as_ref().is_none_or(|set| set.contains(&number));
        self.minutes.contains(&wall.minute())
            && is_in(&self.hours, wall.hour())
            && is_in(&self.weekdays, wall.weekday().num_days_from_sunday())
    }

    /// The times from one moment to another by the rule, told by walking over every minute and looking at the wall.
    fn walk(&self, zone: Tz, from: Timestamp, to: Timestamp) -> Vec<Timestamp> {
        let wall = |moment: Timestamp| moment.with_timezone(&zone).naive_local();
        let minute = TimeDelta::minutes(1);
        let mut times = Vec::new();
        let (mut now, mut furthest) = (from - SHIFT, wall(from - SHIFT));
        let mut before = furthest - minute;
        while now <= to {
            let shown = wall(now);
            let comes = if self.hours.is_none() {
                self.names(shown)
            } else {
                // Each minute that the wall shows, or has left out, for the first time.
                let mut skipped = before + minute;
                let mut any = false;
                while skipped <= shown {
                    any |= skipped > furthest && self.names(skipped);
                    skipped += minute;
                }
                any
            };
            if comes && now > from {
                times.push(now);
            }
            furthest = furthest.max(shown);
            before = shown;
            now += minute;
        }
        times
    }
}

const ZONES: [Tz; 6] = [
    Tz::Europe__Berlin,
    Tz::America__New_York,
    Tz::Australia__Lord_Howe,
    Tz::Africa__Casablanca,
    Tz::Asia__Kolkata,
    Tz::America__Havana,
];

fn sets() -> impl Strategy<Value = Sets> {
    let some = |below: u32, most: usize| prop::collection::btree_set(0..below, 1..most);
    // Hours at which clocks are put forward and back are drawn more often.
    let hours = prop_oneof![prop::collection::btree_set(0..4_u32, 1..4), prop::collection::btree_set(0..24_u32, 1..5)];
    (some(60, 4), prop::option::weighted(0.7, hours), prop::option::weighted(0.2, some(7, 6)))
        .prop_map(|(minutes, hours, weekdays)| Sets { minutes, hours, weekdays })
}

/// The days around which a zone changes its clocks, between 2024 and 2029.
fn changes(zone: Tz) -> Vec<Timestamp> {
    let offset = |moment: Timestamp| zone.offset_from_utc_datetime(&moment.naive_utc()).fix();
    let days = (0..6 * 365).map(|day| at("2024-01-01T00:00:00Z") + TimeDelta::days(day));
    days.filter(|day| offset(*day) != offset(*day + TimeDelta::days(1))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Never one missing, never one twice, and each at its moment.
    #[test]
    fn the_times_are_those_of_a_walk_over_every_minute(sets in sets(), zone in 0..ZONES.len(), at_change in 0..12_usize) {
        let zone = ZONES[zone];
        let changes = changes(zone);
        let middle = changes.get(at_change % changes.len().max(1)).copied().unwrap_or_else(|| at("2026-03-28T00:00:00Z"));
        let (from, to) = (middle - TimeDelta::days(2), middle + TimeDelta::days(3));
        let timetable = timetable(&sets.text(), zone.name());
        let told: Vec<Timestamp> = timetable.times_after(from).take_while(|time| *time <= to).collect();
        prop_assert_eq!(&told, &sets.walk(zone, from, to), "{} {}", sets.text(), zone);
    }

    /// From wherever it is asked, the next time is the same: no producer that starts at another moment sees others.
    #[test]
    fn the_next_time_is_the_same_wherever_it_is_asked_from(sets in sets(), zone in 0..ZONES.len(), start in 0..2_000_000_i64, ask in 0..1000_u32) {
        let timetable = timetable(&sets.text(), ZONES[zone].name());
        let from = at("2024-01-01T00:00:00Z") + TimeDelta::minutes(start);
        let next = timetable.after(from).unwrap();
        let between = from + (next - from) * i32::try_from(ask).unwrap() / 1000;
        prop_assert_eq!(timetable.after(between), Some(next));
        prop_assert_eq!(timetable.latest(next), Some(next));
    }

    /// Over years: strictly increasing, and each day of the wall that it names has its time exactly once.
    #[test]
    fn over_years_each_day_has_its_time_once(hour in 0..24_u32, minute in 0..60_u32, zone in 0..ZONES.len()) {
        let zone = ZONES[zone];
        let timetable = timetable(&format!("{minute} {hour} * * *"), zone.name());
        let times: Vec<Timestamp> = timetable.times_after(at("2024-01-01T00:00:00Z")).take(3 * 365).collect();
        prop_assert!(times.windows(2).all(|pair| pair[0] < pair[1]));
        let mut days: BTreeMap<chrono::NaiveDate, u32> = BTreeMap::new();
        for time in &times {
            *days.entry(time.with_timezone(&zone).date_naive()).or_default() += 1;
        }
        prop_assert_eq!(days.len(), times.len());
        let (first, last) = (days.keys().next().unwrap(), days.keys().last().unwrap());
        prop_assert_eq!((*last - *first).num_days() + 1, i64::try_from(times.len()).unwrap());
    }

    /// Whatever is written, reading it ends, and what is right has a next time.
    #[test]
    fn whatever_is_written_is_read_or_refused(text in "[0-9*/,#LMONFRI@ -]{0,40}") {
        if let Ok(timetable) = Timetable::read(&text, "Europe/Berlin") {
            prop_assert!(timetable.after(at("2026-01-01T00:00:00Z")).is_some());
            prop_assert!(!timetable.words().is_empty());
        }
    }
}
