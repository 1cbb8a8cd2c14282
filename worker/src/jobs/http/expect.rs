//! What an answer must be like.

use std::collections::BTreeMap;

use reqwest::header::HeaderMap;
use schemars::JsonSchema;
use schemas::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What an answer must be like: all of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expect {
    /// The status: `200`, `"2xx"`, `"200-204"`, or a list of these; without it, `"2xx"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<Statuses>,
    /// Headers, and what each must hold somewhere in it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) headers: BTreeMap<String, String>,
    /// What the body must hold somewhere in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) contains: Option<String>,
    /// What must stand in the body, which is JSON: values by JSON pointers, `{ "/checks/database" = "ok" }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) json: BTreeMap<String, Value>,
    /// How many milliseconds it may take until the whole answer is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) max_millis: Option<u32>,
}

/// One status or several.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Statuses {
    /// One.
    One(Status),
    /// Any of these.
    Any(Vec<Status>),
}

/// A status, or a range of them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Status {
    /// `200`
    Code(u16),
    /// `"2xx"` or `"200-204"`
    Range(String),
}

/// What came.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// The body, or its beginning.
    pub(super) body: Vec<u8>,
    /// Whether that is all of it.
    pub(super) whole: bool,
    pub(super) millis: u64,
}

impl Status {
    /// First to last.
    fn range(&self) -> Option<(u16, u16)> {
        let (first, last) = match self {
            Self::Code(code) => (*code, *code),
            Self::Range(text) => match (text.strip_suffix("xx"), text.split_once('-')) {
                (Some(class), _) => {
                    let class = class.parse::<u16>().ok().filter(|class| (1..=5).contains(class))?;
                    (class * 100, class * 100 + 99)
                }
                (None, Some((first, last))) => (first.trim().parse().ok()?, last.trim().parse().ok()?),
                (None, None) => text.parse().ok().map(|code| (code, code))?,
            },
        };
        (100 <= first && first <= last && last <= 599).then_some((first, last))
    }

    fn words(&self) -> String {
        match self {
            Self::Code(code) => code.to_string(),
            Self::Range(text) => text.clone(),
        }
    }
}

impl Expect {
    fn statuses(&self) -> Vec<Status> {
        match &self.status {
            None => vec![Status::Range("2xx".into())],
            Some(Statuses::One(one)) => vec![one.clone()],
            Some(Statuses::Any(all)) => all.clone(),
        }
    }

    /// What is wrong with it.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let statuses = self.statuses();
        if statuses.is_empty() || statuses.iter().any(|status| status.range().is_none()) {
            let help = "write `200`, `\"2xx\"`, `\"200-204\"`, or a list of these";
            problems.push(Problem::new("this is no status").help(help).within("status"));
        }
        for pointer in self.json.keys().filter(|pointer| !pointer.is_empty() && !pointer.starts_with('/')) {
            let help = "write `/checks/database`";
            problems.push(Problem::new(format!("`{pointer}` is no JSON pointer")).help(help).within("json"));
        }
        problems.into_iter().map(|problem| problem.within("expect")).collect()
    }

    /// Why an answer is not as expected.
    pub(super) fn miss(&self, answer: &Answer) -> Option<String> {
        let ranges: Vec<(u16, u16)> = self.statuses().iter().filter_map(Status::range).collect();
        if !ranges.iter().any(|(first, last)| (*first..=*last).contains(&answer.status)) {
            let wanted: Vec<String> = self.statuses().iter().map(Status::words).collect();
            return Some(format!("it answered {}, not {}", answer.status, wanted.join(" or ")));
        }
        if let Some(most) = self.max_millis.filter(|most| answer.millis > (*most).into()) {
            return Some(format!("it took {} ms, and {most} are allowed", answer.millis));
        }
        let header = self.headers.iter().find_map(|(name, wanted)| missing_header(answer, name, wanted));
        header.or_else(|| self.missing_text(answer)).or_else(|| self.missing_json(answer))
    }

    fn missing_text(&self, answer: &Answer) -> Option<String> {
        let wanted = self.contains.as_ref()?;
        let there = String::from_utf8_lossy(&answer.body).contains(wanted.as_str());
        (!there).then(|| {
            let part = if answer.whole { "body does not hold" } else { "first 256 KiB do not hold" };
            format!("its {part} `{wanted}`")
        })
    }

    fn missing_json(&self, answer: &Answer) -> Option<String> {
        if self.json.is_empty() {
            return None;
        }
        if !answer.whole {
            return Some("its body is larger than 256 KiB, so that it is not read as JSON".into());
        }
        let Ok(body) = serde_json::from_slice::<Value>(&answer.body) else { return Some("its body is no JSON".into()) };
        self.json.iter().find_map(|(pointer, wanted)| match body.pointer(pointer) {
            Some(found) if found == wanted => None,
            Some(found) => Some(format!("its `{pointer}` is {}, not {wanted}", cut(found))),
            None => Some(format!("its body has no `{pointer}`")),
        })
    }
}

fn missing_header(answer: &Answer, name: &str, wanted: &str) -> Option<String> {
    let mut values = answer.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let there = values.any(|value| value.contains(wanted));
    (!there).then(|| format!("its header `{name}` does not hold `{wanted}`"))
}

fn cut(value: &Value) -> String {
    crate::channels::message::cut(&value.to_string(), 200)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn miss(expect: Value, status: u16, body: &str) -> Option<String> {
        let expect: Expect = serde_json::from_value(expect).unwrap();
        assert!(expect.problems().is_empty(), "{:?}", expect.problems());
        let headers = HeaderMap::from_iter([("content-type".parse().unwrap(), "application/json; x".parse().unwrap())]);
        expect.miss(&Answer { status, headers, body: body.into(), whole: true, millis: 120 })
    }

    #[test]
    fn statuses_are_codes_ranges_or_lists_of_them() {
        assert_eq!(miss(json!({}), 204, ""), None);
        assert_eq!(miss(json!({}), 301, "").unwrap(), "it answered 301, not 2xx");
        assert_eq!(miss(json!({"status": 404}), 404, ""), None);
        assert_eq!(miss(json!({"status": "300-399"}), 399, ""), None);
        assert_eq!(miss(json!({"status": [200, "4xx"]}), 418, ""), None);
        assert_eq!(miss(json!({"status": [200, "4xx"]}), 500, "").unwrap(), "it answered 500, not 200 or 4xx");
        for wrong in [json!([]), json!(99), json!("9xx"), json!("200-"), json!("300-200"), json!("ok"), json!(600)] {
            let expect: Expect = serde_json::from_value(json!({"status": wrong})).unwrap();
            assert_eq!(expect.problems().len(), 1, "{wrong}");
        }
    }

    #[test]
    fn headers_and_bodies_are_looked_through() {
        assert_eq!(miss(json!({"headers": {"Content-Type": "application/json"}}), 200, ""), None);
        assert!(miss(json!({"headers": {"content-type": "text/html"}}), 200, "").unwrap().contains("`text/html`"));
        assert!(miss(json!({"headers": {"etag": ""}}), 200, "").unwrap().contains("`etag`"));
        assert_eq!(miss(json!({"contains": "sha-123"}), 200, "<p>sha-123</p>"), None);
        assert_eq!(miss(json!({"contains": "sha-1"}), 200, "login").unwrap(), "its body does not hold `sha-1`");
    }

    #[test]
    fn json_is_compared_at_its_pointers_by_value_and_type() {
        let body = r#"{"checks": {"db": "ok", "n": 1}, "a/b": [true]}"#;
        assert_eq!(miss(json!({"json": {"/checks/db": "ok", "/a~1b/0": true}}), 200, body), None);
        assert_eq!(miss(json!({"json": {"/checks/n": "1"}}), 200, body).unwrap(), "its `/checks/n` is 1, not \"1\"");
        assert_eq!(miss(json!({"json": {"/checks/x": 1}}), 200, body).unwrap(), "its body has no `/checks/x`");
        assert_eq!(miss(json!({"json": {"/checks/x": 1}}), 200, "<p>").unwrap(), "its body is no JSON");
        let expect: Expect = serde_json::from_value(json!({"json": {"checks.db": 1}})).unwrap();
        assert_eq!(expect.problems().len(), 1);
    }

    #[test]
    fn an_answer_that_is_late_or_too_large_is_missed() {
        assert_eq!(miss(json!({"max_millis": 120}), 200, ""), None);
        assert_eq!(miss(json!({"max_millis": 119}), 200, "").unwrap(), "it took 120 ms, and 119 are allowed");
        let expect: Expect = serde_json::from_value(json!({"json": {"": {}}})).unwrap();
        let large = Answer { status: 200, headers: HeaderMap::new(), body: b"{}".into(), whole: false, millis: 1 };
        assert!(expect.miss(&large).unwrap().contains("larger than"));
    }
}
