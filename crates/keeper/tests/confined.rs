//! The chain of succession under full confinement: each keeper is killed in turn, and a worker without rights starts the next.
//!
//! The worker is this program, run again as `confined worker FOLDER`: it confines itself as hpvmapp does, notes what it hears,
//! and makes a successor when its link breaks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hpvm_host::confine::Confinement;
use hpvm_host::launch::{Launch, Program};
use hpvm_host::lock::{KEEPER_BYTE, is_held};
use hpvm_host::process::{PidFd, Signal, start_time};
use hpvm_host::users::{self, Ids};
use rustix::event::{Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

const GENERATIONS: usize = 4;
const BOUND: Duration = Duration::from_secs(20);
/// To a worker of which nothing is kept.
const ALL_KEPT: u32 = 7;
const WORKER: Ids = Ids { uid: 1_500_080, gid: 1_500_080 };

const LINK: i32 = 3;
const LAUNCH: i32 = 4;
const RUN_FOLDER: i32 = 11;
const ENGINE_PIDFD: i32 = 13;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, folder] = &arguments[..]
        && role == "worker"
    {
        return worker(Path::new(folder));
    }
    succession();
    println!(
        "{GENERATIONS} keepers in succession, each under the confinement of the worker before it"
    );
    ExitCode::SUCCESS
}

/// The run folder of a guest, and what must not outlive the test.
struct Stage {
    folder: tempfile::TempDir,
    qemu: Option<PidFd>,
}

impl Stage {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("7").join(name)
    }

    fn program(&self, name: &str, from: &Path) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::copy(from, &path).expect("copied to where the worker's user reaches it");
        path
    }

    /// Lines that workers noted: their keeper's pid, and each message's kind, value and extra.
    fn notes(&self) -> Vec<(i32, [u64; 3])> {
        let text = fs::read_to_string(self.path("notes")).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let numbers = |line: &str| -> Option<(i32, [u64; 3])> {
            let mut words = line.split(' ');
            let keeper = words.next()?.parse().ok()?;
            let mut word = || words.next()?.parse().ok();
            Some((keeper, [word()?, word()?, word()?]))
        };
        whole.lines().filter_map(numbers).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(qemu) = &self.qemu {
            // Workers that hear of its end finish, and so do their keepers.
            let _ = qemu.signal(Signal::KILL);
        }
    }
}

fn succession() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("reachable");
    let mut stage = Stage { folder, qemu: None };
    fs::create_dir(stage.path("")).expect("a run folder");
    let lock = File::create(stage.path("lock")).expect("a lock file");
    if users::is_root() {
        for name in ["", "lock"] {
            chown(stage.path(name), Some(WORKER.uid), Some(WORKER.gid)).expect("the worker's");
        }
    }
    let keeper = stage.program("hpvmkeeper", Path::new(env!("CARGO_BIN_EXE_hpvmkeeper")));
    let app = stage.program("hpvmapp", &std::env::current_exe().expect("our path"));
    let qemu = Program { path: "/bin/sleep".into(), args: vec!["300".into()], ids: None };
    let run_folder = stage.path("");
    let app = Program {
        path: app,
        args: vec!["worker".into(), run_folder.clone().into()],
        ids: users::is_root().then_some(WORKER),
    };
    let mut launch = Launch::starting(&qemu, &app);
    launch.lock(OpenOptions::new().write(true).open(stage.path("lock")).expect("the lock file"));
    let log = OpenOptions::new().append(true).create(true).open(stage.path("log")).expect("a log");
    launch.log(log, 8);
    launch.app_fd(File::open(&run_folder).expect("the run folder"), RUN_FOLDER);
    launch.keep_launch(LAUNCH);
    launch.spawn(&keeper).expect("a keeper");

    for generation in 1..=GENERATIONS {
        let (keeper, [kind, pid, is_child]) = eventually(&stage, |stage| {
            let notes = stage.notes();
            (notes.len() == generation).then(|| notes[generation - 1])
        });
        assert_eq!((kind, is_child), (1, u64::from(generation == 1)));
        if generation == 1 {
            let pid = i32::try_from(pid).expect("a pid");
            stage.qemu = PidFd::open(pid, start_time(pid).expect("alive")).expect("held");
        }
        assert!(is_held(&lock, KEEPER_BYTE).expect("asked"));
        if generation < GENERATIONS {
            let started = start_time(keeper).expect("the keeper is alive");
            let held = PidFd::open(keeper, started).expect("held").expect("alive");
            held.signal(Signal::KILL).expect("killed");
        }
    }
    stage.qemu.as_ref().expect("held").signal(Signal::KILL).expect("killed");
    let (_, [kind, status, _]) =
        eventually(&stage, |stage| stage.notes().get(GENERATIONS).copied());
    assert_eq!(kind, 2);
    assert!([9, u64::from(u32::MAX)].contains(&status), "its signal, or unseen: {status}");
    eventually(&stage, |_| (!is_held(&lock, KEEPER_BYTE).expect("asked")).then_some(()));
}

fn eventually<T>(stage: &Stage, mut look: impl FnMut(&Stage) -> Option<T>) -> T {
    let deadline = Instant::now() + BOUND;
    loop {
        if let Some(found) = look(stage) {
            return found;
        }
        let log = || fs::read_to_string(stage.path("log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "{:?}\n{}", stage.notes(), log());
        let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 2_000_000 }));
    }
}

fn worker(folder: &Path) -> ExitCode {
    match work(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work(folder: &Path) -> io::Result<()> {
    let keeper = folder.with_file_name("hpvmkeeper");
    let own = folder.with_file_name("hpvmapp");
    let run_folder = inherited(RUN_FOLDER);
    let confinement = Confinement {
        ids: None,
        folder: run_folder.as_fd(),
        read_beneath: &[],
        read: &[],
        execute: &[&keeper, &own],
    };
    confinement.apply().map_err(io::Error::other)?;
    let link = inherited(LINK);
    let mut notes = OpenOptions::new().append(true).create(true).open(folder.join("notes"))?;
    let mut engine = 0;
    loop {
        let mut message = [0_u8; 16];
        let (length, _) = recv(&link, &mut message, RecvFlags::empty())?;
        if length < message.len() {
            return succeed(&keeper, folder, engine);
        }
        let [kind, value] = [0, 4].map(|at| {
            u32::from_le_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]])
        });
        if kind == ALL_KEPT {
            continue;
        }
        let extra = message[8..].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let keeper = nix::unistd::getppid();
        notes.write_all(format!("{keeper} {kind} {value} {extra}\n").as_bytes())?;
        match kind {
            1 => engine = value.cast_signed(),
            _ => {
                let finished = [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                send(&link, &finished, SendFlags::empty())?;
                return Ok(());
            }
        }
    }
}

/// The keeper is dead: starts the next one, which starts the next worker.
fn succeed(keeper: &Path, folder: &Path, engine: i32) -> io::Result<()> {
    let (launch, qemu) = (inherited(LAUNCH), PidFd::from(inherited(ENGINE_PIDFD)));
    let mut successor =
        Launch::successor(launch.as_fd(), engine, qemu).map_err(io::Error::other)?;
    let lock = OpenOptions::new().write(true).open(folder.join("lock"))?;
    successor.lock(lock);
    successor.spawn(keeper).map_err(io::Error::other)?;
    Ok(())
}

/// A copy of a descriptor that the keeper gave us, which keeps its number for the next worker.
fn inherited(number: i32) -> OwnedFd {
    nix::unistd::dup(borrowed(number)).expect("a copy")
}

#[allow(unsafe_code)]
fn borrowed(number: i32) -> BorrowedFd<'static> {
    // SAFETY: the keeper gave it to this process under this number, and nothing here closes it.
    unsafe { BorrowedFd::borrow_raw(number) }
}
