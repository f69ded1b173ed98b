//! What a dry run prints: field by field what a change comes to, and when.

use hpvm_model::{Problem, Severity};
use hpvm_plan::difference::{Effect, FieldChange};
use serde::Serialize;

use crate::exit::Failure;
use crate::output::print;
use crate::table::Table;

/// Of a change that comes to none.
pub const NOTHING: &str = "Nothing would change.\n";

/// In the form asked for.
pub fn print_out(changes: &[FieldChange], is_json: bool) -> Result<(), Failure> {
    let text = if is_json { json(changes)? } else { table(changes) };
    Ok(print(&text)?)
}

/// Whether the change would go through.
pub fn verdict(problems: &[Problem]) -> Result<(), Failure> {
    match problems.iter().any(|p| p.severity == Severity::Error) {
        true => Err(Failure::Said),
        false => Ok(()),
    }
}

/// As a table; one sentence when nothing changes.
#[must_use]
pub fn table(changes: &[FieldChange]) -> String {
    if changes.is_empty() {
        return NOTHING.into();
    }
    let mut table = Table::new(["Field", "From", "To", "When"]);
    for change in changes {
        let when = match &change.effect {
            Effect::Now => "now".to_owned(),
            Effect::NextReset(reason) | Effect::Asked(reason) => format!("next reset: {reason}"),
            Effect::NextStart(reason) => format!("next start: {reason}"),
            // Why, the errors beside the table say.
            Effect::Refused(_) => "refused".to_owned(),
        };
        table.row([&change.field, &change.from, &change.to, &when]);
    }
    table.render()
}

/// As JSON, after docs/schema/dry-run.json.
pub fn json(changes: &[FieldChange]) -> Result<String, serde_json::Error> {
    let document = Document { format: 1, changes: changes.iter().map(Change::from).collect() };
    serde_json::to_string_pretty(&document).map(|text| text + "\n")
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Document {
    /// Grows when a reader of older documents would misread this one.
    format: u32,
    changes: Vec<Change>,
}

/// One field that differs.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Change {
    field: String,
    from: String,
    to: String,
    when: When,
    /// Why not now, or why not at all.
    reason: Option<String>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
enum When {
    Now,
    NextReset,
    NextStart,
    Refused,
}

impl From<&FieldChange> for Change {
    fn from(change: &FieldChange) -> Change {
        let (when, reason) = match &change.effect {
            Effect::Now => (When::Now, None),
            Effect::NextReset(reason) | Effect::Asked(reason) => {
                (When::NextReset, Some(reason.clone()))
            }
            Effect::NextStart(reason) => (When::NextStart, Some(reason.clone())),
            Effect::Refused(reason) => (When::Refused, Some(reason.clone())),
        };
        let FieldChange { field, from, to, .. } = change.clone();
        Change { field, from, to, when, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes() -> Vec<FieldChange> {
        let change = |field: &str, from: &str, to: &str, effect| FieldChange {
            field: field.into(),
            from: from.into(),
            to: to.into(),
            effect,
        };
        vec![
            change("label", "", "web server", Effect::Now),
            change("vcpus", "1", "2", Effect::NextStart("the guest runs".into())),
            change("storage 0,1,0", "-", "-", Effect::Asked("asked".into())),
            change("storage 0,0,1", "-", "disk:scsi:0,0,1:file:/a\u{1b}b", Effect::Now),
            change("/d1", "-", "-", Effect::Refused("there is no such file".into())),
        ]
    }

    #[test]
    fn each_field_is_a_row() {
        assert_eq!(
            table(&changes()),
            "\
Field         From To                             When
============= ==== ============================== ==========================
label              web server                     now
vcpus         1    2                              next start: the guest runs
storage 0,1,0 -    -                              next reset: asked
storage 0,0,1 -    disk:scsi:0,0,1:file:/a\\u{1b}b now
/d1           -    -                              refused
"
        );
        assert_eq!(table(&[]), "Nothing would change.\n");
    }

    #[test]
    fn json_has_the_same() {
        let document: serde_json::Value = serde_json::from_str(&json(&changes()).unwrap()).unwrap();
        assert_eq!(document["changes"][1]["when"], "next_start");
        assert_eq!(document["changes"][1]["reason"], "the guest runs");
        assert_eq!(document["changes"][2]["when"], "next_reset");
        assert_eq!(document["changes"][3]["to"], "disk:scsi:0,0,1:file:/a\u{1b}b");
        assert_eq!(document["changes"][4]["reason"], "there is no such file");
    }

    #[test]
    fn the_schema_only_grows() {
        crate::schema::keep("dry-run.json", &schemars::schema_for!(Document));
    }
}
