//! How entries of the device database are printed: the list of A.03.50, JSON, changes, and the script of repairs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hpvm_model::entry::{Replacement, escaped};
use hpvm_model::{Attributes, Choice, quoted};
use hpvm_operations::Mode;
use hpvm_operations::devdb::host_devices::Update;
use hpvm_operations::devdb::listing::Line;
use hpvm_operations::devdb::repair::{Decision, Flaw};
use hpvm_registry::Entry;
use serde::Serialize;

use crate::messages::printable;

/// `NAME[,ALIAS...]:ATTR=VALUE,…:DEPENDENT,…:IDENTIFIER`, an entry a line. When asked for, a line below says why it is there.
pub(crate) fn list(lines: &[Line], with_reasons: bool) -> String {
    let mut text = String::new();
    for line in lines {
        let names = std::iter::once(line.id.name()).chain(line.aliases.iter().map(String::as_str));
        let names: Vec<String> = names.map(escaped).collect();
        let attributes: Vec<String> =
            line.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let identifier = line.identity.as_ref().map(ToString::to_string).unwrap_or_default();
        let fields = [names.join(","), attributes.join(","), line.dependents.join(","), identifier];
        text.push_str(&printable(&fields.join(":")));
        text.push('\n');
        if let (true, Some(reason)) = (with_reasons, &line.reason) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "    {}", printable(reason));
        }
    }
    text
}

/// What a change of one entry comes to, or would come to.
pub(crate) fn change(before: Option<&Entry>, after: Option<&Entry>, mode: Mode) -> String {
    let word = match (before, after) {
        (None, Some(_)) => "added",
        (Some(_), Some(_)) => "changed",
        (Some(_), None) => "deleted",
        (None, None) => return String::new(),
    };
    let Some(entry) = after.or(before) else { return String::new() };
    let would = match mode {
        Mode::Apply => "",
        Mode::DryRun => "would be ",
    };
    let mut text = format!("{would}{word}: {}", printable(&entry.id.to_string()));
    if entry.real_path != entry.id.name() && !entry.real_path.is_empty() {
        let _ = write!(text, " (leads to {})", printable(&entry.real_path));
    }
    let said = said(&entry.attributes);
    if after.is_some() && !said.is_empty() {
        let _ = write!(text, " {said}");
    }
    text + "\n"
}

fn said(attributes: &Attributes) -> String {
    let mut said = Vec::new();
    for (choice, word) in [
        (attributes.share, "SHARE=YES"),
        (attributes.preserve, "PRESERVE=YES"),
        (attributes.read_only, "READONLY=YES"),
        (attributes.allow_guests, "ALLOW=GUEST"),
    ] {
        said.extend((choice == Choice::Yes).then(|| word.to_owned()));
    }
    let usage =
        attributes.usage.map(|kind| format!("USAGE={}", kind.as_str().to_ascii_uppercase()));
    said.extend(usage);
    said.join(",")
}

/// What a replacement comes to, or would come to.
pub(crate) fn renamed(replacement: &Replacement, guests: &[String], mode: Mode) -> String {
    let (old, new) = (replacement.old.to_string(), replacement.new[0].to_string());
    let guests = match guests {
        [] => String::new(),
        guests => format!(", also in {}", guests.join(", ")),
    };
    let becomes = match mode {
        Mode::Apply => "is now",
        Mode::DryRun => "would become",
    };
    format!("{} {becomes} {}{guests}\n", printable(&old), printable(&new))
}

/// How the list of the VM Host's devices changed: `+` came, `-` went, `~` is for another reason now.
pub(crate) fn update(update: &Update) -> String {
    let mut text = String::new();
    for (sign, entries) in [('-', &update.removed), ('+', &update.added), ('~', &update.changed)] {
        for entry in entries {
            let reason = entry.reason.as_deref().unwrap_or_default();
            let name = entry.id.to_string();
            let _ = writeln!(text, "{sign} {}: {}", printable(&name), printable(reason));
        }
    }
    if text.is_empty() { "nothing changed\n".to_owned() } else { text }
}

/// What does not agree, as a script. What needs a decision stands there as a comment.
pub(crate) fn script(flaws: &[Flaw]) -> String {
    let mut text = String::from("#!/bin/sh\n");
    if flaws.is_empty() {
        text.push_str("# nothing to repair\n");
    }
    for flaw in flaws {
        let words: Vec<String> = flaw.command.iter().map(|word| quoted(word)).collect();
        let command = match flaw.decision {
            Decision::Safe => words.join(" "),
            Decision::Administrators => format!("# if that is right: {}", words.join(" ")),
        };
        let _ = writeln!(text, "\n# {}\n{command}", printable(&flaw.text));
    }
    text
}

/// After docs/schema/devices.json.
pub(crate) fn json(lines: &[Line]) -> Result<String, serde_json::Error> {
    let entries = lines.iter().map(Shown::from).collect();
    let document = Document { format: 1, entries };
    serde_json::to_string_pretty(&document).map(|text| text + "\n")
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Document {
    /// Grows when a reader of older documents would misread this one.
    format: u32,
    /// In order of type and name.
    entries: Vec<Shown>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Shown {
    /// `gdev`, `rdev` or `server`.
    r#type: String,
    name: String,
    /// Other names of the same device.
    aliases: Vec<String>,
    attributes: BTreeMap<String, String>,
    /// Guests that have the device.
    dependents: Vec<String>,
    /// World-wide name, serial number or uuid with its kind.
    identifier: Option<String>,
    /// Of a block device or a file; null of an image, which says itself what its disk has, and where nobody answers.
    size_bytes: Option<u64>,
    /// Why hpvmhostrdev made the entry.
    reason: Option<String>,
}

impl From<&Line> for Shown {
    fn from(line: &Line) -> Shown {
        let identity = line.identity.as_ref();
        let attributes = line.attributes.iter();
        Shown {
            r#type: line.id.entry.as_str().to_owned(),
            name: line.id.name().to_owned(),
            aliases: line.aliases.clone(),
            attributes: attributes
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
            dependents: line.dependents.clone(),
            identifier: identity.and_then(|identity| identity.identifier.clone()),
            size_bytes: line.size.map(|size| size.0),
            reason: line.reason.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use hpvm_model::{Bytes, EntryId, EntryType, StoreIdentity};

    use super::*;

    fn lines() -> Vec<Line> {
        let disk = Line {
            id: EntryId::new(EntryType::Guest, "/dev/sdb").unwrap(),
            aliases: vec!["/dev/disk/by-path/pci-0000:00".into()],
            attributes: vec![("CONFIG", "gdev".into()), ("DEVTYPE", "DISK".into())],
            dependents: vec!["db".into(), "web".into()],
            identity: Some(StoreIdentity {
                identifier: Some("wwid:naa.5000c500a1b2c3d4".into()),
                size: Bytes(1 << 30),
            }),
            size: Some(Bytes(1 << 30)),
            reason: None,
        };
        let used = Line {
            id: EntryId::new(EntryType::Restricted, "/dev/sda").unwrap(),
            aliases: Vec::new(),
            attributes: vec![("AUTORDEV", "YES".into())],
            dependents: Vec::new(),
            identity: None,
            size: None,
            reason: Some("it is mounted at /".into()),
        };
        vec![disk, used]
    }

    #[test]
    fn a_line_has_four_fields_between_colons() {
        assert_eq!(
            list(&lines(), true),
            "/dev/sdb,/dev/disk/by-path/pci-0000\\:00:CONFIG=gdev,DEVTYPE=DISK:db,web:wwid=naa.5000c500a1b2c3d4/1073741824\n\
             /dev/sda:AUTORDEV=YES::\n    it is mounted at /\n"
        );
    }

    #[test]
    fn a_dry_run_tells_what_would_be() {
        let id = EntryId::new(EntryType::Guest, "/dev/sdb").unwrap();
        let entry = Entry::by_hand(id, "/dev/sdb".into());
        let (none, some) = (None, Some(&entry));
        for (before, after, word) in
            [(none, some, "added"), (some, some, "changed"), (some, none, "deleted")]
        {
            assert_eq!(change(before, after, Mode::Apply), format!("{word}: gdev:/dev/sdb\n"));
            let dry = change(before, after, Mode::DryRun);
            assert_eq!(dry, format!("would be {word}: gdev:/dev/sdb\n"));
        }
        let replacement = "gdev:/dev/sdb:/dev/sdc".parse().unwrap();
        assert_eq!(
            renamed(&replacement, &["web".into()], Mode::DryRun),
            "gdev:/dev/sdb would become gdev:/dev/sdc, also in web\n"
        );
    }

    #[test]
    fn a_script_runs_only_what_needs_no_decision() {
        let flaw = |decision| Flaw {
            text: "gdev:/it's gone leads nowhere".into(),
            command: vec!["hpvmdevmgmt".into(), "-d".into(), "gdev:/it's gone".into()],
            decision,
        };
        let text = script(&[flaw(Decision::Safe), flaw(Decision::Administrators)]);
        let run: Vec<&str> =
            text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
        assert_eq!(run, [r"hpvmdevmgmt -d 'gdev:/it'\''s gone'"]);
    }

    #[test]
    fn the_schema_only_grows() {
        crate::schema::keep("devices.json", &schemars::schema_for!(Document));
    }
}
