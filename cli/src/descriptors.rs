//! File descriptors: every connection takes one, and so do the ledger, the broker, the spool and the jobs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Kept from senders and operators, where there are enough: the spool writes up to 512 files at once (the threads of the
/// runtime), the pools and the jobs take the rest.
const KEPT: usize = 1024;

/// However many the system allows: each connection costs memory too.
const MOST_SENDERS: usize = 16_384;
const MOST_OPERATORS: usize = 512;

/// How many connections may be open at each address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connections {
    /// At the public door.
    pub(crate) senders: usize,
    /// At the operators' address.
    pub(crate) operators: usize,
}

impl Connections {
    /// As many as the system lets us have, after asking it for all that it may give.
    pub(crate) fn allowed() -> Self {
        Self::of(raise_limit())
    }

    /// Their share of so many descriptors.
    fn of(descriptors: usize) -> Self {
        let operators = (descriptors / 8).clamp(1, MOST_OPERATORS);
        let kept = KEPT.min(descriptors / 2) + operators;
        Self { senders: descriptors.saturating_sub(kept).clamp(1, MOST_SENDERS), operators }
    }
}

/// Raises the soft limit to the hard one; the limit then.
fn raise_limit() -> usize {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => before.maximum,
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "the limit of open files cannot be raised");
            before.current
        }
    };
    now.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_never_take_the_descriptors_of_everything_else() {
        for (descriptors, senders, operators) in
            [(256, 96, 32), (1024, 384, 128), (20_000, 16_384, 512), (usize::MAX, 16_384, 512)]
        {
            assert_eq!(Connections::of(descriptors), Connections { senders, operators }, "{descriptors}");
        }
    }
}
