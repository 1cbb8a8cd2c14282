//! Cron expressions in plain words, where they are of a shape that has short ones.

use super::cron::Cron;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const WHICH: [&str; 5] = ["first", "second", "third", "fourth", "fifth"];

/// More times of a day than this are not listed.
const MOST_TIMES: usize = 4;

/// The words, or the expression itself.
pub(super) fn of(cron: &Cron) -> String {
    words(cron).unwrap_or_else(|| cron.text().to_owned())
}

fn words(cron: &Cron) -> Option<String> {
    let days = days(cron)?;
    match often(cron) {
        Some(often) if days == "every day" => Some(often),
        Some(often) => Some(format!("{often}, {days}")),
        None => Some(format!("{days} at {}", times(cron)?)),
    }
}

/// `every 5 minutes`, for what leaves the hour open or takes each so many.
fn often(cron: &Cron) -> Option<String> {
    let minutes = numbers(cron.minutes, 0, 59);
    if cron.is_for_every_hour() {
        return match (&minutes[..], every(&minutes, 60)) {
            (_, Some(1)) => Some("every minute".to_owned()),
            ([0], _) => Some("every hour".to_owned()),
            ([minute], _) => Some(format!("every hour at minute {minute}")),
            (_, Some(step)) => Some(format!("every {step} minutes")),
            _ => None,
        };
    }
    let step = every(&numbers(cron.hours, 0, 23), 24).filter(|step| *step < 12)?;
    match minutes[..] {
        [0] => Some(format!("every {step} hours")),
        [minute] => Some(format!("every {step} hours at minute {minute}")),
        _ => None,
    }
}

/// The step, where the numbers begin with 0 and fill a round evenly.
fn every(numbers: &[u32], round: u32) -> Option<u32> {
    let step = round / u32::try_from(numbers.len()).ok().filter(|count| *count > 1)?;
    let evenly = numbers.iter().zip(0..).all(|(number, place)| *number == place * step);
    (evenly && step * u32::try_from(numbers.len()).ok()? == round).then_some(step)
}

/// `02:00 and 14:00`.
fn times(cron: &Cron) -> Option<String> {
    let (hours, minutes) = (numbers(cron.hours, 0, 23), numbers(cron.minutes, 0, 59));
    if hours.len() * minutes.len() > MOST_TIMES {
        return None;
    }
    let times = hours.iter().flat_map(|hour| minutes.iter().map(move |minute| format!("{hour:02}:{minute:02}")));
    Some(list(&times.collect::<Vec<_>>()))
}

fn days(cron: &Cron) -> Option<String> {
    let months = numbers(cron.months, 1, 12);
    let all_year = months.len() == 12;
    let months: Vec<&str> = months.iter().map(|month| MONTHS[*month as usize - 1]).collect();
    let of_months = if all_year { "each month".to_owned() } else { list(&months) };
    let days = match (cron.any_day, cron.any_weekday) {
        (true, true) => {
            return Some(if all_year { "every day".to_owned() } else { format!("every day in {of_months}") });
        }
        (true, false) => weekdays(cron, all_year)?,
        (false, true) => return days_of_months(cron, &of_months),
        // A day that either names: short words would be taken for both.
        (false, false) => return None,
    };
    Some(if all_year { days } else { format!("{days} in {of_months}") })
}

fn days_of_months(cron: &Cron, of_months: &str) -> Option<String> {
    let days: Vec<String> = numbers(cron.days, 1, 31).iter().map(ToString::to_string).collect();
    match (&days[..], cron.last_day) {
        ([], true) => Some(format!("on the last day of {of_months}")),
        ([day], false) => Some(format!("on day {day} of {of_months}")),
        (days, false) if days.len() <= MOST_TIMES => Some(format!("on days {} of {of_months}", list(days))),
        _ => None,
    }
}

fn weekdays(cron: &Cron, all_year: bool) -> Option<String> {
    let named: Vec<&str> = numbers(cron.weekdays, 0, 6).iter().map(|day| WEEKDAYS[*day as usize]).collect();
    match (&numbers(cron.weekdays, 0, 6)[..], cron.nth) {
        ([], nth) if all_year && nth.is_power_of_two() => {
            let (weekday, which) = (nth.trailing_zeros() / 8, nth.trailing_zeros() % 8);
            Some(format!("on the {} {} of each month", WHICH[which as usize - 1], WEEKDAYS[weekday as usize]))
        }
        ([1, 2, 3, 4, 5], 0) => Some("Monday to Friday".to_owned()),
        ([0, 1, 2, 3, 4, 5, 6], 0) => Some("every day".to_owned()),
        ([_, ..], 0) => Some(format!("every {}", list(&named))),
        _ => None,
    }
}

fn numbers(set: u64, from: u32, to: u32) -> Vec<u32> {
    (from..=to).filter(|number| set & (1 << number) != 0).collect()
}

/// `a, b and c`.
fn list<T: AsRef<str>>(items: &[T]) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    match items.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => items.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_shapes_have_plain_words_and_others_their_expression() {
        for (cron, words) in [
            ("0 2 * * *", "every day at 02:00"),
            ("30 2,14 * * *", "every day at 02:30 and 14:30"),
            ("* * * * *", "every minute"),
            ("*/5 * * * *", "every 5 minutes"),
            ("0,30 * * * *", "every 30 minutes"),
            ("*/7 * * * *", "*/7 * * * *"),
            ("@hourly", "every hour"),
            ("15 * * * *", "every hour at minute 15"),
            ("0 */6 * * *", "every 6 hours"),
            ("10 */2 * * *", "every 2 hours at minute 10"),
            ("0 0,12 * * *", "every day at 00:00 and 12:00"),
            ("0 */5 * * *", "0 */5 * * *"),
            ("0 3 * * SUN", "every Sunday at 03:00"),
            ("0 8 * * 1-5", "Monday to Friday at 08:00"),
            ("0 8 * * 6,7", "every Sunday and Saturday at 08:00"),
            ("*/10 * * * 1-5", "every 10 minutes, Monday to Friday"),
            ("0 4 1 * *", "on day 1 of each month at 04:00"),
            ("0 4 1,15 * *", "on days 1 and 15 of each month at 04:00"),
            ("0 4 L * *", "on the last day of each month at 04:00"),
            ("0 4 * * SUN#1", "on the first Sunday of each month at 04:00"),
            ("@yearly", "on day 1 of January at 00:00"),
            ("0 4 * 6-8 MON", "every Monday in June, July and August at 04:00"),
            ("0 4 13 * FRI", "0 4 13 * FRI"),
            ("1-9 2 * * *", "1-9 2 * * *"),
        ] {
            assert_eq!(of(&Cron::read(cron).unwrap()), words, "{cron}");
        }
    }
}
