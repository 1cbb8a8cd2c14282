//! The way back: a rotation that is given up leaves everything as the vault's current version says.
//!
//! The current value is seen to be valid first, then those who were told of the new one are given the current one, and only
//! when all of them have it does the new one die, in its place and in the vault. What cannot be given back leaves both values
//! valid, and the new one in the vault.

use queue::clock::later;
use secrets::SecretString;
use secrets::vaults::Label;

use super::{Begun, Work};
use crate::handler::Failure;
use crate::rotations::{Consumer, Publication};

/// The step that says so, with the reason.
const GIVE_UP: &str = "give up";
/// The last step of the way back.
const DROP: &str = "drop the pending version";

impl Work<'_> {
    /// Why an earlier attempt gave the rotation up.
    pub(super) async fn given_up(&self) -> Result<Option<String>, Failure> {
        self.ended(GIVE_UP).await
    }

    /// What becomes of a rotation that did not get through: tried again while that may help, else taken back.
    pub(super) async fn failed(&self, failure: Failure, begun: &Begun) -> Failure {
        let over = self.cx.now() >= later(begun.at, self.config.within);
        let reason = match &failure {
            Failure::Discard(_) => failure.words(),
            Failure::Retry { .. } | Failure::Snooze { .. } if over => {
                format!("not proven within {}: {}", schemas::period::write(self.config.within), failure.words())
            }
            Failure::Retry { .. } | Failure::Snooze { .. } | Failure::Cancelled(_) => return failure,
        };
        match self.describe().await {
            // Nobody takes back what is current: the rotation goes on from there.
            Ok(secret) if secret.has(&self.token, Label::Current) => failure,
            Err(unknown) => unknown,
            Ok(_) => match self.once(GIVE_UP, async |_| Ok(reason)).await {
                Ok(reason) => self.take_back(&reason).await,
                Err(failure) => failure,
            },
        }
    }

    /// Takes everything back; what the job ends with.
    pub(super) async fn take_back(&self, reason: &str) -> Failure {
        match self.all_back().await {
            Ok(()) => Failure::Discard(anyhow::anyhow!(
                "{reason}; everything was taken back, the value that was current is valid and in use: start a new rotation \
                 when that is mended"
            )),
            Err(Failure::Discard(error)) => Failure::Discard(anyhow::anyhow!(
                "{reason}; and not everything could be taken back: {error:#}; no value was made invalid; mend that, then: \
                 nightporter jobs retry {}",
                self.cx.job().attempt.job
            )),
            Err(failure) => failure.context("taking the rotation back"),
        }
    }

    async fn all_back(&self) -> Result<(), Failure> {
        if self.ended::<()>(DROP).await?.is_some() {
            return Ok(());
        }
        let current = self.vault.current(&self.config.secret).await;
        let current = self.of_vault(current, "reading")?;
        let new = self.pending().await?;
        let turn = self.turn(self.cx.job().created_at, &current);
        self.once("restore", async |_| self.rotator.restore(&turn, new.as_ref()).await).await?;
        let id = format!("{}-back", self.token);
        let publication = Publication { id: &id, value: &current };
        self.tell("give back", "prove back", &publication, &self.told().await?).await?;
        self.once("discard", async |_| self.rotator.discard(&turn, new.as_ref()).await).await?;
        self.once(DROP, async |_| {
            let dropped = self.vault.drop_pending(&self.config.secret, &self.token).await;
            self.of_vault(dropped, "dropping the pending version of")
        })
        .await
    }

    /// The new value, if it was ever stored.
    async fn pending(&self) -> Result<Option<SecretString>, Failure> {
        if self.describe().await?.versions.contains_key(&self.token) {
            return self.value(&self.token).await.map(Some);
        }
        Ok(None)
    }

    /// Those who may hold the new value: all that it was published to, but those who refused it untouched.
    async fn told(&self) -> Result<Vec<Box<dyn Consumer>>, Failure> {
        let steps = self.cx.steps().await?;
        let told = |consumer: &dyn Consumer| {
            let name = format!("publish {}", consumer.name());
            let step = steps.iter().find(|step| step.name == name);
            step.is_some_and(|step| step.result.as_ref().is_none_or(|told| told.get("refused").is_none()))
        };
        Ok(self.config.open_consumers()?.into_iter().filter(|consumer| told(&**consumer)).collect())
    }
}
