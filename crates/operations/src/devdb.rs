//! The device database: what guests may not have, and what is known of devices beside the guests that have them.
//!
//! `registered` answers what it says of the stores of one guest, for every decision; the rest is what `hpvmdevmgmt` and
//! `hpvmhostrdev` do. Which guests depend on an entry is asked of the guests' devices each time, and stored nowhere else.

mod dependents;
pub mod disk_file;
pub mod entries;
pub mod host_devices;
pub mod listing;
mod presets;
pub(crate) mod read_only;
mod registered;
pub mod repair;
pub mod replace;
mod restriction;
pub mod running;
mod trail;

use hpvm_registry::Change;

use crate::{Actor, Mode, Refusal, VmHost};

pub(crate) use presets::{HostFolders, Presets};
pub(crate) use registered::{
    Keeping, forget_unused, has_to_keep, keep_identities, keep_length, kept_length, registered,
    withheld_folders,
};

/// Decides, then writes the change and its record, or leaves the record of a refusal.
fn carry_out<T>(
    host: &mut VmHost,
    actor: &Actor,
    mode: Mode,
    write: fn(Change<'_>, &Actor, &T) -> Result<(), Refusal>,
    decide: impl Fn(&VmHost) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    if mode == Mode::DryRun {
        return decide(host);
    }
    let written = host.decide_and_write(decide, |change, decided| write(change, actor, decided));
    host.record_failure(actor, None, written)
}
