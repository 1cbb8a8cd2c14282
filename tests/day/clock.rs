//! The clock that the whole world of the day goes by: a file that libfaketime reads in the database server, in the S3 and
//! Secrets Manager server and in every process of Nightporter. Their monotonic clocks go on as they are, as on any machine
//! whose wall clock is set. RabbitMQ keeps the real time: nothing is asked of its clock.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Connection, PgConnection};

use crate::patience::wait_for;

/// The library, and its variables: set by `tests/run-day` before it starts the servers.
const LIBRARY: &str = "NIGHTPORTER_TEST_FAKETIME";
const FILE: &str = "FAKETIME_TIMESTAMP_FILE";
const OTHERS: [&str; 3] = ["FAKETIME_CACHE_DURATION", "FAKETIME_DONT_FAKE_MONOTONIC", "NO_FAKE_STAT"];

/// The clock is set forward to so long before the time at which something is to happen, which then comes by itself: within
/// thirty seconds each process asks the database what time it is, and until then it goes by what it knew.
pub(crate) const AHEAD: TimeDelta = TimeDelta::seconds(45);

/// After this it has gone wrong.
const SEEN_WITHIN: Duration = Duration::from_mins(1);

/// The clock, and how far it is ahead of the real one.
pub(crate) struct Clock {
    library: String,
    file: PathBuf,
    ahead: AtomicI64,
    postgres: String,
}

impl Clock {
    /// The clock that `tests/run-day` made, at the real time still.
    pub(crate) fn of_the_environment(postgres: &str) -> Result<Self> {
        let variable =
            |name| std::env::var(name).with_context(|| format!("{name} is not set: run this by tests/run-day"));
        let clock = Self {
            library: variable(LIBRARY)?,
            file: variable(FILE)?.into(),
            ahead: AtomicI64::new(0),
            postgres: postgres.to_owned(),
        };
        clock.write()?;
        Ok(clock)
    }

    /// What time it is.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        Utc::now() + TimeDelta::seconds(self.ahead.load(Ordering::SeqCst))
    }

    /// Sets the clock forward, and waits until the database goes by it.
    pub(crate) async fn advance_to(&self, moment: DateTime<Utc>) -> Result<()> {
        let ahead = (moment - Utc::now()).num_seconds() + 1;
        anyhow::ensure!(ahead >= self.ahead.load(Ordering::SeqCst), "the clock is past {moment} already");
        self.ahead.store(ahead, Ordering::SeqCst);
        self.write()?;
        #[allow(clippy::cast_precision_loss)] // Exact for some million years.
        let seconds = moment.timestamp() as f64;
        wait_for("the database's clock is set forward", SEEN_WITHIN, async || {
            let mut connection = PgConnection::connect(&self.postgres).await?;
            let question = "select clock_timestamp() >= to_timestamp($1)";
            let there: bool = sqlx::query_scalar(question).bind(seconds).fetch_one(&mut connection).await?;
            Ok(there.then_some(()))
        })
        .await
    }

    fn write(&self) -> Result<()> {
        // Written aside and renamed: nobody reads half of it.
        let aside = self.file.with_extension("next");
        std::fs::write(&aside, format!("+{}\n", self.ahead.load(Ordering::SeqCst)))?;
        std::fs::rename(&aside, &self.file).with_context(|| format!("{} cannot be written", self.file.display()))
    }

    /// The environment of a process that goes by this clock.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let others = OTHERS.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
        let own = [("LD_PRELOAD".to_owned(), self.library.clone()), (FILE.to_owned(), self.file.display().to_string())];
        own.into_iter().chain(others).collect()
    }
}
