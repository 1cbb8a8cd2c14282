//! `backup`: dumps a database into a store, reads it back, and only then says that a backup exists.
//!
//! Twice is safe: the manifest's key is the job's, and it is written if absent, after the dump's exit status, the upload
//! and a full read-back were right; the data's key is the attempt's, so a stale attempt can't touch a later one's. An
//! attempt that finds the job's manifest verifies it and succeeds; one that finds the finished upload of an earlier
//! attempt goes on from there. What failed and lost attempts leave is swept. Retries everything but what a person must
//! mend: a wrong address, missing rights or programs, a damaged database.

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{Limit, Names, Problem, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::backups::keep::BEFORE_MIGRATION;
use crate::backups::manifest::{Keys, stock_commands};
use crate::backups::packing::packed;
use crate::backups::{self, Backup as Existing, Data, Manifest, Measure, Packing, Seal, Swept};
use crate::context::{Context, Step};
use crate::databases::{Database, Dump, DumpFacts};
use crate::handler::{Failure, Handler, Output};
use crate::stores::{Store, Upload};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The arguments of `backup`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Backup {
    /// The database, as the configuration names it.
    pub(crate) database: String,
    /// The store, as the configuration names it.
    pub(crate) store: String,
    /// What to call it in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// The tier of the store's `keep` that keeps it, where that is none of those by time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tier: Option<Tier>,
}

/// A tier of its own.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tier {
    /// A migration follows.
    BeforeMigration,
}

impl Tier {
    fn as_str(self) -> &'static str {
        match self {
            Self::BeforeMigration => BEFORE_MIGRATION,
        }
    }
}

/// What the step `upload` leaves to later attempts.
#[derive(Debug, Serialize, Deserialize)]
struct Uploaded {
    data: Data,
    facts: DumpFacts,
    attempt: i32,
    started_at: Timestamp,
}

#[async_trait]
impl Handler for Backup {
    const KIND: &'static str = "backup";
    const SUMMARY: &'static str = "dumps a database into a store and reads it back";
    const QUEUE: &'static str = "databases";
    const RETRY: RetryPolicy = RetryPolicy::PATIENT;
    const TIME_LIMIT: Duration = Duration::from_hours(24);

    fn check(&self, names: &Names) -> Vec<Problem> {
        check_names(&self.database, &self.store, names)
    }

    /// Not while the same database is migrated, restored from or backed up.
    fn limits(&self) -> Vec<Limit> {
        vec![alone_at(&self.database)]
    }

    fn output() -> Value {
        json!({"backup": null, "key": null, "bytes": null, "stored_bytes": null, "seconds": null})
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let database = cx.world().database(&self.database).await?;
        let store = cx.world().store(&self.store).await?;
        let seal = cx.world().seal(&self.store).await?;
        let keys = Keys::of(&self.database, cx.job().attempt.job, cx.job().created_at);
        let backup = match backups::find(&*store, &keys.manifest()).await? {
            Some(existing) => {
                let verified = backups::verify(&*store, &*database, &existing.manifest.data, &seal).await;
                verified.map_err(|failure| {
                    failure.context("an earlier attempt made the backup, but it cannot be read back")
                })?;
                existing
            }
            None => self.make(cx, &*database, &*store, &seal, &keys).await?,
        };
        sweep(&*store, &backup, cx.now()).await;
        Ok(output(&backup))
    }
}

impl Backup {
    /// Uploads and proves a dump, and publishes its manifest.
    async fn make(
        &self,
        cx: &Context,
        database: &dyn Database,
        store: &dyn Store,
        seal: &Seal,
        keys: &Keys,
    ) -> Result<Existing, Failure> {
        // Parts of earlier attempts. Their whole data stays until the manifest is written: see `sweep_rivals`.
        told(
            store
                .sweep_uploads(&keys.all_data(), Duration::ZERO, cx.now())
                .await
                .map(|uploads| Swept { objects: 0, uploads }),
        );
        let uploaded = match cx.step::<Uploaded>("upload").await? {
            Step::Finished(uploaded) if is_there(store, &uploaded.data).await? => uploaded,
            Step::Finished(_) => self.upload(cx, database, store, seal, keys).await?,
            Step::Fresh(step) | Step::Unknown(step) => {
                let uploaded = self.upload(cx, database, store, seal, keys).await?;
                step.finish(&uploaded).await?;
                uploaded
            }
        };
        prove(store, database, &uploaded.data, seal).await?;
        // The ledger refuses this step to a stale attempt, so that none publishes.
        let step = cx.step::<String>("manifest").await?;
        let backup = Existing { key: keys.manifest(), manifest: self.manifest(cx, uploaded) };
        let backup = backups::publish(store, backup).await?;
        if let Step::Fresh(step) | Step::Unknown(step) = step {
            step.finish(&backup.key).await?;
        }
        Ok(backup)
    }

    async fn upload(
        &self,
        cx: &Context,
        database: &dyn Database,
        store: &dyn Store,
        seal: &Seal,
        keys: &Keys,
    ) -> Result<Uploaded, Failure> {
        let started_at = cx.now();
        let dump = database.dump(&cx.job().attempt.job.to_string()).await?;
        let key = keys.data(cx.job().attempt, seal.encryption().is_some());
        let mut upload = store.begin(&key, dump.estimate()).await?;
        info!(database = self.database, key, expected_bytes = dump.estimate(), "backup begins");
        match transfer(dump, &mut *upload, seal.clone()).await {
            Ok((facts, plain, stored)) => {
                // One that is there already is our own, its answer lost, or it is found out when it is read back.
                upload.finish().await?;
                let data = Data::packed(key, plain, stored, seal.encryption());
                Ok(Uploaded { data, facts, attempt: cx.job().attempt.number, started_at })
            }
            Err(failure) => {
                upload.abort().await;
                Err(failure)
            }
        }
    }

    fn manifest(&self, cx: &Context, uploaded: Uploaded) -> Manifest {
        Manifest {
            version: backups::VERSION,
            database: self.database.clone(),
            name: self.name.clone(),
            tier: self.tier.map(|tier| tier.as_str().to_owned()),
            restore_with: stock_commands(&uploaded.facts, &uploaded.data),
            dump: uploaded.facts,
            written_by: concat!("nightporter ", env!("CARGO_PKG_VERSION")).to_owned(),
            started_at: uploaded.started_at,
            finished_at: cx.now(),
            data: uploaded.data,
            job: cx.job().attempt.job,
            attempt: uploaded.attempt,
            event: cx.job().event,
            run: cx.job().run,
        }
    }
}

/// Moves a dump through the compressor into the upload. It is whole only if the dump says so after its last byte.
async fn transfer(
    mut dump: Box<dyn Dump>,
    upload: &mut dyn Upload,
    seal: Seal,
) -> Result<(DumpFacts, Measure, Measure), Failure> {
    let Packing { input, mut output, thread } = Packing::start(seal);
    let feeding = async {
        let mut told = Instant::now();
        let mut bytes = 0_u64;
        while let Some(piece) = dump.next().await? {
            bytes += piece.len() as u64;
            if input.send(piece).await.is_err() {
                break; // The compressor failed; its thread says why.
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                info!(bytes, expected_bytes = dump.estimate(), "backup goes on");
            }
        }
        drop(input);
        Ok(dump)
    };
    let storing = async {
        while let Some(piece) = output.recv().await {
            upload.write(piece).await?;
        }
        Ok(())
    };
    let (dump, ()) = tokio::try_join!(feeding, storing)?;
    let packed = packed(thread).await?;
    let facts = dump.finish().await?;
    if packed.plain.bytes == 0 {
        return Err(Failure::retry(anyhow::anyhow!("the dump is empty, although its program says that it is whole")));
    }
    Ok((facts, packed.plain, packed.stored))
}

/// Reads the data back. What is not what was sent is deleted, so that the next attempt makes it anew.
async fn prove(store: &dyn Store, database: &dyn Database, data: &Data, seal: &Seal) -> Result<(), Failure> {
    match backups::verify(store, database, data, seal).await {
        Err(Failure::Discard(error)) => {
            store.delete(std::slice::from_ref(&data.key)).await?;
            Err(Failure::retry(error.context("the upload was not what was sent and is deleted")))
        }
        verified => verified,
    }
}

async fn is_there(store: &dyn Store, data: &Data) -> Result<bool, Failure> {
    Ok(store.head(&data.key).await?.is_some_and(|found| found.bytes == data.stored.bytes))
}

async fn sweep(store: &dyn Store, backup: &Existing, now: Timestamp) {
    told(backups::sweep_rivals(store, backup, now).await);
    told(backups::sweep_orphans(store, &backup.manifest.database, now).await);
}

/// A store that does not let itself be swept (some can't list uploads) fails no backup.
fn told(swept: Result<Swept, Failure>) {
    match swept {
        Ok(Swept { objects: 0, uploads: 0 }) => {}
        Ok(Swept { objects, uploads }) => info!(objects, uploads, "swept what unfinished attempts had left"),
        Err(failure) => warn!("the store could not be swept of what unfinished attempts left: {}", failure.words()),
    }
}

fn output(backup: &Existing) -> Output {
    let Manifest { data, started_at, finished_at, .. } = &backup.manifest;
    json!({
        "backup": backup.key,
        "key": data.key,
        "bytes": data.plain.bytes,
        "stored_bytes": data.stored.bytes,
        "seconds": (*finished_at - *started_at).num_seconds(),
    })
}

/// Only one job at a time works on a database.
pub(super) fn alone_at(database: &str) -> Limit {
    Limit::one(format!("database:{database}"))
}

/// What is wrong with the names of a database and a store.
pub(super) fn check_names(database: &str, store: &str, names: &Names) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !names.databases.contains(database) {
        problems.push(Problem::unknown("database", database, names.databases.iter().map(String::as_str)));
    }
    if !names.stores.contains(store) {
        problems.push(Problem::unknown("store", store, names.stores.iter().map(String::as_str)));
    }
    problems
}
