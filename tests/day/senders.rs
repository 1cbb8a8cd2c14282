//! GitHub and Clerk, as they send to the porter: what they were answered is what the porter has promised.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use producer::source_type;
use producer::sources::signed_sample;
use serde_json::Value;
use uuid::Uuid;

use crate::team::{GITHUB_SECRET, Team, WEBHOOK_SECRET};

/// What was sent, and how it was answered.
#[derive(Default)]
pub(crate) struct Senders {
    number: u128,
    /// The events that were promised, by source and the sender's nonce.
    pub(crate) promised: BTreeMap<(String, u128), String>,
    /// How many were answered as already known.
    pub(crate) repeats: usize,
    /// How many were not answered by a 2xx.
    pub(crate) refused: usize,
    /// The commits and users of what was promised.
    pub(crate) subjects: Vec<String>,
}

impl Senders {
    /// An ordinary day's deliveries: pushes and sign-ups, and some of them delivered twice.
    pub(crate) async fn day(&mut self, team: &Team) -> Result<()> {
        for number in 0..40 {
            let nonce = if number % 5 == 0 { self.sign_up(team).await? } else { self.push(team).await? };
            if number % 8 == 3 {
                self.again(team, nonce).await?;
            }
        }
        Ok(())
    }

    /// A push of a commit of its own; the nonce under which it can be sent again.
    pub(crate) async fn push(&mut self, team: &Team) -> Result<u128> {
        self.number += 1;
        let nonce = self.number;
        self.send(team, "github", nonce).await?;
        Ok(nonce)
    }

    async fn sign_up(&mut self, team: &Team) -> Result<u128> {
        self.number += 1;
        let nonce = self.number;
        self.send(team, "clerk", nonce).await?;
        Ok(nonce)
    }

    async fn again(&mut self, team: &Team, nonce: u128) -> Result<()> {
        let source = if self.promised.contains_key(&("clerk".to_owned(), nonce)) { "clerk" } else { "github" };
        self.send(team, source, nonce).await
    }

    async fn send(&mut self, team: &Team, source: &str, nonce: u128) -> Result<()> {
        let (kind, path, subject, secret) = match source {
            "github" => ("push", "after", format!("{nonce:040x}"), GITHUB_SECRET),
            _ => ("user.created", "data.id", format!("user_day{nonce}"), WEBHOOK_SECRET),
        };
        let kind_of_source = source_type(source).map_err(|problem| anyhow::anyhow!("{problem}"))?;
        let changes = [(path.to_owned(), subject.clone())];
        let secret = secret.to_owned().into();
        let sample = signed_sample(kind_of_source, kind, &changes, &secret, Uuid::from_u128(nonce), team.clock.now())
            .map_err(|problem| anyhow::anyhow!("{problem}"))?;
        let signed = (sample.headers, Bytes::from(sample.body));
        let known = self.promised.contains_key(&(source.to_owned(), nonce));
        if self.deliver(team, source, nonce, &signed).await?.is_some() && !known {
            self.subjects.push(subject);
        }
        Ok(())
    }

    /// Delivers what is signed; the event that was promised, if one was.
    pub(crate) async fn deliver(
        &mut self,
        team: &Team,
        source: &str,
        nonce: u128,
        (headers, body): &(HeaderMap, Bytes),
    ) -> Result<Option<String>> {
        let url = format!("{}/webhooks/{source}", team.porter.process.server());
        let answer = team.http.post(url).headers(headers.clone()).body(body.clone()).send().await;
        let answer = answer.context("the porter does not answer")?;
        let status = answer.status();
        if !status.is_success() {
            self.refused += 1;
            return Ok(None);
        }
        let answer: Value = answer.json().await?;
        let event = answer["event_id"].as_str().context("a 2xx without an event")?.to_owned();
        self.repeats += usize::from(status == StatusCode::OK);
        self.promised.insert((source.to_owned(), nonce), event.clone());
        Ok(Some(event))
    }
}
