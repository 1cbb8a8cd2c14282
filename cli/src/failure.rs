//! Why a command did not do what it was asked: a sentence, what to do next, and the exit code.

use std::fmt;

use queue::OpenError;

use crate::exit_code;

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What the process exits with.
    pub(crate) code: u8,
    message: String,
    help: Option<String>,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: None }
    }

    /// It was tried and failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(exit_code::FAILED, message)
    }

    /// The command line, the configuration or the request is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(exit_code::USAGE, message)
    }

    /// There is no such thing.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(exit_code::NOT_FOUND, message)
    }

    /// There is no token to show, or it is wrong.
    pub(crate) fn auth(message: impl Into<String>) -> Self {
        Self::new(exit_code::AUTH, message)
    }

    /// It cannot be done in this state.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(exit_code::CONFLICT, message)
    }

    /// It was cancelled.
    pub(crate) fn cancelled(message: impl Into<String>) -> Self {
        Self::new(exit_code::CANCELLED, message)
    }

    /// Something that is needed is away.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(exit_code::UNAVAILABLE, message)
    }

    /// The time was up.
    pub(crate) fn timeout(message: impl Into<String>) -> Self {
        Self::new(exit_code::TIMEOUT, message)
    }

    /// Adds what to do about it.
    #[must_use]
    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.help.as_ref().map_or(Ok(()), |help| write!(f, "\n{help}"))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match &error {
            OpenError::UnknownLedger(_) | OpenError::UnknownBroker(_) => Self::usage(error.to_string()),
            OpenError::InUse { .. } | OpenError::Newer { .. } => Self::conflict(error.to_string()),
            OpenError::Damaged(_) => Self::failed(error.to_string()),
            OpenError::Ledger { .. } | OpenError::Broker(_) => Self::unavailable(with_causes(&error)),
        }
    }
}

/// An error and what it came from, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
