//! The boot record of a running guest that was removed or put aside. Its worker has the file open and misses nothing, so only
//! commands cannot tell any more what machine the guest got. The worker may not write to the guest's folder; what it has is
//! read from its descriptor, put back into its place, and the worker and its keeper are exchanged for such as hold that file.
//! Called by `hpvm why` and `hpvm doctor`.

use std::io::{ErrorKind, Read};
use std::path::PathBuf;

use hpvm_engine::worker_fd;
use hpvm_host::durable;
use hpvm_host::names::guest_folder;
use hpvm_host::process::{PidFd, Signal};
use hpvm_model::{GuestConfig, chain};
use hpvm_plan::record::Machine;

use crate::hanging::{KEEPER, WORKER, hold_supervisors, supervisors};
use crate::presence::{Attention, Presence, Supervision};
use crate::{Actor, Refusal, VmHost, lost, supervise};

/// No record comes near this size.
const RECORD_BYTES_MAX: u64 = 64 << 20;

/// Why commands do not know the machine of a guest that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The worker has it still.
    Mendable { why: String },
    /// Nobody has.
    Final { why: String },
}

impl Loss {
    /// For who looks at the guest.
    pub(crate) fn sentence(&self, config: &GuestConfig) -> String {
        let (Loss::Mendable { why } | Loss::Final { why }) = self;
        format!("its boot record is lost: {why}; `hpvm why {}` tells what to do", config.name)
    }
}

/// Whether the record of a running guest is lost. A worker that has none itself says so by [`Attention::NoRecord`]; where there
/// is no worker, that is what to see to first.
pub(crate) fn look(host: &VmHost, config: &GuestConfig, presence: &Presence) -> Option<Loss> {
    let Presence::On { snapshot: Some(_), attention, supervision } = presence else { return None };
    if *supervision == Supervision::None || matches!(attention, Some(Attention::NoRecord { .. })) {
        return None;
    }
    let refusal = host.boot_record(config).err()?;
    if matches!(&refusal, Refusal::File { source, .. } if source.kind() == ErrorKind::PermissionDenied)
    {
        return None;
    }
    let why = chain(&refusal);
    Some(match held_by_worker(host, config) {
        Some(_) => Loss::Mendable { why },
        None => Loss::Final { why },
    })
}

/// What the guest's worker has open as the record, if that is one. Only root, and the user who runs the guest, can tell.
fn held_by_worker(host: &VmHost, config: &GuestConfig) -> Option<String> {
    let worker = supervisors(host, config, WORKER).into_iter().next()?;
    let descriptor = PathBuf::from(format!("/proc/{}/fd/{}", worker.pid, worker_fd::RECORD));
    let mut text = String::new();
    let file = durable::open_regular(&descriptor).ok()?;
    file.take(RECORD_BYTES_MAX).read_to_string(&mut text).ok()?;
    Machine::read(&text).is_ok().then_some(text)
}

/// Puts the record back. The guest runs on; sessions at its console are joined to its next worker by themselves.
pub(crate) fn mend(host: &VmHost, actor: &Actor, config: &GuestConfig) -> Result<(), Refusal> {
    let _busy = host.busy(config, actor)?;
    let path = host.folder(config).file(guest_folder::BOOT_RECORD);
    if host.boot_record(config).is_ok() || !host.presence(config.number).is_on() {
        return Ok(());
    }
    let supervisors: Vec<PidFd> = [KEEPER, WORKER]
        .iter()
        .flat_map(|program| hold_supervisors(host, config, program))
        .collect();
    let signal = |signal| supervisors.iter().try_for_each(|one| one.signal(signal).map(drop));
    let failed = || Refusal::file("exchange the supervisors of the guest of", &path);
    // Held, neither writes to the record any more, nor replaces the other.
    signal(Signal::STOP).map_err(failed())?;
    let written = held_by_worker(host, config)
        .ok_or_else(|| {
            Refusal::file("find another copy of", &path)(std::io::ErrorKind::NotFound.into())
        })
        .and_then(|text| Ok(durable::replace_file(&path, text.as_bytes(), 0o644)?));
    if let Err(refusal) = written {
        signal(Signal::CONT).map_err(failed())?;
        return Err(refusal);
    }
    for one in &supervisors {
        lost::kill(one)?;
    }
    supervise::adopt(host, config, supervise::TO_ASK)
}
