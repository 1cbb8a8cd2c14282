//! What the end-to-end tests share: worlds to act in, receivers of what Nightporter sends, and the addresses of the
//! servers that `tests/run` starts.

pub mod api_world;
pub mod backup_world;
pub mod bell_world;
pub mod binary;
pub mod cutting;
pub mod door_world;
pub mod faulty;
pub mod fuzz;
pub mod gate_world;
pub mod github_hooks;
pub mod github_secrets;
pub mod github_statuses;
pub mod github_workflows;
pub mod ledgers;
pub mod line;
pub mod load;
pub mod log;
pub mod mail;
pub mod migration_world;
pub mod otlp;
pub mod pgbouncer;
pub mod porter;
pub mod postgres;
pub mod program;
pub mod proxy;
pub mod rabbit_cluster;
pub mod rabbitmq;
pub mod receiver;
pub mod rotation_world;
pub mod s3;
pub mod sender;
pub mod services;
pub mod transitions;
pub mod vaults;
pub mod vercel;

/// Whether the long forms of tests were asked for; the short ones print how much they did.
pub fn is_long() -> bool {
    std::env::var("NIGHTPORTER_TEST_LONG").is_ok_and(|value| value == "1")
}

/// The address of a server that `tests/run` started.
///
/// # Panics
///
/// Where it is missing: a test that needs a server fails without it, it never passes by skipping.
pub fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run the tests by `tests/run`"))
}
