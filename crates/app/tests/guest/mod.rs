//! A guest of a test: started as hpvmstart starts one, with its keeper and its worker, and ended when it is dropped.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hpvm_app::client;
use hpvm_app::protocol::{Reply, Request, StopHow};
use hpvm_app::snapshot::{Phase, Snapshot};
use hpvm_engine::launch::{self, LaunchError, Milestones, Places};
use hpvm_host::lock::{KEEPER_BYTE, WORKER_BYTE, is_held, pause_for};
use hpvm_host::process::{self, PidFd, Signal};
use hpvm_model::{
    Accelerator, AdapterKind, AvioService, Backing, Bytes, DeviceKind, DiskId, GuestNumber,
    GuestUuid, Memory, Occupant, PciSlot, StorageAddress, StorageDevice, StorageType, Vcpus,
};
use hpvm_plan::facts::Engine;
use hpvm_plan::record::{AgentChannel, Attached, BootRecord, FORMAT, Machine};
use hpvm_testkit::write_script;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Guest {
    folder: tempfile::TempDir,
    pub(crate) record: BootRecord,
    pub(crate) places: Places,
}

struct Quiet;
impl Milestones for Quiet {}

impl Guest {
    /// On the fake engine, with the behaviour its documentation lists.
    pub(crate) fn fake(behaviour: &str) -> Guest {
        let guest = Guest::new("/bin/false");
        let engine = guest.path("engine");
        let fake = hpvm_host::paths::program("fake-qemu").expect("built with the test kit");
        // The keeper hands no environment on.
        let commands = format!("HPVM_FAKE_QEMU='{behaviour}' exec {} \"$@\"", fake.display());
        write_script(&engine, &commands);
        guest.with(|record| record.engine.program = engine.display().to_string())
    }

    /// On QEMU itself, with firmware and no operating system.
    pub(crate) fn real() -> Guest {
        let guest = Guest::new("/usr/bin/qemu-system-x86_64");
        fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", guest.path("nvram")).unwrap();
        guest.with(|record| record.firmware_code = "/usr/share/OVMF/OVMF_CODE_4M.fd".into())
    }

    /// The same with firmware that turns interruptions off and then does nothing, for ever.
    pub(crate) fn hung() -> Guest {
        const CLI_AND_JUMP_TO_ITSELF: [u8; 3] = [0xfa, 0xeb, 0xfe];
        const RESET_VECTOR: usize = 0x1_0000 - 16;
        let guest = Guest::real();
        let mut code = vec![0; 0x1_0000];
        code[RESET_VECTOR..][..3].copy_from_slice(&CLI_AND_JUMP_TO_ITSELF);
        fs::write(guest.path("code"), code).unwrap();
        let code = guest.path("code").display().to_string();
        guest.with(|record| record.firmware_code = code)
    }

    fn new(engine: &str) -> Guest {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::Builder::new().prefix("hpvm-w").tempdir().unwrap();
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("w{}-{count}", std::process::id());
        for file in ["nvram", "code", "engines"] {
            fs::write(folder.path().join(file), [0; 4096]).unwrap();
        }
        let program = |name| hpvm_host::paths::program(name).expect("built before");
        let places = Places {
            run_dir: folder.path().join("run"),
            guest_dir: folder.path().to_owned(),
            engines: folder.path().join("engines"),
            keeper: program("hpvmkeeper"),
            worker: env!("CARGO_BIN_EXE_hpvmapp").into(),
            qemu_ids: None,
            reservations: hpvm_engine::reservations::Programs {
                keeper: None,
                helper: "/nowhere".into(),
                helper_ids: None,
            },
            withheld: Default::default(),
            worker_ids: None,
            lock_ids: None,
        };
        let record = BootRecord {
            format: FORMAT,
            uuid: GuestUuid(uuid::Uuid::from_u128(count.into())),
            number: GuestNumber::new(1 + count).unwrap(),
            name: name.parse().unwrap(),
            serial_number: "VM02647001".into(),
            boot_id: process::boot_id().unwrap(),
            started_at: "2026-11-24T08:00:00Z".into(),
            engine: Engine { program: engine.into(), version: "10.0.2".into() },
            machine_type: "pc-q35-10.0".into(),
            accelerator: Accelerator::Tcg,
            vcpus: Vcpus::try_from(1).unwrap(),
            memory: Memory::at_least(Bytes(256 << 20)).unwrap(),
            firmware_code: folder.path().join("code").display().to_string(),
            option_rom: None,
            lan_rom: None,
            ports: (0..3).map(|device| PciSlot::new(0, device).unwrap()).collect(),
            storage: Vec::new(),
            nics: Vec::new(),
            agent: AgentChannel::Present,
            avio_service: AvioService::Processor,
            reservations: None,
            owner: None,
        };
        Guest { folder, record, places }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut BootRecord)) -> Guest {
        change(&mut self.record);
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a file and the device that it backs.
    pub(crate) fn device(&self, kind: DeviceKind, adapter: AdapterKind, address: &str) -> Attached {
        let path = self.path(&format!("medium-{address}"));
        File::create(&path).and_then(|file| file.set_len(1 << 20)).unwrap();
        let address: StorageAddress = address.parse().unwrap();
        let id = DiskId::from_random(u64::from(address.target) + 7);
        let backing = Backing::new(StorageType::File, path.display().to_string());
        Attached::of(StorageDevice { kind, adapter, address, backing, layers: Vec::new(), id })
    }

    pub(crate) fn try_start(&self) -> Result<(), LaunchError> {
        launch::start(&self.record, &self.places, &mut Quiet)
    }

    pub(crate) fn start(self) -> Guest {
        if let Err(error) = self.try_start() {
            panic!("no start: {}\n{}", hpvm_model::chain(&error), self.story());
        }
        self
    }

    /// Everything that was written about it.
    pub(crate) fn story(&self) -> String {
        let read = |name| fs::read_to_string(self.path(name)).unwrap_or_default();
        format!(
            "--- log\n{}--- QEMU\n{}--- record\n{}--- status\n{}",
            read("log"),
            read("qemu.log"),
            read("boot.record"),
            read("run/status")
        )
    }

    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        let text = fs::read_to_string(self.places.run_dir.join("status")).ok()?;
        Snapshot::from_file(&text).map(|(_, snapshot)| snapshot)
    }

    pub(crate) fn beat(&self) -> u64 {
        let text = fs::read_to_string(self.places.run_dir.join("status")).unwrap_or_default();
        Snapshot::from_file(&text).map_or(0, |(beat, _)| beat)
    }

    /// Waits until the snapshot is as wanted; gives it and how long it took.
    #[track_caller]
    pub(crate) fn until(&self, wanted: impl Fn(&Snapshot) -> bool) -> (Snapshot, Duration) {
        let began = Instant::now();
        let mut found = None;
        self.wait("the snapshot to be as wanted", || {
            found = self.snapshot().filter(&wanted);
            found.is_some()
        });
        (found.unwrap(), began.elapsed())
    }

    #[track_caller]
    pub(crate) fn until_phase(&self, phase: &Phase) -> Duration {
        self.until(|snapshot| snapshot.phase == *phase).1
    }

    #[track_caller]
    pub(crate) fn until_os(&self) {
        self.until_phase(&Phase::Running { occupant: Occupant::Os });
    }

    #[track_caller]
    pub(crate) fn wait(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < PATIENCE, "waited for {what}\n{}", self.story());
            pause();
        }
    }

    pub(crate) fn held(&self, byte: u64) -> bool {
        File::open(self.places.run_dir.join("lock"))
            .is_ok_and(|lock| is_held(&lock, byte).unwrap_or(false))
    }

    /// Waits until keeper and worker are gone.
    #[track_caller]
    pub(crate) fn until_gone(&self) {
        self.wait("keeper and worker to end", || {
            !self.held(KEEPER_BYTE) && !self.held(WORKER_BYTE)
        });
    }

    pub(crate) fn try_ask(
        &self,
        request: &Request,
        media: &[File],
    ) -> Result<Reply, client::ClientError> {
        let control = self.places.run_dir.join("control");
        let media: Vec<BorrowedFd<'_>> = media.iter().map(|file| file.as_fd()).collect();
        client::ask(&control, request, &media, PATIENCE, &mut |_| {})
    }

    #[track_caller]
    pub(crate) fn ask(&self, request: &Request) -> Reply {
        self.ask_with(request, &[])
    }

    #[track_caller]
    pub(crate) fn ask_with(&self, request: &Request, media: &[File]) -> Reply {
        match self.try_ask(request, media) {
            Ok(reply) => reply,
            Err(error) => panic!("{error}\n{}", self.story()),
        }
    }

    /// The replies to a raw line.
    pub(crate) fn ask_raw(&self, line: &str) -> String {
        let mut stream = UnixStream::connect(self.places.run_dir.join("control")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        answer
    }

    #[track_caller]
    pub(crate) fn stop(&self) {
        assert_eq!(self.ask(&Request::Stop { how: StopHow::Hard }), Reply::Done);
    }

    /// The machine as the boot record tells it.
    pub(crate) fn machine(&self) -> Machine {
        Machine::read(&fs::read_to_string(self.path("boot.record")).unwrap()).unwrap()
    }

    pub(crate) fn qemu(&self) -> i32 {
        self.snapshot().expect("a snapshot").qemu.pid
    }

    /// The worker, by its program and the guest's name behind it; folders of images may follow.
    pub(crate) fn worker(&self) -> Option<i32> {
        let wanted = format!("{}\0{}\0", self.places.worker.display(), self.record.name);
        fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            line.starts_with(wanted.as_bytes()).then_some(pid)
        })
    }

    /// The keeper: the worker's parent.
    pub(crate) fn keeper(&self) -> i32 {
        let worker = self.worker().expect("a worker");
        let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
        parent.trim().parse().unwrap()
    }
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    let held = PidFd::open_number(pid).unwrap().expect("it lives");
    held.signal(signal).unwrap();
}

pub(crate) fn pause() {
    pause_for(Duration::from_millis(1));
}

impl Drop for Guest {
    fn drop(&mut self) {
        // QEMU's end is the end of all three, whatever state the test left them in.
        let began = Instant::now();
        while (self.held(KEEPER_BYTE) || self.held(WORKER_BYTE) || self.lives())
            && began.elapsed() < PATIENCE
        {
            if let Some(snapshot) = self.snapshot()
                && let Ok(Some(qemu)) = PidFd::open(snapshot.qemu.pid, snapshot.qemu.start_time)
            {
                let _ = qemu.signal(Signal::KILL);
            }
            pause();
        }
    }
}

impl Guest {
    fn lives(&self) -> bool {
        self.snapshot().is_some_and(|s| process::is_alive(s.qemu.pid, s.qemu.start_time))
    }
}

pub(crate) fn open(path: impl AsRef<Path>) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}
