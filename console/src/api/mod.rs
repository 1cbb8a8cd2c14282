//! The handlers of the API, a file for each noun.

pub(crate) mod approvals;
pub(crate) mod auth;
pub(crate) mod books;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod extract;
pub(crate) mod jobs;
pub(crate) mod pauses;
pub(crate) mod replay;
pub(crate) mod runs;
pub(crate) mod schedules;
pub(crate) mod tokens;
