//! Which deployment the production domains lead to: promotions, rollbacks, and the aliases of each.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{Answer, Call, Hub, PROJECT, Vercel};

/// The domains of the project's production.
pub const DOMAINS: [&str; 2] = ["app.example.com", "www.example.com"];

pub(super) fn answer(hub: &mut Hub, call: &Call<'_>) -> Option<Answer> {
    match (call.method, call.steps.as_slice()) {
        ("POST", ["v10", "projects", project, "promote", deployment]) => {
            Some(hub.move_to(project, deployment, "promote", StatusCode::ACCEPTED))
        }
        ("POST", ["v1" | "v9", "projects", project, "rollback", deployment]) => {
            Some(hub.move_to(project, deployment, "rollback", StatusCode::CREATED))
        }
        ("GET", ["v1" | "v9", "projects", project, "promote", "aliases"]) => {
            let aliases = hub.project(project)?["aliases"].clone();
            Some(Answer::ok(json!({"aliases": aliases, "pagination": {"count": 0, "next": null, "prev": null}})))
        }
        ("GET", ["v9", "projects", project, "domains"]) => {
            let own = hub.project(project)?["domains"].as_array().cloned();
            let asked = |name: &str| call.query.get(name).map(String::as_str);
            let domains: Vec<Value> = own
                .unwrap_or_else(domains)
                .into_iter()
                .filter(|it| asked("redirects") != Some("false") || it["redirect"].is_null())
                .filter(|it| asked("production") != Some("true") || it["gitBranch"].is_null())
                .collect();
            // A real one is a time; here it is how many came before.
            let from = asked("until").and_then(|until| until.parse().ok()).unwrap_or(0);
            let next = (from + PAGE < domains.len()).then_some(from + PAGE);
            let page: Vec<&Value> = domains.iter().skip(from).take(PAGE).collect();
            let pagination = json!({"count": page.len(), "next": next, "prev": null});
            Some(Answer::ok(json!({"domains": page, "pagination": pagination})))
        }
        ("GET", ["v4", "aliases", alias]) => {
            let found =
                hub.deployments.iter().find(|it| it["alias"].as_array().is_some_and(|all| all.contains(&json!(alias))));
            found.map(|it| Answer::ok(json!({"alias": alias, "deploymentId": it["id"], "projectId": it["projectId"]})))
        }
        _ => None,
    }
}

/// So many domains has a page here.
const PAGE: usize = 2;

/// The project's domains, unless it has a list of its own: those of production, one that is not proven to be the team's, one of
/// an environment, one that sends to another, and one of a branch.
fn domains() -> Vec<Value> {
    let domain = |name: &str, more: Value| {
        let mut domain = json!({
            "name": name, "apexName": "example.com", "projectId": PROJECT, "verified": true, "redirect": null,
            "gitBranch": null, "customEnvironmentId": null,
        });
        domain.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        domain
    };
    let [first, second] = DOMAINS.map(|name| domain(name, json!({})));
    vec![
        first,
        domain("new.example.com", json!({"verified": false})),
        domain("qa.example.com", json!({"customEnvironmentId": "env_1"})),
        second,
        domain("old.example.com", json!({"redirect": DOMAINS[0]})),
        domain("next.example.com", json!({"gitBranch": "next"})),
    ]
}

impl Vercel {
    /// Whatever was asked for last is finished so: `succeeded`, `failed` or `skipped`.
    pub fn finish_move(&self, status: &str) {
        self.hub(|hub| {
            let project = hub.projects.get_mut(PROJECT).expect("it is there");
            project["lastAliasRequest"]["jobStatus"] = json!(status);
            let to = project["lastAliasRequest"]["toDeploymentId"].as_str().map(str::to_owned);
            if let (Some(to), "succeeded") = (to, status) {
                hub.serve(&to);
            }
        });
    }

    /// One domain stays where it is, whatever is said of the whole.
    pub fn leave_behind(&self, domain: &str, deployment: &str) {
        self.hub(|hub| {
            for it in &mut hub.deployments {
                let ours = it["id"] == deployment;
                let aliases = it["alias"].as_array_mut().expect("a list");
                aliases.retain(|alias| alias != domain);
                if ours {
                    aliases.push(json!(domain));
                }
            }
        });
    }

    /// Somebody promotes this deployment at Vercel, and it is done at once.
    pub fn promote_by_hand(&self, deployment: &str) {
        self.hub(|hub| {
            let now = hub.tick();
            let project = hub.projects.get_mut(PROJECT).expect("it is there");
            project["lastAliasRequest"] = json!({
                "type": "promote", "jobStatus": "succeeded", "fromDeploymentId": project["targets"]["production"]["id"],
                "toDeploymentId": deployment, "requestedAt": now,
            });
            project["autoAssignCustomDomains"] = json!(true);
            hub.serve(deployment);
        });
    }

    /// The production domains lead to this deployment.
    pub fn promote(&self, deployment: &str) {
        self.hub(|hub| hub.serve(deployment));
    }
}

impl Hub {
    /// Moves all domains to a deployment.
    pub fn serve(&mut self, deployment: &str) {
        let now = self.tick();
        for it in &mut self.deployments {
            let ours = it["id"] == deployment;
            it["alias"] = if ours { json!(DOMAINS) } else { json!([]) };
            if ours {
                it["readySubstate"] = json!("PROMOTED");
                it["aliasAssigned"] = json!(now);
            }
        }
        let serving = self.deployment(deployment).cloned().unwrap_or_default();
        if let Some(project) = self.projects.get_mut(PROJECT) {
            project["targets"]["production"] = json!({
                "id": serving["id"], "url": serving["url"], "meta": serving["meta"], "createdAt": serving["createdAt"],
            });
        }
    }

    fn move_to(&mut self, project: &str, deployment: &str, kind: &str, status: StatusCode) -> Answer {
        let now = self.tick();
        let Some(found) = self.deployment(deployment) else { return Answer::refused(404, "not_found") };
        if found["readyState"] != "READY" || found["target"] != "production" {
            return Answer::refused(422, "unprocessable");
        }
        let Some(project) = self.project(project) else { return Answer::refused(404, "not_found") };
        if matches!(project["lastAliasRequest"]["jobStatus"].as_str(), Some("pending" | "in-progress")) {
            return Answer::refused(409, "conflict");
        }
        project["lastAliasRequest"] = json!({
            "type": kind, "jobStatus": "in-progress", "fromDeploymentId": project["targets"]["production"]["id"],
            "toDeploymentId": deployment, "requestedAt": now,
        });
        project["aliases"] = json!(DOMAINS.map(|alias| json!({"alias": alias, "id": alias, "status": "pending"})));
        if kind == "rollback" {
            // Until somebody promotes, new deployments do not get the domains by themselves.
            project["autoAssignCustomDomains"] = json!(false);
        }
        Answer(status, Value::Null)
    }
}
