//! Faults, one screen each. The test does what `hpvm why` asks ("First: …"), types the command it names ("Next: …") and
//! nothing else, and the guest must run with all its devices. The screens are kept in golden/why; SNAPSHOTS=overwrite writes
//! them anew.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hpvm_app::snapshot::{Crash, Ending, Phase};
use hpvm_testkit::vm_host::{Engine, VmHost, program};
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;

use crate::loop_device::LoopDevice;
use crate::shell::typed;
use crate::{Test, golden};

pub(crate) const TESTS: &[Test] = crate::tests![
    a_missing_disk_is_explained,
    a_disk_that_is_taken_away_is_explained,
    a_disk_that_is_deleted_can_be_saved,
    a_disk_that_is_cut_is_explained,
    a_linked_disk_that_is_cut_is_explained,
    what_a_running_guest_could_not_start_with_again_is_explained,
    a_taken_disk_is_explained,
    too_little_memory_is_explained,
    an_accelerator_that_does_not_work_is_explained,
    damaged_firmware_variables_are_explained,
    firmware_variables_that_can_be_used_are_not_replaced_unasked,
    firmware_variables_that_may_not_change_are_explained,
    a_crash_is_explained,
    an_engine_killed_for_memory_is_explained,
    a_full_disk_is_explained,
    a_foreign_image_lock_is_explained,
    a_disk_that_the_vm_host_uses_is_explained,
    missing_firmware_is_explained,
    several_faults_have_one_way_out,
    a_guest_that_hangs_is_explained,
    a_boot_disk_without_a_driver_is_explained,
    what_keeps_no_guest_from_starting_is_noted,
    a_base_of_linked_clones_is_explained,
    what_failed_last_with_a_guest_that_runs_is_explained,
];

/// Four times what an engine and its worker need on a quiet machine.
const BOUND: Duration = Duration::from_secs(20);

fn a_missing_disk_is_explained() {
    let host = host_with_web(Engine::Fake);
    fs::rename(host.path("web.img"), host.path("elsewhere")).expect("the disk is moved");
    host.refused(&["hpvmstart", "-P", "web"]);
    let screen = Screen::of(&host, "missing-disk");
    assert!(screen.first.is_some_and(|ask| ask.starts_with("put the file back")));
    fs::rename(host.path("elsewhere"), host.path("web.img")).expect("the disk is back");
    // What only speaks of a start is none.
    host.ok(&["hpvmmodify", "-P", "web", "-l", "see hpvmstart"]);
    let over = Screen::of(&host, "over");
    assert_eq!((over.first, over.next), (None, "hpvmstart -P web".to_owned()));
    follow(&host, &screen.next);
}

/// The guest itself is well, and loses the disk when it ends.
fn a_disk_that_is_taken_away_is_explained() {
    let host = host_with_web(Engine::Fake);
    host.ok(&["hpvmstart", "-P", "web"]);
    fs::rename(host.path("web.img"), host.path("elsewhere")).expect("the disk is moved");
    let screen = Screen::of(&host, "taken-away");
    assert!(screen.first.is_some_and(|ask| ask.starts_with("move the file back")));
    let doctor = host.run(&["hpvm", "doctor"]);
    assert!(doctor.stdout.contains("web.img is not there any more"), "{doctor}");
    fs::copy(host.path("elsewhere"), host.path("web.img")).expect("another file in its place");
    let screen = Screen::of(&host, "replaced");
    assert!(screen.first.is_some_and(|ask| ask.starts_with("move what is at ")));
    let doctor = host.run(&["hpvm", "doctor"]);
    assert!(doctor.stdout.contains("web.img is another file now"), "{doctor}");
    assert!(health(&host).contains("web.img is another file now"));
    fs::rename(host.path("elsewhere"), host.path("web.img")).expect("the disk is back");
    follow(&host, &screen.next);
    assert_eq!(health(&host), "");
}

/// What the guest writes to a file without a name is lost with the guest, unless somebody does as he is told.
fn a_disk_that_is_deleted_can_be_saved() {
    let host = host_with_web(Engine::Fake);
    let disk = host.path("web.img");
    let content = |path: &Path| fs::read(path).expect("a disk")[..5].to_vec();
    write_at_start(&disk, b"saved");
    host.ok(&["hpvmstart", "-P", "web"]);
    fs::remove_file(&disk).expect("the disk is deleted");
    let first = Screen::of(&host, "deleted").first.expect("what to do");
    assert!(first.starts_with("before the guest is stopped, "), "{first}");
    let asked = typed(&host, "yes n | head -n 1 | hpvmstop -P web");
    assert!(asked.stderr.contains("web.img was deleted") && host.state("web") != "Off", "{asked}");

    // It is no way out to make it anew.
    let shown = disk.display().to_string();
    let said = host.refused(&["hpvmdevmgmt", "-S", "1M", &shown]);
    assert!(said.contains("guest 'web', which runs with the file that was there before"), "{said}");
    assert!(!disk.exists());
    write_at_start(&host.disk("web.img", 1 << 20), b"other");
    let said = host.refused(&["hpvmdevmgmt", "-S", "2M", &shown]);
    assert!(said.contains("`hpvm why web` says how to save that first"), "{said}");
    let screen = Screen::of(&host, "deleted-and-replaced");
    let first = screen.first.expect("what to do");
    assert!(first.starts_with("move what is at "), "{first}");
    assert!(health(&host).contains("until it ends, and then all of that is lost"));
    fs::rename(&disk, host.path("aside.img")).expect("the other file is moved aside");
    let commands: Vec<&str> = first.split('`').skip(1).step_by(2).collect();
    let [keep, copy_back] = commands[..] else { panic!("two commands: {first}") };
    let typed = typed(&host, &format!("{keep} && hpvmstop -P web -F && {copy_back}"));
    assert!(typed.status.success(), "{typed}");
    assert_eq!(
        (content(&disk), content(&host.path("aside.img"))),
        (b"saved".into(), b"other".into())
    );
    host.ok(&["hpvmstart", "-P", "web"]);
    follow(&host, &screen.next);
}

/// The guest goes on as if it had all of it.
fn a_disk_that_is_cut_is_explained() {
    let host = host_with_web(Engine::Fake);
    host.ok(&["hpvmstart", "-P", "web"]);
    let disk = fs::File::options().write(true).open(host.path("web.img")).expect("the disk");
    disk.set_len(64 << 10).expect("it is cut");
    let screen = Screen::of(&host, "cut");
    let first = screen.first.expect("what to do");
    let told = "web.img has become shorter, 64 KB of 1 MB";
    assert!(host.run(&["hpvm", "doctor"]).stdout.contains(told));
    assert!(health(&host).contains(told), "{}", health(&host));
    let grow = first.split('`').nth(1).expect("a command");
    assert!(typed(&host, grow).status.success(), "{grow}");
    follow(&host, &screen.next);
}

/// What is lost of an image, or of what it is built on, no longer file brings back.
fn a_linked_disk_that_is_cut_is_explained() {
    let host = VmHost::new(Engine::Fake);
    let base = host.disk("base.img", 1 << 20);
    let device =
        |storage: &str, path: &Path| format!("disk:avio_stor::{storage}:{}", path.display());
    host.ok(&["hpvmcreate", "-P", "base", "-a", &device("file", &base)]);
    let image = host.path("web.qcow2");
    let named = format!("disk:avio_stor:0,0,0:qcow2:{}", image.display());
    host.ok(&["hpvmclone", "-P", "base", "-N", "web", "--linked", "-b", &named]);
    host.ok(&["hpvmstart", "-P", "web"]);
    assert_eq!(health(&host), "");
    for (name, file) in [("cut-base", base), ("cut-image", image)] {
        let whole = fs::read(&file).expect("a file");
        let opened = fs::File::options().write(true).open(&file).expect("a file");
        opened.set_len(64 << 10).expect("it is cut");
        let screen = Screen::of(&host, name);
        let first = screen.first.expect("what to do");
        assert!(
            first.ends_with(&format!("bring {} back from a backup", file.display())),
            "{first}"
        );
        let told = format!("{} has become shorter, 64 KB of ", file.display());
        assert!(host.run(&["hpvm", "doctor"]).stdout.contains(&told));
        assert!(health(&host).contains(&told), "{}", health(&host));
        fs::write(&file, whole).expect("a file");
        assert_eq!(health(&host), "");
    }
}

fn write_at_start(disk: &Path, bytes: &[u8]) {
    let opened = fs::File::options().write(true).open(disk).expect("a disk");
    opened.write_all_at(bytes, 0).expect("it is written");
}

/// What hpvmstatus says of how `web` is.
fn health(host: &VmHost) -> String {
    let status = host.ok(&["hpvmstatus", "-P", "web"]);
    status.lines().filter(|line| line.starts_with("Health")).collect()
}

/// The guest is well, and what keeps it from starting is told while there is time to mend it.
fn what_a_running_guest_could_not_start_with_again_is_explained() {
    let mut host = host_with_web(Engine::Fake);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.ok(&["hpvmmodify", "-P", "web", "-x", "runnable_status=disabled"]);
    let screen = Screen::of(&host, "runs-and-is-disabled");
    assert_eq!(screen.first, None);
    follow(&host, &screen.next);
    let nvram = host.path("var/opt/hpvm/guests/web/nvram");
    let good = fs::read(&nvram).expect("the variables");
    fs::write(&nvram, "damaged").expect("the variables are damaged");
    host.set("HPVMFIRMWARE", &host.path("OVMF_CODE.fd").to_string_lossy());
    let screen = Screen::of(&host, "runs-and-lacks-firmware");
    assert!(screen.first.is_some_and(|ask| ask.contains("HPVMFIRMWARE")));
    fs::rename(host.path("web.img"), host.path("elsewhere")).expect("the disk is moved");
    let told = host.ok(&["hpvm", "why", "web"]);
    assert!(told.contains("because") && told.contains("web.img is not there any more"), "{told}");
    assert!(told.contains("note: it could not start again: the firmware '"), "{told}");
    assert_eq!(told.matches("web.img").count(), 2, "it is told once, and its way out: {told}");
    fs::rename(host.path("elsewhere"), host.path("web.img")).expect("the disk is back");
    fs::write(&nvram, good).expect("the variables");
    fs::copy("/usr/share/OVMF/OVMF_CODE_4M.fd", host.path("OVMF_CODE.fd")).expect("the firmware");
    follow(&host, &screen.next);
}

fn a_taken_disk_is_explained() {
    let host = host_with_web(Engine::Fake);
    let disk = format!("disk:avio_stor:0,0,0:file:{}", host.path("web.img").display());
    host.ok(&["hpvmcreate", "-P", "other", "-a", &disk]);
    host.ok(&["hpvmstart", "-P", "other"]);
    host.refused(&["hpvmstart", "-P", "web"]);
    let screen = Screen::of(&host, "taken-disk");
    assert!(screen.first.is_some_and(|ask| ask.contains("'other'")));
    // Waiting is what is asked; the end of the other guest is its owner's decision.
    host.ok(&["hpvmstop", "-P", "other", "-F"]);
    follow(&host, &screen.next);
}

fn too_little_memory_is_explained() {
    let host = host_with_web(Engine::Fake);
    host.ok(&["hpvmmodify", "-P", "web", "-r", &more_than_there_is()]);
    host.refused(&["hpvmstart", "-P", "web"]);
    let screen = Screen::of(&host, "no-memory");
    assert_eq!(screen.first, None);
    follow(&host, &screen.next);
}

/// Where /dev/kvm exists it is hidden from the start, so that the fault is there on every machine. Settles 29.
fn an_accelerator_that_does_not_work_is_explained() {
    let mut host = host_with_web(Engine::Fake);
    host.environment("HPVM_ACCEL", "kvm");
    let without_kvm = |line: &str| match Path::new("/dev/kvm").exists() {
        true => {
            let hidden = "mount --bind /dev/null /dev/kvm";
            typed(&host, &format!("unshare -m sh -c '{hidden} && {line}'"))
        }
        false => typed(&host, line),
    };
    let start = without_kvm("hpvmstart -P web");
    assert_eq!(start.status.code(), Some(1), "{start}");
    let screen = Screen::reading(&host, "kvm-unfit", &without_kvm("hpvm why web").stdout);
    assert_eq!(screen.first, None);
    follow(&host, &screen.next);
}

/// Settles 56.
fn damaged_firmware_variables_are_explained() {
    let host = host_with_web(Engine::Fake);
    let nvram = host.path("var/opt/hpvm/guests/web/nvram");
    host.ok(&["hpvmstart", "-P", "web"]);
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    let good = fs::read(&nvram).expect("the variables");
    let mut behind_the_head = good.clone();
    behind_the_head[100..64_000].fill(0x5a);
    for (screen, damaged) in
        [("bad-nvram", vec![0xff; good.len()]), ("bad-variables", behind_the_head)]
    {
        fs::write(&nvram, damaged).expect("the variables are damaged");
        host.refused(&["hpvmstart", "-P", "web"]);
        let screen = Screen::of(&host, screen);
        assert_eq!(screen.first, None);
        follow(&host, &screen.next);
        assert!(fs::read(&nvram).expect("the variables") == good, "the last good ones are back");
        end(&host);
    }
}

fn firmware_variables_that_can_be_used_are_not_replaced_unasked() {
    let host = host_with_web(Engine::Fake);
    let nvram = host.path("var/opt/hpvm/guests/web/nvram");
    let pristine = fs::read(&nvram).expect("the variables");
    let mut booted = pristine.clone();
    // Behind the variables that are there.
    *booted.last_mut().expect("a byte") ^= 1;
    fs::write(&nvram, &booted).expect("the firmware writes");
    let is_kept = || fs::read(&nvram).expect("the variables") == booted;
    let asked = |option: &str, input: &[u8]| {
        host.run_with_input(&["hpvm", "nvram", "-P", "web", option], input)
    };
    for (option, input) in [("--reset", &b""[..]), ("--restore", b""), ("--reset", b"n\n")] {
        let outcome = asked(option, input);
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        assert!(outcome.stderr.contains("its boot entries are lost"), "{outcome}");
        assert!(outcome.stderr.contains("nothing was changed") && is_kept(), "{outcome}");
    }
    host.ok(&["hpvmstart", "-P", "web"]);
    let outcome = asked("--reset", b"y\n");
    assert!(!outcome.stderr.contains("[n/y]") && is_kept(), "refused, and not asked: {outcome}");
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    fs::write(&nvram, &pristine).expect("the firmware writes");
    let outcome = asked("--restore", b"y\n");
    assert!(outcome.stderr.contains("Bring back those of that start?") && is_kept(), "{outcome}");
    host.ok(&["hpvm", "nvram", "-P", "web", "--reset", "-F"]);
    assert!(!is_kept(), "they are pristine");
}

fn firmware_variables_that_may_not_change_are_explained() {
    let host = host_with_web(Engine::Fake);
    let nvram = host.path("var/opt/hpvm/guests/web/nvram");
    let _mark = Immutable::marked(nvram);
    host.refused(&["hpvmstart", "-P", "web"]);
    let text = host.ok(&["hpvm", "why", "web"]);
    assert!(text.contains("is immutable or may only grow"), "{text}");
    let lift = text.split('`').nth(1).expect("a command");
    assert!(typed(&host, lift).status.success(), "{lift}");
    follow(&host, "hpvmstart -P web");
}

/// A file that nobody can write or remove, until this is dropped.
struct Immutable(PathBuf);

impl Immutable {
    fn marked(path: PathBuf) -> Immutable {
        let marked = Command::new("chattr").arg("+i").arg(&path).status().expect("chattr");
        assert!(marked.success(), "{} is marked", path.display());
        Immutable(path)
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(&self.0).status();
    }
}

fn a_crash_is_explained() {
    let mut host = host_with_web(Engine::Fake);
    host.engine_after("echo 'qemu-system-x86_64: a device went mad' >&2");
    host.ok(&["hpvmstart", "-P", "web"]);
    let engine = host.qemu(1).expect("the engine runs");
    engine.signal(Signal::ABORT).expect("a signal");
    host.wait_for_state("web", "Off", BOUND);
    let screen = Screen::of(&host, "crash");
    assert_eq!(screen.first, None);
    follow(&host, &screen.next);
}

/// The engine is put in a memory cgroup too small for it; the kernel really kills it.
fn an_engine_killed_for_memory_is_explained() {
    let mut host = host_with_web(Engine::Fake);
    let group = MemoryGroup::new(32 << 20);
    host.engine_after(&format!(
        "echo $$ > '{}'\nexport HPVM_FAKE_QEMU=eat=500",
        group.path.join("cgroup.procs").display()
    ));
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "Off", BOUND);
    let ended = host.snapshot(1).expect("what the run left").phase;
    let killed = Ending::Crashed { cause: Crash::OutOfMemory };
    assert_eq!(ended, Phase::Ended { how: killed });
    let screen = Screen::of(&host, "out-of-memory");
    assert!(screen.first.is_some_and(|ask| ask.contains("memory")));
    host.set("HPVMQEMU", &program("fake-qemu").to_string_lossy());
    follow(&host, &screen.next);
}

fn a_full_disk_is_explained() {
    let host = host_with_web(Engine::Fake);
    let uuids = host.path("var/opt/hpvm/uuids");
    let aside = host.path("aside");
    fs::create_dir(&aside).expect("a folder");
    copy_all(&uuids, &aside);
    let mount = Mounted::tmpfs(&uuids, 4 << 20);
    copy_all(&aside, &uuids);
    mount.fill();
    host.refused(&["hpvmstart", "-P", "web"]);
    let screen = Screen::of(&host, "full-disk");
    assert!(screen.first.is_some_and(|ask| ask.starts_with("make room")));
    mount.make_room();
    follow(&host, &screen.next);
    end(&host);
}

/// On QEMU itself, which alone minds image locks; its firmware finds nothing to boot.
fn a_foreign_image_lock_is_explained() {
    let host = host_with_web(Engine::Real);
    let foreign = Foreign::holding(&host.path("web.img"));
    host.refused(&["hpvmstart", "-P", "web"]);
    let screen = Screen::of(&host, "foreign-lock");
    let holder = format!("process {} ", foreign.child.id());
    assert!(screen.first.is_some_and(|ask| ask.contains(&holder)), "the holder is named");
    drop(foreign);
    follow(&host, &screen.next);
    end(&host);
}

/// A loop device that is mounted says what to type for the file that it is attached to, which may then stay attached.
fn a_disk_that_the_vm_host_uses_is_explained() {
    let host = host_with_web(Engine::Fake);
    let (disk, at) = (host.path("web.img"), host.path("inside"));
    let made = Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&disk).status();
    assert!(made.expect("mkfs runs").success());
    let device = LoopDevice::on(&disk, &[]);
    let _mount = Mounted::device(device.path(), &at);
    host.refused(&["hpvmstart", "-P", "web"]);
    let name = device.path().file_name().and_then(|name| name.to_str()).expect("a name");
    let text = host.ok(&["hpvm", "why", "web"]).replace(name, "[LOOP]");
    let screen = Screen::reading(&host, "used-by-host", &text);
    let first = screen.first.expect("what to do");
    let free = first.split('`').nth(1).expect("a command");
    assert!(typed(&host, free).status.success(), "{free}");
    follow(&host, &screen.next);
    end(&host);
}

fn missing_firmware_is_explained() {
    let mut host = host_with_web(Engine::Fake);
    host.set("HPVMFIRMWARE", &host.path("OVMF_CODE.fd").to_string_lossy());
    host.refused(&["hpvmstart", "-P", "web"]);
    let screen = Screen::of(&host, "missing-firmware");
    assert!(screen.first.is_some_and(|ask| ask.contains("HPVMFIRMWARE")));
    fs::copy("/usr/share/OVMF/OVMF_CODE_4M.fd", host.path("OVMF_CODE.fd")).expect("the firmware");
    follow(&host, &screen.next);
}

/// Each is named, and one line still leads to a running guest.
fn several_faults_have_one_way_out() {
    let host = host_with_web(Engine::Fake);
    fs::rename(host.path("web.img"), host.path("elsewhere")).expect("the disk is moved");
    fs::write(host.path("var/opt/hpvm/guests/web/nvram"), "damaged").expect("the variables");
    host.ok(&["hpvmmodify", "-P", "web", "-r", &more_than_there_is()]);
    host.ok(&["hpvmmodify", "-P", "web", "-x", "runnable_status=disabled"]);
    host.refused(&["hpvmstart", "-P", "web"]);
    let screen = Screen::of(&host, "several");
    fs::rename(host.path("elsewhere"), host.path("web.img")).expect("the disk is back");
    follow(&host, &screen.next);
}

fn a_guest_that_hangs_is_explained() {
    let host = host_with_web(Engine::Fake);
    host.ok(&["hpvmstart", "-P", "web"]);
    let engine = host.qemu(1).expect("the engine runs");
    engine.signal(Signal::STOP).expect("a signal");
    wait_until(BOUND, "the stop is seen", || {
        host.ok(&["hpvm", "why", "web"]).contains("stopped by a signal")
    });
    let screen = Screen::of(&host, "stopped");
    assert!(screen.first.is_some_and(|ask| ask.contains("kill -CONT")));
    engine.signal(Signal::CONT).expect("a signal");
    follow(&host, &screen.next);
}

/// A guest that waits in its firmware for a disk which its system cannot reach. The way out needs a start, and no more.
fn a_boot_disk_without_a_driver_is_explained() {
    let host = host_with_web(Engine::Fake);
    let said = host.run(&["hpvmmodify", "-P", "web", "-O", "windows:2022"]);
    assert!(said.status.success(), "{said}");
    assert!(said.stderr.contains("WARNING (web): the boot disk 0,0,0 is on avio_stor"), "{said}");
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (EFI)", BOUND);
    let screen = Screen::of(&host, "no-boot-driver");
    assert!(screen.first.is_some_and(|ask| ask.contains("vioscsi")));
    let devices = host.ok(&["hpvmstatus", "-P", "web", "-d"]);
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    assert!(typed(&host, &screen.next).status.success(), "{}", screen.next);
    let said = host.run(&["hpvmstart", "-P", "web"]);
    assert!(said.status.success() && !said.stderr.contains("boot disk"), "{said}");
    assert!(host.ok(&["hpvm", "why", "web"]).contains("nothing is wrong with it"));
    let moved = devices.replace("disk:avio_stor:0,0,", "disk:scsi:0,0,");
    assert_eq!(host.ok(&["hpvmstatus", "-P", "web", "-d"]), moved, "both disks, in their order");
    // What is no boot disk may be on either adapter.
    let data = format!("disk:avio_stor:0,5,0:file:{}", host.disk("data.img", 1 << 20).display());
    let said = host.run(&["hpvmmodify", "-P", "web", "-a", &data]);
    assert!(said.status.success() && !said.stderr.contains("boot disk"), "{said}");
}

fn what_keeps_no_guest_from_starting_is_noted() {
    let host = VmHost::new(Engine::Fake);
    let empty = format!("disk:avio_stor:0,0,0:file:{}", host.disk("empty.img", 0).display());
    host.ok(&["hpvmcreate", "-P", "web", "-a", &empty]);
    Screen::of(&host, "noted");
}

/// A clone that is there is left to its owner; what is kept of removed ones can be purged, in the order in which hpvmremove
/// takes it, and nobody who has got the name of one meanwhile is meant.
fn a_base_of_linked_clones_is_explained() {
    let host = host_with_web(Engine::Fake);
    host.ok(&["hpvmclone", "-P", "web", "-N", "l1", "--linked"]);
    host.ok(&["hpvmclone", "-P", "l1", "-N", "l10", "--linked"]);
    let disk = format!("disk:avio_stor:0,0,0:file:{}", host.path("web.img").display());
    host.ok(&["hpvmcreate", "-P", "thief", "-a", &disk]);
    host.ok(&["hpvmstart", "-P", "l10"]);
    let screen = Screen::of(&host, "base-of-clones");
    assert!(screen.first.is_some_and(|ask| ask.starts_with("wait until no linked clone ")));
    assert_eq!(screen.next, "hpvmstart -P web");
    let of_thief = host.ok(&["hpvm", "why", "thief"]);
    assert!(of_thief.ends_with("Next:  hpvmstart -P thief\n"), "{of_thief}");
    host.ok(&["hpvmstop", "-P", "l10", "-F"]);
    host.ok(&["hpvmremove", "-P", "l1", "-F"]);
    let screen = Screen::of(&host, "base-of-clone-and-kept");
    assert_eq!(screen.next, "hpvmstart -P web", "'l10' is there and lies over 'l1'");
    host.ok(&["hpvmremove", "-P", "l10", "-F"]);
    host.ok(&["hpvmcreate", "-P", "l1"]);
    let screen = Screen::read(&host, "base-of-kept", &host.ok(&["hpvm", "why", "web"]));
    assert_eq!(
        screen.next,
        "hpvmremove -p 3 --purge && hpvmremove -p 2 --purge && hpvmstart -P web"
    );
    follow(&host, &screen.next.replace("--purge", "--purge -F"));
    assert_eq!(host.state("l1"), "Off", "that is another guest");
    assert!(!host.ok(&["hpvm", "undelete", "--list"]).contains("l1"), "nothing is kept");
}

/// Until something of the kind goes well, or the guest runs anew.
fn what_failed_last_with_a_guest_that_runs_is_explained() {
    let mut host = host_with_web(Engine::Fake);
    host.engine_behaves("powerdown=ignore");
    host.set("HPVMSTOP", "1");
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    let why = || host.ok(&["hpvm", "why", "web"]);
    let missing = format!("disk:avio_stor:0,0,4:file:{}", host.path("missing.img").display());
    host.refused(&["hpvmmodify", "-P", "web", "-a", &missing]);
    let told = why();
    assert!(told.contains("; what failed last, at "), "{told}");
    assert!(told.contains(&format!("`hpvmmodify -P web -a {missing}`\n  because ")), "{told}");
    assert!(told.ends_with("\nNext:  hpvmstatus -P web\n"), "{told}");
    host.ok(&["hpvmmodify", "-P", "web", "-l", "now it goes well"]);
    assert!(why().contains("nothing is wrong with it"));
    host.refused(&["hpvmstop", "-P", "web", "-g", "-F"]);
    let told = why();
    assert!(told.contains("`hpvmstop -P web -g -F`\n  because "), "{told}");
    assert!(
        told.contains("did not react") && told.ends_with("\nNext:  hpvmstop -P web -g\n"),
        "{told}"
    );
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    assert!(why().contains("nothing is wrong with it"));
}

/// `web`, number 1, off, with two disks and a dvd.
fn host_with_web(engine: Engine) -> VmHost {
    let host = VmHost::new(engine);
    let mut create =
        ["hpvmcreate", "-P", "web", "-O", "linux", "-r", "512M"].map(str::to_owned).to_vec();
    for device in [
        format!("disk:avio_stor:0,0,0:file:{}", host.disk("web.img", 1 << 20).display()),
        format!("disk:avio_stor:0,0,1:file:{}", host.disk("more.img", 1 << 20).display()),
        format!("dvd:avio_stor:0,1,0:file:{}", host.disk("web.iso", 1 << 20).display()),
    ] {
        create.extend(["-a".to_owned(), device]);
    }
    host.ok(&create.iter().map(String::as_str).collect::<Vec<_>>());
    host
}

/// A memory size beyond this machine's.
fn more_than_there_is() -> String {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let kib =
        text.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    format!("{}G", kib.expect("MemTotal comes first") / (1 << 20) + 2)
}

/// What `hpvm why` printed.
struct Screen {
    first: Option<String>,
    next: String,
}

impl Screen {
    /// Of the guest `web`, compared with the kept one.
    #[track_caller]
    fn of(host: &VmHost, name: &str) -> Screen {
        Screen::reading(host, name, &host.ok(&["hpvm", "why", "web"]))
    }

    /// Whose next command costs nobody anything.
    #[track_caller]
    fn reading(host: &VmHost, name: &str, text: &str) -> Screen {
        let screen = Screen::read(host, name, text);
        let next = &screen.next;
        for word in ["hpvmstop", "hpvmremove", "kill", " -d ", " -F"] {
            assert!(!next.contains(word), "'{next}' costs something");
        }
        let is_about_web = |command: &str| format!("{command} ").contains(" -P web ");
        assert!(next.split(" && ").all(is_about_web), "'{next}' is about 'web' alone");
        screen
    }

    #[track_caller]
    fn read(host: &VmHost, name: &str, text: &str) -> Screen {
        let line = |start: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(start))
                .map(|line| line.trim().to_owned())
        };
        assert!(text.lines().count() < 24, "one screen: {text}");
        let shown = golden::without_numbers(&golden::redacted(host, text));
        golden::assert_kept(&format!("why/{name}"), &without_reason(&shown));
        let next = line("Next: ").unwrap_or_else(|| panic!("a next command: {text}"));
        Screen { first: line("First: "), next }
    }
}

/// Why KVM does not work differs from machine to machine.
fn without_reason(text: &str) -> String {
    match text.split_once("KVM does not work here: ") {
        Some((before, after)) => {
            let (_, rest) = after.split_once("; unset").unwrap_or(("", after));
            format!("{before}KVM does not work here: [REASON]; unset{rest}")
        }
        None => text.to_owned(),
    }
}

/// Types the command as the screen shows it, and looks at the guest.
#[track_caller]
fn follow(host: &VmHost, next: &str) {
    let devices = host.ok(&["hpvmstatus", "-P", "web", "-d"]);
    let outcome = typed(host, next);
    assert!(outcome.status.success(), "{outcome}");
    wait_until(BOUND, &format!("'web' runs after {outcome}"), || {
        host.state("web").starts_with("On (") && host.state("web") != "On (ATTN)"
    });
    assert_eq!(host.ok(&["hpvmstatus", "-P", "web", "-d"]), devices, "no device is lost");
    for device in ["0,0,0:file:", "0,0,1:file:", "0,1,0:file:"] {
        assert!(devices.contains(device), "{devices}");
    }
    let details = host.ok(&["hpvmstatus", "-P", "web"]);
    assert!(!details.contains("[Waiting for Next "), "{details}");
    assert!(host.ok(&["hpvm", "why", "web"]).contains("nothing is wrong with it"));
}

/// Before its folders go from under it.
fn end(host: &VmHost) {
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    wait_until(BOUND, "no process is left", || host.processes().is_empty());
}

/// A memory cgroup below our own.
struct MemoryGroup {
    path: PathBuf,
}

impl MemoryGroup {
    fn new(bytes: u64) -> MemoryGroup {
        let own = fs::read_to_string("/proc/self/cgroup").expect("our own groups");
        let line = |name: &str| {
            own.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                (controllers == name).then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let name = format!("hpvm-test-{}", std::process::id());
        let (parent, limit) = match line("memory") {
            Some(path) => (Path::new("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"),
            None => {
                let path = line("").expect("a unified group");
                (Path::new("/sys/fs/cgroup").join(path), "memory.max")
            }
        };
        let group = MemoryGroup { path: parent.join(name) };
        fs::create_dir(&group.path).expect("a group");
        fs::write(group.path.join(limit), bytes.to_string()).expect("a limit");
        // The engine puts itself in, as the guest's own user.
        let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        fs::set_permissions(group.path.join("cgroup.procs"), anybody).expect("open to the engine");
        group
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let removed = || fs::remove_dir(&self.path).is_ok() || !self.path.exists();
        if !std::thread::panicking() {
            wait_until(BOUND, "the group is empty and removed", removed);
        } else {
            removed();
        }
    }
}

/// A small file system of a test's own.
struct Mounted {
    path: PathBuf,
}

impl Mounted {
    fn tmpfs(path: &Path, bytes: u64) -> Mounted {
        let options = format!("size={bytes},mode=755");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "hpvm-test"]).arg(path);
        assert!(mount.status().expect("mount").success());
        Mounted { path: path.to_owned() }
    }

    fn device(device: &Path, at: &Path) -> Mounted {
        fs::create_dir(at).expect("a folder");
        assert!(Command::new("mount").args([device, at]).status().expect("mount").success());
        Mounted { path: at.to_owned() }
    }

    fn fill(&self) {
        let full = fs::write(self.path.join("filler"), vec![0; 8 << 20]);
        assert!(full.is_err(), "the file system is full");
    }

    fn make_room(&self) {
        fs::remove_file(self.path.join("filler")).expect("the filler goes");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left a guest that still has its files open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

fn copy_all(from: &Path, to: &Path) {
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(from.join(".")).arg(to);
    assert!(copy.status().expect("cp").success());
}

/// Another program that has a disk image in use, as a QEMU outside hpvm would.
struct Foreign {
    child: Child,
}

impl Foreign {
    fn holding(image: &Path) -> Foreign {
        let node = format!("driver=file,node-name=a,filename={}", image.display());
        let child = Command::new("qemu-system-x86_64")
            .args(["-M", "q35,accel=tcg", "-m", "64", "-S", "-nodefaults", "-display", "none"])
            .args(["-blockdev", &node, "-blockdev", "driver=raw,node-name=b,file=a"])
            .args(["-device", "virtio-blk-pci,drive=b"])
            .stdin(Stdio::null())
            .spawn()
            .expect("a foreign QEMU");
        let foreign = Foreign { child };
        wait_until(BOUND, "the image is locked", || {
            hpvm_host::image_lock::is_locked(image).unwrap_or(false)
        });
        foreign
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
