//! The handlers of the API, a file for each noun.

pub(crate) mod auth;
pub(crate) mod books;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod extract;
pub(crate) mod jobs;
pub(crate) mod runs;
