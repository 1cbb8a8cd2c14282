//! The answers of AWS's query protocol, as far as they are read.

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Created {
    pub(super) create_access_key_result: CreatedKey,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CreatedKey {
    pub(super) access_key: AccessKey,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AccessKey {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub(super) list_access_keys_result: ListedKeys,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ListedKeys {
    #[serde(default)]
    pub(super) access_key_metadata: Members,
}

#[derive(Default, Deserialize)]
pub(super) struct Members {
    #[serde(default)]
    pub(super) member: Vec<Member>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Member {
    pub(super) access_key_id: String,
    pub(super) status: String,
    pub(super) create_date: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct LastUsed {
    pub(super) get_access_key_last_used_result: LastUsedOf,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct LastUsedOf {
    pub(super) access_key_last_used: Used,
}

/// A key that was never used has no date, and `N/A` for the others.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Used {
    pub(super) last_used_date: Option<String>,
    #[serde(default)]
    pub(super) service_name: String,
    #[serde(default)]
    pub(super) region: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Caller {
    pub(super) get_caller_identity_result: Identity,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Identity {
    pub(super) arn: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ErrorAnswer {
    pub(super) error: ErrorOf,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ErrorOf {
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}
