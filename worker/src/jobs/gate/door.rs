//! Where a gate's answer is awaited: a run of a deployment check at Vercel, or a commit status at GitHub.

use schemas::JobId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Conclusion, short};
use crate::github::Repository;
use crate::handler::Failure;
use crate::rest::{Advice, Sent, status_of};
use crate::vercel::Vercel;

/// GitHub takes no longer description.
const LONGEST_DESCRIPTION: usize = 140;

/// Vercel says no limit of a conclusion's text; one line is enough.
const LONGEST_TEXT: usize = 300;

const CHECK: Advice = Advice {
    forbidden: "may not answer the project's checks",
    check: "the check run is not there any more, or the check was made for another integration; see docs/gate.md",
};

const STATUS: Advice = Advice {
    forbidden: "may not set commit statuses there; give it the right `statuses: write`",
    check: "check `repository`, and that the commit is in it (GitHub says `not found` where the token may not read it)",
};

/// Where the answer goes, and whose it is.
pub(in crate::jobs) enum Door<'d> {
    /// A run of a deployment check.
    Check { vercel: &'d Vercel<'d>, deployment: &'d str, run: &'d str, job: JobId },
    /// A commit status: of a commit, not of a deployment, so its context names project and environment.
    Status { github: Repository<'d>, commit: &'d str, context: String, job: JobId },
}

/// How the answer stands.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::jobs) enum Awaited {
    /// It is awaited.
    Open,
    /// It was given: by us, or by somebody else.
    Given { conclusion: String, ours: bool },
    /// Nobody awaits it any more.
    Gone,
}

/// A check run, as far as it is looked at.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct CheckRun {
    status: String,
    conclusion: Option<String>,
    external_id: Option<String>,
    /// In milliseconds, it seems: Vercel does not say.
    pub(super) timeout: Option<f64>,
}

#[derive(Deserialize)]
struct Status {
    state: String,
    context: String,
    #[serde(default)]
    description: Option<String>,
}

impl Door<'_> {
    /// How the answer stands.
    pub(in crate::jobs) async fn look(&self) -> Result<Awaited, Failure> {
        match self {
            Self::Check { job, .. } => match self.check_run().await? {
                None => Ok(Awaited::Gone),
                Some(run) if run.status == "completed" => {
                    let ours = run.external_id.as_deref() == Some(job.to_string().as_str());
                    Ok(match run.conclusion.unwrap_or_default() {
                        // Vercel's own end of it, and nobody's answer.
                        conclusion if !ours && matches!(conclusion.as_str(), "canceled" | "timeout") => Awaited::Gone,
                        conclusion => Awaited::Given { conclusion, ours },
                    })
                }
                Some(_) => Ok(Awaited::Open),
            },
            Self::Status { job, .. } => Ok(match self.newest_status().await? {
                None => Awaited::Open,
                Some(status) => {
                    let ours = status.description.unwrap_or_default().ends_with(&signature(*job));
                    match status.state.as_str() {
                        "pending" if ours => Awaited::Open,
                        // Another deployment of the commit has it now.
                        "pending" | "failure" | "error" if !ours => Awaited::Gone,
                        _ => Awaited::Given { conclusion: status.state, ours },
                    }
                }
            }),
        }
    }

    /// The check run; none where it is gone, or where the answer goes elsewhere.
    pub(super) async fn check_run(&self) -> Result<Option<CheckRun>, Failure> {
        let Self::Check { vercel, deployment, run, .. } = self else { return Ok(None) };
        let path = ["v2", "deployments", deployment, "check-runs", run];
        match vercel.get(&path, "", "looking at the check run", &CHECK).await {
            Err(failure) if is_gone(&failure) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Says that it is being worked at; false where nobody awaits it any more.
    pub(super) async fn say_running(&self, text: &str) -> Result<bool, Failure> {
        let sent = match self {
            Self::Check { job, .. } => {
                let body = json!({"status": "running", "externalId": job, "conclusionText": short(text, LONGEST_TEXT)});
                self.patch(&body).await
            }
            Self::Status { .. } => self.post("pending", text).await,
        };
        is_taken(sent)
    }

    /// Gives the answer. It is asked first whether it was given: an answer may have been lost on its way back.
    pub(in crate::jobs) async fn answer(&self, conclusion: Conclusion, text: &str) -> Result<(), Failure> {
        let wanted = self.word(conclusion);
        match self.look().await? {
            Awaited::Given { conclusion, ours: true } if conclusion == wanted => return Ok(()),
            Awaited::Given { ours: false, .. } => return Ok(()), // Somebody's word counts more than ours.
            Awaited::Gone => return Err(no_longer_wanted()),
            _ => {}
        }
        self.overrule(conclusion, text).await
    }

    /// Gives the answer, whatever was answered before.
    pub(in crate::jobs) async fn overrule(&self, conclusion: Conclusion, text: &str) -> Result<(), Failure> {
        let sent = match self {
            Self::Check { job, .. } => {
                let text = short(text, LONGEST_TEXT);
                let body = json!({
                    "status": "completed", "conclusion": conclusion.as_str(), "conclusionText": text, "externalId": job,
                });
                self.patch(&body).await
            }
            Self::Status { .. } => self.post(self.word(conclusion), text).await,
        };
        if is_taken(sent)? { Ok(()) } else { Err(no_longer_wanted()) }
    }

    /// The conclusion in the words of this place.
    fn word(&self, conclusion: Conclusion) -> &'static str {
        match (self, conclusion) {
            (Self::Check { .. }, conclusion) => conclusion.as_str(),
            (Self::Status { .. }, Conclusion::Succeeded | Conclusion::Neutral) => "success",
            (Self::Status { .. }, Conclusion::Failed) => "failure",
            (Self::Status { .. }, Conclusion::Canceled) => "error",
        }
    }

    async fn patch(&self, body: &Value) -> Sent {
        let Self::Check { vercel, deployment, run, .. } = self else { return Sent::Done(Value::Null) };
        let path = ["v2", "deployments", deployment, "check-runs", run];
        vercel.patch(&path, body, "answering the check run", &CHECK).await
    }

    async fn post(&self, state: &str, text: &str) -> Sent {
        let Self::Status { github, commit, context, job } = self else { return Sent::Done(Value::Null) };
        let signature = signature(*job);
        let description = short(text, LONGEST_DESCRIPTION - signature.len()) + &signature;
        let body = json!({"state": state, "context": context, "description": description});
        github.post(&["statuses", commit], &body, "setting the commit status", &STATUS).await
    }

    async fn newest_status(&self) -> Result<Option<Status>, Failure> {
        let Self::Status { github, commit, context, .. } = self else { return Ok(None) };
        let path = ["commits", commit, "statuses"];
        let statuses: Vec<Status> =
            github.get(&path, "per_page=100", "looking at the commit's statuses", &STATUS).await?;
        // The newest comes first. Contexts are the same whatever their case.
        Ok(statuses.into_iter().find(|status| status.context.eq_ignore_ascii_case(context)))
    }
}

/// By it a job knows its own status again: a status has no place for an id.
fn signature(job: JobId) -> String {
    let id = job.to_string();
    format!(" ({})", id.rsplit('-').next().unwrap_or_default())
}

pub(super) fn no_longer_wanted() -> Failure {
    Failure::Cancelled(
        "nobody awaits the answer any more: the deployment, its check or its status is another's now".into(),
    )
}

fn is_gone(failure: &Failure) -> bool {
    matches!(status_of(failure), Some(404 | 410))
}

/// Whether what was sent was taken; false where nobody awaits it any more. Where nobody knows, it is asked again.
fn is_taken(sent: Sent) -> Result<bool, Failure> {
    match sent {
        Sent::Done(_) => Ok(true),
        Sent::Refused(failure) if status_of(&failure) == Some(410) => Ok(false),
        Sent::Refused(failure) | Sent::Unknown(failure) => Err(failure),
    }
}
