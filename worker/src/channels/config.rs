//! A channel as the configuration file spells it.

use schemars::JsonSchema;
use schemas::Problem;
use secrets::SecretText;
use serde::{Deserialize, Serialize};
use url::Url;

/// A channel as the configuration file spells it: exactly one of its targets, which [`ChannelConfig::problems`] checks.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelConfig {
    /// A Slack incoming webhook's URL; whoever has it can post, so it is a secret.
    #[serde(default)]
    pub slack: Option<SecretText>,
    /// A receiver of signed webhooks.
    #[serde(default)]
    pub webhook: Option<WebhookConfig>,
    /// What to do with a message of which nobody knows whether it was delivered. Signed webhooks need no such choice:
    /// they are sent again, and their receiver knows them by their id.
    #[serde(default)]
    pub on_unknown: OnUnknown,
}

/// A receiver of webhooks signed by Standard Webhooks 1.0 (<https://www.standardwebhooks.com>).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// `https://...`; plain `http://` is for receivers on the same machine or network.
    pub url: Url,
    /// `whsec_<base64>`, 24 to 64 bytes.
    pub secret: SecretText,
}

/// What to do with what nobody knows whether it was done: a message of which nobody knows whether it was delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnUnknown {
    /// Do it again; a message gets a mark that it may be a repeat.
    #[default]
    Repeat,
    /// Discard the job with what happened, so that a person looks.
    Report,
}

impl OnUnknown {
    /// The default where a repeat may do harm.
    pub fn report() -> Self {
        Self::Report
    }
}

/// The one target of a channel.
pub(super) enum Target<'a> {
    Slack(&'a SecretText),
    Webhook(&'a WebhookConfig),
}

impl ChannelConfig {
    /// What is wrong with it beyond its types.
    pub fn problems(&self) -> Vec<Problem> {
        self.target().err().into_iter().collect()
    }

    pub(super) fn target(&self) -> Result<Target<'_>, Problem> {
        match (&self.slack, &self.webhook) {
            (Some(url), None) => Ok(Target::Slack(url)),
            (None, Some(webhook)) => webhook.check().map(|()| Target::Webhook(webhook)),
            (None, None) => {
                let help = "add slack = \"${env:...}\" or webhook = { url = \"https://...\", secret = \"${env:...}\" }";
                Err(Problem::new("no target").help(help))
            }
            (Some(_), Some(_)) => {
                Err(Problem::new("two targets, `slack` and `webhook`").help("make a channel of each"))
            }
        }
    }
}

impl WebhookConfig {
    fn check(&self) -> Result<(), Problem> {
        let place = |problem: Problem| problem.within("url").within("webhook");
        if !matches!(self.url.scheme(), "https" | "http") || self.url.host().is_none() {
            return Err(place(Problem::new("this is not an `https://` address")));
        }
        if !self.url.username().is_empty() || self.url.password().is_some() {
            let help = "the signature proves the sender; leave the user and password out";
            return Err(place(Problem::new("a secret stands in the address").help(help)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn problems(config: Value) -> Vec<String> {
        let config: ChannelConfig = serde_json::from_value(config).unwrap();
        config.problems().iter().map(ToString::to_string).collect()
    }

    fn webhook(url: &str) -> Value {
        json!({"webhook": {"url": url, "secret": "${env:X}"}})
    }

    #[test]
    fn a_channel_has_exactly_one_target() {
        assert!(problems(json!({}))[0].starts_with("no target (add slack ="));
        let both = json!({"slack": "${env:X}", "webhook": {"url": "https://x.test/", "secret": "${env:X}"}});
        assert_eq!(problems(both), ["two targets, `slack` and `webhook` (make a channel of each)"]);
        assert!(problems(json!({"slack": "${env:X}", "on_unknown": "report"})).is_empty());
        assert!(problems(webhook("https://x.test/hook")).is_empty());
    }

    #[test]
    fn an_address_that_cannot_be_called_or_holds_a_password_is_a_problem() {
        assert_eq!(problems(webhook("ftp://x.test/")), ["webhook.url: this is not an `https://` address"]);
        assert!(
            problems(webhook("https://me:pw@x.test/"))[0].starts_with("webhook.url: a secret stands in the address")
        );
    }

    #[test]
    fn misspelt_fields_and_choices_are_refused() {
        let read = |config: Value| serde_json::from_value::<ChannelConfig>(config);
        assert!(read(json!({"slak": "${env:X}"})).is_err());
        assert!(read(json!({"slack": "${env:X}", "on_unknown": "ignore"})).is_err());
    }
}
