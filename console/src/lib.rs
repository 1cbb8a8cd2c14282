//! The console: what operators see and do. A JSON API under `/api/v1`; who may call it is decided here, who listens is
//! the command line's affair.

mod api;
mod openapi;
mod operations;
mod router;

pub use openapi::openapi;
pub use operations::{Operation, operations};
pub use router::{Console, Released, router};
