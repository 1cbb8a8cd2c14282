//! GitHub's commit statuses: of a commit and a context, the newest first.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::github_workflows::Answer;

/// GitHub takes no longer description.
const LONGEST_DESCRIPTION: usize = 140;

/// The statuses of all commits.
#[derive(Default)]
pub struct Statuses {
    /// What was set, the oldest first: each with its commit as `sha`.
    pub set: Vec<Value>,
    /// So many of the next ones are set, and their answers lost.
    pub lost: usize,
}

impl Statuses {
    /// The states of a commit in a context, the oldest first.
    pub fn states(&self, sha: &str, context: &str) -> Vec<String> {
        let of = self.set.iter().filter(|status| status["sha"] == sha && status["context"] == context);
        of.filter_map(|status| status["state"].as_str().map(str::to_owned)).collect()
    }

    /// Answers a request below the repository.
    pub fn answer(&mut self, method: &Method, path: &str, body: &Value) -> Option<Answer> {
        let steps: Vec<&str> = path.split('/').collect();
        match (method.as_str(), steps.as_slice()) {
            ("POST", ["statuses", sha]) => Some(self.take(sha, body)),
            ("GET", ["commits", sha, "statuses"]) => {
                let newest: Vec<&Value> = self.set.iter().rev().filter(|status| status["sha"] == *sha).collect();
                Some(Answer::Say(StatusCode::OK, json!(newest)))
            }
            _ => None,
        }
    }

    fn take(&mut self, sha: &str, body: &Value) -> Answer {
        let known = ["error", "failure", "pending", "success"];
        let fits = body["state"].as_str().is_some_and(|state| known.contains(&state))
            && body["description"].as_str().is_none_or(|text| text.chars().count() <= LONGEST_DESCRIPTION);
        if !fits {
            return Answer::Say(StatusCode::UNPROCESSABLE_ENTITY, json!({"message": "Validation Failed"}));
        }
        let mut status = body.clone();
        status["sha"] = json!(sha);
        status["id"] = json!(self.set.len() + 1);
        self.set.push(status.clone());
        if self.lost > 0 {
            self.lost -= 1;
            return Answer::Break;
        }
        Answer::Say(StatusCode::CREATED, status)
    }
}
