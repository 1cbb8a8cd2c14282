//! The secret of a role: an address, or a JSON object with addresses, `username` and `password`.

use std::str::FromStr;

use percent_encoding::percent_decode_str;
use secrets::{ExposeSecret, SecretString};
use serde_json::{Map, Value as Json};
use sqlx::postgres::PgConnectOptions;
use url::Url;

use super::super::random_key::fields;
use super::login::{Login, logs_in};
use crate::handler::Failure;

/// A secret, read.
pub(super) struct Value {
    form: Form,
    role: String,
    password: SecretString,
    /// Every address that programs use: each is tried.
    addresses: Vec<Url>,
}

enum Form {
    Address(Url),
    Fields(Map<String, Json>),
}

impl Value {
    pub(super) fn read(secret: &SecretString) -> Result<Self, Failure> {
        let (form, addresses) = if let Some(fields) = fields(secret) {
            let addresses: Vec<Url> = fields.values().filter_map(address).collect();
            (Form::Fields(fields), addresses)
        } else {
            let url = url_of(secret.expose_secret()).ok_or_else(|| wrong("it is neither an address nor an object"))?;
            (Form::Address(url.clone()), vec![url])
        };
        let text = |name: &str| match &form {
            Form::Fields(fields) => fields.get(name).and_then(Json::as_str).map(str::to_owned),
            Form::Address(_) => None,
        };
        let of_url = |part: fn(&Url) -> Option<&str>| addresses.first().and_then(part).map(decoded);
        let role = text("username").or_else(|| of_url(|url| Some(url.username())));
        let password = text("password").or_else(|| of_url(Url::password));
        let (Some(role), Some(password)) = (role.filter(|role| !role.is_empty()), password) else {
            return Err(wrong("it names no user with a password"));
        };
        let mut value = Self { form, role, password: password.into(), addresses };
        if value.addresses.is_empty() {
            let made =
                value.made().ok_or_else(|| wrong("there is no address in it: add `url`, or `host` and `dbname`"))?;
            value.addresses.push(made);
        }
        // Those of other users are other people's.
        let role = value.role.clone();
        value.addresses.retain(|url| decoded(url.username()) == role);
        if value.addresses.is_empty() {
            return Err(wrong("its `username` is not the user of any address in it"));
        }
        Ok(value)
    }

    pub(super) fn role(&self) -> &str {
        &self.role
    }

    pub(super) fn password(&self) -> &SecretString {
        &self.password
    }

    /// The same secret of another role, with another password.
    pub(super) fn with(&self, role: &str, password: &str) -> SecretString {
        match &self.form {
            Form::Address(url) => String::from(of(url, role, password)).into(),
            Form::Fields(fields) => {
                let mut fields = fields.clone();
                for (name, field) in &mut fields {
                    match (name.as_str(), address(field)) {
                        ("username", _) => *field = role.into(),
                        ("password", _) => *field = password.into(),
                        (_, Some(url)) if decoded(url.username()) == self.role => {
                            *field = String::from(of(&url, role, password)).into();
                        }
                        _ => {}
                    }
                }
                Json::Object(fields).to_string().into()
            }
        }
    }

    /// Whether its role can sign in at every address and run that query there.
    pub(super) async fn logs_in(&self, query: &str) -> Result<Login, Failure> {
        for url in &self.addresses {
            if logs_in(&options(url)?, query).await? == Login::Refused {
                return Ok(Login::Refused);
            }
        }
        Ok(Login::Works)
    }

    /// The address that `host`, `port` and `dbname` are the parts of.
    fn made(&self) -> Option<Url> {
        let Form::Fields(fields) = &self.form else { return None };
        let text = |name: &str| fields.get(name).and_then(Json::as_str);
        let database = text("dbname").or_else(|| text("database"))?;
        let mut url = Url::parse(&format!("postgres://{}/{database}", text("host")?)).ok()?;
        let port = fields.get("port").and_then(|port| port.as_u64().or_else(|| port.as_str()?.parse().ok()));
        url.set_port(port.and_then(|port| port.try_into().ok())).ok()?;
        Some(of(&url, &self.role, self.password.expose_secret()))
    }
}

/// How to connect to an address. The parser's own words may quote it, and the password with it.
pub(super) fn options(url: &Url) -> Result<PgConnectOptions, Failure> {
    PgConnectOptions::from_str(url.as_str()).map_err(|_| wrong("its address is not one of PostgreSQL"))
}

fn address(field: &Json) -> Option<Url> {
    field.as_str().and_then(url_of)
}

fn url_of(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| matches!(url.scheme(), "postgres" | "postgresql") && url.has_host())
}

fn of(url: &Url, role: &str, password: &str) -> Url {
    let mut url = url.clone();
    // An address that has a host takes both.
    let _always = url.set_username(role).and_then(|()| url.set_password(Some(password)));
    url
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn wrong(why: &str) -> Failure {
    Failure::Discard(anyhow::anyhow!("the secret cannot be rotated as a role of PostgreSQL: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Value {
        Value::read(&text.into()).unwrap()
    }

    fn why(text: &str) -> String {
        Value::read(&text.into()).err().unwrap().words()
    }

    #[test]
    fn an_address_changes_its_user_and_password_and_nothing_else() {
        let value = read("postgres://app_a:old%2Fpw@db.example.com:5433/app?sslmode=require");
        assert_eq!((value.role(), value.password().expose_secret()), ("app_a", "old/pw"));
        let new = value.with("app_b", "new-pw");
        assert_eq!(new.expose_secret(), "postgres://app_b:new-pw@db.example.com:5433/app?sslmode=require");
    }

    #[test]
    fn every_address_of_the_role_in_an_object_changes_and_other_fields_stay() {
        let old = json!({
            "username": "app_a", "password": "old", "engine": "postgres", "port": 5432,
            "url": "postgres://app_a:old@pooler/app", "direct": "postgresql://app_a:old@db/app",
            "reports": "postgres://reader:other@db/app",
        });
        let value = read(&old.to_string());
        assert_eq!(value.addresses.len(), 2);
        let new: Json = serde_json::from_str(value.with("app_b", "new").expose_secret()).unwrap();
        let wanted = json!({
            "username": "app_b", "password": "new", "engine": "postgres", "port": 5432,
            "url": "postgres://app_b:new@pooler/app", "direct": "postgresql://app_b:new@db/app",
            "reports": "postgres://reader:other@db/app",
        });
        assert_eq!(new, wanted);
    }

    #[test]
    fn an_object_as_aws_writes_it_has_an_address_too() {
        let value =
            read(r#"{"username": "app", "password": "p", "host": "db.example.com", "port": "5433", "dbname": "x"}"#);
        assert_eq!(value.addresses[0].as_str(), "postgres://app:p@db.example.com:5433/x");
    }

    #[test]
    fn what_cannot_be_rotated_is_said_without_the_value() {
        assert!(why("hunter2").contains("neither an address nor an object"));
        assert!(why("postgres://app@db/x").contains("no user with a password"));
        assert!(why(r#"{"username": "app", "password": "hunter2"}"#).contains("no address in it"));
        let other = r#"{"username": "app", "password": "hunter2", "url": "postgres://x:hunter2@db/x"}"#;
        assert!(why(other).contains("not the user of any address") && !why(other).contains("hunter2"));
    }
}
