//! Which jobs a command is about.

use std::str::FromStr;

use chrono::Utc;
use clap::builder::PossibleValuesParser;
use schemas::api::ReplayFilter;
use schemas::{JobState, Timestamp};

use crate::config::Span;

/// The filter of `jobs list` and `jobs replay`.
#[derive(Debug, clap::Args)]
pub(crate) struct Filter {
    /// Only in this state.
    #[arg(long, value_parser = PossibleValuesParser::new(JobState::ALL.map(JobState::as_str)))]
    state: Option<String>,
    /// Only of this kind.
    #[arg(long)]
    kind: Option<String>,
    /// Only of this queue.
    #[arg(long)]
    queue: Option<String>,
    /// Only stored since then: a time such as 2026-11-20T02:00:00Z, or how long ago, such as 90m, 12h or 2d.
    #[arg(long, value_name = "TIME")]
    since: Option<When>,
    /// Only stored before then.
    #[arg(long, value_name = "TIME")]
    until: Option<When>,
}

impl Filter {
    /// Whether it leaves anything out.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { state, kind, queue, since, until } = self;
        state.is_none() && kind.is_none() && queue.is_none() && since.is_none() && until.is_none()
    }

    /// As the API takes it behind the question mark.
    pub(crate) fn pairs(self) -> impl Iterator<Item = (&'static str, String)> {
        let time = |when: When| when.0.to_rfc3339();
        let pairs = [
            ("state", self.state),
            ("kind", self.kind),
            ("queue", self.queue),
            ("since", self.since.map(time)),
            ("until", self.until.map(time)),
        ];
        pairs.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }

    /// As the API takes it for a replay.
    pub(crate) fn for_replay(self) -> ReplayFilter {
        let state = self.state.and_then(|word| JobState::ALL.into_iter().find(|state| state.as_str() == word));
        let time = |when: When| when.0;
        ReplayFilter {
            state,
            kind: self.kind,
            queue: self.queue,
            since: self.since.map(time),
            until: self.until.map(time),
        }
    }
}

/// A moment, or how long ago it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct When(Timestamp);

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(moment) = text.parse() {
            return Ok(Self(moment));
        }
        let ago = text.parse::<Span>().ok().and_then(|span| chrono::Duration::from_std(span.0).ok());
        let then = ago.and_then(|ago| Utc::now().checked_sub_signed(ago));
        then.map(Self).ok_or_else(|| "write a time such as 2026-11-20T02:00:00Z, or how long ago, such as 12h".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_moment_or_so_long_ago() {
        assert_eq!("2026-11-20T02:00:00Z".parse::<When>().unwrap().0.timestamp(), 1_795_140_000);
        assert!("2h".parse::<When>().unwrap().0 < Utc::now());
        for text in ["", "yesterday", "h", "99999999999d"] {
            assert!(text.parse::<When>().is_err(), "{text}");
        }
    }
}
