//! A disk's file that another guest has too: a warning that names that guest while it is only configured, refused at start
//! and at hot-add while the other runs, however the file is reached. Images of dvds are shared freely.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
use crate::loop_device::{LoopDevice, Partition};
use crate::refusals::{State, refused};
use crate::statements::{disk_at, disk_on};

pub(crate) const TESTS: &[Test] = crate::tests![
    a_shared_disk_is_a_warning_naming_the_other,
    only_one_of_two_runs,
    a_disk_in_use_is_not_hot_added,
    a_disk_hot_added_is_in_use,
    a_disk_not_yet_let_go_is_in_use,
    a_path_that_leads_elsewhere_by_now_is_judged_anew,
    one_file_is_used_once_in_a_guest,
    bytes_are_used_once_in_a_guest,
    a_loop_device_on_a_guests_own_disk_is_not_hot_added,
    a_guest_that_has_bytes_twice_already_is_not_started,
    images_of_dvds_are_shared_freely,
    what_a_running_guest_writes_to_is_no_image,
    what_a_running_guest_only_reads_is_an_image_all_the_same,
    an_image_that_another_engine_has_is_left_alone,
];

const UP: Duration = Duration::from_secs(20);

/// A VM Host whose guest `first`, number 1, has `shared.img` as its disk.
fn with_first(engine: Engine) -> VmHost {
    let host = VmHost::new(engine);
    let disk = host.disk("shared.img", 1 << 20);
    host.ok(&["hpvmcreate", "-P", "first", "-r", "64M", "-a", &disk_on(&disk)]);
    host
}

fn dvd_on(path: &Path) -> String {
    format!("dvd:scsi::file:{}", path.display())
}

/// The ways to the file that `first` has: its own path, another spelling, a hard link, symbolic links to it and to its
/// folder, and the kernel's own.
fn ways(host: &VmHost) -> Vec<PathBuf> {
    let file = host.path("shared.img");
    fs::hard_link(&file, host.path("hard.img")).expect("a hard link");
    symlink(&file, host.path("soft.img")).expect("a link");
    symlink(host.path("soft.img"), host.path("softer.img")).expect("a link");
    fs::create_dir(host.path("in")).expect("a folder");
    symlink("..", host.path("in/out")).expect("a link");
    vec![
        file,
        host.path("in/../shared.img"),
        host.path("hard.img"),
        host.path("soft.img"),
        host.path("softer.img"),
        host.path("in/out/shared.img"),
        Path::new("/proc/self/root")
            .join(host.path("shared.img").strip_prefix("/").expect("rooted")),
    ]
}

#[track_caller]
fn start(host: &VmHost, name: &str) {
    host.ok(&["hpvmstart", "-P", name]);
    host.wait_for_state(name, "On (OS)", UP);
}

fn a_shared_disk_is_a_warning_naming_the_other() {
    let host = with_first(Engine::Fake);
    for (number, way) in ways(&host).into_iter().enumerate() {
        let name = format!("guest{number}");
        let spare = host.disk(&format!("spare{number}.img"), 1 << 20);
        let line = ["hpvmcreate", "-P", &name, "-r", "64M", "-a", &disk_on(&way)];
        let dry = host.run(&[&line[..], &["-s"]].concat());
        assert!(dry.status.success() && dry.stderr.contains("'first'"), "{dry}");
        let made = host.run(&line);
        assert!(made.status.success(), "{made}");
        let warned =
            made.stderr.lines().filter(|l| l.contains("WARNING") && l.contains("'first' (0,0,0)"));
        assert_eq!(warned.count(), 1, "{made}");
        // From here on the guest is out of the way of the others.
        let replace = disk_at("0,0,0", &spare);
        let outcome = host.run(&["hpvmmodify", "-P", &name, "-m", &replace]);
        assert!(outcome.status.success() && outcome.stderr.is_empty(), "{outcome}");
        let outcome = host.run(&["hpvmmodify", "-P", &name, "-a", &disk_on(&way)]);
        assert!(outcome.status.success() && outcome.stderr.contains("'first'"), "{outcome}");
        host.ok(&["hpvmremove", "-P", &name, "-F", "--purge"]);
    }
    // That it has several names is said of itself.
    fs::remove_file(host.path("hard.img")).expect("a name");
    let alone = host.run(&["hpvmmodify", "-P", "first", "-l", "alone"]);
    assert_eq!(alone.stderr, "", "nobody shares it any more");
}

fn only_one_of_two_runs() {
    let host = with_first(Engine::Fake);
    for (number, way) in ways(&host).into_iter().enumerate() {
        let name = format!("guest{number}");
        host.ok(&["hpvmcreate", "-P", &name, "-r", "64M", "-a", &disk_on(&way)]);
        start(&host, "first");
        let before = State::of(&host);
        for line in [&["hpvmstart", "-P", &name][..], &["hpvmstart", "-P", &name, "-F"]] {
            let said = host.refused(line);
            assert!(said.contains("in use by the running guest 'first'"), "{said}");
        }
        before.assert_unchanged(&host, "a start that was refused");
        let why = host.ok(&["hpvm", "why", &name]);
        assert!(why.contains("'first'") && !why.contains("hpvmstop"), "{why}");
        host.ok(&["hpvmstop", "-P", "first", "-F"]);
        start(&host, &name);
        let outcome = host.run(&["hpvmstart", "-P", "first"]);
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        assert!(outcome.stderr.contains(&format!("running guest '{name}'")), "{outcome}");
        host.ok(&["hpvmstop", "-P", &name, "-F"]);
        host.ok(&["hpvmremove", "-P", &name, "-F", "--purge"]);
    }
}

fn a_disk_in_use_is_not_hot_added() {
    let host = with_first(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "second", "-r", "64M"]);
    start(&host, "first");
    start(&host, "second");
    let before = State::of(&host);
    for way in ways(&host) {
        let statement = disk_on(&way);
        for line in [
            &["hpvmmodify", "-P", "second", "-a", &statement][..],
            &["hpvmmodify", "-P", "second", "-a", &statement, "-F"],
            &["hpvmmodify", "-P", "second", "-l", "new", "-a", &statement],
        ] {
            let said = refused(&host, line);
            assert!(said.contains("in use by the running guest 'first'"), "{said}");
            before.assert_unchanged(&host, &line.join(" "));
        }
    }
    let way = host.path("hard.img");
    let dry = host.run(&["hpvmmodify", "-P", "second", "-a", &disk_on(&way), "-s"]);
    assert_eq!(dry.status.code(), Some(1), "{dry}");
    assert!(dry.stdout.contains(" refused\n"), "{dry}");
    host.ok(&["hpvmstop", "-P", "first", "-F"]);
    host.ok(&["hpvmmodify", "-P", "second", "-a", &disk_on(&way)]);
    let machine = fs::read_to_string(host.path("var/opt/hpvm/guests/second/boot.record"));
    assert!(machine.expect("a boot record").contains("hard.img"), "it is in the running guest");
}

fn a_disk_hot_added_is_in_use() {
    let host = VmHost::new(Engine::Fake);
    let disk = host.disk("shared.img", 1 << 20);
    for name in ["first", "second"] {
        host.ok(&["hpvmcreate", "-P", name, "-r", "64M"]);
    }
    start(&host, "first");
    host.ok(&["hpvmmodify", "-P", "first", "-a", &disk_on(&disk)]);
    let outcome = host.run(&["hpvmmodify", "-P", "second", "-a", &disk_on(&disk)]);
    assert!(outcome.status.success() && outcome.stderr.contains("'first'"), "{outcome}");
    let outcome = host.run(&["hpvmstart", "-P", "second"]);
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    assert!(outcome.stderr.contains("in use by the running guest 'first'"), "{outcome}");
    // What the running guest let go is free at once.
    host.ok(&["hpvmmodify", "-P", "first", "-d", "disk:avio_stor:0,0,0", "-F"]);
    start(&host, "second");
}

/// What the running guest was asked to let go is in no configuration any more, and still in use.
fn a_disk_not_yet_let_go_is_in_use() {
    let mut host = VmHost::new(Engine::Fake);
    host.engine_behaves("delete=never");
    let disk = host.disk("shared.img", 1 << 20);
    for name in ["first", "second"] {
        host.ok(&["hpvmcreate", "-P", name, "-r", "64M", "-a", &disk_on(&disk)]);
    }
    start(&host, "first");
    let asked = host.run(&["hpvmmodify", "-P", "first", "-F", "-d", "disk:avio_stor:0,0,0"]);
    assert!(asked.status.success() && asked.stderr.contains("has not done so yet"), "{asked}");
    let outcome = host.run(&["hpvmstart", "-P", "second"]);
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    assert!(outcome.stderr.contains("in use by the running guest 'first'"), "{outcome}");
    host.ok(&["hpvmstop", "-P", "first", "-F"]);
    start(&host, "second");
}

/// The file is what counts, not the path as it was when the guest was configured.
fn a_path_that_leads_elsewhere_by_now_is_judged_anew() {
    let host = with_first(Engine::Fake);
    let own = host.disk("own.img", 1 << 20);
    let link = host.path("link.img");
    symlink(&own, &link).expect("a link");
    let made = host.run(&["hpvmcreate", "-P", "second", "-r", "64M", "-a", &disk_on(&link)]);
    assert!(made.status.success() && made.stderr.is_empty(), "{made}");
    start(&host, "first");
    fs::remove_file(&link).and_then(|()| symlink(host.path("shared.img"), &link)).expect("turned");
    let outcome = host.run(&["hpvmstart", "-P", "second"]);
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    assert!(outcome.stderr.contains("in use by the running guest 'first'"), "{outcome}");
    fs::remove_file(&link).and_then(|()| symlink(&own, &link)).expect("turned back");
    start(&host, "second");
}

fn one_file_is_used_once_in_a_guest() {
    let host = with_first(Engine::Fake);
    let ways = ways(&host);
    let before = State::of(&host);
    for way in &ways {
        let said = refused(&host, &["hpvmmodify", "-P", "first", "-a", &disk_on(way)]);
        assert!(said.contains("0,0,0"), "{said}");
        refused(&host, &["hpvmmodify", "-P", "first", "-a", &dvd_on(way)]);
        before.assert_unchanged(&host, &way.display().to_string());
    }
}

/// Whatever leads to them: loop devices on one file and on each other, the file itself, a part of it, a layer.
fn bytes_are_used_once_in_a_guest() {
    let host = with_first(Engine::Fake);
    let file = host.disk("file.img", 4 << 20);
    let one = LoopDevice::on(&file, &[]);
    let other = LoopDevice::on(&file, &[]);
    let over = LoopDevice::on(other.path(), &[]);
    let part = Partition::of(&one, host.path("part"));
    let on_part = format!("disk:avio_stor::disk:{}", part.path().display());
    let disks = [disk_on(&file), one.disk(), other.disk(), over.disk(), on_part];
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([&file, &host.path("over.qcow2")])
        .status();
    assert!(made.expect("qemu-img runs").success());
    let create = ["hpvmcreate", "-P", "new", "-r", "64M"];
    let before = State::of(&host);
    for disk in &disks {
        for again in disks.iter().filter(|again| *again != disk) {
            let said = refused(&host, &[&create[..], &["-a", disk, "-a", again]].concat());
            assert!(said.contains("shares bytes with"), "{said}");
        }
    }
    let image = refused(&host, &[&create[..], &["-a", &dvd_on(&file), "-a", &one.disk()]].concat());
    assert!(image.contains("shares bytes with"), "{image}");

    let linked = format!("disk:avio_stor::qcow2:{}", host.path("over.qcow2").display());
    let layer = format!("file:{}", file.display());
    let line = ["-a", &linked, "--layer", &layer, "-a", &over.disk()];
    let said = refused(&host, &[&create[..], &line].concat());
    assert!(said.contains("is built, is the guest's disk at 0,0,1 too, which would"), "{said}");
    before.assert_unchanged(&host, "commands that were refused");

    host.ok(&[&create[..], &["-a", &dvd_on(&file), "-a", &dvd_on(&file)]].concat());
    start(&host, "new");
}

fn a_loop_device_on_a_guests_own_disk_is_not_hot_added() {
    let host = with_first(Engine::Real);
    let attached = LoopDevice::on(&host.path("shared.img"), &[]);
    host.ok(&["hpvmstart", "-P", "first"]);
    let said = refused(&host, &["hpvmmodify", "-P", "first", "-a", &attached.disk()]);
    assert!(said.contains("shared.img', which backs 0,0,0 already"), "{said}");
    let elsewhere = format!("disk:avio_stor:0,1,0:disk:{}", attached.path().display());
    let own = disk_on(&host.path("shared.img")).replace("::", ":0,0,0:");
    let moved = ["hpvmmodify", "-P", "first", "-d", &own, "-a", &elsewhere];
    let said = refused(&host, &moved);
    assert!(said.contains("is the running guest's at 0,0,0 until it has left"), "{said}");
}

/// Another file came behind a device's name since it was configured.
fn a_guest_that_has_bytes_twice_already_is_not_started() {
    let host = with_first(Engine::Real);
    let attached = LoopDevice::of_its_own(&host.disk("own.img", 1 << 20));
    host.ok(&["hpvmmodify", "-P", "first", "-a", &attached.disk()]);
    attached.exchange(&host.path("shared.img"));
    let said = refused(&host, &["hpvmstart", "-P", "first"]);
    let told = format!("'{}' for 0,0,1 shares bytes with", attached.path().display());
    assert!(said.contains(&told), "{said}");
    let judged = host.run(&["hpvmstart", "-P", "first", "-s"]);
    assert!(judged.status.code() == Some(1) && format!("{judged}").contains(&told), "{judged}");
    let remove = format!("disk:avio_stor:0,0,1:disk:{}", attached.path().display());
    let why = host.ok(&["hpvm", "why", "first"]);
    assert!(why.contains(&format!("`hpvmmodify -P first -d {remove}`")), "{why}");
    host.ok(&["hpvmmodify", "-P", "first", "-d", &remove]);
    host.ok(&["hpvmstart", "-P", "first"]);
}

fn images_of_dvds_are_shared_freely() {
    let host = VmHost::new(Engine::Fake);
    let image = host.disk("install.iso", 1 << 20);
    let link = host.path("link.iso");
    for name in ["first", "second"] {
        let path = &image;
        let made = host.run(&["hpvmcreate", "-P", name, "-r", "64M", "-a", &dvd_on(path)]);
        assert!(made.status.success() && made.stderr.is_empty(), "{made}");
        start(&host, name);
    }
    host.ok(&["hpvmcreate", "-P", "fourth", "-r", "64M"]);
    start(&host, "fourth");
    let added = host.run(&["hpvmmodify", "-P", "fourth", "-a", &dvd_on(&image)]);
    assert!(added.status.success() && added.stderr.is_empty(), "{added}");
    // What another name may be is told, and keeps nobody from it.
    fs::hard_link(&image, &link).expect("a hard link");
    let made = host.run(&["hpvmcreate", "-P", "third", "-r", "64M", "-a", &dvd_on(&link)]);
    let is_that = |line: &str| line.contains("a file with 2 names (hard links)");
    assert!(made.status.success() && made.stderr.lines().all(is_that), "{made}");
    start(&host, "third");
}

/// Nor is what a running guest reads as an image another's disk.
fn what_a_running_guest_writes_to_is_no_image() {
    let host = with_first(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "runs", "-r", "64M"]);
    start(&host, "first");
    start(&host, "runs");
    let loop_device = LoopDevice::on(&host.path("shared.img"), &[]);
    for way in ways(&host) {
        let made = host.run(&["hpvmcreate", "-P", "reads", "-r", "64M", "-a", &dvd_on(&way)]);
        let warned = "in use by the running guest 'first' (0,0,0)";
        assert!(made.status.success() && made.stderr.contains(warned), "{made}");
        let before = State::of(&host);
        for line in [
            &["hpvmstart", "-P", "reads"][..],
            &["hpvmstart", "-P", "reads", "-s"],
            &["hpvmmodify", "-P", "runs", "-a", &dvd_on(&way)],
            &["hpvmmodify", "-P", "runs", "-a", &dvd_on(&way), "-s"],
        ] {
            let told = host.run(line);
            assert_eq!(told.status.code(), Some(1), "{told}");
            assert!(format!("{told}").contains(warned), "{told}");
            before.assert_unchanged(&host, &line.join(" "));
        }
        let why = host.ok(&["hpvm", "why", "reads"]);
        assert!(why.contains("wait until 'first' is stopped"), "{why}");
        host.ok(&["hpvmstop", "-P", "first", "-F"]);
        start(&host, "reads");
        for disk in [disk_on(&way), loop_device.disk()] {
            let told = refused(&host, &["hpvmmodify", "-P", "runs", "-a", &disk]);
            assert!(told.contains("in use by the running guest 'reads'"), "{told}");
        }
        let told = host.run(&["hpvmstart", "-P", "first"]);
        assert!(told.stderr.contains("in use by the running guest 'reads'"), "{told}");
        host.ok(&["hpvmstop", "-P", "reads", "-F"]);
        host.ok(&["hpvmremove", "-P", "reads", "-F", "--purge"]);
        start(&host, "first");
    }
}

/// A disk that may not be written is nobody's alone for those who read too.
fn what_a_running_guest_only_reads_is_an_image_all_the_same() {
    let host = with_first(Engine::Fake);
    let image = host.path("shared.img");
    host.ok(&["hpvmdevmgmt", "-m", &format!("gdev:{}:attr:READONLY=YES", image.display())]);
    start(&host, "first");
    let made = host.run(&["hpvmcreate", "-P", "reads", "-r", "64M", "-a", &dvd_on(&image)]);
    assert!(made.status.success() && made.stderr.is_empty(), "{made}");
    start(&host, "reads");
}

/// A guest of another VM Host has the image, in a real engine, which locks it.
fn an_image_that_another_engine_has_is_left_alone() {
    let owner = with_first(Engine::Real);
    let host = VmHost::new(Engine::Real);
    let statement = disk_on(&owner.path("shared.img"));
    host.ok(&["hpvmcreate", "-P", "second", "-r", "64M", "-a", &statement]);
    owner.ok(&["hpvmstart", "-P", "first"]);
    let before = (State::of(&owner), State::of(&host));
    let outcome = host.run(&["hpvmstart", "-P", "second"]);
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    let pid = owner.snapshot(1).expect("it runs").qemu.pid;
    let holder = format!("process {pid} (hpvm-1) has a lock on it");
    assert!(outcome.stderr.contains(&holder), "{holder} is told: {outcome}");
    before.1.assert_unchanged(&host, "a start that was refused");
    assert!(owner.qemu(1).is_some(), "the owner runs on");
    owner.ok(&["hpvmstop", "-P", "first", "-F"]);
    host.ok(&["hpvmstart", "-P", "second"]);
    host.ok(&["hpvmstop", "-P", "second", "-F"]);
}
