//! `bypass`: an operator's word instead of a gate's: the deployment may go live though nothing was proven.
//!
//! Who and why is read from the audit, where the operator's start of this job stands, written in one transaction with it:
//! a bypass that nobody started by hand (a route, a schedule, a program) is refused. Twice is safe: the same answer twice
//! is as once. Retries: Vercel, GitHub, and their limits.

use std::time::Duration;

use async_trait::async_trait;
use queue::ledger::AuditRecord;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::JobId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::gate::{Conclusion, Gate, let_through};
use crate::context::{Context, Step};
use crate::handler::{Failure, Handler, OrFail, Output};
use crate::vercel::{Deployment, Vercel};

/// So many lines of the audit are looked through: the job's own start is among the newest.
const NEWEST: u32 = 1000;

/// The arguments of `bypass`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bypass {
    /// The job of the kind `gate` that is bypassed.
    gate: JobId,
}

#[async_trait]
impl Handler for Bypass {
    const KIND: &'static str = "bypass";
    const SUMMARY: &'static str = "lets a deployment go live on an operator's word, though its gate did not open";
    const RETRY: RetryPolicy = RetryPolicy::PROMPT;
    const TIME_LIMIT: Duration = Duration::from_mins(5);

    fn output() -> Value {
        json!({"gate": null, "deployment": null, "actor": null})
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let who = self.who(cx).await?;
        let gate = self.gate(cx).await?;
        let vercel = Vercel::connect(cx, "a bypass answers Vercel").await?;
        let deployment = Deployment::read(&vercel, &gate.deployment).await?;
        gate.refuse_others(&deployment)?;
        let door = gate.door(cx, &vercel, &deployment).await?;
        match cx.step::<Value>("answer").await? {
            Step::Finished(_) => {}
            Step::Fresh(step) | Step::Unknown(step) => {
                let_through(cx, &deployment.id).await?;
                let text = format!("bypassed by {}: {}", who.actor, who.reason);
                door.overrule(Conclusion::Succeeded, &text).await?;
                step.finish(&Value::Null).await?;
            }
        }
        Ok(json!({"gate": self.gate, "deployment": deployment.id, "actor": who.actor}))
    }
}

impl Bypass {
    /// Who started this job by hand, and why.
    async fn who(&self, cx: &Context) -> Result<AuditRecord, Failure> {
        let job = cx.job().attempt.job.to_string();
        let lines = cx.queue().ledger().audit(NEWEST).await.or_retry("looking who wants it")?;
        lines.into_iter().find(|line| line.verb == "start" && line.subject == job).ok_or_else(|| {
            Failure::Discard(anyhow::anyhow!(
                "a gate is bypassed on an operator's word alone, and no operator started this job: nightporter jobs bypass {} \
                 --reason WHY",
                self.gate
            ))
        })
    }

    async fn gate(&self, cx: &Context) -> Result<Gate, Failure> {
        let job = cx.queue().ledger().job(self.gate).await.or_retry("looking for the gate")?;
        let job = job.filter(|job| job.kind == Gate::KIND);
        let job = job.ok_or_else(|| Failure::Discard(anyhow::anyhow!("there is no gate {}", self.gate)))?;
        serde_json::from_value(job.args).or_discard("reading the gate's arguments")
    }
}
