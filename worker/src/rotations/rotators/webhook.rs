//! The secret that signs the deliveries of one of our own sources.
//!
//! It is accepted before it is used: the door accepts a pending version as it does the current one, and `set` waits until every
//! process has asked the vault again. At GitHub it is set by the call that changes a hook's secret alone (the other one takes
//! away what is not repeated), and asked for by a ping; other senders make their secrets themselves, and a person hands the new
//! one in. What proves it is a delivery that the door has verified with this very version. The old one is accepted until the
//! overlap is over; then its label is taken off, and the door forgets it.

mod proof;

use std::time::Duration;

use async_trait::async_trait;
use queue::clock::later;
use schemas::{Problem, Timestamp};
use secrets::{ExposeSecret, SEEN_WITHIN, SecretString, field};
use serde::Deserialize;
use serde_json::{Value, json};

use super::random_key::{fields, random_bytes};
use super::{Rotator, Turn};
use crate::context::{Context, Step};
use crate::github::{Advice, Repository, Sent, wrong_place};
use crate::handler::Failure;

/// Between looks for a delivery; each look at GitHub asks for another ping.
const AGAIN: Duration = Duration::from_secs(30);

/// Between looks for what a person does.
const PATIENTLY: Duration = Duration::from_mins(1);

/// What GitHub signed before its hook was changed back has arrived by then: it waits 10 s for an answer.
const ARRIVED_WITHIN: Duration = Duration::from_mins(2);

/// Random bytes of a secret.
const BYTES: usize = 32;

const ADVICE: Advice = Advice {
    forbidden: "may not change webhooks there; give it the right `webhooks: write` (of an organisation: `organization \
                webhooks: write`)",
    check: "check `repository`, `organization` and `id` of the hook (the number at the end of its address in the settings), \
            and that the token may administer webhooks there (GitHub says `not found` where it may not)",
};

/// A source's secret as the configuration file spells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// The source whose deliveries it signs.
    pub source: String,
    /// The field of the vault's secret that holds it; the whole where none is named.
    #[serde(default)]
    pub field: Option<String>,
    /// The hooks at GitHub that sign with it. Without them a person hands in what the sender has made.
    #[serde(default)]
    pub github: Vec<HookConfig>,
}

/// A hook of a repository, or of an organisation, at GitHub.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookConfig {
    /// `owner/name`.
    #[serde(default)]
    pub repository: Option<String>,
    /// Or the organisation's name.
    #[serde(default)]
    pub organization: Option<String>,
    /// Its number.
    pub id: u64,
}

impl WebhookConfig {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.field.as_ref().is_some_and(String::is_empty) {
            problems.push(Problem::new("this names no field of the secret").within("field"));
        }
        for (place, hook) in self.github.iter().enumerate() {
            let wrong = wrong_place(hook.repository.as_deref(), hook.organization.as_deref());
            problems.extend(wrong.map(|problem| problem.within(place.to_string()).within("github")));
        }
        problems
    }

    /// As a source refers to it.
    pub fn reference(&self, secret: &str) -> String {
        let field = self.field.as_ref().map(|field| format!("#{field}")).unwrap_or_default();
        format!("${{vault:{secret}{field}}}")
    }

    /// The key that signs.
    fn key(&self, secret: &SecretString) -> Result<SecretString, Failure> {
        let Some(name) = &self.field else { return Ok(secret.clone()) };
        field(secret, name)
            .ok_or_else(|| Failure::Discard(anyhow::anyhow!("the secret has no field `{name}` in the vault")))
    }
}

/// A hook, as far as it is looked at.
#[derive(Deserialize)]
struct Hook {
    #[serde(default)]
    active: bool,
    #[serde(default)]
    config: HookAddress,
}

#[derive(Default, Deserialize)]
struct HookAddress {
    #[serde(default)]
    url: String,
}

/// Rotates it.
pub(super) struct Webhook {
    config: WebhookConfig,
    /// Its name in the vault.
    secret: String,
}

impl Webhook {
    pub(super) fn new(secret: &str, config: WebhookConfig) -> Self {
        Self { config, secret: secret.to_owned() }
    }

    /// Waits until every process that accepts deliveries accepts this version.
    async fn known_at_the_door(&self, cx: &Context) -> Result<(), Failure> {
        let until = later(noted(cx, "the new secret is in the vault").await?, SEEN_WITHIN);
        wait_until(cx, until, "until every process accepts the new secret, before the sender uses it")
    }

    /// That the hook is the source's, and sends.
    async fn check_hook(&self, github: &Repository<'_>, hook: &HookConfig) -> Result<(), Failure> {
        let number = hook.id.to_string();
        let there: Hook = github.get(&["hooks", &number], "", &hook.doing("looking at"), &ADVICE).await?;
        let path = there.config.url.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        let wanted = format!("/webhooks/{}", self.config.source);
        if !path.ends_with(&wanted) {
            let error = anyhow::anyhow!("{} does not send to an address that ends with {wanted}", hook.words());
            return Err(Failure::Discard(error));
        }
        if there.active {
            return Ok(());
        }
        let error = anyhow::anyhow!("{} is not active, so that nothing would prove its new secret", hook.words());
        Err(Failure::Discard(error))
    }

    /// Sets a hook's secret, and nothing else of it. Twice is as once.
    async fn set_hook(&self, github: &Repository<'_>, hook: &HookConfig, key: &SecretString) -> Sent {
        let number = hook.id.to_string();
        let body = json!({"secret": key.expose_secret()});
        github.patch(&["hooks", &number, "config"], &body, &hook.doing("setting the secret of"), &ADVICE).await
    }

    /// The hooks that may have the new secret.
    async fn changed(&self, cx: &Context) -> Result<Vec<&HookConfig>, Failure> {
        let steps = cx.steps().await?;
        let may_have = |hook: &&HookConfig| {
            let begun = steps.iter().find(|step| step.name == hook.step());
            begun.is_some_and(|step| step.result.as_ref().and_then(Value::as_bool) != Some(false))
        };
        Ok(self.config.github.iter().filter(may_have).collect())
    }

    async fn ping(&self, cx: &Context, hook: &HookConfig) -> Result<(), Failure> {
        let github = hook.repository(cx).await?;
        let number = hook.id.to_string();
        match github.post(&["hooks", &number, "pings"], &json!({}), &hook.doing("pinging"), &ADVICE).await {
            Sent::Done(_) | Sent::Unknown(_) => Ok(()), // A ping that was lost is looked for, and sent again.
            Sent::Refused(failure) => Err(failure),
        }
    }
}

#[async_trait]
impl Rotator for Webhook {
    async fn create(&self, turn: &Turn<'_>, _again: bool) -> Result<SecretString, Failure> {
        if self.config.github.is_empty() {
            let field = self.config.field.as_ref().map(|field| format!(" --field {field}")).unwrap_or_default();
            let reason = format!(
                "make a new signing secret at the sender of `{}`, without ending the old one, and hand it in: nightporter \
                 secrets put {}{field} --pending {} < FILE",
                self.config.source, self.secret, turn.token
            );
            return Err(Failure::Snooze { wait: PATIENTLY, reason });
        }
        let fresh = hex::encode(random_bytes(BYTES)?);
        let Some(name) = &self.config.field else { return Ok(fresh.into()) };
        self.config.key(turn.current)?;
        let mut whole = fields(turn.current).unwrap_or_default();
        whole.insert(name.clone(), fresh.into());
        Ok(Value::Object(whole).to_string().into())
    }

    async fn set(&self, turn: &Turn<'_>, new: &SecretString) -> Result<(), Failure> {
        let key = self.config.key(new)?;
        if key.expose_secret() == self.config.key(turn.current)?.expose_secret() {
            return Err(Failure::Discard(anyhow::anyhow!("what was handed in is the secret that is current")));
        }
        self.known_at_the_door(turn.cx).await?;
        for hook in &self.config.github {
            let github = hook.repository(turn.cx).await?;
            self.check_hook(&github, hook).await?;
            let step = match turn.cx.step::<bool>(&hook.step()).await? {
                Step::Finished(true) => continue,
                Step::Finished(false) => return Err(hook.refused_before()),
                Step::Fresh(step) | Step::Unknown(step) => step,
            };
            match self.set_hook(&github, hook, &key).await {
                Sent::Done(_) => step.finish(&true).await?,
                Sent::Refused(failure @ Failure::Discard(_)) => {
                    step.finish(&false).await?;
                    return Err(failure);
                }
                Sent::Refused(failure) | Sent::Unknown(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    async fn test(&self, turn: &Turn<'_>, _: &SecretString) -> Result<(), Failure> {
        let proven = proof::deliveries(turn.cx, &self.config.source, turn.token, turn.begun_at).await?;
        if self.config.github.is_empty() {
            let reason =
                format!("waiting for a delivery to `{}` that is signed with the new secret", self.config.source);
            return if proven.is_empty() { Err(Failure::Snooze { wait: PATIENTLY, reason }) } else { Ok(()) };
        }
        for hook in &self.config.github {
            if !proven.iter().any(|delivery| delivery.hook == Some(hook.id)) {
                self.ping(turn.cx, hook).await?;
                let reason = format!("waiting for a delivery of {} that is signed with the new secret", hook.words());
                return Err(Failure::Snooze { wait: AGAIN, reason });
            }
        }
        Ok(())
    }

    async fn restore(&self, turn: &Turn<'_>, _: Option<&SecretString>) -> Result<(), Failure> {
        let key = self.config.key(turn.current)?;
        for hook in self.changed(turn.cx).await? {
            match self.set_hook(&hook.repository(turn.cx).await?, hook, &key).await {
                Sent::Done(_) => {}
                Sent::Refused(failure) | Sent::Unknown(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    async fn discard(&self, turn: &Turn<'_>, _: Option<&SecretString>) -> Result<(), Failure> {
        if self.changed(turn.cx).await?.is_empty() {
            return Ok(());
        }
        let until = later(noted(turn.cx, "the hooks are as they were").await?, ARRIVED_WITHIN);
        wait_until(turn.cx, until, "until what was signed with the new secret has arrived")
    }

    async fn retire(&self, _: &Turn<'_>, _: &SecretString) -> Result<(), Failure> {
        Ok(()) // Nobody signs with it any more; what makes the door forget it is the vault's label.
    }

    fn is_accepted_while_labelled(&self) -> bool {
        true
    }
}

impl HookConfig {
    /// Whose it is: `owner/name`, or an organisation.
    fn owner(&self) -> &str {
        self.repository.as_deref().or(self.organization.as_deref()).unwrap_or_default()
    }

    async fn repository<'r>(&'r self, cx: &'r Context) -> Result<Repository<'r>, Failure> {
        Repository::connect(cx, self.owner(), "the rotation sets a webhook's secret at GitHub").await
    }

    fn words(&self) -> String {
        format!("the hook {} of {}", self.id, self.owner())
    }

    fn doing(&self, what: &str) -> String {
        format!("{what} {}", self.words())
    }

    /// Whether GitHub set the new secret.
    fn step(&self) -> String {
        format!("set hook {} {}", self.owner(), self.id)
    }

    fn refused_before(&self) -> Failure {
        Failure::Discard(anyhow::anyhow!("GitHub refused to set the secret of {}", self.words()))
    }
}

/// When an attempt first came here.
async fn noted(cx: &Context, name: &str) -> Result<Timestamp, Failure> {
    match cx.step::<Timestamp>(name).await? {
        Step::Finished(at) => Ok(at),
        Step::Fresh(step) | Step::Unknown(step) => {
            let now = cx.now();
            step.finish(&now).await?;
            Ok(now)
        }
    }
}

fn wait_until(cx: &Context, until: Timestamp, why: &str) -> Result<(), Failure> {
    match (until - cx.now()).to_std() {
        Ok(wait) if !wait.is_zero() => Err(Failure::Snooze { wait, reason: format!("waiting {why}") }),
        _ => Ok(()),
    }
}
