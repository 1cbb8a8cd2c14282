//! Assertions: a query that reads one value, and what it must be.

use schemars::JsonSchema;
use schemas::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One assertion. Where nothing is said about the value, it must be true.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Assertion {
    /// A query that reads one value.
    pub(crate) sql: String,
    /// The value must be this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    equals: Option<Value>,
    /// The value must be a number, and no smaller one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_least: Option<f64>,
    /// The value must be a number, and no larger one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_most: Option<f64>,
}

impl Assertion {
    /// What is wrong with it, before anything is asked.
    pub(crate) fn check(&self) -> Option<Problem> {
        self.sql.trim().is_empty().then(|| Problem::new("`sql` is empty: write a query that reads one value"))
    }

    /// Why the value that was read is not as it must be; none where it is.
    pub(crate) fn refutes(&self, value: &Value) -> Option<String> {
        let number = value.as_f64();
        let says_nothing = self.equals.is_none() && self.at_least.is_none() && self.at_most.is_none();
        // SQLite knows no other truth than 1.
        if says_nothing && *value != Value::Bool(true) && value.as_i64() != Some(1) {
            return Some(self.words(value, "true"));
        }
        if let Some(wanted) = self.equals.as_ref().filter(|wanted| !same(wanted, value)) {
            return Some(self.words(value, &wanted.to_string()));
        }
        if let Some(least) = self.at_least.filter(|least| number.is_none_or(|number| number < *least)) {
            return Some(self.words(value, &format!("at least {least}")));
        }
        let most = self.at_most.filter(|most| number.is_none_or(|number| number > *most));
        most.map(|most| self.words(value, &format!("at most {most}")))
    }

    fn words(&self, value: &Value, wanted: &str) -> String {
        format!("`{}` answers {value} and not {wanted}", self.sql.trim())
    }
}

/// Numbers are the same whatever their form, `2` and `2.0`.
fn same(wanted: &Value, value: &Value) -> bool {
    match (wanted.as_f64(), value.as_f64()) {
        (Some(wanted), Some(value)) => wanted.total_cmp(&value).is_eq(),
        _ => wanted == value,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refuted(assertion: Value, value: Value) -> bool {
        let assertion: Assertion = serde_json::from_value(assertion).unwrap();
        assertion.refutes(&value).is_some()
    }

    #[test]
    fn a_value_is_what_it_must_be_or_it_is_said_what_it_is() {
        for (assertion, right, wrong) in [
            (
                json!({"sql": "x"}),
                vec![json!(true), json!(1)],
                vec![json!(false), json!(0), json!(null), json!("true")],
            ),
            (json!({"sql": "x", "equals": 2}), vec![json!(2), json!(2.0)], vec![json!(3), json!("2"), json!(null)]),
            (json!({"sql": "x", "equals": "a"}), vec![json!("a")], vec![json!("b"), json!(null)]),
            (json!({"sql": "x", "at_least": 2}), vec![json!(2), json!(2.5)], vec![json!(1), json!(null), json!("3")]),
            (json!({"sql": "x", "at_most": 2}), vec![json!(2), json!(-1)], vec![json!(3), json!(null)]),
            (json!({"sql": "x", "at_least": 1, "at_most": 2}), vec![json!(1)], vec![json!(0), json!(3)]),
        ] {
            for value in right {
                assert!(!refuted(assertion.clone(), value.clone()), "{assertion} {value}");
            }
            for value in wrong {
                assert!(refuted(assertion.clone(), value.clone()), "{assertion} {value}");
            }
        }
    }

    #[test]
    fn a_refusal_names_the_query_the_value_and_what_was_wanted() {
        let assertion: Assertion = serde_json::from_value(json!({"sql": "SELECT 3", "at_least": 5})).unwrap();
        assert_eq!(assertion.refutes(&json!(3)).unwrap(), "`SELECT 3` answers 3 and not at least 5");
    }
}
