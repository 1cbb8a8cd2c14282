//! Rotations: which secrets are exchanged, how a new value is made valid, and who is to get it.
//!
//! What differs from secret to secret is behind two seams: a [`Rotator`] knows the place where a value is valid (a database's
//! role, a key of our own), a [`Consumer`] somebody who holds a copy of it. The job `rotate` leads them through
//! create → set → test → publish → prove → finish → retire, in `worker/src/jobs/rotate.rs`. A new one is a file in
//! `rotators/` or `consumers/`, a field in its configuration, and a line in its `open`.

pub mod consumers;
pub mod rotators;
pub mod template;

use std::collections::BTreeMap;
use std::time::Duration;

use schemas::{Names, Problem};
use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer};

use crate::handler::Failure;
pub use consumers::{Consumer, ConsumerConfig, Publication};
pub use rotators::{Rotator, Turn};

/// A rotation that has not got through its proofs by then is given up and taken back: no later than this.
const LONGEST_WITHIN: Duration = Duration::from_hours(7 * 24);

/// No old value stays valid for longer.
const LONGEST_OVERLAP: Duration = Duration::from_hours(30 * 24);

/// A rotation as the configuration file spells it: exactly one of the tables that say what kind of secret it is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationConfig {
    /// The secret's name in the vault.
    pub secret: String,
    /// The password of a role of `PostgreSQL`.
    #[serde(default)]
    pub postgres: Option<rotators::PostgresConfig>,
    /// A key that only our own programs know.
    #[serde(default)]
    pub random_key: Option<rotators::RandomKeyConfig>,
    /// The secret that signs the deliveries of one of our own sources.
    #[serde(default)]
    pub webhook: Option<rotators::WebhookConfig>,
    /// The access key of a user of AWS.
    #[serde(default)]
    pub aws_access_key: Option<rotators::AwsKeyConfig>,
    /// Who holds a copy of it, by name.
    #[serde(default)]
    pub consumers: BTreeMap<String, ConsumerConfig>,
    /// How long the old value stays valid beside the new one, after that is current.
    #[serde(default = "overlap", deserialize_with = "time_or_none")]
    pub overlap: Duration,
    /// If the new value is not proven by then, all is taken back.
    #[serde(default = "within", with = "schemas::period")]
    pub within: Duration,
}

fn overlap() -> Duration {
    Duration::from_hours(1)
}

fn within() -> Duration {
    Duration::from_hours(2)
}

/// A length of time, of which `0s` is one too.
fn time_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "0s" {
        return Ok(Duration::ZERO);
    }
    schemas::period::deserialize(text.into_deserializer())
}

impl RotationConfig {
    /// What is wrong with it beyond its types.
    pub fn problems(&self, names: &Names) -> Vec<Problem> {
        let mut problems = rotators::problems(self, names);
        if self.secret.is_empty() {
            problems.push(Problem::new("this names no secret of the vault").within("secret"));
        }
        if self.within > LONGEST_WITHIN {
            problems.push(Problem::new("it must be proven within 7 days").within("within"));
        }
        if self.overlap > LONGEST_OVERLAP {
            problems.push(Problem::new("an old value may stay valid for at most 30 days").within("overlap"));
        }
        for (name, consumer) in &self.consumers {
            let of_consumer = consumer.problems(names).into_iter();
            problems.extend(of_consumer.map(|problem| problem.within(name).within("consumers")));
        }
        problems
    }

    /// The connections that it needs, and where it says so.
    pub fn connections(&self) -> Vec<(&'static str, Vec<&str>)> {
        let hooks = self.webhook.as_ref().is_some_and(|webhook| !webhook.github.is_empty());
        let of_webhook = hooks.then(|| ("github", vec!["webhook", "github"]));
        let of_consumers = self.consumers.iter().filter_map(|(name, consumer)| {
            let (service, table) = match consumer {
                ConsumerConfig { vercel: Some(_), .. } => ("vercel", "vercel"),
                ConsumerConfig { github_secret: Some(_), .. } => ("github", "github_secret"),
                _ => return None,
            };
            Some((service, vec!["consumers", name, table]))
        });
        of_webhook.into_iter().chain(of_consumers).collect()
    }

    /// What knows the place where the value is valid.
    pub fn rotator(&self) -> Result<Box<dyn Rotator>, Failure> {
        rotators::open(self)
    }

    /// Those who hold a copy, in the order of their names.
    pub fn open_consumers(&self) -> Result<Vec<Box<dyn Consumer>>, Failure> {
        self.consumers.iter().map(|(name, config)| consumers::open(name, config)).collect()
    }
}

/// What is wrong with several rotations together: two that rotate one secret would take each other's version for a
/// stranger's.
pub fn problems(rotations: &BTreeMap<String, RotationConfig>) -> Vec<Problem> {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    let mut problems = Vec::new();
    for (name, rotation) in rotations {
        if let Some(owner) = owners.insert(&rotation.secret, name) {
            let problem = Problem::new(format!("[rotations.{owner}] rotates the same secret"));
            problems.push(problem.within("secret").within(name).within("rotations"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation(text: &str) -> RotationConfig {
        toml_like(text)
    }

    /// The configuration's own types are read from JSON here: the worker knows no TOML.
    fn toml_like(text: &str) -> RotationConfig {
        serde_json::from_str(text).unwrap()
    }

    fn said(config: &RotationConfig) -> Vec<String> {
        let names = Names { databases: ["main".to_owned()].into(), ..Names::default() };
        config.problems(&names).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_rotation_has_one_kind_of_secret_and_an_end() {
        assert!(said(&rotation(r#"{"secret": "app/key", "random_key": {}}"#)).is_empty());
        assert_eq!(rotation(r#"{"secret": "app/key", "random_key": {}, "overlap": "0s"}"#).overlap, Duration::ZERO);
        assert!(said(&rotation(r#"{"secret": "app/key"}"#))[0].contains("what kind of secret"));
        let both = r#"{"secret": "a", "random_key": {}, "postgres": {"database": "main", "roles": ["a", "b"]}}"#;
        assert!(said(&rotation(both))[0].contains("one kind of secret"));
        let long = r#"{"secret": "a", "random_key": {}, "within": "8d", "overlap": "31d"}"#;
        let found = said(&rotation(long));
        assert!(found[0].starts_with("within: ") && found[1].starts_with("overlap: "), "{found:?}");
    }

    #[test]
    fn two_rotations_of_one_secret_are_a_problem() {
        let same = rotation(r#"{"secret": "app/key", "random_key": {}}"#);
        let found = problems(&[("a".to_owned(), same.clone()), ("b".to_owned(), same)].into());
        assert_eq!(found[0].to_string(), "rotations.b.secret: [rotations.a] rotates the same secret");
    }
}
