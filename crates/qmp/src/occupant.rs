//! Who runs in the guest, firmware or an operating system, judged from the first processor's registers.
//!
//! QMP has no word for it, and nothing is guessed from disks or the console. What was seen with OVMF and Linux 6.1:
//!
//! | when | mode | instruction pointer | verdict |
//! | --- | --- | --- | --- |
//! | reset vector, SEC | 32 bits, paging off | `fffc…`–`ffff…` | firmware |
//! | PEI | 32 bits, paging off | below 4 GiB | firmware |
//! | DXE, BDS, EFI shell, boot loader, kernel's EFI stub | 64 bits | below the end of memory | firmware |
//! | Linux kernel | 64 bits | `ffffffff…` | OS |
//! | a program in Linux | privilege level 3 | lower half | OS |
//!
//! So: privilege level 3, or paging on with the pointer in the upper half of the address space, is an operating system.
//! Firmware runs identity-mapped at level 0; kernels of all usual systems, 32 bits or 64, live in the upper half. An
//! operating system that runs identity-mapped at level 0 (a memory tester) passes for firmware. Once an OS was seen it
//! stays until the next RESET event, since a moment in a firmware call means nothing; only a worker that takes over, which may
//! have missed the event, looks once more.
//!
//! The kernel shows up here about 2 s before it enables the power button: see [`crate::power_button`].
//!
//! `info registers` takes about 1 ms under TCG and is read without stopping the processor, so a pointer may be a moment
//! old. It is needed only until an OS is seen.

use hpvm_model::Occupant;
use serde::{Deserialize, Serialize};

/// What `info registers` says of one processor, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Registers {
    pub pointer: InstructionPointer,
    pub privilege_level: u8,
    pub cr0: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionPointer {
    Bits32(u32),
    Bits64(u64),
}

/// The human monitor said something that are no x86 registers.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {missing} in what the monitor says of the registers")]
pub struct NoRegisters {
    missing: &'static str,
}

const CR0_PAGING: u64 = 1 << 31;

impl Registers {
    #[must_use]
    pub fn occupant(&self) -> Occupant {
        let upper_half = match self.pointer {
            InstructionPointer::Bits32(pointer) => pointer >> 31 == 1,
            InstructionPointer::Bits64(pointer) => pointer >> 63 == 1,
        };
        let paging = self.cr0 & CR0_PAGING != 0;
        if self.privilege_level == 3 || (paging && upper_half) {
            Occupant::Os
        } else {
            Occupant::Firmware
        }
    }
}

impl TryFrom<String> for Registers {
    type Error = NoRegisters;

    fn try_from(text: String) -> Result<Registers, NoRegisters> {
        let hex =
            |name: &'static str| field(&text, name).and_then(|t| u64::from_str_radix(t, 16).ok());
        let narrow = hex("EIP").and_then(|pointer| u32::try_from(pointer).ok());
        let pointer = hex("RIP")
            .map(InstructionPointer::Bits64)
            .or(narrow.map(InstructionPointer::Bits32))
            .ok_or(NoRegisters { missing: "instruction pointer" })?;
        let privilege_level = hex("CPL")
            .and_then(|level| u8::try_from(level).ok())
            .ok_or(NoRegisters { missing: "privilege level" })?;
        let cr0 = hex("CR0").ok_or(NoRegisters { missing: "CR0" })?;
        Ok(Registers { pointer, privilege_level, cr0 })
    }
}

impl From<Registers> for String {
    fn from(registers: Registers) -> String {
        let pointer = match registers.pointer {
            InstructionPointer::Bits32(pointer) => format!("EIP={pointer:08x}"),
            InstructionPointer::Bits64(pointer) => format!("RIP={pointer:016x}"),
        };
        format!("{pointer} CPL={} CR0={:08x}", registers.privilege_level, registers.cr0)
    }
}

/// The first `NAME=value` in the text.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &str) -> Occupant {
        Registers::try_from(text.to_owned()).expect("registers").occupant()
    }

    #[test]
    fn each_stage_of_a_boot_is_judged() {
        use Occupant::{Firmware, Os};
        let stages = [
            (
                "reset",
                "EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0\nCR0=60000010 CR2=0",
                Firmware,
            ),
            ("SEC", "EIP=fffcc999 EFL=00000012 [----A--] CPL=0 II=0\nCR0=00000033 CR2=0", Firmware),
            ("PEI", "EIP=1febc2c2 EFL=00000046 [---Z-P-] CPL=0\nCR0=00000033", Firmware),
            ("DXE", "RIP=000000001f6e83c8 RFL=00000246 CPL=0\nCR0=80010033", Firmware),
            ("Linux", "RIP=ffffffffaf217a0b RFL=00000246 CPL=0\nCR0=80050033", Os),
            ("program", "RIP=00007f1122334455 RFL=00000246 CPL=3\nCR0=80050033", Os),
            ("32-bit kernel", "EIP=c1234567 EFL=00000246 CPL=0\nCR0=80050033", Os),
        ];
        for (stage, text, expected) in stages {
            assert_eq!(judge(text), expected, "{stage}");
        }
    }

    #[test]
    fn other_text_is_an_error() {
        for text in
            ["", "unknown command: 'info'", "PC=0000 CPL=0", "RIP=zz CPL=0 CR0=0", "RIP=0 CPL=0"]
        {
            assert!(Registers::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
