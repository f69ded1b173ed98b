//! Brings a guest up: opens every descriptor, writes the boot record, and starts the keeper with all of it. After that the
//! guest runs without the command that called this. Taking over a guest that nobody supervises is the same with a QEMU that
//! runs already.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpvm_host::durable::{self, DurableError};
use hpvm_host::engines;
use hpvm_host::launch::{Launch, LaunchError as KeeperError, Program};
use hpvm_host::listen::{ListenError, listen};
use hpvm_host::lock::{ByteLock, ENGINE_BYTE, pause_for};
use hpvm_host::names::{SWITCHES, guest_folder, run_folder};
use hpvm_host::paths::{hold, make_public_folder};
use hpvm_host::process::PidFd;
use hpvm_host::removal;
use hpvm_host::signals::{self, Interruption, lift_limits};
use hpvm_host::supervision::{self, Supervision};
use hpvm_host::users::Ids;
use hpvm_model::{GuestName, StorageAddress, quoted};
use hpvm_plan::command_line::{self, Role};
use hpvm_plan::drives;
use hpvm_plan::record::{BootRecord, Machine};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, OFlags, StatxAttributes, StatxFlags, statx};

use crate::media::{self, MediaError, Wanted};
use crate::reservations::{self, ReservationsError};
use crate::{last_words, worker_fd};

/// QEMU's number of the description that bears its mark: it never uses it.
const MARK_DESCRIPTOR: i32 = 9;
/// QEMU's number of the pipe that closes with it, for the reservation helper to see: it never uses it.
const LIFELINE_DESCRIPTOR: i32 = 8;
/// Until the engine answers; a host under load needs many times the usual 60 ms.
const READY_BOUND: Duration = Duration::from_secs(30);
/// Between two looks whether who waits for that was interrupted.
const LOOK: Duration = Duration::from_millis(100);
/// Until keeper and worker of the run before are gone, which they are within milliseconds of QEMU's end.
const PREDECESSOR_BOUND: Duration = Duration::from_secs(5);
/// Until keeper and worker that were just started have their locks, which they do within milliseconds.
const SUPERVISED_BOUND: Duration = Duration::from_secs(5);
/// Until keeper and worker of a start that failed are gone: a tenth of a second where no worker lives.
const FAILED_BOUND: Duration = Duration::from_secs(1);

/// What could not be done on the way to a running guest.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("cannot {action} '{}'", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "'{}' is immutable or may only grow, and the guest's firmware writes it; `chattr -i -a {}` takes that away",
        .0.display(), quoted(&.0.to_string_lossy())
    )]
    Immutable(PathBuf),
    #[error(transparent)]
    Media(#[from] MediaError),
    #[error(transparent)]
    Durable(#[from] DurableError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Reservations(#[from] ReservationsError),
    #[error("the guest's keeper could not be started")]
    Keeper(#[from] KeeperError),
    #[error("the processes of the guest's last run have not ended yet; try again in a moment")]
    Predecessor,
    #[error(
        "those who are to supervise the guest have not come up yet; it runs on, and the next command tries again"
    )]
    NotSupervised,
    #[error("QEMU of an earlier start still runs; `hpvm why` tells what to do")]
    EngineRuns,
    #[error(transparent)]
    Ports(Box<dyn std::error::Error + Send + Sync>),
    #[error("QEMU did not start: {0}")]
    Engine(String),
    #[error("the guest did not come up within {} s; `hpvm why` tells more", READY_BOUND.as_secs())]
    Deadline,
    #[error("the wait for the guest, which goes on starting, was interrupted")]
    Interrupted(Interruption),
}

/// Where a guest's things lie and as whom its processes run.
#[derive(Clone, Debug)]
pub struct Places {
    /// `run/NUMBER`.
    pub run_dir: PathBuf,
    /// `uuids/UUID`.
    pub guest_dir: PathBuf,
    /// Where QEMU leaves its mark, see [`hpvm_host::engines`].
    pub engines: PathBuf,
    pub keeper: PathBuf,
    pub worker: PathBuf,
    /// `None`: as the caller.
    pub qemu_ids: Option<Ids>,
    pub worker_ids: Option<Ids>,
    /// The worker, and the group whose members may see that the guest runs.
    pub lock_ids: Option<Ids>,
    pub reservations: reservations::Programs,
    /// Folders of images from which users of the console must not choose.
    pub withheld: BTreeSet<String>,
}

/// Called between the steps of a start, for whoever journals them.
pub trait Milestones {
    /// The boot record is written.
    fn recorded(&mut self) {}
    /// The run folder is ready: whoever has virtual switches makes the guest's ports there, to which QEMU is about to
    /// connect.
    fn ports(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
    /// The keeper runs: from here on the guest has an owner of its own.
    fn kept(&mut self) {}
}

/// Starts the guest of a boot record and returns when its engine runs.
pub fn start(
    record: &BootRecord,
    places: &Places,
    milestones: &mut dyn Milestones,
) -> Result<(), LaunchError> {
    // Stores are many: each is opened for QEMU, and to be watched.
    lift_limits();
    let media = open_media(record, places)?;
    wait_for_predecessor(&places.run_dir)?;
    let nvram = claim_nvram(places)?;
    prepare_run_folder(places)?;
    durable::replace_file(&record_path(places), record.to_line().as_bytes(), 0o644)?;
    milestones.recorded();
    milestones.ports().map_err(LaunchError::Ports)?;
    let qemu = Program {
        path: record.engine.program.clone().into(),
        args: command_line::arguments(record).into_iter().map(Into::into).collect(),
        ids: places.qemu_ids,
    };
    let held = Held::of(&Machine::new(record.clone()), places);
    let mut launch = Launch::starting(&qemu, &worker(&record.name, &held, places));
    engine_descriptors(&mut launch, record, places, nvram, media)?;
    if command_line::shares_disks(&record.storage) {
        let (ends_with_engine, held_by_engine) =
            io::pipe().map_err(failed("make a pipe for", &places.run_dir))?;
        launch.qemu_fd(held_by_engine, LIFELINE_DESCRIPTOR);
        // QEMU speaks to it before it does anything else.
        reservations::start(places, ends_with_engine.into())?;
    }
    worker_descriptors(&mut launch, held, places)?;
    let (ready, ours) = io::pipe().map_err(failed("make a pipe for", &places.run_dir))?;
    launch.app_once_fd(ours, worker_fd::READY);
    launch.spawn(&places.keeper)?;
    milestones.kept();
    wait_until_ready(ready, places, READY_BOUND)
}

/// Gives a running QEMU that nobody supervises a keeper and a worker. For so long QEMU may take to tell them how the guest is:
/// one that does not is supervised all the same.
pub fn adopt(
    name: &GuestName,
    pid: i32,
    qemu: PidFd,
    patience: Duration,
    places: &Places,
) -> Result<(), LaunchError> {
    lift_limits();
    // A record that cannot be read is no reason to leave the guest alone.
    let held = durable::open_regular(&record_path(places))
        .and_then(io::read_to_string)
        .ok()
        .and_then(|text| Machine::read(&text).ok())
        .map_or_else(Held::default, |machine| Held::of(&machine, places));
    let mut launch = Launch::adopting(pid, qemu, &worker(name, &held, places));
    worker_descriptors(&mut launch, held, places)?;
    let (ready, ours) = io::pipe().map_err(failed("make a pipe for", &places.run_dir))?;
    launch.app_once_fd(ours, worker_fd::READY);
    launch.spawn(&places.keeper)?;
    match wait_until_ready(ready, places, patience) {
        Err(LaunchError::Deadline) => {
            match wait_for_supervision(&places.run_dir, Supervision::Full, SUPERVISED_BOUND) {
                true => Ok(()),
                false => Err(LaunchError::NotSupervised),
            }
        }
        told => told,
    }
}

fn worker(name: &GuestName, held: &Held, places: &Places) -> Program {
    let folders = held.folders.iter().map(|(path, _)| format!("{}{path}", worker_fd::FOLDER));
    let stores = held.stores.iter().map(|(address, _)| format!("{}{address}", worker_fd::STORE));
    let args = [name.to_string()].into_iter().chain(folders).chain(stores);
    let args = args.map(Into::into).collect();
    Program { path: places.worker.clone(), args, ids: places.worker_ids }
}

/// What a worker holds of the guest's media besides what QEMU has.
#[derive(Default)]
struct Held {
    /// Folders that users of the console choose images from.
    folders: Vec<(String, OwnedFd)>,
    /// Stores of devices and what lies under them, to see whether they answer.
    stores: Vec<(StorageAddress, File)>,
}

impl Held {
    fn of(machine: &Machine, places: &Places) -> Held {
        let stores = media::open_to_watch(machine.held());
        Held { folders: image_folders(machine, places), stores }
    }
}

/// Held for the worker, which neither walks the way to them nor reaches any other. What is no folder now is none for this
/// run.
fn image_folders(machine: &Machine, places: &Places) -> Vec<(String, OwnedFd)> {
    let hold_folder = |path: String| {
        let held = hold(Path::new(&path), OFlags::DIRECTORY).ok()?;
        Some((path, held))
    };
    drives::folders(machine)
        .into_iter()
        .filter(|folder| !places.withheld.contains(folder))
        .filter_map(hold_folder)
        .take(worker_fd::FOLDERS_MAX)
        .collect()
}

fn record_path(places: &Places) -> PathBuf {
    places.guest_dir.join(guest_folder::BOOT_RECORD)
}

/// Opened first: what is missing or changed ends the start before anything was made.
fn open_media(record: &BootRecord, places: &Places) -> Result<Vec<(Role, OwnedFd)>, MediaError> {
    let with_media = || record.storage.iter().filter(|a| a.device.backing.store().is_some());
    let roles = with_media().flat_map(|attached| {
        let address = attached.device.address;
        let layers = (0..attached.layers.len()).map(move |place| Role::Layer(address, place));
        std::iter::once(Role::Medium(address)).chain(layers)
    });
    let opened = media::open_all(with_media().flat_map(Wanted::whole).collect(), places.qemu_ids)?;
    Ok(roles.zip(opened).collect())
}

/// The firmware variables, locked through the very description that QEMU gets: the lock lasts as long as that QEMU does,
/// whatever becomes of `/run`, and no second QEMU is started over the first one's disks.
fn claim_nvram(places: &Places) -> Result<OwnedFd, LaunchError> {
    let path = places.guest_dir.join(guest_folder::NVRAM);
    let file = open(&path, read().write(true)).map_err(|error| match is_immutable(&path) {
        true => LaunchError::Immutable(path.clone()),
        false => error,
    })?;
    let kept: OwnedFd = file.try_clone().map_err(failed("open", &path))?.into();
    match ByteLock::try_acquire(file, ENGINE_BYTE).map_err(failed("lock", &path))? {
        Some(_) => Ok(kept),
        None => Err(LaunchError::EngineRuns),
    }
}

/// Not even root writes such a file, and is told no more than that it is not permitted.
fn is_immutable(path: &Path) -> bool {
    statx(CWD, path, AtFlags::empty(), StatxFlags::empty()).is_ok_and(|found| {
        found.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND)
    })
}

/// An empty folder that the worker may write to. What the last run left is told apart by nobody, so it goes.
fn prepare_run_folder(places: &Places) -> Result<(), LaunchError> {
    let folder = &places.run_dir;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(failed("make the folder", folder)(error));
        }
        _ => {}
    }
    // Everybody finds the console's door, and nobody else writes, whatever the umask of who starts the guest.
    std::fs::set_permissions(folder, Permissions::from_mode(0o755))
        .map_err(failed("set the mode of", folder))?;
    // The worker may read in it all its life, whether or not the guest has a NIC now.
    let switches = folder.with_file_name(SWITCHES);
    make_public_folder(&switches).map_err(failed("make the folder", &switches))?;
    for name in run_folder::SOCKETS.into_iter().chain([run_folder::STATUS]) {
        let path = folder.join(name);
        removal::file(&path).map_err(failed("remove", &path))?;
    }
    if let Some(Ids { uid, gid }) = places.worker_ids {
        lchown(folder, Some(uid), Some(gid)).map_err(failed("hand over", folder))?;
    }
    Ok(())
}

fn wait_for_predecessor(folder: &Path) -> Result<(), LaunchError> {
    match wait_for_supervision(folder, Supervision::None, PREDECESSOR_BOUND) {
        true => Ok(()),
        false => Err(LaunchError::Predecessor),
    }
}

/// Whether it came to that in time.
fn wait_for_supervision(folder: &Path, wanted: Supervision, bound: Duration) -> bool {
    let Ok(lock) = File::open(folder.join(run_folder::LOCK)) else {
        return wanted == Supervision::None;
    };
    let deadline = Instant::now() + bound;
    while Supervision::by(&lock) != wanted {
        if Instant::now() >= deadline {
            return false;
        }
        // A held lock cannot be waited for without taking it, so it is looked at again, a millisecond apart.
        pause_for(Duration::from_millis(1));
    }
    true
}

fn engine_descriptors(
    launch: &mut Launch,
    record: &BootRecord,
    places: &Places,
    nvram: OwnedFd,
    media: Vec<(Role, OwnedFd)>,
) -> Result<(), LaunchError> {
    let (mut nvram, mut media) = (Some(nvram), media);
    for descriptor in command_line::descriptors(record) {
        let fd: OwnedFd = match &descriptor.role {
            Role::FirmwareCode => open(Path::new(&record.firmware_code), read())?.into(),
            Role::Nvram => match nvram.take() {
                Some(nvram) => nvram,
                None => continue,
            },
            Role::Monitor => socket(places, run_folder::MONITOR)?,
            Role::Rescue => socket(places, run_folder::RESCUE)?,
            Role::Serial => socket(places, run_folder::SERIAL)?,
            Role::Agent => socket(places, run_folder::AGENT)?,
            Role::Kvm => {
                let device = Path::new("/dev/kvm");
                read().write(true).open(device).map_err(failed("open", device))?.into()
            }
            // QEMU looks for a descriptor with just the flags it would have opened the log with itself.
            Role::ConsoleLog => open(
                &places.guest_dir.join(guest_folder::CONSOLE_LOG),
                append().read(false).mode(0o600),
            )?
            .into(),
            role @ (Role::Medium(_) | Role::Layer(..)) => {
                let Some(index) = media.iter().position(|(opened, _)| opened == role) else {
                    continue;
                };
                media.swap_remove(index).1
            }
        };
        launch.qemu_fd(fd, descriptor.number);
    }
    let mark = engines::mark(&places.engines, record.number.get())
        .map_err(failed("lock", &places.engines))?;
    launch.qemu_fd(mark, MARK_DESCRIPTOR);
    let words = places.guest_dir.join(guest_folder::QEMU_LOG);
    let stderr = open(&words, append().mode(0o640))?;
    stderr.set_len(0).map_err(failed("empty", &words))?;
    launch.qemu_stderr(stderr);
    Ok(())
}

/// A monitor, console or agent socket of QEMU: only the worker, and root, may connect.
fn socket(places: &Places, name: &str) -> Result<OwnedFd, LaunchError> {
    Ok(listen(&places.run_dir.join(name), 0o600, places.worker_ids)?.into())
}

fn worker_descriptors(launch: &mut Launch, held: Held, places: &Places) -> Result<(), LaunchError> {
    let lock = places.run_dir.join(run_folder::LOCK);
    launch.lock(supervision::open(&lock, places.lock_ids).map_err(failed("open", &lock))?);
    launch.keep_launch(worker_fd::LAUNCH);
    launch.app_fd(
        listen(&places.run_dir.join(run_folder::CONTROL), 0o600, None)?,
        worker_fd::CONTROL,
    );
    launch.app_fd(listen(&places.run_dir.join(run_folder::DOOR), 0o666, None)?, worker_fd::DOOR);
    launch.app_fd(open(&record_path(places), append())?, worker_fd::RECORD);
    launch.log(
        open(&places.guest_dir.join(guest_folder::LOG), append().mode(0o644))?,
        worker_fd::LOG,
    );
    let words = places.guest_dir.join(guest_folder::QEMU_LOG);
    launch.app_fd(open(&words, append().mode(0o640))?, worker_fd::QEMU_LOG);
    let console_log = places.guest_dir.join(guest_folder::CONSOLE_LOG);
    let console_log = open(&console_log, read().write(true).create(true).mode(0o600))?;
    launch.app_fd(console_log, worker_fd::CONSOLE_LOG);
    for (path, flags, number) in [
        (&places.run_dir, OFlags::DIRECTORY, worker_fd::RUN_FOLDER),
        (&places.keeper, OFlags::empty(), worker_fd::KEEPER_PROGRAM),
        (&places.worker, OFlags::empty(), worker_fd::WORKER_PROGRAM),
    ] {
        launch.app_fd(hold(path, flags).map_err(failed("open", path))?, number);
    }
    launch.app_program_fd(worker_fd::WORKER_PROGRAM);
    for (number, (_, folder)) in (worker_fd::FIRST_FOLDER..).zip(held.folders) {
        launch.app_fd(folder, number);
    }
    for (number, (_, store)) in (worker_fd::FIRST_STORE..).zip(held.stores) {
        launch.app_fd(store, number);
    }
    Ok(())
}

/// The worker writes `running`, or `failed` and why, and closes the pipe.
fn wait_until_ready(
    mut ready: PipeReader,
    places: &Places,
    bound: Duration,
) -> Result<(), LaunchError> {
    let deadline = Instant::now() + bound;
    let mut said = Vec::new();
    let mut buffer = [0; 512];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if let Some(interruption) = signals::interrupted() {
            return Err(LaunchError::Interrupted(interruption));
        }
        let timeout = Timespec::try_from(left.min(LOOK)).unwrap_or_default();
        let is_ready = {
            let pipe = ready.as_fd();
            poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&timeout))
        };
        match is_ready {
            Ok(0) if left.is_zero() => return Err(LaunchError::Deadline),
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            _ => {}
        }
        let count = ready.read(&mut buffer).unwrap_or(0);
        said.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&said);
        match text.split_once('\n') {
            Some(("running", _)) => return Ok(()),
            _ if count == 0 => {
                let reason = text.trim().strip_prefix("failed").map(|r| r.trim().to_owned());
                // Until then it looks as if the guest ran. Whoever lives on is for the next command to tell of.
                let _ = wait_for_supervision(&places.run_dir, Supervision::None, FAILED_BOUND);
                return Err(LaunchError::Engine(last_words(places).or(reason).unwrap_or_else(
                    || "its supervisor ended before it answered; the guest's log tells more".into(),
                )));
            }
            _ => {}
        }
    }
}

/// What QEMU said last.
#[must_use]
pub fn last_words(places: &Places) -> Option<String> {
    let words = places.guest_dir.join(guest_folder::QEMU_LOG);
    last_words::read(&durable::open_regular(&words).ok()?)
}

fn read() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true);
    options
}

fn append() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true);
    options
}

/// A file of the guest's. A pipe in its place would be waited for until somebody reads it, by the command or by who has it later.
fn open(path: &Path, options: impl std::borrow::Borrow<OpenOptions>) -> Result<File, LaunchError> {
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(failed("open", path)(durable::no_regular_file()));
    }
    options.borrow().open(path).map_err(failed("open", path))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LaunchError {
    let path = path.to_owned();
    move |source| LaunchError::File { action, path, source }
}
