//! Cuts QEMU's schema down to what we use, with types spelt out in place:
//!
//! ```text
//! {"commands": {"device_del": {"arguments": {"id": {"type": "str"}}, "answer": {"members": {}}}},
//!  "events": {"RESET": {"guest": {"type": "bool"}, "reason": {"type": {"enum": [...]}}}}}
//! type: "str" "int" "bool" "number" "null" "any" | {"array": type} | {"enum": [...]} | {"members": {...}} | {"one-of": [...]}
//! ```
//!
//! An argument list that depends on a tag (blockdev-add) has the members of all cases we use. Below some depth a type is
//! `"any"`: nothing there is read.

use std::collections::BTreeMap;

use anyhow::Context;
use hpvm_qmp::{command, event};
use serde_json::{Map, Value, json};

/// The cases of tagged argument lists that we use.
const CASES: &[&str] = &["file", "host_device", "raw"];
const DEPTH_MAX: usize = 5;
/// Large optional members of answers that nobody reads.
const UNREAD: &[&str] = &["snapshots", "backing-image", "dirty-bitmaps", "timed_stats"];

pub(crate) fn project(schema: &Value) -> anyhow::Result<Value> {
    let entries: BTreeMap<&str, &Value> = schema
        .as_array()
        .context("a schema is an array")?
        .iter()
        .filter_map(|entry| Some((entry["name"].as_str()?, entry)))
        .collect();
    let schema = Schema(entries);
    let mut commands = BTreeMap::new();
    for name in command::NAMES {
        let entry = schema.entry(name)?;
        let arguments = schema.members(schema.named(entry, "arg-type")?, 0)?;
        // The schema's own schema is of no use to anybody here.
        let answer = match *name {
            "query-qmp-schema" => json!("any"),
            _ => schema.spell(schema.named(entry, "ret-type")?, 0)?,
        };
        commands.insert(name, json!({ "arguments": arguments, "answer": answer }));
    }
    let mut events = BTreeMap::new();
    for name in event::NAMES {
        let data = schema.named(schema.entry(name)?, "arg-type")?;
        events.insert(name, schema.members(data, 0)?);
    }
    Ok(json!({ "commands": commands, "events": events }))
}

struct Schema<'a>(BTreeMap<&'a str, &'a Value>);

impl<'a> Schema<'a> {
    fn entry(&self, name: &str) -> anyhow::Result<&'a Value> {
        self.0.get(name).copied().with_context(|| format!("QEMU has no {name}"))
    }

    fn named(&self, entry: &Value, key: &str) -> anyhow::Result<&'a Value> {
        self.entry(entry[key].as_str().with_context(|| format!("no {key} in {entry}"))?)
    }

    fn spell(&self, entry: &Value, depth: usize) -> anyhow::Result<Value> {
        Ok(match entry["meta-type"].as_str() {
            Some("builtin") => builtin(entry),
            _ if depth == DEPTH_MAX => json!("any"),
            Some("enum") => json!({ "enum": entry["values"] }),
            Some("array") => {
                json!({ "array": self.spell(self.named(entry, "element-type")?, depth + 1)? })
            }
            Some("object") => json!({ "members": self.members(entry, depth)? }),
            Some("alternate") => {
                let types = entry["members"].as_array().context("an alternate has members")?;
                let types: Vec<Value> = types
                    .iter()
                    .map(|member| self.spell(self.named(member, "type")?, depth + 1))
                    .collect::<anyhow::Result<_>>()?;
                json!({ "one-of": types })
            }
            other => anyhow::bail!("a type of the kind {other:?}"),
        })
    }

    fn members(&self, object: &Value, depth: usize) -> anyhow::Result<Map<String, Value>> {
        let mut members = Map::new();
        for member in object["members"].as_array().context("an object has members")? {
            let name = member["name"].as_str().context("a member has a name")?;
            if UNREAD.contains(&name) {
                continue;
            }
            let mut spelt = Map::new();
            spelt.insert("type".into(), self.spell(self.named(member, "type")?, depth + 1)?);
            if member.get("default").is_some() {
                spelt.insert("optional".into(), json!(true));
            }
            members.insert(name.into(), spelt.into());
        }
        for variant in object["variants"].as_array().into_iter().flatten() {
            if variant["case"].as_str().is_some_and(|case| CASES.contains(&case)) {
                for (name, mut spelt) in self.members(self.named(variant, "type")?, depth)? {
                    spelt["optional"] = json!(true);
                    members.entry(name).or_insert(spelt);
                }
            }
        }
        Ok(members)
    }
}

fn builtin(entry: &Value) -> Value {
    match entry["json-type"].as_str() {
        Some("string") => json!("str"),
        Some("boolean") => json!("bool"),
        Some("value") | None => json!("any"),
        Some(other) => json!(other),
    }
}
