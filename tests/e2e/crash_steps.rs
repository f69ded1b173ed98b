//! Every changing command is killed at every step it names. What is left must be the old or the new state, the next command
//! must work, and `hpvm doctor` must say what is left over and clean it. The commands are the authority on what steps there
//! are: one that no scene here reaches fails the suite.

mod scenes;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use hpvm_app::snapshot::Process;
use hpvm_host::lock::{KEEPER_BYTE, WORKER_BYTE, is_held};
use hpvm_model::{DiskId, GuestConfig};
use hpvm_registry::{Access, Registry};
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;

use scenes::{
    ATTACH, CLONE, CLONE_OVER, CLONE_RUNNING, CREATE, DEVMGMT, HALT, HOSTRDEV, LINKED, MAKE_DISK,
    MODIFY, NVRAM, PURGE, PURGE_KEPT, REBUILD, REMOVE, RENAME, RENAME_DEVICE, REPAIR, SCENES,
    START, STOP, SWITCH, Scene, UNDELETE,
};

pub(crate) const TESTS: &[Test] = crate::tests![
    every_step_has_a_scene,
    create_dies_at_every_step,
    modify_dies_at_every_step,
    modify_of_a_running_guest_dies_at_every_step,
    clone_dies_at_every_step,
    clone_over_a_file_dies_at_every_step,
    clone_of_a_running_guest_dies_at_every_step,
    linked_clone_dies_at_every_step,
    rename_dies_at_every_step,
    remove_dies_at_every_step,
    purge_dies_at_every_step,
    purge_of_a_kept_guest_dies_at_every_step,
    undelete_dies_at_every_step,
    start_dies_at_every_step,
    stop_dies_at_every_step,
    nvram_restore_dies_at_every_step,
    doctor_repair_dies_at_every_step,
    doctor_rebuild_dies_at_every_step,
    devmgmt_dies_at_every_step,
    renaming_a_device_dies_at_every_step,
    making_a_disk_dies_at_every_step,
    hostrdev_dies_at_every_step,
    making_a_switch_dies_at_every_step,
    halting_a_switch_dies_at_every_step,
    readers_see_the_old_or_the_new_state,
];

const SIGABRT: i32 = 6;
/// Four times what keepers and workers need on a quiet machine to follow their QEMU.
const SETTLE_BOUND: Duration = Duration::from_secs(20);

/// The number of the guest `web`.
const WEB: u32 = 2;

fn every_step_has_a_scene() {
    let host = VmHost::new(Engine::Fake);
    let named: BTreeSet<String> =
        host.ok(&["hpvm", "crash-steps"]).lines().map(str::to_owned).collect();
    let tested: BTreeSet<String> =
        SCENES.iter().flat_map(|scene| scene.steps).map(|&step| step.to_owned()).collect();
    assert_eq!(named, tested, "each step that commands name is one that a scene reaches");
}

fn create_dies_at_every_step() {
    play(&CREATE);
}

fn modify_dies_at_every_step() {
    play(&MODIFY);
}

fn modify_of_a_running_guest_dies_at_every_step() {
    play(&ATTACH);
}

fn clone_dies_at_every_step() {
    play(&CLONE);
}

fn clone_over_a_file_dies_at_every_step() {
    play(&CLONE_OVER);
}

fn clone_of_a_running_guest_dies_at_every_step() {
    play(&CLONE_RUNNING);
}

fn linked_clone_dies_at_every_step() {
    play(&LINKED);
}

fn rename_dies_at_every_step() {
    play(&RENAME);
}

fn remove_dies_at_every_step() {
    play(&REMOVE);
}

fn purge_dies_at_every_step() {
    play(&PURGE);
}

fn purge_of_a_kept_guest_dies_at_every_step() {
    play(&PURGE_KEPT);
}

fn undelete_dies_at_every_step() {
    play(&UNDELETE);
}

fn start_dies_at_every_step() {
    play(&START);
}

fn stop_dies_at_every_step() {
    play(&STOP);
}

fn nvram_restore_dies_at_every_step() {
    play(&NVRAM);
}

fn doctor_repair_dies_at_every_step() {
    play(&REPAIR);
}

fn doctor_rebuild_dies_at_every_step() {
    play(&REBUILD);
}

fn devmgmt_dies_at_every_step() {
    play(&DEVMGMT);
}

fn renaming_a_device_dies_at_every_step() {
    play(&RENAME_DEVICE);
}

fn making_a_disk_dies_at_every_step() {
    play(&MAKE_DISK);
}

fn hostrdev_dies_at_every_step() {
    play(&HOSTRDEV);
}

fn making_a_switch_dies_at_every_step() {
    play(&SWITCH);
}

fn halting_a_switch_dies_at_every_step() {
    play(&HALT);
}

/// Settles 80, 82: a guest that is renamed, removed and brought back is there under one name or not at all for whoever
/// looks meanwhile, and nothing else is said about it.
fn readers_see_the_old_or_the_new_state() {
    const ROUNDS: usize = 8;
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web"]);
    let change = || {
        for _ in 0..ROUNDS {
            host.ok(&["hpvmmodify", "-P", "web", "-N", "site"]);
            host.ok(&["hpvmmodify", "-P", "site", "-N", "web"]);
            host.ok(&["hpvmremove", "-P", "web", "-F"]);
            host.ok(&["hpvm", "undelete", "-P", "web"]);
        }
    };
    let mut looks = 0;
    std::thread::scope(|scope| {
        let changer = scope.spawn(change);
        while !changer.is_finished() {
            let list = host.run(&["hpvmstatus"]);
            assert!(list.status.success() && list.stderr.is_empty(), "{list}");
            let shown = list.stdout.lines().skip(3).count();
            assert!(shown <= 1, "under one name: {list}");
            let one = host.run(&["hpvmstatus", "-P", "web", "-V"]);
            match one.status.code() {
                Some(0) => assert!(one.stderr.is_empty(), "{one}"),
                Some(1) => assert_eq!(
                    one.stderr,
                    "hpvmstatus: ERROR: No Guest by that name or number: 'web'\n"
                ),
                _ => panic!("{one}"),
            }
            looks += 1;
        }
    });
    assert!(looks > ROUNDS, "somebody looked: {looks}");
    assert_eq!(host.state("web"), "Off");
}

/// What comes first after the kill.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// The administrator types the command again.
    Again,
    /// The administrator has the leftovers cleaned first.
    Repair,
}

fn play(scene: &Scene) {
    for step in scene.steps {
        for then in [Then::Again, Then::Repair] {
            let _playing =
                Playing(format!("{} dies at {step}, then {then:?}", scene.command.join(" ")));
            kill_at(scene, step, then);
        }
    }
}

/// What is played, said when it fails.
struct Playing(String);

impl Drop for Playing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

fn kill_at(scene: &Scene, step: &str, then: Then) {
    let mut host = host_with_two_guests();
    let bystander = engine(&host, 1).expect("'other' runs");
    (scene.prepare)(&host);
    let before = Seen::on(&host);
    let root = host.root().display().to_string();
    let command: Vec<String> =
        scene.command.iter().map(|word| word.replace("{root}", &root)).collect();
    let command: Vec<&str> = command.iter().map(String::as_str).collect();

    host.environment("HPVM_ABORT_AT", step);
    let killed = host.run(&command);
    host.without_environment("HPVM_ABORT_AT");
    assert_eq!(killed.status.signal(), Some(SIGABRT), "{step} was not reached: {killed}");

    settle(&host);
    let between = Seen::on(&host);
    host.ok(&["hpvmstatus"]);
    told_by_doctor(&host);
    if let Then::Repair = then {
        repair(&host);
    }
    // Done already is as good as done now; what counts is the state it leads to.
    let again = host.run(&command);
    assert!(matches!(again.status.code(), Some(0 | 1)), "{again}");
    wait_until(SETTLE_BOUND, &format!("after {step} and {then:?}: {again}"), || {
        (scene.is_done)(&host)
    });
    repair(&host);
    assert!((scene.is_done)(&host), "a repair undoes nothing");
    between.is_old_or_new(&before, &Seen::on(&host));

    assert_eq!(engine(&host, 1), Some(bystander), "'other' runs on");
    assert!(is_supervised(&host, 1), "'other' is supervised");
    leave_nothing(&host);
}

/// `other`, number 1, runs; `web`, number 2, is off.
fn host_with_two_guests() -> VmHost {
    let host = VmHost::new(Engine::Fake);
    for name in ["other", "web"] {
        let disk = host.disk(&format!("{name}.img"), 1 << 20);
        let disk = format!("disk:avio_stor:0,1,0:file:{}", disk.display());
        host.ok(&["hpvmcreate", "-P", name, "-O", "linux", "-r", "512M", "-a", &disk]);
    }
    host.ok(&["hpvmstart", "-P", "other"]);
    host
}

/// All that a command may change, as it is at one moment.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    guests: Vec<GuestConfig>,
    removed: Vec<GuestConfig>,
    is_web_on: bool,
    web_devices: Option<Vec<String>>,
}

impl Seen {
    fn on(host: &VmHost) -> Seen {
        let registry = registry(host);
        let guests = registry.all().expect("the guests");
        let removed: Vec<GuestConfig> =
            registry.removed().expect("the removed").into_iter().map(|r| r.config).collect();
        for config in guests.iter().chain(&removed) {
            let folder = host.path("var/opt/hpvm/uuids").join(config.uuid.to_string());
            assert!(folder.join("nvram").is_file(), "'{}' has its folder and nvram", config.name);
            assert!(folder.join("guest.json").is_file(), "'{}' has its identity", config.name);
        }
        let is_web_on = engine(host, WEB).is_some();
        let web_devices = is_web_on.then(|| running_devices(host));
        let alike = |configs: Vec<GuestConfig>| configs.into_iter().map(without_chance).collect();
        Seen { guests: alike(guests), removed: alike(removed), is_web_on, web_devices }
    }

    fn is_old_or_new(&self, old: &Seen, new: &Seen) {
        let either = |is_old: bool, is_new: bool, what: &str| {
            assert!(is_old || is_new, "{what}: {self:#?}\nis neither {old:#?}\nnor {new:#?}");
        };
        either(self.guests == old.guests, self.guests == new.guests, "guests");
        either(self.removed == old.removed, self.removed == new.removed, "removed guests");
        either(self.is_web_on == old.is_web_on, self.is_web_on == new.is_web_on, "running");
        let devices = &self.web_devices;
        either(*devices == old.web_devices, *devices == new.web_devices, "running devices");
    }
}

/// A configuration without what is drawn by lot when it is made, and without the ports, which grow at each start.
fn without_chance(mut config: GuestConfig) -> GuestConfig {
    config.uuid = "00000000-0000-0000-0000-000000000000".parse().expect("a uuid");
    config.ports.clear();
    for device in &mut config.storage {
        device.id = DiskId::from_random(0);
        if device.backing.path.contains("/uuids/") {
            device.backing.path = "in its folder".into();
        }
    }
    config
}

fn running_devices(host: &VmHost) -> Vec<String> {
    let text = host.ok(&["hpvmstatus", "-P", "web", "-d"]);
    text.lines().map(str::to_owned).collect()
}

fn registry(host: &VmHost) -> Registry {
    Registry::open(&host.path("var/opt/hpvm/hpvm.db"), Access::ReadOnly).expect("the registry")
}

fn guest(host: &VmHost, name: &str) -> Option<GuestConfig> {
    registry(host).all().expect("the guests").into_iter().find(|g| g.name.as_str() == name)
}

fn is_listed(host: &VmHost, name: &str) -> bool {
    !host.state(name).is_empty()
}

fn removed_names(host: &VmHost) -> Vec<String> {
    let removed = registry(host).removed().expect("the removed guests");
    removed.into_iter().map(|r| r.config.name.to_string()).collect()
}

/// The engine of a guest that runs.
fn engine(host: &VmHost, number: u32) -> Option<Process> {
    host.qemu(number).and_then(|_| host.snapshot(number)).map(|snapshot| snapshot.qemu)
}

fn is_supervised(host: &VmHost, number: u32) -> bool {
    let Ok(lock) = File::open(host.run_dir(number).join("lock")) else { return false };
    is_held(&lock, KEEPER_BYTE).unwrap_or(false) && is_held(&lock, WORKER_BYTE).unwrap_or(false)
}

/// A start that was left alone comes up by itself, and a stop comes to its end.
fn settle(host: &VmHost) {
    wait_until(SETTLE_BOUND, "'web' is on and supervised, or off and gone", || {
        let Ok(lock) = File::open(host.run_dir(WEB).join("lock")) else { return true };
        let held = |byte| is_held(&lock, byte).unwrap_or(false);
        match engine(host, WEB) {
            Some(_) => held(KEEPER_BYTE) && held(WORKER_BYTE),
            None => !held(KEEPER_BYTE) && !held(WORKER_BYTE),
        }
    });
}

/// Without options it changes nothing: it finds nothing, or says what, and what would clean it.
fn told_by_doctor(host: &VmHost) {
    let told = host.run(&["hpvm", "doctor"]);
    match told.status.code() {
        Some(0) => assert_eq!(told.stdout, "Nothing to complain of.\n", "{told}"),
        Some(1) => assert!(told.stdout.contains("\n  next: "), "{told}"),
        _ => panic!("{told}"),
    }
}

fn repair(host: &VmHost) {
    host.ok(&["hpvm", "doctor", "--repair"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
}

/// With every guest gone, nothing of them is there any more: no process, no folder, no link, no half-made registry.
fn leave_nothing(host: &VmHost) {
    for config in registry(host).all().expect("the guests") {
        let name = config.name.as_str();
        host.ok(&["hpvmstop", "-P", name, "-F"]);
        host.ok(&["hpvmremove", "-P", name, "-F", "--purge"]);
    }
    for name in removed_names(host) {
        host.ok(&["hpvmremove", "-P", &name, "-F", "--purge"]);
    }
    wait_until(SETTLE_BOUND, "no process is left", || host.processes().is_empty());
    assert_eq!(names(host, "var/opt/hpvm/uuids"), [""; 0]);
    assert_eq!(names(host, "var/opt/hpvm/guests"), [""; 0]);
    let state = names(host, "var/opt/hpvm");
    let is_ours = |name: &String| {
        ["common", "guests", "uuids", "hpvm.db", "hpvm.db-wal", "hpvm.db-shm"]
            .contains(&name.as_str())
            || name.starts_with("hpvm.db.damaged-")
    };
    assert!(state.iter().all(is_ours), "{state:?}");
    let run = names(host, "run/hpvm");
    let is_ours = |name: &String| {
        ["accel", "qemu-version", "root", "mptsas1068.rom", "net"].contains(&name.as_str())
    };
    assert!(run.iter().all(is_ours), "{run:?}");
}

fn names(host: &VmHost, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(host.path(folder)).expect("a folder").flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
