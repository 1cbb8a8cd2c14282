//! What the chapters of the demo are told with: deliveries, looks at jobs and runs, messages, and lines.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::Utc;
use producer::source_type;
use producer::sources::{SignedSample, signed_sample};
use reqwest::StatusCode;
use schemas::api::{DeliveryAnswer, EventView, JobView, RunView};
use schemas::{JobId, JobState, RunId, RunState};
use uuid::Uuid;

use super::receiver::{Arrived, Receiver};
use super::site::Site;
use super::story::Chapter;
use super::words::{fell_short, outcome_of};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::print;

/// How often a person's eye wants to see what is new.
const LOOK: Duration = Duration::from_millis(40);

/// A longer line is cut: it would be broken by the terminal.
const LONGEST: usize = 92;

pub(crate) struct Telling<'site> {
    pub(crate) site: &'site Site,
    pub(crate) client: Client,
    pub(crate) http: reqwest::Client,
    pub(crate) team: Receiver,
    pub(crate) began: Instant,
    pub(crate) chapters: usize,
}

impl Telling<'_> {
    /// Begins a chapter.
    pub(super) fn chapter(&mut self, title: &str) -> Result<Chapter, Failure> {
        self.chapters += 1;
        print(&format!("\n{}  {title}", self.chapters))?;
        Ok(Chapter(Instant::now()))
    }

    /// A line of the story.
    pub(super) fn line(&self, what: &str, text: &str) -> Result<(), Failure> {
        let mut text = text.lines().next().unwrap_or_default().to_owned();
        if text.chars().count() > LONGEST {
            text = text.chars().take(LONGEST - 1).chain(['…']).collect();
        }
        print(&format!("   {:>6.2} s  {what:<9} {text}", self.began.elapsed().as_secs_f64()))
    }

    pub(super) async fn look_again(&self) {
        tokio::time::sleep(LOOK).await;
    }

    /// Sends a signed sample over HTTP and looks up the event that was made of it.
    pub(super) async fn deliver(
        &self,
        source: &str,
        kind: &str,
        changes: &[(String, String)],
    ) -> Result<EventView, Failure> {
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

    /// Waits until a job has ended, however.
    pub(super) async fn ended(&self, id: JobId) -> Result<JobView, Failure> {
        loop {
            let job: JobView = self.client.get(&format!("jobs/{id}")).await?;
            if job.state.is_finished() {
                return Ok(job);
            }
            self.look_again().await;
        }
    }

    /// Tells what the jobs of a run do, until it has ended.
    pub(super) async fn follow(&self, id: RunId) -> Result<RunView, Failure> {
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
                RunState::Running => self.look_again().await,
                RunState::Completed => return Ok(run),
                state => return Err(fell_short(&format!("the run {} is {}", run.runbook, state.as_str()))),
            }
        }
    }

    /// Waits until the message of that job is with the team.
    pub(super) async fn await_message(&mut self, job: JobId) -> Result<(), Failure> {
        self.await_arrival(|arrived| arrived.job == job).await
    }

    /// Waits until the team was told about a job.
    pub(super) async fn await_news_of(&mut self, job: JobId) -> Result<(), Failure> {
        let id = job.to_string();
        self.await_arrival(|arrived| arrived.text.contains(&id)).await
    }

    async fn await_arrival(&mut self, is_it: impl Fn(&Arrived) -> bool) -> Result<(), Failure> {
        loop {
            let Some(arrived) = self.team.arrived.recv().await else {
                return Err(fell_short("the receiver has stopped"));
            };
            if is_it(&arrived) {
                self.line("team got", &format!("“{}” (signature verified)", arrived.title))?;
                let mut lines = arrived.text.lines().filter(|line| !line.is_empty());
                return lines.try_for_each(|line| self.line("", line));
            }
        }
    }
}
