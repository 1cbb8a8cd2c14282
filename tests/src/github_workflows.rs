//! GitHub's workflows, as far as jobs start them and wait for them: `workflow_dispatch`, runs and their conclusions.

use std::collections::BTreeMap;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

/// The only workflow that there is: it takes the inputs `target` and `porter`, and shows `porter` in its `run-name`.
pub const WORKFLOW: &str = "deploy.yml";

/// The workflow's runs.
#[derive(Default)]
pub struct Workflows {
    runs: Vec<Value>,
    /// Whether new runs are listed only when [`Workflows::list`] is called.
    pub hidden: bool,
    /// Whether the server is an older one, which refuses `return_run_details`.
    pub old: bool,
    /// So many of the next dispatches are taken, and their answers lost.
    pub lost: usize,
    /// The inputs of all dispatches that were taken.
    pub taken: Vec<Value>,
    /// The runs that were to be cancelled.
    pub cancelled: Vec<u64>,
    number: u64,
}

/// What is answered.
pub enum Answer {
    /// So.
    Say(StatusCode, Value),
    /// Nothing: the connection breaks.
    Break,
}

impl Workflows {
    /// Lets all runs be listed.
    pub fn list(&mut self) {
        self.hidden = false;
        self.runs.iter_mut().for_each(|run| run["hidden"] = json!(false));
    }

    /// A run of somebody else on the same branch, of the same workflow.
    pub fn begin_beside(&mut self) {
        self.begin("by hand");
    }

    /// Ends all runs.
    pub fn conclude(&mut self, conclusion: &str) {
        for run in &mut self.runs {
            run["status"] = json!("completed");
            run["conclusion"] = json!(conclusion);
        }
    }

    fn begin(&mut self, title: &str) -> u64 {
        self.number += 1;
        let id = 30_433_642 + self.number;
        self.runs.push(json!({
            "id": id, "name": "Deploy", "display_title": title, "status": "queued", "conclusion": null,
            "event": "workflow_dispatch", "head_branch": "main", "html_url": format!("https://github.test/runs/{id}"),
            "hidden": self.hidden,
        }));
        id
    }

    /// Answers a request below `actions/`.
    pub fn answer(
        &mut self,
        method: &Method,
        path: &str,
        query: &BTreeMap<String, String>,
        body: &Value,
    ) -> Option<Answer> {
        let steps: Vec<&str> = path.split('/').collect();
        match (method.as_str(), steps.as_slice()) {
            ("POST", ["workflows", WORKFLOW, "dispatches"]) => Some(self.dispatch(body)),
            ("GET", ["workflows", WORKFLOW, "runs"]) => Some(Answer::Say(StatusCode::OK, self.listed(query))),
            ("GET", ["runs", id]) => {
                let run = self.runs.iter().find(|run| run["id"].as_u64() == id.parse().ok())?;
                Some(Answer::Say(StatusCode::OK, run.clone()))
            }
            ("POST", ["runs", id, "cancel"]) => {
                self.cancelled.push(id.parse().ok()?);
                Some(Answer::Say(StatusCode::ACCEPTED, json!({})))
            }
            _ => None,
        }
    }

    fn dispatch(&mut self, body: &Value) -> Answer {
        let unprocessable = |why: &str| Answer::Say(StatusCode::UNPROCESSABLE_ENTITY, json!({"message": why}));
        if body["ref"] != "main" {
            return unprocessable("No ref found for: ");
        }
        let inputs = body["inputs"].as_object().cloned().unwrap_or_default();
        if inputs.keys().any(|name| !["target", "porter"].contains(&name.as_str())) {
            return unprocessable("Unexpected inputs provided");
        }
        let details = body.get("return_run_details").is_some();
        if self.old && details {
            return unprocessable("Invalid request. \"return_run_details\" is not a permitted key.");
        }
        let title = format!("Deploy {}", inputs.get("porter").and_then(Value::as_str).unwrap_or_default());
        let id = self.begin(&title);
        self.taken.push(inputs.into());
        if self.lost > 0 {
            self.lost -= 1;
            return Answer::Break;
        }
        if details {
            return Answer::Say(StatusCode::OK, json!({"workflow_run_id": id, "run_url": "", "html_url": ""}));
        }
        Answer::Say(StatusCode::NO_CONTENT, Value::Null)
    }

    fn listed(&self, query: &BTreeMap<String, String>) -> Value {
        let asked = |name: &str, run: &Value, field: &str| query.get(name).is_none_or(|wanted| run[field] == *wanted);
        let runs = self.runs.iter().rev().filter(|run| {
            run["hidden"] == false && asked("event", run, "event") && asked("branch", run, "head_branch")
        });
        let most = query.get("per_page").and_then(|most| most.parse().ok()).unwrap_or(30);
        let runs: Vec<&Value> = runs.take(most).collect();
        json!({"total_count": runs.len(), "workflow_runs": runs})
    }
}
