//! Events: what a sender said, verified and normalized, in the shape of `CloudEvents` 1.0.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{EventId, JobId, Timestamp};

/// The key by which a deployment's `meta` names the job that made it: who redeploys (a rotation, a rollback) writes the
/// job's id there, so that the deployment is known to belong to that work and starts none of its own.
pub const DEPLOYMENT_MARK: &str = "nightporterJob";

/// A verified, normalized fact. Unique by (source, delivery id).
///
/// The sender's own bytes are kept beside it, not in it: an event can be derived again from them by a newer normalizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Ours.
    pub id: EventId,
    /// The configured source that it came through, for example `vercel`.
    pub source: String,
    /// `<sender>.<event>[.<action>]`, for example `vercel.deployment.succeeded`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The sender's name for this delivery; the same on every redelivery of it.
    #[serde(rename = "deliveryid")]
    pub delivery_id: String,
    /// What it is about: a deployment's id, a git ref, a user's id.
    pub subject: Option<String>,
    /// When it happened, by the sender's clock; when we received it where the sender does not say.
    pub time: Timestamp,
    /// What it says, in names that are the same whoever sends.
    pub data: Facts,
}

/// The shared fields of an event. What the sender did not say is null.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Facts {
    /// The deployed project (Vercel).
    pub project: Project,
    /// The git repository.
    pub repository: Repository,
    /// The full git ref that changed or was deployed, as the sender spells it.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
    /// The commit.
    pub git: Git,
    /// The environment: `production`, `preview`, `staging` or a custom name.
    pub target: Option<String>,
    /// Who did it.
    pub actor: Actor,
    /// Where a person can look at it.
    pub url: Option<String>,
    /// The state that the subject is now in, in the sender's word (`success`, `merged`, `closed`).
    pub state: Option<String>,
    /// The job of ours that made the deployment, as the deployment's own mark says ([`DEPLOYMENT_MARK`]): a claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caused_by: Option<JobId>,
}

/// The deployed project.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Project {
    pub id: Option<String>,
    pub name: Option<String>,
}

/// The git repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Repository {
    /// The host's number for it. It outlives renames; the name does not.
    pub id: Option<String>,
    /// `owner/name`.
    pub full_name: Option<String>,
}

/// The commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Git {
    /// The full hash.
    pub sha: Option<String>,
    /// The branch or tag it was built from, short (`main`).
    #[serde(rename = "ref")]
    pub reference: Option<String>,
}

/// Who did it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Actor {
    pub id: Option<String>,
    pub login: Option<String>,
}

impl Event {
    /// What conditions and templates see as `event`: the facts, and `id`, `source`, `type`, `subject`, `time` beside
    /// them. `raw`, the sender's own body, is added by the caller where it is asked for: parsing it costs more than all
    /// the rest.
    pub fn view(&self) -> Value {
        let mut view = serde_json::to_value(&self.data).unwrap_or_default();
        view["id"] = json!(self.id);
        view["source"] = json!(self.source);
        view["type"] = json!(self.kind);
        view["subject"] = json!(self.subject);
        view["time"] = json!(self.time);
        view["caused_by"] = json!(self.data.caused_by);
        view
    }

    /// The `CloudEvents` 1.0 JSON form, for other programs.
    pub fn to_cloud_event(&self) -> Value {
        let mut event = serde_json::to_value(self).unwrap_or_default();
        event["specversion"] = json!("1.0");
        event["datacontenttype"] = json!("application/json");
        event
    }
}

/// What became of a delivery whose signature was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Readable, new; its routes made their jobs.
    Accepted,
    /// A known body under a new delivery id: a suspected replay, kept without jobs until an operator releases it.
    Held,
    /// Verified, but not readable as an event: kept for an operator.
    Quarantined,
}

impl Standing {
    /// The small number that the ledgers store.
    pub const fn code(self) -> i16 {
        match self {
            Self::Accepted => 0,
            Self::Held => 1,
            Self::Quarantined => 2,
        }
    }

    /// The inverse of [`Standing::code`].
    pub const fn from_code(code: i16) -> Option<Self> {
        match code {
            0 => Some(Self::Accepted),
            1 => Some(Self::Held),
            2 => Some(Self::Quarantined),
            _ => None,
        }
    }
}
