//! Vercel's recent deployments and open check runs: what its webhooks should have told of them and the ledger does not
//! have is booked as if the webhook had come. So it also stands in for webhooks where there are none (on the Hobby plan).
//!
//! Twice is safe: what happened has one delivery id, whoever tells it, so of a webhook and this job, in whatever order or at
//! once, the ledger books one. Retries: Vercel, and its limits as late as it asks.

use std::time::Duration;

use chrono::TimeDelta;
use schemars::JsonSchema;
use schemas::{Names, Problem, Timestamp, period};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::warn;

use super::found::{CheckRun, Found, Listed};
use crate::context::{Context, Step};
use crate::handler::{Failure, OrFail, Output};
use crate::rest::query_of;
use crate::vercel::{Advice, Vercel};

/// What has just happened is left to the webhook.
const SETTLED_AFTER: TimeDelta = TimeDelta::minutes(1);

/// So long after a deployment that has its domains was made, its checks are looked at too: those that hold nothing.
const CHECKED_WITHIN: TimeDelta = TimeDelta::hours(1);

/// Vercel's pages.
const PAGE: usize = 100;
const MOST_PAGES: usize = 50;

const ADVICE: Advice = Advice {
    forbidden: "may not list the project's deployments and check runs",
    check: "check `project`, and that it is in the account or team of `[connections.vercel]`",
};

/// Whose deployments.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfVercel {
    /// The project, by its id or its name.
    project: String,
    /// The source that its webhooks come to.
    #[serde(default = "source")]
    pub(super) source: String,
    /// Only this environment: `production`, `preview`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// How far it looks back.
    #[serde(default = "within", with = "period")]
    #[schemars(with = "String")]
    within: Duration,
    /// From when on deployments are wanted, in place of when the source was first listened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<Timestamp>,
}

fn source() -> String {
    "vercel".to_owned()
}

fn within() -> Duration {
    Duration::from_hours(24)
}

#[derive(Debug, Deserialize)]
struct Project {
    id: String,
    name: String,
}

#[derive(Debug, Deserialize)]
struct Deployments {
    deployments: Vec<Listed>,
    pagination: Pagination,
}

#[derive(Debug, Deserialize)]
struct Pagination {
    next: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct CheckRuns {
    runs: Vec<CheckRun>,
}

impl OfVercel {
    pub(super) fn check(&self, names: &Names) -> Vec<Problem> {
        let mut problems = super::check(&self.source, self.within, names);
        if self.project.is_empty() || self.project.contains(['/', ' ', '?', '#']) {
            problems.push(Problem::new("this is no project's id or name").within("project"));
        }
        problems
    }

    pub(super) async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let vercel = Vercel::connect(cx, "Vercel's deployments are looked up").await?;
        let horizon = super::horizon(cx, &self.source, self.within, self.from).await?;
        let what = "looking up the project";
        let project: Project = vercel.get(&["v9", "projects", &self.project], "", what, &ADVICE).await?;
        let deployments = self.deployments(&vercel, &project, horizon).await?;
        let mut checks = 0;
        let mut found = Vec::new();
        for deployment in &deployments {
            let runs = self.check_runs(cx.now(), &vercel, deployment).await?;
            checks += runs.len();
            found.extend(deployment.found((&project.id, &project.name), &runs));
        }
        let settled = (cx.now() - SETTLED_AFTER).timestamp_millis();
        found.retain(|found| found.at <= settled);
        // In the order in which they happened.
        found.sort_by_key(|found| found.at);
        let looked_at = found.len();
        let missing = self.unknown(cx, found).await?;
        let brought_in = self.bring_in(cx, &missing).await?;
        Ok(super::ended(json!({
            "project": project.name, "deployments": deployments.len(), "checks": checks, "looked_at": looked_at,
            "missing": missing.len(), "brought_in": brought_in,
        })))
    }

    async fn deployments(
        &self,
        vercel: &Vercel<'_>,
        project: &Project,
        horizon: Timestamp,
    ) -> Result<Vec<Listed>, Failure> {
        let mut all = Vec::new();
        let mut until = None;
        for _ in 0..MOST_PAGES {
            let query = self.query(&project.id, horizon, until);
            let (path, what) = (["v7", "deployments"], "listing the project's deployments");
            let page: Deployments = vercel.get(&path, &query, what, &ADVICE).await?;
            all.extend(page.deployments);
            until = page.pagination.next;
            if until.is_none() {
                // What is older than asked for is none of ours, whatever `since` means there.
                all.retain(|one| one.created_at >= horizon.timestamp_millis());
                return Ok(all);
            }
        }
        Err(Failure::Discard(anyhow::anyhow!(
            "the project has more than {} deployments within {}; look back less far, more often (`within`)",
            MOST_PAGES * PAGE,
            period::write(self.within)
        )))
    }

    fn query(&self, project: &str, since: Timestamp, until: Option<i64>) -> String {
        let target = self.target.clone().map(|target| ("target", target));
        let until = until.map(|until| ("until", until.to_string()));
        let fixed = [
            ("projectId", project.to_owned()),
            ("limit", PAGE.to_string()),
            ("since", since.timestamp_millis().to_string()),
        ];
        query_of(fixed.into_iter().chain(target).chain(until))
    }

    /// The runs of a deployment's checks, where one may be open.
    async fn check_runs(
        &self,
        now: Timestamp,
        vercel: &Vercel<'_>,
        deployment: &Listed,
    ) -> Result<Vec<CheckRun>, Failure> {
        let is_young = deployment.created_at > (now - CHECKED_WITHIN).timestamp_millis();
        if deployment.is_over() || (deployment.has_domains() && !is_young) {
            return Ok(Vec::new());
        }
        let path = ["v2", "deployments", &deployment.uid, "check-runs"];
        let runs: CheckRuns = vercel.get(&path, "", "listing the runs of a deployment's checks", &ADVICE).await?;
        Ok(runs.runs)
    }

    async fn unknown(&self, cx: &Context, mut found: Vec<Found>) -> Result<Vec<Found>, Failure> {
        let ids: Vec<String> = found.iter().map(|found| found.delivery_id.clone()).collect();
        for some in ids.chunks(PAGE) {
            let known = cx.queue().ledger().known(&self.source, some).await.or_retry("looking up deliveries")?;
            found.retain(|found| !known.contains(&found.delivery_id));
        }
        Ok(found)
    }

    /// Books what is missing; how much of it came by nobody else meanwhile.
    async fn bring_in(&self, cx: &Context, missing: &[Found]) -> Result<usize, Failure> {
        let inlet = cx.world().inlet()?;
        let mut brought_in = 0;
        for found in missing {
            // A stale attempt books nothing.
            let is_new = match cx.step::<bool>(&format!("bring in {}", found.delivery_id)).await? {
                Step::Finished(is_new) => is_new,
                Step::Fresh(step) | Step::Unknown(step) => {
                    let is_new = inlet.take(&self.source, &found.body).await?;
                    step.finish(&is_new).await?;
                    is_new
                }
            };
            if is_new {
                warn!(delivery = found.delivery_id, "no webhook told of it; it is booked now");
                brought_in += 1;
            }
        }
        Ok(brought_in)
    }
}
