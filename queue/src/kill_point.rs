//! Where tests kill this process: right before and right after something is persisted.
//!
//! `NIGHTPORTER_KILL_AT=accepted:3` ends the process by SIGKILL, with nothing cleaned up, when it comes to the point
//! `accepted` for the third time. Only in builds with debug assertions; in any other these calls are empty.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Where a process is to die, and how often it has still to come there.
static WANTED: LazyLock<Mutex<HashMap<String, u32>>> = LazyLock::new(|| Mutex::new(wanted()));

fn wanted() -> HashMap<String, u32> {
    let wanted = std::env::var("NIGHTPORTER_KILL_AT").unwrap_or_default();
    let point = wanted.split_once(':').and_then(|(point, times)| Some((point.to_owned(), times.parse().ok()?)));
    point.into_iter().collect()
}

/// Comes to a point.
pub fn reached(point: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    let mut wanted = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(times) = wanted.get_mut(point) {
        *times = times.saturating_sub(1);
        if *times == 0 {
            let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            unreachable!("a killed process goes on: {killed:?}");
        }
    }
}
