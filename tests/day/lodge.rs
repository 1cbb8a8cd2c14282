//! The team's other porter, a small one on a machine of its own: its ledger is a file, which is copied into the store. The
//! machine is lost with all that is on it, and another one goes on from the copy.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::binary::{House, Running};
use tests::receiver::Receiver;
use tests::sender::{SECRET, push};
use uuid::Uuid;

use crate::patience::wait_for;
use crate::report::Report;
use crate::team::{PATIENCE, Team, WEBHOOK_SECRET, environment};

/// So many pushes are in the copy, and so many are signed for right before the machine is lost.
const BEFORE: u64 = 20;
const AT_THE_END: u64 = 3;

/// A push is done within this.
const SOON: Duration = Duration::from_mins(2);

/// Loses the machine, and goes on.
pub(crate) async fn lose(team: &Team, report: &mut Report) -> Result<()> {
    let chat = Receiver::start().await;
    let config = configuration(team, &chat);
    let environment = environment(&team.clock);
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
    let token = format!("{SECRET} {SECRET}");
    let house =
        || House::new(&config).with_environment(&environment).with_environment(&[("NIGHTPORTER_TOKEN", &*token)]);
    let lost = house();
    let up = lost.start("up");
    for number in 1..=BEFORE {
        ensure!(send(team, &up, number).await?, "the small porter does not take a push");
    }
    told(&chat, BEFORE).await?;
    let new = house();
    let newest = delivery(BEFORE).to_string();
    wait_for("all of it is in a copy", PATIENCE, async || {
        let ended = new.run(&["recover", "--dry-run", "--json"]);
        let said: Value = serde_json::from_str(&ended.stdout).context(ended.stderr)?;
        let there = said["sources"][0]["last"]["delivery_id"] == newest.as_str();
        Ok((there && said["open"].as_array().is_some_and(Vec::is_empty)).then_some(()))
    })
    .await?;
    for number in BEFORE + 1..=BEFORE + AT_THE_END {
        ensure!(send(team, &up, number).await?, "the small porter does not take a push");
    }
    up.kill();
    drop(lost);
    let said = new.run(&["recover", "--reason", "its machine was lost", "--json"]).exits(0).json();
    report.say(&format!("  the small porter's machine was lost; recovered as it was at {}", said["shows"]));
    let up = new.start("up");
    let open = said["open"].as_array().context("what was open")?.len();
    decide(&new, &up, &said)?;
    for number in 1..=BEFORE + AT_THE_END {
        ensure!(send(team, &up, number).await?, "the recovered porter does not take a push");
    }
    told(&chat, BEFORE + AT_THE_END).await?;
    ensure!(up.stop().success(), "the recovered porter does not end well");
    judge(&chat, open, report);
    Ok(())
}

fn configuration(team: &Team, chat: &Receiver) -> String {
    format!(
        r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
token = "{SECRET} {SECRET}"
[queue]
ledger = "sqlite:porter.db"
copy_to = "copies"
copy_every = "1s"
[sources.github]
secrets = ["{SECRET}"]
[stores.copies]
url = "{}"
credentials = "{}"
[channels.team]
webhook = {{ url = "{}/", secret = "{WEBHOOK_SECRET}" }}
[[routes]]
on = "github.push"
run = {{ job = "notify", with = {{ channel = "team", text = "{{{{ event.git.sha }}}}" }} }}
"#,
        team.bucket.store_url().replace("/a/prefix", "/copies"),
        tests::s3::CREDENTIALS,
        chat.url
    )
}

/// The id under which GitHub delivers a push, each time.
fn delivery(number: u64) -> Uuid {
    Uuid::from_u128(u128::from(number) + 0x1_0000)
}

/// Delivers a push; whether it was signed for.
async fn send(team: &Team, up: &Running, number: u64) -> Result<bool> {
    let (mut headers, body) = push(number, "");
    headers.insert("x-github-delivery", delivery(number).to_string().parse()?);
    let url = format!("{}/webhooks/github", up.server());
    Ok(team.http.post(url).headers(headers).body(body).send().await?.status().is_success())
}

/// The pushes that the team was told of, and under how many ids.
fn told_of(chat: &Receiver) -> BTreeMap<String, usize> {
    let mut told: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for request in chat.requests() {
        let commit = request.body["data"]["text"].as_str().unwrap_or_default().to_owned();
        told.entry(commit).or_default().insert(request.header("webhook-id").to_owned());
    }
    told.into_iter().map(|(commit, ids)| (commit, ids.len())).collect()
}

async fn told(chat: &Receiver, pushes: u64) -> Result<()> {
    let all = || (1..=pushes).all(|number| told_of(chat).contains_key(&format!("{number:040x}")));
    wait_for("the team was told of the pushes", SOON, async || Ok(all().then_some(()))).await
}

/// What was open when the copy was made is for a person to decide: it is to be done, for nobody was told of it there.
fn decide(house: &House, up: &Running, said: &Value) -> Result<()> {
    for job in said["open"].as_array().into_iter().flatten() {
        let job = job["job"].as_str().context("a job without an id")?;
        let approve = ["approvals", "approve", job, "--reason", "to be done", "--server", &up.operators()];
        house.run(&approve).exits(0);
    }
    Ok(())
}

fn judge(chat: &Receiver, open: usize, report: &mut Report) {
    let told = told_of(chat);
    let of_the_copy = (1..=BEFORE).filter_map(|number| told.get(&format!("{number:040x}")));
    report.check("small porter: pushes of its copy told once", BEFORE, of_the_copy.filter(|ids| **ids == 1).count());
    report.check("… pushes that were signed for and told", BEFORE + AT_THE_END, told.len());
    report.figure("small_porter_open_jobs", open);
    report.figure("small_porter_pushes_told_again", told.values().filter(|ids| **ids > 1).count());
}
