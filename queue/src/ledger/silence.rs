//! Whether a source has gone silent, as both engines decide it.

use std::time::Duration;

use schemas::Timestamp;
use schemas::api::SourceView;
use sqlx::FromRow;

use super::rows::{micros, moment};
use super::{Listened, Silence};

/// Producers look each minute. Where the last look is longer ago nobody listened, and who is not listened to is not
/// silent: of that time so much counts.
const LOOKED: Duration = Duration::from_mins(5);

/// What the ledger holds of a source.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub(super) struct SourceRow {
    pub(super) name: String,
    pub(super) since: i64,
    pub(super) heard_at: Option<i64>,
    pub(super) looked_at: i64,
    pub(super) quiet: i64,
    pub(super) silent_at: Option<i64>,
}

impl SourceRow {
    /// A source that nobody has listened to yet.
    pub(super) fn new(name: &str, now: Timestamp) -> Self {
        let now = micros(now);
        Self { name: name.to_owned(), since: now, heard_at: None, looked_at: now, quiet: 0, silent_at: None }
    }

    /// Takes in what a producer heard; what changed by it. It falls silent once, and then it has to speak.
    pub(super) fn look(&mut self, listened: &Listened, now: Timestamp) -> Option<Silence> {
        let at = micros(now);
        let news = listened.heard_at.map(micros).filter(|heard| self.heard_at.is_none_or(|known| known < *heard));
        match news {
            Some(heard) => (self.heard_at, self.quiet) = (Some(heard), (at - heard).max(0)),
            None => self.quiet += (at - self.looked_at).clamp(0, span(LOOKED)),
        }
        self.looked_at = self.looked_at.max(at);
        match self.silent_at {
            Some(_) if news.is_none() && listened.silent_after.is_none() => Some(self.leave()),
            // Another producer may have heard it just before people were told.
            Some(_) if news.is_some() => {
                self.silent_at = None;
                Some(self.told(true))
            }
            None if listened.silent_after.is_some_and(|after| self.quiet >= span(after)) => {
                self.silent_at = Some(at);
                Some(self.told(false))
            }
            _ => None,
        }
    }

    /// Nobody is to be told of its silence any more, so the alarm about it ends. What was listened to counts no more, or a
    /// process that still has the configuration of before would raise it again at once.
    pub(super) fn leave(&mut self) -> Silence {
        (self.silent_at, self.quiet) = (None, 0);
        Silence { is_watched: false, ..self.told(true) }
    }

    fn told(&self, is_over: bool) -> Silence {
        Silence {
            source: self.name.clone(),
            heard_at: self.heard_at.map(moment),
            quiet: Duration::from_micros(self.quiet.unsigned_abs()),
            is_over,
            is_watched: true,
        }
    }

    pub(super) fn into_view(self) -> SourceView {
        SourceView {
            name: self.name,
            since: moment(self.since),
            heard_at: self.heard_at.map(moment),
            silent_at: self.silent_at.map(moment),
        }
    }
}

/// Who was looked at last before this is not configured any more.
pub(super) fn left_before(now: Timestamp) -> i64 {
    micros(now) - span(LOOKED)
}

fn span(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    const HOUR: i64 = 3600;

    /// What became of a source that is to be heard each two hours: looks at these seconds, each with what was heard by then.
    fn became(looks: &[(i64, Option<i64>)]) -> Vec<String> {
        let at = |seconds: i64| Timestamp::UNIX_EPOCH + TimeDelta::days(9) + TimeDelta::seconds(seconds);
        let mut row = SourceRow::new("github", at(0));
        let mut told = Vec::new();
        for (now, heard) in looks {
            let listened = Listened {
                source: "github".into(),
                heard_at: heard.map(at),
                silent_after: Some(Duration::from_hours(2)),
            };
            if let Some(silence) = row.look(&listened, at(*now)) {
                let what = if silence.is_over { "speaks" } else { "silent" };
                told.push(format!("{what} at {now}"));
            }
        }
        told
    }

    /// Looks each minute from one second to another, while nothing is heard but what was heard before.
    fn minutes(from: i64, to: i64, heard: Option<i64>) -> Vec<(i64, Option<i64>)> {
        (from / 60..=to / 60).map(|minute| (minute * 60, heard)).collect()
    }

    #[test]
    fn silence_is_told_once_and_its_end_once() {
        let mut looks = minutes(0, 5 * HOUR, None);
        looks.extend(minutes(5 * HOUR, 6 * HOUR, Some(5 * HOUR - 30)));
        looks.extend(minutes(6 * HOUR, 9 * HOUR, Some(5 * HOUR - 30)));
        assert_eq!(became(&looks), ["silent at 7200", "speaks at 18000", "silent at 25200"]);
    }

    #[test]
    fn who_is_heard_in_time_is_not_silent() {
        let looks: Vec<_> = (0..20 * 60).map(|minute| (minute * 60, Some(minute / 90 * 90 * 60))).collect();
        assert!(became(&looks).is_empty());
    }

    #[test]
    fn while_nobody_listens_nobody_is_silent_and_short_restarts_do_not_begin_anew() {
        // A night's downtime.
        let mut looks = minutes(0, HOUR, Some(0));
        looks.extend(minutes(12 * HOUR, 12 * HOUR + 1800, None));
        assert!(became(&looks).is_empty());
        looks.extend(minutes(12 * HOUR + 1860, 14 * HOUR, None));
        // An hour before it, five minutes of it, and fifty-five after it.
        assert_eq!(became(&looks), [format!("silent at {}", 12 * HOUR + 55 * 60)]);
    }

    #[test]
    fn one_of_several_producers_that_hears_it_is_enough() {
        let looks: Vec<_> =
            (0..600).map(|look| (look * 30, if look % 2 == 0 { Some(look * 30) } else { None })).collect();
        assert!(became(&looks).is_empty());
    }
}
