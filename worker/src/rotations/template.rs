//! The text that a consumer gets, made from a secret's fields: `postgres://{{ username }}:{{ password | urlencode }}@db/app`.
//!
//! It is no template of runbooks: what is rendered is secret, so that no error may hold a value, and nothing is computed.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrets::{ExposeSecret, SecretString, field};
use serde::Deserialize;

use crate::handler::Failure;

/// The word that stands for the whole secret.
const WHOLE: &str = "value";

/// Such a text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SecretTemplate(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { name: String, encoded: bool },
}

impl Default for SecretTemplate {
    /// The whole secret.
    fn default() -> Self {
        Self(vec![Part::Field { name: WHOLE.to_owned(), encoded: false }])
    }
}

impl TryFrom<String> for SecretTemplate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once("{{") {
            let (inside, behind) = after.split_once("}}").ok_or("`{{` is not closed by `}}`")?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(read_field(inside)?);
            rest = behind;
        }
        if !parts.iter().any(|part| matches!(part, Part::Field { .. })) {
            return Err(
                "nothing of the secret is in it: write `{{ value }}`, or a field of it: `{{ password }}`".into()
            );
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }
}

fn read_field(inside: &str) -> Result<Part, String> {
    let (name, filter) = inside.split_once('|').map_or((inside, None), |(name, filter)| (name, Some(filter.trim())));
    let name = name.trim();
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    match filter {
        _ if !is_name => Err(format!("`{name}` is no field of a secret: write `{{{{ password }}}}`")),
        None | Some("urlencode") => Ok(Part::Field { name: name.to_owned(), encoded: filter.is_some() }),
        Some(other) => Err(format!("there is no filter `{other}` here but `urlencode`")),
    }
}

impl SecretTemplate {
    /// The text for a secret.
    pub(crate) fn render(&self, secret: &SecretString) -> Result<SecretString, Failure> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(literal) => text.push_str(literal),
                Part::Field { name, encoded } => {
                    let value = value(secret, name)?;
                    if *encoded {
                        text.extend(utf8_percent_encode(value.expose_secret(), NON_ALPHANUMERIC));
                    } else {
                        text.push_str(value.expose_secret());
                    }
                }
            }
        }
        Ok(text.into())
    }
}

/// A field of the secret; `value` is the whole, where no field has that name.
fn value(secret: &SecretString, name: &str) -> Result<SecretString, Failure> {
    match field(secret, name) {
        Some(value) => Ok(value),
        None if name == WHOLE => Ok(secret.clone()),
        None => Err(Failure::Discard(anyhow::anyhow!("the secret has no field `{name}` in the vault"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, secret: &str) -> Result<String, String> {
        let template = SecretTemplate::try_from(template.to_owned())?;
        let rendered = template.render(&secret.into()).map_err(|failure| failure.words())?;
        Ok(rendered.expose_secret().to_owned())
    }

    #[test]
    fn fields_and_the_whole_secret_are_put_in_and_encoded_where_asked() {
        let secret = r#"{"username": "app_b", "password": "a/b@c", "port": 5432}"#;
        let url = "postgres://{{username}}:{{ password | urlencode }}@db:{{ port }}/app";
        assert_eq!(render(url, secret).unwrap(), "postgres://app_b:a%2Fb%40c@db:5432/app");
        assert_eq!(render("{{ value }}", "plain").unwrap(), "plain");
        assert_eq!(SecretTemplate::default().render(&secret.into()).unwrap().expose_secret(), secret);
    }

    #[test]
    fn mistakes_are_named_without_the_secret() {
        assert!(render("postgres://app@db", "canary").unwrap_err().contains("nothing of the secret"));
        assert!(render("{{ password", "canary").unwrap_err().contains("not closed"));
        assert!(render("{{ password | upper }}", "canary").unwrap_err().contains("`urlencode`"));
        assert!(render("{{ }}", "canary").unwrap_err().contains("no field"));
        let missing = render("{{ pasword }}", r#"{"password": "canary"}"#).unwrap_err();
        assert!(missing.contains("`pasword`") && !missing.contains("canary"), "{missing}");
    }
}
