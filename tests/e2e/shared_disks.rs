//! What two Linux guests do with a disk that both have, as the product gives it to them: each is an initiator of its own to the
//! server of the disk. What the product does with a disk of the VM Host, and who makes the reservations there, is seen in
//! `guest_host::shared_disks`.

use std::fs;

use hpvm_model::{AdapterKind, Backing, DeviceKind, DiskId, StorageDevice, StorageType};
use hpvm_plan::record::{Attached, Cache, Sharing};
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
use crate::pool::image;
use crate::scsi_server::ScsiServer;
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![; long:
    guests_reserve_a_disk_and_keep_each_other_out,
];

const MEMBERS: [&str; 2] = ["a", "b"];
const DISK_BYTES: u64 = 8 << 20;

fn shared(address: &str) -> Attached {
    let (kind, adapter) = (DeviceKind::Disk, AdapterKind::AvioStor);
    let (address, id) = (address.parse().expect("an address"), DiskId::from_random(0));
    let backing = Backing::new(StorageType::Disk, "/dev/sda");
    let device = StorageDevice { kind, adapter, address, backing, layers: Vec::new(), id };
    Attached { cache: Cache::Direct, sharing: Sharing::Reserved, ..Attached::of(device) }
}

/// Finds the shared disk and unpacks the tools. `reserve WORDS`: one command to the disk. `write BYTE`: whether the disk took
/// a block of it. `first`: its first byte.
const FUNCTIONS: &str = r#"cd /tmp; node() { ls /sys/class/scsi_device/*:0:$1:0/device/block; }; until node 1 && node 2; do usleep 20000; done >/dev/null 2>&1; disk=/dev/$(node 1); tar -x -f /dev/$(node 2); reserve() { ./ld-linux-x86-64.so.2 --library-path . ./sg_persist --no-inquiry "$@" $disk >said 2>&1; echo $?; }; write() { head -c 4096 /dev/zero | tr '\0' $1 | dd of=$disk bs=4096 conv=fsync 2>/dev/null; echo $?; }; first() { echo 3 >/proc/sys/vm/drop_caches; head -c 1 $disk; echo; }; echo ready"#;

fn register(key: &str) -> String {
    format!("reserve --out --register --param-sark={key}")
}

/// Exit status of sg_persist for a reservation conflict (sg3_utils(8)).
const CONFLICT: &str = "24";

/// Settles 79: a member that reserved the disk writes, the other's writes fail until it preempts, and then those of the first.
fn guests_reserve_a_disk_and_keep_each_other_out() {
    let mut host = VmHost::new(Engine::Real);
    let server = ScsiServer::open(&host);
    let disk = fs::File::create(server.folder.join("disk")).expect("a file for the disk");
    disk.set_len(DISK_BYTES).expect("room for the disk");
    server.add(1, "--device-type disk", "disk");
    let tools = server.tools(&host, &["sg_persist", "libsgutils2-1.46.so.2"]);
    let options = MEMBERS.map(|guest| (guest, server.options(&shared("0,0,1"), 1, guest)));
    server.give(&mut host, &options);
    for guest in MEMBERS {
        let boot = host.copy_of(&image("test-cloud"), &format!("{guest}.img"));
        let boot = disk_at("0,0,0", &boot);
        let own = host.path(&format!("{guest}-tools.img"));
        fs::copy(&tools, &own).expect("a copy of the tools");
        let tools = disk_at("0,0,2", &own);
        host.ok(&[
            "hpvmcreate",
            "-P",
            guest,
            "-O",
            "linux",
            "-r",
            "512M",
            "-a",
            &boot,
            "-a",
            &tools,
        ]);
        host.ok(&["hpvmstart", "-P", guest]);
    }
    let [mut a, mut b] = [1, 2].map(|number| {
        let mut console = Console::attach(&host.run_dir(number));
        console.wait_for_shell();
        console
    });
    for console in [&mut a, &mut b] {
        assert_eq!(console.run(FUNCTIONS).trim(), "ready");
    }

    assert_eq!(a.run("write A"), "0", "nobody has reserved it");
    assert_eq!(b.run("first"), "A");
    assert_eq!(a.run(&register("0xa")), "0");
    assert_eq!(a.run("reserve --out --reserve --param-rk=0xa --prout-type=5"), "0");
    assert_ne!(b.run("write B"), "0", "another has reserved it");
    assert_eq!(b.run("reserve --out --reserve --param-rk=0xb --prout-type=5"), CONFLICT);
    assert_eq!(a.run("write C"), "0");
    assert_eq!(b.run("first"), "C");
    assert_eq!(b.run(&register("0xb")), "0");

    // Registrants only: who is not registered any more is kept out.
    assert_eq!(
        b.run("reserve --out --preempt --param-rk=0xb --param-sark=0xa --prout-type=5"),
        "0"
    );
    assert_ne!(a.run("write D"), "0");
    assert_eq!(b.run("write E"), "0");
    assert_eq!(b.run("first"), "E");
    let content = fs::read(server.folder.join("disk")).expect("the disk's file");
    assert_eq!(content[0], b'E');
    let told = a.run("dmesg | grep -c 'reservation conflict'");
    assert!(told.trim().parse::<u32>().is_ok_and(|count| count > 0), "the guest was told: {told}");
}
