//! Conditions: CEL expressions over events (a route's `when`) and over needs (a job's `if`).

use std::collections::BTreeSet;

use cel::common::ast::{EntryExpr, Expr};
use cel::{Context, IdedExpr, Program, Value as CelValue};
use serde_json::Value;

use crate::Problem;

/// A parsed condition.
#[derive(Debug)]
pub struct Condition {
    text: String,
    program: Program,
    paths: BTreeSet<Vec<String>>,
}

/// Why a condition gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("condition `{condition}`: {reason}")]
pub struct ConditionError {
    condition: String,
    reason: String,
}

/// How the needs of a job ended, for `success()` and `failure()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Whether any need was discarded or cancelled, or skipped because a need of its own failed.
    pub failed: bool,
}

impl Condition {
    /// Parses CEL text.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let program = Program::compile(text)
            .map_err(|error| Problem::new(format!("`{text}` is not a CEL expression: {error}")))?;
        let mut paths = BTreeSet::new();
        collect_paths(program.expression(), &mut paths);
        Ok(Self { text: text.to_owned(), program, paths })
    }

    /// The text that it was parsed from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it reads below the given path, for example `["event", "raw"]`, or may do so because it takes something
    /// above it whole (`event["raw"]`).
    pub fn reads(&self, path: &[&str]) -> bool {
        self.paths.iter().any(|read| read.iter().zip(path).all(|(left, right)| left == right))
    }

    /// What it reads that cannot be there. `shape` is an object of all variables, with a value (null will do) wherever
    /// a field exists; below a null anything may be.
    pub fn check(&self, shape: &Value) -> Vec<Problem> {
        let unknown = self.paths.iter().filter_map(|path| unknown_field(path, shape));
        unknown.map(|problem| problem.help_unless_given(&self.text)).collect()
    }

    /// Whether it holds. `variables` is an object; `needs` makes `success()`, `failure()` and `always()` known.
    pub fn holds(&self, variables: &Value, needs: Option<Needs>) -> Result<bool, ConditionError> {
        let mut context = Context::default();
        for (name, value) in variables.as_object().into_iter().flatten() {
            context.add_variable(name.as_str(), value).map_err(|error| self.error(error))?;
        }
        if let Some(Needs { failed }) = needs {
            let added = [
                context.add_function("success", move || !failed),
                context.add_function("failure", move || failed),
                context.add_function("always", || true),
            ];
            added.into_iter().collect::<Result<(), _>>().map_err(|error| self.error(error))?;
        }
        match self.program.execute(&context).map_err(|error| self.error(error))? {
            CelValue::Bool(answer) => Ok(answer),
            other => Err(self.error(format!("the answer is {:?}, not true or false", other.type_of()))),
        }
    }

    fn error(&self, reason: impl std::fmt::Display) -> ConditionError {
        ConditionError { condition: self.text.clone(), reason: reason.to_string() }
    }
}

/// All dotted names in an expression, longest form each: `event.git.sha`, not also `event.git`.
fn collect_paths(expression: &IdedExpr, paths: &mut BTreeSet<Vec<String>>) {
    if let Some(path) = dotted_name(&expression.expr) {
        paths.insert(path);
        return;
    }
    match &expression.expr {
        Expr::Call(call) => {
            call.target.iter().for_each(|target| collect_paths(target, paths));
            call.args.iter().for_each(|argument| collect_paths(argument, paths));
        }
        Expr::Comprehension(inner) => {
            let mut within = BTreeSet::new();
            for part in [&inner.accu_init, &inner.loop_cond, &inner.loop_step, &inner.result] {
                collect_paths(part, &mut within);
            }
            let own = [Some(&inner.iter_var), inner.iter_var2.as_ref(), Some(&inner.accu_var)];
            within.retain(|path| !own.contains(&path.first()));
            paths.append(&mut within);
            collect_paths(&inner.iter_range, paths);
        }
        Expr::List(list) => list.elements.iter().for_each(|element| collect_paths(element, paths)),
        Expr::Map(map) => map.entries.iter().for_each(|entry| collect_entry(&entry.expr, paths)),
        Expr::Struct(structure) => structure.entries.iter().for_each(|entry| collect_entry(&entry.expr, paths)),
        Expr::Select(select) => collect_paths(&select.operand, paths),
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
    }
}

fn collect_entry(entry: &EntryExpr, paths: &mut BTreeSet<Vec<String>>) {
    match entry {
        EntryExpr::StructField(field) => collect_paths(&field.value, paths),
        EntryExpr::MapEntry(entry) => {
            collect_paths(&entry.key, paths);
            collect_paths(&entry.value, paths);
        }
    }
}

fn dotted_name(mut expression: &Expr) -> Option<Vec<String>> {
    let mut path = Vec::new();
    loop {
        match expression {
            Expr::Ident(name) => {
                path.push(name.clone());
                path.reverse();
                return Some(path);
            }
            Expr::Select(select) => {
                path.push(select.field.clone());
                expression = &select.operand.expr;
            }
            _ => return None,
        }
    }
}

/// The problem with a dotted name, if it leaves the known shape.
pub(crate) fn unknown_field(path: &[String], shape: &Value) -> Option<Problem> {
    let mut here = shape;
    for (depth, name) in path.iter().enumerate() {
        let Some(fields) = here.as_object() else {
            return (!here.is_null()).then(|| Problem::new(format!("`{}` has no fields", path[..depth].join("."))));
        };
        let Some(next) = fields.get(name) else {
            let place =
                if depth == 0 { "variable".to_owned() } else { format!("field of `{}`", path[..depth].join(".")) };
            return Some(Problem::unknown(&place, name, fields.keys().map(String::as_str)));
        };
        here = next;
    }
    None
}

impl Problem {
    fn help_unless_given(self, text: &str) -> Self {
        if self.help.is_some() { self } else { self.help(format!("in `{text}`")) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn holds(text: &str, variables: &Value) -> Result<bool, ConditionError> {
        Condition::parse(text).unwrap().holds(variables, Some(Needs { failed: false }))
    }

    #[test]
    fn compares_fields_nulls_and_numbers() {
        let event = json!({"event": {"target": "production", "git": {"sha": null}, "raw": {"n": 3, "big": 9_007_199_254_740_993_u64}}});
        assert!(holds("event.target == 'production'", &event).unwrap());
        assert!(holds("event.git.sha == null", &event).unwrap());
        assert!(holds("event.git.sha != 'abc'", &event).unwrap());
        assert!(holds("event.raw.n > 2", &event).unwrap());
        assert!(holds("event.raw.n >= 3 && event.raw.n < 4.5", &event).unwrap());
        assert!(holds("event.raw.big > 1", &event).unwrap());
        assert!(!holds("has(event.raw.missing)", &event).unwrap());
        assert!(holds("event.target.startsWith('prod') && event.target in ['production']", &event).unwrap());
        assert!(holds("event.target.matches('^pro')", &event).unwrap());
    }

    #[test]
    fn answers_that_are_not_booleans_and_missing_fields_are_errors() {
        let event = json!({"event": {"target": "production"}});
        let error = holds("event.target", &event).unwrap_err().to_string();
        assert!(error.contains("not true or false"), "{error}");
        assert!(holds("event.nothing == 1", &event).is_err());
    }

    #[test]
    fn status_functions_speak_of_the_needs() {
        let condition = Condition::parse("failure() || jobs.plan.pending > 0").unwrap();
        let jobs = json!({"jobs": {"plan": {"pending": 0}}});
        assert!(!condition.holds(&jobs, Some(Needs { failed: false })).unwrap());
        assert!(condition.holds(&jobs, Some(Needs { failed: true })).unwrap());
        assert!(Condition::parse("always()").unwrap().holds(&jobs, Some(Needs { failed: true })).unwrap());
    }

    #[test]
    fn fields_that_do_not_exist_are_found_without_running_the_condition() {
        let shape = json!({"event": {"target": null, "project": {"id": null, "name": null}, "raw": null}});
        let check = |text: &str| Condition::parse(text).unwrap().check(&shape);
        assert_eq!(check("event.project.name == 'app' && event.raw.anything.at.all == 1"), []);
        assert_eq!(check("event.raw.commits.exists(c, c.id == 'x')"), []);
        assert_eq!(
            check("false && event.project.nam == 'app'")[0].to_string(),
            "there is no field of `event.project` named `nam` (did you mean `name`?)"
        );
        assert_eq!(
            check("evnt.target == ''")[0].to_string(),
            "there is no variable named `evnt` (did you mean `event`?)"
        );
    }

    #[test]
    fn what_takes_an_object_whole_may_read_each_of_its_fields() {
        let reads = |text: &str| Condition::parse(text).unwrap().reads(&["event", "raw"]);
        assert!(reads("event.raw.n > 2") && reads("event['raw'].n > 2") && reads("size(event) > 2"));
        assert!(!reads("event.target == 'raw' && event.git.sha != null"));
    }

    #[test]
    fn a_syntax_error_is_a_problem_not_a_panic() {
        for text in ["event.target ==", "((((", "", "'", "\u{0}"] {
            assert!(Condition::parse(text).is_err(), "{text:?}");
        }
    }
}
