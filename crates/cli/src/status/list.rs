//! `hpvmstatus`: one line a guest. Scripts drop the heading by its words "Virtual Machine" and the ruler by its "=====";
//! no guest's line can have either.

use std::fmt::Write as _;

use hpvm_model::{GuestName, GuestNumber, Memory, OsFamily, RunState, Vcpus};
use hpvm_registry::GuestSummary;

/// What a line needs: little enough to be read for thousands of guests at once.
#[derive(Clone, Debug)]
pub struct Listed<'a> {
    pub name: &'a GuestName,
    pub number: GuestNumber,
    pub os: OsFamily,
    pub state: RunState,
    pub vcpus: Vcpus,
    pub storage_devices: u32,
    pub nics: u32,
    pub memory: Memory,
}

impl<'a> Listed<'a> {
    #[must_use]
    pub fn new(guest: &'a GuestSummary, state: RunState) -> Listed<'a> {
        Listed {
            name: &guest.name,
            number: guest.number,
            os: guest.os.family,
            state,
            vcpus: guest.vcpus,
            storage_devices: guest.devices,
            nics: guest.nics,
            memory: guest.memory,
        }
    }
}

const HEAD: &str = "\
[Virtual Machines]
Virtual Machine Name VM #  OS Type State     #VCPUs #Devs #Nets Memory  Runsysid
==================== ===== ======= ========= ====== ===== ===== ======= ========
";
const LINE_BYTES: usize = 81;

#[must_use]
pub fn render<'a>(guests: impl ExactSizeIterator<Item = Listed<'a>>) -> String {
    let mut text = String::with_capacity(HEAD.len() + guests.len() * LINE_BYTES);
    text.push_str(HEAD);
    for guest in guests {
        let Listed { name, number, os, state, vcpus, storage_devices, nics, memory } = guest;
        let (number, vcpus) = (number.get(), vcpus.get());
        // Writing to a string cannot fail. This VM Host is its only server.
        let _ = writeln!(
            text,
            "{name:<20} {number:>5} {os:<7} {state:<9} {vcpus:>6} {storage_devices:>5} {nics:>5} {memory:>7} {:>8}",
            0
        );
    }
    text
}
