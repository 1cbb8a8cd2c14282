//! A restore into a live database.
//!
//! First a backup of it is made and read back; then the wanted backup is restored beside it and compared with its manifest;
//! then the two change places, at once or not at all. The old one is kept, and is for a person to drop.
//!
//! Twice is safe: the safety backup is the job's own, and is made once; the database beside has a name of the job, and its
//! mark; one that has taken its place is known by that mark (`PostgreSQL`), or by what is left beside it (`SQLite`).

use serde_json::json;
use tracing::info;

use super::super::backup::Backup;
use super::{Restore, choose};
use crate::backups::{self, Backup as Existing};
use crate::context::{Context, Step};
use crate::databases::{Database, Scratch};
use crate::handler::{Failure, Handler, Output};
use crate::stores::Store;

impl Restore {
    pub(super) async fn replace(&self, cx: &Context) -> Result<Output, Failure> {
        let database = cx.world().database(&self.database).await?;
        let store = cx.world().store(&self.store).await?;
        let backup = choose(cx, &*store, &self.store, &self.database, &self.backup).await?;
        if backup.manifest.dump.engine != database.engine() {
            return Err(Failure::Discard(anyhow::anyhow!(
                "a backup of {} cannot be restored into {}",
                backup.manifest.dump.engine,
                database.engine()
            )));
        }
        let safety = self.safety(&backup).run(cx).await?["backup"].clone();
        let scratch = Scratch { job: cx.job().attempt.job };
        if let Step::Fresh(step) | Step::Unknown(step) = cx.step::<()>("restore").await? {
            info!(backup = backup.key, bytes = backup.manifest.data.plain.bytes, "restoring beside the live database");
            self.restore_beside(cx, &*database, &*store, &backup, scratch).await?;
            step.finish(&()).await?;
        }
        let kept = match cx.step::<String>("take its place").await? {
            Step::Finished(kept) => kept,
            Step::Fresh(step) | Step::Unknown(step) => {
                let kept = database.take_place(scratch).await?;
                step.finish(&kept).await?;
                kept
            }
        };
        Ok(json!({"backup": backup.key, "into": null, "bytes": backup.manifest.data.plain.bytes,
                  "safety_backup": safety, "kept": kept}))
    }

    /// The backup that is made before anything is touched.
    fn safety(&self, wanted: &Existing) -> Backup {
        Backup {
            database: self.database.clone(),
            store: self.store.clone(),
            name: Some(format!("before the restore of {}", wanted.key)),
            tier: None,
        }
    }

    async fn restore_beside(
        &self,
        cx: &Context,
        database: &dyn Database,
        store: &dyn Store,
        backup: &Existing,
        scratch: Scratch,
    ) -> Result<(), Failure> {
        let unpacked = backups::open(store, &backup.manifest.data, &cx.world().seal(&self.store).await?).await?;
        if !database.restore_beside(scratch, unpacked.reader).await? {
            return Ok(());
        }
        let Some(expected) = &backup.manifest.dump.contents else { return Ok(()) };
        let differences = expected.differences(&database.contents(scratch, expected).await?);
        if differences.is_empty() {
            return Ok(());
        }
        database.drop_scratch(scratch).await?;
        Err(Failure::Discard(anyhow::anyhow!(
            "what was restored is not what {} holds, and the live database was not touched: {}",
            backup.key,
            differences.join("; ")
        )))
    }
}
