//! The shop's password is exchanged while it signs in fifty times a second.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use chrono::TimeDelta;
use serde_json::Value;
use sqlx::{Connection, PgConnection};

use crate::clock::AHEAD;
use crate::patience::wait_for;
use crate::report::Report;
use crate::team::{PATIENCE, Team};
use crate::vault;

/// So often in each second that it signs in at all: more than fifty, for it reads its secret between them.
const A_SECOND: u32 = 65;
/// At least so many sign-ins with the new value are waited for.
const ENOUGH: usize = 100;

/// For so long the old value stays valid: what the configuration says.
const OVERLAP: TimeDelta = TimeDelta::hours(1);

/// What the shop saw.
#[derive(Default)]
struct Seen {
    signed_in: AtomicUsize,
    with_the_new: AtomicUsize,
    failed: AtomicUsize,
    stop: AtomicBool,
}

/// A rotation under way, and what is known of it afterwards.
pub(crate) async fn rotate(team: &Team, report: &mut Report) -> Result<()> {
    let secret = format!("{}/shop", team.prefix);
    let old = url_of(&vault::value(team, &secret).await?)?;
    let seen = Arc::new(Seen::default());
    let began = Instant::now();
    let shop = tokio::spawn(sign_in_again_and_again(vault::Reader::of(team, &secret), old.clone(), Arc::clone(&seen)));
    count_to(&seen.signed_in, ENOUGH).await?;
    let started = team.command(&["run", "rotate", "--with", "rotation=shop", "--reason", "the monthly one"]);
    let job = started["job"].as_str().context("no job was started")?.to_owned();
    // It waits for the end of the overlap: the new version is current.
    state_of(team, &job, "scheduled").await?;
    count_to(&seen.with_the_new, ENOUGH).await?;
    team.clock.advance_to(team.clock.now() + OVERLAP - AHEAD).await?;
    state_of(team, &job, "completed").await?;
    let after = seen.signed_in.load(Ordering::SeqCst) + ENOUGH;
    count_to(&seen.signed_in, after).await?;
    seen.stop.store(true, Ordering::SeqCst);
    shop.await??;
    let new = url_of(&vault::value(team, &secret).await?)?;
    ensure!(new != old, "the secret is the old one");
    let signed_in = seen.signed_in.load(Ordering::SeqCst);
    report.check("sign-ins that failed while the password was exchanged", 0, seen.failed.load(Ordering::SeqCst));
    report.check(
        "sign-ins with the old password afterwards",
        0,
        usize::from(PgConnection::connect(&old).await.is_ok()),
    );
    report.check("versions of the secret: the old one and one new", 2, vault::versions(team, &secret).await?);
    report.figure("sign_ins", signed_in);
    report.figure("sign_ins_with_the_new_password", seen.with_the_new.load(Ordering::SeqCst));
    #[allow(clippy::cast_precision_loss)] // Some thousand.
    report.figure("sign_ins_a_second", signed_in as f64 / began.elapsed().as_secs_f64());
    report.say(&format!("  the shop's password was exchanged under {signed_in} sign-ins"));
    Ok(())
}

fn url_of(secret: &Value) -> Result<String> {
    secret["url"].as_str().map(str::to_owned).context("the secret has no url")
}

async fn count_to(counter: &AtomicUsize, count: usize) -> Result<()> {
    wait_for("the shop has signed in", PATIENCE, async || Ok((counter.load(Ordering::SeqCst) >= count).then_some(())))
        .await
}

async fn state_of(team: &Team, job: &str, wanted: &str) -> Result<()> {
    let ended = wait_for(&format!("the rotation is {wanted}"), PATIENCE, async || {
        let job = team.ask(&format!("jobs/{job}")).await?;
        let ends = [wanted, "completed", "discarded", "cancelled"];
        Ok(ends.contains(&job["state"].as_str().unwrap_or_default()).then_some(job))
    })
    .await?;
    ensure!(ended["state"] == wanted, "the rotation: {ended}");
    Ok(())
}

/// As an application without a pool does it: a sign-in for each request, with the secret that it read a moment ago.
async fn sign_in_again_and_again(reader: vault::Reader, old: String, seen: Arc<Seen>) -> Result<()> {
    let mut url = old.clone();
    while !seen.stop.load(Ordering::SeqCst) {
        let at = url.clone();
        let (signed_in, failed) = tokio::task::spawn_blocking(move || a_second_of_sign_ins(&at)).await??;
        seen.signed_in.fetch_add(signed_in, Ordering::SeqCst);
        seen.with_the_new.fetch_add(if url == old { 0 } else { signed_in }, Ordering::SeqCst);
        seen.failed.fetch_add(failed, Ordering::SeqCst);
        url = url_of(&reader.value().await?)?;
    }
    Ok(())
}

/// A second of pgbench, which signs in anew for each transaction: how many there were, and how many failed. Its library
/// is PostgreSQL's own; that of this test, built without optimization, would be what is slow.
fn a_second_of_sign_ins(url: &str) -> Result<(usize, usize)> {
    let rate = format!("--rate={A_SECOND}");
    let mut pgbench = Command::new(pgbench()?);
    pgbench.args(["--no-vacuum", "--connect", &rate, "--time=1", "--client=8", "--file=/dev/stdin", url]);
    let mut running = pgbench.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    running.stdin.take().context("a pipe")?.write_all(b"select 1;\n")?;
    let ended = running.wait_with_output()?;
    let (said, complained) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    let done = said.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    let done = done.and_then(|count| count.split('/').next()?.trim().parse().ok()).unwrap_or(0);
    let failed = complained.lines().filter(|line| line.contains("FATAL") || line.contains("error")).count();
    if failed > 0 {
        println!("{complained}");
    }
    Ok((done, failed.max(usize::from(!ended.status.success()))))
}

/// Debian keeps it beside the server, out of PATH.
fn pgbench() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let beside = versions.map(|version| version.path().join("bin/pgbench")).filter(|path| path.exists()).max();
    let on_the_path =
        || std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join("pgbench")).find(|it| it.exists());
    beside.or_else(on_the_path).context("there is no pgbench: it comes with PostgreSQL's server")
}
