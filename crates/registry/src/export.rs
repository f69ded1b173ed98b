//! The whole registry as text: for people, for comparing two states, and for keeping beside a backup.

use hpvm_model::Vswitch;
use serde_json::{Value, json};

use crate::entry::Entry;
use crate::error::RegistryError;
use crate::open::Registry;
use crate::operation::{Outcome, RecordedOperation};
use crate::portable;
use crate::schema::VERSION;

impl Registry {
    /// Entries of the device database by type and name, virtual switches and guests by number, removed guests by time of removal, operations oldest first; JSON, a field a line.
    pub fn export(&self) -> Result<String, RegistryError> {
        let guests: Vec<Value> = self.all()?.iter().map(portable::value).collect();
        let removed: Vec<Value> = self
            .removed()?
            .iter()
            .map(|guest| {
                json!({
                    "removed_at": guest.removed_at.to_string(),
                    "keep_until": guest.keep_until.to_string(),
                    "guest": portable::value(&guest.config),
                })
            })
            .collect();
        let operations: Vec<Value> =
            self.operations(None, usize::MAX)?.iter().rev().map(operation).collect();
        let vswitches: Vec<Value> = self.vswitches()?.iter().map(vswitch).collect();
        let entries: Vec<Value> = self.entries()?.iter().map(entry).collect();
        let document = json!({
            "version": VERSION,
            "entries": entries,
            "vswitches": vswitches,
            "guests": guests,
            "removed": removed,
            "operations": operations,
        });
        Ok(format!("{document:#}\n"))
    }
}

fn vswitch(vswitch: &Vswitch) -> Value {
    // Every field is text, a number, or a list of such: there is nothing that serde could refuse.
    serde_json::to_value(vswitch).unwrap_or_default()
}

fn entry(entry: &Entry) -> Value {
    let attributes = &entry.attributes;
    json!({
        "type": entry.id.entry.as_str(),
        "name": entry.id.name(),
        "real_path": entry.real_path,
        "origin": entry.origin.as_str(),
        "reason": entry.reason,
        "identifier": entry.identity.as_ref().and_then(|identity| identity.identifier.as_deref()),
        "size_bytes": entry.identity.as_ref().map(|identity| identity.size.0),
        "share": attributes.share.as_str(),
        "preserve": attributes.preserve.as_str(),
        "read_only": attributes.read_only.as_str(),
        "usage": attributes.usage.map(hpvm_model::DeviceKind::as_str),
        "allow": attributes.allow_guests.as_str(),
    })
}

fn operation(recorded: &RecordedOperation) -> Value {
    let operation = &recorded.operation;
    let (result, error) = match &operation.outcome {
        Outcome::Running(_) => ("running", None),
        Outcome::Done => ("done", None),
        Outcome::Failed(error) => ("failed", Some(error)),
    };
    json!({
        "id": recorded.id.0,
        "at": operation.at.to_string(),
        "uid": operation.uid,
        "user": operation.user,
        "from": operation.from,
        "command_line": operation.command_line,
        "reason": operation.reason,
        "guest": operation.guest.as_ref().map(|guest| guest.name.as_str()),
        "uuid": operation.guest.as_ref().map(|guest| guest.uuid.to_string()),
        "before": operation.before.as_ref().map(portable::value),
        "after": operation.after.as_ref().map(portable::value),
        "result": result,
        "error": error,
        "duration_ms": operation.duration.as_millis(),
        "step": operation.step,
    })
}
