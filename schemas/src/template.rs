//! Templates: the `{{ ... }}` in a route's or runbook's `with`.
//!
//! A text that is one expression takes that expression's value as it is, so that a number stays a number. A template
//! that needs what is null or unknown fails by name; it never becomes an empty string.

use std::collections::HashSet;
use std::sync::LazyLock;

use minijinja::value::ValueKind;
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde_json::Value;

use crate::Problem;
use crate::condition::unknown_field;

/// The longest text with a template in it, in bytes: the parser needs a stack for what is nested.
const LONGEST: usize = 2000;

/// How deep brackets stand in one another: for each level the parser takes some 20 KiB of stack where it is not optimized.
const DEEPEST: usize = 24;

/// So many instructions and no more: a loop over what an event brings ends.
const FUEL: u64 = 50_000;

/// The longest text that a template makes, in bytes.
const LONGEST_OUTPUT: usize = 256 * 1024;

/// The statements that there are. `set` is none of them: a text that is added to itself a few times fills any memory.
const STATEMENTS: [&str; 6] = ["if", "elif", "else", "endif", "for", "endfor"];

/// Filters that make much out of little.
const MULTIPLIERS: [&str; 6] = ["batch", "format", "indent", "join", "replace", "slice"];

/// A JSON value with templates in its texts, all of them parsed.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Value);

/// A template that could not be rendered.
#[derive(Debug, thiserror::Error)]
#[error("`{template}`: {reason}")]
pub struct TemplateError {
    template: String,
    reason: String,
}

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(environment);

fn environment<'source>() -> Environment<'source> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    MULTIPLIERS.iter().for_each(|name| environment.remove_filter(name));
    environment.add_filter("join", join);
    environment.add_filter("replace", replace);
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::None | ValueKind::Undefined => {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, "a value that it needs is null"))
        }
        _ => minijinja::escape_formatter(out, state, value),
    });
    environment
}

/// `list|join(', ')`.
fn join(list: Vec<String>, between: Option<&str>) -> Result<String, minijinja::Error> {
    bounded(list.join(between.unwrap_or_default()))
}

/// `text|replace('from', 'to')`.
fn replace(text: &str, from: &str, to: &str) -> Result<String, minijinja::Error> {
    let times = text.matches(from).count();
    if times.saturating_mul(to.len()) > LONGEST_OUTPUT {
        return Err(too_long());
    }
    bounded(text.replace(from, to))
}

fn bounded(text: String) -> Result<String, minijinja::Error> {
    if text.len() > LONGEST_OUTPUT { Err(too_long()) } else { Ok(text) }
}

fn too_long() -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, format!("it makes more than {LONGEST_OUTPUT} bytes"))
}

impl Template {
    /// Takes a value apart and parses every text in it.
    pub fn parse(value: Value) -> Result<Self, Problem> {
        each_text(&value, &mut |text| variables_of(text).map(|_| ()))?;
        Ok(Self(value))
    }

    /// The variables that it reads and that cannot be there. `shape` is as for [`crate::Condition::check`].
    pub fn check(&self, shape: &Value) -> Vec<Problem> {
        let mut problems = Vec::new();
        let found: Result<(), Problem> = each_text(&self.0, &mut |text| {
            for name in variables_of(text)? {
                let path: Vec<String> = name.split('.').map(str::to_owned).collect();
                problems.extend(unknown_field(&path, shape));
            }
            Ok(())
        });
        problems.extend(found.err());
        problems
    }

    /// Whether it reads below the given path, for example `["event", "raw"]`, or may do so because it takes something
    /// above it whole (`event["raw"]`).
    pub fn reads(&self, path: &[&str]) -> bool {
        let mut reads = false;
        let parsed: Result<(), Problem> = each_text(&self.0, &mut |text| {
            reads |=
                variables_of(text)?.iter().any(|name| name.split('.').zip(path).all(|(left, right)| left == *right));
            Ok(())
        });
        reads || parsed.is_err()
    }

    /// Fills it in. `variables` is an object.
    pub fn render(&self, variables: &Value) -> Result<Value, TemplateError> {
        render_value(&self.0, variables)
    }
}

/// Parses a text; the dotted names that it reads.
fn variables_of(text: &str) -> Result<HashSet<String>, Problem> {
    if is_plain(text) {
        return Ok(HashSet::new());
    }
    if text.len() > LONGEST {
        return Err(Problem::new(format!(
            "a text with a template in it has at most {LONGEST} bytes, this one {}",
            text.len()
        )));
    }
    if is_deep(text) {
        return Err(Problem::new(format!("brackets in a template stand at most {DEEPEST} deep in one another")));
    }
    if let Some(other) = statements(text).find(|word| !STATEMENTS.contains(word)) {
        let problem = Problem::new(format!("templates have no statement `{other}`"));
        return Err(problem.help("there are `if`, `elif`, `else` and `for`"));
    }
    match environment().template_from_str(text) {
        Ok(template) => Ok(template.undeclared_variables(true)),
        Err(error) => Err(Problem::new(format!("`{text}` is not a template: {}", without_place(&error)))),
    }
}

/// Whether there is no template in it.
fn is_plain(text: &str) -> bool {
    !text.contains("{{") && !text.contains("{%")
}

/// Whether more brackets are open at once than may be; those in quotes count too, which hurts nobody.
fn is_deep(text: &str) -> bool {
    let mut open = 0_usize;
    text.bytes().any(|byte| {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        open > DEEPEST
    })
}

/// The words with which statements begin.
fn statements(text: &str) -> impl Iterator<Item = &str> {
    text.split("{%").skip(1).map(|rest| {
        let rest = rest.trim_start_matches(['-', '+']).trim_start();
        &rest[..rest.find(|char: char| !char.is_ascii_alphanumeric() && char != '_').unwrap_or(rest.len())]
    })
}

fn each_text(value: &Value, visit: &mut impl FnMut(&str) -> Result<(), Problem>) -> Result<(), Problem> {
    match value {
        Value::String(text) => visit(text),
        Value::Array(items) => items.iter().try_for_each(|item| each_text(item, visit)),
        Value::Object(fields) => {
            fields.iter().try_for_each(|(name, field)| each_text(field, visit).map_err(|problem| problem.within(name)))
        }
        _ => Ok(()),
    }
}

fn render_value(value: &Value, variables: &Value) -> Result<Value, TemplateError> {
    match value {
        Value::String(text) => render_text(text, variables)
            .map_err(|error| TemplateError { template: text.clone(), reason: without_place(&error) }),
        Value::Array(items) => items.iter().map(|item| render_value(item, variables)).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(name, field)| Ok((name.clone(), render_value(field, variables)?))).collect()
        }
        other => Ok(other.clone()),
    }
}

fn render_text(text: &str, variables: &Value) -> Result<Value, minijinja::Error> {
    if is_plain(text) {
        return Ok(Value::String(text.to_owned()));
    }
    let context = minijinja::Value::from(minijinja::value::Serde(variables));
    let Some(expression) = sole_expression(text) else {
        return bounded(ENVIRONMENT.render_str(text, context)?).map(Value::String);
    };
    let value = ENVIRONMENT.compile_expression_owned(expression.to_owned())?.eval(context)?;
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{expression} is null")))
        }
        _ if value.as_str().is_some_and(|text| text.len() > LONGEST_OUTPUT) => Err(too_long()),
        _ => serde_json::to_value(&value)
            .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string())),
    }
}

/// The expression of a text that is nothing but `{{ expression }}`.
fn sole_expression(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    (!inner.contains("{{") && !inner.contains("}}") && !inner.contains("{%")).then(|| inner.trim())
}

/// The engine's message without its file and line, which name nothing that a person wrote.
fn without_place(error: &minijinja::Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(value: Value, variables: &Value) -> Result<Value, TemplateError> {
        Template::parse(value).unwrap().render(variables)
    }

    #[test]
    fn a_sole_expression_keeps_its_type_and_text_around_it_makes_text() {
        let variables = json!({"inputs": {"n": 3, "ref": "abc", "list": [1, 2]}});
        let template = json!({"n": "{{ inputs.n }}", "text": "v{{ inputs.n }}", "all": ["{{ inputs.list }}", 7, true]});
        assert_eq!(render(template, &variables).unwrap(), json!({"n": 3, "text": "v3", "all": [[1, 2], 7, true]}));
    }

    #[test]
    fn null_and_unknown_values_fail_by_name() {
        let variables = json!({"event": {"git": {"sha": null}}});
        for text in ["{{ event.git.sha }}", "at {{ event.git.sha }}", "{{ event.git.nothing }}", "x{{ nothing }}"] {
            let error = render(json!(text), &variables).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        let error = render(json!("{{ event.git.sha }}"), &variables).unwrap_err().to_string();
        assert_eq!(error, "`{{ event.git.sha }}`: event.git.sha is null");
    }

    #[test]
    fn braces_in_data_are_not_templates() {
        let variables = json!({"event": {"title": "{{ inputs.secret }}"}});
        assert_eq!(render(json!("{{ event.title }}"), &variables).unwrap(), json!("{{ inputs.secret }}"));
    }

    #[test]
    fn unknown_fields_are_found_before_anything_runs() {
        let template = Template::parse(json!({"ref": "{{ event.git.sah }}"})).unwrap();
        let shape = json!({"event": {"git": {"sha": null}}});
        assert_eq!(
            template.check(&shape)[0].to_string(),
            "there is no field of `event.git` named `sah` (did you mean `sha`?)"
        );
    }

    #[test]
    fn what_a_template_reads_is_known_before_it_is_rendered() {
        let reads = |text: &str| Template::parse(json!({"list": [text]})).unwrap().reads(&["event", "raw"]);
        assert!(reads("{{ event.raw.commits[0].id }}") && reads("{{ event['raw'].n }}"));
        assert!(reads("{% for key in event %}{{ key }}{% endfor %}"));
        assert!(!reads("{{ event.git.sha }}") && !reads("event.raw") && !reads("{{ inputs.ref }}"));
    }

    #[test]
    fn loops_lengths_and_statements_are_bounded() {
        let fails = |text: &str| match Template::parse(json!(text)) {
            Ok(template) => {
                template.render(&json!({"event": {"ref": "a/b", "list": ["x", "y"]}})).unwrap_err().to_string()
            }
            Err(problem) => problem.to_string(),
        };
        assert!(
            fails("{% for x in range(99999) %}{% for y in range(99999) %}{% endfor %}{% endfor %}").contains("fuel")
        );
        assert!(fails("{% set x = 1 %}").contains("no statement `set`"));
        assert!(fails("{%- block a %}").contains("no statement `block`"));
        assert!(fails("{{ event.ref|indent(99999999999999999) }}").contains("indent"));
        assert!(fails("{{ ('a' * 99999)|replace('a', 'aaaa') }}").contains("more than"));
        assert!(fails("{{ 'a' * 999999 }}").contains("more than"));
        assert!(fails(&format!("{{{{ event.ref }}}}{}", "x".repeat(2000))).contains("at most 2000 bytes"));
        let variables = json!({"event": {"ref": "a/b", "list": ["x", "y"]}});
        let template = json!(["{{ event.ref|replace('/', '-') }}", "{{ event.list|join(', ') }}", "x".repeat(9999)]);
        assert_eq!(render(template, &variables).unwrap(), json!(["a-b", "x, y", "x".repeat(9999)]));
    }

    #[test]
    fn brackets_stand_in_one_another_up_to_a_bound() {
        let nested = |open: &str, close: &str, deep| format!("{{{{ {}1{} }}}}", open.repeat(deep), close.repeat(deep));
        for (open, close) in [("a(", ")"), ("(", ")"), ("[", "]"), ("{'a':", "}"), ("a[", "]")] {
            assert!(Template::parse(json!(nested(open, close, DEEPEST - 2))).is_ok(), "{open}");
            let problem = Template::parse(json!(nested(open, close, DEEPEST - 1))).unwrap_err();
            assert!(problem.to_string().contains("at most 24 deep"), "{problem}");
        }
    }

    #[test]
    fn a_broken_template_is_a_problem() {
        let problem = Template::parse(json!({"with": {"ref": "{{ inputs."}})).unwrap_err();
        assert_eq!(problem.path, ["with", "ref"]);
    }
}
