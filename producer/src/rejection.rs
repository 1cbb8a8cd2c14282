//! Why a delivery is not believed. The sender is told one uniform 401; the operator's log says which of these it was.

/// What is wrong with a delivery's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is none.
    #[error("there is no signature: does the sender's webhook have a secret?")]
    NoSignature,
    /// There is one, by an algorithm that is not accepted (GitHub's SHA-1).
    #[error("the only signature is by an algorithm that is not accepted")]
    WrongAlgorithm,
    /// It, its id or its timestamp is not well-formed.
    #[error("the signature, its id or its timestamp is not well-formed")]
    Malformed,
    /// No active secret made it.
    #[error("no active secret made this signature: another secret, or a proxy that changed the body")]
    Mismatch,
    /// It is right, but made too long ago, or in the future.
    #[error("the signature is right but its time is more than 5 minutes off: a replay, or a clock that is wrong")]
    Clock,
    /// It could not be checked: no configured secret is of the right form.
    #[error("no configured secret is of the right form: it is empty, or not `whsec_` and base64")]
    NoUsableSecret,
}

impl Rejection {
    /// Its name in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSignature => "no_signature",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::Malformed => "malformed",
            Self::Mismatch => "mismatch",
            Self::Clock => "clock",
            Self::NoUsableSecret => "no_usable_secret",
        }
    }
}
