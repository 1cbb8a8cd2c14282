//! Cron expressions: five fields, minute to weekday, as everybody's cron reads them, with `L` (the last day of the month)
//! and `MON#1` (the first Monday).
//!
//! Read here and not by a library: what is said of a wrong one is half of its use, and all that is asked of a right one is
//! the next minute that it names on a clock without zones.

use chrono::{Datelike, Days, NaiveDate, NaiveDateTime, NaiveTime, Timelike};

use crate::Problem;

/// No expression is longer.
const LONGEST: usize = 200;

/// Between two times that an expression names lie at most so many days: from 29 February 2096 to that of 2104.
const LONGEST_WAIT: u32 = 8 * 366;

const MONTHS: [&str; 12] = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// What the shorthands stand for.
const SHORTHANDS: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// A cron expression, read. Sets are bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cron {
    text: String,
    pub(super) minutes: u64,
    pub(super) hours: u64,
    pub(super) days: u64,
    pub(super) last_day: bool,
    pub(super) months: u64,
    pub(super) weekdays: u64,
    /// `MON#1`: bit weekday * 8 + which.
    pub(super) nth: u64,
    pub(super) any_day: bool,
    pub(super) any_weekday: bool,
}

/// What a field counts.
struct Field {
    name: &'static str,
    from: u32,
    to: u32,
    names: &'static [&'static str],
}

const MINUTE: Field = Field { name: "minute", from: 0, to: 59, names: &[] };
const HOUR: Field = Field { name: "hour", from: 0, to: 23, names: &[] };
const DAY: Field = Field { name: "day of the month", from: 1, to: 31, names: &[] };
const MONTH: Field = Field { name: "month", from: 1, to: 12, names: &MONTHS };
/// 7 is Sunday too.
const WEEKDAY: Field = Field { name: "weekday", from: 0, to: 7, names: &WEEKDAYS };

impl Cron {
    /// Reads an expression; what is wrong with it, or that it names no time at all.
    pub(super) fn read(text: &str) -> Result<Self, Problem> {
        let text = text.trim();
        if text.len() > LONGEST {
            return Err(Problem::new(format!("a cron expression has at most {LONGEST} characters")));
        }
        let cron = Self::read_fields(text, in_full(text)?)?;
        let some_day = NaiveDate::from_ymd_opt(2000, 1, 1).unwrap_or_default().and_time(NaiveTime::MIN);
        if cron.after(some_day).is_none() {
            let problem = Problem::new(format!("`{text}` never comes: no month that it names has such a day"));
            return Err(problem.help("`L` is the last day of each month"));
        }
        Ok(cron)
    }

    fn read_fields(text: &str, full: &str) -> Result<Self, Problem> {
        let fields: Vec<&str> = full.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            let problem = Problem::new(format!("a cron expression has five fields, and `{text}` has {}", fields.len()));
            return Err(
                problem.help("minute, hour, day of the month, month, weekday: `0 2 * * *` is every day at 02:00")
            );
        };
        let (last, others): (Vec<&str>, Vec<&str>) = days.split(',').partition(|part| part.eq_ignore_ascii_case("l"));
        let (nth, named): (Vec<&str>, Vec<&str>) = weekdays.split(',').partition(|part| part.contains('#'));
        let named = if named.is_empty() { 0 } else { WEEKDAY.read(&named.join(","))? };
        Ok(Self {
            text: text.to_owned(),
            minutes: MINUTE.read(minutes)?,
            hours: HOUR.read(hours)?,
            days: if others.is_empty() { 0 } else { DAY.read(&others.join(","))? },
            last_day: !last.is_empty(),
            months: MONTH.read(months)?,
            // Sunday has two numbers.
            weekdays: (named | named >> 7) & 0x7f,
            nth: nth.into_iter().try_fold(0, |set, part| Ok::<_, Problem>(set | read_nth(part)?))?,
            any_day: days == "*",
            any_weekday: weekdays == "*",
        })
    }

    /// As it was written.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it leaves the hour open.
    pub(super) fn is_for_every_hour(&self) -> bool {
        self.hours == (1 << 24) - 1
    }

    /// The first minute after this one that it names.
    pub(super) fn after(&self, moment: NaiveDateTime) -> Option<NaiveDateTime> {
        let today = moment.date();
        let minute = moment.hour() * 60 + moment.minute() + 1;
        let later_today = self.names_day(today).then(|| self.minute_from(minute)).flatten();
        if let Some(minute) = later_today {
            return at(today, minute);
        }
        let days = (1..=LONGEST_WAIT).map_while(|days| today.checked_add_days(Days::new(days.into())));
        let day = days.into_iter().find(|day| self.names_day(*day))?;
        at(day, self.minute_from(0)?)
    }

    /// Where both the day of the month and the weekday say something, a day that either of them names is meant.
    fn names_day(&self, day: NaiveDate) -> bool {
        if self.months & (1 << day.month()) == 0 {
            return false;
        }
        let weekday = day.weekday().num_days_from_sunday();
        let which = (day.day() - 1) / 7 + 1;
        let is_last = day.succ_opt().is_none_or(|next| next.month() != day.month());
        let by_day = self.days & (1 << day.day()) != 0 || self.last_day && is_last;
        let by_weekday = self.weekdays & (1 << weekday) != 0 || self.nth & (1 << (weekday * 8 + which)) != 0;
        match (self.any_day, self.any_weekday) {
            (true, true) => true,
            (true, false) => by_weekday,
            (false, true) => by_day,
            (false, false) => by_day || by_weekday,
        }
    }

    /// The first minute of a day, this one or later, that it names.
    fn minute_from(&self, from: u32) -> Option<u32> {
        let named = |minute: &u32| self.hours & (1 << (minute / 60)) != 0 && self.minutes & (1 << (minute % 60)) != 0;
        (from..24 * 60).find(named)
    }
}

fn at(day: NaiveDate, minute: u32) -> Option<NaiveDateTime> {
    day.and_hms_opt(minute / 60, minute % 60, 0)
}

/// The five fields that a shorthand stands for.
fn in_full(text: &str) -> Result<&str, Problem> {
    if !text.starts_with('@') {
        return Ok(text);
    }
    let known = SHORTHANDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    let unknown = || Problem::unknown("shorthand", text, SHORTHANDS.iter().map(|(name, _)| *name));
    known.map(|(_, full)| *full).ok_or_else(unknown)
}

impl Field {
    /// `*`, `1,15`, `MON-FRI`, `*/5`, `10-50/20`: the set.
    fn read(&self, text: &str) -> Result<u64, Problem> {
        text.split(',').try_fold(0, |set, part| Ok(set | self.read_part(part)?))
    }

    fn read_part(&self, part: &str) -> Result<u64, Problem> {
        let (range, step) = match part.split_once('/') {
            None => (part, None),
            Some((range, step)) => (range, Some(self.read_step(part, step)?)),
        };
        let (from, to) = match (range, range.split_once('-')) {
            ("*", _) => (self.from, if self.is_weekday() { 6 } else { self.to }),
            (_, Some((from, to))) => self.ordered(part, self.number(from)?, self.number(to)?)?,
            _ if step.is_some() => {
                let help = format!("write `*/{0}`, or `{range}-{1}/{0}`", step.unwrap_or(1), self.to);
                return Err(Problem::new(format!("`{part}` has a step and no range to take it in")).help(help));
            }
            _ => (self.number(range)?, self.number(range)?),
        };
        Ok((from..=to).step_by(step.unwrap_or(1)).fold(0, |set, number| set | 1 << number))
    }

    fn read_step(&self, part: &str, step: &str) -> Result<usize, Problem> {
        let number = step.parse().ok().filter(|step| (1..=self.to as usize).contains(step));
        number.ok_or_else(|| Problem::new(format!("the step in `{part}` must be a whole number from 1 to {}", self.to)))
    }

    fn ordered(&self, part: &str, from: u32, to: u32) -> Result<(u32, u32), Problem> {
        // `FRI-SUN`: of its two numbers Sunday has the one that fits.
        let to = if self.is_weekday() && to == 0 && from > 0 { 7 } else { to };
        if from <= to {
            return Ok((from, to));
        }
        let help = format!("write two: from {from} to {}, and from {} to {to}", self.to, self.from);
        Err(Problem::new(format!("the range `{part}` runs backwards")).help(help))
    }

    fn number(&self, text: &str) -> Result<u32, Problem> {
        let by_name = || self.names.iter().zip(self.from..).find(|(name, _)| name.eq_ignore_ascii_case(text));
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if is_number { text.parse().ok() } else { by_name().map(|(_, number)| number) };
        number.filter(|number| (self.from..=self.to).contains(number)).ok_or_else(|| {
            let names = self.names.first().zip(self.names.last());
            let names = names.map_or_else(String::new, |(first, last)| format!(", or a name from {first} to {last}"));
            let problem = Problem::new(format!("`{text}` is no {}", self.name));
            problem.help(format!("it is a number from {} to {}{names}; `*` is every one", self.from, self.to))
        })
    }

    fn is_weekday(&self) -> bool {
        self.to == WEEKDAY.to
    }
}

fn read_nth(part: &str) -> Result<u64, Problem> {
    let (weekday, which) = part.split_once('#').unwrap_or((part, ""));
    let weekday = WEEKDAY.number(weekday)? % 7;
    let which: u32 = which.parse().ok().filter(|which| (1..=5).contains(which)).ok_or_else(|| {
        Problem::new(format!("`{part}` is no weekday of a month"))
            .help("`MON#1` is the first Monday, `MON#5` the fifth")
    })?;
    Ok(1 << (weekday * 8 + which))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(cron: &str, from: &str, count: usize) -> Vec<String> {
        let cron = Cron::read(cron).unwrap();
        let from: NaiveDateTime = from.parse().unwrap();
        let times = std::iter::successors(cron.after(from), |time| cron.after(*time));
        times.take(count).map(|time| time.format("%a %Y-%m-%d %H:%M").to_string()).collect()
    }

    #[test]
    fn an_expression_names_its_minutes() {
        let from = "2026-11-20T14:00:30";
        assert_eq!(times("0 2 * * *", from, 2), ["Sat 2026-11-21 02:00", "Sun 2026-11-22 02:00"]);
        assert_eq!(times("0 14 * * *", from, 1), ["Sat 2026-11-21 14:00"], "this minute is not after itself");
        assert_eq!(
            times("*/25 * * * *", from, 3),
            ["Fri 2026-11-20 14:25", "Fri 2026-11-20 14:50", "Fri 2026-11-20 15:00"]
        );
        assert_eq!(
            times("10-50/20 6,18 * * *", from, 3),
            ["Fri 2026-11-20 18:10", "Fri 2026-11-20 18:30", "Fri 2026-11-20 18:50"]
        );
        assert_eq!(times("0 0 * * mon-fri", from, 2), ["Mon 2026-11-23 00:00", "Tue 2026-11-24 00:00"]);
        assert_eq!(times("0 0 * * 7", from, 1), times("0 0 * * SUN", from, 1));
        assert_eq!(times("0 0 * * fri-sun", from, 2), ["Sat 2026-11-21 00:00", "Sun 2026-11-22 00:00"]);
        assert_eq!(
            times("0 0 L * *", from, 4),
            ["Mon 2026-11-30 00:00", "Thu 2026-12-31 00:00", "Sun 2027-01-31 00:00", "Sun 2027-02-28 00:00"]
        );
        assert_eq!(
            times("0 0 * * SUN#1,WED#5", from, 3),
            ["Sun 2026-12-06 00:00", "Wed 2026-12-30 00:00", "Sun 2027-01-03 00:00"]
        );
        assert_eq!(times("0 0 29 2 *", "2096-03-01T00:00:00", 1), ["Fri 2104-02-29 00:00"]);
        assert_eq!(
            times("0 0 13 * fri", from, 3),
            ["Fri 2026-11-27 00:00", "Fri 2026-12-04 00:00", "Fri 2026-12-11 00:00"]
        );
        assert_eq!(times("@weekly", from, 1), times("0 0 * * 0", from, 1));
    }

    #[test]
    fn the_seventh_is_in_the_first_week_and_each_tenth_day_is_not_any_day() {
        assert_eq!(times("0 0 * * SAT#1", "2026-11-01T00:00:00", 2), ["Sat 2026-11-07 00:00", "Sat 2026-12-05 00:00"]);
        assert_eq!(
            times("0 0 */10 * sun", "2026-11-20T00:00:00", 4),
            ["Sat 2026-11-21 00:00", "Sun 2026-11-22 00:00", "Sun 2026-11-29 00:00", "Tue 2026-12-01 00:00"]
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_write_instead() {
        let wrong = |text: &str| Cron::read(text).unwrap_err().to_string();
        let said = [
            ("", "has five fields, and `` has 0 (minute, hour"),
            ("0 0 2 * * *", "and `0 0 2 * * *` has 6"),
            ("60 * * * *", "`60` is no minute (it is a number from 0 to 59;"),
            ("0 24 * * *", "`24` is no hour"),
            ("0 0 0 * *", "`0` is no day of the month"),
            ("0 0 * FBE *", "`FBE` is no month (it is a number from 1 to 12, or a name from JAN to DEC;"),
            ("0 0 * * 8", "`8` is no weekday"),
            ("5/15 * * * *", "`5/15` has a step and no range to take it in (write `*/15`, or `5-59/15`)"),
            ("*/0 * * * *", "the step in `*/0` must be a whole number from 1 to 59"),
            ("30-10 * * * *", "the range `30-10` runs backwards (write two: from 30 to 59, and from 0 to 10)"),
            ("0 0 30 2 *", "`0 0 30 2 *` never comes"),
            ("0 0 31 2,4,6,9,11 *", "never comes"),
            ("0 0 * * MON#6", "`MON#6` is no weekday of a month"),
            ("@dayly", "did you mean `@daily`?"),
            ("+5 * * * *", "`+5` is no minute"),
            ("1,,2 * * * *", "`` is no minute"),
        ];
        for (text, part) in said {
            assert!(wrong(text).contains(part), "{text}: {}", wrong(text));
        }
        assert!(wrong(&"0,".repeat(200)).contains("at most 200"));
    }
}
