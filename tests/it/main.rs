//! The end-to-end tests, in one binary. Run them by `tests/run`, which starts the servers that they need.

#[macro_use]
mod engines;

mod admission;
mod amqp;
mod api;
mod backups;
mod bench;
mod broker_faults;
mod brokers;
mod commands;
mod database_faults;
mod desk;
mod doctor;
mod documents;
mod exec;
mod forgetting;
mod fuzz;
mod heartbeat;
mod http;
mod interleavings;
mod kills;
mod ledgers;
mod maintain;
mod metrics;
mod migrations;
mod notifications;
mod operators;
mod overload;
mod postgres_ledger;
mod postgres_plans;
mod recover;
mod retention;
mod rotations;
mod schedules;
mod spooling;
mod sql;
mod stalls;
mod stores;
mod telemetry;
mod vault;
mod vaults;
mod vercel;
mod work;
mod workflows;
