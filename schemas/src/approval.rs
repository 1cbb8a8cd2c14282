//! Approvals: a person's consent that a job waits for. It binds to the job's arguments, which are fixed.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::period;

/// What a person or a program may do. Each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Starts, cancels, retries, replays, approves, pauses.
    Operator,
    /// Makes and revokes tokens.
    Admin,
}

impl Role {
    /// All roles, the weakest first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// The small number that the ledgers store.
    pub const fn code(self) -> i16 {
        self as i16
    }

    /// The inverse of [`Role::code`].
    pub fn from_code(code: i16) -> Option<Self> {
        usize::try_from(code).ok().and_then(|index| Self::ALL.get(index)).copied()
    }

    /// The word that people and JSON see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whose consent a job waits for, once its needs have ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalPolicy {
    /// How many people must consent.
    pub count: NonZeroU32,
    /// The role that each of them must have at least.
    pub role: Role,
    /// How long the job waits for them; then it is cancelled.
    pub within: Duration,
    /// Whether who started the work may consent to it. It is recorded as their own.
    pub own: bool,
}

impl ApprovalPolicy {
    /// What both ask for: of the kind's own policy nothing can be taken away. How long it waits says the runbook.
    #[must_use]
    pub fn stricter(of_kind: Option<Self>, of_runbook: Option<Self>) -> Option<Self> {
        match (of_kind, of_runbook) {
            (Some(kind), Some(runbook)) => Some(Self {
                count: kind.count.max(runbook.count),
                role: kind.role.max(runbook.role),
                within: runbook.within,
                own: kind.own && runbook.own,
            }),
            (kind, runbook) => kind.or(runbook),
        }
    }
}

/// Whose consent a job of a runbook waits for, as the configuration file spells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalConfig {
    /// How many people must consent.
    pub count: NonZeroU32,
    /// The role that each of them must have at least.
    pub role: Role,
    /// How long the job waits for them (`90s`, `24h`, `7d`); then it is cancelled.
    #[serde(with = "period")]
    #[schemars(with = "String")]
    pub within: Duration,
    /// Whether who started the run may consent to it themselves; it is recorded as their own.
    pub own: bool,
}

impl Default for ApprovalConfig {
    fn default() -> Self {
        Self { count: NonZeroU32::MIN, role: Role::Operator, within: Duration::from_hours(24), own: false }
    }
}

impl From<&ApprovalConfig> for ApprovalPolicy {
    fn from(config: &ApprovalConfig) -> Self {
        Self { count: config.count, role: config.role, within: config.within, own: config.own }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runbook_asks_for_more_than_a_kind_and_never_for_less() {
        let policy = |count, role, hours, own| ApprovalPolicy {
            count: NonZeroU32::new(count).unwrap(),
            role,
            within: Duration::from_hours(hours),
            own,
        };
        let both =
            ApprovalPolicy::stricter(Some(policy(1, Role::Admin, 24, false)), Some(policy(2, Role::Operator, 1, true)));
        assert_eq!(both, Some(policy(2, Role::Admin, 1, false)));
        let kind = Some(policy(1, Role::Operator, 24, false));
        assert_eq!(ApprovalPolicy::stricter(kind.clone(), None), kind);
        assert_eq!(ApprovalPolicy::stricter(None, kind.clone()), kind);
        assert_eq!(ApprovalPolicy::stricter(None, None), None);
    }
}
