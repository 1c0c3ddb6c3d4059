//! docs/config.schema.json is what the types of the configuration say. Made in this test only: what ships need not know schemas.

use super::{Config, Period};
use crate::version::Version;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;
use std::borrow::Cow;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/config.schema.json");

impl JsonSchema for Period {
    fn schema_name() -> Cow<'static, str> {
        "Period".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A length of time, as in `10m` or `1h 30m`, or as ISO 8601 writes it.",
            "examples": ["10s", "1h 30m", "PT15M"],
        })
    }
}

impl JsonSchema for Version {
    fn schema_name() -> Cow<'static, str> {
        "Version".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        const NUMBER: &str = "(0|[1-9][0-9]*)";
        json_schema!({
            "type": "string",
            "description": "A Kubernetes release, as in `v1.36.3`.",
            "pattern": format!(r"^v?{NUMBER}\.{NUMBER}\.{NUMBER}$"),
        })
    }
}

fn schema() -> Value {
    serde_json::to_value(schemars::schema_for!(Config)).unwrap()
}

#[test]
fn the_schema_is_what_the_types_say() {
    let rendered = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(PAGE, &rendered).unwrap();
    }
    let page = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(
        page == rendered,
        "docs/config.schema.json is not what the types say: `UPDATE=1 cargo test -p quorate --lib config::schema` writes it"
    );
}

/// What the parser refuses for its shape the schema refuses too.
#[test]
fn the_schema_knows_every_key_and_no_other() {
    let schema = schema();
    let resolved = |value: &Value| match value["$ref"].as_str() {
        Some(name) => schema.pointer(name.trim_start_matches('#')).unwrap().clone(),
        None => value.clone(),
    };
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&schema["properties"]), keys(&defaults));
    assert_eq!(schema["additionalProperties"], false);
    for section in ["rule", "times", "upgrade", "drain", "defrag"] {
        let known = resolved(&schema["properties"][section]);
        assert_eq!(keys(&known["properties"]), keys(&defaults[section]), "{section}");
        assert_eq!(known["additionalProperties"], false, "{section}");
    }
}
