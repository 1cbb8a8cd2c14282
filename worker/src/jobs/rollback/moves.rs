//! Where the production domains are to lead, asking for it, and waiting for it.

use std::time::Duration;

use queue::clock::later;
use schemas::{Timestamp, period};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::info;

use super::{ADVICE, Rollback, short};
use crate::context::{Context, Step};
use crate::handler::Failure;
use crate::rest::query_of;
use crate::vercel::{Deployment, Sent, Vercel, status_of};

/// Between two looks.
const AGAIN: Duration = Duration::from_secs(5);

/// What is rolled back to, and what was so before.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Aim {
    /// The project's id.
    pub(super) project: String,
    pub(super) name: String,
    /// The deployment's id.
    pub(super) deployment: String,
    pub(super) url: String,
    /// The commit that it was built from, where Vercel itself fetched it.
    pub(super) commit: Option<String>,
    /// The deployment that served before.
    pub(super) from: Option<String>,
    /// The move before ours: ours is a newer one.
    pub(super) before: Option<i64>,
}

/// How a try to ask ended.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Asked {
    Taken(Timestamp),
    NotTaken,
}

/// How a move ended; of one that did not come about, when it was requested.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ended {
    Moved,
    NotMoved(i64),
}

/// A project, as far as its domains are concerned.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Project {
    id: String,
    name: String,
    #[serde(default)]
    auto_assign_custom_domains: Option<bool>,
    #[serde(default)]
    last_rollback_target: Option<Value>,
    #[serde(default)]
    last_alias_request: Option<Move>,
    #[serde(default)]
    targets: Option<Value>,
}

/// The newest move of the production domains.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Move {
    #[serde(rename = "type")]
    kind: String,
    job_status: String,
    to_deployment_id: String,
    requested_at: i64,
}

#[derive(Debug, Deserialize)]
struct Candidates {
    deployments: Vec<Candidate>,
}

#[derive(Debug, Deserialize)]
struct Candidate {
    uid: String,
}

#[derive(Debug, Deserialize)]
struct Aliases {
    #[serde(default)]
    aliases: Vec<Alias>,
}

#[derive(Debug, Deserialize)]
struct Alias {
    alias: String,
    #[serde(default)]
    status: String,
}

impl Project {
    pub(super) async fn read(vercel: &Vercel<'_>, id_or_name: &str) -> Result<Self, Failure> {
        vercel.get(&["v9", "projects", id_or_name], "", "looking at the project", &ADVICE).await
    }

    fn serving(&self) -> Option<&str> {
        self.targets.as_ref()?["production"]["id"].as_str()
    }

    /// The move that came after those that were there before, if one did.
    fn newer(&self, before: Option<i64>) -> Option<&Move> {
        self.last_alias_request.as_ref().filter(|last| before.is_none_or(|before| last.requested_at > before))
    }

    /// Whether new deployments do not get the domains by themselves.
    pub(super) fn is_pinned(&self) -> bool {
        self.auto_assign_custom_domains == Some(false) || self.last_rollback_target.is_some()
    }
}

impl Aim {
    fn is_ours(&self, last: &Move) -> bool {
        last.kind == "rollback" && last.to_deployment_id == self.deployment
    }

    fn given_way_to(&self, last: &Move) -> Failure {
        Failure::Discard(anyhow::anyhow!(
            "somebody else moved the production domains of {} meanwhile ({} to {}), and has the last word; start it again if \
             it is still wanted",
            self.name,
            last.kind,
            last.to_deployment_id
        ))
    }
}

impl Rollback {
    /// What is rolled back to: written down first, so that every attempt has the same aim.
    pub(super) async fn aim(&self, cx: &Context, vercel: &Vercel<'_>) -> Result<Aim, Failure> {
        match cx.step::<Aim>("aim").await? {
            Step::Finished(aim) => Ok(aim),
            Step::Fresh(step) | Step::Unknown(step) => {
                let project = Project::read(vercel, &self.project).await?;
                let target = match &self.deployment {
                    Some(deployment) => deployment.clone(),
                    None => previous(vercel, &project).await?,
                };
                let deployment = Deployment::read(vercel, &target).await?;
                refuse_unless_served(&deployment, &project)?;
                let aim = Aim {
                    from: project.serving().map(str::to_owned),
                    before: project.last_alias_request.as_ref().map(|last| last.requested_at),
                    commit: deployment.commit().map(str::to_owned),
                    deployment: deployment.id,
                    url: deployment.url,
                    project: project.id,
                    name: project.name,
                };
                step.finish(&aim).await?;
                Ok(aim)
            }
        }
    }

    /// Has the domains moved; when that was asked for. Where it failed, whoever retries the job wants it asked for again.
    pub(super) async fn rolled_back(&self, cx: &Context, vercel: &Vercel<'_>, aim: &Aim) -> Result<Timestamp, Failure> {
        let mut before = aim.before;
        for number in 1_u32.. {
            let Some(asked_at) = self.asked(cx, vercel, aim, (number, before)).await? else { continue };
            match cx.step::<Ended>(&format!("moved {number}")).await? {
                Step::Finished(Ended::Moved) => return Ok(asked_at),
                Step::Finished(Ended::NotMoved(requested_at)) => before = Some(requested_at),
                Step::Fresh(step) | Step::Unknown(step) => {
                    return match self.look(cx, vercel, aim, (asked_at, before)).await? {
                        Ok(()) => {
                            step.finish(&Ended::Moved).await?;
                            Ok(asked_at)
                        }
                        Err((requested_at, failure)) => {
                            step.finish(&Ended::NotMoved(requested_at)).await?;
                            Err(failure)
                        }
                    };
                }
            }
        }
        Err(Failure::Discard(anyhow::anyhow!("it was tried too often")))
    }

    /// Asks Vercel, once; when, none where this try was not taken. `before`: the newest move that is not ours.
    async fn asked(
        &self,
        cx: &Context,
        vercel: &Vercel<'_>,
        aim: &Aim,
        (number, before): (u32, Option<i64>),
    ) -> Result<Option<Timestamp>, Failure> {
        let step = match cx.step::<Asked>(&format!("roll back {number}")).await? {
            Step::Finished(Asked::Taken(at)) => return Ok(Some(at)),
            Step::Finished(Asked::NotTaken) => return Ok(None),
            Step::Fresh(step) | Step::Unknown(step) => step,
        };
        // The backup may have taken long, and the answer to this try may have been lost.
        let project = Project::read(vercel, &aim.project).await?;
        match project.newer(before) {
            Some(last) if aim.is_ours(last) => {
                step.finish(&Asked::Taken(cx.now())).await?;
                return Ok(Some(cx.now()));
            }
            Some(last) => {
                step.finish(&Asked::NotTaken).await?;
                return Err(aim.given_way_to(last));
            }
            None => {}
        }
        match self.ask(vercel, aim).await {
            Sent::Done(_) => {
                let at = cx.now();
                info!(project = aim.name, deployment = aim.deployment, "the rollback is taken");
                step.finish(&Asked::Taken(at)).await?;
                Ok(Some(at))
            }
            Sent::Refused(failure) => {
                step.finish(&Asked::NotTaken).await?;
                Err(meaning(failure))
            }
            Sent::Unknown(failure) => Err(failure), // The step stays open: the next attempt asks the project.
        }
    }

    async fn ask(&self, vercel: &Vercel<'_>, aim: &Aim) -> Sent {
        let reason = self.reason.as_deref().unwrap_or("rolled back by Nightporter");
        let query = query_of([("description", short(reason))]);
        let path = ["v1", "projects", &aim.project, "rollback", &aim.deployment];
        vercel.post_with(&path, &query, &json!({}), "asking Vercel to roll back", &ADVICE).await
    }

    /// Looks whether Vercel has moved the domains; where it says that it did not, which move that was, and why.
    async fn look(
        &self,
        cx: &Context,
        vercel: &Vercel<'_>,
        aim: &Aim,
        (asked_at, before): (Timestamp, Option<i64>),
    ) -> Result<Result<(), (i64, Failure)>, Failure> {
        let project = Project::read(vercel, &aim.project).await?;
        let (status, requested_at) = match project.newer(before) {
            Some(last) if aim.is_ours(last) => (last.job_status.as_str(), last.requested_at),
            Some(last) => return Err(aim.given_way_to(last)),
            None => ("pending", 0),
        };
        match status {
            "succeeded" => Ok(Ok(())),
            "failed" => Ok(Err((requested_at, failed(vercel, aim).await?))),
            "skipped" => {
                let why = anyhow::anyhow!(
                    "Vercel skipped the rollback to {}: nothing was moved; look at the project's deployments",
                    aim.deployment
                );
                Ok(Err((requested_at, Failure::Discard(why))))
            }
            status => Err(self.not_yet(cx, asked_at, &format!("Vercel's rollback is {status}"))),
        }
    }

    /// Looks again soon, or gives up when the time is over.
    pub(super) fn not_yet(&self, cx: &Context, asked_at: Timestamp, standing: &str) -> Failure {
        if cx.now() < later(asked_at, self.within) {
            return Failure::Snooze { wait: AGAIN, reason: standing.to_owned() };
        }
        let within = period::write(self.within);
        Failure::Discard(anyhow::anyhow!(
            "{standing}, {within} after it was asked for; look at the project's deployments at Vercel"
        ))
    }
}

/// The deployment that served production before today's.
async fn previous(vercel: &Vercel<'_>, project: &Project) -> Result<String, Failure> {
    let wanted = [
        ("projectId", project.id.as_str()),
        ("target", "production"),
        ("state", "READY"),
        ("rollbackCandidate", "true"),
        ("limit", "20"),
    ];
    let query = query_of(wanted.map(|(name, value)| (name, value.to_owned())));
    let what = "looking for the deployment before";
    let found: Candidates = vercel.get(&["v7", "deployments"], &query, what, &ADVICE).await?;
    let serving = project.serving();
    let before = found.deployments.into_iter().find(|one| Some(one.uid.as_str()) != serving);
    before.map(|one| one.uid).ok_or_else(|| {
        Failure::Discard(anyhow::anyhow!(
            "Vercel names no earlier deployment of {} that can be rolled back to; name one by `deployment`",
            project.name
        ))
    })
}

fn refuse_unless_served(deployment: &Deployment, project: &Project) -> Result<(), Failure> {
    let id = &deployment.id;
    let wrong = if deployment.project() != project.id {
        format!("{id} is a deployment of another project than {}", project.name)
    } else if deployment.target() != "production" {
        format!("{id} is a deployment of `{}`, not of production", deployment.target())
    } else if deployment.ready_state != "READY" {
        format!("{id} is {}, not READY", deployment.ready_state)
    } else if deployment.ready_substate.as_deref() == Some("STAGED") {
        format!("{id} has never served production; to let it, promote it")
    } else if project.serving() == Some(id) {
        format!("{id} serves production now: there is nothing to roll back")
    } else {
        return Ok(());
    };
    Err(Failure::Discard(anyhow::anyhow!("{wrong}")))
}

/// What Vercel's refusals mean here.
fn meaning(failure: Failure) -> Failure {
    match status_of(&failure) {
        Some(402) => failure.context(
            "this plan rolls back to the deployment before today's alone (on Hobby); leave `deployment` out, or redeploy the \
             commit",
        ),
        Some(409) => {
            let Failure::Discard(error) = failure else { return failure };
            let error = error.context("another move of the domains is under way");
            Failure::Retry { error, after: Some(AGAIN * 3) }
        }
        Some(422) => failure.context("Vercel does not take this deployment as a target"),
        _ => failure,
    }
}

/// Why it failed: the domains that were not moved.
async fn failed(vercel: &Vercel<'_>, aim: &Aim) -> Result<Failure, Failure> {
    let path = ["v1", "projects", &aim.project, "promote", "aliases"];
    let query = "failedOnly=true&limit=100";
    let aliases: Aliases = vercel.get(&path, query, "listing the domains that failed", &ADVICE).await?;
    let failed = aliases.aliases.iter().filter(|alias| alias.status == "failed" || alias.status.is_empty());
    let names: Vec<&str> = failed.map(|alias| alias.alias.as_str()).collect();
    let which = if names.is_empty() { String::new() } else { format!(" for {}", names.join(", ")) };
    Ok(Failure::Discard(anyhow::anyhow!(
        "Vercel says that the rollback to {} failed{which}; the domains may lead to different deployments now: look at once",
        aim.deployment
    )))
}
