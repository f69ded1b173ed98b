//! `hpvmstatus`: one line a guest. Scripts drop the heading by its words "Virtual Machine" and the ruler by its "=====";
//! no guest's line can have either.

use std::fmt::Write as _;

use hpvm_model::{GuestName, GuestNumber, Memory, OsFamily, RunState, Vcpus};
use hpvm_registry::GuestSummary;

use super::name_column;

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

/// Without the name.
const COLUMNS_BYTES: usize = 61;

#[must_use]
pub fn render<'a>(guests: impl ExactSizeIterator<Item = Listed<'a>> + Clone) -> String {
    let width = name_column(guests.clone().map(|guest| guest.name));
    let mut text = String::with_capacity((guests.len() + 3) * (width + COLUMNS_BYTES));
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "[Virtual Machines]\n\
         {:<width$} VM #  OS Type State     #VCPUs #Devs #Nets Memory  Runsysid\n\
         {:=<width$} ===== ======= ========= ====== ===== ===== ======= ========\n",
        "Virtual Machine Name", ""
    );
    for guest in guests {
        let Listed { name, number, os, state, vcpus, storage_devices, nics, memory } = guest;
        let (number, vcpus) = (number.get(), vcpus.get());
        // This VM Host is its only server.
        let _ = writeln!(
            text,
            "{name:<width$} {number:>5} {os:<7} {state:<9} {vcpus:>6} {storage_devices:>5} {nics:>5} {memory:>7} {:>8}",
            0
        );
    }
    text
}
