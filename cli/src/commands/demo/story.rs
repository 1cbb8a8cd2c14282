//! The demo's story: three deliveries, and what becomes of each, told while it happens.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::Utc;
use producer::source_type;
use producer::sources::{SignedSample, signed_sample};
use reqwest::StatusCode;
use schemas::api::{DeliveryAnswer, EventView, JobView, RunJobView, RunView};
use schemas::{JobId, JobState, RunId, RunState};
use serde_json::Value;
use uuid::Uuid;

use super::receiver::Receiver;
use super::site::{COMMIT, Site};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::print;

/// The whole story ends within this, or it has failed.
const DEADLINE: Duration = Duration::from_mins(1);

/// How often a person's eye wants to see what is new.
const LOOK: Duration = Duration::from_millis(40);

/// Tells it.
pub(crate) struct Story<'site> {
    pub(crate) site: &'site Site,
    pub(crate) client: Client,
    pub(crate) http: reqwest::Client,
    pub(crate) team: Receiver,
    pub(crate) began: Instant,
}

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
        Ok(vec![self.a_push().await?, self.a_deploy().await?, self.a_sign_up().await?])
    }

    async fn a_push(&mut self) -> Result<Told, Failure> {
        let began = Instant::now();
        print("\n1  GitHub says: somebody pushed to main")?;
        let event = self.deliver("github", "push", &[]).await?;
        self.await_job(one(&event.jobs, "job")?).await?;
        Ok(Told { what: "push → notification", took: began.elapsed(), outcome: "delivered".into() })
    }

    async fn a_deploy(&mut self) -> Result<Told, Failure> {
        let began = Instant::now();
        print("\n2  Vercel says: a production deployment is ready")?;
        let commit = ("payload.deployment.meta.githubCommitSha".to_owned(), COMMIT.to_owned());
        let event = self.deliver("vercel", "deployment.succeeded", &[commit]).await?;
        let run = self.follow(one(&event.runs, "run")?).await?;
        let notify = run.jobs.iter().find(|job| job.kind == "notify").map(|job| job.job);
        self.await_message(notify.ok_or_else(|| fell_short("the run has no notify job"))?).await?;
        Ok(Told {
            what: "deployment → backup, migrations, notification",
            took: began.elapsed(),
            outcome: deployed(&run)?,
        })
    }

    async fn a_sign_up(&mut self) -> Result<Told, Failure> {
        let began = Instant::now();
        print("\n3  Clerk says: a user signed up")?;
        let event = self.deliver("clerk", "user.created", &[]).await?;
        self.await_job(one(&event.jobs, "job")?).await?;
        Ok(Told { what: "sign-up → notification", took: began.elapsed(), outcome: "delivered".into() })
    }

    /// Sends a signed sample over HTTP and looks up the event that was made of it.
    async fn deliver(&self, source: &str, kind: &str, changes: &[(String, String)]) -> Result<EventView, Failure> {
        let secret = self.site.secret(source)?.into();
        let source_type = source_type(source).map_err(|problem| Failure::failed(problem.to_string()))?;
        let sample = signed_sample(source_type, kind, changes, &secret, Uuid::new_v4(), Utc::now())
            .map_err(|problem| Failure::failed(problem.to_string()))?;
        let sent = Instant::now();
        let (status, answer) = self.post(source, sample).await?;
        let millis = sent.elapsed().as_millis();
        self.line(
            "delivery",
            &format!("POST /webhooks/{source}, signed → {} in {millis} ms: verified and on disk", status.as_u16()),
        )?;
        let id = answer.event_id.ok_or_else(|| fell_short("the delivery was not booked"))?;
        let event: EventView = self.client.get(&format!("events/{id}")).await?;
        self.line("event", &format!("{} · {}", event.event.kind, event.event.subject.as_deref().unwrap_or("-")))?;
        let made = match (event.runs.len(), event.jobs.len()) {
            (0, jobs) => format!("matched; {jobs} job"),
            (runs, _) => format!("matched; {runs} run of a runbook"),
        };
        self.line("route", &format!("{} {made}", event.event.kind))?;
        Ok(event)
    }

    async fn post(&self, source: &str, sample: SignedSample) -> Result<(StatusCode, DeliveryAnswer), Failure> {
        let url = format!("http://{}/webhooks/{source}", self.site.server);
        let sent = self.http.post(url).headers(sample.headers).body(sample.body).send().await;
        let response = sent.map_err(|error| Failure::failed(format!("the delivery was not answered: {error}")))?;
        let status = response.status();
        if status != StatusCode::ACCEPTED {
            return Err(fell_short(&format!("the delivery was answered with {status}")));
        }
        let answer = response.json().await.map_err(|error| Failure::failed(format!("the answer is odd: {error}")))?;
        Ok((status, answer))
    }

    /// Waits until a single job has completed, and its message has arrived.
    async fn await_job(&mut self, id: JobId) -> Result<(), Failure> {
        loop {
            let job: JobView = self.client.get(&format!("jobs/{id}")).await?;
            match job.state {
                JobState::Completed => return self.await_message(id).await,
                state if state.is_finished() => return Err(ended_badly(&job.kind, state, job.reason.as_deref())),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Tells what the jobs of a run do, until it has ended.
    async fn follow(&self, id: RunId) -> Result<RunView, Failure> {
        let mut known: BTreeMap<String, JobState> = BTreeMap::new();
        let mut first = true;
        loop {
            let run: RunView = self.client.get(&format!("runs/{id}")).await?;
            if std::mem::take(&mut first) {
                let names: Vec<&str> = run.jobs.iter().map(|job| job.name.as_str()).collect();
                self.line("run", &format!("{} · {}", run.runbook, names.join(" → ")))?;
            }
            for job in &run.jobs {
                let before = known.insert(job.name.clone(), job.state);
                if before != Some(job.state) && job.state.is_finished() {
                    self.line(&job.name, &outcome_of(job))?;
                }
            }
            match run.state {
                RunState::Running => tokio::time::sleep(LOOK).await,
                RunState::Completed => return Ok(run),
                state => return Err(fell_short(&format!("the run {} is {}", run.runbook, state.as_str()))),
            }
        }
    }

    /// Waits until the message of that job is with the team.
    async fn await_message(&mut self, job: JobId) -> Result<(), Failure> {
        loop {
            let Some(arrived) = self.team.arrived.recv().await else {
                return Err(fell_short("the receiver has stopped"));
            };
            if arrived.job == job {
                self.line("team got", &format!("“{}” (signature verified)", arrived.title))?;
                let mut lines = arrived.text.lines().filter(|line| !line.is_empty());
                return lines.try_for_each(|line| self.line("", line));
            }
        }
    }

    fn line(&self, what: &str, text: &str) -> Result<(), Failure> {
        print(&format!("   {:>6.2} s  {what:<9} {text}", self.began.elapsed().as_secs_f64()))
    }
}

/// What a job of a run did, in a few words.
fn outcome_of(job: &RunJobView) -> String {
    let took = job.started_at.zip(job.finished_at).map(|(start, end)| (end - start).num_milliseconds());
    let took = took.map_or(String::new(), |millis| format!(" in {millis} ms"));
    let said = job.output.as_ref().map(|output| said(&job.kind, output)).or_else(|| job.reason.clone());
    format!("{}{took}{}", job.state.as_str(), said.map_or(String::new(), |said| format!(": {said}")))
}

fn said(kind: &str, output: &Value) -> String {
    let number = |name: &str| output[name].as_u64().unwrap_or_default();
    let text = |name: &str| output[name].as_str().unwrap_or("?").to_owned();
    match kind {
        "plan" => format!("{} pending, {}: {}", number("pending"), text("risk"), names(&output["names"])),
        "backup" => format!(
            "{} → {} bytes, read back and verified, {}",
            number("bytes"),
            number("stored_bytes"),
            text("backup")
        ),
        "migrate" => format!("{} applied: {}", number("count"), names(&output["applied"])),
        "notify" => format!("to {}", text("channel")),
        _ => output.to_string(),
    }
}

fn names(list: &Value) -> String {
    let names = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    names.collect::<Vec<_>>().join(", ")
}

/// What a good deploy did; an error where its run completed and yet did not do its work.
fn deployed(run: &RunView) -> Result<String, Failure> {
    let output = |name: &str| run.jobs.iter().find(|job| job.name == name).and_then(|job| job.output.clone());
    let (backup, migrate) = (output("backup"), output("migrate").unwrap_or_default());
    if backup.is_none() || migrate["count"].as_u64() != Some(2) {
        return Err(fell_short("the run completed without a backup and two applied migrations"));
    }
    Ok("1 backup, 2 migrations".into())
}

fn one<Id: Copy>(ids: &[Id], what: &str) -> Result<Id, Failure> {
    match ids {
        [id] => Ok(*id),
        _ => Err(fell_short(&format!("the delivery made {} {what}s, not one", ids.len()))),
    }
}

fn ended_badly(kind: &str, state: JobState, reason: Option<&str>) -> Failure {
    fell_short(&format!("the job {kind} is {}: {}", state.as_str(), reason.unwrap_or("no reason is known")))
}

fn fell_short(what: &str) -> Failure {
    Failure::failed(format!("the demo fell short: {what}"))
}
