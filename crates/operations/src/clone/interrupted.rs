//! Clones whose process died: undone when the clone was never known, ended when it is. What another guest has by now stays.
//! Called by the next hpvmclone, by hpvmstart, and by `hpvm doctor --repair`.

use std::path::{Path, PathBuf};
use std::{fs, io};

use hpvm_host::{answers, durable, identity, process, removal};
use hpvm_model::{FileIdentity, GuestConfig, Problem, chain};
use hpvm_registry::{Operation, Outcome, Owner, RecordedOperation, Registry, Selector};

use super::copies;
use crate::{Mode, Refusal, VmHost};

/// Ends all that were interrupted, for a command that is about to use the disks of one guest. What cannot be ended is a
/// problem of that guest alone whose disks it is about; others are only told of it. Without any it asks the registry once.
pub(crate) fn settle_before(
    host: &mut VmHost,
    user: &GuestConfig,
    mode: Mode,
) -> Result<Vec<Problem>, Refusal> {
    let mut told = Vec::new();
    if mode == Mode::DryRun {
        return Ok(told);
    }
    for recorded in host.registry.unfinished()? {
        if !was_interrupted(host, &recorded) {
            continue;
        }
        let Err(refusal) = settle(host, &recorded) else { continue };
        let Operation { command_line, after, .. } = &recorded.operation;
        if after.as_ref().is_some_and(|made| made.uuid == user.uuid) {
            return Err(refusal);
        }
        let text = format!(
            "`{command_line}` was interrupted, and what it left stays: {}",
            chain(&refusal)
        );
        told.push(Problem::warning(command_line.clone(), text));
    }
    Ok(told)
}

/// Whether nobody is at it any more.
pub(crate) fn was_interrupted(host: &VmHost, recorded: &RecordedOperation) -> bool {
    let is_alive = |owner: &Owner| {
        owner.boot_id == host.boot_id && process::is_alive(owner.pid, owner.start_time)
    };
    recorded.operation.outcome.was_interrupted(is_alive)
}

/// Brings one to its end and notes it. The registry is held, so that one command does it and nobody is given one of the
/// files meanwhile; what is to be found at a silent file system is asked for before.
pub(crate) fn settle(host: &mut VmHost, recorded: &RecordedOperation) -> Result<(), Refusal> {
    let left = left(&recorded.operation)?;
    for Left { fresh, .. } in &left {
        copies::takes_changes(fresh)?;
    }
    let change = host.registry.change()?;
    if !change.unfinished()?.iter().any(|unfinished| unfinished.id == recorded.id) {
        return Ok(());
    }
    let operation = &recorded.operation;
    let fate = Fate::of(&change, recorded)?;
    for left in &left {
        fate.settle(&change, left)?;
    }
    let (after, outcome) = match fate {
        Fate::Known(made) => (Some(*made), Outcome::Done),
        Fate::Purged => (operation.after.clone(), Outcome::Done),
        Fate::NeverMade => (None, Outcome::Failed("interrupted".into())),
    };
    let ended = Operation { after, outcome, ..operation.clone() };
    change.finish(recorded.id, &ended)?;
    Ok(change.commit()?)
}

/// What became of the clone.
enum Fate {
    /// The registry has it, perhaps as one that was removed since and is kept.
    Known(Box<GuestConfig>),
    /// It was made, and is gone. Its disks are whosever they are now.
    Purged,
    NeverMade,
}

impl Fate {
    fn of(registry: &Registry, recorded: &RecordedOperation) -> Result<Fate, Refusal> {
        let Some(uuid) = recorded.operation.after.as_ref().map(|clone| clone.uuid) else {
            return Ok(Fate::NeverMade);
        };
        if let Some(guest) = registry.guest(&Selector::Uuid(uuid))? {
            return Ok(Fate::Known(Box::new(guest)));
        }
        let mut removed = registry.removed()?.into_iter().map(|removed| removed.config);
        if let Some(kept) = removed.find(|config| config.uuid == uuid) {
            return Ok(Fate::Known(Box::new(kept)));
        }
        // Only of a guest that there was is anything recorded later.
        let last = registry.operations(Some(uuid), 1)?;
        match last.iter().any(|last| last.id > recorded.id) {
            true => Ok(Fate::Purged),
            false => Ok(Fate::NeverMade),
        }
    }

    fn settle(&self, registry: &Registry, Left { fresh, path }: &Left) -> Result<(), Refusal> {
        let own = match self {
            Fate::Known(made) => Some(made.number),
            Fate::Purged | Fate::NeverMade => None,
        };
        let (there, is_one) = (identity(path), identity(path) == identity(fresh));
        let sharers = match there {
            Some(there) => registry.sharers(&there, own)?,
            None => Vec::new(),
        };
        match (self, sharers.first()) {
            (Fate::Known(_), Some(other)) if !is_one => {
                let by = io::Error::other(format!("guest '{}' has it by now", other.guest));
                Err(Refusal::file("put a copy into the place of", path)(by))
            }
            (Fate::Known(_), _) => copies::settle(fresh, path),
            (Fate::NeverMade, None) => copies::undo(fresh, path),
            (Fate::NeverMade, Some(_)) | (Fate::Purged, _) => {
                removal::file(fresh).map_err(Refusal::file("remove", fresh))
            }
        }
    }
}

fn identity(path: &Path) -> Option<FileIdentity> {
    identity::of_store(&fs::symlink_metadata(path).ok()?)
}

/// A file that it left, and the path for which it was made.
struct Left {
    fresh: PathBuf,
    path: PathBuf,
}

/// What its process may have left, which is dead: nobody makes more of it.
fn left(operation: &Operation) -> Result<Vec<Left>, Refusal> {
    let Outcome::Running(Owner { pid, .. }) = operation.outcome else { return Ok(Vec::new()) };
    let Ok(pid) = u32::try_from(pid) else { return Ok(Vec::new()) };
    let devices = operation.after.iter().flat_map(|config| &config.storage);
    let paths: Vec<PathBuf> =
        devices.filter_map(|device| device.backing.store()).map(PathBuf::from).collect();
    let look = |path: &PathBuf| (path.clone(), move |path: &Path| beside(path, pid));
    let answers = answers::all_about(paths.iter().map(look));
    let mut left = Vec::new();
    for (path, found) in paths.iter().zip(answers) {
        left.extend(found.ok_or_else(answers::silent).map_err(Refusal::file("look at", path))?);
    }
    Ok(left)
}

fn beside(path: &Path, pid: u32) -> Vec<Left> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let fresh = durable::left_siblings(&path, pid);
    fresh.into_iter().map(|fresh| Left { fresh, path: path.clone() }).collect()
}
