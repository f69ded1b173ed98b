//! A disk grows under its running guest: the administrator makes the backing store longer and says so, the guest sees it and
//! keeps what it had, and nothing ever makes a store shorter.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use hpvm_testkit::guest::{BOOT_BOUND, Console};
use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};

use crate::Test;
use crate::loop_device::LoopDevice;
use crate::pool::image;

pub(crate) const TESTS: &[Test] = crate::tests![disks_grow_under_a_guest];

const MIB: u64 = 1 << 20;

fn set_length(file: &Path, bytes: u64) {
    let opened = OpenOptions::new().write(true).open(file).expect("the disk's file");
    opened.set_len(bytes).expect("its length");
}

fn length(file: &Path) -> u64 {
    fs::metadata(file).expect("the disk's file").len()
}

/// The boot disk and one behind each adapter, with data. Settles 149.
fn disks_grow_under_a_guest() {
    let mut guest = Growing::boot();
    let on_vio = guest.console.run(
        "for d in /sys/class/block/sd?; do readlink -f $d | grep -q 08.1 && basename $d; done",
    );
    // Nothing has grown: nothing is done, and no more is said.
    let same = guest.tell(&guest.avio);
    assert!(same.status.success(), "{same}");
    assert_eq!(same.stderr, "hpvmmodify: nothing to change: guest 'web' is so already\n");

    let on_avio = an_avio_disk_grows(&mut guest);
    an_emulated_disk_grows_when_the_guest_looks(&mut guest, &on_vio);
    the_boot_disk_grows(&mut guest);
    what_became_shorter_is_not_told(&mut guest, &on_avio);
    an_image_is_no_longer_than_it_says(&guest);
    a_loop_device_grows_with_its_file(&mut guest);
    another_file_is_not_the_disk(&guest);
}

/// A guest with three disks, on two of which there are data.
struct Growing {
    host: VmHost,
    console: Console,
    boot: Disk,
    avio: Disk,
    vio: Disk,
}

struct Disk {
    file: PathBuf,
    statement: String,
}

impl Disk {
    fn at(place: &str, file: PathBuf) -> Disk {
        let statement = format!("disk:{place}:file:{}", file.display());
        Disk { file, statement }
    }
}

impl Growing {
    fn boot() -> Growing {
        let host = VmHost::new(Engine::Real);
        let boot = Disk::at("avio_stor:0,0,0", host.copy_of(&image("test-full"), "boot.img"));
        let avio = Disk::at("avio_stor:0,0,1", host.disk("avio.img", 8 * MIB));
        let vio = Disk::at("scsi:0,1,0", host.disk("vio.img", 8 * MIB));
        host.create("web", "576M", &[&boot, &avio, &vio].map(|disk| disk.statement.as_str()));
        host.ok(&["hpvmstart", "-P", "web"]);
        let mut console = Console::attach(&host.run_dir(1));
        console.expect("HPVM GUEST READY", BOOT_BOUND);
        console.run_within("true", BOOT_BOUND);
        let small = console.run(
            "for d in /sys/class/block/sd?; do [ $(cat $d/size) = 16384 ] && basename $d; done",
        );
        for disk in small.split_whitespace() {
            console.run(&format!("echo data of {disk} | dd of=/dev/{disk} conv=sync,fsync"));
        }
        Growing { host, console, boot, avio, vio }
    }

    /// Says that a disk's store is as it is now.
    fn tell(&self, disk: &Disk) -> Outcome {
        self.host.run(&["hpvmmodify", "-P", "web", "-m", &disk.statement])
    }
}

/// The guest sees it by itself, under the name that is returned.
fn an_avio_disk_grows(guest: &mut Growing) -> String {
    set_length(&guest.avio.file, 16 * MIB);
    let statement = &guest.avio.statement;
    let dry = guest.host.ok(&["hpvmmodify", "-P", "web", "--dry-run", "-m", statement]);
    assert!(dry.contains("storage 0,0,1 size") && dry.contains("16 MB"), "{dry}");
    let grown = guest.tell(&guest.avio);
    assert!(grown.status.success(), "{grown}");
    assert_eq!(grown.stderr, "hpvmmodify: storage 0,0,1 size: 16 MB now, 8 MB before\n");
    let console = &mut guest.console;
    let disk = console
        .run("until grep -lx 32768 /sys/class/block/sd?/size; do usleep 20000; done | cut -d/ -f5");
    assert_eq!(console.run(&format!("head -n 1 /dev/{disk}")), format!("data of {disk}"));
    console.run(&format!("echo behind the old end | dd of=/dev/{disk} seek=31000 conv=sync,fsync"));
    let content = fs::read(&guest.avio.file).expect("the disk's file");
    assert!(content[31000 * 512..].starts_with(b"behind the old end"));
    disk
}

/// The emulated adapter tells the guest nothing; it looks when it is told to, as the command says.
fn an_emulated_disk_grows_when_the_guest_looks(guest: &mut Growing, disk: &str) {
    set_length(&guest.vio.file, 16 * MIB);
    let grown = guest.tell(&guest.vio);
    assert!(grown.status.success(), "{grown}");
    assert!(grown.stderr.contains("device/rescan"), "{grown}");
    let console = &mut guest.console;
    let size = format!("cat /sys/class/block/{disk}/size");
    assert_eq!(console.run(&size), "16384");
    console.run(&format!("echo 1 >/sys/class/block/{disk}/device/rescan"));
    assert_eq!(console.run(&size), "32768");
    assert_eq!(console.run(&format!("head -n 1 /dev/{disk}")), format!("data of {disk}"));
}

/// With the guest running from it.
fn the_boot_disk_grows(guest: &mut Growing) {
    let grown = length(&guest.boot.file) + 8 * MIB;
    set_length(&guest.boot.file, grown);
    guest.host.ok(&["hpvmmodify", "-P", "web", "-m", &guest.boot.statement]);
    let sectors = grown / 512;
    guest
        .console
        .run(&format!("until grep -qx {sectors} /sys/class/block/sd?/size; do usleep 20000; done"));
}

/// It is never cut either.
fn what_became_shorter_is_not_told(guest: &mut Growing, on_avio: &str) {
    set_length(&guest.avio.file, 12 * MIB);
    let shorter = guest.tell(&guest.avio);
    assert!(shorter.status.success(), "{shorter}");
    assert!(shorter.stderr.contains("has become shorter"), "{shorter}");
    assert_eq!(guest.console.run(&format!("cat /sys/class/block/{on_avio}/size")), "32768");
    assert_eq!(length(&guest.avio.file), 12 * MIB);
}

/// Whoever writes to it makes its file longer; the disk in it grows while the guest is off, and the command says so.
fn an_image_is_no_longer_than_it_says(guest: &Growing) {
    let host = &guest.host;
    let image = host.path("image.qcow2");
    let qemu_img = |line: &[&str]| {
        let mut command = Command::new("qemu-img");
        let status = command.args(line).arg(&image).arg("24M").output().expect("qemu-img");
        status.status.success()
    };
    assert!(qemu_img(&["create", "-q", "-f", "qcow2"]));
    let statement = format!("disk:avio_stor:0,0,2:qcow2:{}", image.display());
    host.ok(&["hpvmmodify", "-P", "web", "-a", &statement]);
    assert!(!qemu_img(&["resize", "-q", "-f", "qcow2"]), "the engine keeps others from it");
    let told = host.run(&["hpvmmodify", "-P", "web", "-m", &statement]);
    assert!(told.status.success(), "{told}");
    assert!(told.stderr.contains("the disk at 0,0,2 has 24 MB, as its image says"), "{told}");
}

/// Once its kernel has looked at the file again.
fn a_loop_device_grows_with_its_file(guest: &mut Growing) {
    let file = guest.host.disk("looped.img", 8 * MIB);
    let device = LoopDevice::on(&file, &[]);
    let statement = device.disk().replace("::", ":0,0,3:");
    guest.host.ok(&["hpvmmodify", "-P", "web", "-a", &statement]);
    for mib in [8, 20] {
        set_length(&file, mib * MIB);
        device.grow();
        guest.host.ok(&["hpvmmodify", "-P", "web", "-m", &statement]);
        let sectors = mib * MIB / 512;
        guest.console.run(&format!(
            "until grep -qx {sectors} /sys/class/block/sd?/size; do usleep 20000; done"
        ));
    }
    guest.host.ok(&["hpvmmodify", "-P", "web", "-d", &statement, "-F"]);
}

/// One in its place is not what the guest has.
fn another_file_is_not_the_disk(guest: &Growing) {
    let elsewhere = guest.host.path("elsewhere.img");
    fs::rename(&guest.vio.file, &elsewhere).expect("the file goes");
    let _ = guest.host.disk("vio.img", 32 * MIB);
    let other = guest.tell(&guest.vio);
    assert!(other.stderr.contains("another file than the running guest has"), "{other}");
    assert_eq!(length(&elsewhere), 16 * MIB);
}
