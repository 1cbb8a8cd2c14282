//! A deployment as Vercel's API tells it, and what of it is proven.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{Advice, Vercel};
use crate::handler::Failure;

const ADVICE: Advice = Advice {
    forbidden: "may not read this deployment",
    check: "it is not there, or not in the account or team of `[connections.vercel]`",
};

/// A deployment: `GET /v13/deployments/{idOrUrl}?withGitRepoInfo=true`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deployment {
    /// `dpl_...`.
    pub id: String,
    /// Its own address, without a scheme.
    pub url: String,
    /// The project's name.
    #[serde(default)]
    pub name: String,
    /// The project that it is of; null to those who may not see it.
    #[serde(default)]
    project_id: Option<String>,
    /// The account or team that it belongs to; null to those who may not see it.
    #[serde(default)]
    owner_id: Option<String>,
    #[serde(default)]
    target: Option<String>,
    #[serde(default)]
    custom_environment: Option<CustomEnvironment>,
    /// `READY`, `ERROR`, `CANCELED`, `BLOCKED`, ...
    #[serde(default)]
    pub ready_state: String,
    /// `STAGED`, `ROLLING` or `PROMOTED`, which means that it once had traffic, not that it has it now.
    #[serde(default)]
    pub ready_substate: Option<String>,
    /// Which commit it was built from, where Vercel itself fetched it from the git host.
    #[serde(default)]
    pub git_source: Option<GitSource>,
    /// What its maker says of it, and what the git host's integration adds: texts by name. Claims, not proofs.
    #[serde(default)]
    pub meta: BTreeMap<String, Value>,
    /// `succeeded`, `failed`, `skipped` or `canceled`.
    #[serde(default)]
    pub checks_conclusion: Option<String>,
    /// The domains that lead to it.
    #[serde(default)]
    pub alias: Vec<String>,
    /// When it was made, in milliseconds.
    #[serde(default)]
    pub created_at: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
struct CustomEnvironment {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    slug: Option<String>,
}

/// A commit, as Vercel fetched it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GitSource {
    /// `github`, `gitlab`, `bitbucket`, ...
    #[serde(rename = "type", default)]
    pub host: Option<String>,
    /// The commit's whole hash.
    #[serde(default)]
    pub sha: Option<String>,
    /// The branch.
    #[serde(default, rename = "ref")]
    pub reference: Option<String>,
}

impl Deployment {
    /// Reads it, by its id or its own address, and refuses what is not the account's: Vercel shows parts of a stranger's
    /// deployment, so that one could take it for the account's own.
    pub async fn read(vercel: &Vercel<'_>, id_or_url: &str) -> Result<Self, Failure> {
        let what = format!("reading the deployment {id_or_url}");
        let path = ["v13", "deployments", id_or_url];
        let deployment: Self = vercel.get(&path, "withGitRepoInfo=true", &what, &ADVICE).await?;
        if deployment.owner_id.is_none() || deployment.project_id.is_none() {
            return Err(Failure::Discard(anyhow::anyhow!(
                "{what}: Vercel shows only what strangers may see of it, so the token of `[connections.vercel]` has no \
                 access to its project; check the token's scope and `team`"
            )));
        }
        Ok(deployment)
    }

    /// The project that it is of.
    pub fn project(&self) -> &str {
        self.project_id.as_deref().unwrap_or_default()
    }

    /// `production`, `staging`, the slug of a custom environment, or `preview`, which is Vercel's null.
    pub fn target(&self) -> &str {
        let custom = self.custom_environment.as_ref();
        let custom = custom.and_then(|custom| custom.slug.as_deref().or(custom.id.as_deref()));
        custom.or(self.target.as_deref()).unwrap_or("preview")
    }

    /// The commit that it was built from, if Vercel itself fetched it: what an uploader says in `meta` is no proof.
    pub fn commit(&self) -> Option<&str> {
        self.git_source.as_ref()?.sha.as_deref().filter(|sha| !sha.is_empty())
    }

    /// Its own address, which no other deployment ever has.
    pub fn address(&self, vercel: &Vercel<'_>) -> String {
        format!("{}://{}", vercel.scheme(), self.url)
    }

    /// Whether it will never serve anybody.
    pub fn is_over(&self) -> bool {
        matches!(self.ready_state.as_str(), "CANCELED" | "ERROR" | "DELETED")
    }

    /// A text of its `meta`.
    pub fn meta(&self, name: &str) -> Option<&str> {
        self.meta.get(name)?.as_str().filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(more: Value) -> Deployment {
        let mut whole = json!({"id": "dpl_1", "url": "app-1-acme.vercel.app", "readyState": "READY"});
        whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn an_absent_target_is_preview_and_a_custom_environment_has_its_slug() {
        assert_eq!(deployment(json!({"target": null})).target(), "preview");
        assert_eq!(deployment(json!({"target": "production"})).target(), "production");
        let custom = deployment(json!({"target": null, "customEnvironment": {"id": "env_1", "slug": "qa"}}));
        assert_eq!(custom.target(), "qa");
    }

    #[test]
    fn only_the_commit_that_vercel_fetched_itself_is_one() {
        let claimed = json!({"meta": {"githubCommitSha": "abc", "gitDirty": "1"}});
        assert_eq!(deployment(claimed).commit(), None);
        assert_eq!(deployment(json!({"gitSource": {"type": "github", "sha": "abc"}})).commit(), Some("abc"));
    }
}
