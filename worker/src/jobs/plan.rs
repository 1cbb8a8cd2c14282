//! `plan`: says which migrations are pending on a database, and how dangerous they are.
//!
//! Twice is safe: it changes nothing. Retries: GitHub, the database, and the migration tool's lock while others hold it.

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{Names, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::context::Context;
use crate::databases::Tool;
use crate::handler::{Failure, Handler, OrFail, Output};
use crate::migrations::folder::{Folder, SourceFile};
use crate::migrations::plan::Comparison;
use crate::migrations::{History, source};

/// The arguments of `plan`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// The database's name in the configuration.
    database: String,
    /// The commit whose migrations are meant: a whole hash, needed where they come from a repository.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
}

#[async_trait]
impl Handler for Plan {
    const KIND: &'static str = "plan";
    const SUMMARY: &'static str = "says which migrations are pending on a database, and how dangerous they are";
    const QUEUE: &'static str = "databases";
    const RETRY: RetryPolicy = RetryPolicy::PROMPT;
    const TIME_LIMIT: Duration = Duration::from_mins(10);

    fn check(&self, names: &Names) -> Vec<Problem> {
        check_database(&self.database, names)
    }

    fn output() -> Value {
        json!({
            "database": null, "ref": null, "pending": null, "names": null, "risk": null, "statements": null,
            "hash": null, "superseded": null, "by": null, "ignored": null,
        })
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let config = source::config(cx, &self.database)?;
        let files = source::files(cx, &self.database, config, self.commit.as_deref()).await?;
        let mut history = cx.world().database(&self.database).await?.migrate_with(config.tool).await?;
        let output = self.compare(config.tool, &files, &mut *history).await;
        history.close().await;
        output
    }
}

impl Plan {
    async fn compare(&self, tool: Tool, files: &[SourceFile], history: &mut dyn History) -> Result<Output, Failure> {
        let engine = history.engine();
        let folder = Folder::of(tool, engine, files).or_discard("reading the migrations folder")?;
        let comparison = Comparison::of(&folder, &history.applied().await?, engine).map_err(Failure::discard)?;
        let plan = comparison.plan(&self.database, self.commit.as_deref(), engine);
        serde_json::to_value(plan).or_discard("writing the plan")
    }
}

/// What is wrong with the name of a database.
pub(super) fn check_database(name: &str, names: &Names) -> Vec<Problem> {
    if names.databases.contains(name) {
        return Vec::new();
    }
    vec![Problem::unknown("database", name, names.databases.iter().map(String::as_str)).within("database")]
}
