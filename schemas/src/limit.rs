//! Limits: how many jobs that share a key may be under way at once, and how often they may start.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Problem, period};

/// What a job must find room at before it becomes available. Jobs of any kind that name the same key exclude each other:
/// a migration and a backup of one database both name `database:main`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The name that jobs share.
    pub key: String,
    /// At most so many jobs that name the key are available or running at once. None: as many as there are.
    pub at_once: Option<NonZeroU32>,
    /// How often jobs that name the key may start, each attempt counted.
    pub rate: Option<Rate>,
    /// A job that comes takes the place of older ones of its kind that still wait for room here: they are cancelled.
    pub newest: bool,
}

impl Limit {
    /// Only one job that names the key at a time.
    pub fn one(key: impl Into<String>) -> Self {
        Self { key: key.into(), at_once: Some(NonZeroU32::MIN), rate: None, newest: false }
    }

    /// Names the key without a limit of its own: it counts only where the configuration sets one.
    pub fn none(key: impl Into<String>) -> Self {
        Self { key: key.into(), at_once: None, rate: None, newest: false }
    }

    /// This limit with what the configuration says about its key.
    #[must_use]
    pub fn configured(self, config: &LimitConfig) -> Self {
        Self {
            key: self.key,
            at_once: config.at_once.or(self.at_once),
            rate: config.rate.or(self.rate),
            newest: config.newest || self.newest,
        }
    }
}

/// What the configuration says about one key: `[limits."database:main"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitConfig {
    /// At most so many jobs that name the key are under way at once.
    #[serde(default)]
    pub at_once: Option<NonZeroU32>,
    /// How often they may start: `30/1m` is thirty a minute, in any order, after a pause all thirty at once.
    #[serde(default)]
    pub rate: Option<Rate>,
    /// Whether a job that comes takes the place of older ones of its kind that still wait here.
    #[serde(default)]
    pub newest: bool,
}

/// A rate over a longer time is a mistake: a year.
const LONGEST_PERIOD: Duration = Duration::from_hours(366 * 24);

/// So many starts in a period. A bucket of that many tokens, filled evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate {
    /// How many.
    pub starts: NonZeroU32,
    /// In which time.
    pub period: Duration,
}

impl Rate {
    /// The time in which the bucket gains one start.
    pub fn interval(&self) -> Duration {
        self.period / self.starts.get()
    }
}

impl FromStr for Rate {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let wrong = || {
            Problem::new(format!("`{text}` is not a rate"))
                .help("write how many in which time, for example `30/1m`, `1/s` or `100/12h`")
        };
        let (starts, period) = text.split_once('/').ok_or_else(wrong)?;
        // `1/s` is one each second: the number may be left out.
        let period = period::read(period).or_else(|| period::read(&format!("1{period}")));
        let period = period.filter(|period| !period.is_zero() && *period <= LONGEST_PERIOD).ok_or_else(wrong)?;
        Ok(Self { starts: starts.parse().map_err(|_| wrong())?, period })
    }
}

impl TryFrom<String> for Rate {
    type Error = Problem;

    fn try_from(text: String) -> Result<Self, Problem> {
        text.parse()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.starts, period::write(self.period))
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Rate".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^[1-9][0-9]*/[0-9]*[smhd]$", "examples": ["30/1m"]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_read_as_it_is_written() {
        for (text, starts, seconds, written) in [
            ("30/1m", 30, 60, "30/1m"),
            ("1/s", 1, 1, "1/1s"),
            ("100/12h", 100, 43_200, "100/12h"),
            ("5/90s", 5, 90, "5/90s"),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.starts.get(), rate.period.as_secs()), (starts, seconds), "{text}");
            assert_eq!(rate.to_string(), written);
        }
        for text in
            ["", "30", "30/", "0/1m", "30/0m", "30/1w", "-1/m", "1/-1m", "1/99999999999999999999d", "1/400d", "1/é"]
        {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
