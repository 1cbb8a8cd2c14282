//! Deployments that a job of ours made: a rotation redeploys, and marks what it makes.

use schemas::event::DEPLOYMENT_MARK;
use schemas::{JobId, Timestamp};

use super::Gate;
use crate::context::Context;
use crate::handler::{Failure, Handler, OrFail};
use crate::vercel::Deployment;

/// How far Vercel's clock and the ledger's may be apart.
const CLOCKS: chrono::TimeDelta = chrono::TimeDelta::minutes(5);

/// The job that made it: the one that its mark names, if that was under way when it was made. The mark alone is a claim of
/// whoever made the deployment.
pub(in crate::jobs) async fn made_by(cx: &Context, deployment: &Deployment) -> Result<Option<JobId>, Failure> {
    let Some(id) = deployment.meta(DEPLOYMENT_MARK).and_then(|text| text.parse::<JobId>().ok()) else {
        return Ok(None);
    };
    let job = cx.queue().ledger().job(id).await.or_retry("looking for the job that made the deployment")?;
    let made = deployment.created_at.and_then(Timestamp::from_timestamp_millis);
    let (Some(job), Some(made)) = (job, made) else { return Ok(None) };
    let was_there = job.created_at - CLOCKS <= made && job.finished_at.is_none_or(|at| made <= at + CLOCKS);
    Ok((was_there && job.kind != Gate::KIND).then_some(id))
}
