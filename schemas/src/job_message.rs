//! What other programs send to have a job done.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A job that another program asks for, as a message's body. What is the same by `key`, or by the message's `message_id`
/// where it has none, is one job, however often it is sent.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobMessage {
    /// The job's kind.
    pub kind: String,
    /// Its arguments: `job-<kind>.schema.json` says which there are.
    #[serde(default)]
    pub args: Map<String, Value>,
    /// The queue that jobs of this kind wait in. Need not be said; what is said must be right.
    #[serde(default)]
    pub queue: Option<String>,
    /// A name for this job, up to 200 characters: a second message with it is done with, and makes no second job.
    #[serde(default)]
    pub key: Option<String>,
}
