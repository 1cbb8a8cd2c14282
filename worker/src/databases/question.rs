//! A question to a live database: one statement that only reads, and the first value of its first row.

use std::time::Duration;

use schemas::Problem;
use serde_json::Value;
use sqlparser::dialect::{Dialect, PostgreSqlDialect, SQLiteDialect};
use sqlparser::tokenizer::{Token, Tokenizer};

use crate::handler::Failure;

/// A longer value is refused: a question is for numbers and words, not for data.
pub const LONGEST_VALUE: usize = 4096;

/// A statement that only reads.
#[derive(Clone, Debug)]
pub struct Question {
    /// The statement, without a semicolon at its end.
    pub statement: String,
    /// The database stops it after this time.
    pub time_limit: Duration,
}

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// No row.
    Empty,
    /// The first column of the first row.
    Value(Value),
}

impl Question {
    /// A question of one statement that begins as only reading ones do. That it does not write all the same (by a
    /// function) is the database's to see to: it is asked in a transaction that cannot.
    pub fn of(statement: &str, time_limit: Duration) -> Result<Self, Problem> {
        let dialects: [&dyn Dialect; 2] = [&PostgreSqlDialect {}, &SQLiteDialect {}];
        let tokens = dialects.into_iter().find_map(|dialect| Tokenizer::new(dialect, statement).tokenize().ok());
        let tokens: Vec<Token> = tokens
            .ok_or_else(|| Problem::new("this is no SQL: a quote or a comment is not closed"))?
            .into_iter()
            .filter(|token| !matches!(token, Token::Whitespace(_)))
            .collect();
        let end = tokens.iter().rposition(|token| *token != Token::SemiColon).map_or(0, |last| last + 1);
        let (tokens, all) = (&tokens[..end], tokens.len());
        if tokens.contains(&Token::SemiColon) {
            return Err(Problem::new("these are several statements; write one, and a job for each other"));
        }
        if !only_reads(tokens) {
            let help = "it begins with SELECT, WITH, VALUES or TABLE, and changes nothing";
            return Err(Problem::new("this statement does not only read").help(help));
        }
        let bare = statement.trim_end_matches(|c: char| c == ';' || c.is_whitespace());
        if end < all && bare.len() == statement.trim_end().len() {
            return Err(Problem::new("a comment stands behind the semicolon; leave out the semicolon"));
        }
        Ok(Self { statement: bare.to_owned(), time_limit })
    }
}

fn only_reads(tokens: &[Token]) -> bool {
    let mut depth = 0_i32;
    let mut first = None;
    for token in tokens {
        match token {
            Token::LParen => depth += 1,
            Token::RParen => depth -= 1,
            Token::Word(word) if word.quote_style.is_none() => {
                let word = word.value.to_uppercase();
                // `WITH ... INSERT`: what stands in brackets is the database's to refuse.
                let writes = matches!(word.as_str(), "INSERT" | "UPDATE" | "DELETE" | "MERGE");
                if first.as_deref() == Some("WITH") && depth == 0 && writes {
                    return false;
                }
                first.get_or_insert(word);
            }
            _ if first.is_none() => return false,
            _ => {}
        }
    }
    matches!(first.as_deref(), Some("SELECT" | "WITH" | "VALUES" | "TABLE"))
}

/// What a database says against a statement; `writes`: because it tried to write.
pub(super) fn refused(said: &str, writes: bool) -> Failure {
    let said = crate::channels::message::cut(said, 500);
    let why = if writes { "the statement tries to write, and here it may only read" } else { "the statement failed" };
    Failure::Discard(anyhow::anyhow!("{why}: {said}"))
}

/// The statement took too long: it may be quicker when the database has less to do.
pub(super) fn too_slow(limit: Duration) -> Failure {
    let limit = schemas::period::write(limit);
    Failure::retry(anyhow::anyhow!(
        "the statement was stopped after {limit}; give it more by `time_limit`, or an index"
    ))
}

/// The value is too long to be looked at.
pub(super) fn too_long() -> Failure {
    Failure::Discard(anyhow::anyhow!("the value is longer than {LONGEST_VALUE} bytes; select something smaller"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(statement: &str) -> Result<String, String> {
        let question = Question::of(statement, Duration::from_secs(1));
        question.map(|question| question.statement).map_err(|problem| problem.message)
    }

    #[test]
    fn one_statement_that_reads_is_a_question() {
        for statement in [
            "select 1",
            "-- how many; guests\n SELECT count(*) FROM guest WHERE name <> ';'",
            "with old as (select 1) select * from old",
            "(select 1) union (select 2)",
            "values (1)",
            "table guest",
            "select \"update\" from guest",
        ] {
            assert_eq!(question(statement).unwrap(), statement);
        }
        assert_eq!(question("select 1 ; \n;").unwrap(), "select 1");
        assert!(question("select 1; -- one").unwrap_err().contains("leave out the semicolon"));
    }

    #[test]
    fn several_statements_are_refused() {
        for statements in ["select 1; select 2", "select 1; drop table guest", "select 1;; commit;"] {
            assert!(question(statements).unwrap_err().contains("several statements"), "{statements}");
        }
    }

    #[test]
    fn what_does_not_only_read_is_refused() {
        for statement in [
            "",
            "-- select 1",
            "insert into guest values (1)",
            "with x as (select 1) insert into guest select * from x",
            "with x as (select 1) delete from guest",
            "set transaction read write",
            "copy (select 1) to program 'sh'",
            "do $$ begin end $$",
            "pragma query_only = off",
            "explain analyze delete from guest",
            "1 select",
        ] {
            assert!(question(statement).unwrap_err().contains("does not only read"), "{statement}");
        }
        assert!(question("select 'open").unwrap_err().contains("not closed"));
    }
}
