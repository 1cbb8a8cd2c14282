//! Reads `name=value` of `run --with` by the declared types: of a job kind by its schema, of a runbook by its inputs.

use schemas::Catalog;
use schemas::runbook::InputType;
use serde_json::{Map, Value};

use crate::config::Config;
use crate::failure::Failure;

/// One `--with`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct With {
    name: String,
    given: Given,
}

#[derive(Clone, Debug, PartialEq)]
enum Given {
    /// `name=text`.
    Text(String),
    /// `name:=json`.
    Json(Value),
}

impl std::str::FromStr for With {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, or NAME:=JSON")?;
        let (name, given) = match name.strip_suffix(':') {
            Some(name) => {
                let value = serde_json::from_str(value).map_err(|error| format!("this is not JSON: {error}"))?;
                (name, Given::Json(value))
            }
            None => (name, Given::Text(value.to_owned())),
        };
        if name.is_empty() { Err("the name is missing".into()) } else { Ok(Self { name: name.to_owned(), given }) }
    }
}

/// The arguments or inputs of `what`.
pub(crate) fn values(
    what: &str,
    given: Vec<With>,
    catalog: &Catalog,
    config: Option<&Config>,
) -> Result<Map<String, Value>, Failure> {
    let schema = catalog.kind(what).ok().map(|info| (info.schema)());
    let inputs = config.and_then(|config| config.startable.runbooks.get(what)).map(schemas::Runbook::inputs);
    let mut values = Map::new();
    for With { name, given } in given {
        let value = match (given, &schema, inputs.and_then(|inputs| inputs.get(&name))) {
            (Given::Json(value), ..) => value,
            (Given::Text(text), _, Some(input)) => input.read(&text),
            (Given::Text(text), Some(schema), None) => by_schema(schema, &name, text),
            (Given::Text(text), None, None) => InputType::String.read(&text),
        };
        if values.insert(name.clone(), value).is_some() {
            return Err(Failure::usage(format!("`{name}` is given twice")));
        }
    }
    Ok(values)
}

/// A text stays a text where the schema allows one; else it is read as JSON, where it is JSON.
fn by_schema(schema: &Value, name: &str, text: String) -> Value {
    let kind = &schema["properties"][name]["type"];
    let text_fits = kind == "string" || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "string"));
    if text_fits || kind.is_null() {
        return Value::String(text);
    }
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn noop(given: &[&str]) -> Value {
        let catalog = worker::jobs::registry().catalog(schemas::Names::default());
        let given = given.iter().map(|text| text.parse().unwrap()).collect();
        Value::Object(values("noop", given, &catalog, None).unwrap())
    }

    #[test]
    fn values_take_the_types_that_the_kind_declares() {
        assert_eq!(noop(&["steps=3", "message=7"]), json!({"steps": 3, "message": "7"}));
        assert_eq!(noop(&["message=a=b", "steps:=4"]), json!({"message": "a=b", "steps": 4}));
        assert_eq!(noop(&["steps=many"]), json!({"steps": "many"}));
    }

    #[test]
    fn what_is_no_pair_is_refused() {
        for text in ["", "x", "=1", ":=1", "x:={"] {
            assert!(text.parse::<With>().is_err(), "{text}");
        }
    }
}
