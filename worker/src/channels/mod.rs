//! Channels: where notifications go. A new one is a file here, a field of [`ChannelConfig`], an arm in [`open`], and its
//! table in [`tables`].

mod call;
mod config;
mod discord;
mod heartbeat;
mod mail;
pub(crate) mod message;
mod pagerduty;
mod resend;
pub mod route;
mod slack;
pub mod tables;
pub mod verdict;
mod webhook;

use async_trait::async_trait;
use schemas::{JobId, Timestamp};
use secrecy::SecretString;
use secrets::{Resolver, SecretText};

use crate::handler::Failure;

pub(crate) use call::beginning_of;
pub use config::{
    ChannelConfig, MailAddress, MailConfig, MailLogin, MailTls, OnUnknown, PagerdutyConfig, ResendConfig, SwitchConfig,
    WebhookConfig,
};
pub use message::{Action, Alarm, Message, Severity};
pub use route::Route;
pub use verdict::{Fate, NotSent};

use config::Target;

/// A channel that can be reached.
#[async_trait]
pub trait Channel: Send + Sync {
    /// What becomes of a message of which nobody knows whether an earlier attempt delivered it.
    fn repeats(&self) -> Repeats;

    /// Sends a message once. `wall` is the wall clock's time, for signatures and for the dates that others send.
    async fn send(&self, message: &Message, posting: &Posting, wall: Timestamp) -> Result<(), NotSent>;
}

/// What becomes of a message of which nobody knows whether an earlier attempt delivered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// It is sent again: the receiver knows it by its id.
    Dedupe,
    /// It is sent again and says that it may be a repeat.
    Mark,
    /// It is not sent again; a person looks.
    Report,
}

/// What is the same in every attempt to deliver a message.
#[derive(Clone, Copy, Debug)]
pub struct Posting {
    /// The job that delivers it: receivers that dedupe know the message by it.
    pub job: JobId,
    /// When that job was stored, by the ledger's clock.
    pub created_at: Timestamp,
    /// Whether an earlier attempt may have delivered it.
    pub may_repeat: bool,
}

/// Opens the channel: resolves its secrets.
pub async fn open(
    name: &str,
    config: &ChannelConfig,
    secrets: &Resolver,
    http: &reqwest::Client,
) -> Result<Box<dyn Channel>, Failure> {
    let target = config.target().map_err(|problem| {
        let advice = "correct the configuration and retry the job";
        Failure::Discard(anyhow::anyhow!("the channel `{name}` cannot be used: {problem}; {advice}"))
    })?;
    match target {
        Target::Slack(url) => {
            let url = resolve(name, url, secrets).await?;
            Ok(Box::new(slack::Slack::new(name, &url, config.on_unknown, http.clone())?))
        }
        Target::Discord(url) => {
            let url = resolve(name, url, secrets).await?;
            Ok(Box::new(discord::Discord::new(name, &url, config.on_unknown, http.clone())?))
        }
        Target::Pagerduty(pagerduty) => {
            let key = resolve(name, &pagerduty.routing_key, secrets).await?;
            Ok(Box::new(pagerduty::Pagerduty::new(name, &pagerduty.url, &key, http.clone())?))
        }
        Target::Mail(mail) => {
            let password = match &mail.login {
                Some(login) => Some(resolve(name, &login.password, secrets).await?),
                None => None,
            };
            Ok(Box::new(mail::Mail::new(mail, password.as_ref(), config.on_unknown)))
        }
        Target::Resend(resend) => {
            let key = resolve(name, &resend.key, secrets).await?;
            Ok(Box::new(resend::Resend::new(name, resend, &key, http.clone())?))
        }
        Target::Heartbeat(switch) => {
            let url = resolve(name, &switch.url, secrets).await?;
            Ok(Box::new(heartbeat::Heartbeat::new(name, &url, switch.service, http.clone())?))
        }
        Target::Route => {
            let advice = "the message goes to the channels that it names";
            Err(Failure::Discard(anyhow::anyhow!(
                "the channel `{name}` is a router, which sends nothing itself: {advice}"
            )))
        }
        Target::Webhook(webhook) => {
            let secret = resolve(name, &webhook.secret, secrets).await?;
            Ok(Box::new(webhook::Webhook::new(name, webhook.url.clone(), &secret, http.clone())?))
        }
    }
}

async fn resolve(name: &str, secret: &SecretText, secrets: &Resolver) -> Result<SecretString, Failure> {
    secrets.resolve(secret).await.map_err(|error| {
        let transient = error.is_transient();
        let error = anyhow::Error::new(error).context(format!("resolving the secret of the channel `{name}`"));
        if transient { Failure::retry(error) } else { Failure::Discard(error) }
    })
}
