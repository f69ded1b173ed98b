//! The guest's power button: whether anybody listens to it, and whether a press still waits.
//!
//! QEMU answers `system_powerdown` with yes and sends POWERDOWN whatever becomes of the press. What becomes of it stands
//! in the chipset's power management registers, two of 16 bits that are read by one monitor command:
//!
//! ```text
//!  i /wx 0x600   ->   portl[0x0600] = 0x0120'0101
//!                                       │      └── status, port 0x600: bit 8 PWRBTN_STS, a press the OS has not taken
//!                                       └───────── enable, port 0x602: bit 8 PWRBTN_EN, the OS listens
//! ```
//!
//! What was seen with OVMF and Linux 6.1, on the machine q35:
//!
//! | when | status | enable | a press now |
//! | --- | --- | --- | --- |
//! | before firmware mapped the registers, and for a moment after each reset | `ffff` | `ffff` or `0000` | is dropped |
//! | firmware, EFI shell, boot loader | `0001` | `0000` | is dropped |
//! | kernel, first 1–2 s | `0000` | `0020`, ACPI is on, the button is not | is dropped |
//! | kernel, button driver loaded | `0000` | `0120` | is taken by the kernel within milliseconds |
//! | the same, guest held by `stop` | `0100` | `0120` | waits, and is taken after `cont` |
//! | switched off | – | `0120` | sets nothing in motion |
//!
//! A press that was taken is not yet obeyed: until its user programs run, Linux takes presses and does nothing. So press
//! again every few seconds; *no OS yet* is `!listening`, *the OS did not react* is listening and still running at the end.
//!
//! Reading has no effect that a guest could notice: a waiting press was read many times and was still taken. The one bit
//! a read may set is the timer's (`0001`), which the guest's own read would set as well. The command works under
//! `-sandbox on` with every deny, and takes under a millisecond.

use serde::{Deserialize, Serialize};

/// What to type to the human monitor.
pub(crate) const COMMAND_LINE: &str = "i /wx 0x600";

const BUTTON: u16 = 1 << 8;
/// What a port reads as that nobody has mapped.
const UNMAPPED: u16 = 0xffff;

/// The power button as the guest has set it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PowerButton {
    /// An operating system takes presses; otherwise QEMU drops them.
    pub enabled: bool,
    /// A press waits for the operating system.
    pub pending: bool,
}

/// The human monitor did not answer with the register.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the monitor does not tell the power button's registers: {said}")]
pub struct NoPowerButton {
    said: String,
}

impl PowerButton {
    fn from_registers(status: u16, enable: u16) -> PowerButton {
        if status == UNMAPPED || enable == UNMAPPED {
            return PowerButton { enabled: false, pending: false };
        }
        PowerButton { enabled: enable & BUTTON != 0, pending: status & BUTTON != 0 }
    }
}

impl TryFrom<String> for PowerButton {
    type Error = NoPowerButton;

    fn try_from(said: String) -> Result<PowerButton, NoPowerButton> {
        let value =
            said.trim().strip_prefix("portl[0x0600] = 0x").map(|hex| u32::from_str_radix(hex, 16));
        match value {
            Some(Ok(both)) => {
                let [s0, s1, e0, e1] = both.to_le_bytes();
                Ok(PowerButton::from_registers(
                    u16::from_le_bytes([s0, s1]),
                    u16::from_le_bytes([e0, e1]),
                ))
            }
            _ => Err(NoPowerButton { said: said.trim().to_owned() }),
        }
    }
}

impl From<PowerButton> for String {
    fn from(button: PowerButton) -> String {
        let bit = |set: bool| if set { u32::from(BUTTON) } else { 0 };
        format!("portl[0x0600] = {:#010x}", bit(button.enabled) << 16 | bit(button.pending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_of_a_boot_is_read() {
        let stages = [
            ("unmapped", "ffffffff", false, false),
            ("just reset", "0000ffff", false, false),
            ("firmware", "00000001", false, false),
            ("ACPI on", "00200000", false, false),
            ("driver loaded", "01200000", true, false),
            ("pressed", "01200101", true, true),
        ];
        for (stage, value, enabled, pending) in stages {
            let said = format!("portl[0x0600] = 0x{value}\r\n");
            assert_eq!(
                PowerButton::try_from(said),
                Ok(PowerButton { enabled, pending }),
                "{stage}"
            );
        }
    }

    #[test]
    fn other_text_is_an_error() {
        for said in ["", "portw[0x0600] = 0x0001", "portl[0x0600] = 0xzz", "unknown command: 'i'"] {
            assert!(PowerButton::try_from(said.to_owned()).is_err(), "{said}");
        }
    }

    #[test]
    fn text_and_back() {
        for (enabled, pending) in [(false, false), (true, false), (true, true)] {
            let button = PowerButton { enabled, pending };
            assert_eq!(PowerButton::try_from(String::from(button)), Ok(button));
        }
    }
}
