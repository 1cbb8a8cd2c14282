//! Which migrations the older code does not know: a rollback of code is none of the database's.

use tracing::warn;

use super::Rollback;
use super::moves::Aim;
use crate::context::Context;
use crate::handler::{Failure, OrFail};
use crate::migrations::folder::Folder;
use crate::migrations::plan::newer_than;
use crate::migrations::source;

/// A look that may succeed later is tried so often; then people are told that it could not be done: what they wait for is the
/// rollback.
const TRIES: i32 = 3;

impl Rollback {
    /// The names of migrations that are applied and not in the deployment's commit; or why nobody can say.
    pub(super) async fn migrations_since(
        &self,
        cx: &Context,
        aim: &Aim,
    ) -> Result<Result<Vec<String>, String>, Failure> {
        let Some(database) = &self.database else { return Ok(Err("no `database` is named".to_owned())) };
        let Some(commit) = &aim.commit else {
            return Ok(Err(format!(
                "Vercel did not fetch the commit of {} itself, so it is not proven",
                aim.deployment
            )));
        };
        match newer(cx, database, commit).await {
            Ok(names) => Ok(Ok(names)),
            Err(failure @ Failure::Retry { .. }) if cx.job().failures < TRIES => Err(failure),
            Err(failure) => {
                let why = failure.words();
                warn!("which migrations the older code does not know cannot be said: {why}");
                Ok(Err(why))
            }
        }
    }
}

async fn newer(cx: &Context, database: &str, commit: &str) -> Result<Vec<String>, Failure> {
    let config = source::config(cx, database)?;
    if config.repository.is_none() {
        return Err(Failure::Discard(anyhow::anyhow!(
            "the migrations of `{database}` come from a folder on this machine, which has no commits"
        )));
    }
    let files = source::files(cx, database, config, Some(commit)).await?;
    let mut history = cx.world().database(database).await?.migrate_with(config.tool).await?;
    let names = async {
        let folder = Folder::of(config.tool, history.engine(), &files).or_discard("reading the migrations folder")?;
        Ok(newer_than(&folder, &history.applied().await?))
    }
    .await;
    history.close().await;
    names
}
