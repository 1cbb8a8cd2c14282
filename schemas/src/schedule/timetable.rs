//! When a schedule's time comes: a cron expression in a time zone, as moments.
//!
//! Where clocks are put forward and back, by the expression's hours:
//!
//! - It names hours (`30 2 * * *`): it keeps to the clock on the wall. A time that is left out comes once, the moment after
//!   the gap; several that are left out come together, once. A time that comes twice counts once, the first time.
//! - It leaves the hour open (`*/5 * * * *`): it keeps step with time itself. It comes whenever the clock shows its minute,
//!   so in both of the hours that have one name, and an hour that is left out was never there. Every five minutes stays
//!   every five minutes.

use std::fmt;

use chrono::{DateTime, LocalResult, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};

use super::cron::Cron;
use super::words;
use crate::{Problem, Timestamp};

/// Clocks are put forward or back by less: two hours are the most there is.
const SHIFT: TimeDelta = TimeDelta::hours(3);

/// No zone puts its clocks forward and back within this (Morocco does for Ramadan, a month).
const SOON: TimeDelta = TimeDelta::days(20);

/// The moments at which zones put their clocks forward lie within this of where they would be without zones.
const OFFSETS: TimeDelta = TimeDelta::hours(26);

/// How far back the latest time is looked for, step by step.
const LOOK_BACK: [TimeDelta; 5] =
    [TimeDelta::hours(1), TimeDelta::days(1), TimeDelta::days(32), TimeDelta::days(400), TimeDelta::days(3000)];

/// A cron expression in a time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timetable {
    cron: Cron,
    zone: Tz,
}

impl Timetable {
    /// Reads an expression and an IANA zone; what is wrong stands below `cron` and `timezone`.
    pub fn read(cron: &str, zone: &str) -> Result<Self, Vec<Problem>> {
        match (Cron::read(cron), read_zone(zone)) {
            (Ok(cron), Ok(zone)) => Ok(Self { cron, zone }),
            (cron, zone) => {
                let wrong = [cron.err().map(|it| it.within("cron")), zone.err().map(|it| it.within("timezone"))];
                Err(wrong.into_iter().flatten().collect())
            }
        }
    }

    /// The first of its times after a moment.
    pub fn after(&self, moment: Timestamp) -> Option<Timestamp> {
        self.soon_after(moment).or_else(|| self.after_changes(moment))
    }

    /// The same where no clock is changed meanwhile: most times are the next on a wall that goes on evenly.
    fn soon_after(&self, moment: Timestamp) -> Option<Timestamp> {
        let offset = self.offset(moment);
        let next = self.cron.after(self.wall(moment))?.and_utc().checked_sub_signed(TimeDelta::seconds(offset))?;
        let stays = |at: Option<Timestamp>| at.is_some_and(|at| self.offset(at) == offset);
        let is_soon = next - moment < SOON;
        let stayed = is_soon && stays(moment.checked_sub_signed(SHIFT)) && stays(next.checked_add_signed(SHIFT));
        stayed.then_some(next)
    }

    /// The first of all moments that the times on the wall stand for, also where it goes on unevenly.
    fn after_changes(&self, moment: Timestamp) -> Option<Timestamp> {
        let mut best: Option<Timestamp> = None;
        let mut wall = self.wall(moment).checked_sub_signed(SHIFT)?;
        while let Some(next) = self.cron.after(wall) {
            // Further on the wall no moment comes earlier.
            if best.is_some_and(|best| next > self.wall(best) + SHIFT) {
                break;
            }
            let times = self.moments(next).into_iter().flatten().filter(|time| *time > moment);
            best = times.chain(best).min();
            wall = next;
        }
        best
    }

    /// Its times after a moment, one after the other.
    pub fn times_after(&self, moment: Timestamp) -> impl Iterator<Item = Timestamp> {
        std::iter::successors(self.after(moment), |time| self.after(*time))
    }

    /// The last of its times that is not after a moment.
    pub fn latest(&self, until: Timestamp) -> Option<Timestamp> {
        let within = |back: TimeDelta| {
            let from = until.checked_sub_signed(back)?;
            self.times_after(from).take_while(|time| *time <= until).last()
        };
        LOOK_BACK.into_iter().find_map(within)
    }

    /// The cron expression, as it was written.
    pub fn cron(&self) -> &str {
        self.cron.text()
    }

    /// The zone's name.
    pub fn zone(&self) -> &'static str {
        self.zone.name()
    }

    /// What it says, in plain words; the expression itself where that would be too long.
    pub fn words(&self) -> String {
        words::of(&self.cron)
    }

    /// A moment as the clock on the wall shows it: `2026-03-29 03:00 CEST`.
    pub fn local(&self, moment: Timestamp) -> String {
        moment.with_timezone(&self.zone).format("%Y-%m-%d %H:%M %Z").to_string()
    }

    fn wall(&self, moment: Timestamp) -> NaiveDateTime {
        moment.with_timezone(&self.zone).naive_local()
    }

    /// The zone's offset, in seconds.
    fn offset(&self, moment: Timestamp) -> i64 {
        self.zone.offset_from_utc_datetime(&moment.naive_utc()).fix().local_minus_utc().into()
    }

    /// The moments at which the clock on the wall shows a time, or stands for it.
    fn moments(&self, wall: NaiveDateTime) -> [Option<Timestamp>; 2] {
        let every_hour = self.cron.is_for_every_hour();
        match self.zone.from_local_datetime(&wall) {
            LocalResult::Single(time) => [Some(time.to_utc()), None],
            LocalResult::Ambiguous(first, second) => [Some(first.to_utc()), every_hour.then(|| second.to_utc())],
            LocalResult::None if every_hour => [None, None],
            LocalResult::None => [self.after_gap(wall), None],
        }
    }

    /// The first moment after the gap that a time on the wall falls into.
    fn after_gap(&self, wall: NaiveDateTime) -> Option<Timestamp> {
        let offset = |seconds: i64| self.offset(DateTime::from_timestamp(seconds, 0).unwrap_or_default());
        let about = wall.and_utc().timestamp();
        let (mut before, mut after) = (about - OFFSETS.num_seconds(), about + OFFSETS.num_seconds());
        while after - before > 1 {
            let middle = before.midpoint(after);
            if middle + offset(middle) > about { after = middle } else { before = middle }
        }
        DateTime::<Utc>::from_timestamp(after, 0)
    }
}

/// Its whole definition: where this differs, it is another timetable.
impl fmt::Display for Timetable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.cron.text(), self.zone.name())
    }
}

fn read_zone(name: &str) -> Result<Tz, Problem> {
    name.parse().map_err(|_| {
        let mut problem = Problem::unknown("time zone", name, TZ_VARIANTS.iter().map(|zone| zone.name()));
        // All six hundred names would help nobody.
        if problem.help.as_ref().is_some_and(|help| help.starts_with("known: ")) {
            problem.help = Some("write the name of an IANA zone, such as `UTC` or `Europe/Berlin`".into());
        }
        problem
    })
}

#[cfg(test)]
mod tests;
