//! Schedules, on both engines: the ledger's contract, and schedulers with a clock that is driven by hand.

mod commands;
mod ledger;
mod scheduler;
