//! What becomes of commands that want a store which hpvmclone reads or overwrites at that moment, and of the copy.

use std::fs;
use std::path::Path;

use hpvm_host::process::Signal;
use hpvm_testkit::vm_host::VmHost;
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::clone::on;
use crate::clone::slow::{COPYING, guest_names, is_copying, with_slow_copy};
use crate::loop_device::LoopDevice;
use crate::started::Started;

pub(crate) const TESTS: &[Test] = crate::tests![
    what_is_copied_is_given_to_no_other_guest_meanwhile,
    a_device_that_gets_a_copy_is_given_to_no_guest_meanwhile,
    a_file_that_became_a_guests_meanwhile_is_not_replaced,
];

/// Holds a clone still while it copies its largest disk, for what `meanwhile` does with its number, and lets it go on. On a busy
/// machine the copy may be there before: then it is tried again.
fn held_in_the_middle(
    host: &VmHost,
    line: &[&str],
    meanwhile: impl Fn(u32),
) -> (Option<i32>, String) {
    for _ in 0..10 {
        let clone = Started::of(host, line);
        wait_until(COPYING, "the copy begins", || is_copying(host));
        clone.gets(Signal::STOP);
        let is_met = !host.path("copy.img").exists() && is_copying(host);
        if is_met {
            meanwhile(clone.number());
        }
        clone.gets(Signal::CONT);
        let outcome = clone.end();
        if is_met {
            return outcome;
        }
        host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
        fs::remove_file(host.path("copy.img")).expect("the copy");
    }
    panic!("none of ten was met in its middle");
}

/// Nobody would tell that the copy is torn. Others may read it, too.
fn what_is_copied_is_given_to_no_other_guest_meanwhile() {
    let (host, copy) = with_slow_copy();
    host.ok(&["hpvmclone", "-P", "web", "-N", "twin"]);
    host.ok(&["hpvmcreate", "-P", "runs", "-r", "64M"]);
    host.ok(&["hpvmstart", "-P", "runs"]);
    let disk = on(&host.path("web.img"), "file");
    let line = ["hpvmclone", "-P", "web", "-N", "new", "-b", &copy];
    let (status, said) = held_in_the_middle(&host, &line, |clone| {
        let told = format!("is being copied by hpvmclone (process {clone})");
        for refused in [
            &["hpvmstart", "-P", "twin"][..],
            &["hpvmmodify", "-P", "runs", "-a", &disk],
            &["hpvmmodify", "-P", "runs", "-a", &disk, "-F"],
        ] {
            let said = host.refused(refused);
            assert!(said.contains(&told), "{told}: {said}");
        }
        host.ok(&["hpvmclone", "-P", "twin", "-N", "linked", "--linked"]);
    });
    assert_eq!(status, Some(0), "{said}");
    assert!(fs::read(host.path("copy.img")).unwrap() == fs::read(host.path("web.img")).unwrap());
    host.ok(&["hpvmremove", "-P", "linked", "-F", "--purge"]);
    host.ok(&["hpvmstart", "-P", "twin"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
}

/// Neither the one that has its copy nor the one whose copy is to come. Whose they become meanwhile keeps them, though not their
/// content.
fn a_device_that_gets_a_copy_is_given_to_no_guest_meanwhile() {
    let (host, copy) = with_slow_copy();
    let at = |address: &str, storage: &str, path: &Path| {
        format!("disk:avio_stor:{address}:{storage}:{}", path.display())
    };
    for (name, address) in [("first.img", "0,0,0"), ("last.img", "0,2,0")] {
        let disk = at(address, "file", &host.disk(name, 1 << 20));
        host.ok(&["hpvmmodify", "-P", "web", "-a", &disk]);
    }
    let [first, last] = ["a", "b"].map(|name| LoopDevice::on(&host.disk(name, 1 << 20), &[]));
    let (to_first, to_last) = (at("0,0,0", "disk", first.path()), at("0,2,0", "disk", last.path()));
    let copies = ["-b", &to_first, "-b", &copy, "-b", &to_last];
    let line = [&["hpvmclone", "-P", "web", "-N", "new"][..], &copies].concat();
    let guests = [("one", &first), ("two", &last)];
    let (status, said) = held_in_the_middle(&host, &line, |clone| {
        let told = format!("is being overwritten by hpvmclone (process {clone})");
        let torn = at("0,0,0", "file", &host.path("torn.img"));
        for (name, device) in guests {
            host.ok(&["hpvmcreate", "-P", name, "-r", "64M", "-a", &device.disk()]);
            // Who only reads does not ask for the device for himself.
            let copy = ["hpvmclone", "-P", name, "-N", "torn", "-b", &torn];
            for refused in [&["hpvmstart", "-P", name][..], &copy] {
                let said = host.refused(refused);
                assert!(said.contains(&told), "{told}: {said}");
            }
        }
        assert!(!host.path("torn.img").exists());
    });
    assert_eq!(status, Some(1), "{said}");
    for (name, device) in guests {
        let path = device.path().display();
        assert!(said.contains(&format!("'{path}' belongs to guest '{name}'")), "{said}");
        assert!(said.contains(&format!("'{path}' is partly overwritten")), "{said}");
        host.ok(&["hpvmstart", "-P", name]);
    }
    assert_eq!(guest_names(&host), ["web", "one", "two"]);
    assert!(!is_copying(&host), "nothing is left of the other copy");
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
}

/// A copy may be there before the file is a guest's: then it is tried again.
fn a_file_that_became_a_guests_meanwhile_is_not_replaced() {
    let (host, copy) = with_slow_copy();
    let path = host.path("copy.img");
    let copies = || fs::read_dir(host.root()).unwrap().flatten().map(|entry| entry.file_name());
    let is_copying = || copies().any(|name| name.to_string_lossy().starts_with(".copy.img."));
    for _ in 0..10 {
        fs::write(&path, "db's").expect("a file");
        let line = ["hpvmclone", "-P", "web", "-N", "new", "-b", &copy, "-F"];
        let clone = Started::of(&host, &line);
        wait_until(COPYING, "the copy begins", is_copying);
        host.run(&["hpvmcreate", "-P", "db", "-r", "64M", "-a", &copy]);
        host.run(&["hpvmstart", "-P", "db"]);
        let (status, said) = clone.end();
        if status != Some(0) {
            assert!(said.contains("belongs to guest 'db'"), "{said}");
            assert_eq!(fs::read_to_string(&path).unwrap(), "db's");
            assert!(host.state("db").starts_with("On"), "{}", host.state("db"));
            return;
        }
        for name in ["new", "db"] {
            host.run(&["hpvmstop", "-P", name, "-F"]);
            host.run(&["hpvmremove", "-P", name, "-F", "--purge"]);
        }
    }
    panic!("none of ten was met in its middle");
}
