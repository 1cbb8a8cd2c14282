//! `verify`: proves a backup. Restores it into a scratch database, its bytes checked against the manifest on the way,
//! compares every table with the counts and digests that were taken in the dump's own snapshot, asks what was asserted, and
//! drops the scratch database. What was found out lies beside the manifest then.
//!
//! Twice is safe: the scratch database's name holds the job, each attempt begins by dropping it, and it goes again whatever
//! was found out; what a job left that was killed and never tried again goes with the next `verify` on that server. The
//! proof's key holds the job and the moment. Nothing but the scratch database is ever changed.
//! "Could not be verified" is never a success: what may pass is retried, everything else discards the job; only what was
//! seen to be wrong is written down as that.

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{Names, Problem, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::backup::check_names;
use super::restore::{LATEST, choose};
use crate::assertion::Assertion;
use crate::backups::marks::{self, Asserted};
use crate::backups::{self, Backup, Proof};
use crate::context::{Context, Step};
use crate::databases::{Contents, Database, Scratch};
use crate::handler::{Failure, Handler, OrFail, Output};
use crate::stores::Store;

/// The arguments of `verify`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verify {
    /// The key of the backup's manifest, as `backups list` shows it, or `latest`.
    #[serde(default = "latest")]
    backup: String,
    /// The database that it is a backup of, as the configuration names it.
    database: String,
    /// The store, as the configuration names it.
    store: String,
    /// The database on whose server, or in whose folder, the scratch database is made; else it is `database`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scratch: Option<String>,
    /// What must be true in the restored database.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    assert: Vec<Assertion>,
}

fn latest() -> String {
    LATEST.to_owned()
}

#[async_trait]
impl Handler for Verify {
    const KIND: &'static str = "verify";
    const SUMMARY: &'static str = "restores a backup into a scratch database and compares it with what was dumped";
    const QUEUE: &'static str = "databases";
    const RETRY: RetryPolicy = RetryPolicy::PATIENT;
    const TIME_LIMIT: Duration = Duration::from_hours(24);

    fn check(&self, names: &Names) -> Vec<Problem> {
        let mut problems = check_names(&self.database, &self.store, names);
        if let Some(name) = self.scratch.as_ref().filter(|name| !names.databases.contains(*name)) {
            problems.push(Problem::unknown("database", name, names.databases.iter().map(String::as_str)));
        }
        problems.extend(self.assert.iter().filter_map(Assertion::check));
        problems
    }

    fn output() -> Value {
        json!({"backup": null, "proven": null, "tables": null, "digests": null, "rows": null, "restore_seconds": null})
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let server = cx.world().database(self.scratch.as_ref().unwrap_or(&self.database)).await?;
        let store = cx.world().store(&self.store).await?;
        let backup = choose(cx, &*store, &self.store, &self.database, &self.backup).await?;
        let proof = match cx.step::<Proof>("prove").await? {
            Step::Finished(proof) => proof,
            Step::Fresh(step) | Step::Unknown(step) => {
                sweep(cx, &*server).await;
                let proof = self.prove(cx, &*server, &*store, &backup).await?;
                step.finish(&proof).await?;
                proof
            }
        };
        marks::record(&*store, &proof).await?;
        if !proof.differences.is_empty() {
            let said = proof.differences.join("; ");
            return Err(Failure::Discard(anyhow::anyhow!(
                "the backup {} is not what it should be: {said}",
                backup.key
            )));
        }
        Ok(output(&proof))
    }
}

impl Verify {
    /// Looks at the backup in a scratch database that is gone afterwards.
    async fn prove(
        &self,
        cx: &Context,
        server: &dyn Database,
        store: &dyn Store,
        backup: &Backup,
    ) -> Result<Proof, Failure> {
        let expected = comparable(server, backup)?;
        let scratch = Scratch { job: cx.job().attempt.job };
        server.drop_scratch(scratch).await?; // An earlier attempt's.
        info!(backup = backup.key, bytes = backup.manifest.data.plain.bytes, "restoring into a scratch database");
        let looked = self.look(cx, server, store, backup, expected, scratch).await;
        let dropped = server.drop_scratch(scratch).await;
        match looked {
            Err(failure) if backups::is_damage(&failure) => {
                dropped?;
                Ok(Proof { differences: vec![failure.words()], ..proof(cx, backup, cx.now()) })
            }
            Err(failure) => Err(match dropped {
                Ok(()) => failure,
                Err(_) => failure.context(format!("the scratch database {} could not be dropped", scratch.name())),
            }),
            Ok(proof) => dropped.map(|()| proof),
        }
    }

    async fn look(
        &self,
        cx: &Context,
        server: &dyn Database,
        store: &dyn Store,
        backup: &Backup,
        expected: &Contents,
        scratch: Scratch,
    ) -> Result<Proof, Failure> {
        let begun = cx.now();
        let unpacked = backups::open(store, &backup.manifest.data, &cx.world().seal(&self.store).await?).await?;
        server.restore(&scratch.name(), &scratch.job.to_string(), unpacked.reader).await?;
        // Not "nothing was wrong" but "all was seen and right".
        unpacked.verdict.await.or_retry("the backup was not read to its end")?.map_err(Failure::Discard)?;
        let mut proof = proof(cx, backup, begun);
        info!(backup = backup.key, tables = expected.tables.len(), "restored; comparing its tables");
        let found = server.contents(scratch, expected).await?;
        proof.differences = expected.differences(&found);
        (proof.tables, proof.digests, proof.rows) = (found.tables.len(), found.digested(), found.rows());
        for assertion in &self.assert {
            let asked = server.ask_scratch(scratch, &assertion.sql).await;
            let value = asked.map_err(|failure| failure.context(format!("asking `{}`", assertion.sql.trim())))?;
            proof.differences.extend(assertion.refutes(&value));
            proof.assertions.push(Asserted { sql: assertion.sql.clone(), value });
        }
        proof.at = cx.now();
        Ok(proof)
    }
}

/// What the backup must be compared with.
fn comparable<'a>(server: &dyn Database, backup: &'a Backup) -> Result<&'a Contents, Failure> {
    let dump = &backup.manifest.dump;
    if dump.engine != server.engine() {
        return Err(Failure::Discard(anyhow::anyhow!(
            "a backup of {} cannot be restored into {}; name another database with `scratch`",
            dump.engine,
            server.engine()
        )));
    }
    dump.contents.as_ref().ok_or_else(|| {
        Failure::Discard(anyhow::anyhow!(
            "the manifest of {} does not say what its tables held, so nothing can be compared with it; newer backups say \
             it, unless their `warnings` say why not",
            backup.key
        ))
    })
}

fn proof(cx: &Context, backup: &Backup, begun: Timestamp) -> Proof {
    Proof {
        backup: backup.key.clone(),
        sha256: backup.manifest.data.stored.sha256.clone(),
        at: cx.now(),
        job: cx.job().attempt.job,
        written_by: concat!("nightporter ", env!("CARGO_PKG_VERSION")).to_owned(),
        restore_seconds: (cx.now() - begun).num_seconds(),
        tables: 0,
        digests: 0,
        rows: 0,
        assertions: Vec::new(),
        differences: Vec::new(),
    }
}

/// Drops what jobs left that have ended: they were killed and never tried again. Others' stay, and what belongs to a job
/// that this ledger does not know. Fails nothing.
async fn sweep(cx: &Context, server: &dyn Database) {
    let found = server.scratches().await.unwrap_or_else(|failure| {
        warn!("what earlier jobs left could not be looked for: {}", failure.words());
        Vec::new()
    });
    for scratch in found {
        let ended = cx.queue().ledger().job(scratch.job).await;
        if ended.is_ok_and(|job| job.is_some_and(|job| job.state.is_finished())) {
            match server.drop_scratch(scratch).await {
                Ok(()) => info!(job = %scratch.job, "dropped what a job had left"),
                Err(failure) => warn!(job = %scratch.job, "what a job had left cannot be dropped: {}", failure.words()),
            }
        }
    }
}

fn output(proof: &Proof) -> Output {
    json!({
        "backup": proof.backup,
        "proven": true,
        "tables": proof.tables,
        "digests": proof.digests,
        "rows": proof.rows,
        "restore_seconds": proof.restore_seconds,
    })
}
