//! What lies under a loop device is restricted, in use and given away as it is without it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use hpvm_testkit::vm_host::{Engine, VmHost};

use super::{UP, assert_kept, with_kept_folder, with_running_guest};
use crate::Test;
use crate::loop_device::{LoopDevice, Partition};
use crate::mounted::{Mounted, make_file_system};
use crate::refusals::{State, refused};
use crate::statements::entry;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_loop_device_is_restricted_as_its_file_is,
    a_loop_device_on_the_hosts_own_files_is_the_hosts,
    a_folder_with_a_file_under_a_loop_device_is_in_use,
    a_loop_device_hides_nothing_that_the_host_uses,
    a_loop_device_hides_nothing_that_another_guest_has,
    what_a_loop_device_shows_of_a_disk_may_be_given_away_alone,
];

fn a_loop_device_is_restricted_as_its_file_is() {
    let (host, file) = with_kept_folder();
    with_running_guest(&host);
    let device = LoopDevice::on(&file, &[]);
    let why = format!("rdev:{} restricts what lies below it", host.path("kept").display());
    assert_kept(&host, &device.disk(), &why);
    let said = refused(&host, &["hpvmdevmgmt", "-a", &format!("gdev:{}", device.path().display())]);
    assert!(said.contains("no device for guests"), "{said}");
    // By another name of the file, which the kernel remembers.
    let link = host.path("link.img");
    symlink(&file, &link).expect("a link");
    assert_kept(&host, &LoopDevice::on(&link, &[]).disk(), &why);
    // A loop device on a loop device.
    let upper = LoopDevice::on(device.path(), &[]);
    assert_kept(&host, &upper.disk(), &why);
    drop(upper);
    // A loop device on a file beside it is like any other.
    let beside = LoopDevice::on(&host.disk("beside.img", 1 << 20), &[]);
    host.ok(&["hpvmcreate", "-P", "new", "-a", &beside.disk()]);
    host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);

    let allow = format!("{}:attr:ALLOW=GUEST", entry("rdev", &host.path("kept")));
    host.ok(&["hpvmdevmgmt", "-m", &allow, "--reason", "a test"]);
    host.ok(&["hpvmcreate", "-P", "new", "-r", "64M", "-a", &device.disk()]);
    host.ok(&["hpvmdevmgmt", "-d", &allow.replace("=GUEST", "")]);
    assert!(host.refused(&["hpvmstart", "-P", "new"]).contains("is restricted"));
}

fn a_loop_device_on_the_hosts_own_files_is_the_hosts() {
    let host = VmHost::new(Engine::Fake);
    with_running_guest(&host);
    let own = host.path("var/opt/hpvm");
    let database = LoopDevice::on(&own.join("hpvm.db"), &[]);
    let of_state = format!("{} is a folder of this VM Host itself", own.display());
    assert_kept(&host, &database.disk(), &of_state);
    for (device, why) in [
        (&database, &*of_state),
        (
            &LoopDevice::on(Path::new("/etc/passwd"), &["--read-only"]),
            "/etc is a folder of this VM Host itself",
        ),
    ] {
        let said =
            refused(&host, &["hpvmdevmgmt", "-a", &format!("gdev:{}", device.path().display())]);
        assert!(said.contains(why), "{said}");
    }
}

/// The refusal of a restriction lists who has a loop device on a file below the folder.
fn a_folder_with_a_file_under_a_loop_device_is_in_use() {
    let host = VmHost::new(Engine::Fake);
    fs::create_dir_all(host.path("kept/deep")).expect("a folder");
    let device = LoopDevice::on(&host.disk("kept/deep/disk.img", 1 << 20), &[]);
    host.ok(&["hpvmcreate", "-P", "web", "-a", &device.disk()]);
    for name in ["kept", "kept/deep", "kept/deep/disk.img"] {
        let said = refused(&host, &["hpvmdevmgmt", "-a", &entry("rdev", &host.path(name))]);
        assert!(
            said.contains(&format!("guest 'web' uses '{}'", device.path().display())),
            "{name}: {said}"
        );
    }
    fs::create_dir(host.path("other")).expect("a folder");
    host.ok(&["hpvmdevmgmt", "-a", &entry("rdev", &host.path("other"))]);
    host.ok(&["hpvmremove", "-P", "web", "-F", "--purge"]);
}

/// A disk with a partition, and what loop devices make of them.
fn a_loop_device_hides_nothing_that_the_host_uses() {
    let host = VmHost::new(Engine::Fake);
    with_running_guest(&host);
    let disk = LoopDevice::on(&host.disk("disk.img", 16 << 20), &[]);
    let part = Partition::of(&disk, host.path("part"));
    let once_more = LoopDevice::on(disk.path(), &[]);
    let part_once_more = Partition::of(&once_more, host.path("part-once-more"));
    let on_part = LoopDevice::on(part.path(), &[]);
    let twice = LoopDevice::on(on_part.path(), &[]);
    let elsewhere = LoopDevice::on(disk.path(), &["--offset", "1048576"]);
    let ways: Vec<String> = [
        disk.path(),
        part.path(),
        once_more.path(),
        part_once_more.path(),
        on_part.path(),
        twice.path(),
        elsewhere.path(),
    ]
    .map(|path| format!("disk:avio_stor::disk:{}", path.display()))
    .into();
    make_file_system(part.path());
    let at = host.path("mounted");
    let mounted = Mounted::device(part.path(), &at);
    let before = State::of(&host);
    for way in &ways {
        for line in [
            &["hpvmcreate", "-P", "new", "-a", way, "-F"][..],
            &["hpvmmodify", "-P", "runs", "-a", way, "-F"],
        ] {
            let said = refused(&host, line);
            let why = format!("is mounted at {}", at.display());
            assert!(said.contains("is in use by this VM Host") && said.contains(&why), "{said}");
        }
    }
    before.assert_unchanged(&host, "commands that were refused");
    drop(mounted);
    for way in &ways {
        host.ok(&["hpvmcreate", "-P", "new", "-r", "64M", "-a", way]);
        host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
    }
}

fn a_loop_device_hides_nothing_that_another_guest_has() {
    let host = VmHost::new(Engine::Fake);
    let disk = LoopDevice::on(&host.disk("disk.img", 16 << 20), &[]);
    let part = Partition::of(&disk, host.path("part"));
    let once_more = LoopDevice::on(disk.path(), &[]);
    let part_once_more = Partition::of(&once_more, host.path("part-once-more"));
    let twice = LoopDevice::on(once_more.path(), &[]);
    let ways = [part.path(), once_more.path(), part_once_more.path(), twice.path()];
    for (number, way) in ways.iter().enumerate() {
        let statement = format!("disk:avio_stor::disk:{}", way.display());
        host.ok(&["hpvmcreate", "-P", &format!("g{number}"), "-r", "64M", "-a", &statement]);
    }
    for first in 0..ways.len() {
        let owner = format!("g{first}");
        host.ok(&["hpvmstart", "-P", &owner]);
        for other in (0..ways.len()).filter(|other| *other != first) {
            let said = host.refused(&["hpvmstart", "-P", &format!("g{other}")]);
            assert!(said.contains(&format!("in use by the running guest '{owner}'")), "{said}");
        }
        host.ok(&["hpvmstop", "-P", &owner, "-F"]);
        host.wait_for_state(&owner, "Off", UP);
    }
}

/// The administrator gives away some bytes of a disk, by a loop device on them, and not the disk.
fn what_a_loop_device_shows_of_a_disk_may_be_given_away_alone() {
    let host = VmHost::new(Engine::Fake);
    with_running_guest(&host);
    let disk = LoopDevice::on(&host.disk("disk.img", 4 << 20), &[]);
    let options = ["--offset", "1048576", "--sizelimit", "1048576"];
    let some = LoopDevice::on(disk.path(), &options);
    let beside = LoopDevice::on(disk.path(), &[]);
    for device in [&disk, &some] {
        host.ok(&["hpvmdevmgmt", "-a", &entry("rdev", device.path())]);
    }
    let allow = format!("{}:attr:ALLOW=GUEST", entry("rdev", some.path()));
    host.ok(&["hpvmdevmgmt", "-m", &allow, "--reason", "a test"]);
    for kept in [&disk, &beside] {
        assert_kept(&host, &kept.disk(), &disk.path().display().to_string());
    }
    host.ok(&["hpvmcreate", "-P", "new", "-r", "64M", "-a", &some.disk()]);
    host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
    // What nobody said of the disk, nobody said of the rest of it.
    host.ok(&["hpvmdevmgmt", "-d", &entry("rdev", disk.path())]);
    host.ok(&["hpvmdevmgmt", "-d", &format!("{}:attr:ALLOW", entry("rdev", some.path()))]);
    for way in [&disk, &some, &beside] {
        assert_kept(&host, &way.disk(), &some.path().display().to_string());
    }
}
