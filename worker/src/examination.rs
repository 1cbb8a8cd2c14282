//! What an examination of something outside finds, for `doctor`.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Well,
    /// It works, and may not one day.
    Doubtful,
    /// Jobs will fail by it.
    Ill,
}

/// One thing that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Remark {
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found, and what to do about it.
    pub text: String,
}

impl Remark {
    /// As it should be.
    pub fn well(text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Well, text: text.into() }
    }

    /// It works, and may not one day.
    pub fn doubtful(text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Doubtful, text: text.into() }
    }

    /// Jobs will fail by it.
    pub fn ill(text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ill, text: text.into() }
    }
}
