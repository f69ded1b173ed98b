//! `hpvmstatus -M`: one line a guest for programs. Fields stand between colons in the order of the keys of `-V`, parts of a
//! field between semicolons; programs count them, so a new field goes to the end.

use std::fmt::Write as _;

use hpvm_model::Bytes;
use hpvm_model::bytes::GIB;

use super::{CONFIG_LABEL, CONFIG_VERSION, CONSOLE_TYPE, RESERVED_MEMORY, Shown, state_word};

/// Programs look for this beginning, which the model name of -V has not.
const MODEL: &str = "Integrity Virtual Machine";

#[must_use]
pub fn render(guests: &[Shown<'_>]) -> String {
    let mut text = String::new();
    for guest in guests {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line(guest));
    }
    text
}

fn line(guest: &Shown<'_>) -> String {
    let config = &guest.view.config;
    let firmware = guest.view.machine.as_ref().map(|machine| machine.base.firmware_code.as_str());
    let fields: [String; 21] = [
        config.name.to_string(),
        config.uuid.to_string(),
        config.number.to_string(),
        config.label.to_string(),
        MODEL.to_owned(),
        config.serial_number.clone(),
        CONFIG_VERSION.to_owned(),
        CONFIG_LABEL.to_owned(),
        config.os.family.to_string(),
        config.os.version.clone().unwrap_or_default(),
        state_word(guest.view.state).to_owned(),
        config.auto_start.to_string(),
        CONSOLE_TYPE.to_owned(),
        firmware.map(safe).unwrap_or_default(),
        // The pattern file of the ia64 emulation: there is none.
        String::new(),
        guest.storage.len().to_string(),
        guest.nics.len().to_string(),
        config.runnable.to_string(),
        guest.view.accelerator().unwrap_or_default().to_owned(),
        format!("{};{};{}", guest.vcpus, guest.entitled, guest.maximum),
        format!("{};{}", amount(guest.memory.bytes()), amount(RESERVED_MEMORY)),
    ];
    fields.join(":")
}

/// Whole GB with the unit, anything else in KB without: the two forms that programs take.
fn amount(bytes: Bytes) -> String {
    match bytes.0 {
        n if n.is_multiple_of(GIB) => format!("{}GB", n / GIB),
        n => (n / 1024).to_string(),
    }
}

/// A path may hold what ends a field or the line; nothing else in here can.
fn safe(path: &str) -> String {
    path.replace(|c: char| matches!(c, ':' | ';') || c.is_control(), "_")
}
