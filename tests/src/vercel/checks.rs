//! Check runs of Deployment Checks, version 2.

use serde_json::{Value, json};

use super::{Answer, Call, Hub, PROJECT, TEAM, Vercel};

/// The check that the project has.
pub const CHECK: &str = "chk_migrations";

/// An `output` may be so large.
const LARGEST_OUTPUT: usize = 64 * 1024;

const CONCLUSIONS: [&str; 6] = ["succeeded", "failed", "neutral", "skipped", "canceled", "timeout"];

pub(super) fn answer(hub: &mut Hub, call: &Call<'_>) -> Option<Answer> {
    match (call.method, call.steps.as_slice()) {
        ("GET", ["v2", "deployments", deployment, "check-runs"]) => {
            let runs: Vec<Value> =
                hub.check_runs.iter().filter(|run| run["deploymentId"] == *deployment).cloned().collect();
            Some(Answer::ok(json!({"runs": runs})))
        }
        ("GET", ["v2", "deployments", deployment, "check-runs", id]) => {
            hub.check_run(deployment, id).map(|run| Answer::ok(run.clone()))
        }
        ("PATCH", ["v2", "deployments", deployment, "check-runs", id]) => Some(hub.change_run(deployment, id, call)),
        _ => None,
    }
}

impl Vercel {
    /// A run of the check for a deployment, as a webhook then tells of; its id. A second one is a rerun.
    pub fn begin_check(&self, deployment: &str) -> String {
        self.hub(|hub| {
            let (id, now) = (hub.id("chr"), hub.tick());
            hub.check_runs.push(json!({
                "id": id, "name": "migrations", "checkId": CHECK, "ownerId": TEAM, "projectId": PROJECT,
                "deploymentId": deployment, "source": {"kind": "webhook"}, "status": "queued", "conclusion": null,
                "blocks": "deployment-alias", "requires": "build-ready", "targets": ["production"],
                "timeout": 600_000, "createdAt": now, "updatedAt": now,
            }));
            id
        })
    }

    /// The webhook's body that tells of a check run.
    pub fn check_event(&self, kind: &str, run: &str) -> Value {
        let shown = self.check_run(run);
        let deployment = shown["deploymentId"].as_str().expect("it has one").to_owned();
        let check_run = json!({
            "id": run, "checkId": CHECK, "deploymentId": deployment, "timeout": shown["timeout"],
            "source": {"kind": "webhook"},
        });
        self.event(kind, &deployment, &json!({"checkRun": check_run}))
    }

    /// A check run as it stands.
    pub fn check_run(&self, id: &str) -> Value {
        self.hub(|hub| hub.check_runs.iter().find(|run| run["id"] == id).expect("it is there").clone())
    }

    /// Somebody cancels the deployment: it is over, and its open check runs are gone.
    pub fn cancel(&self, deployment: &str) {
        self.change(deployment, &json!({"readyState": "CANCELED"}));
        self.hub(|hub| {
            let runs = hub.check_runs.iter_mut().filter(|run| run["deploymentId"] == deployment);
            runs.for_each(|run| run["gone"] = json!(true));
        });
    }
}

impl Hub {
    fn check_run(&mut self, deployment: &str, id: &str) -> Option<&mut Value> {
        self.check_runs.iter_mut().find(|run| run["id"] == id && run["deploymentId"] == deployment)
    }

    fn change_run(&mut self, deployment: &str, id: &str, call: &Call<'_>) -> Answer {
        let now = self.tick();
        let Some(run) = self.check_run(deployment, id) else { return Answer::refused(404, "not_found") };
        if run["gone"] == true {
            return Answer::refused(410, "gone");
        }
        let body = call.body;
        if body.get("output").is_some_and(|output| output.to_string().len() > LARGEST_OUTPUT) {
            return Answer::refused(413, "payload_too_large");
        }
        let known = ["status", "conclusion", "conclusionText", "externalId", "externalUrl", "output", "completedAt"];
        let Some(fields) = body.as_object() else { return Answer::refused(400, "bad_request") };
        let status = body["status"].as_str();
        let conclusion = body["conclusion"].as_str();
        let fits = fields.keys().all(|name| known.contains(&name.as_str()))
            && status.is_none_or(|status| ["queued", "running", "completed"].contains(&status))
            && conclusion.is_none_or(|conclusion| CONCLUSIONS.contains(&conclusion));
        if !fits {
            return Answer::refused(400, "bad_request");
        }
        run.as_object_mut().expect("an object").extend(fields.clone());
        run["updatedAt"] = json!(now);
        if status == Some("completed") {
            run["answers"] = json!(run["answers"].as_u64().unwrap_or(0) + 1);
        }
        Answer::ok(run.clone())
    }
}
