//! Disks that somebody has who is no running guest as far as `/run` tells: a program that locks images as QEMU does, a guest of
//! another VM Host, one of this that `/run` forgot, a program that has a device for itself. Each is refused with the name and the
//! number of the process, at a start, at a hot add, and to a copy that would replace it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hpvm_host::image_lock::ALL_BYTES;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;
use rustix::fs::OFlags;

use crate::Test;
use crate::layers::image_over;
use crate::loop_device::LoopDevice;

pub(crate) const TESTS: &[Test] = crate::tests![
    an_image_that_a_program_has_locked_is_refused_with_its_name,
    what_a_program_writes_is_not_read_either,
    what_a_program_has_by_another_name_is_refused_with_its_name,
    a_device_that_a_guest_of_another_vm_host_has_is_refused_with_its_name,
    a_device_that_a_program_has_for_itself_is_refused_with_its_name,
    a_disk_of_a_guest_that_run_forgot_is_refused_with_the_guests_name,
    guests_of_two_vm_hosts_run_as_different_users,
];

/// Four times what a program needs to take a lock on a quiet machine, and room for a busy one.
const BOUND: Duration = Duration::from_secs(20);

fn an_image_that_a_program_has_locked_is_refused_with_its_name() {
    let host = with_off_and_on("file", |host| host.disk("theirs.img", 1 << 20));
    let image = host.path("theirs.img");
    let daemon = StorageDaemon::of(&image, &host.path("nbd"));
    let told = format!("process {} (qemu-storage-da) has a lock on it", daemon.0.id());
    refused_to_both(&host, &disk("file", &image), &told);
    drop(daemon);
    given_to_both(&host, &disk("file", &image));
}

/// As the image of a dvd, and as what lies under an image, also where it is written by a loop device, of whose locks QEMU knows
/// nothing. Who only reads is in nobody's way.
fn what_a_program_writes_is_not_read_either() {
    let host = VmHost::new(Engine::Real);
    let theirs = host.disk("theirs.img", 1 << 20);
    let over = host.path("over.qcow2");
    image_over(&theirs, "raw", &over);
    let (dvd, over) = (format!("dvd:avio_stor::file:{}", theirs.display()), disk("qcow2", &over));
    let layer = format!("file:{}", theirs.display());
    let (dvd, over) = (vec!["-a", &dvd], vec!["-a", &over, "--layer", &layer]);
    for (name, reads) in [("on", &vec![]), ("plays", &dvd), ("builds", &over)] {
        host.ok(&[&["hpvmcreate", "-P", name, "-r", "64M"][..], reads].concat());
    }
    host.ok(&["hpvmstart", "-P", "on"]);
    let device = LoopDevice::on(&theirs, &[]);
    for written in [&*theirs, device.path()] {
        let daemon = StorageDaemon::of(written, &host.path("nbd"));
        let told = format!("process {} (qemu-storage-da) has a lock on it", daemon.0.id());
        for line in [
            vec!["hpvmstart", "-P", "plays"],
            vec!["hpvmstart", "-P", "builds"],
            [&["hpvmmodify", "-P", "on"][..], &dvd].concat(),
            [&["hpvmmodify", "-P", "on"][..], &over].concat(),
        ] {
            let said = host.refused(&line);
            assert_eq!(said.matches(&told).count(), 1, "{line:?} tells '{told}' once: {said}");
        }
    }
    let reader = StorageDaemon::reading(&theirs, &host.path("reader"));
    for name in ["plays", "builds"] {
        host.ok(&["hpvmstart", "-P", name]);
        host.ok(&["hpvmstop", "-P", name, "-F"]);
        host.wait_for_state(name, "Off", BOUND);
    }
    drop(reader);
}

/// The file under a loop device, the loop device on a file, and another loop device on the same file have one disk's bytes.
fn what_a_program_has_by_another_name_is_refused_with_its_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("theirs.img");
    File::create(&file).and_then(|file| file.set_len(1 << 20)).expect("a file");
    let (one, other) = (LoopDevice::on(&file, &[]), LoopDevice::on(&file, &[]));
    for (theirs, storage, ours) in [
        (&*file, "disk", one.path()),
        (one.path(), "file", &file),
        (one.path(), "disk", other.path()),
    ] {
        let host = with_off_and_on(storage, |_| ours.to_owned());
        let daemon = StorageDaemon::of(theirs, &host.path("nbd"));
        let told = format!("process {} (qemu-storage-da) has a lock on it", daemon.0.id());
        refused_to_both(&host, &disk(storage, ours), &told);
        drop(daemon);
        given_to_both(&host, &disk(storage, ours));
    }
}

fn a_device_that_a_guest_of_another_vm_host_has_is_refused_with_its_name() {
    let owner = VmHost::new(Engine::Real);
    let device = LoopDevice::on(&owner.disk("theirs.img", 1 << 20), &[]);
    owner.ok(&["hpvmcreate", "-P", "first", "-r", "64M", "-a", &disk("disk", device.path())]);
    owner.ok(&["hpvmstart", "-P", "first"]);
    let host = with_off_and_on("disk", |_| device.path().to_owned());
    let pid = owner.snapshot(1).expect("it runs").qemu.pid;
    refused_to_both(&host, &disk("disk", device.path()), &format!("process {pid} (hpvm-1)"));
    owner.ok(&["hpvmstop", "-P", "first", "-F"]);
    owner.wait_for_state("first", "Off", BOUND);
    given_to_both(&host, &disk("disk", device.path()));
}

/// It takes no lock, so that only the kernel knows of it.
fn a_device_that_a_program_has_for_itself_is_refused_with_its_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("theirs.img");
    File::create(&file).and_then(|file| file.set_len(1 << 20)).expect("a file");
    let device = LoopDevice::on(&file, &[]);
    let host = with_off_and_on("disk", |_| device.path().to_owned());
    let alone = i32::try_from(OFlags::EXCL.bits()).expect("a flag");
    let held = OpenOptions::new().read(true).custom_flags(alone).open(device.path()).expect("ours");
    let told = format!("(process {}) has it open for itself", std::process::id());
    refused_to_both(&host, &disk("disk", device.path()), &told);
    drop(held);
    given_to_both(&host, &disk("disk", device.path()));
}

/// Its process is all that is left to see of it, and whose that is the VM Host knows.
fn a_disk_of_a_guest_that_run_forgot_is_refused_with_the_guests_name() {
    let host = VmHost::new(Engine::Real);
    let disk = disk("file", &host.disk("theirs.img", 1 << 20));
    for name in ["first", "other"] {
        host.ok(&["hpvmcreate", "-P", name, "-r", "64M", "-a", &disk]);
    }
    host.ok(&["hpvmstart", "-P", "first"]);
    let pid = host.snapshot(1).expect("it runs").qemu.pid;
    fs::remove_dir_all(host.run_dir(1)).expect("its run folder goes");
    let said = host.refused(&["hpvmstart", "-P", "other"]);
    let told = format!("is in use by guest 'first': its QEMU, process {pid}, has a lock on it");
    assert!(said.contains(&told), "{said}");
    let screen = host.ok(&["hpvm", "why", "other"]);
    assert!(screen.contains(&told) && screen.contains("`hpvm why -P first`"), "{screen}");
    host.ok(&["hpvmstop", "-P", "first", "-h", "-F"]);
    host.ok(&["hpvmstart", "-P", "other"]);
}

/// Of one number, so that nothing else tells them apart; so do their workers and switches.
fn guests_of_two_vm_hosts_run_as_different_users() {
    let hosts = [VmHost::new(Engine::Fake), VmHost::new(Engine::Fake)];
    let users = hosts.each_ref().map(|host| {
        let nic = "network:lan:0,1:vswitch:localnet";
        host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", nic]);
        host.ok(&["hpvmstart", "-P", "web"]);
        let user = |(pid, name): (i32, String)| {
            let user = fs::metadata(format!("/proc/{pid}")).expect("it runs").uid();
            (user != 0).then_some((name, user))
        };
        host.processes().into_iter().filter_map(user).collect::<BTreeMap<String, u32>>()
    });
    assert_eq!(users[0].keys().collect::<Vec<_>>(), ["fake-qemu", "hpvmapp", "hpvmnetd"]);
    for (name, user) in &users[0] {
        assert_ne!(Some(user), users[1].get(name), "{name}");
    }
}

/// `off` has the disk that `make` gives, `on` runs without any, and `source` has one to copy.
fn with_off_and_on(storage: &str, make: impl FnOnce(&VmHost) -> PathBuf) -> VmHost {
    let host = VmHost::new(Engine::Fake);
    let path = make(&host);
    host.ok(&["hpvmcreate", "-P", "off", "-r", "64M", "-a", &disk(storage, &path)]);
    host.ok(&["hpvmcreate", "-P", "on", "-r", "64M"]);
    let source = host.disk("source.img", 1 << 20);
    let first = disk("file", &source).replace("::", ":0,0,0:");
    host.ok(&["hpvmcreate", "-P", "source", "-r", "64M", "-a", &first]);
    host.ok(&["hpvmstart", "-P", "on"]);
    host
}

fn disk(storage: &str, path: &Path) -> String {
    format!("disk:avio_stor::{storage}:{}", path.display())
}

#[track_caller]
fn refused_to_both(host: &VmHost, statement: &str, told: &str) {
    for line in [
        &["hpvmstart", "-P", "off"][..],
        &["hpvmstart", "-P", "off", "-F"],
        &["hpvmmodify", "-P", "on", "-a", statement],
        &["hpvmmodify", "-P", "on", "-a", statement, "-F"],
    ] {
        let said = host.refused(line);
        assert!(said.contains(told), "{line:?} tells '{told}': {said}");
    }
    assert_eq!(host.state("off"), "Off");
    // What nobody here has would be overwritten.
    host.ok(&["hpvmmodify", "-P", "off", "-d", statement]);
    let copy = statement.replace("::", ":0,0,0:");
    let said = host.refused(&["hpvmclone", "-P", "source", "-N", "copy", "-b", &copy, "-F"]);
    assert!(said.contains(told), "a copy tells '{told}': {said}");
    host.ok(&["hpvmmodify", "-P", "off", "-a", statement]);
    assert!(!host.ok(&["hpvmstatus", "-P", "on", "-d"]).contains("disk:"), "it was not added");
}

/// One after the other.
#[track_caller]
fn given_to_both(host: &VmHost, statement: &str) {
    host.ok(&["hpvmstart", "-P", "off"]);
    host.ok(&["hpvmstop", "-P", "off", "-F"]);
    host.wait_for_state("off", "Off", BOUND);
    host.ok(&["hpvmmodify", "-P", "on", "-a", statement]);
}

/// A program that exports an image, and locks it as any QEMU does.
struct StorageDaemon(Child);

impl StorageDaemon {
    /// One that lets it be written.
    fn of(image: &Path, socket: &Path) -> StorageDaemon {
        let daemon = StorageDaemon::exporting(image, socket, "on");
        wait_until(BOUND, "the image is locked", || {
            hpvm_host::image_lock::is_locked(image).unwrap_or(false)
        });
        daemon
    }

    /// One that lets it be read.
    fn reading(image: &Path, socket: &Path) -> StorageDaemon {
        let daemon = StorageDaemon::exporting(image, socket, "off");
        wait_until(BOUND, "the image is locked", || {
            hpvm_host::image_lock::holders(image, &ALL_BYTES).is_ok_and(|found| !found.is_empty())
        });
        assert!(!hpvm_host::image_lock::is_written(image).expect("an image"));
        daemon
    }

    fn exporting(image: &Path, socket: &Path, writable: &str) -> StorageDaemon {
        let driver = if image.starts_with("/dev") { "host_device" } else { "file" };
        let read_only = if writable == "on" { "off" } else { "on" };
        let node = format!(
            "driver={driver},node-name=a,read-only={read_only},filename={}",
            image.display()
        );
        let server = format!("addr.type=unix,addr.path={}", socket.display());
        let child = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &node, "--nbd-server", &server])
            .args(["--export", &format!("type=nbd,id=b,node-name=a,writable={writable}")])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon");
        StorageDaemon(child)
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
