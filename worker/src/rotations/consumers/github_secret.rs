//! A secret of GitHub's Actions, of a repository or of one of its environments.
//!
//! Twice is safe: the same value is put in the same place. GitHub never shows a value, so what proves it is that GitHub says
//! when it was changed, later than before, and not since; and, where a workflow is named, a run of it that ends well with the
//! new value. Runs that have begun keep the old one, which is valid until the rotation's overlap is over.

use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crypto_box::PublicKey;
use crypto_box::aead::OsRng;
use crypto_box::aead::rand_core::CryptoRngCore;
use schemas::{Names, Problem, Timestamp};
use secrets::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Consumer, Publication, Touch};
use crate::context::Context;
use crate::github::{Advice, Repository, Sent, is_repository};
use crate::handler::{Failure, Handler, OrFail};
use crate::jobs::github::Github;
use crate::rotations::template::SecretTemplate;

/// Between looks at a change that GitHub does not show yet; it tells times to the second.
const AGAIN: Duration = Duration::from_secs(2);

/// A value may have so many bytes.
const LARGEST: usize = 48 * 1024;

const ADVICE: Advice = Advice {
    forbidden: "may not change Actions secrets there; give it the right `secrets: write` (for one of an environment: \
                `environments: write`)",
    check: "check `repository`, `environment` and `secret`, and that the token may see this repository (GitHub says `not \
            found` where it may not)",
};

/// Such a secret as the configuration file spells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GithubSecretConfig {
    /// `owner/name`.
    pub repository: String,
    /// The secret's name there.
    pub secret: String,
    /// The environment that it belongs to; the repository where none is named.
    #[serde(default)]
    pub environment: Option<String>,
    /// The text that it gets.
    #[serde(default)]
    pub value: SecretTemplate,
    /// A workflow that is run and must end well.
    #[serde(default)]
    pub workflow: Option<WorkflowConfig>,
}

/// A workflow that proves a secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkflowConfig {
    /// Its file: `smoke.yml`.
    pub file: String,
    /// The branch or tag that it runs on.
    #[serde(rename = "ref")]
    pub reference: String,
    /// An input that takes the job's id, which the workflow's `run-name` shows.
    #[serde(default)]
    pub mark: Option<String>,
    /// How long to wait for its conclusion.
    #[serde(default = "within", with = "schemas::period")]
    pub within: Duration,
}

fn within() -> Duration {
    Duration::from_mins(30)
}

impl GithubSecretConfig {
    pub(super) fn problems(&self, names: &Names) -> Vec<Problem> {
        let mut problems = Vec::new();
        let fits =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !fits(&self.secret) || self.secret.starts_with(|first: char| first.is_ascii_digit()) {
            let help = "it has letters, digits and `_`, and does not begin with a digit";
            problems.push(Problem::new("GitHub allows no secret of this name").help(help).within("secret"));
        } else if self.secret.to_ascii_uppercase().starts_with("GITHUB_") {
            let problem = Problem::new("GitHub keeps names that begin with `GITHUB_` to itself");
            problems.push(problem.within("secret"));
        }
        match self.run_of_workflow() {
            Some(run) => problems.extend(run.check(names).into_iter().map(|problem| problem.within("workflow"))),
            None if !is_repository(&self.repository) => {
                problems.push(Problem::new("this is not `owner/name`").within("repository"));
            }
            None => {}
        }
        problems
    }

    fn run_of_workflow(&self) -> Option<Github> {
        let workflow = self.workflow.as_ref()?;
        Some(Github::of(&self.repository, &workflow.file, &workflow.reference, workflow.mark.clone(), workflow.within))
    }
}

/// The key for which GitHub wants a value sealed.
#[derive(Deserialize)]
struct SealingKey {
    key_id: String,
    key: String,
}

/// What GitHub tells of a secret.
#[derive(Deserialize)]
struct Told {
    updated_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Receipt {
    updated_at: Timestamp,
}

/// Keeps that secret.
pub(super) struct GithubSecret {
    name: String,
    config: GithubSecretConfig,
}

impl GithubSecret {
    pub(super) fn new(name: &str, config: GithubSecretConfig) -> Self {
        Self { name: name.to_owned(), config }
    }

    async fn repository<'r>(&'r self, cx: &'r Context) -> Result<Repository<'r>, Failure> {
        Repository::connect(cx, &self.config.repository, "the rotation puts a secret into GitHub's Actions").await
    }

    /// The place of secrets, and below it.
    fn path<'p>(&'p self, below: &'p str) -> Vec<&'p str> {
        match &self.config.environment {
            Some(environment) => vec!["environments", environment, "secrets", below],
            None => vec!["actions", "secrets", below],
        }
    }

    fn doing(&self, what: &str) -> String {
        format!("{what} the Actions secret `{}` of {}", self.config.secret, self.config.repository)
    }

    /// What GitHub is sent, and when the secret was changed before that.
    async fn sealed(
        &self,
        github: &Repository<'_>,
        publication: &Publication<'_>,
    ) -> Result<(Value, Option<Timestamp>), Failure> {
        let text = self.config.value.render(publication.value)?;
        if text.expose_secret().len() > LARGEST {
            return Err(Failure::Discard(anyhow::anyhow!("{}: it has more than 48 KB", self.doing("putting"))));
        }
        let key: SealingKey =
            github.get(&self.path("public-key"), "", "asking GitHub for the key to seal secrets with", &ADVICE).await?;
        let before = self.updated_at(github).await?;
        let sealed = seal(&key.key, &text, &mut OsRng)?;
        Ok((json!({"encrypted_value": sealed, "key_id": key.key_id}), before))
    }

    /// When GitHub says that it was changed; none where there is none.
    async fn updated_at(&self, github: &Repository<'_>) -> Result<Option<Timestamp>, Failure> {
        let told = github.get_if_there(&self.path(&self.config.secret), &self.doing("looking at"), &ADVICE).await?;
        Ok(told.map(|told: Told| told.updated_at))
    }
}

#[async_trait]
impl Consumer for GithubSecret {
    fn name(&self) -> &str {
        &self.name
    }

    async fn publish(&self, cx: &Context, publication: &Publication<'_>) -> Result<Value, Failure> {
        let touch = Touch::look(cx, &self.name, publication).await?;
        let github = self.repository(cx).await.map_err(|failure| touch.refused(failure))?;
        let (body, before) = self.sealed(&github, publication).await.map_err(|failure| touch.refused(failure))?;
        touch.begin(cx).await?;
        match github.put(&self.path(&self.config.secret), &body, &self.doing("putting"), &ADVICE).await {
            Sent::Done(_) => {}
            Sent::Refused(failure) => return Err(touch.refused(failure)),
            Sent::Unknown(failure) => return Err(failure),
        }
        match self.updated_at(&github).await? {
            Some(updated_at) if before.is_none_or(|before| before < updated_at) => {
                serde_json::to_value(Receipt { updated_at }).or_discard("writing down a receipt")
            }
            _ => Err(Failure::Snooze { wait: AGAIN, reason: self.doing("GitHub does not show yet that it changed") }),
        }
    }

    async fn prove(&self, cx: &Context, publication: &Publication<'_>, receipt: &Value) -> Result<(), Failure> {
        let receipt: Receipt = serde_json::from_value(receipt.clone()).or_discard("reading a receipt")?;
        let github = self.repository(cx).await?;
        if self.updated_at(&github).await? != Some(receipt.updated_at) {
            let why = "somebody has changed or removed it since it was put there";
            return Err(Failure::Discard(anyhow::anyhow!("{}: {why}", self.doing("proving"))));
        }
        match self.config.run_of_workflow() {
            Some(run) => run.run(&cx.below(&format!("{} {}", self.name, publication.id))).await.map(drop),
            None => Ok(()),
        }
    }
}

/// Seals a value for the holder of a key, as libsodium's `crypto_box_seal` does.
fn seal(key: &str, value: &SecretString, random: &mut impl CryptoRngCore) -> Result<String, Failure> {
    let key = STANDARD.decode(key).or_discard("reading GitHub's key")?;
    let key = PublicKey::from_slice(&key).or_discard("reading GitHub's key")?;
    let sealed = key.seal(random, value.expose_secret().as_bytes());
    let sealed = sealed.map_err(|_| Failure::Discard(anyhow::anyhow!("the value cannot be sealed for GitHub")))?;
    Ok(STANDARD.encode(sealed))
}

#[cfg(test)]
mod tests {
    use crypto_box::SecretKey;

    use super::*;

    /// Made by libsodium (`PyNaCl` 1.6): the secret key is the bytes 0 to 31.
    const SEALED_BY_LIBSODIUM: &str =
        "IVGbB3Oj8AxYZt8bdYK3sac8eNfNOelAdpto1fSdNxOCweUHmwRJZciDdkkzZ0TLQbDR7iEPfOgnQpJAfw==";
    const KEY_BY_LIBSODIUM: &str = "j0DFrbaPJWJK5bIU6nZ6bslNgp09e14a0bpvPiE4KF8=";

    #[test]
    fn a_value_is_sealed_as_libsodium_seals_it() {
        let secret = SecretKey::from_slice(&(0..32).collect::<Vec<u8>>()).unwrap();
        assert_eq!(STANDARD.encode(secret.public_key().as_bytes()), KEY_BY_LIBSODIUM);
        let theirs = secret.unseal(&STANDARD.decode(SEALED_BY_LIBSODIUM).unwrap()).unwrap();
        assert_eq!(theirs, "s3cret värde".as_bytes());
        let ours = seal(KEY_BY_LIBSODIUM, &"s3cret värde".into(), &mut OsRng).unwrap();
        assert_eq!(secret.unseal(&STANDARD.decode(&ours).unwrap()).unwrap(), theirs);
        assert_ne!(ours, SEALED_BY_LIBSODIUM, "each is sealed with a key of its own");
    }

    #[test]
    fn what_is_no_key_is_refused_without_the_value() {
        let refused = seal("AAAA", &"canary".into(), &mut OsRng).unwrap_err().words();
        assert!(!refused.contains("canary"), "{refused}");
    }

    #[test]
    fn names_that_github_refuses_are_found_beforehand() {
        let said = |secret: &str, repository: &str| {
            let config = json!({"repository": repository, "secret": secret});
            let config: GithubSecretConfig = serde_json::from_value(config).unwrap();
            config.problems(&Names::default()).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(said("DATABASE_URL", "acme/app").is_empty());
        assert!(said("1ST", "acme/app")[0].starts_with("secret: "));
        assert!(said("DATABASE-URL", "acme/app")[0].starts_with("secret: "));
        assert!(said("GITHUB_X", "acme/app")[0].contains("to itself"));
        assert_eq!(said("A", "acme"), ["repository: this is not `owner/name`"]);
    }
}
