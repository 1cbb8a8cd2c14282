//! A dead-man's switch as a channel: what should happen again and again says so when it did, and the switch calls people
//! when it hears nothing more (the process's own sign of life is [`crate::heartbeat`]).
//!
//! What is only good to know is a sign of life; a warning, or worse, says that something is wrong, with the text. A repeat
//! says the same again, which changes nothing.

use async_trait::async_trait;
use reqwest::Client;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use schemas::Timestamp;
use secrecy::SecretString;
use url::Url;

use super::call::{Call, secret_url};
use super::message::{Action, cut};
use super::{Channel, Message, NotSent, Posting, Repeats, Severity, tables};
use crate::handler::Failure;
use crate::heartbeat::Service;

/// healthchecks.io keeps the first 100 kB of what it is told.
const LARGEST_TEXT: usize = 10_000;

pub(super) struct Heartbeat {
    name: String,
    url: Url,
    service: Service,
    http: Client,
}

impl Heartbeat {
    pub(super) fn new(name: &str, url: &SecretString, service: Service, http: Client) -> Result<Self, Failure> {
        let url = secret_url("heartbeat's", name, url)?;
        Ok(Self { name: name.to_owned(), url, service, http })
    }
}

#[async_trait]
impl Channel for Heartbeat {
    fn repeats(&self) -> Repeats {
        Repeats::Dedupe
    }

    async fn send(&self, message: &Message, _posting: &Posting, wall: Timestamp) -> Result<(), NotSent> {
        let address = self.service.address(self.url.clone(), is_wrong(message)).ok_or_else(|| {
            let error = anyhow::anyhow!("the heartbeat's URL of the channel `{}` has no path", self.name);
            NotSent::before_sending(Failure::Discard(error))
        })?;
        let body = cut(&format!("{}\n{}", message.headline(false), message.text), LARGEST_TEXT).into_bytes();
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))]);
        Call { http: &self.http, url: &address, headers, body, table: tables::HEARTBEAT, traced: false }
            .send(wall)
            .await
    }
}

fn is_wrong(message: &Message) -> bool {
    let is_over = message.alarm.as_ref().is_some_and(|alarm| alarm.action == Action::Resolve);
    !is_over && message.severity != Severity::Info
}

#[cfg(test)]
mod tests {
    use super::super::Alarm;
    use super::*;

    #[test]
    fn what_is_good_to_know_or_over_is_a_sign_of_life_and_all_else_is_wrong() {
        let of = |severity, action: Option<Action>| Message {
            title: "backup".into(),
            text: String::new(),
            severity,
            alarm: action.map(|action| Alarm { key: "backup".into(), action }),
        };
        assert!(!is_wrong(&of(Severity::Info, None)));
        assert!(!is_wrong(&of(Severity::Critical, Some(Action::Resolve))));
        for action in [None, Some(Action::Trigger), Some(Action::Acknowledge)] {
            assert!(is_wrong(&of(Severity::Warning, action)) && is_wrong(&of(Severity::Critical, action)));
        }
    }
}
