//! Sources, for people.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// A source that is listened to, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceView {
    /// Its name.
    pub name: String,
    /// Since when it is listened to.
    pub since: Timestamp,
    /// When it was last heard, to the minute.
    pub heard_at: Option<Timestamp>,
    /// When people were told that it is silent, while it is.
    pub silent_at: Option<Timestamp>,
}
