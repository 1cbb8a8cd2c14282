//! Deployments: made by git, by the command line or by us, read with or without git, by owners and by strangers.

use serde_json::{Value, json};

use super::{Answer, Call, Hub, PROJECT, PROJECT_NAME, TEAM, Vercel};

/// A commit for deployments that need any.
pub const OWN_COMMIT: &str = "6dcb09b5b57875f334f61aebed695e2e4193db5e";

pub(super) fn answer(hub: &mut Hub, call: &Call<'_>) -> Option<Answer> {
    match (call.method, call.steps.as_slice()) {
        ("GET", ["v13", "deployments", id]) => Some(hub.read(id, call)),
        ("GET", ["v6" | "v7", "deployments"]) => Some(hub.listed(call)),
        ("POST", ["v13", "deployments"]) => Some(hub.make(call)),
        ("PATCH", ["v12", "deployments", id, "cancel"]) => {
            let deployment = hub.deployment(id)?;
            deployment["readyState"] = json!("CANCELED");
            Some(Answer::ok(deployment.clone()))
        }
        ("GET", ["v9" | "v10", "projects"]) => {
            let projects: Vec<&Value> = hub.projects.values().collect();
            Some(Answer::ok(json!({"projects": projects})))
        }
        ("GET", ["v9", "projects", id]) => hub.project(id).map(|project| Answer::ok(project.clone())),
        ("PATCH", ["v9", "projects", id]) => {
            let changes = call.body.as_object()?.clone();
            let project = hub.project(id)?;
            project.as_object_mut()?.extend(changes);
            Some(Answer::ok(project.clone()))
        }
        _ => None,
    }
}

impl Vercel {
    /// A deployment of the project from a commit, built and not yet promoted; its id.
    pub fn deploy(&self, target: Option<&str>, commit: &str) -> String {
        self.hub(|hub| {
            let (id, created) = (hub.id("dpl"), hub.tick());
            let number = id.trim_start_matches("dpl_").to_owned();
            hub.deployments.push(json!({
                "id": id, "url": format!("{PROJECT_NAME}-{number}-acme.vercel.app"), "name": PROJECT_NAME,
                "projectId": PROJECT, "ownerId": TEAM, "target": target, "readyState": "READY",
                "readySubstate": "STAGED", "createdAt": created, "source": "git", "alias": [], "aliasAssigned": null,
                "autoAssignCustomDomains": true,
                "gitSource": {"type": "github", "repoId": 4711, "ref": "main", "sha": commit},
                "meta": {"githubCommitSha": commit, "githubCommitRef": "main", "githubOrg": "acme", "githubRepo": "app"},
            }));
            id
        })
    }

    /// A deployment by the command line: no git but what its maker claims.
    pub fn deploy_by_hand(&self, commit: &str) -> String {
        let id = self.deploy(Some("production"), commit);
        self.change(
            &id,
            &json!({"gitSource": null, "source": "cli", "meta": {"githubCommitSha": commit, "gitDirty": "1"}}),
        );
        id
    }

    /// Changes fields of a deployment.
    pub fn change(&self, id: &str, changes: &Value) {
        let changes = changes.as_object().expect("an object").clone();
        self.hub(|hub| {
            let deployment = hub.deployment(id).expect("it is there");
            deployment.as_object_mut().expect("an object").extend(changes);
        });
    }

    /// A deployment as it stands.
    pub fn deployment(&self, id: &str) -> Value {
        self.hub(|hub| hub.deployment(id).expect("it is there").clone())
    }

    /// The body of a webhook about a deployment, unsigned.
    pub fn event(&self, kind: &str, id: &str, more: &Value) -> Value {
        let deployment = self.deployment(id);
        let event = self.hub(|hub| (hub.id("evt"), hub.tick()));
        let mut payload = json!({
            "team": {"id": TEAM}, "user": {"id": "usr_1"}, "project": {"id": deployment["projectId"]},
            "deployment": {
                "id": id, "url": deployment["url"], "name": deployment["name"], "meta": deployment["meta"],
            },
            "target": deployment["target"], "url": deployment["url"],
        });
        payload.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        json!({"id": event.0, "type": kind, "createdAt": event.1, "region": null, "payload": payload})
    }
}

impl Hub {
    /// A deployment, by its id or its own address.
    pub fn deployment(&mut self, id_or_url: &str) -> Option<&mut Value> {
        self.deployments.iter_mut().find(|it| it["id"] == id_or_url || it["url"] == id_or_url)
    }

    fn read(&mut self, id: &str, call: &Call<'_>) -> Answer {
        let Some(deployment) = self.deployment(id) else { return Answer::refused(404, "not_found") };
        let mut shown = deployment.clone();
        let fields = shown.as_object_mut().expect("an object");
        if call.query.get("withGitRepoInfo").is_none_or(|asked| asked != "true") {
            fields.remove("gitSource");
        }
        if fields.remove("stranger").is_some_and(|stranger| stranger == true) {
            for private in ["projectId", "ownerId", "env"] {
                fields.remove(private);
            }
        }
        Answer::ok(shown)
    }

    fn listed(&mut self, call: &Call<'_>) -> Answer {
        let asked = |name: &str, field: &Value| call.query.get(name).is_none_or(|wanted| *field == **wanted);
        let since = call.query.get("since").and_then(|since| since.parse::<i64>().ok()).unwrap_or(0);
        let until = call.query.get("until").and_then(|until| until.parse::<i64>().ok()).unwrap_or(i64::MAX);
        let most = call.query.get("limit").and_then(|most| most.parse().ok()).unwrap_or(20).min(self.page);
        let late = usize::from(self.late > 0);
        self.late = self.late.saturating_sub(1);
        let found = self.deployments.iter().rev().skip(late).filter(|it| {
            asked("projectId", &it["projectId"])
                && asked("target", &it["target"])
                && asked("state", &it["readyState"])
                && call.query.get("rollbackCandidate").is_none_or(|_| it["readySubstate"] == "PROMOTED")
                && it["createdAt"].as_i64().is_some_and(|at| at >= since && at < until)
        });
        let all: Vec<&Value> = found.collect();
        let next = (all.len() > most).then(|| all[most - 1]["createdAt"].clone());
        let found: Vec<Value> = all
            .into_iter()
            .take(most)
            .map(|it| {
                let mut shown = it.clone();
                shown["uid"] = it["id"].clone();
                shown["state"] = it["readyState"].clone();
                shown["created"] = it["createdAt"].clone();
                shown
            })
            .collect();
        let count = found.len();
        Answer::ok(json!({"deployments": found, "pagination": {"count": count, "next": next, "prev": null}}))
    }

    /// A redeploy (`deploymentId`) or a deployment from git. It is built at once, and promoted by nobody. A redeploy that is not
    /// asked for with `forceNew` is taken for the one that is there.
    fn make(&mut self, call: &Call<'_>) -> Answer {
        let origin = call.body["deploymentId"].as_str().map(str::to_owned);
        let anew = call.query.get("forceNew").is_some_and(|anew| anew == "1");
        if let (Some(origin), false) = (&origin, anew) {
            return self
                .deployment(origin)
                .map_or_else(|| Answer::refused(404, "not_found"), |it| Answer::ok(it.clone()));
        }
        let mut made = match origin.as_deref().map(|id| self.deployment(id).cloned()) {
            Some(None) => return Answer::refused(404, "not_found"),
            Some(Some(origin)) => origin,
            None if call.body["gitSource"]["sha"].is_string() => json!({
                "name": PROJECT_NAME, "projectId": PROJECT, "ownerId": TEAM, "gitSource": call.body["gitSource"],
            }),
            None => return Answer::refused(400, "missing_files"),
        };
        let (id, created) = (self.id("dpl"), self.tick());
        let number = id.trim_start_matches("dpl_").to_owned();
        let changes = json!({
            "id": id, "url": format!("{PROJECT_NAME}-{number}-acme.vercel.app"), "readyState": "READY",
            "readySubstate": "STAGED", "createdAt": created, "source": "redeploy", "alias": [], "aliasAssigned": null,
            "target": call.body.get("target").cloned().unwrap_or_default(),
            "meta": call.body.get("meta").cloned().unwrap_or_else(|| json!({})),
        });
        made.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
        self.deployments.push(made.clone());
        self.build(&id);
        Answer::ok(made)
    }
}
