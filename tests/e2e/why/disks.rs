//! What is wrong with a disk, before a start or while its guest runs.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use super::{BOUND, Screen, end, follow, host_with_web};
use crate::Test;
use crate::guest_processes::process;
use crate::loop_device::LoopDevice;
use crate::mounted::Mounted;
use crate::shell::typed;
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_missing_disk_is_explained,
    a_disk_that_is_taken_away_is_explained,
    a_disk_that_is_deleted_can_be_saved,
    a_disk_that_is_cut_is_explained,
    a_linked_disk_that_is_cut_is_explained,
    an_image_that_grew_and_was_cut_is_told,
    a_taken_disk_is_explained,
    a_full_disk_is_explained,
    a_foreign_image_lock_is_explained,
    a_disk_that_the_vm_host_uses_is_explained,
    a_boot_disk_without_a_driver_is_explained,
    a_base_of_linked_clones_is_explained,
];

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

/// To a length that it had when the guest was started, or more: its worker has seen it longer.
fn an_image_that_grew_and_was_cut_is_told() {
    let host = VmHost::new(Engine::Fake);
    let base = host.disk("base.img", 1 << 20);
    let disk = disk_at("0,0,0", &base);
    host.ok(&["hpvmcreate", "-P", "base", "-a", &disk]);
    host.ok(&["hpvmclone", "-P", "base", "-N", "web", "--linked"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let image = fs::canonicalize(host.path("var/opt/hpvm/guests/web/disk-0-0-0.qcow2"));
    let image = image.expect("its image");
    let opened = fs::File::options().write(true).open(&image).expect("an image");
    opened.set_len(8 << 20).expect("it grows");
    // All stores are read before QEMU is asked for anything.
    let more = disk_at("0,1,0", &host.disk("more.img", 1 << 20));
    host.ok(&["hpvmmodify", "-P", "web", "-a", &more]);
    assert_eq!(health(&host), "");
    opened.set_len(4 << 20).expect("it is cut");
    let told = format!("{} has become shorter, 4 MB of at least 8 MB", image.display());
    wait_until(BOUND, "its worker sees it", || health(&host).contains(&told));
    process(&host, "hpvmapp").expect("it lives").kill();
    let is_followed = || host.snapshot(2).is_some_and(|snapshot| snapshot.adoptions == 1);
    wait_until(BOUND, "the next supervisor", is_followed);
    assert!(health(&host).contains(&told), "{}", health(&host));
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

fn a_taken_disk_is_explained() {
    let host = host_with_web(Engine::Fake);
    let disk = disk_at("0,0,0", &host.path("web.img"));
    host.ok(&["hpvmcreate", "-P", "other", "-a", &disk]);
    host.ok(&["hpvmstart", "-P", "other"]);
    host.refused(&["hpvmstart", "-P", "web"]);
    let screen = Screen::of(&host, "taken-disk");
    assert!(screen.first.is_some_and(|ask| ask.contains("'other'")));
    // Waiting is what is asked; the end of the other guest is its owner's decision.
    host.ok(&["hpvmstop", "-P", "other", "-F"]);
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
    let filler = mount.path().join("filler");
    assert!(fs::write(&filler, vec![0; 8 << 20]).is_err(), "the file system is full");
    host.refused(&["hpvmstart", "-P", "web"]);
    let screen = Screen::of(&host, "full-disk");
    assert!(screen.first.is_some_and(|ask| ask.starts_with("make room")));
    fs::remove_file(filler).expect("the filler goes");
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
    let data = disk_at("0,5,0", &host.disk("data.img", 1 << 20));
    let said = host.run(&["hpvmmodify", "-P", "web", "-a", &data]);
    assert!(said.status.success() && !said.stderr.contains("boot disk"), "{said}");
}

/// A clone that is there is left to its owner; what is kept of removed ones can be purged, in the order in which hpvmremove
/// takes it, and nobody who has got the name of one meanwhile is meant.
fn a_base_of_linked_clones_is_explained() {
    let host = host_with_web(Engine::Fake);
    host.ok(&["hpvmclone", "-P", "web", "-N", "l1", "--linked"]);
    host.ok(&["hpvmclone", "-P", "l1", "-N", "l10", "--linked"]);
    let disk = disk_at("0,0,0", &host.path("web.img"));
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
