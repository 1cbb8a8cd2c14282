//! The producer: deliveries in, events and jobs out.
//!
//! [`Door`] is the public door: it verifies, normalizes, routes and books each delivery, and only then signs for it.
//! [`Scheduler`] fires what the clock says. [`Intake`] takes in the jobs that other programs ask for, and [`Announcer`] tells
//! them what happens.

mod absence;
mod accept;
mod announcer;
mod body;
mod delivery;
mod door;
mod found;
mod intake;
mod metrics;
mod patience;
pub mod readable;
mod rejection;
mod router;
pub mod routes;
pub mod scheduler;
mod signature;
mod silence;
pub mod sources;
mod spool;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod oddities;
#[cfg(test)]
mod world;

pub use announcer::{Announcer, AnnouncerConfig, settle_that_nothing_is_announced};
pub use door::{Door, DoorConfig};
pub use found::NotBooked;
pub use intake::{Intake, IntakeConfig};
pub use rejection::Rejection;
pub use routes::{Matched, RouteConfig, RouteExplanation, Routes, RunConfig, Startable};
pub use scheduler::{ScheduleConfig, Scheduler, SchedulerConfig};
pub use signature::Verified;
pub use sources::{Source, SourceConfig, Sources, source_type};
pub use spool::{Spool, SpoolError, SpoolLimits};
