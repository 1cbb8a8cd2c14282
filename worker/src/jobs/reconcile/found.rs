//! What Vercel's API says of deployments and check runs, and the webhooks' bodies that it means.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

/// A deployment in a list: `GET /v7/deployments`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listed {
    pub(super) uid: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    target: Option<String>,
    #[serde(default)]
    custom_environment: Option<Value>,
    #[serde(default)]
    pub(super) ready_state: String,
    pub(super) created_at: i64,
    #[serde(default)]
    ready: Option<i64>,
    /// A time, or whether.
    #[serde(default)]
    alias_assigned: Option<Value>,
    #[serde(default)]
    checks_state: Option<String>,
    #[serde(default)]
    checks_conclusion: Option<String>,
    #[serde(default)]
    meta: BTreeMap<String, Value>,
    #[serde(default)]
    creator: Option<Value>,
    #[serde(default)]
    inspector_url: Option<String>,
}

/// A run of a check: `GET /v2/deployments/{id}/check-runs`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CheckRun {
    id: String,
    /// Absent of Vercel's own checks.
    #[serde(default)]
    check_id: Option<String>,
    #[serde(default)]
    status: String,
    #[serde(default)]
    conclusion: Option<String>,
    #[serde(default)]
    blocks: Option<String>,
    #[serde(default)]
    timeout: Option<i64>,
    #[serde(default)]
    source: Value,
    #[serde(default)]
    pub(super) created_at: Option<i64>,
}

/// Something that a webhook should have told.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    /// Under which it is known, whoever tells it: the same as the source makes of a webhook's body.
    pub(super) delivery_id: String,
    /// When it happened, in milliseconds.
    pub(super) at: i64,
    pub(super) body: Value,
}

impl Listed {
    /// Whether it will never serve anybody.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.ready_state.as_str(), "ERROR" | "CANCELED" | "DELETED")
    }

    /// Whether domains lead to it, so that no check holds it any more.
    pub(super) fn has_domains(&self) -> bool {
        self.alias_assigned.as_ref().is_some_and(|assigned| match assigned {
            Value::Bool(assigned) => *assigned,
            Value::Number(at) => at.as_i64() != Some(0),
            _ => false,
        })
    }

    /// What its webhooks should have told by now; `runs`: those of its checks, as far as they were looked at.
    pub(super) fn found(&self, project: (&str, &str), runs: &[CheckRun]) -> Vec<Found> {
        let mut found = vec![self.told("deployment.created", self.created_at, project, None)];
        let ended = self.ready.unwrap_or(self.created_at);
        match self.ready_state.as_str() {
            "READY" if self.has_succeeded(runs) => {
                found.push(self.told("deployment.succeeded", ended, project, None));
            }
            "ERROR" => found.push(self.told("deployment.error", ended, project, None)),
            "CANCELED" => found.push(self.told("deployment.canceled", ended, project, None)),
            _ => {}
        }
        if !self.is_over() {
            let open = runs.iter().filter(|run| run.is_open() && run.is_for_a_webhook());
            found.extend(open.map(|run| {
                let at = run.created_at.unwrap_or(self.created_at);
                self.told("deployment.checkrun.start", at, project, Some(run))
            }));
        }
        found
    }

    /// A deployment has succeeded when it is built and no check holds it.
    fn has_succeeded(&self, runs: &[CheckRun]) -> bool {
        let holds = |run: &CheckRun| run.blocks.as_deref().is_some_and(|blocks| blocks != "none") && !run.is_passed();
        let concluded = match self.checks_state.as_deref() {
            Some("registered" | "running") => false,
            _ => !matches!(self.checks_conclusion.as_deref(), Some("failed" | "canceled")),
        };
        self.has_domains() || (concluded && !runs.iter().any(holds))
    }

    fn told(&self, kind: &str, at: i64, (id, name): (&str, &str), run: Option<&CheckRun>) -> Found {
        let subject = run.map_or(&self.uid, |run| &run.id);
        let mut payload = json!({
            "user": {"id": self.creator.as_ref().map(|creator| &creator["uid"])},
            "deployment": {"id": self.uid, "name": self.name, "url": self.url, "meta": self.meta},
            "links": {"deployment": self.inspector_url},
            "name": self.name, "url": self.url, "target": self.target,
            "project": {"id": id, "name": name},
        });
        if let Some(environment) = &self.custom_environment {
            payload["customEnvironmentId"] = environment["id"].clone();
        }
        if let Some(run) = run {
            payload["checkRun"] = json!({
                "id": run.id, "checkId": run.check_id, "deploymentId": self.uid, "timeout": run.timeout,
                "source": run.source,
            });
        }
        let delivery_id = format!("{kind} {subject}");
        let body = json!({"id": delivery_id, "type": kind, "createdAt": at, "region": null, "payload": payload});
        Found { delivery_id, at, body }
    }
}

impl CheckRun {
    fn is_open(&self) -> bool {
        self.status != "completed"
    }

    fn is_passed(&self) -> bool {
        !self.is_open() && !matches!(self.conclusion.as_deref(), Some("failed" | "canceled" | "timeout"))
    }

    /// Whether a webhook would have told of it: others are answered elsewhere.
    fn is_for_a_webhook(&self) -> bool {
        self.check_id.is_some() && matches!(self.source["kind"].as_str(), Some("webhook" | "integration"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(more: Value) -> Listed {
        let mut whole = json!({"uid": "dpl_1", "createdAt": 1000, "readyState": "READY", "target": "production"});
        whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    fn run(more: Value) -> CheckRun {
        let mut whole = json!({
            "id": "chr_1", "checkId": "chk", "status": "queued", "blocks": "deployment-alias",
            "source": {"kind": "webhook"},
        });
        whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    fn ids(listed: &Listed, runs: &[CheckRun]) -> Vec<String> {
        listed.found(("prj", "app"), runs).into_iter().map(|found| found.delivery_id).collect()
    }

    const CREATED: &str = "deployment.created dpl_1";
    const SUCCEEDED: &str = "deployment.succeeded dpl_1";
    const START: &str = "deployment.checkrun.start chr_1";

    #[test]
    fn a_deployment_has_succeeded_when_it_is_built_and_no_check_holds_it() {
        assert_eq!(ids(&listed(json!({})), &[]), [CREATED, SUCCEEDED]);
        assert_eq!(ids(&listed(json!({"readyState": "BUILDING"})), &[]), [CREATED]);
        assert_eq!(ids(&listed(json!({"checksState": "running"})), &[]), [CREATED]);
        assert_eq!(ids(&listed(json!({"checksState": "completed", "checksConclusion": "failed"})), &[]), [CREATED]);
        assert_eq!(ids(&listed(json!({"checksConclusion": "succeeded"})), &[]), [CREATED, SUCCEEDED]);
        // Domains that lead to it are proof enough, whatever stands open.
        assert_eq!(ids(&listed(json!({"aliasAssigned": 5, "checksState": "running"})), &[]), [CREATED, SUCCEEDED]);
        assert_eq!(ids(&listed(json!({"aliasAssigned": false, "checksState": "running"})), &[]), [CREATED]);
        assert_eq!(ids(&listed(json!({"readyState": "ERROR"})), &[])[1], "deployment.error dpl_1");
        assert_eq!(ids(&listed(json!({"readyState": "CANCELED"})), &[])[1], "deployment.canceled dpl_1");
    }

    #[test]
    fn an_open_check_run_is_to_begin_if_a_webhook_would_tell_of_it() {
        assert_eq!(ids(&listed(json!({})), &[run(json!({}))]), [CREATED, START]);
        assert_eq!(ids(&listed(json!({})), &[run(json!({"status": "running"}))]), [CREATED, START]);
        let done = run(json!({"status": "completed", "conclusion": "succeeded"}));
        assert_eq!(ids(&listed(json!({})), &[done]), [CREATED, SUCCEEDED]);
        for conclusion in ["failed", "canceled", "timeout"] {
            let done = run(json!({"status": "completed", "conclusion": conclusion}));
            assert_eq!(ids(&listed(json!({})), &[done]), [CREATED]);
        }
        let not_blocking = run(json!({"blocks": "none"}));
        assert_eq!(ids(&listed(json!({})), &[not_blocking]), [CREATED, SUCCEEDED, START]);
        let of_git = run(json!({"source": {"kind": "git-provider"}, "blocks": "none"}));
        assert_eq!(ids(&listed(json!({})), &[of_git]), [CREATED, SUCCEEDED]);
        let of_vercel = run(json!({"checkId": null, "blocks": "none"}));
        assert_eq!(ids(&listed(json!({})), &[of_vercel]), [CREATED, SUCCEEDED]);
        assert_eq!(ids(&listed(json!({"readyState": "CANCELED"})), &[run(json!({}))]).len(), 2);
    }

    #[test]
    fn what_was_found_has_the_form_of_the_webhook() {
        let listed = listed(json!({
            "name": "app", "url": "app-1.vercel.app", "ready": 2000, "meta": {"githubCommitSha": "abc"},
            "creator": {"uid": "usr_1"},
        }));
        let found = listed.found(("prj_1", "app"), &[]).pop().unwrap();
        assert_eq!(found.at, 2000);
        assert_eq!(found.body["type"], "deployment.succeeded");
        assert_eq!(found.body["createdAt"], 2000);
        let payload = &found.body["payload"];
        assert_eq!(payload["deployment"]["meta"]["githubCommitSha"], "abc");
        assert_eq!((&payload["target"], &payload["project"]["name"]), (&json!("production"), &json!("app")));
        assert_eq!(payload["user"]["id"], "usr_1");
    }
}
