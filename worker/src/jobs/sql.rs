//! `sql`: asks a live database one question and says whether the answer is the expected one.
//!
//! Twice is safe: it changes nothing. The statement is one query; `PostgreSQL` gets it in a READ ONLY transaction that is
//! never committed, `SQLite` through a connection that cannot write, and either stops it at its time limit. Retries: the
//! connection, a full or failing-over server, and a statement that took too long; never an answer that is not the
//! expected one: that is what the job is for.

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{Names, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value, json};

use super::plan::check_database;
use crate::channels::message::cut;
use crate::context::Context;
use crate::databases::{Answer, Question};
use crate::handler::{Failure, Handler, Output};

/// A longer time is refused: a question is no report.
const LONGEST: Duration = Duration::from_mins(10);

/// So much of a value is shown.
const SHOWN: usize = 200;

/// The arguments of `sql`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sql {
    /// The database's name in the configuration.
    database: String,
    /// One query. Of its answer only the first column of the first row is looked at.
    statement: String,
    /// What the answer must be like.
    expect: Expect,
    /// The database stops the statement after this time.
    #[serde(default = "time_limit", with = "schemas::period")]
    #[schemars(with = "String")]
    time_limit: Duration,
}

/// What an answer must be like: all that is given.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Expect {
    /// The value is this one: a number, a text, true or false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    equals: Option<Value>,
    /// The value is this number or a larger one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_least: Option<Number>,
    /// The value is this number or a smaller one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_most: Option<Number>,
    /// There is no row, or there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    empty: Option<bool>,
}

fn time_limit() -> Duration {
    Duration::from_secs(30)
}

#[async_trait]
impl Handler for Sql {
    const KIND: &'static str = "sql";
    const SUMMARY: &'static str = "asks a database one question and says whether the answer is the expected one";
    const QUEUE: &'static str = "databases";
    const RETRY: RetryPolicy = RetryPolicy::PROMPT;
    const TIME_LIMIT: Duration = Duration::from_mins(15);

    fn check(&self, names: &Names) -> Vec<Problem> {
        let mut problems = check_database(&self.database, names);
        problems.extend(self.question().err().map(|problem| problem.within("statement")));
        problems.extend(self.expect.problem().map(|problem| problem.within("expect")));
        if self.time_limit > LONGEST {
            problems.push(Problem::new("a question may take at most 10 minutes").within("time_limit"));
        }
        problems
    }

    fn output() -> Value {
        json!({"database": null, "value": null, "found": null})
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let question = self.question().map_err(|problem| Failure::Discard(anyhow::anyhow!("{problem}")))?;
        let answer = cx.world().database(&self.database).await?.ask(&question).await?;
        if let Some(miss) = self.expect.miss(&answer) {
            return Err(Failure::Discard(anyhow::anyhow!("the database `{}`: {miss}", self.database)));
        }
        let (value, found) = match answer {
            Answer::Empty => (Value::Null, false),
            Answer::Value(value) => (shown(value), true),
        };
        Ok(json!({"database": self.database, "value": value, "found": found}))
    }
}

impl Sql {
    fn question(&self) -> Result<Question, Problem> {
        Question::of(&self.statement, self.time_limit)
    }
}

impl Expect {
    fn problem(&self) -> Option<Problem> {
        let compares = self.equals.is_some() || self.at_least.is_some() || self.at_most.is_some();
        let help = "write one of `equals`, `at_least`, `at_most` and `empty`";
        match (self.empty, compares) {
            (None, false) => Some(Problem::new("nothing is expected").help(help)),
            (Some(true), true) => Some(Problem::new("no row, and a value in it, cannot both be").help(help)),
            _ => None,
        }
    }

    /// Why an answer is not as expected.
    fn miss(&self, answer: &Answer) -> Option<String> {
        let value = match (answer, self.empty) {
            (Answer::Empty, Some(true)) => return None,
            (Answer::Empty, _) => return Some("the answer has no row".into()),
            (Answer::Value(value), Some(true)) => {
                return Some(format!("the answer has a row, which begins with {}", words(value)));
            }
            (Answer::Value(value), _) => value,
        };
        if let Some(wanted) = self.equals.as_ref().filter(|wanted| !same(value, wanted)) {
            return Some(format!("the value is {}, not {}", words(value), words(wanted)));
        }
        let least = self.at_least.as_ref().filter(|least| !is_at_least(value, least));
        if let Some(least) = least {
            return Some(format!("the value is {}, not at least {least}", words(value)));
        }
        let most = self.at_most.as_ref().filter(|most| !is_at_most(value, most));
        most.map(|most| format!("the value is {}, not at most {most}", words(value)))
    }
}

/// 1 and 1.0 are the same; so is true and what `SQLite` makes of it.
fn same(value: &Value, wanted: &Value) -> bool {
    match (value, wanted) {
        (Value::Number(_), Value::Number(wanted)) => is_at_least(value, wanted) && is_at_most(value, wanted),
        (Value::Number(number), Value::Bool(wanted)) => number.as_i64() == Some((*wanted).into()),
        _ => value == wanted,
    }
}

fn is_at_least(value: &Value, least: &Number) -> bool {
    match (value.as_i64(), least.as_i64()) {
        (Some(value), Some(least)) => value >= least,
        _ => value.as_f64().zip(least.as_f64()).is_some_and(|(value, least)| value >= least),
    }
}

fn is_at_most(value: &Value, most: &Number) -> bool {
    match (value.as_i64(), most.as_i64()) {
        (Some(value), Some(most)) => value <= most,
        _ => value.as_f64().zip(most.as_f64()).is_some_and(|(value, most)| value <= most),
    }
}

fn words(value: &Value) -> String {
    cut(&value.to_string(), SHOWN)
}

/// The value as it stands in the output: numbers, and the beginnings of texts.
fn shown(value: Value) -> Value {
    match value {
        Value::String(text) => cut(&text, SHOWN).into(),
        Value::Array(_) | Value::Object(_) => words(&value).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn miss(expect: Value, answer: Option<Value>) -> Option<String> {
        let expect: Expect = serde_json::from_value(expect).unwrap();
        assert!(expect.problem().is_none());
        expect.miss(&answer.map_or(Answer::Empty, Answer::Value))
    }

    #[test]
    fn values_are_compared_by_what_they_are() {
        assert_eq!(miss(json!({"equals": 3}), Some(json!(3.0))), None);
        assert_eq!(miss(json!({"equals": true}), Some(json!(1))), None);
        assert_eq!(miss(json!({"equals": "3"}), Some(json!(3))).unwrap(), "the value is 3, not \"3\"");
        assert_eq!(miss(json!({"at_least": 1, "at_most": 3}), Some(json!(3))), None);
        assert_eq!(
            miss(json!({"at_least": 1, "at_most": 3}), Some(json!(4))).unwrap(),
            "the value is 4, not at most 3"
        );
        assert_eq!(miss(json!({"at_least": 0.5}), Some(json!(0.4))).unwrap(), "the value is 0.4, not at least 0.5");
        let large = json!(9_007_199_254_740_993_i64);
        assert!(miss(json!({"at_most": 9_007_199_254_740_992_i64}), Some(large)).is_some());
        for no_number in [json!(null), json!("9"), json!([9])] {
            assert!(miss(json!({"at_least": 1}), Some(no_number)).unwrap().contains("not at least 1"));
        }
    }

    #[test]
    fn rows_that_are_there_or_not_are_expected_or_not() {
        assert_eq!(miss(json!({"empty": true}), None), None);
        assert_eq!(miss(json!({"empty": false}), Some(json!(null))), None);
        assert_eq!(miss(json!({"empty": false}), None).unwrap(), "the answer has no row");
        assert_eq!(miss(json!({"equals": 1}), None).unwrap(), "the answer has no row");
        let long = miss(json!({"empty": true}), Some("x".repeat(999).into())).unwrap();
        assert!(long.len() < 300, "{long}");
    }

    #[test]
    fn an_expectation_of_nothing_and_one_that_contradicts_itself_are_problems() {
        let problem = |expect: Value| serde_json::from_value::<Expect>(expect).unwrap().problem();
        assert!(problem(json!({})).is_some() && problem(json!({"empty": true, "at_least": 1})).is_some());
        assert!(problem(json!({"empty": false, "at_least": 1})).is_none());
    }
}
