//! Silence: what the server must not write down while it is told a password, as far as its user may say so.

use sqlx::PgConnection;

use super::login::within;
use crate::handler::Failure;

/// What writes statements down, when it does so, and the value that has it not do so. Only within our transaction.
const WRITERS: [(&str, &str); 6] = [
    ("log_statement", "none"),
    ("log_min_duration_statement", "-1"),
    ("log_min_duration_sample", "-1"),
    // What fails is logged with its text otherwise.
    ("log_min_error_statement", "panic"),
    ("pg_stat_statements.track_utility", "off"),
    ("pgaudit.log", "none"),
];

/// One of them, on this server.
struct Writer {
    name: &'static str,
    silent: &'static str,
    /// Whether it is silent as it is.
    is_silent: bool,
    /// Whether we may silence it.
    ours: bool,
}

/// What can be silenced, and what cannot.
pub(super) struct Quiet(Vec<Writer>);

impl Quiet {
    /// Looks what writes statements down on this server, and what of it this user may silence.
    pub(super) async fn of(session: &mut PgConnection) -> Result<Self, Failure> {
        let mut writers = Vec::new();
        for (name, silent) in WRITERS {
            let now: Option<String> =
                within(sqlx::query_scalar("SELECT current_setting($1, true)").bind(name).fetch_one(&mut *session))
                    .await?;
            // What the server does not know does not write either.
            let Some(now) = now.filter(|now| !now.is_empty()) else { continue };
            let ours = may_set(session, name).await?;
            writers.push(Writer { name, silent, is_silent: now == silent, ours });
        }
        Ok(Self(writers))
    }

    /// What would be written, and where, though we would rather not have it; none where all is silent.
    pub(super) fn written_down(&self) -> Option<&'static str> {
        // That a statement which fails is logged is no harm: then its password is valid nowhere.
        let loud = |writer: &&Writer| !writer.is_silent && !writer.ours && writer.name != "log_min_error_statement";
        self.0.iter().find(loud).map(|writer| writer.name)
    }

    /// The statements that silence what we may silence.
    pub(super) fn statements(&self) -> impl Iterator<Item = String> {
        let ours = self.0.iter().filter(|writer| writer.ours && !writer.is_silent);
        ours.map(|writer| format!("SET LOCAL {} = '{}'", writer.name, writer.silent))
    }
}

async fn may_set(session: &mut PgConnection, name: &str) -> Result<bool, Failure> {
    let is_superuser = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user";
    if within(sqlx::query_scalar(is_superuser).fetch_one(&mut *session)).await? {
        return Ok(true);
    }
    let major: i32 = within(
        sqlx::query_scalar("SELECT current_setting('server_version_num')::int4 / 10000").fetch_one(&mut *session),
    )
    .await?;
    if major < 15 {
        return Ok(false); // Such rights could not be granted before.
    }
    within(sqlx::query_scalar("SELECT has_parameter_privilege($1, 'SET')").bind(name).fetch_one(session)).await
}

/// A text as statements spell it.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_ends_where_it_should() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\' b"), r" E'a\\'' b'");
    }
}
