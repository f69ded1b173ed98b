//! Judges the arguments of a command as QEMU's generated code does, from the schema recorded for the QMP client.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::machine::Refusal;

static RECORDED: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../qmp/schemas/qemu-10.0.json")).unwrap_or_default()
});

/// The commands whose argument lists are open: what a device takes is its own business, and a network's depends on its kind.
const OPEN: [&str; 2] = ["device_add", "netdev_add"];

/// Whether QEMU would let the command through to its own code.
pub(super) fn judge(command: &str, arguments: &Map<String, Value>) -> Result<(), Refusal> {
    let Some(known) = RECORDED["commands"].get(command) else {
        let text = format!("The command {command} has not been found");
        return Err(Refusal { class: "CommandNotFound", text });
    };
    let Some(known) = known["arguments"].as_object() else { return Ok(()) };
    for (name, what) in known {
        match arguments.get(name) {
            None if what["optional"] == true => {}
            None => return Err(Refusal::generic(format!("Parameter '{name}' is missing"))),
            Some(value) => fits(name, value, &what["type"])?,
        }
    }
    match arguments.keys().find(|name| !known.contains_key(*name)) {
        Some(name) if !OPEN.contains(&command) => {
            Err(Refusal::generic(format!("Parameter '{name}' is unexpected")))
        }
        _ => Ok(()),
    }
}

fn fits(name: &str, value: &Value, kind: &Value) -> Result<(), Refusal> {
    let (wanted, fits) = match kind.as_str() {
        Some("str") => ("string", value.is_string()),
        Some("int") => ("integer", value.is_i64() || value.is_u64()),
        Some("bool") => ("boolean", value.is_boolean()),
        _ => return Ok(()),
    };
    if fits {
        return Ok(());
    }
    Err(Refusal::generic(format!("Invalid parameter type for '{name}', expected: {wanted}")))
}
