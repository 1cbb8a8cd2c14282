//! A channel as the configuration file spells it.

use std::fmt;
use std::path::PathBuf;

use lettre::message::Mailbox;
use schemars::JsonSchema;
use schemas::Problem;
use secrets::SecretText;
use serde::{Deserialize, Serialize};
use url::Url;

use super::Repeats;
use super::mail::mailbox;
use super::route::Route;
use crate::heartbeat::Service;

/// A channel as the configuration file spells it: exactly one of its targets, which [`ChannelConfig::problems`] checks.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelConfig {
    /// A Slack incoming webhook's URL; whoever has it can post, so it is a secret.
    #[serde(default)]
    pub slack: Option<SecretText>,
    /// A Discord webhook's URL; whoever has it can post, so it is a secret.
    #[serde(default)]
    pub discord: Option<SecretText>,
    /// A service of `PagerDuty`'s.
    #[serde(default)]
    pub pagerduty: Option<PagerdutyConfig>,
    /// Mail by SMTP.
    #[serde(default)]
    pub mail: Option<MailConfig>,
    /// Mail through Resend.
    #[serde(default)]
    pub resend: Option<ResendConfig>,
    /// A receiver of signed webhooks.
    #[serde(default)]
    pub webhook: Option<WebhookConfig>,
    /// A dead-man's switch.
    #[serde(default)]
    pub heartbeat: Option<SwitchConfig>,
    /// Other channels, by how urgent a message is.
    #[serde(default)]
    pub route: Option<Route>,
    /// What to do with a message of which nobody knows whether it was delivered. Targets that know messages by their id
    /// need no such choice: they get it again.
    #[serde(default)]
    pub on_unknown: OnUnknown,
}

/// A service of `PagerDuty`'s.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagerdutyConfig {
    /// The routing key of an Events API v2 integration: 32 letters and digits.
    pub routing_key: SecretText,
    /// `https://events.pagerduty.com`, or, for accounts in Europe, `https://events.eu.pagerduty.com`.
    #[serde(default = "pagerduty_url")]
    pub url: Url,
}

/// Mail by SMTP.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailConfig {
    /// The server's name, which its certificate must name.
    pub host: String,
    /// Its port; that of `tls` where nothing is said.
    #[serde(default)]
    port: Option<u16>,
    /// How the connection is protected.
    #[serde(default)]
    pub tls: MailTls,
    /// A PEM file with the authority that signed the server's certificate, where the system does not know it.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// As whom to log in, if at all.
    #[serde(default)]
    pub login: Option<MailLogin>,
    /// Whom mail is from.
    pub from: MailAddress,
    /// Whom it goes to.
    pub to: Vec<MailAddress>,
}

/// How a connection to a mail server is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MailTls {
    /// TLS from the first byte on; port 465.
    #[default]
    Tls,
    /// `STARTTLS`, without which nothing is sent; port 587.
    Starttls,
    /// Not at all: for a server on this machine alone; port 25.
    None,
}

/// A mail server's user.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailLogin {
    /// Its name.
    pub user: String,
    /// Its password.
    pub password: SecretText,
}

/// An account at Resend.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResendConfig {
    /// An API key that may send.
    pub key: SecretText,
    /// Whom mail is from: an address in a domain that Resend has verified.
    pub from: MailAddress,
    /// Whom it goes to.
    pub to: Vec<MailAddress>,
    /// `https://api.resend.com`.
    #[serde(default = "resend_url")]
    pub url: Url,
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

/// A dead-man's switch, which hears of something that should happen again and again.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchConfig {
    /// Its address; whoever has it can keep the switch quiet, so it is a secret.
    pub url: SecretText,
    /// Which service's words are spoken.
    #[serde(default)]
    pub service: Service,
}

/// `ops@example.com`, or `Operations <ops@example.com>`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct MailAddress(Mailbox);

impl MailAddress {
    pub(super) const fn mailbox(&self) -> &Mailbox {
        &self.0
    }
}

impl TryFrom<String> for MailAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        mailbox(&text).map(Self)
    }
}

impl fmt::Display for MailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
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

impl From<OnUnknown> for Repeats {
    fn from(choice: OnUnknown) -> Self {
        match choice {
            OnUnknown::Repeat => Self::Mark,
            OnUnknown::Report => Self::Report,
        }
    }
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
    Discord(&'a SecretText),
    Pagerduty(&'a PagerdutyConfig),
    Mail(&'a MailConfig),
    Resend(&'a ResendConfig),
    Webhook(&'a WebhookConfig),
    Heartbeat(&'a SwitchConfig),
    Route,
}

impl ChannelConfig {
    /// What is wrong with it beyond its types.
    pub fn problems(&self) -> Vec<Problem> {
        self.target().err().into_iter().collect()
    }

    pub(super) fn target(&self) -> Result<Target<'_>, Problem> {
        let targets = [
            ("slack", self.slack.as_ref().map(Target::Slack)),
            ("discord", self.discord.as_ref().map(Target::Discord)),
            ("pagerduty", self.pagerduty.as_ref().map(Target::Pagerduty)),
            ("mail", self.mail.as_ref().map(Target::Mail)),
            ("resend", self.resend.as_ref().map(Target::Resend)),
            ("webhook", self.webhook.as_ref().map(Target::Webhook)),
            ("heartbeat", self.heartbeat.as_ref().map(Target::Heartbeat)),
            ("route", self.route.as_ref().map(|_| Target::Route)),
        ];
        let mut given = targets.into_iter().filter_map(|(name, target)| Some((name, target?)));
        let Some((name, target)) = given.next() else {
            let help =
                "add slack = \"${env:...}\", or one of discord, pagerduty, mail, resend, webhook, heartbeat, route";
            return Err(Problem::new("no target").help(help));
        };
        if let Some((other, _)) = given.next() {
            let problem = Problem::new(format!("two targets, `{name}` and `{other}`"));
            return Err(problem.help("make a channel of each, and a third with a `route` to both"));
        }
        target.check().map_err(|problem| problem.within(name))?;
        Ok(target)
    }
}

impl Target<'_> {
    fn check(&self) -> Result<(), Problem> {
        match self {
            Self::Slack(_) | Self::Discord(_) | Self::Heartbeat(_) | Self::Route => Ok(()),
            Self::Pagerduty(config) => check_url(&config.url),
            Self::Mail(config) => config.check(),
            Self::Resend(config) => check_url(&config.url).and_then(|()| check_recipients(&config.to)),
            Self::Webhook(config) => check_url(&config.url),
        }
    }
}

impl MailConfig {
    /// The port that is configured, or the usual one.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(match self.tls {
            MailTls::Tls => 465,
            MailTls::Starttls => 587,
            MailTls::None => 25,
        })
    }

    fn check(&self) -> Result<(), Problem> {
        check_recipients(&self.to)?;
        let loopback = self.host == "localhost" || self.host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        if self.tls == MailTls::None && !loopback {
            let problem = Problem::new("without TLS everybody on the way reads the mail and the password");
            return Err(problem.help("write `tls` or `starttls`; `none` is for `localhost`").within("tls"));
        }
        Ok(())
    }
}

fn check_recipients(to: &[MailAddress]) -> Result<(), Problem> {
    if to.is_empty() {
        return Err(Problem::new("nobody would get it").help("write to = [\"ops@example.com\"]").within("to"));
    }
    Ok(())
}

fn check_url(url: &Url) -> Result<(), Problem> {
    let place = |problem: Problem| problem.within("url");
    if !matches!(url.scheme(), "https" | "http") || url.host().is_none() {
        return Err(place(Problem::new("this is not an `https://` address")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let help = "what proves the sender is sent apart; leave the user and password out";
        return Err(place(Problem::new("a secret stands in the address").help(help)));
    }
    Ok(())
}

fn pagerduty_url() -> Url {
    known("https://events.pagerduty.com")
}

fn resend_url() -> Url {
    known("https://api.resend.com")
}

fn known(address: &str) -> Url {
    Url::parse(address).unwrap_or_else(|error| unreachable!("{address}: {error}"))
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

    fn mail(more: Value) -> Value {
        let mut mail = json!({"host": "mail.test", "from": "np@example.com", "to": ["ops@example.com"]});
        mail.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        json!({"mail": mail})
    }

    #[test]
    fn a_channel_has_exactly_one_target() {
        assert!(problems(json!({}))[0].starts_with("no target (add slack ="));
        let both = json!({"slack": "${env:X}", "webhook": {"url": "https://x.test/", "secret": "${env:X}"}});
        assert!(problems(both)[0].starts_with("two targets, `slack` and `webhook` (make a channel of each"));
        assert!(problems(json!({"slack": "${env:X}", "on_unknown": "report"})).is_empty());
        assert!(problems(webhook("https://x.test/hook")).is_empty());
        assert!(problems(json!({"discord": "${env:X}"})).is_empty());
        assert!(problems(json!({"heartbeat": {"url": "${env:X}", "service": "sentry"}})).is_empty());
        assert!(problems(json!({"pagerduty": {"routing_key": "${env:X}"}})).is_empty());
        assert!(problems(json!({"resend": {"key": "${env:X}", "from": "a@b.test", "to": ["c@d.test"]}})).is_empty());
        assert!(problems(mail(json!({}))).is_empty());
    }

    #[test]
    fn an_address_that_cannot_be_called_or_holds_a_password_is_a_problem() {
        assert_eq!(problems(webhook("ftp://x.test/")), ["webhook.url: this is not an `https://` address"]);
        assert!(
            problems(webhook("https://me:pw@x.test/"))[0].starts_with("webhook.url: a secret stands in the address")
        );
        let pagerduty = json!({"pagerduty": {"routing_key": "${env:X}", "url": "mailto:x@y.test"}});
        assert_eq!(problems(pagerduty), ["pagerduty.url: this is not an `https://` address"]);
    }

    #[test]
    fn mail_goes_to_somebody_and_without_tls_to_this_machine_alone() {
        assert!(problems(mail(json!({"to": []})))[0].starts_with("mail.to: nobody would get it"));
        assert!(problems(mail(json!({"tls": "none"})))[0].starts_with("mail.tls: without TLS everybody"));
        for host in ["localhost", "127.0.0.1", "::1"] {
            assert!(problems(mail(json!({"tls": "none", "host": host}))).is_empty(), "{host}");
        }
    }

    #[test]
    fn the_usual_port_is_that_of_the_protection() {
        let port = |more| serde_json::from_value::<ChannelConfig>(mail(more)).unwrap().mail.unwrap().port();
        assert_eq!(port(json!({})), 465);
        assert_eq!(port(json!({"tls": "starttls"})), 587);
        assert_eq!(port(json!({"tls": "none"})), 25);
        assert_eq!(port(json!({"port": 2525})), 2525);
    }

    #[test]
    fn misspelt_fields_choices_and_addresses_are_refused() {
        let read = |config: Value| serde_json::from_value::<ChannelConfig>(config);
        assert!(read(json!({"slak": "${env:X}"})).is_err());
        assert!(read(json!({"slack": "${env:X}", "on_unknown": "ignore"})).is_err());
        assert!(read(mail(json!({"login": {"user": "np"}}))).is_err(), "a user without a password");
        assert!(read(mail(json!({"from": "np"}))).unwrap_err().to_string().contains("`np` is no mail address"));
    }
}
