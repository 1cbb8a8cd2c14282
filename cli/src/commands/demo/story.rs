//! The demo's story, chapter by chapter: what comes in, and what becomes of it.

use std::time::{Duration, Instant};

use schemas::api::{FiringOutcome, JobView, ScheduleDetails, StartAnswer};
use schemas::{JobId, JobState};

use super::shell::made;
use super::site::{COMMIT, LINKS};
use super::telling::Telling;
use super::words::{deployed, ended_badly, fell_short, one, said};
use crate::failure::Failure;
use crate::output::moment;

/// The whole story ends within this, or it has failed.
const DEADLINE: Duration = Duration::from_mins(1);

/// Tells it.
pub(crate) struct Story<'site>(pub(crate) Telling<'site>);

/// One line of the summary.
pub(crate) struct Told {
    pub(crate) what: &'static str,
    pub(crate) took: Duration,
    pub(crate) outcome: String,
}

impl Story<'_> {
    /// All of it; an error where anything fell short.
    pub(crate) async fn tell(&mut self) -> Result<Vec<Told>, Failure> {
        match tokio::time::timeout(DEADLINE, self.chapters()).await {
            Ok(told) => told,
            Err(_) => Err(Failure::failed(format!("the demo did not end within {} s", DEADLINE.as_secs()))),
        }
    }

    async fn chapters(&mut self) -> Result<Vec<Told>, Failure> {
        Ok(vec![
            self.a_night().await?,
            self.a_push().await?,
            self.a_deploy().await?,
            self.a_sign_up().await?,
            self.a_rotation().await?,
            self.a_cleanup().await?,
        ])
    }

    /// A schedule, whose time came while nobody was there.
    async fn a_night(&mut self) -> Result<Told, Failure> {
        let chapter = self.0.chapter("The clock: at 02:00 this porter was away. The night's work is made up for")?;
        let (nominal, run) = loop {
            let nightly: ScheduleDetails = self.0.client.get("schedules/nightly").await?;
            let fired = nightly.firings.iter().find(|firing| firing.outcome == FiringOutcome::Fired);
            if let Some((firing, run)) = fired.and_then(|firing| Some((firing, firing.run?))) {
                break (firing.nominal, run);
            }
            self.0.look_again().await;
        };
        self.0.line("schedule", &format!("nightly, every day at 02:00 UTC: {} is fired now, once", moment(nominal)))?;
        let run = self.0.follow(run).await?;
        let proven = run.jobs.iter().any(|job| job.kind == "verify" && job.state == JobState::Completed);
        if !proven {
            return Err(fell_short("the night ended without a backup that was proven by a restore"));
        }
        Ok(chapter.ended("schedule → backup, restored and compared", "proven"))
    }

    async fn a_push(&mut self) -> Result<Told, Failure> {
        let chapter = self.0.chapter("GitHub says: somebody pushed to main")?;
        let event = self.0.deliver("github", "push", &[]).await?;
        let job = one(&event.jobs, "job")?;
        self.completed(job).await?;
        self.0.await_message(job).await?;
        Ok(chapter.ended("push → notification", "delivered"))
    }

    async fn a_deploy(&mut self) -> Result<Told, Failure> {
        let chapter = self.0.chapter("Vercel says: a production deployment is ready")?;
        let commit = ("payload.deployment.meta.githubCommitSha".to_owned(), COMMIT.to_owned());
        let event = self.0.deliver("vercel", "deployment.succeeded", &[commit]).await?;
        let run = self.0.follow(one(&event.runs, "run")?).await?;
        let notify = run.jobs.iter().find(|job| job.kind == "notify").map(|job| job.job);
        self.0.await_message(notify.ok_or_else(|| fell_short("the run has no notify job"))?).await?;
        Ok(chapter.ended("deployment → backup, proof, migrations, notification", &deployed(&run)?))
    }

    /// What fails is told, and is done again from the command line.
    async fn a_sign_up(&mut self) -> Result<Told, Failure> {
        let chapter = self.0.chapter("Clerk says: a user signed up. The CRM, which is to hear of it, is away")?;
        let event = self.0.deliver("clerk", "user.created", &[]).await?;
        let job = one(&event.jobs, "job")?;
        let failed = self.0.ended(job).await?;
        if failed.state != JobState::Discarded {
            return Err(ended_badly(&failed.kind, job, failed.state, failed.reason.as_deref()));
        }
        self.0.line("http", &format!("discarded: {}", failed.reason.unwrap_or_default()))?;
        self.0.await_news_of(job).await?;
        self.0.team.open_crm();
        self.0.line("", "…the CRM is back. An operator has it done again:")?;
        let id = job.to_string();
        let printed = self.0.command(&["jobs", "replay", &id, "--reason", "the CRM is back"]).await?;
        let again = self.completed(made(&printed)?).await?;
        self.0.line("http", &format!("completed: {}", said("http", &again.output.unwrap_or_default())))?;
        let crm = self.0.team.crm();
        if crm.values().copied().collect::<Vec<_>>() != [1] {
            return Err(fell_short(&format!("the CRM has {crm:?}, not one user, once")));
        }
        Ok(chapter.ended("sign-up → failed, told, replayed", "in the CRM, once"))
    }

    /// A key is exchanged; who uses it has the new one before the old one dies.
    async fn a_rotation(&mut self) -> Result<Told, Failure> {
        let chapter = self.0.chapter("An operator has the key exchanged that the shop signs its links with")?;
        let rotate = ["schedules", "run", "rotate-links", "--reason", "the monthly one", "--json"];
        let started: StartAnswer = read(&self.0.command(&rotate).await?)?;
        let job = self.completed(started.job.ok_or_else(|| fell_short("the command started no job"))?).await?;
        let steps: Vec<&str> = job.steps.iter().map(|step| step.name.as_str()).collect();
        self.0.line("rotate", &format!("completed: {}", steps.join(" → ")))?;
        self.0.command(&["secrets", "show", LINKS]).await?;
        let key = std::fs::read_to_string(self.0.site.key_of_the_shop()).unwrap_or_default();
        if key.trim().len() < 32 {
            return Err(fell_short("the shop does not have the new key"));
        }
        self.0.line("", "the shop's file has the new key; no value was ever printed")?;
        Ok(chapter.ended("secret rotation", "the shop has the new key, the old one is retired"))
    }

    /// What no tier keeps goes; the last good one never does.
    async fn a_cleanup(&mut self) -> Result<Told, Failure> {
        let chapter = self.0.chapter("An operator has the weekly cleanup done now")?;
        let printed = self.0.command(&["schedules", "run", "cleanup", "--reason", "tidying up", "--json"]).await?;
        let started: StartAnswer = read(&printed)?;
        let done = self.completed(started.job.ok_or_else(|| fell_short("the command started no job"))?).await?;
        let output = done.output.unwrap_or_default();
        self.0.line("retention", &said("retention", &output))?;
        let (kept, deleted) = (&output["kept"], &output["deleted"]);
        if kept.as_u64() < Some(1) {
            return Err(fell_short("the cleanup kept no backup"));
        }
        Ok(chapter.ended("retention cleanup", &format!("{kept} kept, {deleted} deleted")))
    }

    async fn completed(&self, id: JobId) -> Result<JobView, Failure> {
        let job = self.0.ended(id).await?;
        match job.state {
            JobState::Completed => Ok(job),
            state => Err(ended_badly(&job.kind, id, state, job.reason.as_deref())),
        }
    }
}

/// What a command printed as JSON.
fn read(printed: &str) -> Result<StartAnswer, Failure> {
    serde_json::from_str(printed)
        .map_err(|error| fell_short(&format!("the command's answer is not understood: {error}")))
}

/// A chapter that has begun.
pub(super) struct Chapter(pub(super) Instant);

impl Chapter {
    fn ended(self, what: &'static str, outcome: &str) -> Told {
        Told { what, took: self.0.elapsed(), outcome: outcome.to_owned() }
    }
}
