//! Templates: `{{ ... }}` over events and inputs.

use schemas::Template;
use serde_json::Value;

use super::conditions::{full, shape};
use super::{Corpus, kept_seeds};

/// What a template makes is not longer, in bytes of JSON.
const LONGEST_OUTPUT: usize = 1024 * 1024;

/// Templates are read and filled in within bounds; one that was checked reads no field that is not there.
pub fn template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    let Ok(template) = Template::parse(value.clone()) else { return };
    let problems = template.check(&shape());
    let reads_raw = template.reads(&["event", "raw"]);
    let (first, second) = (template.render(&full()), template.render(&full()));
    assert_eq!(first.as_ref().ok(), second.as_ref().ok(), "{text}");
    match first {
        Ok(made) => {
            let made = serde_json::to_string(&made).expect("JSON");
            assert!(made.len() <= LONGEST_OUTPUT.max(text.len() * 6), "{} bytes of {text:?}", made.len());
            if !text.contains('{') {
                assert_eq!(made, serde_json::to_string(&value).expect("JSON"), "text without a template is changed");
            }
        }
        Err(error) if problems.is_empty() && !reads_raw && !text.contains(['[', '|', '%']) => {
            let error = error.to_string();
            // Fields of what is no variable (`-1.git`) are nothing that a check of names can know.
            let names_a_variable = ["`event", "`inputs"].iter().any(|name| error.contains(name));
            let unknown = error.contains("undefined") || error.contains("unknown");
            assert!(!(unknown && names_a_variable), "it was checked, and yet: {error}");
        }
        Err(_) => {}
    }
}

/// What to begin with.
pub fn corpus() -> Corpus {
    Corpus {
        seeds: kept_seeds("template"),
        words: &[
            "{{",
            "}}",
            "{{ event.git.sha }}",
            "{{ inputs.count }}",
            "event",
            ".raw",
            "['git']",
            "|upper",
            "|length",
            "|default('')",
            "|replace('a', 'aa')",
            "|join(',')",
            "|indent(9)",
            "|tojson",
            "|list",
            "|batch(3)",
            "|format",
            "|round(3)",
            "range(9)",
            " * 999",
            " ~ ",
            " + ",
            " ** 9",
            " // 0",
            " % 0",
            "[1:2]",
            "[::-1]",
            " if true else ",
            " is defined",
            " in ",
            "{% if true %}",
            "{% endif %}",
            "{% for x in range(9) %}",
            "{% endfor %}",
            "{% set x = x ~ x %}",
            "{% block a %}",
            "{% endblock %}",
            "{{ self.a() }}",
            "{% include 'a' %}",
            "{# ",
            " #}",
            "dict(a=1)",
            "debug()",
            "namespace(a=1)",
        ],
        pairs: &[
            ("(", ")"),
            ("[", "]"),
            ("{'a':", "}"),
            ("{\"a\":", "}"),
            ("not ", ""),
            ("-", ""),
            ("{% if true %}", "{% endif %}"),
            ("{% for x in range(99) %}", "{% endfor %}"),
        ],
    }
}
