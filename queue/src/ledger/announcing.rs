//! What is to be announced, as the ledgers keep it.

use schemas::{EventId, Facts, JobEnd, JobId, RunId, Timestamp, TraceContext};
use serde::Deserialize;
use sqlx::FromRow;
use uuid::Uuid;

use super::LedgerError;
use super::rows::{moment, state, unreadable};

/// Whose turn it is to announce.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    /// Nothing is written down: announcing is off.
    Off,
    /// Another herald's.
    Theirs,
    /// Ours: what is to be announced next, in order; nothing where nothing happened.
    Ours(Vec<ToAnnounce>),
}

/// What is to be announced.
#[derive(Clone, Debug, PartialEq)]
pub struct ToAnnounce {
    /// Its place among all announcements; the same each time it is given out.
    pub number: i64,
    /// What happened.
    pub what: Happened,
    /// Where in a trace.
    pub trace: TraceContext,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Happened {
    /// An event was accepted, or released.
    Event {
        id: EventId,
        source: String,
        kind: String,
        delivery_id: String,
        subject: Option<String>,
        time: Timestamp,
        data: Box<Facts>,
    },
    /// A job ended; its output is not here.
    Job(Box<JobEnd>),
}

/// The code of an event in the table.
const EVENT: i16 = 0;
/// The code of a job in the table.
const JOB: i16 = 1;

/// A row of the table.
#[derive(FromRow)]
pub(super) struct AnnouncementRow {
    pub(super) id: i64,
    pub(super) number: Option<i64>,
    what: i16,
    subject_id: Uuid,
    fact: String,
}

/// An event as the table's trigger writes it.
#[derive(Deserialize)]
struct EventFact {
    source: String,
    kind: String,
    delivery_id: String,
    subject: Option<String>,
    time: i64,
    /// JSON in a text: a trigger must not fail, and so it does not parse.
    data: String,
    traceparent: Option<String>,
    tracestate: Option<String>,
}

/// The end of a job as the table's trigger writes it.
#[derive(Deserialize)]
struct JobFact {
    kind: String,
    queue: String,
    state: i16,
    attempt: i32,
    failures: i32,
    reason: Option<String>,
    created_at: i64,
    started_at: Option<i64>,
    finished_at: i64,
    run_id: Option<Uuid>,
    event_id: Option<Uuid>,
    traceparent: Option<String>,
    tracestate: Option<String>,
}

impl AnnouncementRow {
    /// What a row says that has its number already.
    pub(super) fn read_again(self) -> Result<ToAnnounce, LedgerError> {
        let number = self.number.unwrap_or_default();
        self.read(number)
    }

    /// What the row says, under the number that it was given.
    pub(super) fn read(self, number: i64) -> Result<ToAnnounce, LedgerError> {
        let not_readable = |error: serde_json::Error| unreadable("the announcement", error);
        let (what, trace) = match self.what {
            EVENT => {
                let fact: EventFact = serde_json::from_str(&self.fact).map_err(not_readable)?;
                let data = Box::new(serde_json::from_str(&fact.data).map_err(not_readable)?);
                fact.into_happened(EventId(self.subject_id), data)
            }
            JOB => {
                let fact: JobFact = serde_json::from_str(&self.fact).map_err(not_readable)?;
                fact.into_happened(JobId(self.subject_id))?
            }
            other => return Err(unreadable("the kind of an announcement", other)),
        };
        Ok(ToAnnounce { number, what, trace })
    }
}

impl EventFact {
    fn into_happened(self, id: EventId, data: Box<Facts>) -> (Happened, TraceContext) {
        let Self { source, kind, delivery_id, subject, time, data: _, traceparent, tracestate } = self;
        let time = moment(time);
        let event = Happened::Event { id, source, kind, delivery_id, subject, time, data };
        (event, TraceContext { traceparent, tracestate })
    }
}

impl JobFact {
    fn into_happened(self, id: JobId) -> Result<(Happened, TraceContext), LedgerError> {
        let end = JobEnd {
            job: id,
            kind: self.kind,
            queue: self.queue,
            state: state(self.state)?,
            attempt: self.attempt,
            failures: self.failures,
            reason: self.reason,
            created_at: moment(self.created_at),
            started_at: self.started_at.map(moment),
            finished_at: moment(self.finished_at),
            run: self.run_id.map(RunId),
            event: self.event_id.map(EventId),
            output: None,
        };
        Ok((Happened::Job(Box::new(end)), TraceContext { traceparent: self.traceparent, tracestate: self.tracestate }))
    }
}
