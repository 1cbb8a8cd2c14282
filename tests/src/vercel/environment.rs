//! Environment variables. Values of `sensitive` ones are never shown, those of others only in their encrypted form; a
//! deployment has those that there were when it was made.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{Answer, Call, Hub, Vercel};

/// Where the variables are kept.
const VARIABLES: &str = "variables";
/// Where it is kept which values a deployment was built with.
const BUILT: &str = "built";

pub(super) fn answer(hub: &mut Hub, call: &Call<'_>) -> Option<Answer> {
    match (call.method, call.steps.as_slice()) {
        ("GET", ["v9" | "v10", "projects", project, "env"]) => {
            hub.project(project)?;
            let mut envs = hub.variables().clone();
            envs.iter_mut().for_each(hide);
            Some(Answer::ok(json!({"envs": envs})))
        }
        ("POST", ["v10", "projects", project, "env"]) => {
            hub.project(project)?;
            Some(hub.put(call))
        }
        _ => None,
    }
}

fn hide(variable: &mut Value) {
    let shown = if variable["type"] == "sensitive" { json!("") } else { json!("eyJ2IjoidjIifQ==") };
    variable["value"] = shown;
}

impl Vercel {
    /// Sets a variable, as a person does.
    pub fn set_variable(&self, variable: &Value) {
        self.hub(|hub| {
            let id = hub.id("env");
            let mut variable = variable.clone();
            variable["id"] = json!(id);
            hub.variables().push(variable);
        });
    }

    /// The value of a variable of production.
    pub fn variable(&self, key: &str) -> Option<Value> {
        self.hub(|hub| hub.variables().iter().find(|variable| variable["key"] == key).cloned())
    }

    /// The value that a deployment has of a variable of production.
    pub fn built_with(&self, deployment: &str, key: &str) -> Option<String> {
        self.hub(|hub| hub.other.get(BUILT)?[deployment][key].as_str().map(str::to_owned))
    }
}

impl Hub {
    fn variables(&mut self) -> &mut Vec<Value> {
        let kept = self.other.entry(VARIABLES.to_owned()).or_insert_with(|| json!([]));
        kept.as_array_mut().expect("an array")
    }

    /// Keeps which values a new deployment has.
    pub(super) fn build(&mut self, deployment: &str) {
        let for_production = |variable: &&Value| {
            variable["target"].as_array().is_some_and(|targets| targets.contains(&json!("production")))
        };
        let values: serde_json::Map<String, Value> = self
            .variables()
            .iter()
            .filter(for_production)
            .filter_map(|variable| Some((variable["key"].as_str()?.to_owned(), variable["value"].clone())))
            .collect();
        let built = self.other.entry(BUILT.to_owned()).or_insert_with(|| json!({}));
        built[deployment] = values.into();
    }

    fn put(&mut self, call: &Call<'_>) -> Answer {
        let body = call.body;
        let known = ["key", "value", "type", "target", "gitBranch", "comment", "customEnvironmentIds"];
        let Some(fields) = body.as_object() else { return Answer::refused(400, "bad_request") };
        let targets = body["target"].as_array().cloned().unwrap_or_default();
        let fits = fields.keys().all(|name| known.contains(&name.as_str()))
            && body["key"].is_string()
            && body["value"].is_string()
            && ["plain", "encrypted", "sensitive"].contains(&body["type"].as_str().unwrap_or_default())
            && !targets.is_empty()
            && body["comment"].as_str().unwrap_or_default().chars().count() <= 500;
        if !fits || (body["type"] == "sensitive" && targets.contains(&json!("development"))) {
            return Answer::refused(400, "bad_request");
        }
        let now = self.tick();
        let upsert = call.query.get("upsert").is_some_and(|upsert| upsert == "true");
        let same = |variable: &&mut Value| variable["key"] == body["key"] && variable["target"] == body["target"];
        let id = self.id("env");
        let made = match self.variables().iter_mut().find(same) {
            Some(_) if !upsert => {
                let error = json!({"code": "ENV_CONFLICT", "message": "another variable", "key": body["key"]});
                return Answer(StatusCode::CREATED, json!({"created": [], "failed": [{"error": error}]}));
            }
            Some(there) => {
                let fields = there.as_object_mut().expect("an object");
                fields.extend(body.as_object().cloned().unwrap_or_default());
                there["updatedAt"] = json!(now);
                there.clone()
            }
            None => {
                let mut made = body.clone();
                made["id"] = json!(id);
                made["createdAt"] = json!(now);
                self.variables().push(made.clone());
                made
            }
        };
        let mut shown = made;
        hide(&mut shown);
        Answer(StatusCode::CREATED, json!({"created": shown, "failed": []}))
    }
}
