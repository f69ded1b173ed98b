//! What a Linux guest does with a tape, a changer and a burner that are attached to it. The machine of the test need not have
//! any: `scsi_server` serves them, and QEMU hands them to the very devices that the product makes of
//! `tape:scsi:…:attach:…`. What the product does with nodes of the VM Host up to QEMU is seen in `guest_host::attached`.

use std::fs;
use std::process::Command;

use hpvm_model::{Backing, DeviceKind, DiskId, StorageDevice, StorageType};
use hpvm_plan::record::Attached;
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
use crate::pool::image;
use crate::scsi_server::{ScsiServer, done};
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![; long:
    a_guest_writes_a_tape_and_finds_a_changer,
    a_guest_burns_a_disc,
];

/// What the guest's drivers say when a device leaves them without an answer.
const COMPLAINTS: &str =
    "dmesg | grep -iE 'mpt|scsi|s[rt][0-9]' | grep -iE 'abort|attempt|fail|error|timed? ?out'";

/// A server with a tape as its unit 1 and a changer as unit 2.
fn library(host: &VmHost) -> ScsiServer {
    let server = ScsiServer::open(host);
    let mut tape = Command::new(server.folder.join("tgtimg"));
    tape.args(["--op", "new", "--device-type", "tape", "--barcode", "TAPE", "--size", "64"]);
    tape.args(["--type", "data", "--file", &server.path("tape")]);
    done("tgtimg", tape);
    fs::write(server.folder.join("changer"), [0; 1024]).expect("a file for the changer");
    server.add(1, "--device-type tape --bstype ssc", "tape");
    server.add(2, "--device-type changer", "changer");
    server
}

fn attached(kind: DeviceKind, address: &str) -> Attached {
    let (adapter, id) = (hpvm_model::AdapterKind::Scsi, DiskId::from_random(0));
    let address = address.parse().expect("an address");
    let backing = Backing::new(StorageType::Attach, "/dev/sg0");
    Attached::of(StorageDevice { kind, adapter, address, backing, layers: Vec::new(), id })
}

/// Settles 68: the guest's commands go to the device, its resets do not, so no driver waits for one; the reset that the
/// device reports at first is taken by both adapters.
fn a_guest_writes_a_tape_and_finds_a_changer() {
    let mut host = VmHost::new(Engine::Real);
    let library = library(&host);
    let tape = attached(DeviceKind::Tape, "0,5,1");
    let changer = attached(DeviceKind::Changer, "0,6,1");
    let options = [library.options(&tape, 1, "web"), library.options(&changer, 2, "web")].join(" ");
    library.give(&mut host, &[("web", options)]);
    let boot = host.copy_of(&image("test-full"), "boot.img");
    let boot = disk_at("0,0,0", &boot);
    // The adapters on which the attached devices sit come with a drive each.
    let drives = ["dvd:scsi:0,5,0:null:/none", "dvd:avio_stor:0,6,0:null:/none"];
    let create = ["hpvmcreate", "-P", "web", "-O", "linux", "-r", "576M", "-a", &boot];
    host.ok(&[&create[..], &["-a", drives[0], "-a", drives[1]]].concat());
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    let types = console.run("cat /sys/class/scsi_generic/*/device/type | sort -n | tr '\\n' ' '");
    assert_eq!(types.trim(), "0 1 5 5 8");
    console.run("modprobe st");
    let seen = console.run(
        "until [ -c /dev/nst0 ]; do usleep 20000; done; cat /sys/class/scsi_tape/st0/device/model",
    );
    assert_eq!(seen.trim(), "VIRTUAL-TAPE");

    // The driver ends each part with a file mark.
    console.run("for part in one two; do echo part $part | dd of=/dev/nst0 bs=512 conv=sync; done");
    console.run("mt -f /dev/nst0 rewind && mt -f /dev/nst0 fsf 1");
    assert_eq!(console.run("dd if=/dev/nst0 bs=512 count=1 2>&- | head -n 1"), "part two");
    let content = fs::read(library.folder.join("tape")).expect("the tape's file");
    for part in [&b"part one"[..], b"part two"] {
        assert!(content.windows(part.len()).any(|bytes| bytes == part), "it is on the tape");
    }

    assert_eq!(console.run(COMPLAINTS), "");
}

/// What is burnt: lines of numbers.
const IMAGE_BYTES: usize = 300_000;

/// Unpacks the tools, finds the burner and makes the image. `burn`: whether the drive took it. `disc`: what is in the drive.
/// `compare`: how that differs from the image.
const BURNER: &str = r#"cd /tmp; node() { ls /sys/class/scsi_device/*:0:$1:0/device/block; }; until node 1 && node 2; do usleep 20000; done >/dev/null 2>&1; burner=/dev/$(node 1); tar -x -f /dev/$(node 2); seq 60000 | head -c 300000 >image; cdrskin() { ./ld-linux-x86-64.so.2 --library-path . ./cdrskin dev=$burner "$@" 2>&1; }; burn() { cdrskin -tao -multi image >said; echo $?; }; disc() { echo $(cdrskin -minfo | sed -n 's/^Mounted media type: *//p; s/^disk status: *//p; s/^Remaining writable size: *//p'); }; compare() { cmp -n 300000 $burner image 2>&1 && echo same; }; echo ready"#;

/// The guest's program sees a blank disc, burns it, and has the drive eject it and take it again.
fn a_guest_burns_a_disc() {
    let mut host = VmHost::new(Engine::Real);
    let server = ScsiServer::open(&host);
    // A disc is blank when there is no byte on it.
    fs::write(server.folder.join("disc"), []).expect("a file for the disc");
    server.add(1, "--device-type cd", "disc");
    let burner = attached(DeviceKind::Burner, "0,5,1");
    server.give(&mut host, &[("web", server.options(&burner, 1, "web"))]);
    let boot = host.copy_of(&image("test-full"), "boot.img");
    let boot = disk_at("0,0,0", &boot);
    let tools = server.tools(&host, &["cdrskin", "libburn.so.4"]);
    let tools = disk_at("0,0,2", &tools);
    // The adapter on which the burner sits comes with a drive.
    let drive = "dvd:scsi:0,5,0:null:/none";
    let create = ["hpvmcreate", "-P", "web", "-O", "linux", "-r", "576M"];
    host.ok(&[&create[..], &["-a", &boot, "-a", &tools, "-a", drive]].concat());
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    assert_eq!(console.run(BURNER), "ready");
    let seen =
        console.run("cd /sys/class/block/${burner##*/}/device; echo $(cat type model); cd /tmp");
    assert_eq!(seen, "5 VIRTUAL-CDROM");
    assert_eq!(console.run("disc"), "DVD+R empty 2295104");

    // As the first of several sessions: for the only one a track is reserved first, by a command that tgt refuses.
    assert_eq!(console.run("burn"), "0");
    let content = fs::read(server.folder.join("disc")).expect("the disc's file");
    let lines: String = (1..=60_000).map(|line| format!("{line}\n")).collect();
    assert!(content.starts_with(&lines.as_bytes()[..IMAGE_BYTES]), "it is on the disc");
    assert_eq!(console.run("disc"), "DVD-ROM complete");
    assert_ne!(console.run("burn"), "0", "it is full");

    console.run("cdrskin -eject");
    assert!(console.run("compare").contains("No medium found"));
    console.run("cdrskin -load");
    assert_eq!(console.run("compare"), "same");
    assert_eq!(console.run("disc"), "DVD-ROM complete");
    assert_eq!(console.run(COMPLAINTS), "");
}
