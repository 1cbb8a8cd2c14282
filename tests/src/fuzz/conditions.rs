//! Conditions: CEL over events.

use schemas::Condition;
use serde_json::{Value, json};

use super::{Corpus, kept_seeds};

/// What the checks of routes know of an event: null where anything may stand below.
pub(super) fn shape() -> Value {
    let mut shape = full();
    shape["event"]["raw"] = Value::Null;
    shape
}

/// An event that has everything that the shape names.
pub(super) fn full() -> Value {
    json!({
        "event": {
            "id": "0198", "source": "github", "type": "github.push", "subject": "refs/heads/main",
            "time": "2026-11-20T10:00:00Z", "ref": "refs/heads/main", "target": "production", "url": "https://example.com",
            "state": "success", "project": {"id": "prj_1", "name": "app"}, "repository": {"id": "1", "full_name": "a/b"},
            "git": {"sha": "7fd1a60b01f91b314f59955a4e4d4e80d8edf11d", "ref": "main"}, "actor": {"id": "1", "login": "ada"},
            "raw": {"commits": [{"id": "1", "n": 3}, {"id": "2", "n": 4.5}], "deep": {"er": [[1], null, true]}, "big": u64::MAX},
        },
        "inputs": {"ref": "main", "count": 3, "dry": true},
    })
}

/// Conditions are read and evaluated within bounds; one that was checked reads no field that is not there.
pub fn condition(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(condition) = Condition::parse(text) else { return };
    assert_eq!(condition.text(), text);
    let reads_raw = condition.reads(&["event", "raw"]);
    let problems = condition.check(&shape(), &[]);
    let again = Condition::parse(text).expect("it was read before").check(&shape(), &[]);
    assert_eq!(problems, again, "{text}");
    let (first, second) = (condition.holds(&full(), None), condition.holds(&full(), None));
    assert_eq!(first.as_ref().ok(), second.as_ref().ok(), "{text}");
    if let Err(error) = first
        && problems.is_empty()
        && !reads_raw
        && !text.contains(['[', '{'])
    // What is looked up by a computed name only shows then.
    {
        let error = error.to_string();
        assert!(!error.contains("No such key"), "it was checked, and yet: {error}");
    }
}

/// What to begin with.
pub fn corpus() -> Corpus {
    Corpus {
        seeds: kept_seeds("condition"),
        words: &[
            "event",
            ".target",
            ".raw",
            ".git.sha",
            "['git']",
            "inputs.ref",
            " == ",
            " != ",
            " && ",
            " || ",
            " ? ",
            " : ",
            "!",
            "-",
            " + ",
            " in ",
            "null",
            "true",
            "''",
            "[]",
            "{}",
            "has(event.raw)",
            ".exists(x, x)",
            ".map(x, x + x)",
            ".all(x, x > 1)",
            ".filter(x, true)",
            "size(",
            ".matches('(a*)*b')",
            ".startsWith('a')",
            "\"\"\"",
            "1.5",
            "1u",
            "b'a'",
            "timestamp(event.time)",
            "duration('1h')",
            "always()",
            "event{a: 1}",
            "?.",
            "[?0]",
        ],
        pairs: &[
            ("(", ")"),
            ("[", "]"),
            ("{1:", "}"),
            ("!", ""),
            ("-", ""),
            ("true ? ", " : false"),
            ("[1].map(x, ", ")"),
            ("size(", ")"),
            ("event[", "]"),
        ],
    }
}
