//! The password of a login role of `PostgreSQL`.
//!
//! A role has one password: when it changes, the old one is refused at once. So a secret that programs hold is rotated between
//! two roles, of which one rests: they are members of the same roles, and a parent that cannot log in owns what they use. A
//! single role is rotated only where the configuration accepts the gap.
//!
//! How far an earlier attempt came is asked by signing in, and only two answers count: it works, or the server refuses the
//! password (SQLSTATE 28P01). Anything else says nothing about the password, and nothing is changed by it. A server that lets
//! anybody in is found out by a password that nobody has.

mod login;
mod quiet;
mod scram;
mod value;

use std::time::Duration;

use async_trait::async_trait;
use schemas::{Names, Problem};
use secrets::{ExposeSecret, SecretString};
use serde::Deserialize;
use tracing::{Instrument, info};

use super::{Rotator, Turn, random_key};
use crate::handler::Failure;
use login::{Admin, Login};
use value::Value;

/// How long to wait before it is looked again whether the old role is still signed in.
const AGAIN: Duration = Duration::from_mins(5);

/// Such a password as the configuration file spells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// The database whose user sets the passwords, as the configuration names it.
    pub database: String,
    /// The two login roles that take turns; or one, with `accept_gap`.
    pub roles: Vec<String>,
    /// What the server is told.
    #[serde(default)]
    pub password: Telling,
    /// A query that the new role must be able to run.
    #[serde(default = "test")]
    pub test: String,
    /// Whether a moment is accepted in which the old password is refused and the new one is not known yet.
    #[serde(default)]
    pub accept_gap: bool,
    /// Whether a plain password is sent though the server writes it down.
    #[serde(default)]
    pub accept_logged: bool,
}

/// What the server is told of a password.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Telling {
    /// A SCRAM verifier, made here: the server never sees the password.
    #[default]
    Verifier,
    /// The password itself, for providers that refuse verifiers (Neon).
    Plain,
}

fn test() -> String {
    "SELECT 1".to_owned()
}

impl PostgresConfig {
    pub(super) fn problems(&self, names: &Names) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !names.databases.contains(&self.database) {
            let known = names.databases.iter().map(String::as_str);
            problems.push(Problem::unknown("database", &self.database, known).within("database"));
        }
        match self.roles.as_slice() {
            [one] if self.accept_gap && !one.is_empty() => {}
            [_] => {
                let help = "name a second login role that has the same rights, or say `accept_gap = true`";
                let gap = "with one role, nobody can sign in between the change and the moment when all have the new password";
                problems.push(Problem::new(gap).help(help).within("roles"));
            }
            [one, other] if one != other && !one.is_empty() && !other.is_empty() => {}
            _ => problems.push(Problem::new("write two login roles that take turns").within("roles")),
        }
        problems
    }
}

/// Rotates it.
pub(super) struct Postgres {
    config: PostgresConfig,
}

impl Postgres {
    pub(super) fn new(config: PostgresConfig) -> Self {
        Self { config }
    }

    /// The role whose turn it is after this one.
    fn next_role(&self, now: &str) -> Result<&str, Failure> {
        match self.config.roles.as_slice() {
            [one] if one == now => Ok(one),
            [one, other] if one == now => Ok(other),
            [one, other] if other == now => Ok(one),
            _ => Err(Failure::Discard(anyhow::anyhow!(
                "the secret is of the role `{now}`, which is none of {}: correct `roles`, or the secret",
                self.config.roles.join(", ")
            ))),
        }
    }

    async fn admin(&self, turn: &Turn<'_>, values: &[&Value]) -> Result<Admin, Failure> {
        Admin::connect(turn.world, &self.config.database, values).await
    }

    /// Has the server take a value's password for its role.
    async fn apply(&self, turn: &Turn<'_>, admin: &mut Admin, value: &Value) -> Result<(), Failure> {
        let told = match self.config.password {
            Telling::Verifier => scram::verifier(value.password(), turn.token.as_str()),
            Telling::Plain => value.password().clone(),
        };
        let may_be_logged = self.config.password == Telling::Verifier || self.config.accept_logged;
        admin.set_password(value.role(), &told, may_be_logged).await
    }
}

#[async_trait]
impl Rotator for Postgres {
    async fn create(&self, turn: &Turn<'_>, _again: bool) -> Result<SecretString, Failure> {
        let current = Value::read(turn.current)?;
        let role = self.next_role(current.role())?;
        // Letters and digits of base64: nothing that an address would have to escape, and far more than providers ask for.
        let password = random_key::random_text(32)?;
        Ok(current.with(role, password.expose_secret()))
    }

    async fn set(&self, turn: &Turn<'_>, new: &SecretString) -> Result<(), Failure> {
        let (current, new) = (Value::read(turn.current)?, Value::read(new)?);
        async {
            let mut admin = self.admin(turn, &[&new, &current]).await?;
            let can_login = admin.role_can_login(new.role()).await?;
            if let [one, other] = self.config.roles.as_slice() {
                admin.same_rights(one, other).await?;
            }
            // A role that may not log in is refused for that, whatever its password is.
            if can_login && new.logs_in("SELECT 1").await? == Login::Works {
                return Ok(()); // An earlier attempt did it and could not say so.
            }
            self.apply(turn, &mut admin, &new).await?;
            info!(role = new.role(), "the role has a new password");
            Ok(())
        }
        .instrument(crate::outside::database("postgresql", "set the password of a role in"))
        .await
    }

    async fn test(&self, _: &Turn<'_>, new: &SecretString) -> Result<(), Failure> {
        let new = Value::read(new)?;
        match new.logs_in(&self.config.test).await? {
            Login::Works => Ok(()),
            // Some providers take a while until all their doors know it.
            Login::Refused => Err(Failure::retry(anyhow::anyhow!(
                "the server refuses the new password of `{}` (SQLSTATE 28P01)",
                new.role()
            ))),
        }
    }

    async fn restore(&self, turn: &Turn<'_>, new: Option<&SecretString>) -> Result<(), Failure> {
        let current = Value::read(turn.current)?;
        let new = new.map(Value::read).transpose()?;
        if current.logs_in("SELECT 1").await? == Login::Works {
            return Ok(());
        }
        let values: Vec<&Value> = new.iter().chain([&current]).collect();
        let mut admin = self.admin(turn, &values).await?;
        self.apply(turn, &mut admin, &current).await?;
        match current.logs_in("SELECT 1").await? {
            Login::Works => Ok(()),
            Login::Refused => Err(Failure::retry(anyhow::anyhow!("the server refuses the password that was set back"))),
        }
    }

    async fn discard(&self, turn: &Turn<'_>, new: Option<&SecretString>) -> Result<(), Failure> {
        let Some(new) = new else { return Ok(()) };
        let (current, new) = (Value::read(turn.current)?, Value::read(new)?);
        if new.role() == current.role() {
            return Ok(()); // The current password has taken its place.
        }
        self.admin(turn, &[&current]).await?.let_rest(new.role()).await
    }

    async fn retire(&self, turn: &Turn<'_>, new: &SecretString) -> Result<(), Failure> {
        let (old, new) = (Value::read(turn.current)?, Value::read(new)?);
        if new.role() == old.role() {
            return Ok(()); // The old password died when the new one took its place.
        }
        let mut admin = self.admin(turn, &[&new]).await?;
        let sessions = admin.sessions_of(old.role()).await?;
        if sessions > 0 {
            let reason = format!("`{}` has {sessions} sessions still: who holds them has the old value", old.role());
            return Err(Failure::Snooze { wait: AGAIN, reason });
        }
        admin.let_rest(old.role()).await
    }
}
