//! Where everything of a VM Host lies, below its root.
//!
//! Several VM Hosts live side by side on one machine, each below its own `HPVM_ROOT`. Sockets need short paths (108 bytes)
//! that every guest's user can reach, so a root other than `/` has its run folder outside of itself:
//!
//! ```text
//! ROOT/run/hpvm      -> /run/hpvm-0123456789ab          a link, so that people find it
//! /run/hpvm-…/root   -> ROOT                            the way back: tells whose folder it is
//! /run/hpvm-…/uids   -> 17000000                        the first user id of what this root starts
//! ```
//!
//! What runs as a user of its own is apart from what other roots run, so each has a range of user ids. It lasts as long as the run
//! folder, in which all is that belongs to such a user: what is started later, and what goes on from before, agree.
//!
//! The link is the truth while both ends agree: an ordinary user may have `XDG_RUNTIME_DIR` in one session and not in the
//! next, and both must see the same guests. So must another user, such as root, who may look at a VM Host whose guests run as
//! somebody else's, and change it when none does.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, Mode, OFlags, access};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::{durable, fingerprint, names};

mod abandoned;

pub use abandoned::{Abandoned, Sockets, abandoned};

/// Why a VM Host's folders cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("HPVM_ROOT is empty; name a folder, or unset it")]
    Empty,
    #[error("HPVM_ROOT names {}, which is not there; its first hpvmcreate or hpvmnet -c, and no dry run of them, makes a VM Host there", path.display())]
    Absent { path: PathBuf },
    #[error("HPVM_ROOT names {}, which is no folder; name the folder of a VM Host, or unset it", path.display())]
    NamesNoFolder { path: PathBuf },
    #[error(
        "the path of the VM Host's folder has {bytes} bytes and may have {PREFIX_BYTES_MAX}; let HPVM_ROOT name one with a shorter path"
    )]
    TooLong { bytes: usize },
    #[error("neither HPVM_ROOT, XDG_DATA_HOME nor HOME says where the VM Host lies; set one")]
    NoHome,
    #[error("the folder {} cannot be resolved", path.display())]
    Resolve { path: PathBuf, source: io::Error },
    #[error("{} cannot be made", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("no permission to change {}; run this as its owner or as root", path.display())]
    Denied { path: PathBuf },
    #[error("the link {} cannot be made", path.display())]
    Link { path: PathBuf, source: io::Error },
    #[error(
        "{} belongs to user {owner}, not to user {wanted}; remove it, or use another HPVM_ROOT", path.display()
    )]
    Foreign { path: PathBuf, owner: u32, wanted: u32 },
    #[error("guests of the VM Host in {} run as user {owner}'s; change it as that user, as by `sudo -u '#{owner}'`", prefix.display())]
    RunByAnother { prefix: PathBuf, owner: u32 },
    #[error("{} is a link or a file and should be a folder; move it away", path.display())]
    NoFolder { path: PathBuf },
    #[error("{} is the run folder of {}; use another HPVM_ROOT", path.display(), other.display())]
    Taken { path: PathBuf, other: PathBuf },
}

/// SQLite (`pager.c`) opens no database whose journal's path has more than 512 bytes, and the longest that it is given is that of
/// a registry being made.
const PREFIX_BYTES_MAX: usize = 512 - "/var/opt/hpvm/hpvm.db.new-4194304-99-journal".len();

/// One VM Host's place in the file system. Cheap to clone; touches nothing until [`Root::ensure`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    prefix: PathBuf,
    run: PathBuf,
    run_id: String,
}

impl Root {
    /// The root that `HPVM_ROOT` names; without it `/` for root, and a folder of their own for anybody else.
    pub fn from_environment() -> Result<Root, RootError> {
        match std::env::var_os("HPVM_ROOT") {
            Some(named) if named.is_empty() => Err(RootError::Empty),
            Some(named) => Root::named(Path::new(&named)),
            None if geteuid().is_root() => Root::at(Path::new("/")),
            None => Root::at(&data_home()?.join("hpvm")),
        }
    }

    fn named(path: &Path) -> Result<Root, RootError> {
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_dir() => {
                Err(RootError::NamesNoFolder { path: path.to_owned() })
            }
            _ => Root::at(path),
        }
    }

    /// The root at a folder, which need not exist yet.
    pub fn at(prefix: &Path) -> Result<Root, RootError> {
        let prefix = resolve(prefix)
            .map_err(|source| RootError::Resolve { path: prefix.to_owned(), source })?;
        if prefix == Path::new("/") {
            return Ok(Root { prefix, run: PathBuf::from("/run/hpvm"), run_id: String::new() });
        }
        let bytes = prefix.as_os_str().len();
        if bytes > PREFIX_BYTES_MAX {
            return Err(RootError::TooLong { bytes });
        }
        let run_id = hash(&prefix);
        let run = agreed_run(&prefix).unwrap_or_else(|| run_base().join(format!("hpvm-{run_id}")));
        Ok(Root { prefix, run, run_id })
    }

    #[must_use]
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// The commands, links to `hpvm`.
    #[must_use]
    pub fn bin(&self) -> PathBuf {
        self.prefix.join("opt/hpvm/bin")
    }

    /// Programs that only other programs start.
    #[must_use]
    pub fn lbin(&self) -> PathBuf {
        self.prefix.join("opt/hpvm/lbin")
    }

    #[must_use]
    pub fn guest_images(&self) -> PathBuf {
        self.prefix.join("opt/hpvm/guest-images")
    }

    /// Tunables; read by [`crate::conf::Conf`].
    #[must_use]
    pub fn conf(&self) -> PathBuf {
        self.prefix.join("etc/opt/hpvm/hpvmconf")
    }

    /// Where the tunables were in 2008; honoured when it exists.
    #[must_use]
    pub fn old_conf(&self) -> PathBuf {
        self.prefix.join("etc/rc.config.d/hpvmconf")
    }

    /// All that must survive a boot of the host.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.prefix.join("var/opt/hpvm")
    }

    /// The registry.
    #[must_use]
    pub fn db(&self) -> PathBuf {
        self.state().join("hpvm.db")
    }

    #[must_use]
    pub fn uuids(&self) -> PathBuf {
        self.state().join("uuids")
    }

    /// A guest's folder.
    #[must_use]
    pub fn guest_dir(&self, uuid: &str) -> PathBuf {
        self.uuids().join(uuid)
    }

    #[must_use]
    pub fn guests(&self) -> PathBuf {
        self.state().join("guests")
    }

    /// The link to a guest's folder that carries its name.
    #[must_use]
    pub fn guest_link(&self, name: &str) -> PathBuf {
        self.guests().join(name)
    }

    #[must_use]
    pub fn common(&self) -> PathBuf {
        self.state().join("common")
    }

    /// Empty; its bytes are locked by commands that give stores to running guests.
    #[must_use]
    pub fn claims(&self) -> PathBuf {
        self.common().join("claims")
    }

    /// Empty; each QEMU holds the byte of its guest's number, see [`crate::engines`].
    #[must_use]
    pub fn engines(&self) -> PathBuf {
        self.common().join("engines")
    }

    /// All that must not survive a boot of the host. The short folder itself, never the link to it.
    #[must_use]
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// The run folder of a running guest, by its number.
    #[must_use]
    pub fn run_dir(&self, number: u32) -> PathBuf {
        self.run.join(number.to_string())
    }

    /// The run folder of a running virtual switch, by its number.
    #[must_use]
    pub fn switch_dir(&self, number: u32) -> PathBuf {
        self.run.join(names::SWITCHES).join(number.to_string())
    }

    /// What a virtual switch is, by its number: what a lost registry is rebuilt from.
    #[must_use]
    pub fn switch_text(&self, number: u32) -> PathBuf {
        self.common().join(format!("vswitch-{number}.json"))
    }

    /// The log of a virtual switch, by its number.
    #[must_use]
    pub fn switch_log(&self, number: u32) -> PathBuf {
        self.common().join(format!("vswitch-{number}.log"))
    }

    /// What tells this root's things that are no files from other roots': empty for `/`.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// The first of the user ids of what this root starts, if it has a range of its own. `/` has none, and neither has a root
    /// while it runs what an earlier version started.
    #[must_use]
    pub fn uid_base(&self) -> Option<u32> {
        (!self.run_id.is_empty()).then(|| uid_base_of(&self.run)).flatten()
    }

    /// Refuses a folder that was named and is not there, for who makes no first guest or switch: a slip in its name would be a VM
    /// Host without any.
    pub fn must_be_there(&self) -> Result<(), RootError> {
        match std::env::var_os("HPVM_ROOT").is_none() || self.prefix.exists() {
            true => Ok(()),
            false => Err(RootError::Absent { path: self.prefix.clone() }),
        }
    }

    /// Makes the folders that every guest shares. May run at any time, in any number of processes at once.
    pub fn ensure(&self) -> Result<(), RootError> {
        for folder in [self.uuids(), self.guests(), self.common()] {
            make_folders(&folder)?;
            // Asked before a run folder is made for a VM Host that belongs to somebody else.
            if access(&folder, Access::WRITE_OK) == Err(Errno::ACCESS) {
                return Err(RootError::Denied { path: folder });
            }
        }
        make_file(&self.claims(), 0o600)?;
        make_file(&self.engines(), 0o644)?;
        // Links of ours lead from there to `../uuids`; in another folder they would take the place of what is not ours.
        match fs::symlink_metadata(self.guests()) {
            Ok(metadata) if !metadata.is_dir() => Err(RootError::NoFolder { path: self.guests() }),
            _ => self.ensure_run(),
        }
    }

    fn ensure_run(&self) -> Result<(), RootError> {
        if self.run_id.is_empty() {
            return make_folders(&self.run);
        }
        let link = self.prefix.join("run/hpvm");
        if let Some(owner) = guests_owner(&link, &self.run) {
            return Err(RootError::RunByAnother { prefix: self.prefix.clone(), owner });
        }
        make_own_folder(&self.run)?;
        self.claim_run()?;
        if fs::read_link(&link).is_ok_and(|target| target == self.run) {
            return Ok(());
        }
        make_folders(&self.prefix.join("run"))?;
        durable::replace_symlink(&self.run, &link)
            .map_err(|error| RootError::Link { path: link, source: error.source })
    }

    /// Two roots with the same hash must not share a folder; the first one has it.
    fn claim_run(&self) -> Result<(), RootError> {
        let back = self.run.join("root");
        if geteuid().is_root() && !back.is_symlink() {
            self.take_uids()?;
        }
        match symlink(&self.prefix, &back) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(source) => return Err(RootError::Link { path: back, source }),
        }
        match fs::read_link(&back) {
            Ok(other) if other == self.prefix => Ok(()),
            Ok(other) => Err(RootError::Taken { path: self.run.clone(), other }),
            Err(source) => Err(RootError::Link { path: back, source }),
        }
    }
}

/// User ids of what `/` starts begin at the first of these, those of other roots at a later one.
const UID_RANGE: u32 = 1_000_000;
/// Programs that take a user id for a number with a sign know no later ones.
const UID_RANGES: u32 = i32::MAX.unsigned_abs() / UID_RANGE;
const UIDS: &str = "uids";

impl Root {
    /// A range that no other root of this boot of the machine has.
    fn take_uids(&self) -> Result<(), RootError> {
        let others = self.run.parent().and_then(|folder| fs::read_dir(folder).ok());
        let taken: BTreeSet<u32> = others
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| uid_base_of(&entry.path()))
            .collect();
        let own = 2..UID_RANGES;
        let many = u64::from(own.end - own.start);
        let first = fingerprint(self.prefix.as_os_str().as_bytes()) % many;
        let nth = |n: u64| own.start + u32::try_from((first + n) % many).unwrap_or_default();
        let mut bases = (0..many).map(|n| nth(n) * UID_RANGE);
        let Some(base) = bases.find(|base| !taken.contains(base)) else { return Ok(()) };
        let path = self.run.join(UIDS);
        match symlink(base.to_string(), &path) {
            Err(source) if source.kind() != ErrorKind::AlreadyExists => {
                Err(RootError::Link { path, source })
            }
            _ => Ok(()),
        }
    }
}

fn uid_base_of(run: &Path) -> Option<u32> {
    fs::read_link(run.join(UIDS)).ok()?.to_str()?.parse().ok()
}

/// Why a program of ours cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("the path of the running program cannot be read from /proc/self/exe")]
    OwnPath(#[source] io::Error),
    #[error("{name} is neither in {} nor beside the running program; reinstall hpvm", lbin.display())]
    Missing { name: String, lbin: PathBuf },
}

/// Finds a program of ours such as `hpvmkeeper`: in `../lbin` as installed, else beside the running program as built.
pub fn program(name: &str) -> Result<PathBuf, ProgramError> {
    let folder = own_folder().map_err(ProgramError::OwnPath)?;
    let mut places = vec![folder.join("../lbin"), folder.clone()];
    if folder.ends_with("deps") {
        // Cargo puts programs of tests one folder below the others.
        places.push(folder.join(".."));
    }
    places
        .into_iter()
        .filter_map(|place| place.join(name).canonicalize().ok())
        .find(|path| path.is_file())
        .ok_or_else(|| ProgramError::Missing {
            name: name.to_owned(),
            lbin: folder.join("../lbin"),
        })
}

/// A folder beside that of the running program, as `make install` puts them.
#[must_use]
pub fn installed(folder: &str) -> Option<PathBuf> {
    own_folder().ok()?.parent()?.join(folder).canonicalize().ok()
}

/// The folders of the running programs, where they lie as `make install` puts them. As they are built they lie among what is none.
#[must_use]
pub fn installed_programs() -> Vec<PathBuf> {
    let Some(lbin) = installed("lbin") else { return Vec::new() };
    own_folder().into_iter().chain([lbin]).collect()
}

/// The running program's.
fn own_folder() -> io::Result<PathBuf> {
    let own = fs::read_link("/proc/self/exe")?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

/// Makes a folder that everybody may read, 0755 whatever the umask. One that is there stays as it is.
pub fn make_public_folder(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Holds what is at a path, without opening it, for those who may not walk the way to it.
pub fn hold(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// A file in a folder held open: the path is short whatever the root, and the folder is the very one.
#[must_use]
pub fn within(folder: &impl AsRawFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

fn data_home() -> Result<PathBuf, RootError> {
    let absolute = |name: &str| -> Option<PathBuf> {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    absolute("XDG_DATA_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/share")))
        .ok_or(RootError::NoHome)
}

/// The run folder that link and back link agree on, if it is there and ours, or has guests of another user's.
fn agreed_run(prefix: &Path) -> Option<PathBuf> {
    let link = prefix.join("run/hpvm");
    let run = fs::read_link(&link).ok()?;
    let metadata = fs::symlink_metadata(&run).ok()?;
    let ours = metadata.is_dir() && metadata.uid() == geteuid().as_raw();
    let agreed = fs::read_link(run.join("root")).is_ok_and(|back| back == prefix);
    (agreed && (ours || guests_owner(&link, &run).is_some())).then_some(run)
}

/// The other user whose guests run there, who made the link to it as well: anybody could make a folder in its place.
fn guests_owner(link: &Path, run: &Path) -> Option<u32> {
    let owner = fs::symlink_metadata(run).ok().filter(|found| found.is_dir())?.uid();
    let is_theirs = owner != geteuid().as_raw()
        && fs::symlink_metadata(link).is_ok_and(|link| link.uid() == owner)
        && fs::read_link(link).is_ok_and(|target| target == run);
    let is_guests = |name: OsString| name.to_str().is_some_and(|name| name.parse::<u32>().is_ok());
    let mut found = is_theirs.then(|| fs::read_dir(run).ok()).flatten()?.flatten();
    found.any(|entry| is_guests(entry.file_name())).then_some(owner)
}

/// Below what a new run folder goes. Sessions without a runtime folder (cron, su) get one in /tmp, checked for its owner.
fn run_base() -> PathBuf {
    let uid = geteuid();
    if uid.is_root() {
        return PathBuf::from("/run");
    }
    let named = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let usual = PathBuf::from(format!("/run/user/{}", uid.as_raw()));
    named
        .into_iter()
        .chain([usual])
        .find(|path| path.is_absolute() && path.is_dir())
        .unwrap_or_else(|| PathBuf::from("/tmp"))
}

/// Absolute, with links followed as far as the path exists, so that two spellings of one folder are one root.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let mut missing: Vec<OsString> = Vec::new();
    let mut existing = absolute.as_path();
    loop {
        match existing.canonicalize() {
            Ok(mut resolved) => {
                resolved.extend(missing.iter().rev());
                return Ok(resolved);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        match (existing.components().next_back(), existing.parent()) {
            (Some(Component::Normal(name)), Some(parent)) => {
                missing.push(name.to_owned());
                existing = parent;
            }
            _ => return Err(ErrorKind::InvalidInput.into()),
        }
    }
}

/// 48 bits are enough: two roots of one machine never meet.
fn hash(path: &Path) -> String {
    let hash = fingerprint(path.as_os_str().as_bytes());
    format!("{:012x}", (hash ^ (hash >> 48)) & 0xffff_ffff_ffff)
}

/// Makes a folder and those above it, 0755 whatever the umask.
fn make_folders(path: &Path) -> Result<(), RootError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_folders(parent)?;
    }
    make_folder(path)
}

fn make_folder(path: &Path) -> Result<(), RootError> {
    make_public_folder(path).map_err(|source| RootError::Make { path: path.to_owned(), source })
}

/// Makes an empty file that is not there yet, with this mode whatever the umask.
fn make_file(path: &Path, mode: u32) -> Result<(), RootError> {
    if path.exists() {
        return Ok(());
    }
    let made =
        fs::OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(path);
    made.and_then(|file| file.set_permissions(fs::Permissions::from_mode(mode)))
        .map_err(|source| RootError::Make { path: path.to_owned(), source })
}

/// Makes a folder in a place where others may make one too, and trusts it only if it is ours and no link.
fn make_own_folder(path: &Path) -> Result<(), RootError> {
    make_folder(path)?;
    let metadata = fs::symlink_metadata(path)
        .map_err(|source| RootError::Make { path: path.to_owned(), source })?;
    let wanted = geteuid().as_raw();
    if !metadata.is_dir() {
        return Err(RootError::NoFolder { path: path.to_owned() });
    }
    if metadata.uid() != wanted {
        return Err(RootError::Foreign { path: path.to_owned(), owner: metadata.uid(), wanted });
    }
    Ok(())
}
