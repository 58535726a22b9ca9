//! The schemas of `schema/json`, and what of JSON Schema they need.

use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// The words that a schema may use; another one would be skipped silently otherwise.
const KEYWORDS: [&str; 7] =
    ["title", "type", "properties", "required", "additionalProperties", "items", "enum"];

/// The folder of the schemas.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/json")
}

/// Returns the names of all schemas.
pub(crate) fn names() -> BTreeSet<String> {
    let files = fs_err::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name());
    let names = files.map(|name| name.into_string().unwrap());
    names.map(|name| name.strip_suffix(".json").unwrap().to_owned()).collect()
}

/// Reads a schema.
pub(crate) fn read(name: &str) -> Value {
    let path = folder().join(format!("{name}.json"));
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}

/// Returns what of a value is not as its schema says.
pub(crate) fn violations(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(schema, value, "", &mut found);
    found
}

fn compare(schema: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
    let rules = schema.as_object().unwrap();
    for keyword in rules.keys().filter(|keyword| !KEYWORDS.contains(&keyword.as_str())) {
        found.push(format!("{place}: the schema says ‘{keyword}’, which nobody checks"));
    }
    if let Some(allowed) = rules.get("type")
        && !kinds(allowed).any(|kind| is_of(value, kind))
    {
        found.push(format!("{place}: {value} is not {allowed}"));
    }
    if let Some(allowed) = rules.get("enum")
        && !allowed.as_array().unwrap().contains(value)
    {
        found.push(format!("{place}: {value} is none of {allowed}"));
    }
    if let (Some(items), Some(values)) = (rules.get("items"), value.as_array()) {
        for (index, value) in values.iter().enumerate() {
            compare(items, value, &format!("{place}/{index}"), found);
        }
    }
    if let Some(fields) = value.as_object() {
        compare_fields(schema, fields, place, found);
    }
}

fn compare_fields(
    schema: &Value,
    fields: &serde_json::Map<String, Value>,
    place: &str,
    found: &mut Vec<String>,
) {
    for name in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            found.push(format!("{place}: {name} is missing"));
        }
    }
    for (name, value) in fields {
        let place = format!("{place}/{name}");
        match (schema["properties"].get(name), schema.get("additionalProperties")) {
            (Some(rule), _) | (None, Some(rule @ Value::Object(_))) => {
                compare(rule, value, &place, found);
            }
            (None, Some(Value::Bool(false))) => found.push(format!("{place} is in no schema")),
            (None, _) => {}
        }
    }
}

fn kinds(allowed: &Value) -> impl Iterator<Item = &str> {
    let several = allowed.as_array().into_iter().flatten();
    several.chain(allowed.is_string().then_some(allowed)).map(|kind| kind.as_str().unwrap())
}

fn is_of(value: &Value, kind: &str) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("no such type: {other}"),
    }
}

#[test]
fn a_schema_notices_what_is_missing_new_or_of_another_kind() {
    let schema = serde_json::json!({
        "type": "object",
        "properties": {
            "state": { "enum": ["ready", null] },
            "names": { "type": "array", "items": { "type": "string" } },
            "bytes": { "type": ["integer", "null"] },
            "load": { "type": "number" }
        },
        "required": ["state"],
        "additionalProperties": false
    });
    let wrong = |value: Value| violations(&schema, &value).len();
    assert_eq!(wrong(serde_json::json!({ "state": null, "names": ["a"], "bytes": 7 })), 0);
    assert_eq!(wrong(serde_json::json!({ "state": null, "load": 0.5 })), 0);
    assert_eq!(wrong(serde_json::json!({ "state": null, "load": null })), 1);
    assert_eq!(wrong(serde_json::json!({})), 1);
    assert_eq!(wrong(serde_json::json!({ "state": "open", "names": [1, "b"] })), 2);
    assert_eq!(wrong(serde_json::json!({ "state": "ready", "bytes": 1.5, "new": 1 })), 2);
    assert_eq!(wrong(serde_json::json!([])), 1);
    assert_eq!(violations(&serde_json::json!({ "pattern": "x" }), &Value::Null).len(), 1);
}
