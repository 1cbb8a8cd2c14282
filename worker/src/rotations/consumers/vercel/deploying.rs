//! The production deployment, made again from what it was made of.

use std::time::Duration;

use queue::clock::later;
use schemas::{DEPLOYMENT_MARK, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::info;

use super::{Variables, VercelConfig};
use crate::context::{Context, OpenStep, Step};
use crate::handler::Failure;
use crate::vercel::{Advice, Deployment, Sent, Vercel};

/// The name in a deployment's `meta` that says which publication it takes up.
pub(crate) const PUBLICATION: &str = "nightporterPublication";

/// Between looks at a deployment.
const AGAIN: Duration = Duration::from_secs(15);

/// A deployment that was made is listed by then; seconds are the rule.
const LISTED_WITHIN: Duration = Duration::from_mins(1);

const ADVICE: Advice = Advice {
    forbidden: "may not make deployments of this project",
    check: "check `project`, and that it has a production deployment which can be made again",
};

/// A project, as far as it is looked at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Project {
    id: String,
    name: String,
    #[serde(default)]
    targets: Value,
    /// False while a rollback is in force: then new deployments do not get the domains.
    #[serde(default)]
    auto_assign_custom_domains: Option<bool>,
}

#[derive(Deserialize)]
struct List {
    deployments: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    uid: String,
    #[serde(default)]
    meta: serde_json::Map<String, Value>,
}

/// How a request for a deployment ended.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Asked {
    /// It was made.
    Made(String),
    /// It was not.
    Refused,
}

/// Makes it again, once for each publication; the new one's id.
pub(super) async fn made_again(
    cx: &Context,
    vercel: &Vercel<'_>,
    whose: &Variables,
    publication: &str,
) -> Result<String, Failure> {
    let project = Project::read(vercel, &whose.config).await?;
    for number in 1_u32.. {
        let name = format!("redeploy {} {publication} {number}", whose.name);
        let since = begun(cx, &format!("begin to {name}")).await?;
        let step = match cx.step::<Asked>(&name).await? {
            Step::Finished(Asked::Made(id)) => return Ok(id),
            Step::Finished(Asked::Refused) => continue,
            Step::Fresh(step) => step,
            Step::Unknown(step) => {
                if let Some(id) = find(vercel, &project, publication).await? {
                    step.finish(&Asked::Made(id.clone())).await?;
                    return Ok(id);
                }
                if cx.now() < later(since, LISTED_WITHIN) {
                    let reason = "nobody knows whether the deployment was made; it is looked for".to_owned();
                    return Err(Failure::Snooze { wait: AGAIN, reason });
                }
                step
            }
        };
        let sent = project.redeploy(cx, vercel, publication).await?;
        return settle(step, sent).await;
    }
    Err(Failure::Discard(anyhow::anyhow!("it was tried too often")))
}

/// Writes down what became of the request, if that is known.
async fn settle(step: OpenStep<'_>, sent: Sent) -> Result<String, Failure> {
    match sent {
        Sent::Done(answer) => {
            let id = answer["id"].as_str();
            let id =
                id.ok_or_else(|| Failure::retry(anyhow::anyhow!("Vercel made a deployment and did not say its id")))?;
            info!(deployment = id, "the production deployment was made again, to take up a new secret");
            step.finish(&Asked::Made(id.to_owned())).await?;
            Ok(id.to_owned())
        }
        Sent::Refused(failure) => {
            step.finish(&Asked::Refused).await?;
            Err(failure)
        }
        Sent::Unknown(failure) => Err(failure), // The step stays open: the next attempt looks for the deployment.
    }
}

/// When the first attempt came here.
async fn begun(cx: &Context, name: &str) -> Result<Timestamp, Failure> {
    match cx.step::<Timestamp>(name).await? {
        Step::Finished(at) => Ok(at),
        Step::Fresh(step) | Step::Unknown(step) => {
            let now = cx.now();
            step.finish(&now).await?;
            Ok(now)
        }
    }
}

/// A deployment with this publication in its `meta`.
async fn find(vercel: &Vercel<'_>, project: &Project, publication: &str) -> Result<Option<String>, Failure> {
    let query = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("projectId", &project.id)
        .append_pair("target", "production")
        .append_pair("limit", "50")
        .finish();
    let list: List = vercel.get(&["v6", "deployments"], &query, "looking for the deployment", &ADVICE).await?;
    let ours = |listed: &Listed| listed.meta.get(PUBLICATION).and_then(Value::as_str) == Some(publication);
    Ok(list.deployments.into_iter().find(ours).map(|listed| listed.uid))
}

/// The deployment, if it is ready and leads the project's domains; a snooze while it is on its way.
pub(super) async fn ready(vercel: &Vercel<'_>, config: &VercelConfig, id: &str) -> Result<Deployment, Failure> {
    let deployment = Deployment::read(vercel, id).await?;
    if deployment.is_over() {
        return Err(Failure::Discard(anyhow::anyhow!(
            "the deployment with the new value ended with `{}`: https://{}",
            deployment.ready_state,
            deployment.url
        )));
    }
    if deployment.ready_state != "READY" {
        let reason =
            format!("the deployment with the new value is {}: https://{}", deployment.ready_state, deployment.url);
        return Err(Failure::Snooze { wait: AGAIN, reason });
    }
    if deployment.ready_substate.as_deref() == Some("STAGED") {
        let project = Project::read(vercel, config).await?;
        let why = match project.auto_assign_custom_domains {
            Some(false) => "new deployments do not get the project's domains (a rollback is in force, or it is set so)",
            _ => "it does not have the project's domains yet",
        };
        let reason =
            format!("the deployment with the new value is ready, but {why}; promote it: https://{}", deployment.url);
        return Err(Failure::Snooze { wait: AGAIN, reason });
    }
    Ok(deployment)
}

impl Project {
    async fn read(vercel: &Vercel<'_>, config: &VercelConfig) -> Result<Self, Failure> {
        let what = format!("looking at the project `{}`", config.project);
        vercel.get(&["v9", "projects", &config.project], "", &what, &ADVICE).await
    }

    async fn redeploy(&self, cx: &Context, vercel: &Vercel<'_>, publication: &str) -> Result<Sent, Failure> {
        let current = self.targets["production"]["id"].as_str().ok_or_else(|| {
            Failure::Discard(anyhow::anyhow!(
                "the project `{}` has no production deployment that could be made again; make one and retry the job, or \
                 write `redeploy = false`",
                self.name
            ))
        })?;
        let body = json!({
            "name": self.name,
            "project": self.id,
            "deploymentId": current,
            "target": "production",
            "meta": meta(cx, publication),
        });
        let what = format!("making the production deployment of `{}` again", self.name);
        // Without `forceNew` Vercel takes it for the one that is there.
        Ok(vercel.post_with(&["v13", "deployments"], "forceNew=1", &body, &what, &ADVICE).await)
    }
}

/// What the deployment says of itself: that we caused it, for which job and publication.
fn meta(cx: &Context, publication: &str) -> Value {
    json!({DEPLOYMENT_MARK: cx.job().attempt.job.to_string(), PUBLICATION: publication})
}
