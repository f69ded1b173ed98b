//! Disks with READONLY=YES.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
use crate::refusals::refused;
use crate::statements::{disk_on, entry};

pub(crate) const TESTS: &[Test] = crate::tests![
    a_read_only_disk_needs_no_right_to_write,
    a_disk_is_read_only_by_any_name,
    a_read_only_disk_runs_on_the_real_engine,
];

fn a_read_only_disk_needs_no_right_to_write() {
    let host = VmHost::new(Engine::Fake);
    let disk = host.disk("disk.img", 1 << 20);
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o444)).expect("nobody may write");
    let said = refused(&host, &["hpvmcreate", "-P", "web", "-a", &disk_on(&disk)]);
    assert!(said.contains("READONLY=YES"), "{said}");
    host.ok(&["hpvmdevmgmt", "-a", &entry("gdev", &disk)]);
    host.ok(&["hpvmdevmgmt", "-m", &format!("{}:attr:READONLY=YES", entry("gdev", &disk))]);
    host.ok(&["hpvmcreate", "-P", "web", "-a", &disk_on(&disk)]);
    let shown = || host.ok(&["hpvmstatus", "-P", "web", "-V"]);
    assert!(shown().contains("Physical access       :read-only"), "{}", shown());
    host.ok(&["hpvmstart", "-P", "web"]);
    // Of a guest that runs it is what it was started with.
    host.ok(&["hpvmdevmgmt", "-m", &format!("{}:attr:READONLY=NO", entry("gdev", &disk))]);
    assert!(shown().contains("Physical access       :read-only"), "{}", shown());
    let next = host.ok(&["hpvmstatus", "-P", "web", "-D", "-V"]);
    assert!(!next.contains("read-only"), "{next}");
    let record = fs::read_to_string(host.path("var/opt/hpvm/guests/web/boot.record"));
    assert!(record.expect("a boot record").contains(r#""access":"read_only""#));
}

/// What hpvmstatus tells is what a start makes of it: by a name that leads to the disk too.
fn a_disk_is_read_only_by_any_name() {
    let host = VmHost::new(Engine::Fake);
    let disk = host.disk("disk.img", 1 << 20);
    let link = host.path("link.img");
    symlink(&disk, &link).expect("a link");
    host.ok(&["hpvmcreate", "-P", "web", "-a", &disk_on(&disk)]);
    host.ok(&["hpvmcreate", "-P", "linked", "-a", &disk_on(&link)]);
    host.ok(&["hpvmdevmgmt", "-m", &format!("{}:attr:READONLY=YES", entry("gdev", &disk))]);
    for guest in ["web", "linked"] {
        let shown = host.ok(&["hpvmstatus", "-P", guest, "-V"]);
        assert!(shown.contains("Physical access       :read-only"), "{shown}");
        host.ok(&["hpvmstart", "-P", guest]);
        let record = host.path(&format!("var/opt/hpvm/guests/{guest}/boot.record"));
        let record = fs::read_to_string(record).expect("a boot record");
        assert!(record.contains(r#""access":"read_only""#), "{record}");
        host.ok(&["hpvmstop", "-P", guest, "-F"]);
    }
}

fn a_read_only_disk_runs_on_the_real_engine() {
    let host = VmHost::new(Engine::Real);
    let disk = host.disk("disk.img", 1 << 20);
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &disk_on(&disk)]);
    host.ok(&["hpvmdevmgmt", "-m", &format!("{}:attr:READONLY=YES", entry("gdev", &disk))]);
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o444)).expect("nobody may write");
    host.ok(&["hpvmstart", "-P", "web"]);
    assert!(host.state("web").starts_with("On"), "{}", host.state("web"));
}
