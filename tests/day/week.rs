//! What happens in the week: days, nights, deploys, and machines that are lost.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Datelike, NaiveTime, TimeDelta, Utc};
use serde_json::Value;

use crate::clock::AHEAD;
use crate::gate;
use crate::lodge;
use crate::patience::wait_for;
use crate::report::Report;
use crate::rotation;
use crate::senders::Senders;
use crate::shop::{self, Counts};
use crate::team::{PATIENCE, Team};

/// The week, and what was seen in it.
pub(crate) struct Week {
    pub(crate) team: Team,
    pub(crate) senders: Senders,
    pub(crate) days: i64,
    /// Midnight before the first day.
    start: DateTime<Utc>,
    /// What was in the shop's tables when it began.
    pub(crate) first: Counts,
    /// How many rows are younger than what the last night deletes, of what was there when it began: sessions, logs.
    pub(crate) young: [i64; 2],
    /// The outputs of jobs, by schedule.
    pub(crate) outputs: Vec<(&'static str, Value)>,
    /// How many migrations were committed that are to be applied.
    pub(crate) migrations: usize,
    /// Jobs that are to fail in the story.
    pub(crate) failures: usize,
    /// How many deploys ended well.
    pub(crate) deploys: usize,
}

impl Week {
    /// A team whose shop is as large as is asked for, on the morning of the first day. The last night is a Sunday's.
    pub(crate) async fn begin(days: i64, bytes: i64, report: &mut Report) -> Result<Self> {
        let today = Utc::now().date_naive();
        let to_sunday = i64::from(7 - today.weekday().num_days_from_sunday());
        let sunday = today + TimeDelta::days(to_sunday + 7);
        let start = (sunday - TimeDelta::days(days)).and_time(NaiveTime::MIN).and_utc();
        let team = Team::open(start + TimeDelta::minutes(9 * 60 + 30)).await?;
        let commit = team.github.commit(&[shop::LOCK, shop::FIRST_MIGRATION]);
        let first_deploy = team.run("deploy", &commit).await?;
        ensure!(first_deploy["state"] == "completed", "the first deploy: {first_deploy}");
        report.say("filling the shop's database");
        let filled = Instant::now();
        let first = team.shop.fill(bytes, team.clock.now()).await?;
        report.figure("database_bytes_at_first", team.shop.size().await?);
        report.figure("seconds_to_fill", filled.elapsed().as_secs());
        report.figure("rows_at_first", serde_json::to_value(first)?);
        let last_night = start + TimeDelta::days(days) + TimeDelta::hours(3);
        let young = [
            team.shop.younger_than("sessions", last_night - shop::SESSIONS_KEPT).await?,
            team.shop.younger_than("audit_logs", last_night - shop::LOGS_KEPT).await?,
        ];
        let senders = Senders::default();
        let outputs = Vec::new();
        Ok(Self { team, senders, days, start, first, young, outputs, migrations: 1, failures: 0, deploys: 1 })
    }

    /// All days and nights.
    pub(crate) async fn pass(&mut self, report: &mut Report) -> Result<()> {
        for day in 0..self.days {
            self.day(day, report).await.with_context(|| format!("on day {}", day + 1))?;
            self.night(day, report).await.with_context(|| format!("in the night after day {}", day + 1))?;
        }
        self.team.at_rest().await
    }

    /// On which day the nth thing of seven comes to pass.
    fn is_day_of(&self, nth: i64, day: i64) -> bool {
        nth * self.days / 7 == day
    }

    /// When rows are cleaned up for the last time.
    pub(crate) fn last_night(&self) -> DateTime<Utc> {
        self.start + TimeDelta::days(self.days) + TimeDelta::hours(3)
    }

    fn at(&self, day: i64, hour: i64) -> DateTime<Utc> {
        self.start + TimeDelta::days(day) + TimeDelta::hours(hour)
    }

    /// Lets time pass until shortly before an hour of a day, when everything is done.
    async fn until_shortly_before(&self, moment: DateTime<Utc>) -> Result<()> {
        self.team.at_rest().await?;
        self.team.clock.advance_to(moment - AHEAD).await
    }

    async fn day(&mut self, day: i64, report: &mut Report) -> Result<()> {
        let morning = self.at(day, 10);
        self.until_shortly_before(morning).await?;
        report.say(&format!("day {}: {}", day + 1, morning.format("%A")));
        self.fired("morning", morning, report).await?;
        let now = self.team.clock.now();
        self.team.shop.live(day, now).await?;
        self.senders.day(&self.team).await?;
        if self.is_day_of(1, day) {
            self.good_deploy(report).await?;
        }
        if self.is_day_of(3, day) {
            self.failing_deploy(report).await?;
        }
        if self.is_day_of(4, day) {
            self.team.at_rest().await?;
            rotation::rotate(&self.team, report).await?;
        }
        if self.is_day_of(5, day) {
            self.lost_porter(report).await?;
        }
        if self.is_day_of(6, day) {
            lodge::lose(&self.team, report).await?;
        }
        Ok(())
    }

    async fn night(&mut self, day: i64, report: &mut Report) -> Result<()> {
        let [two, three, four] = [2, 3, 4].map(|hour| self.at(day + 1, hour));
        self.until_shortly_before(two).await?;
        if self.is_day_of(2, day) {
            self.lost_workers(day, report).await?;
        }
        self.fired("backup", two, report).await?;
        self.until_shortly_before(three).await?;
        for schedule in ["sessions", "audit-logs", "backups"] {
            self.fired(schedule, three, report).await?;
        }
        if day + 1 == self.days {
            self.until_shortly_before(four).await?;
            self.fired("verify", four, report).await?;
        }
        Ok(())
    }

    /// Waits until a schedule's time has fired and its job has completed.
    async fn fired(&mut self, schedule: &'static str, nominal: DateTime<Utc>, report: &mut Report) -> Result<()> {
        let team = &self.team;
        let firing = wait_for(&format!("{schedule} of {nominal} has ended"), PATIENCE, async || {
            let shown = team.ask(&format!("schedules/{schedule}")).await?;
            let of_it = |firing: &&Value| {
                firing["nominal"].as_str().and_then(|at| at.parse().ok()) == Some(nominal) && has_ended(firing)
            };
            Ok(shown["firings"].as_array().into_iter().flatten().find(of_it).cloned())
        })
        .await?;
        let job = firing["job"].as_str().with_context(|| format!("{schedule} was not done: {firing}"))?;
        let job = team.ask(&format!("jobs/{job}")).await?;
        ensure!(job["state"] == "completed", "{schedule}: {job}");
        report.say(&format!("  {schedule}: {}", job["output"]));
        self.outputs.push((schedule, job["output"].clone()));
        Ok(())
    }

    /// Two migrations that harm nobody.
    async fn good_deploy(&mut self, report: &mut Report) -> Result<()> {
        let [one, two] = shop::GOOD_MIGRATIONS;
        let commit = self.team.github.commit(&[shop::LOCK, shop::FIRST_MIGRATION, one, two]);
        self.deployed(&commit, 2, report).await
    }

    /// A migration that fails on the data there is; it is mended, and deployed again.
    async fn failing_deploy(&mut self, report: &mut Report) -> Result<()> {
        let [one, two] = shop::GOOD_MIGRATIONS;
        let path = format!("{}/migration.sql", shop::UNIQUE_NAMES);
        let before = [shop::LOCK, shop::FIRST_MIGRATION, one, two];
        let bad = self.team.github.commit(&[&before[..], &[(&path, shop::BAD_SQL)]].concat());
        let gated = gate::deploy(&self.team, &mut self.senders, &bad).await?;
        ensure!(gated.conclusion == "failed", "a migration that cannot be applied: {}", gated.run);
        let run = gated.run;
        self.failures += 1;
        let reason = job_of(&run, "migrate")?["reason"].as_str().unwrap_or_default().to_owned();
        report.say(&format!("  the gate kept a deploy out: {}", reason.lines().next().unwrap_or_default()));
        // What the message says is to be done: `prisma migrate resolve --rolled-back`, as Prisma does it.
        let resolve = format!(
            "update _prisma_migrations set rolled_back_at = now() where migration_name = '{}' and finished_at is null",
            shop::UNIQUE_NAMES
        );
        ensure!(self.team.shop.run(&resolve).await? == 1, "there is no failed migration to be resolved");
        let mended = self.team.github.commit(&[&before[..], &[(&path, shop::MENDED_SQL)]].concat());
        self.deployed(&mended, 1, report).await
    }

    async fn deployed(&mut self, commit: &str, migrations: usize, report: &mut Report) -> Result<()> {
        let gate::Gated { conclusion, run } = gate::deploy(&self.team, &mut self.senders, commit).await?;
        ensure!(conclusion == "succeeded" && run["state"] == "completed", "a deploy: {conclusion}: {run}");
        let migrate = job_of(&run, "migrate")?;
        ensure!(migrate["output"]["count"] == migrations, "not what was committed: {migrate}");
        report.say(&format!("  the gate let a deploy through: {}", migrate["output"]["applied"]));
        self.migrations += migrations;
        self.deploys += 1;
        Ok(())
    }

    /// The workers' machines are lost while one of them backs the database up.
    async fn lost_workers(&mut self, day: i64, report: &mut Report) -> Result<()> {
        let team = &self.team;
        let looked = wait_for("the backup runs", PATIENCE, async || {
            let newest = team.ask("jobs?kind=backup&limit=1").await?;
            let Some(id) = newest[0]["id"].as_str() else { return Ok(None) };
            let job = team.ask(&format!("jobs/{id}")).await?;
            let created: Option<DateTime<Utc>> = job["created_at"].as_str().and_then(|at| at.parse().ok());
            let is_tonights = created.is_some_and(|created| created >= self.at(day + 1, 1));
            let has_begun = job["steps"].as_array().is_some_and(|steps| !steps.is_empty());
            Ok((is_tonights && has_begun).then(|| job["state"].clone()))
        });
        let state = looked.await?;
        // Nobody outside knows which of the two it is: one after the other is lost.
        for number in 0..self.team.workers.len() {
            self.team.lose_worker(number);
        }
        report.say(&format!("  both workers' machines were lost; the backup's job was {state}"));
        Ok(())
    }

    /// The porter's machine is lost when it has just signed for deliveries.
    async fn lost_porter(&mut self, report: &mut Report) -> Result<()> {
        for _ in 0..10 {
            self.senders.push(&self.team).await?;
        }
        self.team.lose_porter();
        report.say("  the porter's machine was lost, and another set up");
        for _ in 0..10 {
            self.senders.push(&self.team).await?;
        }
        Ok(())
    }
}

fn has_ended(firing: &Value) -> bool {
    let unfinished = ["pending", "scheduled", "available", "running", "retryable"];
    firing["state"].as_str().is_none_or(|state| !unfinished.contains(&state))
}

fn job_of<'run>(run: &'run Value, name: &str) -> Result<&'run Value> {
    let job = run["jobs"].as_array().into_iter().flatten().find(|job| job["name"] == name);
    let Some(job) = job else { bail!("the run has no job {name}: {run}") };
    Ok(job)
}
