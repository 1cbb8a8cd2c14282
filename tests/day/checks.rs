//! What must be so when the week is over, asked of whoever knows it best: the ledger, the database, the store, the receiver.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::report::Report;
use crate::shop;
use crate::week::Week;

/// All of it.
pub(crate) async fn all(week: &Week, report: &mut Report) -> Result<()> {
    deliveries(week, report).await?;
    messages(week, report);
    jobs(week, report).await?;
    schedules(week, report).await?;
    migrations(week, report).await?;
    rows(week, report).await?;
    archive(week, report).await?;
    backups(week, report)?;
    proof(week, report);
    report.figure("database_bytes_at_last", week.team.shop.size().await?);
    report.figure("rows_at_last", serde_json::to_value(week.team.shop.counts().await?)?);
    report.figure("machines_lost", week.team.lost);
    Ok(())
}

/// Whatever was signed for is booked once, with one job, which has ended.
async fn deliveries(week: &Week, report: &mut Report) -> Result<()> {
    let promised: BTreeSet<&String> = week.senders.promised.values().collect();
    let ids = promised.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(",");
    let booked = format!("select count(*) from nightporter.event where id in ({ids})");
    let done = format!(
        "select count(distinct a.event_id) from nightporter.history h join nightporter.job_args a on a.id = h.id
          where a.event_id in ({ids}) and h.state = 5"
    );
    let twice =
        "select count(*) from (select 1 from nightporter.event group by source, delivery_id having count(*) > 1) t";
    report.check("deliveries that were signed for: booked", promised.len(), week.team.count(&booked).await?);
    report.check("… and their jobs completed", promised.len(), week.team.count(&done).await?);
    gate(week, report);
    report.check("deliveries that are booked twice", 0, week.team.count(twice).await?);
    report.check("deliveries refused", 0, week.senders.refused);
    report.figure("deliveries", promised.len());
    report.figure("deliveries_repeated", week.senders.repeats);
    Ok(())
}

/// Each deployment's check was answered, once.
fn gate(week: &Week, report: &mut Report) {
    let runs = week.team.vercel.hub(|hub| hub.check_runs.clone());
    let concluded = |conclusion: &str| runs.iter().filter(|run| run["conclusion"] == conclusion).count();
    // The first deploy was before the shop was open, and gated by nobody.
    report.check("deployments that the gate let through", week.deploys - 1, concluded("succeeded"));
    report.check("… and that it kept out", week.failures, concluded("failed"));
    let answers: u64 = runs.iter().filter_map(|run| run["answers"].as_u64()).sum();
    report.check("answers to checks", runs.len(), answers);
}

/// The team was told of each push and sign-up, and of none under two ids.
fn messages(week: &Week, report: &mut Report) {
    let mut told: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for request in week.team.chat.requests() {
        let data = &request.body["data"];
        if data["title"] == "Push" || data["title"] == "Sign-up" {
            let text = data["text"].as_str().unwrap_or_default().to_owned();
            told.entry(text).or_default().insert(request.header("webhook-id").to_owned());
        }
    }
    let missing = week.senders.subjects.iter().filter(|subject| !told.contains_key(*subject)).count();
    let twice = told.values().filter(|messages| messages.len() > 1).count();
    report.check("pushes and sign-ups of which the team was not told", 0, missing);
    report.check("… and of which it was told twice", 0, twice);
    report.figure("messages", week.team.chat.effects());
}

/// Nothing waits, and nothing failed but what the story makes fail.
async fn jobs(week: &Week, report: &mut Report) -> Result<()> {
    let count = async |question: &str| week.team.count(question).await;
    report.check("jobs that have not ended", 0, count("select count(*) from nightporter.job").await?);
    let discarded = count("select count(*) from nightporter.history where state = 8").await?;
    report.check("jobs discarded: the migration that fails", week.failures, discarded);
    let cancelled = count("select count(*) from nightporter.history where state = 7").await?;
    report.check("jobs cancelled", 0, cancelled);
    report.figure("jobs", count("select count(*) from nightporter.history").await?);
    let lost = "select count(*) from nightporter.attempt where outcome = 'crashed'";
    report.figure("attempts_lost_with_their_machine", count(lost).await?);
    Ok(())
}

/// Each nominal time was fired once.
async fn schedules(week: &Week, report: &mut Report) -> Result<()> {
    let fired = async |name: &str| {
        let question = format!("select count(*) from nightporter.fired where schedule = '{name}' and outcome = 0");
        week.team.count(&question).await
    };
    report.check("nights with a backup", week.days, fired("backup").await?);
    for (what, name) in [
        ("mornings", "morning"),
        ("nights on which sessions were cleaned up", "sessions"),
        ("nights on which audit logs were cleaned up", "audit-logs"),
        ("nights on which backups were cleaned up", "backups"),
    ] {
        report.check(what, week.days, fired(name).await?);
    }
    report.check("weekly proofs", 1, fired("verify").await?);
    let others = week.team.count("select count(*) from nightporter.fired where outcome <> 0").await?;
    report.check("times of schedules that were missed or skipped", 0, others);
    Ok(())
}

/// Each migration that was committed is applied, once.
async fn migrations(week: &Week, report: &mut Report) -> Result<()> {
    let shop = &week.team.shop;
    let applied = "select count(*) from _prisma_migrations where finished_at is not null";
    let different = "select count(distinct migration_name) from _prisma_migrations where finished_at is not null";
    let unresolved = "select count(*) from _prisma_migrations where finished_at is null and rolled_back_at is null";
    report.check("migrations applied", week.migrations, shop.number(applied).await?);
    report.check("… different ones", week.migrations, shop.number(different).await?);
    report.check("migrations that are neither applied nor resolved", 0, shop.number(unresolved).await?);
    report.figure("deploys", week.deploys);
    Ok(())
}

/// What was old went, what was not stayed, and every row is accounted for.
async fn rows(week: &Week, report: &mut Report) -> Result<()> {
    let shop = &week.team.shop;
    let last = shop.counts().await?;
    let deleted = |schedule| sum(week, schedule, "deleted");
    let cutoff = |kept| week.last_night() - kept;
    report.check(
        "sessions: at first + new - deleted",
        week.first.sessions + shop.sessions_since - deleted("sessions"),
        last.sessions,
    );
    report.check(
        "audit logs: at first + new - deleted",
        week.first.audit_logs + shop.logs_since - deleted("audit-logs"),
        last.audit_logs,
    );
    let young = shop.younger_than("sessions", cutoff(shop::SESSIONS_KEPT)).await?;
    report.check("sessions that are young enough to stay", week.young[0] + shop.sessions_since, young);
    report.check("… and old ones that are left", 0, last.sessions - young);
    let young = shop.younger_than("audit_logs", cutoff(shop::LOGS_KEPT)).await?;
    report.check("audit logs that are young enough to stay", week.young[1] + shop.logs_since, young);
    let old = shop.number(&old_logs(week)).await?;
    report.check("… and old ones that are left, and not on legal hold", 0, old);
    // One of each day's new ones is on hold.
    report.check("audit logs on legal hold", week.first.on_hold + week.days, last.on_hold);
    report.figure("sessions_deleted", deleted("sessions"));
    report.figure("audit_logs_deleted", deleted("audit-logs"));
    Ok(())
}

fn old_logs(week: &Week) -> String {
    let cutoff = (week.last_night() - shop::LOGS_KEPT).naive_utc();
    format!("select count(*) from audit_logs where created_at < timestamp '{cutoff}' and not legal_hold")
}

fn sum(week: &Week, schedule: &str, field: &str) -> i64 {
    let of_it = week.outputs.iter().filter(|(name, _)| *name == schedule);
    of_it.filter_map(|(_, output)| output[field].as_i64()).sum()
}

/// Each row of the audit logs that was deleted lies in the store.
async fn archive(week: &Week, report: &mut Report) -> Result<()> {
    let bucket = &week.team.bucket;
    let list = format!("{}/{}?list-type=2&prefix=a/prefix/rows/main/audit_logs/", bucket.endpoint, bucket.name);
    let signed = |url: String| {
        // The server looks who asks, and not whether it is true.
        let claim = "AWS4-HMAC-SHA256 Credential=test-key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, \
                     Signature=none";
        week.team.http.get(url).header("authorization", claim)
    };
    let listing = signed(list).send().await?.error_for_status()?.text().await?;
    ensure!(!listing.contains("<IsTruncated>true"), "more objects than one list holds");
    let mut ids = BTreeSet::new();
    let mut rows = 0;
    for key in listing.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
        let object = signed(format!("{}/{}/{key}", bucket.endpoint, bucket.name)).send().await?;
        let text = unpacked(&object.error_for_status()?.bytes().await?)?;
        for line in text.lines().skip(1) {
            let row: Value = serde_json::from_str(line).context("a line of the archive")?;
            ids.insert(row["row"]["id"].as_i64().context("a row without an id")?);
            rows += 1;
        }
    }
    let deleted = sum(week, "audit-logs", "deleted");
    report.check("audit logs in the archive", deleted, rows);
    report.check("… different ones", deleted, ids.len());
    Ok(())
}

fn unpacked(bytes: &[u8]) -> Result<String> {
    let mut zstd = Command::new("zstd").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = zstd.stdin.take().context("a pipe")?;
    let bytes = bytes.to_owned();
    let writing = std::thread::spawn(move || input.write_all(&bytes));
    let output = zstd.wait_with_output()?;
    ensure!(output.status.success() && writing.join().is_ok_and(|written| written.is_ok()), "zstd failed");
    Ok(String::from_utf8(output.stdout)?)
}

/// What lies in the store, by tier, as everybody sees it without the ledger.
fn backups(week: &Week, report: &mut Report) -> Result<()> {
    let listed = week.team.command(&["backups", "list"]);
    let backups = listed["backups"].as_array().context("a list of backups")?;
    let before_migration = backups.iter().filter(|backup| backup["manifest"]["tier"] == "before_migration").count();
    let proven = backups.iter().filter(|backup| backup["verdict"]["proven"] == true).count();
    report.check("backups by age: of the last three nights", week.days.min(3), backups.len() - before_migration);
    report.check("backups before migrations", week.deploys + week.failures, before_migration);
    report.check("backups that a restore has proven", 1, proven);
    report.check("manifests that cannot be used", 0, listed["broken"].as_array().map_or(1, Vec::len));
    let seconds: Vec<&Value> = of(week, "backup").map(|output| &output["seconds"]).collect();
    report.figure("backup_seconds", json!(seconds));
    report.figure("backup_bytes", json!(of(week, "backup").map(|output| &output["bytes"]).collect::<Vec<_>>()));
    let stored: Vec<&Value> = of(week, "backup").map(|output| &output["stored_bytes"]).collect();
    report.figure("backup_stored_bytes", json!(stored));
    report.figure("backups_deleted", sum(week, "backups", "deleted"));
    Ok(())
}

fn of<'week>(week: &'week Week, schedule: &'week str) -> impl Iterator<Item = &'week Value> {
    week.outputs.iter().filter(move |(name, _)| *name == schedule).map(|(_, output)| output)
}

/// The weekly restore found everything as it was dumped.
fn proof(week: &Week, report: &mut Report) {
    let proof = of(week, "verify").next().cloned().unwrap_or_default();
    report.check("the weekly restore: everything as it was dumped", true, proof["proven"].clone());
    report.figure("restore_seconds", proof["restore_seconds"].clone());
    report.figure("restored_rows", proof["rows"].clone());
    report.figure("restored_tables", proof["tables"].clone());
}
