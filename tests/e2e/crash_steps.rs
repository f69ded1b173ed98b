//! Every changing command is killed at every step it names. What is left must be the old or the new state, the next command
//! must work, and `hpvm doctor` must say what is left over and clean it. The commands are the authority on what steps there
//! are: one that no scene here reaches fails the suite.

mod house;
mod kinds;
mod scenes;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Duration;

use hpvm_app::snapshot::Process;
use hpvm_host::lock::{KEEPER_BYTE, WORKER_BYTE, is_held};
use hpvm_model::{DiskId, GuestConfig, Vswitch};
use hpvm_plan::record::Machine;
use hpvm_registry::{Access, Entry, Registry};
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::refusals::{State, export};
use crate::statements::disk_at;

use scenes::Scene;

/// Makes of each scene a test that plays it, on the scripted engine.
macro_rules! plays {
    ($($test:ident: $scene:path,)*) => {
        const SCENES: &[&Scene] = &[$(&$scene),*];
        pub(crate) const TESTS: &[Test] = $crate::tests![
            every_step_has_a_scene,
            every_kind_of_change_has_a_scene,
            readers_see_the_old_or_the_new_state,
            a_real_guest_outlives_commands_that_die,
            $($test),*
            ; long:
            a_real_guest_outlives_all_changes_that_die,
        ];
        $(fn $test() {
            play(&$scene);
        })*
    };
}

plays! {
    create_dies_at_every_step: scenes::CREATE,
    modify_dies_at_every_step: scenes::MODIFY,
    adding_to_a_running_guest_dies_at_every_step: scenes::ATTACH,
    changing_a_device_of_a_running_guest_dies_at_every_step: scenes::EXCHANGE,
    exchanging_at_a_reset_dies_at_every_step: scenes::EXCHANGE_AT_RESET,
    taking_back_what_waits_dies_at_every_step: scenes::TAKE_BACK,
    taking_from_a_running_guest_dies_at_every_step: scenes::DETACH,
    clone_dies_at_every_step: scenes::CLONE,
    clone_of_two_disks_dies_at_every_step: scenes::CLONE_OF_TWO,
    clone_of_a_running_guest_dies_at_every_step: scenes::CLONE_RUNNING,
    linked_clone_dies_at_every_step: scenes::LINKED,
    linked_clone_elsewhere_dies_at_every_step: scenes::LINKED_ELSEWHERE,
    rename_dies_at_every_step: scenes::RENAME,
    rename_of_a_running_guest_dies_at_every_step: scenes::RENAME_RUNNING,
    remove_dies_at_every_step: scenes::REMOVE,
    purge_dies_at_every_step: scenes::PURGE,
    purge_of_a_kept_guest_dies_at_every_step: scenes::PURGE_KEPT,
    undelete_dies_at_every_step: scenes::UNDELETE,
    undelete_by_another_name_dies_at_every_step: scenes::UNDELETE_RENAMED,
    start_dies_at_every_step: scenes::START,
    stop_dies_at_every_step: scenes::STOP,
    graceful_stop_dies_at_every_step: scenes::STOP_GRACEFULLY,
    nvram_restore_dies_at_every_step: scenes::NVRAM,
    nvram_reset_dies_at_every_step: scenes::NVRAM_RESET,
    autostart_dies_at_every_step: house::AUTOSTART,
    autostart_clearing_what_is_over_dies_at_every_step: house::AUTOSTART_CLEARS,
    autostop_dies_at_every_step: house::AUTOSTOP,
    doctor_repair_dies_at_every_step: house::REPAIR,
    doctor_writing_texts_dies_at_every_step: house::REPAIR_TEXTS,
    doctor_making_a_guest_known_dies_at_every_step: house::REPAIR_UNKNOWN,
    doctor_taking_guests_over_dies_at_every_step: house::REPAIR_ADOPT,
    doctor_settling_a_command_dies_at_every_step: house::REPAIR_SETTLE,
    doctor_rebuild_dies_at_every_step: house::REBUILD,
    devmgmt_dies_at_every_step: house::DEVMGMT,
    changing_an_entry_dies_at_every_step: house::DEVMGMT_MODIFY,
    deleting_an_entry_dies_at_every_step: house::DEVMGMT_DELETE,
    initialising_entries_dies_at_every_step: house::DEVMGMT_INITIALISE,
    renaming_a_device_dies_at_every_step: house::RENAME_DEVICE,
    making_a_disk_dies_at_every_step: house::MAKE_DISK,
    hostrdev_disabled_dies_at_every_step: house::HOSTRDEV_DISABLE,
    hostrdev_enabled_dies_at_every_step: house::HOSTRDEV_ENABLE,
    hostrdev_update_dies_at_every_step: house::HOSTRDEV_UPDATE,
    hostrdev_delete_dies_at_every_step: house::HOSTRDEV_DELETE,
    making_a_switch_dies_at_every_step: house::SWITCH,
    changing_a_switch_dies_at_every_step: house::SWITCH_RENAME,
    deleting_a_switch_dies_at_every_step: house::SWITCH_DELETE,
    booting_a_switch_dies_at_every_step: house::SWITCH_BOOT,
    resetting_a_switch_dies_at_every_step: house::SWITCH_RESET,
    halting_a_switch_dies_at_every_step: house::SWITCH_HALT,
    changing_a_port_dies_at_every_step: house::PORT,
}

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

fn every_kind_of_change_has_a_scene() {
    kinds::each_is_played_or_left_for_a_reason(SCENES);
}

/// With a QEMU that only its firmware runs on: what the scripted engine says of commands that die is true of the real one.
fn a_real_guest_outlives_commands_that_die() {
    play_on_qemu(&[scenes::START, scenes::STOP, scenes::ATTACH, scenes::RENAME_RUNNING]);
}

fn a_real_guest_outlives_all_changes_that_die() {
    play_on_qemu(&[
        scenes::EXCHANGE,
        scenes::EXCHANGE_AT_RESET,
        scenes::TAKE_BACK,
        scenes::DETACH,
        scenes::CLONE_RUNNING,
    ]);
}

fn play_on_qemu(scenes: &[Scene]) {
    for scene in scenes {
        for step in scene.steps {
            let _playing = Playing::of(scene, step, Then::Again);
            kill_at(Engine::Real, scene, step, Then::Again);
        }
    }
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
                    "hpvmstatus: ERROR: No Guest by that name or number: 'web'; `hpvmstatus` lists the guests\n"
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
    passes_its_steps(scene);
    for step in scene.steps {
        for &then in scene.then {
            let _playing = Playing::of(scene, step, then);
            kill_at(Engine::Fake, scene, step, then);
        }
    }
}

/// What is played, said when it fails.
struct Playing(String);

impl Playing {
    fn of(scene: &Scene, step: &str, then: Then) -> Playing {
        Playing(format!("{} dies at {step}, then {then:?}", scene.command.join(" ")))
    }
}

impl Drop for Playing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

/// A step that a command passes and its scene does not list would never be killed there.
fn passes_its_steps(scene: &Scene) {
    let mut host = host_with_two_guests(Engine::Fake);
    (scene.prepare)(&host);
    let passed = host.path("steps");
    host.environment("HPVM_STEPS_TO", &passed.to_string_lossy());
    let command = scene.command_on(&host);
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    a_dry_run_changes_nothing(&host, &command);
    let outcome = host.run(&command);
    assert!(outcome.status.success(), "{outcome}");
    let passed = fs::read_to_string(&passed).expect("the steps it passed");
    let mut passed: Vec<&str> = passed.lines().collect();
    // A doctor passes the same one with each cure.
    passed.dedup();
    assert_eq!(passed, scene.steps, "{outcome}");
    wait_until(SETTLE_BOUND, &format!("after {outcome}"), || (scene.is_done)(&host));
}

/// It passes no step either: whoever looks which were passed finds those of the real run alone.
fn a_dry_run_changes_nothing(host: &VmHost, command: &[&str]) {
    let (before, records) = (State::of(host), export(host)["operations"].clone());
    let seen = Seen::on(host);
    let outcome = host.run(&[command, &["--dry-run"]].concat());
    assert!(outcome.status.success(), "{outcome}");
    assert!(!outcome.stdout.is_empty(), "a dry run says what would happen: {outcome}");
    // A guest that comes up writes its own meanwhile.
    before.assert_unchanged_but(host, &outcome.line, &["log", "console.log"]);
    assert_eq!(Seen::on(host), seen, "after {outcome}");
    assert_eq!(export(host)["operations"], records, "and leaves no record: {outcome}");
}

fn kill_at(on: Engine, scene: &Scene, step: &str, then: Then) {
    let mut host = host_with_two_guests(on);
    (scene.prepare)(&host);
    let bystander = engine(&host, 1);
    let before = Seen::on(&host);
    let command = scene.command_on(&host);
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

    assert_eq!(engine(&host, 1), bystander, "'other' runs on");
    assert_eq!(is_supervised(&host, 1), bystander.is_some(), "'other' is supervised");
    leave_nothing(&host);
}

/// `other`, number 1, runs, but on the real engine, which would only be slower for it; `web`, number 2, is off.
fn host_with_two_guests(on: Engine) -> VmHost {
    let host = VmHost::new(on);
    for name in ["other", "web"] {
        let disk = host.disk(&format!("{name}.img"), 1 << 20);
        let disk = disk_at("0,1,0", &disk);
        host.ok(&["hpvmcreate", "-P", name, "-O", "linux", "-r", "512M", "-a", &disk]);
    }
    if on == Engine::Fake {
        host.ok(&["hpvmstart", "-P", "other"]);
    }
    host
}

/// All that a command may change, as it is at one moment.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    guests: Vec<GuestConfig>,
    removed: Vec<GuestConfig>,
    switches: Vec<Vswitch>,
    entries: Vec<Entry>,
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
            let folder = folder(host, config);
            assert!(folder.join("nvram").is_file(), "'{}' has its folder and nvram", config.name);
            assert!(folder.join("guest.json").is_file(), "'{}' has its identity", config.name);
        }
        let is_web_on = engine(host, WEB).is_some();
        let web = guests.iter().find(|guest| is_web_on && guest.number.get() == WEB);
        let web_devices = web.map(|web| running_devices(host, web));
        let alike = |configs: Vec<GuestConfig>| configs.into_iter().map(without_chance).collect();
        Seen {
            guests: alike(guests),
            removed: alike(removed),
            switches: registry.vswitches().expect("the switches"),
            entries: registry.entries().expect("the entries"),
            is_web_on,
            web_devices,
        }
    }

    fn is_old_or_new(&self, old: &Seen, new: &Seen) {
        let either = |is_old: bool, is_new: bool, what: &str| {
            assert!(is_old || is_new, "{what}: {self:#?}\nis neither {old:#?}\nnor {new:#?}");
        };
        either(self.guests == old.guests, self.guests == new.guests, "guests");
        either(self.removed == old.removed, self.removed == new.removed, "removed guests");
        either(self.switches == old.switches, self.switches == new.switches, "switches");
        either(self.entries == old.entries, self.entries == new.entries, "entries");
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

/// What a guest runs on. hpvmstatus would tell it too, and take the guest over on the way.
fn running_devices(host: &VmHost, config: &GuestConfig) -> Vec<String> {
    let record = folder(host, config).join("boot.record");
    let machine = Machine::read(&fs::read_to_string(record).expect("a boot record"));
    let storage = machine.expect("a boot record").storage;
    storage.iter().map(|attached| attached.device.to_string()).collect()
}

fn folder(host: &VmHost, config: &GuestConfig) -> PathBuf {
    host.path("var/opt/hpvm/uuids").join(config.uuid.to_string())
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
        ["accel", "qemu-version", "root", "uids", "mptsas1068.rom", "net"].contains(&name.as_str())
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
