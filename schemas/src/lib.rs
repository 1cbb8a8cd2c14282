//! The contract between Nightporter's rooms: its nouns as types, without I/O.
//!
//! Everything that crosses a seam (the ledger, the broker, HTTP, the command line) is one of these types. The
//! published JSON schemas under `schemas/json/` are emitted from them.

pub mod announcement;
pub mod api;
pub mod approval;
pub mod attempt;
pub mod catalog;
pub mod condition;
pub mod event;
pub mod ids;
pub mod job;
pub mod job_message;
pub mod limit;
pub mod period;
pub mod problem;
pub mod run;
pub mod runbook;
pub mod schedule;
pub mod template;
pub mod trace_context;

pub use announcement::{AnnouncedData, Announcement, JobEnd, SaidEvent};
pub use approval::{ApprovalConfig, ApprovalPolicy, Role};
pub use attempt::{AttemptId, AttemptRecord, ClaimedJob, Outcome, StepRecord, StepState};
pub use catalog::{Catalog, KindInfo, Names};
pub use condition::Condition;
pub use event::{DEPLOYMENT_MARK, Event, Facts, Standing};
pub use ids::{EventId, JobId, RunId, WorkerId};
pub use job::{JobState, Key, NewJob, Priority};
pub use job_message::JobMessage;
pub use limit::{Limit, LimitConfig, Rate};
pub use problem::Problem;
pub use run::{NewRun, PlannedJob, RunState};
pub use runbook::Runbook;
pub use schedule::{CatchUp, NewWork, Overlap, Schedule, Starts, Timetable, WorkId};
pub use template::Template;
pub use trace_context::TraceContext;

/// A moment, UTC. The ledgers keep it in microseconds.
pub type Timestamp = chrono::DateTime<chrono::Utc>;
