//! Starts a keeper: the launch description and exactly the descriptors it names.
//!
//! Called by hpvmstart, by commands that adopt a guest nobody supervises, and by a worker whose keeper died. The words of
//! the description are listed in ARCHITECTURE.md, 'Keeper'. Descriptors are given by value: our copies are closed as soon
//! as the keeper has its own, since a shared open description of a disk would defeat the engine's image locks.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::process::Signal;

use crate::inherited::inherited;
use crate::lock::pause_for;
use crate::paths;
use crate::process::{self, Life, PidFd};
use crate::users::Ids;

/// The launch description's number in the keeper.
const DESCRIPTION: RawFd = 3;
/// Where what else is handed over begins, behind the streams and what tells its receiver what it is for.
pub(crate) const FIRST: RawFd = DESCRIPTION + 1;

/// Why no keeper was started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("the launch description cannot be written")]
    Describe(#[source] io::Error),
    #[error("a part of the launch description holds a NUL byte: {0:?}")]
    Nul(OsString),
    #[error("the launch description left by the keeper before cannot be read")]
    Inherit(#[source] io::Error),
    #[error("the launch description left by the keeper before is damaged at '{0}'")]
    Damaged(String),
    #[error("descriptor {number}, which the next worker needs, is gone")]
    Lost { number: RawFd, source: io::Error },
    #[error("{} cannot be started", program.display())]
    Spawn { program: PathBuf, source: io::Error },
}

/// Where the keeper's program lies, for a process that is about to confine itself: where it is installed, or through the
/// descriptor that holds it when we may not walk there.
#[must_use]
pub fn keeper_program(held: Option<&OwnedFd>) -> Option<PathBuf> {
    let by_descriptor = || Some(PathBuf::from(format!("/proc/self/fd/{}", held?.as_raw_fd())));
    paths::program("hpvmkeeper").ok().or_else(by_descriptor)
}

/// A program that the keeper starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
    /// Without the program's own name.
    pub args: Vec<OsString>,
    /// As whom it runs; `None`: as the keeper does.
    pub ids: Option<Ids>,
}

/// A keeper that was started. It is our child; when we end, it goes on.
#[derive(Debug)]
pub struct Keeper {
    pub pid: i32,
    pub pidfd: PidFd,
}

/// A process that is killed, or stopped, is so after some milliseconds.
const END_BOUND: Duration = Duration::from_secs(1);

impl Keeper {
    /// Kills a keeper and what it started. It is stopped before, so that it starts nobody meanwhile; whatever fails then, it
    /// does not stay so.
    pub fn end(&self) -> io::Result<()> {
        self.pidfd.signal(Signal::STOP)?;
        let ended = self.end_children();
        self.pidfd.signal(Signal::KILL)?;
        self.pidfd.wait_exit(END_BOUND)?;
        ended
    }

    fn end_children(&self) -> io::Result<()> {
        let deadline = Instant::now() + END_BOUND;
        let runs = || process::start_time(self.pid).map(|start| process::life(self.pid, start));
        while runs() == Some(Life::Alive) && Instant::now() < deadline {
            pause_for(Duration::from_millis(1));
        }
        for child in process::children(self.pid)? {
            child.signal(Signal::KILL)?;
            child.wait_exit(END_BOUND)?;
        }
        Ok(())
    }
}

/// A launch in the making.
#[derive(Debug)]
pub struct Launch {
    words: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    nul: Option<OsString>,
}

impl Launch {
    /// A keeper that starts QEMU, then the worker.
    #[must_use]
    pub fn starting(qemu: &Program, app: &Program) -> Launch {
        let mut launch = Launch::empty();
        launch.program("qemu", qemu);
        launch.program("app", app);
        launch
    }

    /// A keeper that takes over a running QEMU, which it can only watch, and starts the worker.
    #[must_use]
    pub fn adopting(qemu_pid: i32, qemu: PidFd, app: &Program) -> Launch {
        let mut launch = Launch::empty();
        launch.adopt(qemu_pid, qemu);
        launch.program("app", app);
        launch
    }

    /// A keeper that starts a worker and no QEMU: a virtual switch.
    #[must_use]
    pub fn alone(app: &Program) -> Launch {
        let mut launch = Launch::empty();
        launch.program("app", app);
        launch
    }

    /// In a worker without QEMU whose keeper died: the keeper that follows, as by [`Launch::successor`].
    pub fn successor_alone(description: BorrowedFd<'_>) -> Result<Launch, LaunchError> {
        let mut launch = Launch::empty();
        launch.inherit_all(description)?;
        Ok(launch)
    }

    /// In a worker whose keeper died: the keeper that follows, made from the description the dead one left. The descriptors
    /// of the next worker are copies of ours, which must still have the numbers we got them with. The lock is missing: it
    /// needs an open description of its own, which [`Launch::lock`] takes.
    pub fn successor(
        description: BorrowedFd<'_>,
        qemu_pid: i32,
        qemu: PidFd,
    ) -> Result<Launch, LaunchError> {
        let mut launch = Launch::empty();
        launch.adopt(qemu_pid, qemu);
        launch.inherit_all(description)?;
        Ok(launch)
    }

    fn inherit_all(&mut self, description: BorrowedFd<'_>) -> Result<(), LaunchError> {
        let text = read_description(description).map_err(LaunchError::Inherit)?;
        let lines = || text.split(|byte| *byte == 0).filter(|line| !line.is_empty());
        let log = lines().find_map(|line| line.strip_prefix(b"log-fd "));
        for line in lines() {
            self.inherit(line, log)?;
        }
        Ok(())
    }

    /// A descriptor for QEMU, with its number there.
    pub fn qemu_fd(&mut self, fd: impl Into<OwnedFd>, theirs: RawFd) {
        self.pass("qemu-fd", fd.into(), theirs);
    }

    /// Where QEMU's standard error goes.
    pub fn qemu_stderr(&mut self, fd: impl Into<OwnedFd>) {
        self.hold("qemu-stderr", fd.into());
    }

    /// A descriptor for every worker, with its number there.
    pub fn app_fd(&mut self, fd: impl Into<OwnedFd>, theirs: RawFd) {
        self.pass("app-fd", fd.into(), theirs);
    }

    /// A descriptor for the first worker only.
    pub fn app_once_fd(&mut self, fd: impl Into<OwnedFd>, theirs: RawFd) {
        self.pass("app-once-fd", fd.into(), theirs);
    }

    /// What a worker had its keeper keep under a tag, for the workers of this keeper.
    pub fn kept_fd(&mut self, fd: impl Into<OwnedFd>, tag: u32) {
        let ours = self.own(fd.into());
        self.word("kept-fd", format!("{ours}={tag}"));
    }

    /// The guest's lock file, opened for this keeper alone: it locks byte 0, and whoever has a copy would keep the lock.
    pub fn lock(&mut self, fd: impl Into<OwnedFd>) {
        self.hold("lock-fd", fd.into());
    }

    /// The guest's log, to which the keeper appends, as does every worker by its number there.
    pub fn log(&mut self, fd: impl Into<OwnedFd>, theirs: RawFd) {
        let ours = self.own(fd.into());
        self.word("log-fd", ours.to_string());
        self.word("app-fd", format!("{ours}={theirs}"));
    }

    /// The worker's program as a descriptor of its own, for when its user may not walk the way to it.
    pub fn app_program_fd(&mut self, theirs: RawFd) {
        self.word("app-program-fd", theirs.to_string());
    }

    /// Hands this launch description on to every worker, for [`Launch::successor`].
    pub fn keep_launch(&mut self, theirs: RawFd) {
        self.word("keep-launch", format!("{DESCRIPTION}={theirs}"));
    }

    /// Starts the keeper with these descriptors and no others, in `/`, without an environment.
    pub fn spawn(self, keeper: &Path) -> Result<Keeper, LaunchError> {
        if let Some(part) = self.nul {
            return Err(LaunchError::Nul(part));
        }
        let description = describe(&self.words).map_err(LaunchError::Describe)?;
        let mappings = std::iter::once(description)
            .chain(self.descriptors)
            .zip(DESCRIPTION..)
            .map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd })
            .collect();
        let failed = |source| LaunchError::Spawn { program: keeper.to_owned(), source };
        let mut command = Command::new(keeper);
        if keeper.starts_with("/proc") {
            command.arg0("hpvmkeeper");
        }
        command
            .arg(DESCRIPTION.to_string())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .fd_mappings(mappings)
            .map_err(|collision| failed(io::Error::other(collision)))?;
        let child = command.spawn().map_err(failed)?;
        let pid = i32::try_from(child.id()).map_err(|error| failed(io::Error::other(error)))?;
        let gone = || failed(io::Error::other("it is gone already"));
        let pidfd = PidFd::open_number(pid).map_err(failed)?.ok_or_else(gone)?;
        Ok(Keeper { pid, pidfd })
    }

    fn empty() -> Launch {
        Launch { words: Vec::new(), descriptors: Vec::new(), nul: None }
    }

    fn adopt(&mut self, qemu_pid: i32, qemu: PidFd) {
        self.word("adopt-pid", qemu_pid.to_string());
        self.hold("adopt-pidfd", qemu.into());
    }

    fn program(&mut self, whose: &str, program: &Program) {
        self.word(&format!("{whose}-program"), program.path.as_os_str());
        for arg in &program.args {
            self.word(&format!("{whose}-arg"), arg);
        }
        if let Some(Ids { uid, gid }) = program.ids {
            self.word(&format!("{whose}-uid"), uid.to_string());
            self.word(&format!("{whose}-gid"), gid.to_string());
        }
    }

    /// Takes over a word of the dead keeper's description. `log` is the number the log had there.
    fn inherit(&mut self, line: &[u8], log: Option<&[u8]>) -> Result<(), LaunchError> {
        let damaged = || LaunchError::Damaged(String::from_utf8_lossy(line).into_owned());
        let space = line.iter().position(|byte| *byte == b' ').ok_or_else(damaged)?;
        let (word, value) = (&line[..space], &line[space + 1..]);
        match word {
            b"app-program" | b"app-arg" => {
                let word = if word == b"app-arg" { "app-arg" } else { "app-program" };
                self.word(word, OsStr::from_bytes(value));
            }
            b"app-fd" => {
                let (ours, theirs) = numbers(value).ok_or_else(damaged)?;
                match log {
                    Some(log) if log == ours => self.log(copy_of(theirs)?, theirs),
                    _ => self.app_fd(copy_of(theirs)?, theirs),
                }
            }
            b"app-program-fd" => {
                self.word("app-program-fd", OsStr::from_bytes(value));
            }
            b"keep-launch" => self.keep_launch(numbers(value).ok_or_else(damaged)?.1),
            // Ids are what we have already; the rest was for the dead keeper alone.
            _ => {}
        }
        Ok(())
    }

    fn pass(&mut self, word: &str, fd: OwnedFd, theirs: RawFd) {
        let ours = self.own(fd);
        self.word(word, format!("{ours}={theirs}"));
    }

    fn hold(&mut self, word: &str, fd: OwnedFd) {
        let ours = self.own(fd);
        self.word(word, ours.to_string());
    }

    /// Takes a descriptor; says which number it will have in the keeper.
    fn own(&mut self, fd: OwnedFd) -> RawFd {
        self.descriptors.push(fd);
        FIRST + self.descriptors.len() as RawFd - 1
    }

    fn word(&mut self, word: &str, value: impl AsRef<OsStr>) {
        let value = value.as_ref();
        if value.as_bytes().contains(&0) {
            self.nul = Some(value.to_owned());
        }
        self.words.extend_from_slice(word.as_bytes());
        self.words.push(b' ');
        self.words.extend_from_slice(value.as_bytes());
        self.words.push(0);
    }
}

/// The text as a memfd that nobody can change any more.
fn describe(words: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("hpvm-launch", flags)?);
    file.write_all(words)?;
    file.rewind()?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

fn read_description(description: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut file = File::from(description.try_clone_to_owned()?);
    file.rewind()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(text)
}

/// The number in the keeper, as written, and the one in its child.
fn numbers(value: &[u8]) -> Option<(&[u8], RawFd)> {
    let equals = value.iter().position(|byte| *byte == b'=')?;
    let theirs = std::str::from_utf8(&value[equals + 1..]).ok()?.parse().ok()?;
    Some((&value[..equals], theirs))
}

fn copy_of(number: RawFd) -> Result<OwnedFd, LaunchError> {
    inherited(number).map_err(|source| LaunchError::Lost { number, source })
}
