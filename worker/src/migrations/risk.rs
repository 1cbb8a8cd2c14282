//! What a statement may do to those who use the database while it runs, and to the code that is deployed.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlparser::ast::{
    AlterColumnOperation, AlterTable, AlterTableOperation, AlterTypeOperation, ColumnDef, ColumnOption, DataType, Expr,
    ObjectType, Statement, TableConstraint,
};

use crate::migrations::{Engine, Migration, statements};

/// How dangerous a statement is; the later the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Risk {
    /// There is nothing to run.
    None,
    /// It adds; neither running queries nor deployed code notice.
    Additive,
    /// It holds a strong lock for long, or rewrites or reads a whole table under one.
    Rewriting,
    /// Deployed code may fail, or data is lost; or it cannot be read, so that nobody knows.
    Breaking,
}

/// A statement, judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// The file, in the folder.
    pub file: String,
    /// Its first 120 characters.
    pub statement: String,
    /// How dangerous it is.
    pub risk: Risk,
    /// Why.
    pub why: String,
}

type Verdict = (Risk, &'static str);

/// Judges all statements of migrations that run one after the other.
pub fn judge<'m>(migrations: impl IntoIterator<Item = &'m Migration>, engine: Engine) -> Vec<Judged> {
    let mut made = BTreeSet::new();
    let mut judged = Vec::new();
    for migration in migrations {
        let Some(statements) = statements::split(&migration.sql, engine) else {
            let excerpt = migration.sql.trim().chars().take(120).collect();
            judged.push(entry(migration, excerpt, (Risk::Breaking, "the file cannot be read as SQL")));
            continue;
        };
        for statement in statements {
            let verdict = match statement.parse(engine) {
                Some(parsed) => judge_one(&parsed, &mut made),
                None => (Risk::Breaking, "it cannot be read, so nobody knows"),
            };
            judged.push(entry(migration, statement.excerpt(), verdict));
        }
    }
    judged
}

fn entry(migration: &Migration, statement: String, (risk, why): Verdict) -> Judged {
    Judged { file: migration.path.clone(), statement, risk, why: why.to_owned() }
}

/// Judges one; `made` are the tables that this plan makes, which nobody uses yet.
fn judge_one(statement: &Statement, made: &mut BTreeSet<String>) -> Verdict {
    const NEW: Verdict = (Risk::Additive, "the table is new");
    match statement {
        Statement::CreateTable(table) => {
            made.insert(table.name.to_string());
            (Risk::Additive, "a new table")
        }
        Statement::AlterTable(alter) if made.contains(&alter.name.to_string()) => {
            made.extend(new_names(alter));
            NEW
        }
        Statement::CreateIndex(index) if made.contains(&index.table_name.to_string()) => NEW,
        Statement::CreateTrigger(trigger) if made.contains(&trigger.table_name.to_string()) => NEW,
        Statement::Drop { object_type: ObjectType::Table, names, .. }
            if names.iter().all(|name| made.contains(&name.to_string())) =>
        {
            NEW
        }
        Statement::AlterTable(alter) => {
            let verdicts = alter.operations.iter().map(alteration);
            verdicts.max_by_key(|(risk, _)| *risk).unwrap_or((Risk::Breaking, "it is not known"))
        }
        Statement::CreateIndex(index) if index.concurrently => (Risk::Additive, "an index, built beside the writes"),
        Statement::CreateIndex(_) => (Risk::Rewriting, "writes wait until the index is built; use CONCURRENTLY"),
        other => judge_other(other),
    }
}

fn judge_other(statement: &Statement) -> Verdict {
    match statement {
        Statement::Drop { object_type: ObjectType::Index, .. } => {
            (Risk::Rewriting, "queries wait for its lock, and those that used the index become slow")
        }
        Statement::Drop { .. }
        | Statement::DropFunction(_)
        | Statement::DropProcedure { .. }
        | Statement::DropTrigger(_)
        | Statement::DropPolicy(_)
        | Statement::DropDomain(_)
        | Statement::DropExtension(_) => (Risk::Breaking, "what is dropped is gone for deployed code"),
        Statement::RenameTable(_) | Statement::AlterSchema(_) => (Risk::Breaking, "deployed code knows the old name"),
        Statement::Delete(_) | Statement::Truncate(_) => (Risk::Breaking, "rows are lost"),
        Statement::Update(_) | Statement::Merge(_) => (Risk::Rewriting, "the rows stay locked until it commits"),
        Statement::Revoke(_) => (Risk::Breaking, "deployed code may lose a right"),
        Statement::CreatePolicy(_) | Statement::AlterPolicy(_) => (Risk::Breaking, "other rows become visible"),
        Statement::CreateTrigger(_) => (Risk::Rewriting, "it changes what writes do"),
        Statement::Vacuum(_) | Statement::Lock(_) => (Risk::Rewriting, "it locks the table"),
        Statement::AlterType(alter) => match alter.operation {
            AlterTypeOperation::AddValue(_) => (Risk::Additive, "a new value"),
            _ => (Risk::Breaking, "deployed code knows the old name"),
        },
        Statement::Insert(_)
        | Statement::Query(_)
        | Statement::CreateView(_)
        | Statement::CreateFunction(_)
        | Statement::CreateProcedure { .. }
        | Statement::CreateType { .. }
        | Statement::CreateDomain(_)
        | Statement::CreateSequence { .. }
        | Statement::CreateSchema { .. }
        | Statement::CreateExtension(_)
        | Statement::CreateRole(_)
        | Statement::CreateVirtualTable { .. }
        | Statement::Grant(_)
        | Statement::Comment { .. }
        | Statement::Set(_)
        | Statement::Reset(_)
        | Statement::Pragma { .. }
        | Statement::Analyze(_)
        | Statement::StartTransaction { .. }
        | Statement::Commit { .. }
        | Statement::Rollback { .. }
        | Statement::Savepoint { .. }
        | Statement::ReleaseSavepoint { .. } => (Risk::Additive, "it takes nothing away"),
        _ => (Risk::Breaking, "what it does is not known"),
    }
}

fn alteration(operation: &AlterTableOperation) -> Verdict {
    use AlterTableOperation as Op;
    match operation {
        Op::AddColumn { column_def, .. } => new_column(column_def),
        Op::DropColumn { .. } => (Risk::Breaking, "deployed code may still use the column"),
        Op::RenameColumn { .. } | Op::RenameTable { .. } => (Risk::Breaking, "deployed code knows the old name"),
        Op::AddConstraint { not_valid: true, .. } => (Risk::Additive, "a constraint, for new rows alone"),
        Op::AddConstraint {
            constraint: TableConstraint::PrimaryKeyUsingIndex(_) | TableConstraint::UniqueUsingIndex(_),
            ..
        } => (Risk::Additive, "a constraint on an index that is there"),
        Op::AddConstraint { .. } => {
            (Risk::Rewriting, "all rows are checked under a lock; use NOT VALID, then VALIDATE")
        }
        Op::AlterColumn { op, .. } => column_change(op),
        Op::SetLogged | Op::SetUnlogged => (Risk::Rewriting, "the table is rewritten"),
        Op::AttachPartition { .. } | Op::DetachPartition { .. } => (Risk::Rewriting, "rows are checked under a lock"),
        Op::ValidateConstraint { .. } => (Risk::Additive, "rows are checked beside the writes"),
        Op::DropConstraint { .. } | Op::RenameConstraint { .. } | Op::OwnerTo { .. } | Op::ReplicaIdentity { .. } => {
            (Risk::Additive, "a short lock")
        }
        Op::EnableRowLevelSecurity | Op::ForceRowLevelSecurity => (Risk::Breaking, "rows become invisible"),
        Op::EnableTrigger { .. } | Op::DisableTrigger { .. } => (Risk::Rewriting, "it changes what writes do"),
        _ => (Risk::Breaking, "what it does is not known"),
    }
}

fn column_change(change: &AlterColumnOperation) -> Verdict {
    match change {
        AlterColumnOperation::SetNotNull => {
            (Risk::Rewriting, "all rows are read under a lock; add a CHECK NOT VALID first")
        }
        AlterColumnOperation::SetDataType { data_type, .. } if widens(data_type) => {
            (Risk::Rewriting, "the table may be rewritten under a lock")
        }
        AlterColumnOperation::SetDataType { .. } => (Risk::Breaking, "the new type may be narrower than the old one"),
        AlterColumnOperation::AddGenerated { .. } => (Risk::Rewriting, "a lock, and other values"),
        AlterColumnOperation::DropNotNull
        | AlterColumnOperation::SetDefault { .. }
        | AlterColumnOperation::DropDefault => (Risk::Additive, "a short lock, for new rows alone"),
    }
}

/// Types that hold whatever a column of a like type held before.
fn widens(to: &DataType) -> bool {
    matches!(
        to,
        DataType::Text
            | DataType::Varchar(None)
            | DataType::CharacterVarying(None)
            | DataType::BigInt(None)
            | DataType::Int8(None)
            | DataType::JSONB
            | DataType::DoublePrecision
    ) || matches!(to, DataType::Numeric(info) | DataType::Decimal(info)
        if *info == sqlparser::ast::ExactNumberInfo::None)
}

fn new_column(column: &ColumnDef) -> Verdict {
    let options = || column.options.iter().map(|option| &option.option);
    let default = options().find_map(|option| match option {
        ColumnOption::Default(value) => Some(value),
        _ => None,
    });
    let checked = |option: &ColumnOption| {
        matches!(
            option,
            ColumnOption::PrimaryKey(_)
                | ColumnOption::Unique(_)
                | ColumnOption::ForeignKey(_)
                | ColumnOption::Check(_)
        )
    };
    let computed = |option: &ColumnOption| matches!(option, ColumnOption::Generated { .. } | ColumnOption::Identity(_));
    if options().any(computed) || is_serial(&column.data_type) {
        (Risk::Rewriting, "every row gets a value: the table is rewritten")
    } else if default.is_some_and(|value| !is_constant(value)) {
        (Risk::Rewriting, "a default that may differ from row to row: the table is rewritten")
    } else if default.is_none() && options().any(|option| *option == ColumnOption::NotNull) {
        (Risk::Breaking, "NOT NULL without a default: it fails where there are rows, and so do deployed inserts")
    } else if options().any(checked) {
        (Risk::Rewriting, "all rows are checked under a lock")
    } else {
        (Risk::Additive, "a new column")
    }
}

fn is_serial(data_type: &DataType) -> bool {
    matches!(data_type.to_string().to_lowercase().as_str(), "serial" | "bigserial" | "smallserial")
}

/// Whether a default is one value for all rows that are there: a literal, or the time of the transaction.
fn is_constant(value: &Expr) -> bool {
    match value {
        // A word is a function without brackets in PostgreSQL, TRUE or a text in SQLite.
        Expr::Value(_) | Expr::TypedString(_) | Expr::Interval(_) | Expr::Identifier(_) => true,
        Expr::Cast { expr, .. } | Expr::Nested(expr) | Expr::UnaryOp { expr, .. } => is_constant(expr),
        Expr::Array(array) => array.elem.iter().all(is_constant),
        Expr::Function(function) => {
            let name = function.name.to_string().to_lowercase();
            matches!(
                name.as_str(),
                "now" | "current_timestamp" | "current_date" | "localtimestamp" | "transaction_timestamp"
            )
        }
        _ => false,
    }
}

fn new_names(alter: &AlterTable) -> Vec<String> {
    let names = alter.operations.iter().filter_map(|operation| match operation {
        AlterTableOperation::RenameTable { table_name } => {
            let text = table_name.to_string();
            text.rsplit(' ').next().map(str::to_owned)
        }
        _ => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrations::tools;

    fn risks(sql: &str) -> Vec<Risk> {
        let file = tools::file("1.sql", sql);
        let (migrations, _) = tools::sql::read(&[file]).unwrap();
        judge(&migrations, Engine::Postgres).into_iter().map(|judged| judged.risk).collect()
    }

    #[test]
    fn what_adds_is_additive() {
        for sql in [
            "create table a (id bigserial primary key, b int not null)",
            "alter table a add column b int",
            "alter table a add column b int not null default 0",
            "alter table a add column b timestamptz not null default now()",
            "alter table a add column b text[] default '{}'::text[]",
            "create index concurrently i on a (b)",
            "alter table a add constraint c check (b > 0) not valid",
            "alter table a validate constraint c",
            "alter table a add constraint u unique using index i",
            "alter table a alter column b drop not null",
            "alter type mood add value 'sad'",
            "create view v as select 1",
            "insert into a values (1)",
            "comment on table a is 'b'",
        ] {
            assert_eq!(risks(sql), [Risk::Additive], "{sql}");
        }
    }

    #[test]
    fn what_locks_or_rewrites_is_rewriting() {
        for sql in [
            "create index i on a (b)",
            "create unique index i on a (b)",
            "alter table a alter column b set not null",
            "alter table a alter column b type bigint",
            "alter table a alter column b type text using b::text",
            "alter table a add column b uuid default gen_random_uuid()",
            "alter table a add column b timestamptz default clock_timestamp()",
            "alter table a add column b bigserial",
            "alter table a add column b int generated always as (c + 1) stored",
            "alter table a add column b int references c (id)",
            "alter table a add constraint c check (b > 0)",
            "alter table a add constraint f foreign key (b) references c (id)",
            "update a set b = 1",
            "drop index i",
        ] {
            assert_eq!(risks(sql), [Risk::Rewriting], "{sql}");
        }
    }

    #[test]
    fn what_takes_away_or_cannot_be_read_is_breaking() {
        for sql in [
            "drop table a",
            "alter table a drop column b",
            "alter table a rename column b to c",
            "alter table a rename to b",
            "alter table a alter column b type varchar(10)",
            "alter table a add column b int not null",
            "alter table a enable row level security",
            "alter type mood rename value 'sad' to 'blue'",
            "delete from a",
            "truncate a",
            "drop view v",
            "revoke all on a from b",
            "do $$ begin perform 1; end $$",
            "this is no sql",
        ] {
            assert_eq!(risks(sql), [Risk::Breaking], "{sql}");
        }
        assert_eq!(risks("select 'open"), [Risk::Breaking]);
    }

    #[test]
    fn nothing_is_dangerous_on_a_table_that_the_plan_itself_makes() {
        let sql = "create table a (id int); create index i on a (id); alter table a drop column id; drop table a;
                   create index j on b (id)";
        let mut expected = [Risk::Additive; 5];
        expected[4] = Risk::Rewriting;
        assert_eq!(risks(sql), expected);
    }
}
