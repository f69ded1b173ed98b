//! Makes a lost or damaged registry again from what the guests' folders and the switches' texts say, and from the old one
//! what those do not know. Nothing is deleted: the old file gets another name, and its log with it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use hpvm_model::{GuestConfig, GuestNumber, SwitchName, Vswitch};
use jiff::Timestamp;

use crate::change::Change;
use crate::error::RegistryError;
use crate::guest::{Identities, RemovedGuest};
use crate::open::{Access, Registry, target_of};
use crate::remembered::{Lost, Remembered};
use crate::schema::{Fresh, named_beside, sync_folder_of};
use crate::step::Step;

/// A guest that was found, and whether it was removed and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Guest(GuestConfig, Identities),
    Removed(RemovedGuest, Identities),
}

/// What a new registry is made of, beside what the old one knows.
#[derive(Debug, Default)]
pub struct Sources {
    pub guests: Vec<Found>,
    pub switches: Vec<Vswitch>,
}

/// How a rebuild ended.
#[derive(Debug)]
pub enum Rebuild {
    Done(Rebuilt),
    /// This is what it would have done; the old registry is in place.
    NotWanted(Rebuilt),
}

/// What a rebuild did.
#[derive(Debug)]
pub struct Rebuilt {
    /// Where the old file is now, if there was one.
    pub damaged: Option<PathBuf>,
    pub guests: Vec<GuestNumber>,
    /// Those that were removed and are kept.
    pub removed: Vec<GuestNumber>,
    pub switches: Vec<SwitchName>,
    /// Those that the old registry knows and that were not found.
    pub unfound: Vec<GuestConfig>,
    /// Those that contradict one that came before.
    pub skipped: Vec<Skipped>,
    /// Entries of the device database that were taken over from the old registry.
    pub entries_count: usize,
    /// The same for what was done.
    pub operations_count: usize,
    /// What the old registry knew and nobody else does, and could not be read.
    pub lost: Vec<Lost>,
}

#[derive(Debug)]
pub struct Skipped {
    pub config: GuestConfig,
    pub why: RegistryError,
}

/// Writes a new registry with what `look` finds, and with what the old one knows beside it, and puts it in the place of whatever
/// is at `path`, which becomes `PATH.damaged-TIME`, if that `is_wanted`. A crash at any point leaves the old one or the new one
/// in place.
pub fn rebuild(
    path: &Path,
    look: impl FnOnce() -> Sources,
    is_wanted: impl FnOnce(&Rebuilt) -> bool,
) -> Result<Rebuild, RegistryError> {
    let path = &place_of(path)?;
    // A registry that is sound after all may be in use: its lock keeps others out from the look on until it is replaced, and
    // who waited for it sees then that it was.
    let old = Registry::open_existing(path).ok();
    let _held = old.as_ref().and_then(|old| {
        old.empty_log();
        old.begin().ok()
    });
    let sources = look();
    let (remembered, mut rebuilt) = begun(path, &sources);
    let fresh = Fresh::write(path, |registry| fill(registry, sources, &remembered, &mut rebuilt))?;
    if !is_wanted(&rebuilt) {
        return Ok(Rebuild::NotWanted(rebuilt));
    }
    Step::DoctorWritten.reached();
    rebuilt.damaged = put_aside(path)?;
    Step::DoctorSaved.reached();
    fs::rename(&fresh.path, path)
        .map_err(RegistryError::file("put the new registry in place", path))?;
    fresh.renamed();
    sync_folder_of(path)?;
    Step::DoctorReplaced.reached();
    Ok(Rebuild::Done(rebuilt))
}

/// What [`rebuild()`] would do. Nothing is written.
pub fn rehearse(path: &Path, sources: Sources) -> Result<Rebuilt, RegistryError> {
    let path = &place_of(path)?;
    let (remembered, mut rebuilt) = begun(path, &sources);
    fill(&Registry::in_memory(path)?, sources, &remembered, &mut rebuilt)?;
    Ok(rebuilt)
}

/// A link of the administrator's stays; its target is what is replaced, if that can have been a registry.
fn place_of(path: &Path) -> Result<PathBuf, RegistryError> {
    let target = target_of(path);
    if target != path && target.exists() && !target.is_file() {
        let what =
            format!("it is a link to {}, which is no plain file; remove it", target.display());
        return Err(RegistryError::damaged(path, what));
    }
    Ok(target)
}

/// What the old registry knows, and a new one that has nothing yet.
fn begun(path: &Path, sources: &Sources) -> (Remembered, Rebuilt) {
    let mut lost = Vec::new();
    let old = readable(path);
    let remembered = Remembered::of(&old, &mut lost);
    let mut unfound = old.ok().and_then(|old| old.all().ok()).unwrap_or_default();
    unfound.retain(|guest| sources.guests.iter().all(|found| found.config().uuid != guest.uuid));
    let rebuilt = Rebuilt {
        damaged: None,
        guests: Vec::new(),
        removed: Vec::new(),
        switches: Vec::new(),
        unfound,
        skipped: Vec::new(),
        entries_count: remembered.entries.len(),
        operations_count: remembered.operations.len(),
        lost,
    };
    (remembered, rebuilt)
}

/// The old registry as any reader sees it.
fn readable(path: &Path) -> Result<Registry, String> {
    match path.exists() {
        true => Registry::open(path, Access::ReadOnly).map_err(|error| error.without_advice()),
        false => Err("there is no old registry".into()),
    }
}

fn fill(
    registry: &Registry,
    sources: Sources,
    remembered: &Remembered,
    rebuilt: &mut Rebuilt,
) -> Result<(), RegistryError> {
    let change = registry.begin()?;
    remembered.restore(&change)?;
    for switch in sources.switches {
        // Texts of two switches with one name were never those of one registry: the first is as good as the other.
        match change.enter_vswitch(&switch) {
            Ok(()) => rebuilt.switches.push(switch.name),
            Err(RegistryError::SwitchNameTaken { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    // Removed guests first: their names are free again by the time an existing guest wants one.
    let (removed, existing): (Vec<Found>, Vec<Found>) =
        sources.guests.into_iter().partition(|found| matches!(found, Found::Removed(..)));
    let removed = removed.into_iter().map(|found| found.removed_as_in(remembered));
    for found in removed.chain(existing) {
        let known = match found {
            Found::Guest(..) => &mut rebuilt.guests,
            Found::Removed(..) => &mut rebuilt.removed,
        };
        match (add(&change, &found), found.into_config()) {
            (Ok(()), config) => known.push(config.number),
            (
                Err(why @ (RegistryError::NameTaken { .. } | RegistryError::IdentityTaken { .. })),
                config,
            ) => rebuilt.skipped.push(Skipped { config, why }),
            (Err(error), _) => return Err(error),
        }
    }
    rebuilt.guests.sort_unstable();
    rebuilt.removed.sort_unstable();
    change.commit()
}

fn add(change: &Change<'_>, found: &Found) -> Result<(), RegistryError> {
    match found {
        Found::Guest(config, files) => change.insert_as_it_is(config, files),
        Found::Removed(RemovedGuest { config, removed_at, keep_until }, files) => {
            change.insert_as_it_is(config, files)?;
            change.remove_as_of(config.number, *removed_at, *keep_until)
        }
    }
}

impl Found {
    /// Removed when the old registry says that it was.
    fn removed_as_in(self, remembered: &Remembered) -> Found {
        match self {
            Found::Removed(RemovedGuest { config, removed_at, keep_until }, files) => {
                let times = remembered.removals.get(&config.uuid).copied();
                let (removed_at, keep_until) = times.unwrap_or((removed_at, keep_until));
                Found::Removed(RemovedGuest { config, removed_at, keep_until }, files)
            }
            existing => existing,
        }
    }

    fn config(&self) -> &GuestConfig {
        match self {
            Found::Guest(config, _) => config,
            Found::Removed(removed, _) => &removed.config,
        }
    }

    fn into_config(self) -> GuestConfig {
        match self {
            Found::Guest(config, _) => config,
            Found::Removed(removed, _) => removed.config,
        }
    }
}

/// Gives what is at `path` a second name and takes its log away from beside it: a log left there would be taken for the
/// new file's.
fn put_aside(path: &Path) -> Result<Option<PathBuf>, RegistryError> {
    let failed = || RegistryError::file("put the damaged registry aside", path);
    let damaged = free_name(path);
    let kept = match fs::symlink_metadata(path) {
        Ok(old) if old.is_file() => fs::hard_link(path, &damaged),
        Ok(_) => fs::rename(path, &damaged),
        Err(error) => Err(error),
    };
    let kept = match kept {
        Ok(()) => Some(damaged.clone()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(failed()(error)),
    };
    for suffix in ["-wal", "-shm"] {
        match fs::rename(named_beside(path, suffix), named_beside(&damaged, suffix)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
    }
    Ok(kept)
}

fn free_name(path: &Path) -> PathBuf {
    let now = Timestamp::now().strftime(".damaged-%Y%m%dT%H%M%SZ").to_string();
    let first = named_beside(path, &now);
    let later = (2..1000).map(|n| named_beside(path, &format!("{now}-{n}")));
    std::iter::once(first.clone()).chain(later).find(|name| !name.exists()).unwrap_or(first)
}
