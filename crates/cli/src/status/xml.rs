//! `hpvmstatus -X`: for programs written for A.03.50, whose elements stand as they expect them; ours follow.

use std::borrow::Cow;
use std::fmt::Write as _;

use hpvm_model::bytes::{GIB, MIB};
use hpvm_model::{Bytes, Nic, StorageDevice};
use hpvm_plan::record::Access;

use super::{RESERVED_MEMORY, Shown, state_word};

#[must_use]
pub fn render(guests: &[Shown<'_>]) -> String {
    let guests: String = guests.iter().map(guest).collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<hpvm>\n  <pman>\n{guests}  </pman>\n</hpvm>\n"
    )
}

fn guest(shown: &Shown<'_>) -> String {
    let config = &shown.view.config;
    let mut elements = vec![
        element("vm_state", state_word(shown.view.state)),
        element("vcpu_number", &shown.vcpus.to_string()),
        format!(
            "<memory>{}{}</memory>",
            amount("total", shown.memory.bytes()),
            amount("reserved", RESERVED_MEMORY)
        ),
        element("os_type", config.os.family.as_str()),
        element("label", config.label.as_str()),
        element("serial_number", &config.serial_number),
        element("start_type", &config.auto_start.to_string()),
        element("runnable_status", &config.runnable.to_string()),
        element("run_state", &shown.view.state.to_string()),
        format!(
            "<entitlement percent=\"{}\" maximum=\"{}\"/>",
            shown.entitled.to_string().trim_end_matches('%'),
            shown.maximum.to_string().trim_end_matches('%')
        ),
    ];
    elements.extend(shown.view.since.as_deref().map(|since| element("state_since", since)));
    elements.extend(shown.view.accelerator().map(|name| element("accelerator", name)));
    elements.extend(shown.view.health.iter().map(|sentence| element("health", sentence)));
    elements.extend(shown.storage.iter().map(|device| storage(shown, device)));
    elements.extend(shown.nics.iter().map(|nic| network(nic)));
    for change in &shown.view.waiting {
        let why = change.effect.reason();
        elements.push(format!(
            "<waiting field=\"{}\" from=\"{}\" to=\"{}\" why=\"{}\"/>",
            escaped(&change.field),
            escaped(&change.from),
            escaped(&change.to),
            escaped(why)
        ));
    }
    let mut text = format!(
        "    <virtual_machine name=\"{}\" uuid=\"{}\" local_id=\"{}\">\n",
        config.name, config.uuid, config.number
    );
    for element in elements {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "      {element}");
    }
    text.push_str("    </virtual_machine>\n");
    text
}

/// In GB where that is exact, else in MB: the two units there are.
fn amount(name: &str, bytes: Bytes) -> String {
    let (value, unit) = match bytes.0 {
        n if n.is_multiple_of(GIB) => (n / GIB, "GB"),
        n => (n / MIB, "MB"),
    };
    format!("<{name} unit=\"{unit}\">{value}</{name}>")
}

fn storage(shown: &Shown<'_>, device: &StorageDevice) -> String {
    let access = match shown.access(device) {
        Access::ReadOnly => " access=\"read-only\"",
        Access::ReadWrite => "",
    };
    let StorageDevice { kind, adapter, address, backing, id, .. } = device;
    format!(
        "<storage_device type=\"{}\" adapter=\"{}\" bus=\"{}\" device=\"{}\" function=\"0\" target=\"{}\" lun=\"0\" \
         storage=\"{}\" id=\"{id}\"{access}>{}</storage_device>",
        kind.as_str(),
        adapter.as_str(),
        address.slot.bus(),
        address.slot.device(),
        address.target,
        backing.storage.as_str(),
        escaped(&backing.path)
    )
}

fn network(nic: &Nic) -> String {
    format!(
        "<network_device adapter=\"{}\" bus=\"{}\" device=\"{}\" function=\"0\" mac=\"{}\" port=\"{}\">{}</network_device>",
        nic.kind.as_str(),
        nic.slot.bus(),
        nic.slot.device(),
        nic.mac.with_dashes(),
        nic.port,
        nic.vswitch
    )
}

fn element(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", escaped(text))
}

/// What XML 1.0 cannot write is replaced.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    let is_special = |c: char| matches!(c, '<' | '>' | '&' | '"' | '\'') || is_forbidden(c);
    if !text.contains(is_special) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            c if is_forbidden(c) => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

/// Characters outside of XML 1.0 (section 2.2), and the control characters it takes.
fn is_forbidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}')
}
