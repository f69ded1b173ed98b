//! A keeper on a stage: shells play QEMU and the worker, and do what they are told over named pipes.
//!
//! Nothing outlives the stage: when it falls, also in a failing test, it kills by pidfd what it started and can still see.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpvm_host::launch::{Keeper, Launch, Program};
use hpvm_host::process::{PidFd, Signal, start_time};
use hpvm_host::users::Ids;
use rustix::event::{Timespec, poll};
use rustix::process::{WaitId, WaitIdOptions, waitid};

/// Far more than anything here takes on a busy machine.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// Waits until `look` finds what it looks for.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + BOUND;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {BOUND:?} in vain: {what}");
        let pause = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        let _ = poll(&mut [], Some(&pause));
    }
}

/// A part played by a shell.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    Qemu,
    Worker,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Qemu => "qemu",
            Part::Worker => "worker",
        }
    }
}

pub(crate) struct Stage {
    folder: tempfile::TempDir,
    keepers: Vec<Keeper>,
}

impl Stage {
    pub(crate) fn new() -> Stage {
        let folder = tempfile::tempdir().expect("a folder");
        // Whoever plays a part under a user id of its own writes here too.
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).expect("open to all");
        let stage = Stage { folder, keepers: Vec::new() };
        for pipe in ["qemu.do", "worker.do"] {
            let mode = rustix::fs::Mode::from(0o666);
            rustix::fs::mkfifoat(rustix::fs::CWD, stage.path(pipe), mode).expect("a named pipe");
            fs::set_permissions(stage.path(pipe), PermissionsExt::from_mode(0o666)).expect("mode");
        }
        stage
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Says its pid, then does what is written to its pipe, line by line.
    pub(crate) fn qemu(&self, ids: Option<Ids>) -> Program {
        self.shell(Part::Qemu, "", ids)
    }

    /// Notes each message of the link as a line of hexadecimal digits, the first before it takes orders. That all was handed over
    /// that is kept for it is of no interest here.
    pub(crate) fn worker(&self, ids: Option<Ids>) -> Program {
        self.hearing("case $line in 07*) hear; return;; esac;", ids)
    }

    /// The same of one without QEMU, which notes that as well.
    pub(crate) fn worker_alone(&self) -> Program {
        self.hearing("", None)
    }

    fn hearing(&self, judge: &str, ids: Option<Ids>) -> Program {
        let folder = self.folder.path().display();
        let next = "line=$(dd bs=16 count=1 status=none <&3 | od -An -v -w16 -tx1 | tr -d ' ');";
        let hear = format!("hear() {{ {next} {judge} echo $line >>{folder}/heard; }}; hear; ");
        self.shell(Part::Worker, &hear, ids)
    }

    /// A shell that runs `first`, then takes orders.
    pub(crate) fn shell(&self, part: Part, first: &str, ids: Option<Ids>) -> Program {
        let (folder, name) = (self.folder.path().display(), part.name());
        let script = format!(
            "echo $$ >>{folder}/{name}.pids; {first} while read -r order <{folder}/{name}.do; do eval \"$order\"; done"
        );
        let args = vec![OsString::from("-c"), OsString::from(script)];
        Program { path: PathBuf::from("/bin/sh"), args, ids }
    }

    /// The usual launch: lock, log and standard error; more is up to the test.
    pub(crate) fn launch(&self) -> Launch {
        self.furnished(Launch::starting(&self.qemu(None), &self.worker(None)))
    }

    pub(crate) fn furnished(&self, mut launch: Launch) -> Launch {
        launch.lock(self.open("lock"));
        launch.log(self.open("log"), 8);
        launch
    }

    pub(crate) fn open(&self, name: &str) -> File {
        OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(self.path(name))
            .expect("a file of the stage")
    }

    pub(crate) fn start(&mut self, launch: Launch) {
        let keeper = launch.spawn(Path::new(env!("CARGO_BIN_EXE_hpvmkeeper"))).expect("a keeper");
        self.keepers.push(keeper);
    }

    pub(crate) fn keeper(&self) -> &Keeper {
        self.keepers.last().expect("a keeper was started")
    }

    /// The status with which the keeper ended by itself.
    pub(crate) fn keeper_status(&self) -> i32 {
        let keeper = self.keeper();
        assert!(
            keeper.pidfd.wait_exit(BOUND).expect("watched"),
            "the keeper goes on; {}",
            self.log()
        );
        waitid(WaitId::PidFd(keeper.pidfd.as_fd()), WaitIdOptions::EXITED)
            .expect("our child")
            .and_then(|status| status.exit_status())
            .expect("it exited")
    }

    pub(crate) fn kill_keeper(&self) {
        let keeper = self.keeper();
        keeper.pidfd.signal(Signal::KILL).expect("killed");
        assert!(keeper.pidfd.wait_exit(BOUND).expect("watched"));
    }

    /// Gives an order to whoever plays the part, and waits until it is taken.
    pub(crate) fn tell(&self, part: Part, order: &str) {
        let path = self.path(&format!("{}.do", part.name()));
        let mut pipe = eventually("somebody who takes orders", || {
            use std::os::unix::fs::OpenOptionsExt;
            OpenOptions::new()
                .write(true)
                .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
                .open(&path)
                .ok()
        });
        writeln!(pipe, "{order}").expect("the order is taken");
    }

    /// The pid of the one that was started as `nth`, from 1 on.
    pub(crate) fn nth(&self, part: Part, nth: usize) -> i32 {
        eventually(&format!("{part:?} number {nth}; {}", self.log()), || {
            self.pids(part).get(nth - 1).copied()
        })
    }

    pub(crate) fn pids(&self, part: Part) -> Vec<i32> {
        let text = fs::read_to_string(self.path(&format!("{}.pids", part.name())));
        let text = text.unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| line.parse().expect("a pid")).collect()
    }

    /// The messages that all workers have heard, once there are so many: kind, value, extra.
    pub(crate) fn heard(&self, count: usize) -> Vec<(u32, u32, u64)> {
        eventually(&format!("{count} messages; {}", self.log()), || {
            let text = fs::read_to_string(self.path("heard")).unwrap_or_default();
            let messages: Vec<_> = text.lines().filter_map(message).collect();
            (messages.len() >= count).then_some(messages)
        })
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for keeper in &self.keepers {
            let _ = keeper.pidfd.signal(Signal::KILL);
        }
        let stage = self.folder.path().display().to_string();
        for pid in [Part::Qemu, Part::Worker].into_iter().flat_map(|part| self.pids(part)) {
            kill_if_ours(pid, &stage);
        }
    }
}

/// A player's command line names the stage; a stranger who got the number later does not.
fn kill_if_ours(pid: i32, stage: &str) {
    let Some(start_time) = start_time(pid) else { return };
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if String::from_utf8_lossy(&command).contains(stage)
        && let Ok(Some(held)) = PidFd::open(pid, start_time)
    {
        let _ = held.signal(Signal::KILL);
    }
}

fn message(line: &str) -> Option<(u32, u32, u64)> {
    let bytes: Vec<u8> = (0..16)
        .map(|at| u8::from_str_radix(line.get(2 * at..2 * at + 2)?, 16).ok())
        .collect::<Option<_>>()?;
    Some((
        u32::from_le_bytes(bytes[..4].try_into().ok()?),
        u32::from_le_bytes(bytes[4..8].try_into().ok()?),
        u64::from_le_bytes(bytes[8..].try_into().ok()?),
    ))
}

/// The numbers of the descriptors a process has.
pub(crate) fn descriptors(pid: i32) -> Vec<i32> {
    let mut numbers: Vec<i32> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a living process")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

/// A field of /proc/PID/status.
pub(crate) fn status_field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.expect("the field").trim().to_owned()
}

/// A descriptor that is good for nothing but being passed.
pub(crate) fn some_fd() -> OwnedFd {
    File::open("/dev/null").expect("/dev/null").into()
}
