//! What is read of GitHub's bodies: one struct for all events, since most say the same things in the same places.

use schemas::event::{Actor, Git, Repository};
use schemas::{Facts, Timestamp};
use serde::Deserialize;

use crate::readable::{Flag, Moment, Part, Present, Text};

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Body {
    pub(super) action: Text,
    repository: Part<Named>,
    sender: Part<Person>,
    // push, create, delete, dispatches
    r#ref: Text,
    ref_type: Text,
    before: Text,
    after: Text,
    created: Flag,
    deleted: Flag,
    compare: Text,
    commits: Present,
    branch: Text,
    client_payload: Present,
    inputs: Present,
    workflow: Present,
    // objects that an event is about
    number: Text,
    pull_request: Part<PullRequest>,
    review: Present,
    issue: Present,
    comment: Present,
    release: Part<Release>,
    deployment: Part<Deployment>,
    deployment_status: Part<DeploymentStatus>,
    workflow_run: Part<Check>,
    workflow_job: Part<Check>,
    check_run: Part<Check>,
    check_suite: Part<Check>,
    member: Part<Person>,
    team: Present,
    alert: Present,
    installation: Present,
    // status
    sha: Text,
    state: Text,
    context: Text,
    target_url: Text,
    updated_at: Moment,
    // ping
    zen: Present,
    hook_id: Present,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    id: Text,
    full_name: Text,
    html_url: Text,
    /// Seconds in a push, a text elsewhere.
    pushed_at: Moment,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Person {
    id: Text,
    login: Text,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PullRequest {
    state: Text,
    merged: Flag,
    html_url: Text,
    updated_at: Moment,
    head: Part<Commit>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Commit {
    r#ref: Text,
    sha: Text,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Release {
    tag_name: Text,
    draft: Flag,
    prerelease: Flag,
    html_url: Text,
    published_at: Moment,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Deployment {
    id: Text,
    sha: Text,
    r#ref: Text,
    environment: Text,
    updated_at: Moment,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DeploymentStatus {
    state: Text,
    environment: Text,
    environment_url: Text,
    target_url: Text,
    updated_at: Moment,
}

/// Workflow runs and jobs, check runs and suites.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Check {
    id: Text,
    head_sha: Text,
    head_branch: Text,
    status: Text,
    conclusion: Text,
    html_url: Text,
    updated_at: Moment,
    completed_at: Moment,
    started_at: Moment,
    #[serde(rename = "check_suite")]
    suite: Part<Branch>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Branch {
    head_branch: Text,
}

impl Body {
    /// Whether this can be the body of that event. Of events that are not listed nothing is known.
    pub(super) fn has_shape_of(&self, event: &str) -> bool {
        let there = |text: &Text| text.get().is_some();
        match event {
            "push" => there(&self.r#ref) && there(&self.before) && there(&self.after) && self.commits.0,
            "create" | "delete" => there(&self.r#ref) && there(&self.ref_type),
            "pull_request" => self.pull_request.0.is_some() && there(&self.number),
            "pull_request_review" => self.pull_request.0.is_some() && self.review.0,
            "issues" => self.issue.0 && !self.comment.0,
            "issue_comment" => self.issue.0 && self.comment.0,
            "release" => self.release.0.is_some(),
            "deployment" => self.deployment.0.is_some() && self.deployment_status.0.is_none(),
            "deployment_status" => self.deployment.0.is_some() && self.deployment_status.0.is_some(),
            "workflow_run" => self.workflow_run.0.is_some() && self.workflow_job.0.is_none(),
            "workflow_job" => self.workflow_job.0.is_some(),
            "check_run" => self.check_run.0.is_some(),
            "check_suite" => self.check_suite.0.is_some() && self.check_run.0.is_none(),
            "status" => there(&self.sha) && there(&self.state) && there(&self.context),
            "ping" => self.zen.0 && self.hook_id.0,
            "repository_dispatch" => there(&self.action) && self.client_payload.0,
            "workflow_dispatch" => there(&self.r#ref) && self.inputs.0 && self.workflow.0,
            "member" | "membership" => self.member.0.is_some(),
            "team" | "team_add" => self.team.0,
            "installation" | "installation_repositories" => self.installation.0,
            "dependabot_alert" | "code_scanning_alert" | "secret_scanning_alert" => self.alert.0,
            _ => true,
        }
    }

    /// The run, job, check or suite that an event is about.
    fn check(&self, event: &str) -> Option<&Check> {
        match event {
            "workflow_run" => self.workflow_run.0.as_ref(),
            "workflow_job" => self.workflow_job.0.as_ref(),
            "check_run" => self.check_run.0.as_ref(),
            "check_suite" => self.check_suite.0.as_ref(),
            _ => None,
        }
    }

    /// What the event is about.
    pub(super) fn subject(&self, event: &str) -> Option<String> {
        match event {
            "push" | "create" | "delete" => self.r#ref.0.clone(),
            "pull_request" | "pull_request_review" => self.number.0.clone(),
            "release" => self.release.text(|release| &release.tag_name),
            "deployment" | "deployment_status" => self.deployment.text(|deployment| &deployment.id),
            "status" => self.sha.0.clone(),
            "repository_dispatch" => self.action.0.clone(),
            "member" | "membership" => self.member.text(|member| &member.login),
            _ => self.check(event).and_then(|check| check.id.0.clone()),
        }
    }

    /// When it happened, by GitHub's clock.
    pub(super) fn time(&self, event: &str) -> Option<Timestamp> {
        match event {
            "push" => self.repository.moment(|repository| &repository.pushed_at),
            "pull_request" => self.pull_request.moment(|pull_request| &pull_request.updated_at),
            "release" => self.release.moment(|release| &release.published_at),
            "deployment" => self.deployment.moment(|deployment| &deployment.updated_at),
            "deployment_status" => self.deployment_status.moment(|status| &status.updated_at),
            "status" => self.updated_at.0,
            _ => {
                let check = self.check(event)?;
                check.updated_at.0.or(check.completed_at.0).or(check.started_at.0)
            }
        }
    }

    /// What it says.
    pub(super) fn facts(&self, event: &str) -> Facts {
        let git = self.git(event);
        let deployment = self.deployment.0.as_ref().filter(|_| event.starts_with("deployment"));
        let environment = deployment.and_then(|deployment| deployment.environment.0.clone());
        Facts {
            repository: Repository {
                id: self.repository.text(|repository| &repository.id),
                full_name: self.repository.text(|repository| &repository.full_name),
            },
            reference: self.reference(event),
            git,
            target: self.deployment_status.text(|status| &status.environment).or(environment),
            actor: Actor { id: self.sender.text(|sender| &sender.id), login: self.sender.text(|sender| &sender.login) },
            url: self.url(event),
            state: self.state(event),
            ..Facts::default()
        }
    }

    fn reference(&self, event: &str) -> Option<String> {
        match event {
            "release" => self.release.text(|release| &release.tag_name),
            "deployment" | "deployment_status" => self.deployment.text(|deployment| &deployment.r#ref),
            "repository_dispatch" => self.branch.0.clone(),
            _ => self.r#ref.0.clone(),
        }
    }

    fn git(&self, event: &str) -> Git {
        match event {
            "push" => Git {
                sha: self.after.0.clone().filter(|sha| !sha.bytes().all(|byte| byte == b'0')),
                reference: self.r#ref.get().map(short),
            },
            "pull_request" | "pull_request_review" => {
                let head = self.pull_request.0.as_ref().and_then(|pull_request| pull_request.head.0.as_ref());
                Git {
                    sha: head.and_then(|head| head.sha.0.clone()),
                    reference: head.and_then(|head| head.r#ref.0.clone()),
                }
            }
            "deployment" | "deployment_status" => Git {
                sha: self.deployment.text(|deployment| &deployment.sha),
                reference: self.deployment.text(|deployment| &deployment.r#ref),
            },
            _ => match self.check(event) {
                Some(check) => Git {
                    sha: check.head_sha.0.clone(),
                    reference: check.head_branch.0.clone().or_else(|| check.suite.text(|suite| &suite.head_branch)),
                },
                None => Git {
                    sha: self.sha.0.clone().filter(|_| event == "status"),
                    reference: self.reference(event).as_deref().map(short),
                },
            },
        }
    }

    fn url(&self, event: &str) -> Option<String> {
        let about = match event {
            "push" => self.compare.0.clone(),
            "pull_request" | "pull_request_review" => self.pull_request.text(|pull_request| &pull_request.html_url),
            "release" => self.release.text(|release| &release.html_url),
            "deployment_status" => self
                .deployment_status
                .text(|status| &status.environment_url)
                .or_else(|| self.deployment_status.text(|status| &status.target_url)),
            "status" => self.target_url.0.clone(),
            _ => self.check(event).and_then(|check| check.html_url.0.clone()),
        };
        about.or_else(|| self.repository.text(|repository| &repository.html_url))
    }

    fn state(&self, event: &str) -> Option<String> {
        let word = |word: &str| Some(word.to_owned());
        match event {
            "push" if self.deleted.0 => word("deleted"),
            "push" if self.created.0 => word("created"),
            "create" => word("created"),
            "delete" => word("deleted"),
            "pull_request" if self.pull_request.0.as_ref().is_some_and(|it| it.merged.0) => word("merged"),
            "pull_request" | "pull_request_review" => self.pull_request.text(|pull_request| &pull_request.state),
            "release" => {
                let release = self.release.0.as_ref()?;
                let published = || release.published_at.0.and_then(|_| word("published"));
                if release.draft.0 {
                    word("draft")
                } else if release.prerelease.0 {
                    word("prerelease")
                } else {
                    published()
                }
            }
            "deployment_status" => self.deployment_status.text(|status| &status.state),
            "status" => self.state.0.clone(),
            _ => self.check(event).and_then(|check| check.conclusion.0.clone().or_else(|| check.status.0.clone())),
        }
    }
}

/// A ref without `refs/heads/` or `refs/tags/`.
fn short(reference: &str) -> String {
    let branch = reference.strip_prefix("refs/heads/").or_else(|| reference.strip_prefix("refs/tags/"));
    branch.unwrap_or(reference).to_owned()
}
