//! `hpvmdevmgmt -n`: what guests have gets another name in all of them, and nothing becomes another guest's by it.

use std::fs;
use std::os::unix::fs::symlink;

use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
use crate::refusals::{State, refused};
use crate::statements::{disk_on, entry};

pub(crate) const TESTS: &[Test] = crate::tests![
    an_image_that_replaces_a_disk_is_warned_of,
    nothing_is_moved_to_the_disk_of_another_guest,
    what_guests_have_is_renamed_in_all_of_them,
];

/// A new name of a disk is told what the disk itself would have been.
fn an_image_that_replaces_a_disk_is_warned_of() {
    let host = VmHost::new(Engine::Fake);
    let (old, new) = (host.disk("old.img", 1 << 20), host.path("new.img"));
    let image = fs::File::create(&new).expect("an image");
    hpvm_host::qcow2::write_empty(&image, 1 << 20).expect("an image");
    for name in ["web", "db"] {
        host.run(&["hpvmcreate", "-P", name, "-r", "64M", "-a", &disk_on(&old)]);
    }
    let rename = format!("{}:{}", entry("gdev", &old), new.display());
    let said = host.run(&["hpvmdevmgmt", "-n", &rename]);
    assert!(said.status.success(), "{said}");
    for name in ["web", "db"] {
        let told = format!("WARNING ({name}): '{}' holds a qcow2 image", new.display());
        assert!(said.stderr.contains(&told), "{said}");
    }
}

/// What is said of one disk, or is built on it, holds of no other's.
fn nothing_is_moved_to_the_disk_of_another_guest() {
    let host = VmHost::new(Engine::Fake);
    let [old, new] = ["old.img", "new.img"].map(|name| host.disk(name, 1 << 20));
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &disk_on(&old)]);
    host.ok(&["hpvmcreate", "-P", "db", "-r", "64M", "-a", &disk_on(&new)]);
    host.ok(&["hpvmdevmgmt", "-a", &entry("gdev", &old)]);
    host.ok(&["hpvmdevmgmt", "-m", &format!("{}:attr:READONLY=YES", entry("gdev", &old))]);
    let rename = format!("{}:{}", entry("gdev", &old), new.display());
    let before = State::of(&host);
    for dry in [&["--dry-run"][..], &[]] {
        let said = host.refused(&[&["hpvmdevmgmt", "-n", &rename], dry].concat());
        assert!(said.contains("another guest's already: guest 'db' uses"), "{said}");
    }
    before.assert_unchanged(&host, "a renaming that was refused");
    host.ok(&["hpvmremove", "-P", "db", "-F", "--purge"]);
    // Its own, by another name.
    let alias = host.path("alias.img");
    symlink(&old, &alias).expect("a link");
    host.ok(&["hpvmdevmgmt", "-n", &format!("{}:{}", entry("gdev", &old), alias.display())]);
    host.ok(&["hpvmdevmgmt", "-n", &format!("{}:{}", entry("gdev", &alias), new.display())]);
}

fn what_guests_have_is_renamed_in_all_of_them() {
    let host = VmHost::new(Engine::Fake);
    let (old, new) = (host.disk("old.img", 1 << 20), host.disk("new.img", 1 << 20));
    for name in ["web", "db"] {
        host.run(&["hpvmcreate", "-P", name, "-r", "64M", "-a", &disk_on(&old)]);
    }
    let rename = format!("{}:{}", entry("gdev", &old), new.display());
    host.ok(&["hpvmstart", "-P", "db"]);
    let before = State::of(&host);
    let said = refused(&host, &["hpvmdevmgmt", "-n", &rename]);
    assert!(said.contains("while guests that have it run") && said.contains("'db'"), "{said}");
    before.assert_unchanged(&host, "a renaming that was refused");
    host.ok(&["hpvmstop", "-P", "db", "-F"]);
    let other = host.disk("other.img", 1 << 20);
    let said = host.refused(&["hpvmdevmgmt", "-n", &format!("{rename},{}", other.display())]);
    assert!(said.contains("new.img") && said.contains("other.img"), "{said}");
    let alias = host.path("alias.img");
    symlink(&new, &alias).expect("a link");
    let rename = format!("{rename},{}", alias.display());
    let told = host.run(&["hpvmdevmgmt", "-n", &rename, "-V"]);
    assert!(told.status.success() && told.stdout.contains("also in web, db"), "{told}");
    for name in ["web", "db"] {
        let devices = host.ok(&["hpvmstatus", "-P", name, "-d"]);
        assert!(devices.contains("new.img") && !devices.contains("old.img"), "{devices}");
    }
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");

    // A guest that was removed comes back with the file that it had.
    host.ok(&["hpvmremove", "-P", "db", "-F"]);
    let newest = host.path("newest.img");
    fs::rename(&new, &newest).expect("the file moves");
    let rename = format!("{}:{}", entry("gdev", &new), newest.display());
    let told = host.ok(&["hpvmdevmgmt", "-n", &rename, "-V"]);
    assert!(told.contains("also in web, db, which was removed"), "{told}");
    // Where nobody else has it either.
    host.ok(&["hpvmremove", "-P", "web", "-F"]);
    fs::rename(&newest, &new).expect("the file moves back");
    let rename = format!("{}:{}", entry("gdev", &newest), new.display());
    let told = host.ok(&["hpvmdevmgmt", "-n", &rename, "-V"]);
    assert!(told.contains("db, which was removed"), "{told}");
    host.ok(&["hpvm", "undelete", "-P", "db"]);
    host.ok(&["hpvmstart", "-P", "db"]);
    let devices = host.ok(&["hpvmstatus", "-P", "db", "-d"]);
    assert!(devices.contains("new.img"), "{devices}");
}
