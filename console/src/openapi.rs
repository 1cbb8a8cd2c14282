//! The OpenAPI 3.1 document, made from the table of operations and the types' own schemas, which are of the dialect that
//! 3.1 speaks (JSON Schema 2020-12).

use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use schemas::api::ErrorAnswer;
use serde_json::{Map, Value, json};

use crate::operations::{Operation, operations};

/// Where the schemas stand in the document.
const SCHEMAS: &str = "/components/schemas";

/// The document.
pub fn openapi() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = SCHEMAS.into());
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for operation in operations() {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method.as_str().to_lowercase()] = describe(&operation, &mut generator);
    }
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Nightporter",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What operators see and do.",
        },
        "servers": [{"url": "/api/v1"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
        },
    })
}

fn describe(operation: &Operation, generator: &mut SchemaGenerator) -> Value {
    let error = generator.subschema_for::<ErrorAnswer>();
    let answer = (operation.answer)(generator);
    let mut responses: Map<String, Value> = operation
        .statuses
        .iter()
        .map(|status| (status.to_string(), content(meaning(operation, *status), &answer)))
        .collect();
    responses.insert("default".to_owned(), content("It was not done; the answer says why.", &error));
    let mut described = json!({
        "operationId": operation.name,
        "summary": operation.summary,
        "description": format!("Needs a token of the role {} or a stronger one.", operation.role),
        "parameters": parameters(operation, generator),
        "responses": responses,
    });
    if let Some(request) = operation.request {
        let schema = request(generator);
        described["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    described
}

fn content(description: &str, schema: &Schema) -> Value {
    json!({"description": description, "content": {"application/json": {"schema": schema}}})
}

fn meaning(operation: &Operation, status: u16) -> &'static str {
    match status {
        201 => "It was made.",
        _ if operation.statuses.contains(&201) => "It was there already; nothing was made.",
        _ if operation.changes() => "It was done.",
        _ => "What was asked for.",
    }
}

/// Those in the path and those behind the question mark.
fn parameters(operation: &Operation, generator: &mut SchemaGenerator) -> Vec<Value> {
    let in_path = operation.path.split('/').filter_map(|step| step.strip_prefix('{')?.strip_suffix('}'));
    let in_path = in_path.map(|name| json!({"name": name, "in": "path", "required": true, "schema": named(name)}));
    let params = (operation.params)(generator).to_value();
    let behind = params["properties"].as_object().into_iter().flatten().map(|(name, schema)| {
        let (mut schema, description) = (schema.clone(), schema["description"].clone());
        schema.as_object_mut().map(|schema| schema.remove("description"));
        json!({"name": name, "in": "query", "description": description, "schema": schema})
    });
    in_path.chain(behind).collect()
}

fn named(parameter: &str) -> Value {
    match parameter {
        "id" => json!({"type": "string", "format": "uuid"}),
        _ => json!({"type": "string"}),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|field| references(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        let document = openapi();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("it stays in the document");
            assert!(document.pointer(pointer).is_some_and(Value::is_object), "{reference} leads nowhere");
        }
    }

    #[test]
    fn every_operation_says_what_it_takes_and_what_it_answers() {
        let document = openapi();
        let mut seen = BTreeSet::new();
        for operation in operations() {
            let address = operation.address();
            let described = &document["paths"][operation.path][operation.method.as_str().to_lowercase()];
            assert!(seen.insert(operation.name), "{address}: its name is taken");
            assert_eq!(described["operationId"], operation.name);
            let body = &described["requestBody"]["content"]["application/json"]["schema"]["$ref"];
            assert_eq!(body.is_string(), operation.method == axum::http::Method::POST, "{address}: {body}");
            for status in operation.statuses.iter().map(u16::to_string).chain(["default".to_owned()]) {
                let schema = &described["responses"][&status]["content"]["application/json"]["schema"];
                // The document itself may be anything; all others are of a named type, or a list of one.
                let named = schema["$ref"].is_string() || schema["items"]["$ref"].is_string();
                assert!(named || operation.name == "openapi", "{address} answers {status} with {schema}");
            }
            let holes = operation.path.matches('{').count();
            let filled = described["parameters"].as_array().unwrap().iter().filter(|known| known["in"] == "path");
            assert_eq!(filled.count(), holes, "{address}");
        }
        assert_eq!(seen.len(), operations().len());
    }

    #[test]
    fn what_changes_something_is_not_for_viewers() {
        for operation in operations().into_iter().filter(Operation::changes) {
            assert!(operation.role >= schemas::Role::Operator, "{}", operation.address());
        }
    }
}
