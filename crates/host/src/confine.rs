//! Confines the worker: what it may still do once it has its descriptors.
//!
//! The worker reads what hostile guests and local users send. After [`Confinement::apply`] it has no rights of root, reaches
//! no file but its run folder and the few that are listed, speaks to nobody over a network, starts nothing but the listed
//! programs, and makes only the system calls it needs. What it starts (a successor keeper, and its worker) inherits all of
//! it; a worker that finds itself confined so adds nothing, since the kernel takes a limited number of layers.
//!
//! | layer | what it withholds |
//! | --- | --- |
//! | user id | rights of root and of every other guest |
//! | Landlock | files, TCP, signals and abstract sockets of others |
//! | seccomp | system calls: a refusal for most, death for those that only an attacker makes |

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, PathFdError,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};

use crate::process;
use crate::users::Ids;

mod calls;
pub mod internet;
pub mod reservations;

/// The newest Landlock whose rights are asked for; an older kernel gives what it has.
const ABI_WANTED: ABI = ABI::V9;

/// Why a process is not confined. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("the process has {0} threads and can be confined with one only")]
    Threads(usize),
    #[error("the threads of this process cannot be counted")]
    CountThreads(#[source] io::Error),
    #[error("user {uid} and group {gid} cannot be taken on")]
    Ids { uid: u32, gid: u32, source: io::Error },
    #[error("the process cannot be bound to the life of its parent")]
    Lifeline(#[source] io::Error),
    #[error("{} cannot be opened for the confinement", path.display())]
    Path { path: PathBuf, source: io::Error },
    #[error("the files cannot be withheld")]
    Landlock(#[source] RulesetError),
    #[error("the system calls cannot be withheld")]
    Seccomp(#[source] seccompiler::Error),
    #[error("the list of system calls is wrong")]
    Calls(#[source] seccompiler::BackendError),
}

/// What is left to a process.
#[derive(Clone, Copy, Debug)]
pub struct Confinement<'a> {
    /// As whom it goes on, if it is root still.
    pub ids: Option<Ids>,
    /// Its run folder: files and sockets in it may be made, read, written, renamed and removed.
    pub folder: BorrowedFd<'a>,
    /// Folders of others whose files it may read, held.
    pub read_beneath: &'a [BorrowedFd<'a>],
    /// Files and folders it may read, never /proc as a whole; what does not exist is passed over.
    pub read: &'a [&'a Path],
    /// Programs it may start.
    pub execute: &'a [&'a Path],
}

/// How much of the files' part the kernel enforces; the rest is enforced or an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    Fully,
    /// The kernel is older than some of the rights.
    Partly,
    /// This process was confined when it started, by a worker before it.
    Inherited,
    /// The kernel has no Landlock, or it is switched off.
    Not,
}

impl Confinement<'_> {
    /// Confines this process, which must have one thread, and everything it will start. There is no way back.
    pub fn apply(&self) -> Result<Enforced, ConfineError> {
        if is_confined() {
            return Ok(Enforced::Inherited);
        }
        one_thread()?;
        if let Some(ids) = self.ids {
            take_on(ids)?;
        }
        let enforced = self.withhold_files()?;
        calls::withhold()?;
        Ok(enforced)
    }

    fn withhold_files(&self) -> Result<Enforced, ConfineError> {
        let status = self.rules()?.restrict_self().map_err(ConfineError::Landlock)?;
        Ok(match (status.landlock, status.ruleset) {
            (LandlockStatus::Available { .. }, RulesetStatus::FullyEnforced) => Enforced::Fully,
            (LandlockStatus::Available { .. }, RulesetStatus::PartiallyEnforced) => {
                Enforced::Partly
            }
            _ => Enforced::Not,
        })
    }

    fn rules(&self) -> Result<RulesetCreated, ConfineError> {
        let all = AccessFs::from_all(ABI_WANTED);
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let execute = AccessFs::Execute | AccessFs::ReadFile;
        let mut rules = Ruleset::default()
            .handle_access(all)
            .and_then(|rules| rules.handle_access(AccessNet::from_all(ABI_WANTED)))
            .and_then(|rules| rules.scope(Scope::from_all(ABI_WANTED)))
            .and_then(Ruleset::create)
            .map_err(ConfineError::Landlock)?;
        rules = allow(rules, self.folder, all & !AccessFs::Execute)?;
        // Standard input and output of what is started.
        rules = allow_path(rules, Path::new("/dev/null"), read | AccessFs::WriteFile)?;
        for path in self.read.iter().copied().chain([Path::new("/etc/ld.so.cache")]) {
            if path.exists() {
                rules = allow_path(rules, path, read)?;
            }
        }
        for folder in self.read_beneath {
            rules = allow(rules, folder, read)?;
        }
        for path in self.execute {
            rules = allow_path(rules, path, execute)?;
        }
        for path in libraries() {
            rules = allow_path(rules, &path, execute)?;
        }
        Ok(rules)
    }
}

/// User ids and system calls are each thread's own.
fn one_thread() -> Result<(), ConfineError> {
    match process::threads().map_err(ConfineError::CountThreads)? {
        1 => Ok(()),
        threads => Err(ConfineError::Threads(threads)),
    }
}

/// Whether both layers are there already: nothing else keeps a process from seeing itself, and from sockets at all.
fn is_confined() -> bool {
    let sees_itself = !matches!(
        fs::read_dir("/proc/self/task"),
        Err(error) if error.kind() == ErrorKind::PermissionDenied
    );
    let may_call =
        !matches!(socket(AddressFamily::INET, SocketType::DGRAM, None), Err(Errno::PERM));
    !sees_itself && !may_call
}

fn allow_path(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, ConfineError> {
    let opened = PathFd::new(path).map_err(|error| {
        let source = match error {
            PathFdError::OpenCall { source, .. } => source,
            other => io::Error::other(other),
        };
        ConfineError::Path { path: path.to_owned(), source }
    })?;
    // Rights that only folders have are no rights of a file.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(ABI_WANTED) };
    allow(rules, opened, access)
}

fn allow(
    rules: RulesetCreated,
    beneath: impl AsFd,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, ConfineError> {
    rules.add_rule(PathBeneath::new(beneath, access)).map_err(ConfineError::Landlock)
}

/// The files this program consists of: loader and libraries, which the programs it starts consist of too.
fn libraries() -> Vec<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut paths: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])))
        .filter(|path| path.is_file())
        .collect();
    paths.dedup();
    paths
}

/// Gives up all groups, then root.
fn take_on(Ids { uid, gid }: Ids) -> Result<(), ConfineError> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[])
        .and_then(|()| setresgid(group, group, group))
        .and_then(|()| setresuid(user, user, user))
        .map_err(|error| ConfineError::Ids { uid, gid, source: error.into() })
}
