//! Where the ledger and the broker are.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use schemas::{JobId, NewJob, Timestamp};

use crate::clock::earlier;
use crate::forgetting::NoticeOfForgetting;
use crate::ledger::{Horizons, Silence};

/// Makes the job that tells people about a discarded one: its id, its kind, the error. None where nobody is to be told
/// (a discarded notice must not make another).
pub type NoticeOfDiscard = Arc<dyn Fn(JobId, &str, &str, Timestamp) -> Option<NewJob> + Send + Sync>;

/// Nominal times of a schedule that were missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissedTimes {
    /// The schedule's name.
    pub schedule: String,
    /// The first that was missed.
    pub first: Timestamp,
    /// The last.
    pub last: Timestamp,
    /// How many, or at least so many.
    pub times: u32,
    /// Why.
    pub reason: String,
}

/// Makes the job that tells people about missed times of a schedule. None where nobody is to be told.
pub type NoticeOfMissed = Arc<dyn Fn(&MissedTimes, Timestamp) -> Option<NewJob> + Send + Sync>;

/// Makes the job that tells people that a source has gone silent, or that it speaks again. None where nobody is to be told.
pub type NoticeOfSilence = Arc<dyn Fn(&Silence, Timestamp) -> Option<NewJob> + Send + Sync>;

/// How to open a [`crate::Queue`].
#[derive(Clone)]
pub struct QueueConfig {
    /// `sqlite:<path>` or `postgres://...`, with its password.
    pub ledger: String,
    /// `in-process` or `amqp://...`, with its password; several, with commas between them, are nodes of one cluster.
    pub broker: String,
    /// How long an attempt may go without a heartbeat before it is rescued.
    pub lease: Duration,
    /// Who is told about discarded jobs.
    pub notice: Option<NoticeOfDiscard>,
    /// How long what is done is kept.
    pub keep: Keep,
    /// Who is told before events that wait for a person are forgotten.
    pub before_forgetting: Option<NoticeOfForgetting>,
}

/// How long the ledger keeps what is done; none: for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Senders' own bytes.
    pub bodies: Option<Duration>,
    /// Events; never less than their bodies.
    pub events: Option<Duration>,
    /// Jobs and runs, after their end.
    pub jobs: Option<Duration>,
}

impl Keep {
    /// What is older than it is kept, now.
    pub(crate) fn horizons(self, now: Timestamp) -> Horizons {
        let [bodies, events, jobs] =
            [self.bodies, self.events, self.jobs].map(|keep| keep.map(|keep| earlier(now, keep)));
        Horizons { bodies, events, jobs, waiting: None }
    }

    /// At which age an event loses something; none where it never does.
    pub(crate) fn first_loss(self) -> Option<Duration> {
        [self.bodies, self.events].into_iter().flatten().min()
    }
}

impl QueueConfig {
    /// The lease where nothing else is said.
    pub const LEASE: Duration = Duration::from_secs(30);

    /// A configuration with the usual lease.
    pub fn new(ledger: impl Into<String>, broker: impl Into<String>) -> Self {
        Self {
            ledger: ledger.into(),
            broker: broker.into(),
            lease: Self::LEASE,
            notice: None,
            keep: Keep::default(),
            before_forgetting: None,
        }
    }
}

impl fmt::Debug for QueueConfig {
    /// Leaves the addresses out: they hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueConfig").field("lease", &self.lease).finish_non_exhaustive()
    }
}
