//! A virtual switch as text, `common/vswitch-NUMBER.json`: what a lost registry is rebuilt from, as guests are from `guest.json`.
//! Written after the registry knows the switch and removed before it forgets it, so a text that no switch has is one of a
//! registry that was put back or lost.
//!
//! Fields may be added, and readers ignore those they do not know; the version grows only when an old reader would
//! misunderstand the text.

use std::path::PathBuf;

use hpvm_host::durable::{self, DurableError};
use hpvm_host::paths::Root;
use hpvm_host::removal;
use hpvm_model::{SwitchState, Vswitch};
use serde::{Deserialize, Serialize};

use crate::Refusal;

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    switch: Vswitch,
}

#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// What a text says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Text {
    Switch(Vswitch),
    /// A newer hpvm wrote it.
    Newer,
    Malformed,
}

pub(crate) fn write(root: &Root, switch: &Vswitch) -> Result<(), DurableError> {
    let document = Document { version: VERSION, switch: switch.clone() };
    // Numbers, words and addresses: there is nothing that serde could refuse.
    let text = serde_json::to_string_pretty(&document).unwrap_or_default() + "\n";
    durable::replace_file(&root.switch_text(switch.number.get()), text.as_bytes(), 0o644)
}

pub(crate) fn remove(root: &Root, switch: &Vswitch) -> Result<(), Refusal> {
    let path = root.switch_text(switch.number.get());
    removal::file(&path).map_err(Refusal::file("remove", path))
}

fn read(text: &str) -> Text {
    match (serde_json::from_str::<Head>(text), serde_json::from_str::<Document>(text)) {
        (Ok(head), _) if head.version > VERSION => Text::Newer,
        (Ok(_), Ok(document)) => Text::Switch(document.switch),
        _ => Text::Malformed,
    }
}

/// The texts of all switches, in order of number.
pub(crate) fn all(root: &Root) -> Vec<(u32, PathBuf, Text)> {
    let entries = std::fs::read_dir(root.common()).into_iter().flatten().flatten();
    let mut texts: Vec<(u32, PathBuf, Text)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_prefix("vswitch-")?.strip_suffix(".json")?.parse().ok()?;
            let text = durable::open_regular(&entry.path()).and_then(std::io::read_to_string);
            // A number that is not the file's own is of somebody who copied it.
            let text = match read(&text.unwrap_or_default()) {
                Text::Switch(switch) if switch.number.get() != number => Text::Malformed,
                text => text,
            };
            Some((number, entry.path(), text))
        })
        .collect();
    texts.sort_by_key(|(number, ..)| *number);
    texts
}

/// The switch that every registry has, as it has it at first, needs no text.
pub(crate) fn is_needed(switch: &Vswitch) -> bool {
    let first = Vswitch::new(switch.number, switch.name.clone());
    !switch.name.is_localnet() || *switch != Vswitch { state: SwitchState::Up, ..first }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpvm_model::{PortNumber, PortRules, PortVlan, SwitchNumber, Wire};

    #[test]
    fn a_switch_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path()).unwrap();
        root.ensure().unwrap();
        let mut switch = Vswitch::new(SwitchNumber::new(12).unwrap(), "nat1".parse().unwrap());
        switch.wire = Wire::Nat;
        switch.forwards = vec!["tcp:127.0.0.1:8080:10.0.2.15:80".parse().unwrap()];
        let vlan = PortVlan::Trunk("10,20-29".parse().unwrap());
        switch.set_rules(PortNumber::new(3).unwrap(), PortRules { vlan, ..PortRules::default() });
        write(&root, &switch).unwrap();
        let path = root.switch_text(12);
        assert_eq!(all(&root), [(12, path.clone(), Text::Switch(switch.clone()))]);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
        assert_eq!(all(&root)[0].2, Text::Newer);
        std::fs::write(&path, text.replace("\"number\": 12", "\"number\": 13")).unwrap();
        assert_eq!(all(&root)[0].2, Text::Malformed);
        remove(&root, &switch).unwrap();
        assert_eq!(all(&root), []);
    }

    #[test]
    fn the_first_switch_needs_a_text_once_it_was_changed() {
        let localnet = hpvm_model::SwitchName::localnet();
        let mut switch = Vswitch::new(SwitchNumber::LOCALNET, localnet);
        assert!(is_needed(&switch), "it is halted");
        switch.state = SwitchState::Up;
        assert!(!is_needed(&switch));
    }
}
