//! `schemas`: the published JSON schemas, emitted from the types. `schemas/json/` holds a copy of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use queue::Bell;
use schemas::api::{
    ApprovalView, AuditView, DeliveryAnswer, ErrorAnswer, EventView, JobView, PauseView, QueueView, ReasonRequest,
    RunView, ScheduleDetails, ScheduleView, StartAnswer, StartRequest, TokenView,
};
use schemas::{Announcement, Event, JobMessage, Names};
use serde_json::Value;

use crate::failure::Failure;
use crate::output::{json, print};

/// The arguments of `schemas`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this one; without it, all, in one object by their names.
    name: Option<String>,
    /// Write each into a file `<name>.schema.json` in this folder instead; the API's document into `openapi.json`.
    #[arg(long, value_name = "FOLDER", conflicts_with = "name")]
    write: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let all = published();
    if let Some(folder) = &args.write {
        return write(folder, &all);
    }
    let Some(name) = &args.name else { return print(&json(&all)?) };
    let unknown = || schemas::Problem::unknown("schema", name, all.keys().map(String::as_str));
    print(&json(all.get(name).ok_or_else(|| Failure::not_found(unknown().to_string()))?)?)
}

fn write(folder: &std::path::Path, all: &BTreeMap<String, Value>) -> Result<(), Failure> {
    for (name, schema) in all {
        let path = folder.join(file_name(name));
        let text = json(schema)? + "\n";
        std::fs::write(&path, text)
            .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
    }
    Ok(())
}

/// All published schemas, and the document that describes the API, by name.
fn published() -> BTreeMap<String, Value> {
    let mut all: BTreeMap<String, Value> = [
        ("announcement", schemars::schema_for!(Announcement)),
        ("approval-view", schemars::schema_for!(ApprovalView)),
        ("audit-line", schemars::schema_for!(AuditView)),
        ("bell", schemars::schema_for!(Bell)),
        ("delivery-answer", schemars::schema_for!(DeliveryAnswer)),
        ("error", schemars::schema_for!(ErrorAnswer)),
        ("event", schemars::schema_for!(Event)),
        ("event-view", schemars::schema_for!(EventView)),
        ("job-message", schemars::schema_for!(JobMessage)),
        ("job-view", schemars::schema_for!(JobView)),
        ("pause-view", schemars::schema_for!(PauseView)),
        ("queue-view", schemars::schema_for!(QueueView)),
        ("reason-request", schemars::schema_for!(ReasonRequest)),
        ("run-view", schemars::schema_for!(RunView)),
        ("schedule-details", schemars::schema_for!(ScheduleDetails)),
        ("schedule-view", schemars::schema_for!(ScheduleView)),
        ("start-answer", schemars::schema_for!(StartAnswer)),
        ("start-request", schemars::schema_for!(StartRequest)),
        ("token-view", schemars::schema_for!(TokenView)),
    ]
    .map(|(name, schema)| (name.to_owned(), schema.to_value()))
    .into();
    let catalog = worker::jobs::registry().catalog(Names::default());
    all.extend(catalog.kinds().map(|info| (format!("job-{}", info.kind), (info.schema)())));
    all.insert(OPENAPI.to_owned(), console::openapi());
    all
}

/// The name of the document that describes the API: it holds schemas, and is none.
const OPENAPI: &str = "openapi";

/// The file that a schema is kept in.
fn file_name(name: &str) -> String {
    if name == OPENAPI { format!("{name}.json") } else { format!("{name}.schema.json") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_schemas_are_current() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../schemas/json");
        let all = published();
        for (name, schema) in &all {
            let path = folder.join(file_name(name));
            let kept = std::fs::read_to_string(&path).unwrap_or_default();
            let kept: Value = serde_json::from_str(&kept).unwrap_or_default();
            assert!(kept == *schema, "{name} is not current: run `cargo run -- schemas --write schemas/json`");
        }
        let files = std::fs::read_dir(&folder).unwrap().count();
        assert_eq!(files, all.len(), "schemas/json holds files of schemas that are gone");
    }
}
