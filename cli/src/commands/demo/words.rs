//! What the demo says about outcomes.

use schemas::api::{RunJobView, RunView};
use schemas::{JobId, JobState};
use serde_json::Value;

use crate::failure::Failure;

/// What a job of a run did, in a few words.
pub(super) fn outcome_of(job: &RunJobView) -> String {
    let took = job.started_at.zip(job.finished_at).map(|(start, end)| (end - start).num_milliseconds());
    let took = took.map_or(String::new(), |millis| format!(" in {millis} ms"));
    let said = job.output.as_ref().map(|output| said(&job.kind, output)).or_else(|| job.reason.clone());
    format!("{}{took}{}", job.state.as_str(), said.map_or(String::new(), |said| format!(": {said}")))
}

/// What a job put out, in a few words.
pub(super) fn said(kind: &str, output: &Value) -> String {
    let number = |name: &str| output[name].as_u64().unwrap_or_default();
    let text = |name: &str| output[name].as_str().unwrap_or("?").to_owned();
    match kind {
        "plan" => format!("{} pending, {}: {}", number("pending"), text("risk"), names(&output["names"])),
        "backup" => {
            format!("{} → {} bytes, read back, its digests right", number("bytes"), number("stored_bytes"))
        }
        "verify" => {
            format!("restored into a scratch database: all {} rows are there, as dumped", number("rows"))
        }
        "migrate" => format!("{} applied: {}", number("count"), names(&output["applied"])),
        "retention" => {
            format!(
                "{} kept; {} deleted, which no tier keeps: {}",
                number("kept"),
                number("deleted"),
                files(&output["keys"])
            )
        }
        "http" => format!("answered {}", number("status")),
        "notify" => format!("to {}", text("channel")),
        _ => output.to_string(),
    }
}

fn names(list: &Value) -> String {
    let names = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    names.collect::<Vec<_>>().join(", ")
}

/// Keys without their folders and the job's id.
fn files(keys: &Value) -> String {
    let keys = keys.as_array().into_iter().flatten().filter_map(Value::as_str);
    let files = keys.map(|key| key.rsplit('/').next().and_then(|file| file.split('-').next()).unwrap_or(key));
    files.collect::<Vec<_>>().join(", ")
}

/// What a good deploy did; an error where its run completed and yet did not do its work.
pub(super) fn deployed(run: &RunView) -> Result<String, Failure> {
    let output = |name: &str| run.jobs.iter().find(|job| job.name == name).and_then(|job| job.output.clone());
    let migrated = output("migrate").unwrap_or_default()["count"].as_u64();
    if output("backup").is_none() || output("verify").is_none() || migrated != Some(2) {
        return Err(fell_short("the run completed without a backup, its proof and two applied migrations"));
    }
    Ok("1 backup, proven, then 2 migrations".into())
}

/// The only one there is.
pub(super) fn one<Id: Copy>(ids: &[Id], what: &str) -> Result<Id, Failure> {
    match ids {
        [id] => Ok(*id),
        _ => Err(fell_short(&format!("the delivery made {} {what}s, not one", ids.len()))),
    }
}

pub(super) fn ended_badly(kind: &str, id: JobId, state: JobState, reason: Option<&str>) -> Failure {
    let reason = reason.unwrap_or("no reason is known");
    fell_short(&format!("the job {id} ({kind}) is {}: {reason}", state.as_str()))
}

pub(super) fn fell_short(what: &str) -> Failure {
    Failure::failed(format!("the demo fell short: {what}"))
}
