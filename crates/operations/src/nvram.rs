//! A guest's firmware variables: whether they are good, and the way back to an earlier state. What is replaced is kept as
//! `nvram.damaged` until the next replacement.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hpvm_host::lock::pause_for;
use hpvm_host::names::guest_folder;
use hpvm_host::{durable, removal};
use hpvm_model::GuestConfig;
use hpvm_plan::facts::Lack;
use hpvm_registry::Step;

use crate::{Actor, Mode, Refusal, VmHost, facts, lost};

/// Where the variables come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The copy that was good at the last start; without one, the pristine variables.
    LastGood,
    /// As a new guest gets them; boot entries are lost.
    Pristine,
}

/// What is wrong with a guest's variables; `None`: nothing.
pub fn damage(host: &VmHost, config: &GuestConfig) -> Option<Lack> {
    facts::variables(&host.folder(config).file(guest_folder::NVRAM), &host.conf.pristine_nvram())
        .missing
}

/// Firmware that is writing its variables anew writes some of them within this time.
const REWRITTEN_WITHIN: Duration = Duration::from_millis(500);

/// The same of a guest that runs: what its firmware is just writing anew is no damage.
pub(crate) fn lasting_damage(host: &VmHost, config: &GuestConfig) -> Option<Lack> {
    let nvram = host.folder(config).file(guest_folder::NVRAM);
    let written_at = || std::fs::metadata(&nvram).and_then(|found| found.modified()).ok();
    let before = written_at();
    if damage(host, config)? == Lack::Forbidden {
        return Some(Lack::Forbidden);
    }
    pause_for(REWRITTEN_WITHIN);
    damage(host, config).filter(|_| written_at() == before)
}

/// Where variables come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub path: PathBuf,
    /// What came of the wish: the last good ones may be asked for, and there be none.
    pub from: From,
}

/// Replaces the variables of a guest that is off; gives what they come from.
pub fn replace(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    from: From,
    mode: Mode,
) -> Result<Source, Refusal> {
    let replaced = attempt(host, actor, config, from, mode);
    host.record_failure_in(mode, actor, config, replaced)
}

fn attempt(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    from: From,
    mode: Mode,
) -> Result<Source, Refusal> {
    let _busy = host.busy_in(mode, config, actor)?;
    if host.presence(config.number).is_on() {
        return Err(Refusal::Running(config.name.clone()));
    }
    lost::refuse(host, config)?;
    let folder = host.folder(config);
    let (nvram, previous) =
        (folder.file(guest_folder::NVRAM), folder.file(guest_folder::NVRAM_PREVIOUS));
    let pristine = host.conf.pristine_nvram();
    let is_good = |path| facts::variables(path, &pristine).missing.is_none();
    let source = match from {
        From::LastGood if is_good(&previous) => Source { path: previous, from },
        From::LastGood | From::Pristine => Source { path: pristine, from: From::Pristine },
    };
    if mode == Mode::DryRun {
        return Ok(source);
    }
    let damaged = folder.file(guest_folder::NVRAM_DAMAGED);
    exchange(host, actor, config, &source.path, (&nvram, &damaged))?;
    Ok(source)
}

/// New variables and the record of it, or neither; only a folder in their place does not come back to it.
fn exchange(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    source: &Path,
    (nvram, damaged): (&Path, &Path),
) -> Result<(), Refusal> {
    keep_damaged(nvram, damaged)?;
    let exchanged = durable::replace_by_copy(source, nvram, 0o600).map_err(Refusal::from);
    let recorded = exchanged.and_then(|()| {
        Step::NvramReplaced.reached();
        host.registry.record(&actor.done(Some(config), Some(config)))?;
        Ok(())
    });
    if recorded.is_err() {
        // The way back. The refusal that led here is the one to tell.
        let _ = durable::rename(damaged, nvram);
        // Two names of one file are not renamed; what was never replaced needs no second.
        let _ = std::fs::remove_file(damaged);
    }
    recorded
}

/// A second name, so that the guest is never without variables. A folder in their place, which takes none, moves.
fn keep_damaged(nvram: &Path, damaged: &Path) -> Result<(), Refusal> {
    let removed = match damaged.is_dir() {
        true => removal::folder(damaged),
        false => removal::file(damaged),
    };
    let kept = match nvram.is_dir() {
        true => std::fs::rename(nvram, damaged),
        false => std::fs::hard_link(nvram, damaged),
    };
    for done in [removed, kept] {
        match done {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Refusal::file("keep the damaged variables as", damaged)(error));
            }
            _ => {}
        }
    }
    Ok(())
}
