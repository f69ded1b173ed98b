//! A guest whose AVIO storage a thread of QEMU's serves, as with KVM: all that is done to its disks while it runs is as it is
//! where its processor serves them.

use std::fs::{self, OpenOptions};
use std::time::Duration;

use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::devices::{SEEN_BOUND, holds, wait_for, wait_gone};
use crate::guest_processes::arguments;
use crate::pool::image;
use crate::statements::disk_at;
use crate::supervision::{is_supervised, supervisor};

pub(crate) const TESTS: &[Test] = crate::tests![
    disks_come_grow_are_copied_and_go_beside_a_thread,
    a_service_that_there_is_not_keeps_a_guest_from_its_start,
];

const MIB: u64 = 1 << 20;
const SUPERVISED_BOUND: Duration = Duration::from_secs(8);

fn disks_come_grow_are_copied_and_go_beside_a_thread() {
    let mut host = VmHost::new(Engine::Real);
    host.set("HPVMAVIOSERVICE", "thread");
    let boot = disk_at("0,0,0", &host.copy_of(&image("test-full"), "boot.img"));
    host.create("web", "512M", &[boot.as_str(), "dvd:avio_stor:0,1,0:null:/dev/null"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    assert!(command_line(&host).contains(",iothread=avio"), "{}", command_line(&host));
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();

    let (first, second) = (host.disk("first.img", 8 * MIB), host.disk("second.img", 8 * MIB));
    let statements = [disk_at("0,5,0", &first), disk_at("0,5,1", &second)];
    host.ok(&["hpvmmodify", "-P", "web", "-a", &statements[0], "-a", &statements[1]]);
    for disk in ["sdb", "sdc"] {
        wait_for(&mut console, disk);
        console.run(&format!("echo data of {disk} | dd of=/dev/{disk} conv=sync,fsync"));
    }

    // It takes over what the thread serves, too.
    supervisor(&host, "hpvmapp").kill();
    wait_until(SUPERVISED_BOUND, "the guest is supervised", || is_supervised(&host));
    let mut console = Console::attach(&host.run_dir(1));
    console.type_in("\n");

    OpenOptions::new().write(true).open(&first).unwrap().set_len(16 * MIB).unwrap();
    host.ok(&["hpvmmodify", "-P", "web", "-m", &statements[0]]);
    console.run_within(
        "until grep -qx 32768 /sys/class/block/sdb/size; do usleep 20000; done",
        SEEN_BOUND,
    );
    a_medium_is_changed(&host, &mut console);

    let copies = [0, 1, 2].map(|n| host.path(&format!("copy-{n}.img")));
    let copied = [("0,0,0", 0), ("0,5,0", 1), ("0,5,1", 2)];
    let copied = copied.map(|(place, n)| disk_at(place, &copies[n]));
    host.ok(&[
        "hpvmclone",
        "-P",
        "web",
        "-N",
        "new",
        "-b",
        &copied[0],
        "-b",
        &copied[1],
        "-b",
        &copied[2],
    ]);
    assert_eq!(fs::read(&copies[1]).unwrap(), fs::read(&first).unwrap());

    // One of several, then the last one with its adapter.
    for (disk, n) in [("sdc", 1), ("sdb", 0)] {
        host.ok(&["hpvmmodify", "-P", "web", "-F", "-d", &statements[n]]);
        wait_gone(&mut console, disk);
    }
    for (file, text) in [(&first, "data of sdb\n"), (&second, "data of sdc\n")] {
        wait_until(SEEN_BOUND, "QEMU has let its file go", || !holds(&host, file));
        assert!(fs::read(file).unwrap().starts_with(text.as_bytes()));
    }
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
}

fn a_medium_is_changed(host: &VmHost, console: &mut Console) {
    let disc = host.disk("disc.iso", MIB);
    fs::write(&disc, [b'd'; MIB as usize]).expect("a disc");
    let full = format!("dvd:avio_stor:0,1,0:file:{}", disc.display());
    host.ok(&["hpvmmodify", "-P", "web", "-m", &full]);
    console.run_within(
        "until [ $(head -c 1 /dev/sr0) = d ]; do usleep 20000; done 2>/dev/null",
        SEEN_BOUND,
    );
    host.ok(&["hpvmmodify", "-P", "web", "-m", "dvd:avio_stor:0,1,0:null:/dev/null"]);
    wait_until(SEEN_BOUND, "QEMU has let the disc go", || !holds(host, &disc));
}

/// As QEMU of guest 1 was given it.
fn command_line(host: &VmHost) -> String {
    let qemu = host.snapshot(1).expect("it runs").qemu.pid;
    arguments(qemu).expect("its command line").join(" ")
}

fn a_service_that_there_is_not_keeps_a_guest_from_its_start() {
    let mut host = VmHost::new(Engine::Fake);
    host.create("web", "512M", &["disk:avio_stor:0,0,0:null:/dev/null"]);
    host.set("HPVMAVIOSERVICE", "threads");
    for line in [&["hpvmstart", "-P", "web"][..], &["hpvmstart", "-P", "web", "-s"]] {
        let said = host.refused(line);
        assert!(said.contains("HPVMAVIOSERVICE is 'threads' in "), "{said}");
        assert!(said.contains("it should be processor or thread"), "{said}");
    }
    host.set("HPVMAVIOSERVICE", "");
    host.ok(&["hpvmstart", "-P", "web"]);
    assert!(!command_line(&host).contains("iothread"), "{}", command_line(&host));
}
