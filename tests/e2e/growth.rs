//! A disk grows under its running guest: the administrator makes the backing store longer and says so, the guest sees it and
//! keeps what it had, and nothing ever makes a store shorter.

use std::fs::{self, OpenOptions};
use std::path::Path;

use hpvm_testkit::guest::{BOOT_BOUND, Console};
use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
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
    let host = VmHost::new(Engine::Real);
    let boot = host.copy_of(&image("test-full"), "boot.img");
    let [avio, vio] = ["avio.img", "vio.img"].map(|name| host.disk(name, 8 * MIB));
    let boot_statement = format!("disk:avio_stor:0,0,0:file:{}", boot.display());
    let avio_statement = format!("disk:avio_stor:0,0,1:file:{}", avio.display());
    let vio_statement = format!("disk:scsi:0,1,0:file:{}", vio.display());
    let mut create = vec!["hpvmcreate", "-P", "web", "-O", "linux", "-r", "576M"];
    for statement in [&boot_statement, &avio_statement, &vio_statement] {
        create.extend(["-a", statement]);
    }
    host.ok(&create);
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.expect("HPVM GUEST READY", BOOT_BOUND);
    console.run_within("true", BOOT_BOUND);
    let names = |console: &mut Console, sectors: &str| {
        let find = format!(
            "for d in /sys/class/block/sd?; do [ $(cat $d/size) = {sectors} ] && basename $d; done"
        );
        console.run(&find)
    };
    for disk in names(&mut console, "16384").split_whitespace() {
        console.run(&format!("echo data of {disk} | dd of=/dev/{disk} conv=sync,fsync"));
    }
    let on_vio = console.run(
        "for d in /sys/class/block/sd?; do readlink -f $d | grep -q 08.1 && basename $d; done",
    );
    let modify = |statement: &str| host.run(&["hpvmmodify", "-P", "web", "-m", statement]);

    // Nothing has grown: nothing is done, and nothing is said.
    let same = modify(&avio_statement);
    assert!(same.status.success() && same.stderr.is_empty(), "{same}");

    set_length(&avio, 16 * MIB);
    let dry = host.ok(&["hpvmmodify", "-P", "web", "--dry-run", "-m", &avio_statement]);
    assert!(dry.contains("storage 0,0,1 size") && dry.contains("16 MB"), "{dry}");
    let grown = modify(&avio_statement);
    assert!(grown.status.success() && grown.stderr.is_empty(), "{grown}");
    let on_avio = console
        .run("until grep -lx 32768 /sys/class/block/sd?/size; do usleep 20000; done | cut -d/ -f5");
    assert_eq!(console.run(&format!("head -n 1 /dev/{on_avio}")), format!("data of {on_avio}"));
    console
        .run(&format!("echo behind the old end | dd of=/dev/{on_avio} seek=31000 conv=sync,fsync"));
    let content = fs::read(&avio).expect("the disk's file");
    assert!(content[31000 * 512..].starts_with(b"behind the old end"));

    // The emulated adapter tells the guest nothing; it looks when it is told to, as the command says.
    set_length(&vio, 16 * MIB);
    let grown = modify(&vio_statement);
    assert!(grown.status.success(), "{grown}");
    assert!(grown.stderr.contains("device/rescan"), "{grown}");
    let size_on_vio = format!("cat /sys/class/block/{on_vio}/size");
    assert_eq!(console.run(&size_on_vio), "16384");
    console.run(&format!("echo 1 >/sys/class/block/{on_vio}/device/rescan"));
    assert_eq!(console.run(&size_on_vio), "32768");
    assert_eq!(console.run(&format!("head -n 1 /dev/{on_vio}")), format!("data of {on_vio}"));

    // The boot disk too, with the guest running from it.
    let boot_length = length(&boot);
    set_length(&boot, boot_length + 8 * MIB);
    host.ok(&["hpvmmodify", "-P", "web", "-m", &boot_statement]);
    let sectors = (boot_length + 8 * MIB) / 512;
    console
        .run(&format!("until grep -qx {sectors} /sys/class/block/sd?/size; do usleep 20000; done"));

    // A store that became shorter is never told, and never cut.
    set_length(&avio, 12 * MIB);
    let shorter = modify(&avio_statement);
    assert!(shorter.status.success(), "{shorter}");
    assert!(shorter.stderr.contains("has become shorter"), "{shorter}");
    assert_eq!(console.run(&format!("cat /sys/class/block/{on_avio}/size")), "32768");
    assert_eq!(length(&avio), 12 * MIB);

    // Another file in its place is not what the guest has.
    fs::rename(&vio, host.path("elsewhere.img")).expect("the file goes");
    let _ = host.disk("vio.img", 32 * MIB);
    let other = modify(&vio_statement);
    assert!(other.stderr.contains("another file than the running guest has"), "{other}");
    assert_eq!(length(&host.path("elsewhere.img")), 16 * MIB);
}
