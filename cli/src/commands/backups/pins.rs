//! `backups pin` and `backups unpin`. A pin is a small object beside the manifest, so it counts without the ledger too.

use chrono::Utc;
use serde_json::json;
use worker::backups::marks;

use super::{Lying, Which, find, within};
use crate::args::Global;
use crate::config::Checked;
use crate::failure::Failure;
use crate::rooms;

/// The arguments of `backups pin`.
#[derive(Debug, clap::Args)]
pub(crate) struct Pin {
    #[command(flatten)]
    which: Which,
    /// Why; kept in the pin.
    #[arg(long)]
    reason: String,
}

pub(super) async fn pin(args: Pin, global: &Global) -> Result<(), Failure> {
    let lying = lying(&args.which, global).await?;
    let pin = marks::Pin { at: Utc::now(), by: rooms::user(), reason: args.reason };
    let new = within(&lying.store_name, marks::pin(&*lying.store, &lying.backup.key, &pin)).await?;
    let said = if new { "pinned" } else { "it was pinned already" };
    tell(&lying, true, said, global)
}

pub(super) async fn unpin(which: Which, global: &Global) -> Result<(), Failure> {
    let lying = lying(&which, global).await?;
    let was = within(&lying.store_name, marks::unpin(&*lying.store, &lying.backup.key)).await?;
    let said = if was { "no longer pinned" } else { "it was not pinned" };
    tell(&lying, false, said, global)
}

async fn lying(which: &Which, global: &Global) -> Result<Lying, Failure> {
    let config = Checked::file(&global.config)?.config()?;
    find(which, &config).await
}

fn tell(lying: &Lying, pinned: bool, said: &str, global: &Global) -> Result<(), Failure> {
    let key = &lying.backup.key;
    let answer = json!({"store": lying.store_name, "key": key, "pinned": pinned});
    global.output().print(&answer, |_| format!("{key}: {said}"))
}
