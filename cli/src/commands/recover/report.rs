//! What `recover` says: what is back, what waits for a person's word, and what is in no copy.

use std::path::{Path, PathBuf};

use queue::ledger::{LastEvent, OpenJob, Recovered};
use schemas::{JobId, Timestamp};
use serde::Serialize;
use worker::ledger_copies::Rebuilt;

use super::super::backups::{age, size};
use crate::config::Config;
use crate::output::{moment, table};

/// What programs read.
#[derive(Serialize)]
pub(super) struct Report {
    ledger: PathBuf,
    /// None after a dry run.
    claimed_line: Option<u32>,
    store: String,
    line: u32,
    copy: u32,
    /// The moment that the copy shows: the gap is from then to `at`.
    shows: Timestamp,
    at: Timestamp,
    bytes: u64,
    /// Why newer copies were not used.
    passed_over: Vec<String>,
    interrupted: Vec<JobId>,
    open: Vec<OpenJob>,
    /// Whether the open jobs wait for a person's word.
    held: bool,
    sources: Vec<Source>,
    schedules: Vec<Missed>,
    /// What no copy holds.
    lost: Vec<String>,
}

/// A source, and what may be missing of it.
#[derive(Serialize)]
struct Source {
    name: String,
    #[serde(rename = "type")]
    kind: Option<&'static str>,
    last: Option<LastEvent>,
    hint: &'static str,
}

/// Times of a schedule that are recorded as missed.
#[derive(Serialize)]
struct Missed {
    schedule: String,
    times: u32,
    first: Timestamp,
    last: Timestamp,
}

impl Report {
    pub(super) fn new(
        config: &Config,
        store: &str,
        path: &Path,
        (rebuilt, recovered, passed_over): (Rebuilt, Recovered, Vec<String>),
        claimed_line: Option<u32>,
        run_open_jobs: bool,
    ) -> Self {
        let missed = recovered.missed.into_iter().map(|missed| Missed {
            schedule: missed.schedule,
            times: missed.times,
            first: missed.first,
            last: missed.last,
        });
        Self {
            ledger: path.to_owned(),
            claimed_line,
            store: store.to_owned(),
            line: rebuilt.line,
            copy: rebuilt.number,
            shows: rebuilt.shows,
            at: recovered.at,
            bytes: rebuilt.bytes,
            passed_over,
            interrupted: recovered.interrupted.iter().map(|attempt| attempt.job).collect(),
            open: recovered.open,
            held: !run_open_jobs,
            sources: sources(config, recovered.sources),
            schedules: missed.collect(),
            lost: vec![
                format!("deliveries that waited in the spool of the lost machine ({})", config.server.spool.display()),
                "the file with the first token, where [operators] names none: `up` makes another one".to_owned(),
            ],
        }
    }

    pub(super) fn say(&self) -> String {
        [self.head(), self.jobs(), self.deliveries(), self.times(), self.rest()].join("\n\n")
    }

    fn head(&self) -> String {
        let done = if self.claimed_line.is_some() { "recovered" } else { "would be recovered (dry run)" };
        let mut lines = vec![format!(
            "{} {done} as it was at {} ({} ago), {}, from copy {} of line {} in the store `{}`",
            self.ledger.display(),
            moment(self.shows),
            age(self.shows, self.at),
            size(self.bytes),
            self.copy,
            self.line,
            self.store
        )];
        lines.extend(self.passed_over.iter().map(|why| format!("passed over: {why}")));
        lines.join("\n")
    }

    fn jobs(&self) -> String {
        let interrupted = self.interrupted.len();
        if self.open.is_empty() {
            return format!("Jobs: none was open; {interrupted} attempts were interrupted.");
        }
        let what = if self.held {
            "The lost machine may have done these after the copy. They wait for a person's word:\n\
             nightporter approvals approve JOB --reason '...' has one done (again), nightporter approvals refuse cancels it."
        } else {
            "These go on; the lost machine may have done some of them after the copy."
        };
        let row = |open: &OpenJob| {
            let of = open.run.map(|run| format!("run {run}")).or(open.event.map(|event| format!("event {event}")));
            [open.job.to_string(), open.kind.clone(), open.was.as_str().to_owned(), of.unwrap_or_default()]
        };
        let list = table(["JOB", "KIND", "WAS", "OF"], self.open.iter().map(row));
        format!("Jobs: {} were open, {interrupted} of them ran. {what}\n{list}", self.open.len())
    }

    fn deliveries(&self) -> String {
        if self.sources.is_empty() {
            return "Deliveries: no source is configured.".to_owned();
        }
        let row = |source: &Source| {
            let last = source.last.as_ref();
            [
                source.name.clone(),
                last.map_or_else(|| "none".to_owned(), |last| moment(last.received_at)),
                last.map(|last| last.delivery_id.clone()).unwrap_or_default(),
                source.hint.to_owned(),
            ]
        };
        let list = table(["SOURCE", "LAST EVENT", "DELIVERY", "WHAT CAME SINCE"], self.sources.iter().map(row));
        format!(
            "Deliveries: what came from {} to {} is not here, even if it was answered. What is known here is not done \
             again when it is sent again.\n{list}",
            moment(self.shows),
            moment(self.at)
        )
    }

    fn times(&self) -> String {
        if self.schedules.is_empty() {
            return "Schedules: no time came since the copy.".to_owned();
        }
        let row = |missed: &Missed| {
            let command = format!("nightporter schedules run {} --reason '...'", missed.schedule);
            [missed.schedule.clone(), missed.times.to_string(), moment(missed.first), moment(missed.last), command]
        };
        let list = table(["SCHEDULE", "TIMES", "FIRST", "LAST", "TO DO IT NOW"], self.schedules.iter().map(row));
        format!("Schedules: these came since the copy. They are recorded as missed, and not made up for.\n{list}")
    }

    fn rest(&self) -> String {
        let lost = self.lost.join("\n- ");
        format!("In no copy:\n- {lost}\nNext: be sure that the lost machine does not run, then `nightporter up`.")
    }
}

fn sources(config: &Config, mut known: Vec<LastEvent>) -> Vec<Source> {
    let mut sources: Vec<Source> = config
        .sources
        .iter()
        .map(|source| {
            let last = known.iter().position(|last| last.source == source.name()).map(|at| known.remove(at));
            let kind = source.kind().name();
            Source { name: source.name().to_owned(), kind: Some(kind), last, hint: hint(kind) }
        })
        .collect();
    let gone = "it is not configured any more";
    sources.extend(known.into_iter().map(|last| Source {
        name: last.source.clone(),
        kind: None,
        last: Some(last),
        hint: gone,
    }));
    sources
}

/// How deliveries of a sender come again.
fn hint(kind: &str) -> &'static str {
    match kind {
        "github" => {
            "GitHub sends nothing again by itself: redeliver what came since (webhook settings, recent deliveries)"
        }
        "vercel" => "sent again by itself only if it was not answered: look at the deployments since",
        _ => "sent again by itself only if it was not answered: replay what came since where the sender keeps it",
    }
}
