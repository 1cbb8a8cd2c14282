//! The end-to-end tests, in one binary. Run them by `tests/run`, which starts the servers that they need.

mod backups;
mod brokers;
mod commands;
mod kills;
mod ledgers;
mod migrations;
mod notifications;
mod postgres_ledger;
mod stores;
mod telemetry;
mod vault;
mod work;
