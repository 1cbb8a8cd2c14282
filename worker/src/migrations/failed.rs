//! What a person reads when a file fails.

use sqlx::postgres::{PgDatabaseError, PgErrorPosition};

use crate::handler::Failure;
use crate::migrations::Migration;
use crate::migrations::statements::Shape;

/// The server's message, its code and the line. Not its details: they may hold a row's values.
pub(super) fn message(migration: &Migration, error: &sqlx::Error) -> String {
    let Some(database) = error.as_database_error() else {
        return format!("the migration `{}` failed: {error}", migration.name);
    };
    let line = database.try_downcast_ref::<PgDatabaseError>().and_then(|error| line_of(&migration.sql, error));
    let line = line.map(|line| format!(", line {line}")).unwrap_or_default();
    let code = database.code().map(|code| format!(" (code {code})")).unwrap_or_default();
    format!("the migration `{}` failed ({}{line}): {}{code}", migration.name, migration.path, database.message())
}

fn line_of(sql: &str, error: &PgDatabaseError) -> Option<usize> {
    match error.position()? {
        PgErrorPosition::Original(position) => {
            let before = sql.chars().take(position.saturating_sub(1));
            Some(before.filter(|character| *character == '\n').count() + 1)
        }
        PgErrorPosition::Internal { .. } => None,
    }
}

/// A file that failed by itself: it would fail again.
pub(super) fn discard(migration: &Migration, error: &sqlx::Error, shape: &Shape, next: &str) -> Failure {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    let hint = if code.as_deref() == Some("25001") {
        " A statement that cannot run in a transaction needs a file of its own, whose first line is `-- no-transaction` \
         (Prisma: a file with that statement alone)."
    } else {
        ""
    };
    Failure::Discard(anyhow::anyhow!("{}. {}.{hint} {next}", message(migration, error), remains(shape)))
}

/// Whether anything of a failed file is still there.
pub(super) fn remains(shape: &Shape) -> String {
    match shape {
        Shape::Atomic => "Nothing of this file remains applied".into(),
        Shape::ConcurrentIndex(name) => {
            format!("It may leave the invalid index {name}, which the next attempt drops before it builds it again")
        }
        Shape::Loose => {
            "Parts of this file may remain applied, because it commits inside or cannot run in a transaction".into()
        }
    }
}
