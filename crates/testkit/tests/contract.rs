//! The contract of the fake: one script, played to the fake QEMU and to the real one, gives the same record line by line:
//! answers by what our types read of them, refusals word by word, events by name and data.
//!
//! Both have firmware and no operating system. What only an OS does is tested in fake.rs from what was seen on real guests.

mod engine;

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Command as Program;
use std::time::{Duration, Instant};

use engine::{Engine, FAKE, REAL};
use hpvm_qmp::answer::JobStatus;
use hpvm_qmp::blocking::Client;
use hpvm_qmp::command::*;
use hpvm_qmp::{Error, Event, Occupant};
use serde::Serialize;
use serde_json::{Value, json};

const EVENT_WAIT: Duration = Duration::from_secs(10);
/// OVMF needs 4 s to its boot manager on a quiet host.
const FIRMWARE_WAIT: Duration = Duration::from_secs(60);

#[test]
fn the_fake_answers_as_qemu_does() {
    let fake = play(FAKE);
    let real = play(REAL);
    let pairs = fake.iter().zip(&real).filter(|(fake, real)| fake != real);
    let differences: Vec<String> =
        pairs.map(|(fake, real)| format!("fake: {fake}\nQEMU: {real}\n")).collect();
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
    assert_eq!(fake.len(), real.len());
}

/// Every state of the processor that OVMF passes through on its way to the boot manager.
#[test]
fn firmware_is_never_taken_for_an_operating_system() {
    let engine = Engine::start(REAL, "");
    let mut client = engine.connect();
    let mut seen = 0;
    let began = Instant::now();
    while !engine.console_log().contains("BdsDxe") {
        let registers = client.execute(&ReadRegisters {}).expect("told");
        assert_eq!(registers.occupant(), Occupant::Firmware, "{registers:x?}");
        let button = client.execute(&ReadPowerButton {}).expect("told");
        assert!(!button.enabled && !button.pending, "{button:?}");
        seen += 1;
        assert!(began.elapsed() < FIRMWARE_WAIT, "{seen} looks");
        engine::pause();
    }
    assert!(seen > 100, "only {seen} looks");
}

#[test]
fn the_fake_names_the_same_version() {
    let says = |program: &str| {
        let output = Program::new(program).arg("--version").output().expect(program);
        String::from_utf8(output.stdout).expect("text")
    };
    assert_eq!(says(FAKE), says(REAL));
}

#[test]
fn neither_takes_an_option_it_does_not_know() {
    for program in [FAKE, REAL] {
        let output = Program::new(program).arg("-zz").output().expect(program);
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{program}");
        assert_eq!(said, "qemu-system-x86_64: -zz: invalid option\n", "{program}");
    }
}

/// What happened, one line a step.
struct Play {
    client: Client,
    record: Vec<String>,
}

impl Play {
    /// Sends a command and records the outcome.
    fn send<C: Command>(&mut self, command: &C) -> Option<C::Answer> {
        let sent = serde_json::to_string(command).expect("JSON");
        let outcome = self.client.execute(command);
        self.outcome(C::NAME, &sent, outcome)
    }

    /// The same, with what is seen of the answer.
    fn see<C: Command>(&mut self, command: &C, see: impl Fn(&C::Answer) -> Value) {
        if let Some(answer) = self.send(command) {
            self.record.push(format!("  {}", see(&answer)));
        }
    }

    fn outcome<T>(&mut self, name: &str, sent: &str, outcome: Result<T, Error>) -> Option<T> {
        let said = match &outcome {
            Ok(_) => "done".to_owned(),
            Err(error) => match error.refusal() {
                Some(refusal) => format!("{:?}: {}", refusal.class, refusal.description),
                None => panic!("{name} {sent}: {error}"),
            },
        };
        self.record.push(format!("{name} {sent} -> {said}"));
        outcome.ok()
    }

    fn pass(&mut self, fdset_id: Option<i64>, file: impl AsFd) {
        let command = AddFd { fdset_id, opaque: Some("disk".into()) };
        let outcome = self.client.pass(&command, file.as_fd());
        if let Some(added) = self.outcome("add-fd", "with a descriptor", outcome) {
            self.record.push(format!("  set {}", added.fdset_id));
        }
    }

    /// Waits until the one job is in a state.
    fn job_is(&mut self, status: &JobStatus) {
        let began = Instant::now();
        loop {
            let jobs = self.client.execute(&QueryJobs {}).expect("told");
            if let Some(job) = jobs.iter().find(|job| job.status == *status) {
                return self.record.push(format!("  {} {status:?} {:?}", job.id, job.error));
            }
            assert!(began.elapsed() < EVENT_WAIT, "{jobs:?} after {:#?}", self.record);
            engine::pause();
        }
    }

    /// Waits for events by name, in this order; others between them are not looked at.
    fn events(&mut self, names: &[&str]) {
        for name in names {
            let event = self.event(name);
            self.record.push(format!("event {name} {}", event.data));
        }
    }

    fn event(&mut self, name: &str) -> Event {
        loop {
            let event = self.client.next_event(EVENT_WAIT).expect("connected");
            match event {
                Some(event) if event.name == name => return event,
                Some(_) => {}
                None => panic!("no {name} after {:#?}", self.record),
            }
        }
    }
}

fn play(program: &str) -> Vec<String> {
    let mut engine = Engine::start(program, "boot=firmware");
    let mut play = Play { client: engine.connect(), record: Vec::new() };
    look_around(&mut play);
    request_queues(&mut play);
    mistakes(&mut play);
    descriptors_and_nodes(&mut play);
    mirrors(&mut play);
    disk(&mut play);
    drive(&mut play);
    nics(&mut play);
    adapter_in_firmware(&mut play);
    run_states(&mut play);
    monitors(&mut play, &engine);
    play.send(&Quit {});
    play.events(&["SHUTDOWN"]);
    play.record.push(format!("{}", engine.end()));
    play.record
}

fn look_around(play: &mut Play) {
    play.see(&QueryVersion {}, |version| json!(version));
    play.see(&QueryStatus {}, |status| json!(status));
    play.see(&ReadPowerButton {}, |button| json!([button.enabled, button.pending]));
    play.see(&ReadRegisters {}, |registers| json!(format!("{:?}", registers.occupant())));
    play.see(&Human { command_line: "zz".into() }, |said| json!(said));
    play.see(&QomList { path: "/machine/peripheral".into() }, |children| {
        let mut children: Vec<_> =
            children.iter().map(|c| format!("{} {}", c.name, c.kind)).collect();
        children.sort();
        json!(children)
    });
    let adapter = || "/machine/peripheral/adapter-0-0".to_owned();
    play.see(&QomGet { path: adapter(), property: "realized".into() }, Value::clone);
    play.see(&QomGet { path: adapter(), property: "type".into() }, Value::clone);
    play.send(&QomGet { path: adapter(), property: "zz".into() });
    play.send(&QomGet { path: "/machine/peripheral/zz".into(), property: "type".into() });
    play.see(&QueryPci {}, |buses| {
        let ids = buses[0].devices.iter().filter(|d| !d.qdev_id.is_empty());
        json!(ids.map(|d| (&d.qdev_id, d.slot, d.function, d.bridge.is_some())).collect::<Vec<_>>())
    });
    play.see(&QueryChardev {}, |chardevs| {
        let mut seen: Vec<_> = chardevs.iter().map(|c| (&c.label, c.frontend_open)).collect();
        seen.sort();
        json!(seen)
    });
    play.see(&QueryBlock {}, |devices| json!(devices));
    play.see(&QueryBlockstats {}, |stats| {
        let seen = stats.iter().map(|s| (&s.qdev, &s.node_name, s.stats.idle_time_ns));
        json!(seen.collect::<Vec<_>>())
    });
}

/// What firmware asks for is its own business; it waits for nothing yet.
fn request_queues(play: &mut Play) {
    for (path, queue) in [
        ("adapter-0-0/virtio-backend", 2),
        ("adapter-0-0/virtio-backend", 3),
        ("adapter-0-0/virtio-backend", 9_999),
        ("adapter-0-0", 2),
        ("zz/virtio-backend", 2),
    ] {
        let path = format!("/machine/peripheral/{path}");
        play.see(&QueryVirtQueue { path, queue }, |queue| json!(queue.inuse));
    }
}

/// A command with any name and arguments.
macro_rules! odd {
    ($type:ident, $name:literal) => {
        #[derive(Serialize)]
        struct $type(Value);

        impl Command for $type {
            const NAME: &'static str = $name;
            type Answer = Value;
        }
    };
}

odd!(Unknown, "zz");
odd!(OddDeviceDel, "device_del");
odd!(OddStop, "stop");
odd!(OddNode, "blockdev-add");

fn mistakes(play: &mut Play) {
    play.send(&Unknown(json!({})));
    play.send(&OddDeviceDel(json!({})));
    play.send(&OddDeviceDel(json!({ "id": 1 })));
    play.send(&OddStop(json!({ "zz": 1 })));
    play.send(&OddNode(json!({ "driver": "file", "node-name": "n", "filename": "f", "zz": 1 })));
    play.send(&Capabilities {});
    play.send(&AddFd::default());
    play.send(&RemoveFd { fdset_id: 770 });
    play.send(&DeviceDel { id: "zz".into() });
    play.send(&BlockdevDel { node_name: "zz".into() });
    play.send(&OpenTray { id: "zz".into(), force: false });
    play.send(&InsertMedium { id: "drive".into(), node_name: "zz".into() });
    play.send(&node("far", "/dev/fdset/99", false));
    play.send(&device(&[("driver", "zz"), ("id", "x")]));
    play.send(&device(&[("driver", "scsi-hd"), ("id", "x"), ("bus", "zz.0"), ("drive", "d")]));
    play.send(&device(&[
        ("driver", "scsi-hd"),
        ("id", "x"),
        ("bus", "adapter-0-0.0"),
        ("drive", "zz"),
    ]));
    play.send(&device(&[("driver", "scsi-hd"), ("id", "x"), ("bus", "adapter-0-0.0")]));
    play.send(&device(&[
        ("driver", "virtio-scsi-pci"),
        ("id", "adapter-0-0"),
        ("bus", "port-0-1"),
    ]));
    play.send(&device(&[("driver", "virtio-scsi-pci"), ("id", "x"), ("bus", "port-0-0")]));
}

fn node(name: &str, filename: &str, read_only: bool) -> BlockdevAdd {
    let texts = [("driver", "file"), ("node-name", name), ("filename", filename)];
    let texts = texts.map(|(key, value)| (key, json!(value)));
    BlockdevAdd(texts.into_iter().chain([("read-only", json!(read_only))]).collect())
}

fn device(properties: &[(&str, &str)]) -> DeviceAdd {
    DeviceAdd(properties.iter().copied().collect())
}

fn descriptors_and_nodes(play: &mut Play) {
    let disk = tempfile::tempfile().expect("a disk");
    disk.set_len(1 << 20).expect("a size");
    play.pass(None, &disk);
    play.pass(Some(77), &disk);
    see_fdsets(play);
    play.send(&node("medium", "/dev/fdset/77", false));
    play.send(&node("medium", "/dev/fdset/77", false));
    play.send(&RemoveFd { fdset_id: 77 });
    see_fdsets(play);
    play.send(&RemoveFd { fdset_id: 0 });
    see_fdsets(play);
    play.see(&QueryNodes { flat: true }, |nodes| json!(nodes));
    play.send(&BlockResize { node_name: "medium".into(), size: 2 << 20 });
    assert_eq!(disk.metadata().expect("a file").len(), 2 << 20);
}

fn mirrors(play: &mut Play) {
    let target = tempfile::tempfile().expect("a disk");
    target.set_len(2 << 20).expect("a size");
    play.pass(Some(79), &target);
    play.send(&node("copy", "/dev/fdset/79", false));
    play.send(&mirror("zz"));
    play.send(&BlockJobCancel { device: "copy".into(), force: false });
    play.send(&JobDismiss { id: "copy".into() });
    let cancel = |force| BlockJobCancel { device: "copy".into(), force };
    let finalize = JobFinalize { id: "copy".into() };
    for (force, after_leave) in [(false, true), (true, false), (false, false)] {
        play.send(&mirror("copy"));
        play.send(&mirror("copy"));
        play.job_is(&JobStatus::Ready);
        play.send(&JobDismiss { id: "copy".into() });
        play.send(&finalize);
        play.send(&BlockdevDel { node_name: "copy".into() });
        play.send(&BlockdevDel { node_name: "medium".into() });
        play.send(&cancel(force));
        if !force {
            // Its work is done, and it waits for leave.
            play.job_is(&JobStatus::Pending);
            play.send(&JobDismiss { id: "copy".into() });
            play.send(&BlockdevDel { node_name: "copy".into() });
            match after_leave {
                true => play.send(&finalize),
                false => play.send(&cancel(true)),
            };
        }
        play.job_is(&JobStatus::Concluded);
        play.send(&JobDismiss { id: "copy".into() });
        play.see(&QueryJobs {}, |jobs| json!(jobs));
    }
    play.send(&BlockdevDel { node_name: "copy".into() });
    play.send(&RemoveFd { fdset_id: 79 });
    see_fdsets(play);
}

fn mirror(target: &str) -> BlockdevMirror {
    BlockdevMirror {
        job_id: "copy".into(),
        device: "medium".into(),
        target: target.into(),
        sync: MirrorSync::Full,
        copy_mode: CopyMode::WriteBlocking,
        auto_finalize: false,
        auto_dismiss: false,
    }
}

fn see_fdsets(play: &mut Play) {
    play.see(&QueryFdsets {}, |sets| {
        let opaques = |set: &hpvm_qmp::answer::FdSet| -> Vec<_> {
            set.fds.iter().map(|fd| fd.opaque.clone()).collect()
        };
        json!(sets.iter().map(|set| (set.fdset_id, opaques(set))).collect::<Vec<_>>())
    });
}

fn disk(play: &mut Play) {
    let disk = |id: &str, target: i64| {
        let texts =
            [("driver", "scsi-hd"), ("id", id), ("bus", "adapter-0-0.0"), ("drive", "medium")];
        let texts = texts.map(|(key, value)| (key, json!(value)));
        DeviceAdd(
            texts.into_iter().chain([("scsi-id", json!(target)), ("lun", json!(0))]).collect(),
        )
    };
    play.send(&disk("disk", 3));
    play.send(&disk("disk", 4));
    play.send(&OpenTray { id: "disk".into(), force: true });
    play.send(&BlockdevDel { node_name: "medium".into() });
    play.see(&QueryBlock {}, |devices| json!(devices));
    play.send(&DeviceDel { id: "disk".into() });
    play.events(&["DEVICE_DELETED"]);
    play.send(&BlockdevDel { node_name: "medium".into() });
    see_fdsets(play);
}

fn drive(play: &mut Play) {
    let medium = tempfile::NamedTempFile::new().expect("a medium");
    medium.as_file().set_len(1 << 20).expect("a size");
    play.pass(Some(78), std::fs::File::open(medium.path()).expect("readable"));
    play.send(&node("disc", "/dev/fdset/78", true));
    let id = || "drive".to_owned();
    let insert = InsertMedium { id: id(), node_name: "disc".into() };
    play.send(&insert);
    play.send(&RemoveMedium { id: id() });
    play.send(&OpenTray { id: id(), force: false });
    play.send(&OpenTray { id: id(), force: false });
    play.events(&["DEVICE_TRAY_MOVED"]);
    play.send(&RemoveMedium { id: id() });
    play.send(&insert);
    play.send(&insert);
    play.send(&CloseTray { id: id() });
    play.events(&["DEVICE_TRAY_MOVED"]);
    play.see(&QueryBlock {}, |devices| json!(devices));
    play.send(&Eject { id: id(), force: false });
    play.events(&["DEVICE_TRAY_MOVED"]);
    play.send(&BlockdevDel { node_name: "disc".into() });
    play.send(&ChangeMedium { id: id(), filename: "/dev/fdset/78".into(), format: "raw".into() });
    play.events(&["DEVICE_TRAY_MOVED"]);
    play.see(&QueryBlock {}, |devices| {
        let drive = devices.iter().find(|d| d.qdev.as_deref() == Some("drive"));
        let inserted = drive.and_then(|d| d.inserted.as_ref()).expect("a medium");
        let name = inserted.node_name.as_deref().unwrap_or_default();
        json!([name.starts_with("#block"), inserted.file, inserted.driver, inserted.read_only])
    });
}

/// A NIC comes to a switch that nobody has connected yet, and what is behind it goes without it.
fn nics(play: &mut Play) {
    let unix = json!({ "type": "unix", "path": "/nowhere/switch" });
    let socket = json!({ "addr": { "type": "unix", "data": { "path": "/nowhere/rings" } },
        "server": false, "reconnect-ms": 50 });
    let stream = NetdevAdd(
        [("type", json!("stream")), ("id", json!("net")), ("server", json!(false))]
            .into_iter()
            .chain([("reconnect-ms", json!(50)), ("addr", unix)])
            .collect(),
    );
    let rings = ChardevAdd(
        [("id", json!("rings")), ("backend", json!({ "type": "socket", "data": socket }))]
            .into_iter()
            .collect(),
    );
    let vhost_user = |chardev: &str| {
        let texts = [("type", "vhost-user"), ("id", "other"), ("chardev", chardev)];
        NetdevAdd(texts.into_iter().collect())
    };
    let nic = |id: &str, netdev: &str| {
        let place = [("driver", "e1000"), ("id", id), ("bus", "port-0-1"), ("romfile", "")];
        DeviceAdd(place.into_iter().chain([("netdev", netdev)]).collect())
    };
    let link = |name: &str, up| SetLink { name: name.into(), up };
    play.send(&NetdevDel { id: "net".into() });
    play.send(&ChardevRemove { id: "rings".into() });
    play.send(&link("nic", true));
    play.send(&vhost_user("rings"));
    play.send(&nic("nic", "net"));
    play.send(&stream);
    play.send(&stream);
    play.send(&rings);
    play.send(&rings);
    play.send(&nic("nic", "net"));
    play.send(&nic("second", "net"));
    play.send(&link("nic", false));
    play.send(&link("net", true));
    play.see(&QueryChardev {}, |chardevs| json!(chardevs.iter().any(|c| c.label == "rings")));
    for _ in 0..2 {
        play.send(&ChardevRemove { id: "rings".into() });
        play.send(&NetdevDel { id: "net".into() });
    }
}

/// Firmware lets nothing go: the adapter and its id stay until the next reset.
fn adapter_in_firmware(play: &mut Play) {
    play.send(&DeviceDel { id: "adapter-0-0".into() });
    play.send(&DeviceDel { id: "adapter-0-0".into() });
    play.send(&device(&[
        ("driver", "virtio-scsi-pci"),
        ("id", "adapter-0-0"),
        ("bus", "port-0-1"),
    ]));
    play.send(&SystemReset {});
    let mut told = Vec::new();
    while told.len() < 3 {
        told.push(play.event("DEVICE_DELETED").data.to_string());
    }
    play.record.push(format!("deleted {told:?}"));
    play.send(&device(&[
        ("driver", "virtio-scsi-pci"),
        ("id", "adapter-0-0"),
        ("bus", "port-0-0"),
    ]));
}

fn run_states(play: &mut Play) {
    let status = |play: &mut Play| play.see(&QueryStatus {}, |status| json!(status));
    for _ in 0..2 {
        play.send(&Stop {});
        status(play);
    }
    play.events(&["STOP"]);
    play.send(&SystemPowerdown {});
    play.events(&["POWERDOWN"]);
    for _ in 0..2 {
        play.send(&Cont {});
        status(play);
    }
    play.events(&["RESUME"]);
    play.send(&SystemReset {});
    play.events(&["RESET"]);
    status(play);
    play.send(&Stop {});
    play.send(&SystemReset {});
    play.events(&["STOP", "RESET"]);
    status(play);
    play.send(&Cont {});
    play.events(&["RESUME"]);
    status(play);
}

/// One client a socket; the rescue monitor is a second socket.
fn monitors(play: &mut Play, engine: &Engine) {
    let mut second = UnixStream::connect(engine.path("qmp")).expect("the socket takes it");
    second.set_read_timeout(Some(Duration::from_millis(200))).expect("a bound");
    let greeting = second.read(&mut [0; 1]);
    play.record.push(format!("second client: {:?}", greeting.map_err(|e| e.kind())));
    drop(second);
    let mut rescue = Client::connect(&engine.path("rescue")).expect("free");
    let status = rescue.execute(&QueryStatus {}).expect("answered");
    play.record.push(format!("rescue: {}", status.status));
    play.send(&Stop {});
    let event = rescue.next_event(EVENT_WAIT).expect("connected").expect("told to both");
    play.record.push(format!("rescue: {}", event.name));
}
