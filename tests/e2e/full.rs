//! A full disk, a real one, for the registry, a guest's folder, its log, /run and a disk's image, each in turn. What cannot be
//! done is refused with a clear error; nothing is lost; what runs goes on; and all works again when there is room.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hpvm_host::removal;
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};
use hpvm_testkit::wait::wait_until;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rustix::process::Signal;

use crate::Test;
use crate::guest_processes::process;
use crate::loop_device::LoopDevice;
use crate::mounted::{Mounted, make_file_system};
use crate::pool::{Leased, image};
use crate::refusals::{State, no_control_bytes, refused, start_refused};
use crate::statements::{disk_at, disk_on};

pub(crate) const TESTS: &[Test] = crate::tests![
    no_room_for_the_registry,
    a_removal_makes_room_where_none_is_left,
    no_room_for_the_guests_folders,
    little_room_is_enough_for_a_change_or_for_none_of_it,
    little_room_is_enough_for_a_clone_or_for_none_of_it,
    no_room_for_a_guests_log,
    no_room_in_run,
    no_room_for_a_disk,
    room_that_is_not_enough_for_a_disk_is_not_taken,
    no_room_for_anything_around_a_real_guest,
];

const UP: Duration = Duration::from_secs(20);
const FILLER: &str = "filler";

/// A VM Host some of whose folders are file systems of their own, small enough to be filled.
struct Cramped {
    host: VmHost,
    mounts: Vec<Mounted>,
}

impl Cramped {
    fn new() -> Cramped {
        Cramped::on(Engine::Fake)
    }

    fn on(engine: Engine) -> Cramped {
        Cramped { host: VmHost::new(engine), mounts: Vec::new() }
    }

    /// Mounts an empty file system of so many MiB at a folder below the root.
    fn mount(&mut self, below: &str, mib: u64) {
        let at = self.host.path(below);
        fs::create_dir_all(&at).expect("a folder");
        let at = fs::canonicalize(at).expect("it is there");
        self.mounts.push(Mounted::tmpfs(&at, mib << 20));
    }

    /// Puts one file on a file system of its own.
    fn mount_file(&mut self, on: &str, file: &Path) {
        let source = self.host.path(on).join("file");
        fs::copy(file, &source).expect("a copy");
        self.mounts.push(Mounted::by(&["--bind", &source.to_string_lossy()], file));
    }

    /// Guests as they are found everywhere: `other` runs, `web` is off, `gone` was removed.
    fn inhabit(&self) {
        for name in ["other", "web", "gone"] {
            let disk = self.host.disk(&format!("{name}.img"), 1 << 20);
            let statement = disk_at("0,0,0", &disk);
            self.host.ok(&["hpvmcreate", "-P", name, "-r", "64M", "-a", &statement]);
            // A guest that ran before: its ports and its record are there.
            self.host.ok(&["hpvmstart", "-P", name]);
            self.host.wait_for_state(name, "On (OS)", UP);
            if name != "other" {
                self.host.ok(&["hpvmstop", "-P", name, "-F"]);
            }
        }
        self.host.ok(&["hpvmremove", "-P", "gone", "-F"]);
    }

    /// Gives back the room that the registry's log holds for what comes next.
    fn empty_log(&self) {
        let registry = Connection::open(self.host.path("var/opt/hpvm/hpvm.db")).expect("it opens");
        // Whoever closes it last would take the log away, and readers would have to make it.
        let stays = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        registry.set_db_config(stays, true).expect("the log stays");
        let busy = registry.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
        assert_eq!(busy, Ok(0), "somebody has it open");
    }

    /// Takes the last byte.
    fn fill(&self, below: &str) {
        let path = self.host.path(below).join(FILLER);
        let mut file = fs::File::create(&path).expect("the first byte");
        let block = [0u8; 4096];
        while file.write_all(&block).is_ok() {}
        drop(file);
        let room = rustix::fs::statvfs(&path).expect("a file system").f_bavail;
        assert_eq!(room, 0, "{} is not full", path.display());
    }

    /// Takes all but so many blocks.
    fn fill_but(&self, below: &str, blocks: u64) {
        self.fill(below);
        let filler = fs::OpenOptions::new().write(true).open(self.host.path(below).join(FILLER));
        let filler = filler.expect("the filler");
        let length = filler.metadata().expect("its size").len();
        filler.set_len(length - blocks * 4096).expect("so much room");
    }

    /// What tells which guests there are.
    fn folders(&self) -> [Vec<OsString>; 2] {
        ["uuids", "guests"].map(|name| names(&self.host.path("var/opt/hpvm").join(name)))
    }

    fn make_room(&self, below: &str) {
        let filler = self.host.path(below).join(FILLER);
        // Emptied first: a process that another test is just starting may hold the file for a moment.
        fs::File::create(&filler).expect("the filler is emptied");
        fs::remove_file(filler).expect("the filler goes");
    }

    /// Everything works, and nothing is left to complain of.
    #[track_caller]
    fn assert_sound(&self) {
        let host = &self.host;
        let disk = host.disk("late.img", 1 << 20);
        let statement = disk_on(&disk);
        host.ok(&["hpvmcreate", "-P", "late", "-r", "64M", "-a", &statement]);
        host.ok(&["hpvmmodify", "-P", "late", "-N", "later", "-l", "made late"]);
        host.ok(&["hpvmstart", "-P", "later"]);
        host.wait_for_state("later", "On (OS)", UP);
        host.ok(&["hpvmstop", "-P", "later", "-F"]);
        host.ok(&["hpvmremove", "-P", "later", "-F", "--purge"]);
        host.ok(&["hpvm", "undelete", "-P", "gone"]);
        let doctor = host.run(&["hpvm", "doctor"]);
        assert!(doctor.status.success(), "{doctor}");
    }
}

impl Drop for Cramped {
    fn drop(&mut self) {
        self.host.end_processes();
        while self.mounts.pop().is_some() {}
    }
}

#[track_caller]
fn tells_of_no_room(said: &str) {
    let is_told = ["No space left", "no room", "No room"].iter().any(|words| said.contains(words));
    assert!(is_told, "the reason is not told: {said}");
}

/// What `hpvm doctor` finds of no room in a folder, which it tells first.
#[track_caller]
fn complains_of_no_room(host: &VmHost, folder: &Path, of_others: &str) {
    let at = fs::canonicalize(folder).expect("a folder").display().to_string();
    let doctor = host.run(&["hpvm", "doctor"]);
    assert_eq!(doctor.status.code(), Some(1), "{doctor}");
    let told = format!(
        "no room is left where '{at}' lies; hpvm needs 1 MB there\n  next: make room on the file system of {at}\n{of_others}"
    );
    assert_eq!(doctor.stdout, told, "{doctor}");
}

#[track_caller]
fn succeeded(outcome: &Outcome) {
    assert!(outcome.status.success(), "{outcome}");
    outcome.assert_prompt();
    no_control_bytes(outcome);
}

fn no_room_for_the_registry() {
    let mut cramped = Cramped::new();
    cramped.mount("var/opt/hpvm", 4);
    cramped.mount("var/opt/hpvm/uuids", 16);
    cramped.inhabit();
    let host = &cramped.host;
    let disk = host.disk("new.img", 1 << 20);
    let statement = disk_on(&disk);
    cramped.empty_log();
    cramped.fill("var/opt/hpvm");
    let before = State::of(host);
    for line in [
        &["hpvmcreate", "-P", "new"][..],
        &["hpvmmodify", "-P", "web", "-l", "x"],
        &["hpvmmodify", "-P", "web", "-N", "new", "-c", "2"],
        &["hpvmmodify", "-P", "other", "-l", "x"],
        &["hpvmmodify", "-P", "other", "-a", &statement],
        &["hpvmremove", "-P", "web", "-F"],
        &["hpvmremove", "-P", "gone", "-F", "--purge"],
        &["hpvm", "undelete", "-P", "gone"],
    ] {
        tells_of_no_room(&refused(host, line));
        // The record of the running machine says what was tried and taken back, so it may grow.
        before.assert_unchanged_but(host, &line.join(" "), &["boot.record", "log"]);
    }
    complains_of_no_room(host, &host.path("var/opt/hpvm"), "");
    assert_eq!(host.state("web"), "Off");
    assert_eq!(host.state("other"), "On (OS)");
    // No registry is needed to start and stop; where its record cannot be written, that is said.
    let stopped = host.run(&["hpvmstop", "-P", "other", "-F"]);
    succeeded(&stopped);
    tells_of_no_room(&stopped.stderr);
    let started = host.run(&["hpvmstart", "-P", "other"]);
    succeeded(&started);
    tells_of_no_room(&started.stderr);
    host.wait_for_state("other", "On (OS)", UP);
    removal::folder(&host.run_dir(1)).expect("nobody reaches it any more");
    let ended = host.run(&["hpvmstop", "-P", "other", "-hF"]);
    succeeded(&ended);
    tells_of_no_room(&ended.stderr);
    assert_eq!(host.state("other"), "Off");
    cramped.make_room("var/opt/hpvm");
    cramped.assert_sound();
}

/// However little room there is, and wherever in a change it runs out, folder and registry say the same afterwards.
fn little_room_is_enough_for_a_change_or_for_none_of_it() {
    let mut cramped = Cramped::new();
    cramped.mount("var/opt/hpvm", 16);
    cramped.inhabit();
    let host = &cramped.host;
    let identity = || fs::read_to_string(host.path("var/opt/hpvm/guests/web/guest.json"));
    let (mut done, mut refusals) = (0, 0);
    for blocks in 0..24 {
        cramped.fill_but("var/opt/hpvm", blocks);
        let before = identity().expect("what the guest is");
        let label = format!("with {blocks} blocks free");
        let changed = host.run(&["hpvmmodify", "-P", "web", "-l", &label]);
        changed.assert_prompt();
        let after = identity().expect("what the guest is");
        if changed.status.success() {
            done += 1;
            assert!(after.contains(&label), "{label}: {after}");
        } else {
            refusals += 1;
            tells_of_no_room(&changed.stderr);
            assert_eq!(before, after, "{label}: {changed}");
        }
        complains_of_no_room(host, &host.path("var/opt/hpvm"), "");
        cramped.make_room("var/opt/hpvm");
    }
    assert!(done > 0 && refusals > 0, "{done} changes were made and {refusals} refused");
    cramped.assert_sound();
}

fn a_removal_makes_room_where_none_is_left() {
    let mut cramped = Cramped::new();
    cramped.mount("var/opt/hpvm", 4);
    for name in ["web", "kept"] {
        cramped.host.ok(&["hpvmcreate", "-P", name]);
    }
    cramped.fill("var/opt/hpvm");
    let host = &cramped.host;
    tells_of_no_room(&refused(host, &["hpvmcreate", "-P", "new"]));
    host.ok(&["hpvmremove", "-P", "kept", "-F"]);
    host.ok(&["hpvmremove", "-P", "web", "-F", "--purge"]);
    host.ok(&["hpvmcreate", "-P", "new"]);
}

fn no_room_for_the_guests_folders() {
    let mut cramped = Cramped::new();
    cramped.mount("var/opt/hpvm/uuids", 8);
    cramped.inhabit();
    let host = &cramped.host;
    host.ok(&["hpvmcreate", "-P", "fresh"]);
    let disk = host.disk("new.img", 1 << 20);
    let statement = disk_on(&disk);
    cramped.fill("var/opt/hpvm/uuids");
    let before = State::of(host);
    for line in [
        &["hpvmcreate", "-P", "new"][..],
        &["hpvmmodify", "-P", "web", "-l", "x"],
        &["hpvmmodify", "-P", "web", "-N", "new", "-c", "2"],
        &["hpvmmodify", "-P", "other", "-a", &statement],
        &["hpvm", "nvram", "-P", "web", "--reset", "-F"],
    ] {
        tells_of_no_room(&refused(host, line));
        // A running guest is asked for nothing that could not be kept.
        before.assert_unchanged_but(host, &line.join(" "), &["log"]);
    }
    tells_of_no_room(&start_refused(host, "web"));
    assert_eq!(host.state("web"), "Off");
    assert_eq!(host.state("other"), "On (OS)");
    succeeded(&host.run(&["hpvmstop", "-P", "other", "-F"]));
    assert_eq!(host.state("other"), "Off");
    tells_of_no_room(&start_refused(host, "other"));
    let why = host.ok(&["hpvm", "why", "other"]);
    tells_of_no_room(&why);
    let filler = host.path("var/opt/hpvm/uuids").join(FILLER);
    let foreign =
        format!("{} is not made by hpvm\n  next: move it to another place\n", filler.display());
    complains_of_no_room(host, &host.path("var/opt/hpvm/uuids"), &foreign);
    // Its lock was never written before, and cannot be now.
    host.ok(&["hpvmremove", "-P", "fresh", "-F", "--purge"]);
    cramped.make_room("var/opt/hpvm/uuids");
    host.ok(&["hpvmstart", "-P", "other"]);
    cramped.assert_sound();
}

/// Whether the folder, the variables or the registry get no room, what goes elsewhere is whole or is not there.
fn little_room_is_enough_for_a_clone_or_for_none_of_it() {
    let mut cramped = Cramped::new();
    cramped.mount("var/opt/hpvm", 4);
    cramped.mount("var/opt/hpvm/uuids", 8);
    cramped.inhabit();
    let host = &cramped.host;
    fs::create_dir(host.path("elsewhere")).expect("a folder");
    let copy = host.path("elsewhere/copy");
    let statement = |storage: &str| format!("disk:avio_stor:0,0,0:{storage}:{}", copy.display());
    let (file, image) = (statement("file"), statement("qcow2"));
    let kinds = [
        (None, vec!["-b", &file]),
        (Some("old"), vec!["-F", "-b", &file]),
        (None, vec!["--linked", "-b", &image]),
    ];
    // As large as those of each guest.
    let variables = fs::metadata(host.path("var/opt/hpvm/guests/web/nvram")).expect("variables");
    let variables = variables.len().div_ceil(4096);
    let around_variables = variables.saturating_sub(8)..variables + 16;
    for (below, free) in [("var/opt/hpvm", 8..32), ("var/opt/hpvm/uuids", around_variables)] {
        let mut counts = [(0, 0); 3];
        let order = kinds.iter().zip(0..).cycle();
        for (blocks, ((before, words), kind)) in free.zip(order) {
            let (done, refusals): &mut (u32, u32) = &mut counts[kind];
            let _ = fs::remove_file(&copy);
            if let Some(content) = before {
                fs::write(&copy, content).expect("a file");
            }
            cramped.empty_log();
            cramped.fill_but(below, blocks);
            let folders = cramped.folders();
            let line = [&["hpvmclone", "-P", "web", "-N", "new"][..], words].concat();
            let cloned = host.run(&line);
            cloned.assert_prompt();
            if cloned.status.success() {
                *done += 1;
                cramped.make_room(below);
                host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
            } else {
                *refusals += 1;
                tells_of_no_room(&cloned.stderr);
                assert_eq!(cramped.folders(), folders, "{blocks} blocks: {cloned}");
                assert_eq!(
                    names(&host.path("elsewhere")).len(),
                    usize::from(before.is_some()),
                    "{cloned}"
                );
                assert_eq!(fs::read_to_string(&copy).ok().as_deref(), *before, "{cloned}");
                cramped.make_room(below);
            }
        }
        for ((_, words), (done, refusals)) in kinds.iter().zip(counts) {
            let counted = format!("{below}, {words:?}: {done} were made and {refusals} refused");
            assert!(done > 0 && refusals > 0, "{counted}");
        }
    }
    cramped.assert_sound();
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
}

fn names(folder: &Path) -> Vec<OsString> {
    let names = fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.file_name());
    let mut names: Vec<OsString> = names.filter(|name| name != FILLER).collect();
    names.sort();
    names
}

/// A guest needs no log to run.
fn no_room_for_a_guests_log() {
    let mut cramped = Cramped::new();
    cramped.mount("logs", 1);
    cramped.inhabit();
    let log = cramped.host.path("var/opt/hpvm/guests/web/log");
    let log = fs::canonicalize(log).expect("web has run before");
    cramped.mount_file("logs", &log);
    cramped.fill("logs");
    let host = &cramped.host;
    // Room to the end of the block that the log had already; it is taken too.
    let mut open = fs::OpenOptions::new().append(true).open(&log).expect("the log");
    while open.write_all(b"-").is_ok() {}
    let length = fs::metadata(&log).expect("the log").len();
    succeeded(&host.run(&["hpvmstart", "-P", "web"]));
    host.wait_for_state("web", "On (OS)", UP);
    succeeded(&host.run(&["hpvmstop", "-P", "web", "-F"]));
    succeeded(&host.run(&["hpvmstart", "-P", "web"]));
    host.wait_for_state("web", "On (OS)", UP);
    host.qemu(2).expect("it runs").signal(Signal::KILL).expect("it is ours");
    host.wait_for_state("web", "Off", UP);
    let why = host.ok(&["hpvm", "why", "web"]);
    assert!(why.to_lowercase().contains("kill"), "the reason is known without the log: {why}");
    assert!(fs::metadata(&log).expect("the log").len() <= length, "the log was really full");
    cramped.make_room("logs");
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", UP);
    wait_until(UP, "the log goes on", || fs::metadata(&log).is_ok_and(|m| m.len() > length));
}

fn no_room_in_run() {
    let mut cramped = Cramped::new();
    // The first command makes the folder; the next finds an empty file system there, as after a boot.
    cramped.host.ok(&["hpvmcreate", "-P", "spare", "-r", "64M"]);
    cramped.mount("run/hpvm", 4);
    cramped.inhabit();
    let host = &cramped.host;
    cramped.fill("run/hpvm");
    let before = State::of(host);
    tells_of_no_room(&start_refused(host, "web"));
    tells_of_no_room(&start_refused(host, "spare"));
    before.assert_unchanged_but(host, "two starts that were refused", &["log", "boot.record"]);
    complains_of_no_room(host, &host.path("run/hpvm"), "");
    assert_eq!(host.state("web"), "Off");
    assert_eq!(host.state("other"), "On (OS)");
    host.ok(&["hpvmmodify", "-P", "web", "-l", "changed meanwhile"]);
    host.ok(&["hpvmcreate", "-P", "new", "-r", "64M"]);
    succeeded(&host.run(&["hpvmstop", "-P", "other", "-F"]));
    assert_eq!(host.state("other"), "Off");
    cramped.make_room("run/hpvm");
    host.ok(&["hpvmstart", "-P", "web"]);
    host.ok(&["hpvmstart", "-P", "other"]);
    host.wait_for_state("web", "On (OS)", UP);
    cramped.assert_sound();
}

/// The engine holds the guest still when a disk's file cannot grow, and goes on by itself when it can. Whoever has it shut down
/// meanwhile is told so first.
fn no_room_for_a_disk() {
    let mut guest = Leased::take();
    let folder = guest.host().path("cramped");
    fs::create_dir_all(&folder).expect("a folder");
    let file_system = guest.host().disk("file-system", 64 << 20);
    let made = Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&file_system).status();
    assert!(made.is_ok_and(|status| status.success()), "a file system");
    let mounted = Mounted::by(&["-o", "loop", &file_system.to_string_lossy()], &folder);
    let disk = guest.host().disk("cramped/disk.img", 32 << 20);
    let statement = disk_on(&disk);
    let disks = "ls /sys/block | grep -c ^sd";
    let count: u32 = guest.console().run(disks).parse().expect("a number");
    guest.host().ok(&["hpvmmodify", "-P", "pool", "-a", &statement]);
    let seen = format!("until [ $({disks}) = {} ]; do sleep 0.2; done", count + 1);
    guest.console().run(&seen);
    guest.console().run("D=/dev/$(ls /sys/block | grep ^sd | tail -1)");
    let sum =
        |file: &str| format!("dd if={file} bs=64k count=64 2>/dev/null | md5sum | cut -c1-32");
    guest.console().run("dd if=/dev/urandom of=/tmp/content bs=64k count=64");
    let wanted = guest.console().run(&sum("/tmp/content"));
    assert_eq!(wanted.len(), 32, "{wanted}");
    // So that it only looks like a guest that shuts down.
    guest.console().run("killall acpid");
    take_all_but(&folder, 2 << 20);
    guest.console().type_in("dd if=/tmp/content of=$D bs=64k conv=fsync; echo wr''itten\n");
    let is_held = |host: &VmHost| host.ok(&["hpvm", "why", "pool"]).contains("is held still");
    wait_until(Duration::from_secs(60), "the guest is held still", || is_held(guest.host()));
    let why = guest.host().ok(&["hpvm", "why", "pool"]);
    assert!(why.contains("no space is left for '") && why.contains("cramped"), "{why}");
    assert_eq!(guest.host().state("pool"), "On (ATTN)");
    let is_advice = |line: &&str| line.starts_with("First:") || line.starts_with("Next:");
    let advice: String = why.lines().filter(is_advice).collect();
    assert!(!advice.contains("hpvmstop") && !advice.contains(" -d "), "{why}");
    let shown = guest.host().ok(&["hpvmstatus", "-P", "pool"]);
    assert!(shown.contains("no space is left"), "{shown}");
    let logged = guest.host().ok(&["hpvmstatus", "-P", "pool", "-e"]);
    assert!(logged.contains("space"), "{logged}");
    a_stop_tells_of_no_room(&mut guest);
    fs::remove_file(folder.join(FILLER)).expect("room");
    guest.console().expect("written", Duration::from_secs(120));
    guest.console().run("echo 3 > /proc/sys/vm/drop_caches; rm /tmp/content");
    assert_eq!(guest.console().run(&sum("$D")), wanted, "nothing that was written is lost");
    wait_until(UP, "nothing is wrong any more", || !is_held(guest.host()));
    guest.console().run("(acpid -f -d -c /etc/acpi </dev/null >/dev/null 2>&1 &)");
    let devices = guest.host().ok(&["hpvmstatus", "-P", "pool", "-d"]);
    let device = devices.lines().find(|line| line.contains("cramped")).expect("it is there").trim();
    guest.host().ok(&["hpvmmodify", "-P", "pool", "-F", "-d", device]);
    guest.console().run(&format!("until [ $({disks}) = {count} ]; do sleep 0.2; done"));
    drop(mounted);
}

/// While the stop is under way and after it.
fn a_stop_tells_of_no_room(guest: &mut Leased) {
    guest.host_mut().set("HPVMSTOP", "20");
    let host = guest.host();
    let tells_of_the_disk_first = || {
        assert_eq!(host.state("pool"), "On (ATTN)");
        let shown = host.ok(&["hpvmstatus", "-P", "pool"]);
        let health = shown.lines().find(|line| line.starts_with("Health")).expect("its health");
        assert!(health.contains("no space is left for '"), "{shown}");
        assert!(!shown.contains("does not answer"), "{shown}");
        let why = host.ok(&["hpvm", "why", "pool"]);
        let cause = why.lines().find(|line| line.contains("because")).expect("a cause");
        assert!(cause.contains("no space is left for '"), "{why}");
        assert!(why.contains("First: make room") && !why.contains("Next:  hpvmstop"), "{why}");
    };
    let mut command = host.command(&["hpvmstop", "-P", "pool", "-g", "-F"]);
    let stop = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it runs");
    let is_asked = || host.ok(&["hpvmstatus", "-P", "pool"]).contains("asked to shut down");
    wait_until(UP, "it is asked to shut down", is_asked);
    tells_of_the_disk_first();
    let stopped = stop.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&stopped.stderr);
    assert_eq!(stopped.status.code(), Some(1), "{said}");
    assert!(said.lines().count() >= 2, "told at once and at the end: {said}");
    for line in said.lines() {
        assert!(line.contains("no space is left for '") && line.contains("make room"), "{said}");
    }
    tells_of_the_disk_first();
    guest.host_mut().set("HPVMSTOP", "");
}

/// Leaves so many bytes of the file system at a folder.
fn take_all_but(folder: &Path, bytes: u64) {
    let mut file = fs::File::create(folder.join(FILLER)).expect("a file");
    let block = [0u8; 64 << 10];
    while file.write_all(&block).is_ok() {}
    let taken = file.metadata().expect("its size").len();
    file.set_len(taken - bytes).and_then(|()| file.sync_all()).expect("so much room");
}

/// QEMU itself writes logs in the guest's folder. What has no room there is lost to their readers, and the guest does not notice.
fn no_room_for_anything_around_a_real_guest() {
    const FULL: [&str; 2] = ["var/opt/hpvm", "run/hpvm"];
    let mut cramped = Cramped::on(Engine::Real);
    // The first command makes the folder; the next finds an empty file system there, as after a boot.
    cramped.host.ok(&["hpvmstatus"]);
    cramped.host.ok(&["hpvmcreate", "-P", "first", "-r", "64M"]);
    cramped.host.ok(&["hpvmremove", "-P", "first", "-F", "--purge"]);
    cramped.mount("var/opt/hpvm", 16);
    cramped.mount("run/hpvm", 4);
    let host = &cramped.host;
    let disk = host.copy_of(&image("test-cloud"), "web.img");
    host.create("web", "512M", &[disk_at("0,0,0", &disk)]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    FULL.iter().for_each(|below| cramped.fill(below));

    assert_eq!(console.run("dmesg | wc -l | grep -c ."), "1");
    assert_eq!(host.state("web"), "On (OS)");
    tells_of_no_room(&refused(host, &["hpvmmodify", "-P", "web", "-l", "x"]));
    // Supervised again without a byte to write it down.
    let worker = process(host, "hpvmapp").expect("a worker");
    worker.kill();
    wait_until(UP, "another worker", || process(host, "hpvmapp").is_some());
    let mut console = Console::attach(&host.run_dir(1));
    console.type_in("\n");
    assert_eq!(console.run("echo here"), "here");
    succeeded(&host.run(&["hpvmstop", "-P", "web", "-g", "-F"]));
    assert_eq!(host.state("web"), "Off");

    FULL.iter().for_each(|below| cramped.make_room(below));
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    host.ok(&["hpvmstop", "-P", "web", "-h", "-F"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
}

/// On a file system that gives nothing back by itself.
fn room_that_is_not_enough_for_a_disk_is_not_taken() {
    let host = VmHost::new(Engine::Fake);
    let file = host.disk("small.img", 64 << 20);
    make_file_system(&file);
    let device = LoopDevice::on(&file, &[]);
    let small = Mounted::device(device.path(), &host.path("small"));
    let disk = small.path().join("disk.img");
    let shown = disk.display().to_string();
    host.ok(&["hpvmdevmgmt", "-S", "16M", &shown]);
    let taken = || {
        let disk = fs::metadata(&disk).expect("the disk");
        (disk.len(), disk.blocks())
    };
    let before = taken();
    let said = host.refused(&["hpvmdevmgmt", "-S", "256M", &shown, "--preallocate"]);
    assert!(said.contains("has no room for 256 MB"), "{said}");
    assert_eq!(taken(), before, "the holes stay holes");
    host.ok(&["hpvmdevmgmt", "-S", "32M", &shown, "--preallocate"]);
    assert!(taken().1 * 512 >= 32 << 20);
}
