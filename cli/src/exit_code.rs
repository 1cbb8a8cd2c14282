//! The exit codes of every command. Scripts rely on them: a new meaning gets a new number.

/// Done. Of `run --wait`: everything completed.
pub(crate) const OK: u8 = 0;
/// It was tried and failed. Of `run --wait`: the run or job failed.
pub(crate) const FAILED: u8 = 1;
/// The command line, the configuration or the request is wrong. Nothing was done.
pub(crate) const USAGE: u8 = 2;
/// There is no such job, run, event, runbook or kind.
pub(crate) const NOT_FOUND: u8 = 3;
/// The server does not take the token, or it may not do this, or there is none to show.
pub(crate) const AUTH: u8 = 4;
/// It is in a state in which this cannot be done, or another process has what is needed.
pub(crate) const CONFLICT: u8 = 5;
/// Of `run --wait`: the run or job was cancelled. Of a question: it was answered with no.
pub(crate) const CANCELLED: u8 = 6;
/// The server, the ledger or the broker is away: the same command may succeed later.
pub(crate) const UNAVAILABLE: u8 = 8;
/// Of `run --wait` and `queues drain`: the time was up. The work goes on.
pub(crate) const TIMEOUT: u8 = 124;

/// All of them, for the help text.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done; with --wait: everything completed
  1    it failed
  2    the command line, the configuration or the request is wrong
  3    there is no such job, run, event, runbook or kind
  4    the token is missing or wrong, or may not do this
  5    it is in a state in which this cannot be done
  6    with --wait: it was cancelled; of a question: it was answered with no
  8    the server, the ledger or the broker is away
  124  with --wait and of drain: the time was up, the work goes on";
