//! `backups show`: all that is known of one backup.

use serde::Serialize;
use worker::backups::marks;
use worker::backups::{Manifest, Pin, Proof};

use super::{Which, find, size, within};
use crate::args::Global;
use crate::config::Checked;
use crate::failure::Failure;
use crate::output::{facts, moment, table};

/// What programs read.
#[derive(Serialize)]
struct Shown {
    store: String,
    key: String,
    pin: Option<Pin>,
    proof: Option<Proof>,
    manifest: Manifest,
}

pub(super) async fn run(which: Which, global: &Global) -> Result<(), Failure> {
    let config = Checked::file(&global.config)?.config()?;
    let lying = find(&which, &config).await?;
    let (name, key) = (lying.store_name, lying.backup.key);
    let shown = Shown {
        pin: within(&name, marks::pinned(&*lying.store, &key)).await?,
        proof: within(&name, marks::last_proof(&*lying.store, &key)).await?,
        store: name,
        key,
        manifest: lying.backup.manifest,
    };
    global.output().print(&shown, say)
}

fn say(shown: &Shown) -> String {
    let Shown { manifest, pin, proof, .. } = shown;
    let head = facts([
        ("key", Some(shown.key.clone())),
        ("store", Some(shown.store.clone())),
        ("database", Some(manifest.database.clone())),
        ("name", manifest.name.clone()),
        ("tier", manifest.tier.clone()),
        ("server", Some(format!("{} {}", manifest.dump.engine, manifest.dump.server_version))),
        ("made with", Some(manifest.dump.made_with.clone())),
        ("started", Some(moment(manifest.started_at))),
        ("read back", Some(moment(manifest.finished_at))),
        ("dump", Some(size(manifest.data.plain.bytes))),
        ("stored", Some(size(manifest.data.stored.bytes))),
        ("data", Some(manifest.data.key.clone())),
        ("sha256", Some(manifest.data.stored.sha256.clone())),
        ("job", Some(manifest.job.to_string())),
        ("event", manifest.event.map(|id| id.to_string())),
        ("run", manifest.run.map(|id| id.to_string())),
        ("pinned", pin.as_ref().map(|pin| format!("by {} at {}: {}", pin.by, moment(pin.at), pin.reason))),
        ("proven", Some(proof.as_ref().map_or_else(|| "never".to_owned(), say_proof))),
    ]);
    let mut parts = vec![head];
    parts.extend(manifest.dump.contents.as_ref().filter(|contents| !contents.tables.is_empty()).map(|contents| {
        let row = |(name, found): (&String, &worker::databases::Table)| {
            let digest = if found.digest.is_some() { "yes" } else { "no" };
            [name.clone(), found.rows.to_string(), digest.to_owned()]
        };
        table(["TABLE", "ROWS", "DIGEST"], contents.tables.iter().map(row))
    }));
    parts.extend(manifest.dump.warnings.iter().map(|warning| format!("warning: {warning}")));
    let fetch = "Restore it with stock programs, after its data was fetched into the current folder:".to_owned();
    let commands = manifest.restore_with.iter().map(|command| format!("    {command}"));
    parts.push(std::iter::once(fetch).chain(commands).collect::<Vec<_>>().join("\n"));
    parts.join("\n\n")
}

fn say_proof(proof: &Proof) -> String {
    if !proof.differences.is_empty() {
        return format!("WRONG at {} by job {}: {}", moment(proof.at), proof.job, proof.differences.join("; "));
    }
    format!(
        "at {} by job {}: {} rows in {} tables, {} of them digested, {} assertions; restored in {} s",
        moment(proof.at),
        proof.job,
        proof.rows,
        proof.tables,
        proof.digests,
        proof.assertions.len(),
        proof.restore_seconds
    )
}
