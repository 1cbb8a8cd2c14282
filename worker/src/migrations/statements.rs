//! A file's statements, and what may be left of it when it is interrupted.

use sqlparser::dialect::{Dialect, PostgreSqlDialect, SQLiteDialect};
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use crate::databases::Tool;
use crate::migrations::{Engine, Migration};

/// One statement of a file.
pub(super) struct Statement {
    tokens: Vec<TokenWithSpan>,
}

/// What is left of a file that fails, or whose session ends, in its middle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Nothing: it runs whole or not at all, also together with a statement behind it.
    Atomic,
    /// One `CREATE INDEX CONCURRENTLY`, of an index of this name: an invalid index, which can be dropped.
    ConcurrentIndex(String),
    /// Nobody can say from outside how far it came: it commits inside, or cannot run in a transaction.
    Loose,
}

/// The file's statements; none where its text cannot be cut into statements.
pub(super) fn split(sql: &str, engine: Engine) -> Option<Vec<Statement>> {
    let tokens = Tokenizer::new(dialect(engine), sql).tokenize_with_location().ok()?;
    let mut statements = Vec::new();
    let mut current = Statement { tokens: Vec::new() };
    let mut depth = 0_u32;
    for token in tokens {
        if depth == 0 && token.token == Token::SemiColon {
            statements.push(std::mem::replace(&mut current, Statement { tokens: Vec::new() }));
            continue;
        }
        let word = word_of(&token).unwrap_or_default();
        match word.as_str() {
            "BEGIN" if current.has_body() => depth += 1,
            "CASE" if depth > 0 => depth += 1,
            "END" => depth = depth.saturating_sub(1),
            _ => {}
        }
        current.tokens.push(token);
    }
    statements.push(current);
    statements.retain(|statement| statement.words().next().is_some());
    Some(statements)
}

impl Statement {
    /// Its first characters on one line, without comments.
    pub(super) fn excerpt(&self) -> String {
        let is_comment = |token: &&TokenWithSpan| matches!(&token.token, Token::Whitespace(space) if is_comment(space));
        let text: String = self.tokens.iter().filter(|token| !is_comment(token)).map(ToString::to_string).collect();
        let line: Vec<&str> = text.split_whitespace().collect();
        line.join(" ").chars().take(120).collect()
    }

    /// What it means, where that can be read.
    pub(super) fn parse(&self, engine: Engine) -> Option<sqlparser::ast::Statement> {
        let mut parser = Parser::new(dialect(engine)).with_tokens_with_locations(self.tokens.clone());
        let statement = parser.parse_statement().ok()?;
        (parser.peek_token().token == Token::EOF).then_some(statement)
    }

    /// Its unquoted words in upper case; what is no word is an empty one.
    fn words(&self) -> impl Iterator<Item = String> + '_ {
        let tokens = self.tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_)));
        tokens.map(|token| word_of(token).unwrap_or_default())
    }

    /// Whether `BEGIN` in it opens a body and not a transaction.
    fn has_body(&self) -> bool {
        let mut words = self.words();
        words.next().as_deref() == Some("CREATE")
            && words.take(5).any(|word| matches!(word.as_str(), "TRIGGER" | "FUNCTION" | "PROCEDURE"))
    }

    fn controls_the_transaction(&self) -> bool {
        let first = self.words().next().unwrap_or_default();
        matches!(first.as_str(), "BEGIN" | "START" | "COMMIT" | "END" | "ROLLBACK" | "ABORT" | "SAVEPOINT" | "RELEASE")
            || self.words().take(2).eq(["PREPARE", "TRANSACTION"])
    }

    fn is_concurrent(&self) -> bool {
        self.words().any(|word| word == "CONCURRENTLY")
    }

    /// Whether it may stand in a transaction with others, as far as its first words tell.
    fn may_share_a_transaction(&self) -> bool {
        let words: Vec<String> = self.words().take(2).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["ALTER", what] => *what != "SYSTEM" && *what != "DATABASE" && *what != "SUBSCRIPTION",
            ["CREATE" | "DROP", what] => !matches!(*what, "DATABASE" | "TABLESPACE" | "SUBSCRIPTION"),
            [first, ..] => matches!(
                *first,
                "COMMENT"
                    | "INSERT"
                    | "UPDATE"
                    | "DELETE"
                    | "TRUNCATE"
                    | "SELECT"
                    | "WITH"
                    | "GRANT"
                    | "REVOKE"
                    | "SET"
            ),
            [] => true,
        }
    }

    /// The index that it builds without stopping writes.
    fn concurrent_index(&self, engine: Engine) -> Option<String> {
        match self.parse(engine)? {
            sqlparser::ast::Statement::CreateIndex(index) if index.concurrently => {
                // An index lies in its table's schema.
                let schema = index.table_name.0.split_last().map(|(_, schema)| schema).unwrap_or_default();
                let name = index.name?.to_string();
                Some(schema.iter().rev().fold(name, |name, part| format!("{part}.{name}")))
            }
            _ => None,
        }
    }
}

/// What may be left of a file that is sent in one message.
pub(super) fn shape(sql: &str, in_transaction: bool, engine: Engine) -> Shape {
    let Some(statements) = split(sql, engine) else { return Shape::Loose };
    if statements.iter().any(Statement::controls_the_transaction) {
        return Shape::Loose;
    }
    match statements.as_slice() {
        _ if in_transaction => Shape::Atomic,
        [] => Shape::Atomic,
        // SQLite has no message: each statement commits for itself.
        _ if engine == Engine::Sqlite => Shape::Loose,
        [only] if only.is_concurrent() => only.concurrent_index(engine).map_or(Shape::Loose, Shape::ConcurrentIndex),
        [only] if !only.may_share_a_transaction() => Shape::Loose,
        // PostgreSQL makes one transaction of all statements of a message.
        _ => Shape::Atomic,
    }
}

/// Whether an interrupted attempt could leave parts of the file and no row that says so.
pub(crate) fn is_unrecorded(migration: &Migration, tool: Tool, engine: Engine) -> bool {
    let recorded_first = match tool {
        Tool::Sql => !migration.in_transaction,
        Tool::Sqlx => false,
        Tool::Prisma => true,
    };
    !recorded_first && shape(&migration.sql, migration.in_transaction, engine) == Shape::Loose
}

/// Whether it waits for other transactions without stopping anybody, so that it needs no limit for its locks.
pub(super) fn waits_politely(sql: &str, engine: Engine) -> bool {
    split(sql, engine).is_some_and(|statements| statements.iter().any(Statement::is_concurrent))
}

fn dialect(engine: Engine) -> &'static dyn Dialect {
    match engine {
        Engine::Postgres => &PostgreSqlDialect {},
        Engine::Sqlite => &SQLiteDialect {},
    }
}

fn is_comment(space: &sqlparser::tokenizer::Whitespace) -> bool {
    use sqlparser::tokenizer::Whitespace::{MultiLineComment, SingleLineComment};
    matches!(space, SingleLineComment { .. } | MultiLineComment(_))
}

fn word_of(token: &TokenWithSpan) -> Option<String> {
    match &token.token {
        Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_uppercase()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpts(sql: &str, engine: Engine) -> Vec<String> {
        split(sql, engine).unwrap().iter().map(Statement::excerpt).collect()
    }

    #[test]
    fn bodies_of_functions_and_triggers_are_not_cut() {
        let function = "create function f() returns int as $$ begin; select 1; end $$ language sql; select 2";
        assert_eq!(excerpts(function, Engine::Postgres).len(), 2);
        let body = "create function f() returns int begin atomic; select case when true then 1 end; end; select 2;";
        assert_eq!(excerpts(body, Engine::Postgres).len(), 2);
        let trigger = "create trigger t after insert on a begin update b set c = case when 1 then 2 end; delete from d; end;\
                       -- last\ncreate table e (id int);";
        assert_eq!(excerpts(trigger, Engine::Sqlite)[1], "create table e (id int)");
    }

    #[test]
    fn comments_alone_are_no_statement_and_semicolons_in_text_cut_nothing() {
        assert!(excerpts("-- nothing; here\n/* or; here */ ;;", Engine::Postgres).is_empty());
        assert_eq!(excerpts("insert into a values ('x;y'); select 'z'", Engine::Postgres).len(), 2);
        assert!(split("select 'open", Engine::Postgres).is_none());
    }

    #[test]
    fn the_shape_says_what_may_be_left() {
        let of = |sql, in_transaction| shape(sql, in_transaction, Engine::Postgres);
        assert_eq!(of("alter table a add b int", false), Shape::Atomic);
        assert_eq!(of("vacuum a; select 1", false), Shape::Atomic);
        assert_eq!(of("alter table a add b int; commit; select 1", true), Shape::Loose);
        assert_eq!(of("vacuum a", false), Shape::Loose);
        assert_eq!(of("do $$ begin commit; end $$", false), Shape::Loose);
        assert_eq!(of("do $$ begin commit; end $$", true), Shape::Atomic);
        let concurrent = "-- no-transaction\ncreate unique index concurrently if not exists \"A b\" on a (b);";
        assert_eq!(of(concurrent, false), Shape::ConcurrentIndex("\"A b\"".into()));
        assert_eq!(of("create index concurrently i on s.a (b)", false), Shape::ConcurrentIndex("s.i".into()));
        assert_eq!(of("drop index concurrently a", false), Shape::Loose);
        assert_eq!(of("select 'open", true), Shape::Loose);
        assert_eq!(shape("create table a (b int); select 1", false, Engine::Sqlite), Shape::Loose);
    }
}
