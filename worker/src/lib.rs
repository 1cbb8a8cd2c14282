//! The worker: jobs out of the queue, effects into the world.
//!
//! A job kind is one file in [`jobs`]; what kinds act on are the seams [`databases`], [`stores`],
//! [`channels`] and [`rotations`].

mod assertion;
mod aws;
pub mod backups;
pub mod channels;
mod consumer;
pub mod context;
pub mod credentials;
pub mod databases;
pub mod examination;
mod executor;
pub mod github;
pub mod handler;
mod heart;
pub mod heartbeat;
pub mod jobs;
pub mod ledger_copies;
mod mask;
mod metrics;
pub mod migrations;
pub mod notice;
mod outside;
pub mod programs;
pub mod registry;
pub mod rest;
pub mod rotations;
pub mod rows;
pub mod stores;
pub mod vercel;
mod worker;
pub mod world;

pub use context::Context;
pub use handler::{Failure, Handler, OrFail, Output};
pub use metrics::Metrics;
pub use registry::Registry;
pub use worker::{Worker, WorkerConfig};
pub use world::{World, WorldConfig};
