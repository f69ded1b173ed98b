//! What a killed or interrupted hpvmclone leaves, and what became of it before the next command comes: files that are others' by
//! now stay, and nobody is kept from starting by what is not his.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hpvm_host::lock::pause_for;
use hpvm_host::process::Signal;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::chance::{Met, Moments};
use crate::clone::slow::{COPYING, guest_names, interrupted, is_copying, with_slow_copy};
use crate::clone::{nothing_is_left, on, registry};
use crate::loop_device::LoopDevice;
use crate::mounted::Mounted;
use crate::silent_store::answered;
use crate::silent_store::commands::Hung;
use crate::started::Started;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_copy_outlives_the_clone_it_was_made_for,
    a_copy_that_another_guest_has_stays,
    a_copy_takes_no_place_that_another_guest_has,
    what_cannot_be_settled_keeps_only_its_own_guest,
    what_lies_beside_a_silent_store_keeps_only_its_own_guest,
    a_device_that_an_interrupted_copy_overwrote_is_told,
    devices_overwritten_before_a_later_copy_is_interrupted_are_told,
    a_device_overwritten_before_a_later_copy_fails_is_told,
    a_copy_over_another_killed_at_every_step_makes_a_whole_clone_or_none,
    a_copy_killed_at_any_moment_leaves_nothing,
    an_interrupted_copy_leaves_nothing,
];

const NOTHING: &str = "Nothing to complain of.\n";

/// The guest `web`, with a disk whose content tells a copy of it.
fn with_web() -> VmHost {
    let host = VmHost::new(Engine::Fake);
    fs::write(host.disk("web.img", 1 << 20), vec![7; 1 << 20]).expect("content");
    host.ok(&["hpvmcreate", "-P", "web", "-a", &on(&host.path("web.img"), "file")]);
    host
}

/// Kills a clone that copies to `copy` at a step.
fn killed_at(host: &mut VmHost, step: &str, copy: &Path) {
    killed_with(host, step, &on(copy, "file"));
}

fn killed_with(host: &mut VmHost, step: &str, copy: &str) {
    host.environment("HPVM_ABORT_AT", step);
    let killed = host.run(&["hpvmclone", "-P", "web", "-N", "new", "-F", "-b", copy]);
    host.without_environment("HPVM_ABORT_AT");
    assert_eq!(killed.status.code(), None, "{step} was not reached: {killed}");
}

fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path());
    names.filter(|path| path.extension().is_some_and(|end| end == "new")).collect()
}

#[track_caller]
fn is_settled(host: &VmHost, copy: &Path, content: u8) {
    assert_eq!(fs::read(copy).expect("it is there").first(), Some(&content));
    assert_eq!(unfinished(host.root()), Vec::<PathBuf>::new());
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
}

fn a_copy_killed_at_any_moment_leaves_nothing() {
    let (host, copy) = with_slow_copy();
    let mut moments = Moments::within(Duration::from_millis(400));
    while let Some(moment) = moments.next() {
        let clone = Started::of(&host, &["hpvmclone", "-P", "web", "-N", "new", "-b", &copy]);
        // Each second moment counts from where the copy has begun, so that enough of them meet it.
        if moments.round().is_multiple_of(2) {
            wait_until(COPYING, "the copy begins", || is_copying(&host));
        }
        pause_for(moment);
        let has_begun = is_copying(&host);
        clone.gets(Signal::KILL);
        moments.was(match clone.end() {
            (Some(0), _) => Met::AfterItsEnd,
            _ if has_begun => Met::AtWork,
            _ => Met::BeforeItsWork,
        });
        let doctor = host.run(&["hpvm", "doctor", "--repair"]);
        assert!(doctor.status.success(), "{moments}: {doctor}");
        if registry(&host).all().expect("the guests").len() == 2 {
            assert_eq!(
                fs::read(host.path("copy.img")).unwrap(),
                fs::read(host.path("web.img")).unwrap()
            );
            host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
            fs::remove_file(host.path("copy.img")).expect("the copy");
        }
        nothing_is_left(&host, host.root());
    }
}

fn an_interrupted_copy_leaves_nothing() {
    let (host, copy) = with_slow_copy();
    let anew = || fs::remove_file(host.path("copy.img")).expect("the copy");
    let said = interrupted(&host, &[&copy], Duration::from_secs(2), || is_copying(&host), anew);
    assert!(said.contains("interrupted; nothing was changed"), "{said}");
    nothing_is_left(&host, host.root());
}

fn a_copy_outlives_the_clone_it_was_made_for() {
    let mut host = with_web();
    let copy = host.path("copy.img");
    killed_at(&mut host, "clone.committed", &copy);
    host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    is_settled(&host, &copy, 7);
}

fn a_copy_that_another_guest_has_stays() {
    let mut host = with_web();
    let copy = host.path("copy.img");
    killed_at(&mut host, "clone.placed", &copy);
    host.ok(&["hpvmcreate", "-P", "other", "-a", &on(&copy, "file")]);
    host.ok(&["hpvmstart", "-P", "other"]);
    let doctor = host.run(&["hpvm", "doctor", "--repair"]);
    assert!(doctor.status.success(), "{doctor}");
    is_settled(&host, &copy, 7);
}

/// A file that a clone was to overwrite, and that is another guest's disk since.
fn a_copy_takes_no_place_that_another_guest_has() {
    let mut host = with_web();
    let copy = host.path("copy.img");
    fs::write(&copy, vec![9; 1 << 20]).expect("a disk");
    killed_at(&mut host, "clone.committed", &copy);
    let said = host.run(&["hpvmcreate", "-P", "other", "-a", &on(&copy, "file")]);
    assert!(said.status.success(), "{said}");
    assert!(host.refused(&["hpvmstart", "-P", "new"]).contains("guest 'other' has it by now"));
    let said = host.run(&["hpvmstart", "-P", "other"]);
    assert!(said.status.success() && said.stderr.contains("was interrupted"), "{said}");
    assert_eq!(fs::read(&copy).expect("a disk")[0], 9);
    host.ok(&["hpvmstop", "-P", "other", "-F"]);
    host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
    host.ok(&["hpvmstart", "-P", "other"]);
    is_settled(&host, &copy, 9);
}

fn what_cannot_be_settled_keeps_only_its_own_guest() {
    let mut host = with_web();
    let folder = host.path("copies");
    fs::create_dir(&folder).expect("a folder");
    let mounted = Mounted::tmpfs(&folder, 4 << 20);
    killed_at(&mut host, "clone.copied", &folder.join("copy.img"));
    let left = unfinished(&folder);
    assert_eq!(left.len(), 1, "{left:?}");
    host.ok(&["hpvmstart", "-P", "web", "-s"]);
    assert_eq!(unfinished(&folder), left, "a dry run changes nothing");
    mounted.remount("ro");
    let said = host.run(&["hpvmstart", "-P", "web"]);
    assert!(said.status.success() && said.stderr.contains("Read-only file system"), "{said}");
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    mounted.remount("rw");
    host.ok(&["hpvmstart", "-P", "web"]);
    assert_eq!(unfinished(&folder), Vec::<PathBuf>::new());
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
}

fn what_lies_beside_a_silent_store_keeps_only_its_own_guest() {
    let mut host = with_web();
    let folder = host.path("copies");
    fs::create_dir(&folder).expect("a folder");
    let copy = folder.join("copy.img");
    killed_at(&mut host, "clone.committed", &copy);
    let left = unfinished(&folder);
    assert_eq!(left.len(), 1, "{left:?}");
    let hung = Hung::over(folder);
    let silent = "has not answered for 2 s";
    for (command, status) in [
        (&["hpvmstart", "-P", "new"][..], 1),
        (&["hpvmstart", "-P", "web"], 0),
        (&["hpvm", "doctor", "--repair"], 1),
    ] {
        let said = answered(&host, command, status);
        assert!(said.stdout.contains(silent) || said.stderr.contains(silent), "{said}");
    }
    drop(hung);
    host.ok(&["hpvmstart", "-P", "new"]);
    is_settled(&host, &copy, 7);
}

/// A device has its name all the time, so that what was written stays: whoever gives the copy up hears of it.
fn a_device_that_an_interrupted_copy_overwrote_is_told() {
    let (host, _) = with_slow_copy();
    let behind = host.disk("behind.img", 512 << 20);
    let device = LoopDevice::on(&behind, &[]);
    let is_written = || fs::metadata(&behind).is_ok_and(|file| file.blocks() > 0);
    // Without blocks again, by which the next copy is seen to begin.
    let anew = || drop(host.disk("behind.img", 512 << 20));
    let copy = on(device.path(), "disk");
    // A device is written out when it is closed.
    let said = interrupted(&host, &[&copy], COPYING, is_written, anew);
    let left = format!("the content of '{}' is partly overwritten", device.path().display());
    assert!(said.contains("the clone was not made") && said.contains(&left), "{said}");
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
}

fn at(address: &str, storage: &str, path: &Path) -> String {
    format!("disk:avio_stor:{address}:{storage}:{}", path.display())
}

fn devices_overwritten_before_a_later_copy_is_interrupted_are_told() {
    let (host, slow) = with_slow_copy();
    let addresses = ["0,0,0", "0,0,1"];
    let devices = addresses.map(|address| {
        let disk = at(address, "file", &host.disk(&format!("{address}.img"), 1 << 20));
        host.ok(&["hpvmmodify", "-P", "web", "-a", &disk]);
        LoopDevice::on(&host.disk(&format!("behind-{address}.img"), 1 << 20), &[])
    });
    let [first, second] = [0, 1].map(|n| at(addresses[n], "disk", devices[n].path()));
    let anew = || fs::remove_file(host.path("copy.img")).expect("the copy");
    let copies = [&*first, &second, &slow];
    let said = interrupted(&host, &copies, COPYING, || is_copying(&host), anew);
    let [first, second] = devices.each_ref().map(|device| device.path().display());
    let left = format!("the content of '{first}', '{second}' is partly overwritten");
    assert!(said.contains("the clone was not made") && said.contains(&left), "{said}");
    assert!(!is_copying(&host), "nothing is left of the other copy");
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
}

fn a_device_overwritten_before_a_later_copy_fails_is_told() {
    let host = with_web();
    let disk = at("0,0,0", "file", &host.disk("first.img", 1 << 20));
    host.ok(&["hpvmmodify", "-P", "web", "-a", &disk]);
    let device = LoopDevice::on(&host.disk("behind.img", 1 << 20), &[]);
    let folder = host.path("full");
    fs::create_dir(&folder).expect("a folder");
    let _mounted = Mounted::tmpfs(&folder, 4 << 20);
    fs::write(folder.join("filler"), vec![1; 8 << 20]).expect_err("it is full");
    let copies = [at("0,0,0", "disk", device.path()), on(&folder.join("copy.img"), "file")];
    let line = ["hpvmclone", "-P", "web", "-N", "new", "-b", &copies[0], "-b", &copies[1]];
    let said = host.refused(&line);
    let left = format!("the content of '{}' is partly overwritten", device.path().display());
    assert!(said.contains("No space left on device") && said.contains(&left), "{said}");
    assert_eq!(guest_names(&host), ["web"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING);
}

/// What is there is overwritten when the clone is sure to be made, but for a device, which has one name.
fn a_copy_over_another_killed_at_every_step_makes_a_whole_clone_or_none() {
    let mut host = with_web();
    let device = LoopDevice::on(&host.disk("behind.img", 1 << 20), &[]);
    let file = host.disk("copy.img", 1 << 20);
    for (path, storage) in [(device.path(), "disk"), (&*file, "file")] {
        let holds = |content: u8| fs::read(path).expect("it is there") == vec![content; 1 << 20];
        for (step, is_made) in [
            ("clone.recorded", false),
            ("clone.copied", false),
            ("clone.folder", false),
            ("clone.nvram", false),
            ("clone.placed", true),
            ("clone.committed", true),
            ("clone.settled", true),
        ] {
            fs::write(path, vec![9; 1 << 20]).expect("another's content");
            killed_with(&mut host, step, &on(path, storage));
            let doctor = host.run(&["hpvm", "doctor", "--repair"]);
            assert!(doctor.status.success(), "{step}: {doctor}");
            assert_eq!(host.ok(&["hpvm", "doctor"]), NOTHING, "{step}");
            assert_eq!(unfinished(host.root()), Vec::<PathBuf>::new(), "{step}");
            let made = &["web", "new"][..if is_made { 2 } else { 1 }];
            assert_eq!(guest_names(&host), made, "{step}");
            if is_made {
                assert!(holds(7), "{step}: {} is the copy", path.display());
                host.ok(&["hpvmstart", "-P", "new"]);
                host.ok(&["hpvmstop", "-P", "new", "-F"]);
                host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
            } else {
                assert!(holds(9) || storage == "disk", "{step}: {} is as it was", path.display());
            }
        }
    }
}
