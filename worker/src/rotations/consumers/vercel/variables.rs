//! One variable: looked for, put, and known again by its comment.

use hmac::{Hmac, KeyInit, Mac};
use secrets::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Sha256;

use super::{Target, VariableType, VercelConfig};
use crate::handler::{Failure, OrFail};
use crate::vercel::{Advice, Sent, Vercel};

/// Begins our part of a comment; what stands before it is its writer's, and is kept.
const MARK: &str = "[nightporter ";
/// A comment has at most so many characters.
const LONGEST_COMMENT: usize = 500;

const ADVICE: Advice = Advice {
    forbidden: "may not change this project's variables",
    check: "check `project`, `variables` and `targets`",
};

/// A variable as Vercel lists it. Its value is not read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listed {
    key: String,
    #[serde(rename = "type")]
    kind: String,
    target: Targets,
    #[serde(default)]
    git_branch: Option<String>,
    #[serde(default)]
    custom_environment_ids: Vec<String>,
    #[serde(default)]
    comment: Option<String>,
}

/// One environment, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Targets {
    One(String),
    Several(Vec<String>),
}

impl Listed {
    fn targets(&self) -> Vec<&str> {
        match &self.target {
            Targets::One(one) => vec![one],
            Targets::Several(several) => several.iter().map(String::as_str).collect(),
        }
    }

    /// Whether it has a value in one of these environments as a whole: one of a branch stands above it and stays.
    fn meets(&self, name: &str, wanted: &[&str]) -> bool {
        let whole = self.git_branch.is_none() && self.custom_environment_ids.is_empty();
        self.key == name && whole && self.targets().iter().any(|target| wanted.contains(target))
    }
}

#[derive(Deserialize)]
struct List {
    envs: Vec<Listed>,
}

/// Sets a variable, unless its comment says that it holds this publication already.
pub(super) async fn put(
    vercel: &Vercel<'_>,
    config: &VercelConfig,
    name: &str,
    text: &SecretString,
    publication: &str,
) -> Result<(), Failure> {
    let there = find(vercel, config, name).await?;
    let mark = mark(publication, text)?;
    let comment = there.and_then(|there| there.comment).unwrap_or_default();
    if comment.contains(&mark) {
        return Ok(());
    }
    let body = json!({
        "key": name,
        "value": text.expose_secret(),
        "type": config.kind,
        "target": config.targets,
        "comment": with_mark(&comment, &mark),
    });
    let what = format!("setting the variable `{name}` of the project `{}`", config.project);
    match vercel.post_with(&["v10", "projects", &config.project, "env"], "upsert=true", &body, &what, &ADVICE).await {
        Sent::Done(answer) => taken(&answer, &what),
        Sent::Refused(failure) | Sent::Unknown(failure) => Err(failure),
    }
}

/// That nobody has changed the variable since.
pub(super) async fn still_there(
    vercel: &Vercel<'_>,
    config: &VercelConfig,
    name: &str,
    text: &SecretString,
    publication: &str,
) -> Result<(), Failure> {
    let there = find(vercel, config, name).await?;
    if there
        .and_then(|there| there.comment)
        .is_some_and(|comment| comment.contains(&mark(publication, text).unwrap_or_default()))
    {
        return Ok(());
    }
    Err(Failure::Discard(anyhow::anyhow!(
        "the variable `{name}` of the project `{}` was changed or removed by somebody else since it was set",
        config.project
    )))
}

/// The variable in these environments, if there is one.
pub(super) async fn find(vercel: &Vercel<'_>, config: &VercelConfig, name: &str) -> Result<Option<Listed>, Failure> {
    let what = format!("looking at the variables of the project `{}`", config.project);
    let list: List = vercel.get(&["v10", "projects", &config.project, "env"], "", &what, &ADVICE).await?;
    let wanted: Vec<&str> = config.targets.iter().map(|target| target.name()).collect();
    let mut found: Vec<Listed> = list.envs.into_iter().filter(|listed| listed.meets(name, &wanted)).collect();
    let is_whole = |listed: &Listed| {
        let targets = listed.targets();
        targets.len() == wanted.len() && wanted.iter().all(|target| targets.contains(target))
    };
    match found.as_slice() {
        [] => Ok(None),
        [only] if is_whole(only) && only.kind == config.kind.name() => Ok(found.pop()),
        others => {
            let there: Vec<String> =
                others.iter().map(|other| format!("{} for {}", other.kind, other.targets().join(", "))).collect();
            Err(Failure::Discard(anyhow::anyhow!(
                "the variable `{name}` of the project `{}` is there as {}, and is to be {} for {}: a variable's type and \
                 environments are not changed here; write them as they are, or remove it there and retry the job",
                config.project,
                there.join("; and "),
                config.kind.name(),
                wanted.join(", ")
            )))
        }
    }
}

/// An answer that says 201 may yet hold refusals.
fn taken(answer: &Value, what: &str) -> Result<(), Failure> {
    let failed = answer["failed"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(first) = failed.first() else { return Ok(()) };
    let code = first["error"]["code"].as_str().unwrap_or("no code");
    // Only a word of Vercel's own is shown: its sentences may hold values.
    let is_word = code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') && code.len() <= 60;
    let code = if is_word { code } else { "no code" };
    Err(Failure::Discard(anyhow::anyhow!("{what}: Vercel refuses it ({code}); {}", ADVICE.check)))
}

/// Which publication it is, and a fingerprint of the text: the publication is the key, so that no two are alike.
fn mark(publication: &str, text: &SecretString) -> Result<String, Failure> {
    let mut mac =
        <Hmac<Sha256> as KeyInit>::new_from_slice(publication.as_bytes()).or_discard("making a fingerprint")?;
    mac.update(text.expose_secret().as_bytes());
    let fingerprint = hex::encode(&mac.finalize().into_bytes()[..8]);
    Ok(format!("{MARK}{publication} {fingerprint}]"))
}

fn with_mark(comment: &str, mark: &str) -> String {
    let own = comment.split(MARK).next().unwrap_or_default().trim_end();
    let room = LONGEST_COMMENT.saturating_sub(mark.chars().count() + 1);
    let own: String = own.chars().take(room).collect();
    if own.is_empty() { mark.to_owned() } else { format!("{own} {mark}") }
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Preview => "preview",
            Self::Development => "development",
        }
    }
}

impl VariableType {
    fn name(self) -> &'static str {
        match self {
            Self::Sensitive => "sensitive",
            Self::Encrypted => "encrypted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_keeps_its_writers_words_and_has_one_mark() {
        let first = mark("job-1", &"a".into()).unwrap();
        let second = mark("job-2", &"a".into()).unwrap();
        assert_ne!(first, second);
        assert_ne!(first, mark("job-1", &"b".into()).unwrap());
        let comment = with_mark("for the app", &first);
        assert_eq!(comment, format!("for the app {first}"));
        assert_eq!(with_mark(&comment, &second), format!("for the app {second}"));
        assert_eq!(with_mark("", &first), first);
        assert_eq!(with_mark(&"ä".repeat(600), &first).chars().count(), LONGEST_COMMENT);
    }

    #[test]
    fn a_refusal_within_an_answer_that_says_201_is_seen_and_not_quoted() {
        assert!(taken(&json!({"created": {}, "failed": []}), "setting").is_ok());
        let failed = json!({"failed": [{"error": {"code": "ENV_CONFLICT", "message": "canary", "value": "canary"}}]});
        let words = taken(&failed, "setting").unwrap_err().words();
        assert!(words.contains("ENV_CONFLICT") && !words.contains("canary"), "{words}");
    }
}
