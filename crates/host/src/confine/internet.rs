//! Confines a process that makes connections for guests, `hpvmnat`: sockets of the Internet are all it has.
//!
//! It opens no file but the host's list of name servers, starts nothing, signals nobody and makes no socket of any other
//! family. Which addresses it may connect to the kernel cannot say for it (Landlock knows ports alone): the process decides.

use std::path::{Path, PathBuf};

use landlock::{Access, AccessFs, LandlockStatus, Ruleset, RulesetAttr, RulesetStatus, Scope};
use nix::libc;
use seccompiler::{BackendError, BpfProgram, SeccompAction, apply_filter_all_threads};

use super::calls::{COMMON, filter, hostile, one_of, whatever_arguments};
use super::{ABI_WANTED, ConfineError, Enforced, allow_path, one_thread, take_on};
use crate::users::Ids;

/// The list of name servers, which the C library looks at again and again.
const RESOLVER: &str = "/etc/resolv.conf";

const IOCTLS: &[u64] = &[libc::FIONBIO, libc::FIONREAD, SIOCATMARK];
/// Where urgent data begins (linux/sockios.h).
const SIOCATMARK: u64 = 0x8905;

/// Confines this process, which must have one thread. There is no way back. `ids`: as whom it goes on, if it is root still.
pub fn confine(ids: Option<Ids>) -> Result<Enforced, ConfineError> {
    one_thread()?;
    if let Some(ids) = ids {
        take_on(ids)?;
    }
    let enforced = withhold_files()?;
    // The list of what is allowed comes last: it does not allow another filter.
    for filter in [hostile(), allowed()] {
        let program = filter.map_err(ConfineError::Calls)?;
        apply_filter_all_threads(&program).map_err(ConfineError::Seccomp)?;
    }
    Ok(enforced)
}

fn withhold_files() -> Result<Enforced, ConfineError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_WANTED))
        .and_then(|rules| rules.scope(Scope::from_all(ABI_WANTED)))
        .and_then(Ruleset::create)
        .map_err(ConfineError::Landlock)?;
    for folder in resolver_folders() {
        rules = allow_path(rules, &folder, AccessFs::ReadFile.into())?;
    }
    let status = rules.restrict_self().map_err(ConfineError::Landlock)?;
    Ok(match (status.landlock, status.ruleset) {
        (LandlockStatus::Available { .. }, RulesetStatus::FullyEnforced) => Enforced::Fully,
        (LandlockStatus::Available { .. }, RulesetStatus::PartiallyEnforced) => Enforced::Partly,
        _ => Enforced::Not,
    })
}

/// Where the list lies, and where it really lies. The list is replaced by renaming, so that a rule for the file alone would
/// soon be about a file that is gone.
fn resolver_folders() -> Vec<PathBuf> {
    let link = Path::new(RESOLVER);
    let mut folders: Vec<PathBuf> = [Some(link.to_owned()), link.canonicalize().ok()]
        .iter()
        .flatten()
        .filter_map(|path| Some(path.parent()?.to_owned()))
        .filter(|folder| folder.is_dir())
        .collect();
    folders.dedup();
    folders
}

fn allowed() -> Result<BpfProgram, BackendError> {
    let mut rules = whatever_arguments(COMMON);
    let internet = [libc::AF_INET, libc::AF_INET6].map(|family| u64::from(family.unsigned_abs()));
    rules.insert(libc::SYS_socket, one_of(0, internet.into_iter())?);
    rules.insert(libc::SYS_ioctl, one_of(1, IOCTLS.iter().copied())?);
    let refusal = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    filter(rules, refusal, SeccompAction::Allow)
}
