//! Conditions: CEL expressions over events (a route's `when`) and over needs (a job's `if`).

use std::collections::BTreeSet;
use std::thread;

use cel::common::ast::{EntryExpr, Expr};
use cel::{Context, IdedExpr, Program, Value as CelValue};
use serde_json::Value;

use crate::Problem;

/// The longest condition, in bytes.
const LONGEST: usize = 4096;

/// How deep an expression may be nested, the operands of a sum one in the other. Evaluating costs a stack of its own for
/// each level.
const DEEPEST: u32 = 24;

/// How many of `all`, `exists`, `map` and `filter` may be one in another, or one after another: each multiplies what the
/// whole costs by the size of a list.
const MOST_LOOPS: u32 = 2;

/// The parser needs up to a hundred kilobytes for each bracket, and reads a hundred of them; in this stack it has room.
const PARSERS_STACK: usize = 64 * 1024 * 1024;

/// What a job's `if` may call, beside what CEL brings along.
pub const OF_NEEDS: [&str; 3] = ["success", "failure", "always"];

/// What people call of what CEL brings along, to be suggested.
const OFTEN_CALLED: [&str; 8] = ["size", "contains", "startsWith", "endsWith", "matches", "int", "string", "timestamp"];

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
        if text.len() > LONGEST {
            return Err(Problem::new(format!("a condition has at most {LONGEST} bytes, this one {}", text.len())));
        }
        let program = with_room(|| parse(text))?;
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

    /// What it reads or calls that cannot be there. `shape` is an object of all variables, with a value (null will do)
    /// wherever a field exists; below a null anything may be. `functions` are those that there are beside CEL's own.
    pub fn check(&self, shape: &Value, functions: &[&str]) -> Vec<Problem> {
        let fields = self.paths.iter().filter_map(|path| unknown_field(path, shape));
        let references = self.program.references();
        let called: BTreeSet<&str> = references.functions().into_iter().collect();
        let unknown = called.into_iter().filter(|name| !functions.contains(name) && !is_of_cel(name));
        let calls =
            unknown.map(|name| Problem::unknown("function", name, functions.iter().chain(&OFTEN_CALLED).copied()));
        fields.chain(calls).map(|problem| problem.help_unless_given(&self.text)).collect()
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

/// Whether CEL brings it along: an operator, or what nobody else may take the name of.
fn is_of_cel(function: &str) -> bool {
    !function.starts_with(|first: char| first.is_alphabetic())
        || Context::default().add_function(function, || true).is_err()
}

/// Runs a parser on a stack of its own.
fn with_room<T: Send>(parser: impl FnOnce() -> Result<T, Problem> + Send) -> Result<T, Problem> {
    thread::scope(|scope| {
        let room = thread::Builder::new().name("condition".into()).stack_size(PARSERS_STACK);
        let parsing = room.spawn_scoped(scope, parser);
        let parsing = parsing.map_err(|error| Problem::new(format!("a condition cannot be parsed now: {error}")))?;
        parsing.join().unwrap_or_else(|_| Err(Problem::new("the parser of conditions cannot read this")))
    })
}

fn parse(text: &str) -> Result<Program, Problem> {
    let program = Program::compile(text).map_err(|error| not_cel(text, &error.to_string()))?;
    let mut waiting = vec![(program.expression(), 1, 0)];
    while let Some((expression, depth, loops)) = waiting.pop() {
        let loops = loops + u32::from(matches!(expression.expr, Expr::Comprehension(_)));
        if depth > DEEPEST {
            let problem = Problem::new(format!("a condition is nested more than {DEEPEST} levels deep"));
            return Err(problem.help("write several routes, or compare fewer things"));
        }
        if loops > MOST_LOOPS {
            let problem = Problem::new(format!("a condition has more than {MOST_LOOPS} loops in one another"));
            return Err(problem.help("loops are `all`, `exists`, `exists_one`, `map` and `filter`"));
        }
        waiting.extend(parts(&expression.expr).into_iter().map(|part| (part, depth + 1, loops)));
    }
    Ok(program)
}

/// The parser draws the text below each thing that it did not understand; the first thing is what matters.
fn not_cel(text: &str, error: &str) -> Problem {
    let first = error.lines().next().unwrap_or_default();
    Problem::new(format!("`{text}` is not a CEL expression: {first}"))
}

/// The expressions right inside of one.
fn parts(expression: &Expr) -> Vec<&IdedExpr> {
    match expression {
        Expr::Call(call) => call.target.iter().map(AsRef::as_ref).chain(&call.args).collect(),
        Expr::Comprehension(inner) => {
            vec![&inner.iter_range, &inner.accu_init, &inner.loop_cond, &inner.loop_step, &inner.result]
        }
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => map.entries.iter().flat_map(|it| entry_parts(&it.expr)).collect(),
        Expr::Struct(structure) => structure.entries.iter().flat_map(|it| entry_parts(&it.expr)).collect(),
        Expr::Select(select) => vec![&select.operand],
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => Vec::new(),
    }
}

fn entry_parts(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

/// All dotted names in an expression, longest form each: `event.git.sha`, not also `event.git`.
fn collect_paths(expression: &IdedExpr, paths: &mut BTreeSet<Vec<String>>) {
    if let Some(path) = dotted_name(&expression.expr) {
        paths.insert(path);
        return;
    }
    if let Expr::Comprehension(inner) = &expression.expr {
        let mut within = BTreeSet::new();
        for part in [&inner.accu_init, &inner.loop_cond, &inner.loop_step, &inner.result] {
            collect_paths(part, &mut within);
        }
        let own = [Some(&inner.iter_var), inner.iter_var2.as_ref(), Some(&inner.accu_var)];
        within.retain(|path| !own.contains(&path.first()));
        paths.append(&mut within);
        collect_paths(&inner.iter_range, paths);
    } else {
        parts(&expression.expr).into_iter().for_each(|part| collect_paths(part, paths));
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
        let check = |text: &str| Condition::parse(text).unwrap().check(&shape, &[]);
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
    fn functions_that_do_not_exist_are_found_without_running_the_condition() {
        let shape = json!({"event": null});
        let check = |text: &str, functions: &[&str]| Condition::parse(text).unwrap().check(&shape, functions);
        let known = "event.a.startsWith('x') && size(event.b) > -1 && !('a' in event.c) && event.d['e'] != null
                     && event.f.all(g, g.h.matches('i') ? int(g.j) % 2 == 1 : timestamp(g.k) < timestamp(g.l))
                     && has(event.m) && event.n.exists_one(o, o.contains('p') || o.endsWith('q'))";
        assert_eq!(check(known, &[]), []);
        assert_eq!(
            check("event.a.startWith('x')", &[])[0].to_string(),
            "there is no function named `startWith` (did you mean `startsWith`?)"
        );
        assert_eq!(check("success() || always()", &OF_NEEDS), []);
        assert_eq!(check("success()", &[]).len(), 1, "a route has no needs");
    }

    #[test]
    fn what_takes_an_object_whole_may_read_each_of_its_fields() {
        let reads = |text: &str| Condition::parse(text).unwrap().reads(&["event", "raw"]);
        assert!(reads("event.raw.n > 2") && reads("event['raw'].n > 2") && reads("size(event) > 2"));
        assert!(!reads("event.target == 'raw' && event.git.sha != null"));
    }

    #[test]
    fn what_is_too_long_too_deep_or_loops_too_often_is_a_problem() {
        let sum = |terms: usize| format!("{} > 1", vec!["1"; terms].join(" + "));
        assert!(Condition::parse(&sum(23)).is_ok());
        let problem = |text: &str| Condition::parse(text).unwrap_err().to_string();
        assert!(problem(&sum(24)).contains("nested more than 24 levels"));
        let in_brackets = |depth: usize| format!("{}true{}", "(".repeat(depth), ")".repeat(depth));
        assert!(Condition::parse(&in_brackets(20)).is_ok());
        assert!(problem(&in_brackets(2000)).contains("Recursion limit"));
        assert!(problem(&format!("'{}' == ''", "x".repeat(4096))).contains("at most 4096 bytes"));
        assert!(Condition::parse("[1].all(x, [1].all(y, x == y))").is_ok());
        assert!(problem("[1].map(x, x).map(x, x).map(x, x) == [1]").contains("more than 2 loops"));
        let many = vec!["event.target == 'x'"; 150].join(" || ");
        assert!(Condition::parse(&many).is_ok(), "alternatives are balanced");
    }

    #[test]
    fn a_syntax_error_is_a_problem_not_a_panic() {
        for text in ["event.target ==", "((((", "", "'", "\u{0}"] {
            assert!(Condition::parse(text).is_err(), "{text:?}");
        }
    }
}
