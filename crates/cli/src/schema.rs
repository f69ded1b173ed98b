//! The schemas of our JSON output, kept in docs/schema, for tests: a schema may grow, and nothing in it may go or change.
//! `SNAPSHOTS=overwrite` writes a grown schema; a shrunk one is refused even then.

use std::path::Path;

use serde_json::Value;

pub(crate) fn keep(file: &str, schema: &schemars::Schema) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema").join(file);
    let current = serde_json::to_value(schema).expect("a schema is JSON");
    let kept: Option<Value> = std::fs::read(&path)
        .ok()
        .map(|bytes| serde_json::from_slice(&bytes).expect("the kept schema is JSON"));
    if let Some(kept) = &kept {
        let lost = lost(kept, &current, "");
        assert!(lost.is_empty(), "readers of {file} would miss: {lost:?}");
    }
    if kept.as_ref() == Some(&current) {
        return;
    }
    assert_eq!(
        std::env::var("SNAPSHOTS").ok().as_deref(),
        Some("overwrite"),
        "{file} has grown; run this test with SNAPSHOTS=overwrite and commit the file"
    );
    let text = serde_json::to_string_pretty(&current).expect("JSON") + "\n";
    std::fs::write(&path, text).expect("the schema is written");
}

/// What the kept schema promises and the current one does not. Texts may be reworded.
fn lost(kept: &Value, current: &Value, path: &str) -> Vec<String> {
    match (kept, current) {
        (Value::Object(kept), Value::Object(current)) => kept
            .iter()
            .filter(|(key, _)| !matches!(key.as_str(), "description" | "title"))
            .flat_map(|(key, kept)| {
                let path = format!("{path}/{key}");
                match current.get(key) {
                    Some(current) => lost(kept, current, &path),
                    None => vec![path],
                }
            })
            .collect(),
        // Lists of a schema are sets: required fields, values of an enumeration, alternatives.
        (Value::Array(kept), Value::Array(current)) => kept
            .iter()
            .filter(|kept| !current.iter().any(|current| lost(kept, current, path).is_empty()))
            .map(|kept| format!("{path}: {kept}"))
            .collect(),
        (kept, current) if kept == current => Vec::new(),
        (kept, current) => vec![format!("{path}: {kept} became {current}")],
    }
}

#[test]
fn what_a_reader_would_miss_is_found() {
    let schema = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let kept = schema(r#"{"properties":{"a":{"type":"string"}},"required":["a"],"title":"x"}"#);
    let grown = schema(
        r#"{"properties":{"a":{"type":"string"},"b":{"type":"null"}},"required":["b","a"]}"#,
    );
    assert_eq!(lost(&kept, &grown, ""), [""; 0]);
    for shrunk in [
        r#"{"properties":{},"required":["a"]}"#,
        r#"{"properties":{"a":{"type":"integer"}},"required":["a"]}"#,
        r#"{"properties":{"a":{"type":"string"}},"required":[]}"#,
    ] {
        assert_eq!(lost(&kept, &schema(shrunk), "").len(), 1, "{shrunk}");
    }
}
