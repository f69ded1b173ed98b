//! By what a store is known again: another one in its place is not used until that is accepted.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hpvm_testkit::vm_host::{Engine, VmHost};

use super::as_it_was_left;
use crate::Test;
use crate::loop_device::LoopDevice;
use crate::refusals::refused;
use crate::statements::{disk_on, entry};

pub(crate) const TESTS: &[Test] = crate::tests![
    a_restored_file_is_the_same_disk,
    a_file_that_became_shorter_is_not_used_until_that_is_accepted,
    a_loop_device_is_known_by_its_file,
    what_a_device_is_known_by_is_written_down_anew,
];

/// A file is known by its path, and by its length from the first start on; before that there is nothing to accept.
fn a_restored_file_is_the_same_disk() {
    let host = VmHost::new(Engine::Fake);
    let disk = host.disk("disk.img", 1 << 20);
    host.ok(&["hpvmcreate", "-P", "web", "-a", &disk_on(&disk)]);
    let accept = accepted(&disk);
    let said = refused(&host, &["hpvmdevmgmt", "-m", &accept]);
    assert!(said.contains("a disk in a raw file since a guest was started with it"), "{said}");
    // A file that was restored is the guest's disk as it was before, also where it is longer than it was.
    for bytes in [1 << 21, 1 << 21, 1 << 22] {
        fs::remove_file(&disk).expect("the file");
        let _ = host.disk("disk.img", bytes);
        runs_once(&host, "web");
    }
}

/// What a guest wrote at the end of its disk is looked for in no shorter one.
fn a_file_that_became_shorter_is_not_used_until_that_is_accepted() {
    let host = VmHost::new(Engine::Fake);
    let disk = host.disk("disk.img", 4 << 20);
    let at = |path: &Path| disk_on(path).replace("::", ":0,0,0:");
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &disk_on(&disk)]);
    let accept = || host.ok(&["hpvmdevmgmt", "-m", &accepted(&disk)]);
    let is_refused = |was: u64, is: u64| {
        set_length(&disk, is);
        let said = refused(&host, &["hpvmstart", "-P", "web"]);
        let told = format!("is smaller than it was: it was file/{} ", was << 20);
        assert!(said.contains(&told), "{said}");
        // Nor is half of it taken for the whole.
        let copy = at(&disk.with_file_name("half.img"));
        for of in [&["-b", &copy][..], &["--linked"]] {
            let clone = [&["hpvmclone", "-P", "web", "-N", "half"], of].concat();
            let said = refused(&host, &clone);
            assert!(said.contains(&told) && said.contains(&accepted(&disk)), "{said}");
        }
        let why = host.ok(&["hpvm", "why", "web"]);
        assert!(why.contains(&accepted(&disk)), "{why}");
        let flaws = host.ok(&["hpvmdevmgmt", "-r"]);
        assert!(flaws.contains(&accepted(&disk)), "{flaws}");
        // What is no start goes on.
        host.ok(&["hpvmmodify", "-P", "web", "-l", &format!("{is} MiB")]);
    };
    let set_length = |mib: u64| set_length(&disk, mib);
    runs_once(&host, "web");
    is_refused(4, 2);
    set_length(4);
    runs_once(&host, "web");
    is_refused(4, 3);
    accept();
    runs_once(&host, "web");

    // Grown while it is off, and while it runs.
    let grow = |size: &str| host.ok(&["hpvmdevmgmt", "-S", size, &disk.display().to_string()]);
    grow("8M");
    is_refused(8, 4);
    accept();
    host.ok(&["hpvmstart", "-P", "web"]);
    set_length(12);
    host.ok(&["hpvmmodify", "-P", "web", "-m", &at(&disk)]);
    stopped(&host, "web");
    is_refused(12, 8);
    // An image says itself how long it is.
    let image = at(&disk).replace(":file:", ":qcow2:");
    let mut make = Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2"]).arg(&disk).arg("16M");
    assert!(make.status().expect("qemu-img").success());
    host.ok(&["hpvmmodify", "-P", "web", "-m", &image]);
    runs_once(&host, "web");

    // Another disk in its place is another disk, and a copy that was made over a longer one is as it was made.
    let (other, copy) = (host.disk("other.img", 1 << 20), host.disk("copy.img", 2 << 20));
    host.ok(&["hpvmcreate", "-P", "first", "-r", "64M", "-a", &disk_on(&copy)]);
    runs_once(&host, "first");
    host.ok(&["hpvmmodify", "-P", "web", "-m", &at(&other)]);
    host.ok(&["hpvmdevmgmt", "-m", &format!("{}:attr:PRESERVE=YES", entry("gdev", &copy))]);
    host.ok(&["hpvmremove", "-P", "first", "-F", "--purge"]);
    host.ok(&["hpvmclone", "-P", "web", "-N", "copy", "-F", "-b", &at(&copy)]);
    runs_once(&host, "copy");
}

fn accepted(path: &Path) -> String {
    format!("{}:attr:IDENTIFIER=ACCEPT", entry("gdev", path))
}

fn set_length(path: &Path, mib: u64) {
    let file = fs::File::options().write(true).open(path);
    file.and_then(|file| file.set_len(mib << 20)).expect("another length");
}

fn runs_once(host: &VmHost, guest: &str) {
    host.ok(&["hpvmstart", "-P", guest]);
    stopped(host, guest);
}

fn stopped(host: &VmHost, guest: &str) {
    host.ok(&["hpvmstop", "-P", guest, "-F"]);
    host.wait_for_state(guest, "Off", Duration::from_secs(20));
}

/// A longer one is the same disk, and one on another file is another, though it has the same name and length.
fn a_loop_device_is_known_by_its_file() {
    let host = VmHost::new(Engine::Fake);
    let (file, other) = (host.disk("first.img", 1 << 20), host.disk("other.img", 2 << 20));
    let device = LoopDevice::of_its_own(&file);
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &device.disk()]);
    let runs_once = || {
        host.ok(&["hpvmstart", "-P", "web"]);
        host.ok(&["hpvmstop", "-P", "web", "-F"]);
        host.wait_for_state("web", "Off", Duration::from_secs(20));
    };
    runs_once();
    fs::File::options()
        .write(true)
        .open(&file)
        .and_then(|file| file.set_len(2 << 20))
        .expect("longer");
    device.grow();
    runs_once();
    device.exchange(&other);
    // Nor is it given to a guest that runs, or overwritten.
    let own = disk_on(&host.disk("own.img", 1 << 20)).replace("::", ":0,0,0:");
    host.ok(&["hpvmcreate", "-P", "runs", "-r", "64M", "-a", &own]);
    host.ok(&["hpvmstart", "-P", "runs"]);
    let comes = ["hpvmmodify", "-P", "runs", "-a", &device.disk()];
    let copied = device.disk().replace("::", ":0,0,0:");
    let copied = ["hpvmclone", "-P", "runs", "-N", "copy", "-b", &copied];
    let accept = format!("gdev:{}:attr:IDENTIFIER=ACCEPT", device.path().display());
    let told = "is another device than the one the guest was given";
    let said = refused(&host, &["hpvmstart", "-P", "web"]);
    assert!(said.contains(told), "{said}");
    let another = disk_on(&host.path("another.img")).replace("::", ":0,0,0:");
    for of in [&["-b", &another][..], &["--linked"]] {
        let clone = [&["hpvmclone", "-P", "web", "-N", "copy"], of].concat();
        let said = refused(&host, &clone);
        assert!(said.contains(told) && said.contains(&accept), "{said}");
    }
    for command in [&comes[..], &copied] {
        let said = host.run(command);
        assert_eq!(said.status.code(), Some(1), "{said}");
        let told: Vec<&str> = said.stderr.lines().filter(|line| line.contains(told)).collect();
        assert!(matches!(told[..], [line] if line.contains("ERROR")), "{said}");
    }
    let listed = host.ok(&["hpvmstatus", "-P", "runs", "-d"]);
    assert!(!listed.contains(&device.path().display().to_string()), "{listed}");
    host.ok(&["hpvmdevmgmt", "-m", &accept]);
    host.ok(&comes);
    host.ok(&["hpvmstop", "-P", "runs", "-h", "-F"]);
    runs_once();
}

fn what_a_device_is_known_by_is_written_down_anew() {
    let host = VmHost::new(Engine::Fake);
    let file = host.disk("disk.img", 1 << 20);
    let device = LoopDevice::on(&file, &[]);
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &device.disk()]);
    let known_by = format!("loop={}", file.display());
    let listed = || host.ok(&["hpvmdevmgmt", "-l", &entry("gdev", device.path())]);
    assert!(listed().contains(&known_by), "{}", listed());
    let forget =
        "UPDATE entry SET identifier = NULL, size_bytes = NULL WHERE identifier LIKE 'loop:%'";
    as_it_was_left(&host, forget);
    host.ok(&["hpvmdevmgmt", "-I"]);
    let kept = host.path("var/opt/hpvm/hpvm.db");
    let kept: String = rusqlite::Connection::open(kept)
        .and_then(|db| db.query_one("SELECT identifier FROM entry", [], |row| row.get(0)))
        .expect("one entry with an identifier");
    assert_eq!(kept, format!("loop:{}", file.display()));
}
