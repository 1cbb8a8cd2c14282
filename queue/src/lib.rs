//! The queue: the ledger that is the only truth, the broker that carries bells, and what lies above both engines.
//!
//! Nothing outside this crate knows an engine's name. [`Queue`] is what the producer, the worker and the console hold.

mod admission;
mod advance;
mod batch;
pub mod bell;
pub mod broker;
pub mod clock;
mod config;
mod forgetting;
pub mod kill_point;
pub mod ledger;
mod metrics;
mod queue;
pub mod retry;
pub mod trace;
mod upkeep;

pub use bell::Bell;
pub use clock::LedgerClock;
pub use config::{Keep, MissedTimes, NoticeOfDiscard, NoticeOfMissed, NoticeOfSilence, QueueConfig};
pub use forgetting::{NoticeOfForgetting, Waiting};
pub use queue::{OpenError, Queue};
