//! Sources as they are configured.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use schemas::{Problem, period};
use secrets::SecretText;
use serde::{Deserialize, Deserializer};

use super::{SourceType, source_type};

/// A source as the configuration file spells it. Its path is `/webhooks/<its name>`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// `github`, `vercel`, `clerk` or `standard`; the source's name where it is left out.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The secrets that are active: one, or several while one is being rotated.
    #[schemars(with = "Vec<String>")]
    pub secrets: Vec<SecretText>,
    /// For how long it may be silent before people are told; for ever where nothing is said.
    #[serde(default, deserialize_with = "some_period")]
    #[schemars(with = "Option<String>")]
    pub silent_after: Option<Duration>,
}

fn some_period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    period::deserialize(deserializer).map(Some)
}

/// Producers look each minute, and what is silent for less is no news.
const SHORTEST_SILENCE: Duration = Duration::from_mins(10);

/// A configured sender of webhooks.
#[derive(Clone)]
pub struct Source {
    pub(crate) name: String,
    pub(crate) kind: &'static dyn SourceType,
    pub(crate) secrets: Vec<SecretText>,
    pub(crate) silent_after: Option<Duration>,
}

/// All configured sources, by name.
#[derive(Clone, Default)]
pub struct Sources(BTreeMap<String, Source>);

impl Sources {
    /// Checks the sources; everything that is wrong, each below `sources.<name>`.
    pub fn build(configs: &BTreeMap<String, SourceConfig>) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut sources = BTreeMap::new();
        for (name, config) in configs {
            match build(name, config) {
                Ok(source) => drop(sources.insert(name.clone(), source)),
                Err(found) => problems.extend(found.into_iter().map(|found| found.within(name).within("sources"))),
            }
        }
        if problems.is_empty() { Ok(Self(sources)) } else { Err(problems) }
    }

    /// One source.
    pub fn get(&self, name: &str) -> Option<&Source> {
        self.0.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Source> {
        self.0.values()
    }
}

impl Source {
    /// Its name, which is the last part of its path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its type.
    pub fn kind(&self) -> &'static dyn SourceType {
        self.kind
    }

    /// Its secrets, as references.
    pub fn secrets(&self) -> &[SecretText] {
        &self.secrets
    }
}

fn build(name: &str, config: &SourceConfig) -> Result<Source, Vec<Problem>> {
    let mut problems = Vec::new();
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte)) {
        problems.push(
            Problem::new(format!("`{name}` cannot be the name of a source: it is a part of its path"))
                .help("use small letters, digits, `-` and `_`"),
        );
    }
    if config.secrets.is_empty() {
        let problem = Problem::new("a source without a secret would accept anything from anybody").within("secrets");
        problems.push(problem.help("add the secret that the sender signs with, for example \"${env:NAME}\""));
    }
    if config.silent_after.is_some_and(|after| after < SHORTEST_SILENCE) {
        let help = "a busy sender may be silent for an hour, a quiet one for days: write how long is no longer usual";
        problems.push(Problem::new("no silence of less than 10m is news").help(help).within("silent_after"));
    }
    match source_type(config.kind.as_deref().unwrap_or(name)) {
        Ok(kind) if problems.is_empty() => {
            let (secrets, silent_after) = (config.secrets.clone(), config.silent_after);
            return Ok(Source { name: name.to_owned(), kind, secrets, silent_after });
        }
        Ok(_) => {}
        Err(problem) if config.kind.is_some() => problems.push(problem.within("type")),
        Err(_) => problems.push(
            Problem::new(format!("`{name}` is no source type, so the source needs one"))
                .help("add type = \"github\", \"vercel\", \"clerk\" or \"standard\""),
        ),
    }
    Err(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(config: serde_json::Value) -> Vec<String> {
        let found = Sources::build(&serde_json::from_value(config).unwrap()).err().unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_sources_name_is_its_type_unless_it_says_otherwise() {
        let config =
            serde_json::json!({"github": {"secrets": ["x"]}, "render": {"type": "standard", "secrets": ["x"]}});
        let sources = Sources::build(&serde_json::from_value(config).unwrap()).ok().unwrap();
        assert_eq!(sources.get("github").unwrap().kind().name(), "github");
        assert_eq!(sources.get("render").unwrap().kind().name(), "standard");
        assert!(sources.get("vercel").is_none());
    }

    #[test]
    fn everything_that_is_wrong_with_sources_is_said_at_once() {
        let found = problems(serde_json::json!({
            "a/b": {"type": "github", "secrets": ["x"]},
            "gh": {"type": "guthub", "secrets": []},
            "shop": {"secrets": ["x"]},
            "vercel": {"secrets": ["x"], "silent_after": "5m"},
        }));
        assert_eq!(found.len(), 5, "{found:?}");
        assert!(found[0].starts_with("sources.a/b: `a/b` cannot be the name"), "{found:?}");
        assert!(found[1].starts_with("sources.gh.secrets: a source without a secret"), "{found:?}");
        assert!(found[2].contains("did you mean `github`?"), "{found:?}");
        assert!(found[3].contains("needs one"), "{found:?}");
        assert!(found[4].starts_with("sources.vercel.silent_after: no silence of less than 10m"), "{found:?}");
    }
}
