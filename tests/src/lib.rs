//! What the end-to-end tests share: worlds to act in, and the addresses of the servers that `tests/run` starts.

pub mod binary;
pub mod faulty;
pub mod ledgers;
pub mod porter;
pub mod postgres;

/// The address of a server that `tests/run` started.
///
/// # Panics
///
/// Where it is missing: a test that needs a server fails without it, it never passes by skipping.
pub fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run the tests by `tests/run`"))
}
