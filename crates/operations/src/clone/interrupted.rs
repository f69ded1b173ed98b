//! Clones whose process died: undone when the registry does not know the clone, ended when it does. Called by the next
//! hpvmclone, by hpvmstart, and by `hpvm doctor --repair`.

use std::path::{Path, PathBuf};

use hpvm_host::{durable, process};
use hpvm_model::{GuestConfig, GuestUuid};
use hpvm_registry::{Operation, Outcome, Owner, RecordedOperation, Selector};

use super::copies;
use crate::{Refusal, VmHost};

/// Ends all that were interrupted. Without any it asks the registry once.
pub(crate) fn settle_all(host: &mut VmHost) -> Result<(), Refusal> {
    for recorded in host.registry.unfinished()? {
        if was_interrupted(host, &recorded) {
            settle(host, &recorded)?;
        }
    }
    Ok(())
}

/// Whether nobody is at it any more.
pub(crate) fn was_interrupted(host: &VmHost, recorded: &RecordedOperation) -> bool {
    let is_alive = |owner: &Owner| {
        owner.boot_id == host.boot_id && process::is_alive(owner.pid, owner.start_time)
    };
    recorded.operation.outcome.was_interrupted(is_alive)
}

/// Brings one to its end and notes it.
pub(crate) fn settle(host: &mut VmHost, recorded: &RecordedOperation) -> Result<(), Refusal> {
    let operation = &recorded.operation;
    let made = match &operation.after {
        Some(config) => known(host, config.uuid)?,
        None => None,
    };
    for (fresh, path) in left(operation) {
        match &made {
            Some(_) => copies::settle(&fresh, &path)?,
            None => copies::undo(&fresh, &path)?,
        }
    }
    let (after, outcome) = match made {
        Some(made) => (Some(made), Outcome::Done),
        None => (None, Outcome::Failed("interrupted".into())),
    };
    let ended = Operation { after, outcome, ..operation.clone() };
    host.registry.finish(recorded.id, &ended)?;
    Ok(())
}

/// The guest as the registry has it, also if it was removed since and is kept.
fn known(host: &VmHost, uuid: GuestUuid) -> Result<Option<GuestConfig>, Refusal> {
    if let Some(guest) = host.registry.guest(&Selector::Uuid(uuid))? {
        return Ok(Some(guest));
    }
    let mut removed = host.registry.removed()?.into_iter().map(|removed| removed.config);
    Ok(removed.find(|config| config.uuid == uuid))
}

/// The files it left, each with the path it was made for.
fn left(operation: &Operation) -> Vec<(PathBuf, PathBuf)> {
    let Outcome::Running(Owner { pid, .. }) = operation.outcome else { return Vec::new() };
    let Ok(pid) = u32::try_from(pid) else { return Vec::new() };
    let devices = operation.after.iter().flat_map(|config| &config.storage);
    let paths = devices
        .filter_map(|device| device.backing.store())
        .map(|path| std::fs::canonicalize(path).unwrap_or_else(|_| Path::new(path).to_owned()));
    paths
        .flat_map(|path| {
            let fresh = durable::left_siblings(&path, pid);
            fresh.into_iter().map(move |fresh| (fresh, path.clone()))
        })
        .collect()
}
