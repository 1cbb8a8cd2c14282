//! Environment variables of a project at Vercel, and the deployment that takes them up.
//!
//! A variable has effect only in deployments that are made after it was set. So the production deployment is made again, and
//! what is proven is that: it is ready, the domain of the health address leads to it, and that address answers as expected.
//!
//! Twice is safe: a variable's comment says which publication it holds, a fingerprint with it (a `sensitive` value cannot be
//! read back, and none is); a redeployment carries the publication in its `meta`, by which the next attempt finds it. One
//! whose request was answered by nobody is looked for before another is made, which would only build the same again.

mod deploying;
mod health;
mod variables;

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemas::{Names, Problem};
use secrets::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Consumer, Publication, Touch};
use crate::context::Context;
use crate::handler::{Failure, OrFail};
use crate::rotations::template::SecretTemplate;
use crate::vercel::Vercel;

pub use health::HealthConfig;

/// Such variables as the configuration file spells them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VercelConfig {
    /// The project, by its id or its name.
    pub project: String,
    /// The variables, by name: the text that each gets.
    pub variables: BTreeMap<String, SecretTemplate>,
    /// The environments in which they are set.
    #[serde(default = "production")]
    pub targets: Vec<Target>,
    /// Whether Vercel may show the values again.
    #[serde(default, rename = "type")]
    pub kind: VariableType,
    /// Whether the production deployment is made again, so that it has them.
    #[serde(default = "yes")]
    pub redeploy: bool,
    /// What must answer, and how, so that the new value is proven.
    #[serde(default)]
    pub health: Option<HealthConfig>,
}

/// An environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// What the project's domains show.
    Production,
    /// What branches show.
    Preview,
    /// What developers have on their machines.
    Development,
}

/// How a variable is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VariableType {
    /// Nobody can read it back.
    #[default]
    Sensitive,
    /// Members of the team can.
    Encrypted,
}

fn production() -> Vec<Target> {
    vec![Target::Production]
}

fn yes() -> bool {
    true
}

impl VercelConfig {
    pub(super) fn problems(&self, names: &Names) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.project.is_empty() {
            problems.push(Problem::new("this names no project").within("project"));
        }
        if self.variables.is_empty() {
            let help = "write `variables = { DATABASE_URL = \"{{ value }}\" }`";
            problems.push(Problem::new("there is no variable").help(help).within("variables"));
        }
        for name in self.variables.keys().filter(|name| !is_variable(name)) {
            let problem = Problem::new("this is no name of a variable: letters, digits and `_`");
            problems.push(problem.within(name).within("variables"));
        }
        if self.targets.is_empty() {
            problems.push(Problem::new("there is no environment").help("write `[\"production\"]`").within("targets"));
        }
        if self.kind == VariableType::Sensitive && self.targets.contains(&Target::Development) {
            let help = "leave `development` out, or write `type = \"encrypted\"`";
            problems.push(Problem::new("Vercel keeps no sensitive variable for development").help(help).within("type"));
        }
        let for_production = self.targets.contains(&Target::Production);
        if for_production && self.redeploy && self.health.is_none() {
            let help =
                "write `health = { url = \"https://app.example.com/api/health\" }`: an address that uses the secret";
            problems.push(Problem::new("nothing would prove that the app works with it").help(help).within("health"));
        }
        if let Some(health) = &self.health {
            problems.extend(health.problems(names).into_iter().map(|problem| problem.within("health")));
        }
        problems
    }

    fn redeploys(&self) -> bool {
        self.redeploy && self.targets.contains(&Target::Production)
    }
}

fn is_variable(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
}

/// What needs the connection.
const WHOSE: &str = "the rotation sets variables at Vercel";

/// What was begun at Vercel.
#[derive(Serialize, Deserialize)]
struct Receipt {
    /// The deployment that has the new values; none where none was to be made.
    deployment: Option<String>,
}

/// Keeps those variables.
pub(super) struct Variables {
    name: String,
    config: VercelConfig,
}

impl Variables {
    pub(super) fn new(name: &str, config: VercelConfig) -> Self {
        Self { name: name.to_owned(), config }
    }

    /// The texts of all variables; refused where one could not be set, before any is.
    async fn look(&self, cx: &Context, publication: &Publication<'_>) -> Result<Vec<(&str, SecretString)>, Failure> {
        let vercel = Vercel::connect(cx, WHOSE).await?;
        let mut texts = Vec::new();
        for (variable, template) in &self.config.variables {
            variables::find(&vercel, &self.config, variable).await?;
            texts.push((variable.as_str(), template.render(publication.value)?));
        }
        Ok(texts)
    }
}

#[async_trait]
impl Consumer for Variables {
    fn name(&self) -> &str {
        &self.name
    }

    async fn publish(&self, cx: &Context, publication: &Publication<'_>) -> Result<Value, Failure> {
        let touch = Touch::look(cx, &self.name, publication).await?;
        let texts = self.look(cx, publication).await.map_err(|failure| touch.refused(failure))?;
        let vercel = Vercel::connect(cx, WHOSE).await?;
        touch.begin(cx).await?;
        for (variable, text) in &texts {
            variables::put(&vercel, &self.config, variable, text, publication.id).await?;
        }
        let deployment = if self.config.redeploys() {
            Some(deploying::made_again(cx, &vercel, self, publication.id).await?)
        } else {
            None
        };
        serde_json::to_value(Receipt { deployment }).or_discard("writing down a receipt")
    }

    async fn prove(&self, cx: &Context, publication: &Publication<'_>, receipt: &Value) -> Result<(), Failure> {
        let receipt: Receipt = serde_json::from_value(receipt.clone()).or_discard("reading a receipt")?;
        let vercel = Vercel::connect(cx, WHOSE).await?;
        let deployment = match &receipt.deployment {
            Some(id) => Some(deploying::ready(&vercel, &self.config, id).await?),
            None => None,
        };
        if let Some(health) = &self.config.health {
            health.prove(cx, deployment.as_ref()).await?;
        }
        for (variable, template) in &self.config.variables {
            let text = template.render(publication.value)?;
            variables::still_there(&vercel, &self.config, variable, &text, publication.id).await?;
        }
        Ok(())
    }
}
