//! `promoted`: says it aloud when a deployment serves production, and no gate of ours let it through: by Force Promote,
//! by a promotion that passed the check by, or because the check is not required any more.
//!
//! It compares what Vercel says went live with what was answered here, not with what Vercel says was answered. Where they
//! do not match it is discarded, and `defaults.on_failure` is told. Twice is safe: it changes nothing. Retries: Vercel.

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{Names, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::gate::{made_by, was_let_through, wrong_project};
use crate::context::Context;
use crate::handler::{Failure, Handler, Output};
use crate::vercel::{Deployment, Vercel};

/// The arguments of `promoted`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Promoted {
    /// The deployment, `dpl_...`.
    deployment: String,
    /// The project whose gate is meant, `prj_...`; of another one nothing is said.
    project: String,
    /// The environment whose gate is meant; of another one nothing is said.
    #[serde(default = "production")]
    target: String,
}

fn production() -> String {
    "production".to_owned()
}

#[async_trait]
impl Handler for Promoted {
    const KIND: &'static str = "promoted";
    const SUMMARY: &'static str = "raises an alarm when a deployment went live that no gate let through";
    const RETRY: RetryPolicy = RetryPolicy::PATIENT;
    const TIME_LIMIT: Duration = Duration::from_mins(5);

    fn check(&self, _: &Names) -> Vec<Problem> {
        wrong_project(&self.project).into_iter().collect()
    }

    fn output() -> Value {
        json!({"deployment": null, "ref": null, "by": null})
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let vercel = Vercel::connect(cx, "what was promoted is read at Vercel").await?;
        let deployment = Deployment::read(&vercel, &self.deployment).await?;
        let says = |by: &str| json!({"deployment": deployment.id, "ref": deployment.commit(), "by": by});
        if deployment.project() != self.project || deployment.target() != self.target {
            return Ok(says("not watched"));
        }
        if was_let_through(cx, &deployment.id).await? {
            return Ok(says("gate"));
        }
        if let Some(job) = made_by(cx, &deployment).await? {
            return Ok(says(&format!("job {job}")));
        }
        Err(Failure::Discard(anyhow::anyhow!(
            "{} ({}) serves {}, and no gate let it through: it was promoted by force, or its check is not required any more \
             (Vercel says its checks are `{}`); look whether its migrations are applied: nightporter run plan --with \
             database=NAME --with ref={}",
            deployment.id,
            deployment.url,
            self.target,
            deployment.checks_conclusion.as_deref().unwrap_or("unknown"),
            deployment.commit().unwrap_or("COMMIT"),
        )))
    }
}
