//! `rotate`: exchanges a secret for a new one, without a moment in which nobody can sign in.
//!
//! create → set → test → publish and prove for each consumer → finish → retire. The new value lies in the vault, as its
//! pending version, before anybody hears of it; it is current only when it is proven at all who use it; the old one dies only
//! after that, when the overlap is over. What fails for good, or is not proven in time, is taken back: the current value is
//! seen to be valid, the consumers are given it again, and the new one dies.
//!
//! Twice is safe: the version's token is the job's id, fixed before the first call, and the vault takes the same token with
//! another value for a mistake; so all attempts have one new value, and there is exactly one new version. Each step looks first
//! how far an earlier attempt came. Promotion is a compare-and-swap against the version that was current at the beginning: a
//! change by another hand is never overwritten. Results of steps hold no value. One rotation of a secret at a time: a limit
//! for those that run, and the versions' tokens name the jobs that are not done with them.
//!
//! Retries: whatever is not a definite no, until the time that the configuration gives it; the vault and the taking back
//! without end.

mod back;

use std::time::Duration;

use async_trait::async_trait;
use queue::clock::later;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{JobId, Limit, Names, Problem, Timestamp};
use secrets::SecretString;
use secrets::vaults::{Described, Label, Token, Vault, VaultError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::info;

use crate::context::{Context, Step};
use crate::handler::{Failure, Handler, OrFail, Output};
use crate::rotations::{Consumer, Publication, RotationConfig, Rotator, Turn};

/// An old value that is still in use is waited for so long after its overlap; then a person has to look.
const LAST_USE: Duration = Duration::from_hours(7 * 24);

/// The step after which there is no way back.
const FINISH: &str = "finish";

/// The arguments of `rotate`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rotate {
    /// The rotation's name in the configuration.
    rotation: String,
}

/// Where a rotation began.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Begun {
    from: Token,
    at: Timestamp,
}

/// What a consumer said to a value.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    /// It has it, or what it has of it is not known: the receipt.
    Taken(Value),
    /// It has nothing of it.
    Refused(String),
}

/// One rotation in one attempt.
struct Work<'a> {
    cx: &'a Context,
    config: &'a RotationConfig,
    vault: &'a dyn Vault,
    rotator: Box<dyn Rotator>,
    consumers: Vec<Box<dyn Consumer>>,
    token: Token,
}

#[async_trait]
impl Handler for Rotate {
    const KIND: &'static str = "rotate";
    const SUMMARY: &'static str = "exchanges a secret for a new one that is proven before the old one dies";
    const RETRY: RetryPolicy = RetryPolicy {
        first: Duration::from_secs(5),
        longest: Duration::from_mins(10),
        max_failures: 1000,
        max_age: Duration::from_hours(60 * 24),
    };
    const TIME_LIMIT: Duration = Duration::from_mins(30);
    const ONCE: bool = true;

    fn check(&self, names: &Names) -> Vec<Problem> {
        if names.rotations.contains(&self.rotation) {
            return Vec::new();
        }
        let known = names.rotations.iter().map(String::as_str);
        vec![Problem::unknown("rotation", &self.rotation, known).within("rotation")]
    }

    fn limits(&self) -> Vec<Limit> {
        vec![Limit::one(format!("rotation:{}", self.rotation))]
    }

    fn output() -> Value {
        json!({"rotation": null, "secret": null, "version": null, "previous": null, "finished_at": null})
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let config = cx.world().rotation(&self.rotation)?;
        let work = Work {
            cx,
            config,
            vault: &**cx.world().vault()?,
            rotator: config.rotator()?,
            consumers: config.open_consumers()?,
            token: Token::from(cx.job().attempt.job.0),
        };
        if let Some(reason) = work.given_up().await? {
            return Err(work.take_back(&reason).await);
        }
        let begun = work.begin().await?;
        let finished_at = match work.finished().await? {
            Some(finished_at) => finished_at,
            None => match work.forward(&begun).await {
                Ok(finished_at) => finished_at,
                Err(failure) => return Err(work.failed(failure, &begun).await),
            },
        };
        work.retire(&begun, finished_at).await?;
        Ok(json!({
            "rotation": self.rotation,
            "secret": config.secret,
            "version": work.token,
            "previous": begun.from,
            "finished_at": finished_at,
        }))
    }
}

impl Work<'_> {
    /// When an earlier attempt made the new value current.
    async fn finished(&self) -> Result<Option<Timestamp>, Failure> {
        self.ended(FINISH).await
    }

    /// The result of a step that has finished, without coming to it.
    async fn ended<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Failure> {
        let steps = self.cx.steps().await?;
        let step = steps.into_iter().find(|step| step.name == name && step.finished_at.is_some());
        let result = step.map(|step| serde_json::from_value(step.result.unwrap_or_default()));
        result.transpose().or_discard("reading the result of a finished step")
    }

    /// From which version it goes: written down, so that a later attempt knows that nobody else has moved it.
    async fn begin(&self) -> Result<Begun, Failure> {
        self.once("begin", async |_| {
            let secret = self.describe().await?;
            if secret.managed {
                return Err(VaultError::Managed).or_discard(&self.doing("looking at"));
            }
            self.alone(&secret).await?;
            let from = secret.holder(Label::Current).cloned().ok_or_else(|| {
                Failure::Discard(anyhow::anyhow!("the secret `{}` has no current version", self.config.secret))
            })?;
            Ok(Begun { from, at: self.cx.now() })
        })
        .await
    }

    /// That no other rotation is under way. A version's token is the id of the job that made it.
    async fn alone(&self, secret: &Described) -> Result<(), Failure> {
        let pending = secret.holder(Label::Pending).filter(|token| !secret.has(token, Label::Current));
        for token in [pending, secret.holder(Label::Current)].into_iter().flatten() {
            let Ok(job) = token.as_str().parse::<JobId>() else { continue };
            let maker = self.cx.queue().ledger().job(job).await.or_retry("looking for other rotations")?;
            if maker.is_some_and(|maker| !maker.state.is_finished()) {
                let secret = &self.config.secret;
                let error = anyhow::anyhow!("a rotation of `{secret}` is under way: job {job}; it has to end first");
                return Err(Failure::Discard(error));
            }
        }
        let Some(pending) = pending else { return Ok(()) };
        let secret = &self.config.secret;
        Err(Failure::Discard(anyhow::anyhow!(
            "the version {pending} of `{secret}` is pending, of a rotation that was left behind: if it is a job's, \
             `nightporter jobs retry {pending}` ends it; else, when nobody uses that value, \
             `nightporter secrets drop-pending {secret} {pending}`"
        )))
    }

    /// All that has to be done until the new value is current; when that was.
    async fn forward(&self, begun: &Begun) -> Result<Timestamp, Failure> {
        if !self.is_current(begun).await? {
            self.prove(begun).await?;
        }
        self.once(FINISH, async |_| {
            let promoted = self.vault.promote(&self.config.secret, &self.token, &begun.from).await;
            self.of_vault(promoted, "promoting the new version of")?;
            self.cx.world().secrets().forget(&self.config.secret);
            info!(secret = self.config.secret, version = %self.token, "the new version is current");
            Ok(self.cx.now())
        })
        .await
    }

    /// All that has to be done before the new value may be current.
    async fn prove(&self, begun: &Begun) -> Result<(), Failure> {
        let current = self.value(&begun.from).await?;
        let turn = self.turn(begun.at, &current);
        self.once("create", async |again| self.create(&turn, again).await).await?;
        let new = self.value(&self.token).await?;
        self.once("set", async |_| self.rotator.set(&turn, &new).await).await?;
        self.once("test", async |_| self.rotator.test(&turn, &new).await).await?;
        let publication = Publication { id: self.token.as_str(), value: &new };
        self.tell("publish", "prove", &publication, &self.consumers).await
    }

    /// Whether the current version is this rotation's own already; if not, it must be the one that it began with.
    async fn is_current(&self, begun: &Begun) -> Result<bool, Failure> {
        let secret = self.describe().await?;
        match secret.holder(Label::Current) {
            Some(holder) if *holder == self.token => Ok(true),
            Some(holder) if *holder == begun.from => Ok(false),
            holder => {
                let holder = holder.map_or("none", Token::as_str);
                Err(Failure::Discard(anyhow::anyhow!(
                    "somebody else has changed `{}` meanwhile: its current version is {holder}, and was {}",
                    self.config.secret,
                    begun.from
                )))
            }
        }
    }

    /// The new value into the vault, before anybody else hears of it. What an earlier attempt put there is kept.
    async fn create(&self, turn: &Turn<'_>, again: bool) -> Result<(), Failure> {
        if self.describe().await?.versions.contains_key(&self.token) {
            return Ok(());
        }
        let new = self.rotator.create(turn, again).await?;
        let put = self.vault.put_pending(&self.config.secret, &self.token, &new).await;
        self.of_vault(put, "putting a new version of")
    }

    /// Publishes to each consumer, then has each prove it.
    async fn tell(
        &self,
        publish: &str,
        prove: &str,
        publication: &Publication<'_>,
        consumers: &[Box<dyn Consumer>],
    ) -> Result<(), Failure> {
        let mut receipts: Vec<Value> = Vec::with_capacity(consumers.len());
        for consumer in consumers {
            let name = format!("{publish} {}", consumer.name());
            let told = self.once(&name, async |_| match consumer.publish(self.cx, publication).await {
                Ok(receipt) => Ok(Told::Taken(receipt)),
                Err(Failure::Cancelled(reason)) => Ok(Told::Refused(reason)),
                Err(failure) => Err(failure),
            });
            match told.await.map_err(|failure| failure.context(name.clone()))? {
                Told::Taken(receipt) => receipts.push(receipt),
                Told::Refused(reason) => return Err(Failure::Discard(anyhow::anyhow!("{name}: {reason}"))),
            }
        }
        for (consumer, receipt) in consumers.iter().zip(&receipts) {
            let name = format!("{prove} {}", consumer.name());
            let proven = self.once(&name, async |_| consumer.prove(self.cx, publication, receipt).await).await;
            proven.map_err(|failure| failure.context(name))?;
        }
        Ok(())
    }

    /// The old value dies: when the overlap is over, and not while it is seen in use.
    async fn retire(&self, begun: &Begun, finished_at: Timestamp) -> Result<(), Failure> {
        let until = later(finished_at, self.config.overlap);
        let wait = (until - self.cx.now()).to_std().unwrap_or_default();
        if !wait.is_zero() {
            let reason = format!("the new value is current and proven; the old one stays valid until {until}");
            return Err(Failure::Snooze { wait, reason });
        }
        self.once("retire", async |_| {
            if self.describe().await?.holder(Label::Current) != Some(&self.token) {
                return Err(Failure::Discard(anyhow::anyhow!(
                    "the new value became current at {finished_at}, and somebody has changed `{}` since: the old value \
                     ({}) was left as it is, valid or not",
                    self.config.secret,
                    begun.from
                )));
            }
            let (old, new) = (self.value(&begun.from).await?, self.value(&self.token).await?);
            match self.rotator.retire(&self.turn(begun.at, &old), &new).await {
                Err(Failure::Snooze { reason, .. }) if self.cx.now() >= later(until, LAST_USE) => {
                    Err(Failure::Discard(anyhow::anyhow!(
                        "the new value is current, and the old one was left valid, for it is still used: {reason}; move \
                         who uses it and retry the job"
                    )))
                }
                retired => retired,
            }
        })
        .await?;
        if self.rotator.is_accepted_while_labelled() {
            self.once("drop the previous version", async |_| {
                let dropped = self.vault.drop_previous(&self.config.secret, &begun.from).await;
                self.of_vault(dropped, "dropping the previous version of")
            })
            .await?;
        }
        Ok(())
    }

    fn turn<'t>(&'t self, begun_at: Timestamp, current: &'t SecretString) -> Turn<'t> {
        Turn { cx: self.cx, world: self.cx.world(), token: &self.token, begun_at, current }
    }

    async fn describe(&self) -> Result<Described, Failure> {
        let described = self.vault.describe(&self.config.secret).await;
        self.of_vault(described, "looking at")
    }

    async fn value(&self, version: &Token) -> Result<SecretString, Failure> {
        let value = self.vault.value(&self.config.secret, version).await;
        self.of_vault(value, &format!("reading the version {version} of"))
    }

    fn of_vault<T>(&self, answer: Result<T, VaultError>, doing: &str) -> Result<T, Failure> {
        match answer {
            Err(error @ VaultError::Unavailable(_)) => Err(error).or_retry(&self.doing(doing)),
            answer => answer.or_discard(&self.doing(doing)),
        }
    }

    fn doing(&self, doing: &str) -> String {
        format!("{doing} the secret `{}` in the vault", self.config.secret)
    }

    /// Does a step that has not finished. It is told whether an earlier attempt began it.
    async fn once<T: Serialize + DeserializeOwned + Sync>(
        &self,
        name: &str,
        work: impl AsyncFnOnce(bool) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (step, again) = match self.cx.step::<T>(name).await? {
            Step::Finished(result) => return Ok(result),
            Step::Fresh(step) => (step, false),
            Step::Unknown(step) => (step, true),
        };
        let result = work(again).await?;
        step.finish(&result).await?;
        Ok(result)
    }
}
