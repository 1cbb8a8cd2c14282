//! The access key of an IAM user. AWS makes it, shows its secret once, and lets a user have two.
//!
//! Which keys there are is written down before one is made: a key that is there afterwards and not in the vault is one whose
//! secret an interrupted attempt lost. It can never have been used, so one that was is somebody else's and stays. The new key is
//! asked who it is, by STS, until AWS knows it everywhere. The old one is made inactive when it has not been used for a while,
//! which can be undone, and deleted when nobody has missed it.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use queue::clock::later;
use schemas::{Problem, Timestamp};
use secrets::{ExposeSecret, SecretString, SecretText, field};
use serde::Deserialize;
use serde_json::Value;
use tracing::info;
use url::Url;

use super::random_key::fields;
use super::{Rotator, Turn};
use crate::aws::{Aws, AwsError, Key};
use crate::context::{Context, Step};
use crate::handler::Failure;

/// A new key is known everywhere within seconds.
const AGAIN: Duration = Duration::from_secs(5);

/// Between looks at whether the old key is still used.
const PATIENTLY: Duration = Duration::from_mins(10);

/// What AWS answers to a key that it does not know yet.
const NOT_YET: &str = "InvalidClientTokenId";

/// What it answers where a user has two keys.
const NO_ROOM: &str = "LimitExceeded";

/// An old key is inactive for at most so long: a rotation has an end.
const LONGEST_INACTIVE: Duration = Duration::from_hours(3 * 24);

/// An access key as the configuration file spells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsKeyConfig {
    /// The IAM user.
    pub user: String,
    /// Who may change the user's keys, `access key id:secret access key`; without it, the usual AWS sources are asked.
    #[serde(default)]
    pub credentials: Option<SecretText>,
    /// A region in which the key is used; tells also which partition of AWS it belongs to.
    #[serde(default = "region")]
    pub region: String,
    /// A server that speaks AWS's protocol.
    #[serde(default)]
    pub endpoint: Option<Url>,
    /// The field of the secret that holds the key's id.
    #[serde(default = "id_field")]
    pub id_field: String,
    /// The field that holds its secret.
    #[serde(default = "secret_field")]
    pub secret_field: String,
    /// The old key must not have been used for so long before it is made inactive.
    #[serde(default = "hour", with = "schemas::period")]
    pub unused_for: Duration,
    /// How long it stays inactive before it is deleted.
    #[serde(default = "hour", with = "schemas::period")]
    pub inactive_for: Duration,
}

fn region() -> String {
    "us-east-1".to_owned()
}

fn id_field() -> String {
    "access_key_id".to_owned()
}

fn secret_field() -> String {
    "secret_access_key".to_owned()
}

fn hour() -> Duration {
    Duration::from_hours(1)
}

impl AwsKeyConfig {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let is_name = |text: &str| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte))
        };
        if !is_name(&self.user) {
            let help = "write its name alone, without a path or an ARN";
            problems.push(Problem::new("this is no IAM user's name").help(help).within("user"));
        }
        if !self.region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') || !self.region.contains('-') {
            problems.push(Problem::new("this is no region of AWS").help("write `eu-central-1`").within("region"));
        }
        if self.inactive_for > LONGEST_INACTIVE || self.unused_for > LONGEST_INACTIVE {
            problems.push(
                Problem::new("an old key is waited for, and inactive, for at most 3 days each").within("inactive_for"),
            );
        }
        if self.id_field == self.secret_field || self.id_field.is_empty() || self.secret_field.is_empty() {
            problems.push(Problem::new("the key's id and its secret need a field each").within("secret_field"));
        }
        problems
    }
}

/// Rotates it.
pub(super) struct AwsKey {
    config: AwsKeyConfig,
}

impl AwsKey {
    pub(super) fn new(config: AwsKeyConfig) -> Self {
        Self { config }
    }

    async fn aws<'w>(&self, cx: &'w Context) -> Result<Aws<'w>, Failure> {
        let credentials = match &self.config.credentials {
            Some(text) => Some(cx.world().secret(text, "resolving the AWS credentials of the rotation").await?),
            None => None,
        };
        Aws::open(cx.world().http(), credentials.as_ref(), &self.config.region, self.config.endpoint.as_ref()).await
    }

    fn id(&self, secret: &SecretString) -> Result<String, Failure> {
        part(secret, &self.config.id_field).map(|id| id.expose_secret().to_owned())
    }

    async fn keys(&self, aws: &Aws<'_>) -> Result<Vec<Key>, Failure> {
        aws.keys(&self.config.user).await.map_err(AwsError::into_failure)
    }

    /// The ids of the keys that there were before one was made, of which the vault's is one.
    async fn before(&self, turn: &Turn<'_>, aws: &Aws<'_>) -> Result<BTreeSet<String>, Failure> {
        match turn.cx.step::<BTreeSet<String>>(BEFORE).await? {
            Step::Finished(ids) => Ok(ids),
            Step::Fresh(step) | Step::Unknown(step) => {
                let keys = self.keys(aws).await?;
                let current = self.id(turn.current)?;
                if !keys.iter().any(|key| key.id == current) {
                    return Err(Failure::Discard(anyhow::anyhow!(
                        "the key {current} in the vault is none of the keys of {} (it has {}): somebody has changed them; \
                         put a valid one into the vault first",
                        self.config.user,
                        words(&keys)
                    )));
                }
                if keys.len() > 1 {
                    return Err(Failure::Discard(anyhow::anyhow!(
                        "{} has two keys already, which is all that AWS allows: {}; the vault's is {current}; when nobody uses \
                         the other one, delete it and start a new rotation",
                        self.config.user,
                        words(&keys)
                    )));
                }
                let ids = keys.into_iter().map(|key| key.id).collect();
                step.finish(&ids).await?;
                Ok(ids)
            }
        }
    }

    /// Deletes what an interrupted attempt left: keys that were not there before and were never used.
    async fn delete_orphans(&self, aws: &Aws<'_>, before: &BTreeSet<String>) -> Result<(), Failure> {
        for key in self.keys(aws).await?.into_iter().filter(|key| !before.contains(&key.id)) {
            if let Some(used) = aws.last_use(&key.id).await.map_err(AwsError::into_failure)? {
                return Err(Failure::Discard(anyhow::anyhow!(
                    "the key {} of {} was made by somebody else since the rotation began: it was used at {} for {} in {}; \
                     there is no room for a new one",
                    key.id,
                    self.config.user,
                    used.at,
                    used.service,
                    used.region
                )));
            }
            info!(key = key.id, user = self.config.user, "deleting a key whose secret nobody has");
            self.delete(aws, &key.id).await?;
        }
        Ok(())
    }

    async fn delete(&self, aws: &Aws<'_>, id: &str) -> Result<(), Failure> {
        aws.delete_key(&self.config.user, id).await.map_err(AwsError::into_failure)
    }

    /// Deletes the old key, unless somebody needed it and made it active again.
    async fn delete_inactive(&self, aws: &Aws<'_>, id: &str) -> Result<(), Failure> {
        if self.keys(aws).await?.iter().any(|key| key.id == id && key.active) {
            return Err(Failure::Discard(anyhow::anyhow!(
                "the new key is current, and somebody has made the old key {id} of {} active again, so it was not deleted; \
                 move who uses it, make it inactive, and retry the job",
                self.config.user
            )));
        }
        self.delete(aws, id).await
    }

    async fn set_active(&self, aws: &Aws<'_>, id: &str, active: bool) -> Result<(), Failure> {
        aws.set_active(&self.config.user, id, active).await.map_err(AwsError::into_failure)
    }

    /// Whether the old key rests: not used for long enough.
    async fn rests(&self, cx: &Context, aws: &Aws<'_>, id: &str) -> Result<(), Failure> {
        let used = aws.last_use(id).await.map_err(AwsError::into_failure)?;
        let Some(used) = used.filter(|used| cx.now() < later(used.at, self.config.unused_for)) else { return Ok(()) };
        let reason = format!(
            "the old key {id} of {} was used at {} for {} in {}",
            self.config.user, used.at, used.service, used.region
        );
        Err(Failure::Snooze { wait: PATIENTLY, reason })
    }
}

/// The step that holds which keys there were.
const BEFORE: &str = "keys before";

#[async_trait]
impl Rotator for AwsKey {
    async fn create(&self, turn: &Turn<'_>, again: bool) -> Result<SecretString, Failure> {
        let mut whole = fields(turn.current).unwrap_or_default();
        let aws = self.aws(turn.cx).await?;
        let before = self.before(turn, &aws).await?;
        if again {
            self.delete_orphans(&aws, &before).await?;
        }
        let key = match aws.create_key(&self.config.user).await {
            // There was room: what an interrupted attempt left is not listed yet.
            Err(error) if error.code() == Some(NO_ROOM) => return Err(Failure::retry(error)),
            made => made.map_err(AwsError::into_failure)?,
        };
        whole.insert(self.config.id_field.clone(), key.id.into());
        whole.insert(self.config.secret_field.clone(), key.secret.expose_secret().into());
        Ok(Value::Object(whole).to_string().into())
    }

    async fn set(&self, _: &Turn<'_>, _: &SecretString) -> Result<(), Failure> {
        Ok(()) // A key is valid from its making on.
    }

    async fn test(&self, turn: &Turn<'_>, new: &SecretString) -> Result<(), Failure> {
        let aws = self.aws(turn.cx).await?;
        let holder = aws.by_key(&self.id(new)?, &part(new, &self.config.secret_field)?);
        let arn = match holder.caller().await {
            Ok(arn) => arn,
            Err(error) if error.code() == Some(NOT_YET) => {
                let reason = "AWS does not know the new key everywhere yet".to_owned();
                return Err(Failure::Snooze { wait: AGAIN, reason });
            }
            Err(error) => return Err(error.into_failure()),
        };
        if arn.rsplit(['/', ':']).next() == Some(self.config.user.as_str()) {
            return Ok(());
        }
        Err(Failure::Discard(anyhow::anyhow!("the new key is that of {arn} and not of {}", self.config.user)))
    }

    async fn restore(&self, turn: &Turn<'_>, _: Option<&SecretString>) -> Result<(), Failure> {
        // Before the first key was made nothing was changed, and nothing has to be allowed.
        if !began(turn.cx).await? {
            return Ok(());
        }
        let aws = self.aws(turn.cx).await?;
        self.set_active(&aws, &self.id(turn.current)?, true).await
    }

    async fn discard(&self, turn: &Turn<'_>, new: Option<&SecretString>) -> Result<(), Failure> {
        if !began(turn.cx).await? {
            return Ok(());
        }
        let aws = self.aws(turn.cx).await?;
        if let Some(new) = new {
            return self.delete(&aws, &self.id(new)?).await;
        }
        let before = self.before(turn, &aws).await?;
        self.delete_orphans(&aws, &before).await
    }

    async fn retire(&self, turn: &Turn<'_>, _: &SecretString) -> Result<(), Failure> {
        let aws = self.aws(turn.cx).await?;
        let old = self.id(turn.current)?;
        let inactive_at = match turn.cx.step::<Timestamp>("the old key is inactive").await? {
            Step::Finished(at) => at,
            Step::Fresh(step) | Step::Unknown(step) => {
                self.rests(turn.cx, &aws, &old).await?;
                self.set_active(&aws, &old, false).await?;
                let now = turn.cx.now();
                step.finish(&now).await?;
                now
            }
        };
        match (later(inactive_at, self.config.inactive_for) - turn.cx.now()).to_std() {
            Ok(wait) if !wait.is_zero() => {
                let reason = format!(
                    "the old key {old} is inactive; who misses it: aws iam update-access-key --user-name {} --access-key-id \
                     {old} --status Active",
                    self.config.user
                );
                Err(Failure::Snooze { wait, reason })
            }
            _ => self.delete_inactive(&aws, &old).await,
        }
    }
}

/// A field of the secret.
fn part(secret: &SecretString, name: &str) -> Result<SecretString, Failure> {
    field(secret, name).ok_or_else(|| {
        Failure::Discard(anyhow::anyhow!("the secret is no JSON object with the field `{name}` in the vault"))
    })
}

/// Whether a key may have been made.
async fn began(cx: &Context) -> Result<bool, Failure> {
    Ok(cx.steps().await?.iter().any(|step| step.name == BEFORE && step.finished_at.is_some()))
}

/// Keys, for people.
fn words(keys: &[Key]) -> String {
    let words = keys.iter().map(|key| {
        let state = if key.active { "active" } else { "inactive" };
        format!("{} ({state}, of {})", key.id, key.created_at.format("%Y-%m-%d"))
    });
    let words: Vec<String> = words.collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}
