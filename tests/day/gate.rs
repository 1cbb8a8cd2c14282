//! A deployment at Vercel, which gets the production domains when the porter's gate has let it through.

use anyhow::{Context, Result, anyhow, ensure};
use axum::body::Bytes;
use axum::http::HeaderMap;
use producer::source_type;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::patience::wait_for;
use crate::senders::Senders;
use crate::team::{PATIENCE, Team, VERCEL_SECRET};

/// What became of a deployment.
pub(crate) struct Gated {
    /// What Vercel was answered.
    pub(crate) conclusion: String,
    /// The run of the runbook.
    pub(crate) run: Value,
}

/// Deploys a commit: Vercel builds it, tells of its check, and waits for the answer.
pub(crate) async fn deploy(team: &Team, senders: &mut Senders, commit: &str) -> Result<Gated> {
    let deployment = team.vercel.deploy(Some("production"), commit);
    let check = team.vercel.begin_check(&deployment);
    // As long as a backup of a gigabyte takes on a busy machine.
    team.vercel.hub(|hub| hub.check_runs.iter_mut().for_each(|run| run["timeout"] = json!(1_800_000)));
    let body = team.vercel.check_event("deployment.checkrun.start", &check);
    let event = senders.deliver(team, "vercel", Uuid::new_v4().as_u128(), &signed(&body, team)?).await?;
    let event = event.context("Vercel's webhook was refused")?;
    let run = wait_for("the check is answered", PATIENCE, async || {
        let run = team.vercel.check_run(&check);
        Ok((run["status"] == "completed").then_some(run))
    })
    .await?;
    ensure!(run["answers"] == 1, "the check was answered more than once: {run}");
    let gate = wait_for("the gate has ended", PATIENCE, async || {
        let event = team.ask(&format!("events/{event}")).await?;
        let gate = event["jobs"][0].as_str().context("the delivery made no gate")?;
        let gate = team.ask(&format!("jobs/{gate}")).await?;
        Ok(gate["finished_at"].is_string().then_some(gate))
    })
    .await?;
    ensure!(gate["state"] == "completed", "the gate: {gate}");
    let id = gate["output"]["run"].as_str().with_context(|| format!("the gate started no run: {gate}"))?;
    let conclusion = run["conclusion"].as_str().unwrap_or_default().to_owned();
    Ok(Gated { conclusion, run: team.ask(&format!("runs/{id}")).await? })
}

/// What Vercel sends.
fn signed(body: &Value, team: &Team) -> Result<(HeaderMap, Bytes)> {
    let (mut headers, body) = (HeaderMap::new(), Bytes::from(body.to_string()));
    headers.insert("content-type", "application/json".parse()?);
    let vercel = source_type("vercel").map_err(|problem| anyhow!("{problem}"))?;
    let secret = VERCEL_SECRET.to_owned().into();
    vercel.sign(&secret, &mut headers, &body, team.clock.now()).map_err(|problem| anyhow!("{problem}"))?;
    Ok((headers, body))
}
