//! Confines what is about to become QEMU's reservation helper: it may send `PERSISTENT RESERVE` to a disk that is handed to it,
//! and little else.
//!
//! | layer | what is left |
//! | --- | --- |
//! | user id | one of its own, with `CAP_SYS_RAWIO`; what else the helper needs to give up the rest, it gives up first of all |
//! | Landlock | its program and its libraries, to be read and executed; no file to be written, no device to be opened |
//! | seccomp | death for what only an attacker calls |
//!
//! The disk is a descriptor that QEMU sends with each request: whoever takes the helper over reaches the disks that QEMU
//! handed to it, for any SCSI command.

use std::path::{Path, PathBuf};

use landlock::{
    Access, AccessFs, AccessNet, LandlockStatus, Ruleset, RulesetAttr, RulesetStatus, Scope,
};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, set_capabilities,
    set_keep_capabilities,
};
use seccompiler::apply_filter_all_threads;

use super::calls::hostile;
use super::{ABI_WANTED, ConfineError, Enforced, allow_path, one_thread};
use crate::users::Ids;

/// What the helper starts with: the right to command a disk, and what it takes to be rid of everything else (QEMU,
/// scsi/qemu-pr-helper.c, drop_privileges).
const RIGHTS: CapabilitySet = CapabilitySet::SYS_RAWIO
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP);

/// Where the libraries of programs lie (hier(7)), and by what they are found.
const LIBRARIES: [&str; 5] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"];
const LIBRARY_CACHE: &str = "/etc/ld.so.cache";

/// Confines this process, which must have one thread, for the program that it becomes next. There is no way back. `ids`: as
/// whom it goes on, if it is root still. It is killed when the process that started it ends.
pub fn confine(ids: Option<Ids>, program: &Path) -> Result<Enforced, ConfineError> {
    one_thread()?;
    if let Some(ids) = ids {
        take_on(ids).map_err(|source| ConfineError::Ids { uid: ids.uid, gid: ids.gid, source })?;
    }
    // A change of user takes this back, so it comes after.
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| ConfineError::Lifeline(error.into()))?;
    let enforced = withhold_files(program)?;
    let filter = hostile().map_err(ConfineError::Calls)?;
    apply_filter_all_threads(&filter).map_err(ConfineError::Seccomp)?;
    Ok(enforced)
}

/// Gives up root but for some rights, which the next program has too.
fn take_on(Ids { uid, gid }: Ids) -> std::io::Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[])?;
    set_keep_capabilities(true)?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    let sets = CapabilitySets { effective: RIGHTS, permitted: RIGHTS, inheritable: RIGHTS };
    set_capabilities(None, sets)?;
    for right in RIGHTS.iter() {
        configure_capability_in_ambient_set(right, true)?;
    }
    Ok(())
}

fn withhold_files(program: &Path) -> Result<Enforced, ConfineError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_WANTED))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(ABI_WANTED)))
        .and_then(|rules| rules.scope(Scope::from_all(ABI_WANTED)))
        .and_then(Ruleset::create)
        .map_err(ConfineError::Landlock)?;
    let execute = AccessFs::Execute | AccessFs::ReadFile;
    rules = allow_path(rules, Path::new("/dev/null"), AccessFs::ReadFile | AccessFs::WriteFile)?;
    let folders = LIBRARIES.map(PathBuf::from).into_iter().filter(|folder| folder.is_dir());
    for path in folders.chain([program.to_owned()]) {
        rules = allow_path(rules, &path, execute)?;
    }
    if Path::new(LIBRARY_CACHE).exists() {
        rules = allow_path(rules, Path::new(LIBRARY_CACHE), AccessFs::ReadFile.into())?;
    }
    let status = rules.restrict_self().map_err(ConfineError::Landlock)?;
    Ok(match (status.landlock, status.ruleset) {
        (LandlockStatus::Available { .. }, RulesetStatus::FullyEnforced) => Enforced::Fully,
        (LandlockStatus::Available { .. }, RulesetStatus::PartiallyEnforced) => Enforced::Partly,
        _ => Enforced::Not,
    })
}
