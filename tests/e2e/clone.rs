//! hpvmclone: new identities, disks kept, copied and linked; what is refused; what is left when it dies or has no room.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hpvm_host::lock::pause_for;
use hpvm_host::process::{PidFd, Signal};
use hpvm_model::GuestConfig;
use hpvm_registry::{Access, Outcome, Registry};
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::chance::{Met, Moments};
use crate::layers::image_over;
use crate::loop_device::{LoopDevice, Partition};
use crate::pool::image;
use crate::refusals::no_control_bytes;
use crate::shell::typed;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_clone_has_an_identity_of_its_own,
    a_disk_is_copied_with_its_holes,
    what_a03_50_wanted_beside_b_is_taken,
    what_cannot_be_copied_is_refused,
    what_is_protected_is_not_overwritten,
    what_a_removed_guest_had_is_not_overwritten,
    two_copies_are_two_files,
    two_copies_share_no_bytes,
    a_clone_that_starts_with_the_vm_host_is_told_of,
    nothing_is_copied_to_where_guests_may_have_nothing,
    a_device_that_guests_may_not_have_is_not_told_to_be_too_small,
    a_dry_run_makes_nothing,
    a_dry_run_shows_no_address_that_it_drew,
    a_linked_clone_keeps_its_base_as_it_is,
    a_linked_disk_is_not_shared,
    who_removes_a_base_is_told_of_its_linked_clones,
    a_clone_that_is_not_made_leaves_its_base_as_it_is,
    a_base_is_protected_by_removed_clones_too,
    a_base_is_not_purged_with_the_guest_it_was_made_for,
    what_is_kept_of_clones_can_be_purged_in_the_order_that_is_told,
    the_device_database_knows_what_clones_are_built_on,
    clones_of_real_guests_boot,
    a_copy_killed_at_any_moment_leaves_nothing,
    an_interrupted_copy_leaves_nothing,
    a_file_that_became_a_guests_meanwhile_is_not_replaced,
    no_room_for_a_copy_leaves_nothing,
];

const MIB: u64 = 1 << 20;

/// A VM Host with the guest `web`, off, whose disk has some data and many holes, and a dvd.
pub(crate) fn with_web() -> VmHost {
    let host = VmHost::new(Engine::Fake);
    fill(&host.disk("web.img", 64 * MIB), 8);
    let disk = on(&host.path("web.img"), "file");
    host.ok(&["hpvmcreate", "-P", "web", "-O", "linux", "-r", "512M", "-l", "site", "-a", &disk]);
    host.ok(&["hpvmmodify", "-P", "web", "-a", "dvd:avio_stor:0,1,1:null:/srv"]);
    host
}

/// So many pieces of 1 MiB, spread out.
pub(crate) fn fill(disk: &Path, pieces: u64) {
    let file = File::options().write(true).open(disk).expect("the disk");
    let length = file.metadata().expect("the disk").len();
    let mut bytes: Vec<u8> = (0..MIB).map(|n| (n * 31) as u8 | 1).collect();
    for piece in 0..pieces {
        bytes[..8].copy_from_slice(&(piece | 1 << 60).to_le_bytes());
        file.write_all_at(&bytes, piece * (length / pieces)).expect("data");
    }
    file.sync_all().expect("synced");
}

pub(crate) fn on(path: &Path, storage: &str) -> String {
    format!("disk:avio_stor:0,1,0:{storage}:{}", path.display())
}

#[track_caller]
fn guest(host: &VmHost, name: &str) -> GuestConfig {
    let found = registry(host).all().expect("the guests").into_iter();
    found.into_iter().find(|guest| guest.name.as_str() == name).expect("it exists")
}

fn registry(host: &VmHost) -> Registry {
    Registry::open(&host.path("var/opt/hpvm/hpvm.db"), Access::ReadOnly).expect("the registry")
}

/// Nothing of a clone is there, under whatever name, and nothing goes on.
#[track_caller]
pub(crate) fn nothing_is_left(host: &VmHost, folder: &Path) {
    let names = fs::read_dir(folder).expect("a folder").flatten();
    let left: Vec<PathBuf> = names
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains("copy.img"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(registry(host).all().expect("the guests").len(), 1);
    assert!(registry(host).unfinished().expect("the operations").is_empty());
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
}

fn a_clone_has_an_identity_of_its_own() {
    let host = with_web();
    let said = host.run(&["hpvmclone", "-P", "web", "-N", "new", "-c", "2", "--reason", "test"]);
    assert!(said.status.success(), "{said}");
    assert!(said.stderr.contains("is also configured in guest 'web' (0,1,0)"), "{said}");
    let (web, new) = (guest(&host, "web"), guest(&host, "new"));
    assert!(web.uuid != new.uuid && web.number != new.number);
    assert_ne!(web.serial_number, new.serial_number);
    assert_eq!((new.vcpus.get(), new.memory, &new.label), (2, web.memory, &web.label));
    assert_eq!(web.storage.len(), new.storage.len());
    for (theirs, ours) in web.storage.iter().zip(&new.storage) {
        assert_eq!((&theirs.backing, theirs.address), (&ours.backing, ours.address));
        assert_ne!(theirs.id, ours.id);
    }
    let variables = |name: &str| {
        fs::read(host.path("var/opt/hpvm/guests").join(name).join("nvram")).expect("variables")
    };
    assert_eq!(variables("web"), variables("new"));
    let last = registry(&host).operations(None, 1).expect("the operations").remove(0).operation;
    assert_eq!((last.outcome, last.reason.as_deref()), (Outcome::Done, Some("test")));
    assert_eq!(last.after.map(|after| after.name), Some(new.name));
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
}

/// Also over an empty file, and over a full one with -F.
fn a_disk_is_copied_with_its_holes() {
    let host = with_web();
    let copy = host.path("copy.img");
    for (n, content) in [None, Some(""), Some("full")].into_iter().enumerate() {
        let _ = fs::remove_file(&copy);
        if let Some(content) = content {
            fs::write(&copy, content).expect("a file");
        }
        let name = format!("new{n}");
        let mut line = vec!["hpvmclone", "-P", "web", "-N", &name];
        let statement = on(&copy, "file");
        line.extend(["-b", &statement]);
        if content == Some("full") {
            assert!(host.refused(&line).contains("exists and is not empty"));
            line.push("-F");
        }
        let done = host.run(&line);
        assert!(done.status.success(), "{done}");
        let named = format!("hpvmclone: the device at 0,1,0 is copied to {}\n", copy.display());
        let said = format!("{named}hpvmclone: Virtual storage cloned successfully.\n");
        assert_eq!(done.stderr, said);
        let blocks = |path: &Path| fs::metadata(path).expect("a file").blocks();
        assert_eq!(blocks(&copy), blocks(&host.path("web.img")), "holes are kept");
        assert_eq!(fs::read(&copy).unwrap(), fs::read(host.path("web.img")).unwrap());
        assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
        host.ok(&["hpvmremove", "-P", &name, "-F", "--purge"]);
    }
}

fn what_a03_50_wanted_beside_b_is_taken() {
    let host = with_web();
    let (old, new) = (on(&host.path("web.img"), "file"), on(&host.path("copy.img"), "file"));
    host.ok(&["hpvmclone", "-P", "web", "-N", "one", "-d", &old, "-a", &new, "-b", &new]);
    assert_eq!(guest(&host, "one").storage[0].to_string(), new);
    let elsewhere = format!("disk:scsi:0,2,0:file:{}", host.path("other.img").display());
    let copied = on(&host.path("other.img"), "file");
    host.ok(&["hpvmclone", "-P", "web", "-N", "two", "-a", &elsewhere, "-b", &copied]);
    let two: Vec<String> = guest(&host, "two").storage.iter().map(ToString::to_string).collect();
    assert_eq!(two, ["dvd:avio_stor:0,1,1:null:/srv", &elsewhere]);
}

fn a_clone_that_starts_with_the_vm_host_is_told_of() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web", "-B", "auto"]);
    let hint = "it starts with the VM Host, as its source does; `hpvmmodify -P new -B manual`";
    let said = host.run(&["hpvmclone", "-P", "web", "-N", "new"]);
    assert!(said.status.success() && said.stderr.contains(hint), "{said}");
    let said = host.run(&["hpvmclone", "-P", "web", "-N", "asked", "-B", "auto"]);
    assert!(said.status.success() && !said.stderr.contains("starts with"), "{said}");
}

fn what_cannot_be_copied_is_refused() {
    let host = with_web();
    let copy = on(&host.path("copy.img"), "file");
    let nowhere = on(&host.path("none/copy.img"), "file");
    let own = on(&host.path("web.img"), "file");
    let qcow2 = on(&host.path("copy.img"), "qcow2");
    let elsewhere = copy.replace("0,1,0", "0,5,0");
    let dvd = format!("dvd:avio_stor:0,1,1:file:{}", host.path("copy.img").display());
    for (words, reason) in [
        (vec!["-b", &nowhere], "there is no folder"),
        (vec!["-b", &own], "belongs to guest 'web'"),
        (vec!["-b", &own, "-F"], "belongs to guest 'web'"),
        (vec!["-b", &qcow2], "a copy keeps the format"),
        (vec!["-b", &elsewhere], "no device at 0,5,0"),
        (vec!["-b", &dvd], "no content that could be copied"),
        (vec!["-b", &copy, "-b", &copy], "named by -b twice"),
        (vec!["-b", &copy, "-m", &own], "-m and -b both name"),
        (vec!["-d", &own, "-d", &own], "both name 0,1,0; name it once"),
        (vec!["-d", &elsewhere], "`hpvmstatus -P web -d` lists its devices"),
        (vec!["-b", &copy, "--linked"], "has to be of storage type qcow2"),
        (vec!["--linked", "-d", "disk:avio_stor:0,1,0"], "no disk that could be linked"),
    ] {
        let mut line = vec!["hpvmclone", "-P", "web", "-N", "new"];
        line.extend(words);
        let outcome = host.run(&line);
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        assert!(outcome.stderr.contains(reason), "{reason}: {outcome}");
        assert!(!outcome.stderr.contains("-F has it overwritten"), "no way out: {outcome}");
        no_control_bytes(&outcome);
        nothing_is_left(&host, host.root());
    }
    assert!(host.refused(&["hpvmclone", "-P", "web", "-N", "web"]).contains("exists already"));
    assert!(
        host.refused(&["hpvmclone", "-P", "no", "-N", "new"]).contains("No Guest by that name")
    );
    for line in [
        &["hpvmclone", "-P", "web"][..],
        &["hpvmclone", "-P", "web", "-N", "new", "-b", "disk:avio_stor::file:/x"],
        &["hpvmclone", "-P", "web", "-N", "new", "-R", "64M"],
        &["hpvmclone", "-P", "web", "-N", ".."],
    ] {
        assert_eq!(host.run(line).status.code(), Some(2), "{line:?}");
    }
}

/// By whatever names, and whether or not it is there yet: told before anything is written.
fn what_is_protected_is_not_overwritten() {
    let host = with_web();
    let copy = host.path("copy.img");
    let mode = |bits| fs::set_permissions(&copy, fs::Permissions::from_mode(bits)).expect("ours");
    let statement = on(&copy, "file");
    let line = ["hpvmclone", "-P", "web", "-N", "new", "-b", &statement];
    for content in ["full", ""] {
        fs::write(&copy, content).expect("a file");
        mode(0o444);
        for how in ["--dry-run", "-F"] {
            let said = host.refused(&[&line[..], &[how]].concat());
            assert!(said.contains(&format!("`chmod u+w {}`", copy.display())), "{said}");
        }
        assert_eq!(fs::read_to_string(&copy).expect("a file"), content);
        mode(0o600);
    }
    host.ok(&[&line[..], &["-F"]].concat());
}

/// Until nobody can bring it back.
fn what_a_removed_guest_had_is_not_overwritten() {
    let host = with_web();
    let disk = host.disk("db.img", 8 << 20);
    let statement = on(&disk, "file");
    host.ok(&["hpvmcreate", "-P", "db", "-a", &statement]);
    host.ok(&["hpvmremove", "-P", "db", "-F"]);
    fs::write(&disk, "precious").expect("a file");
    let line = ["hpvmclone", "-P", "web", "-N", "new", "-b", &statement];
    for how in ["--dry-run", "-F"] {
        let said = host.refused(&[&line[..], &[how]].concat());
        assert!(said.contains("belongs to guest 'db' (0,1,0), which was removed"), "{said}");
        assert!(said.contains("`hpvmremove -p 2 --purge`"), "{said}");
    }
    assert_eq!(fs::read_to_string(&disk).expect("a file"), "precious");
    host.ok(&["hpvmremove", "-p", "2", "--purge", "-F"]);
    host.ok(&[&line[..], &["-F"]].concat());
}

fn two_copies_are_two_files() {
    let host = with_web();
    let second = |path: &Path| format!("disk:avio_stor:0,2,0:file:{}", path.display());
    host.ok(&["hpvmmodify", "-P", "web", "-a", &second(&host.disk("data.img", MIB))]);
    let here = host.path("here");
    fs::create_dir(&here).expect("a folder");
    std::os::unix::fs::symlink("here", host.path("way")).expect("a link");
    let copies = [on(&here.join("copy.img"), "file"), second(&host.path("way/copy.img"))];
    let line = ["hpvmclone", "-P", "web", "-N", "new", "-b", &copies[0], "-b", &copies[1]];
    let is_refused = |line: &[&str]| {
        let refusal = host.refused(line);
        let words =
            format!("is the same file as '{}', which gets", here.join("copy.img").display());
        assert!(refusal.contains(&words), "{refusal}");
        assert_eq!(refusal.matches("ERROR").count(), 1, "{refusal}");
    };
    is_refused(&line);
    is_refused(&[&line[..], &["-F"]].concat());
    nothing_is_left(&host, &here);
    fs::write(here.join("copy.img"), "").expect("a file");
    is_refused(&line);
}

/// Nor do they by way of a loop device or a partition, in whichever order they are named.
fn two_copies_share_no_bytes() {
    let host = with_web();
    let second =
        |path: &Path, storage| format!("disk:avio_stor:0,2,0:{storage}:{}", path.display());
    host.ok(&["hpvmmodify", "-P", "web", "-a", &second(&host.disk("data.img", MIB), "file")]);
    let file = host.disk("target.img", 80 * MIB);
    fill(&file, 3);
    let content = fs::read(&file).expect("the target");
    let one = LoopDevice::on(&file, &[]);
    let other = LoopDevice::on(&file, &[]);
    let over = LoopDevice::on(other.path(), &[]);
    let part = Partition::of(&one, host.path("part"));
    let targets = [
        (file.as_path(), "file"),
        (one.path(), "disk"),
        (other.path(), "disk"),
        (over.path(), "disk"),
        (part.path(), "disk"),
    ];
    for (first, its_storage) in targets {
        for (again, storage) in targets.iter().filter(|(path, _)| *path != first) {
            let copies = [on(first, its_storage), second(again, storage)];
            let line =
                ["hpvmclone", "-P", "web", "-N", "new", "-b", &copies[0], "-b", &copies[1], "-F"];
            let refusal = host.refused(&line);
            let words = format!("shares bytes with '{}', which gets the copy", first.display());
            assert!(refusal.contains(&words), "{refusal}");
            assert_eq!(refusal.matches("ERROR").count(), 1, "{refusal}");
        }
    }
    assert!(fs::read(&file).expect("the target") == content, "it was written");
}

/// What is restricted gets no copy, by whatever way it is reached, although nothing is there yet.
fn nothing_is_copied_to_where_guests_may_have_nothing() {
    let host = with_web();
    host.ok(&["hpvmmodify", "-P", "web", "-d", "dvd:avio_stor:0,1,1"]);
    fs::create_dir(host.path("kept")).expect("a folder");
    std::os::unix::fs::symlink("kept", host.path("way")).expect("a link");
    host.ok(&["hpvmdevmgmt", "-a", &format!("rdev:{}", host.path("kept").display())]);
    let copy = on(&host.path("way/copy.img"), "file");
    let linked = on(&host.path("kept/copy.img"), "qcow2");
    for more in [&["-b", &copy][..], &["-b", &copy, "-F"], &["-b", &linked, "--linked"]] {
        let line = [&["hpvmclone", "-P", "web", "-N", "new"][..], more].concat();
        let outcome = host.run(&line);
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        assert!(outcome.stderr.contains("kept restricts what lies below it"), "{outcome}");
        nothing_is_left(&host, host.root());
    }
}

/// Who made it larger would be refused still.
fn a_device_that_guests_may_not_have_is_not_told_to_be_too_small() {
    let host = with_web();
    host.ok(&["hpvmmodify", "-P", "web", "-d", "dvd:avio_stor:0,1,1"]);
    let device = LoopDevice::on(&host.disk("behind.img", MIB), &[]);
    let copy = on(device.path(), "disk");
    let line = ["hpvmclone", "-P", "web", "-N", "new", "-F", "-b", &copy];
    let too_small = "has 1048576 bytes, and";
    let said = host.refused(&line);
    assert!(said.contains(too_small), "{said}");
    host.ok(&["hpvmdevmgmt", "-a", &format!("rdev:{}", device.path().display())]);
    let said = host.refused(&line);
    assert!(said.contains("restrict") && !said.contains(too_small), "{said}");
    nothing_is_left(&host, host.root());
}

fn a_dry_run_makes_nothing() {
    let host = with_web();
    let copy = on(&host.path("copy.img"), "file");
    let shown = host.ok(&["hpvmclone", "-P", "web", "-N", "new", "-b", &copy, "-s"]);
    assert!(shown.contains(&copy), "{shown}");
    nothing_is_left(&host, host.root());
}

/// The clone would get another.
fn a_dry_run_shows_no_address_that_it_drew() {
    let host = with_web();
    host.ok(&["hpvmmodify", "-P", "web", "-a", "network:avio_lan:0,6:vswitch:localnet"]);
    let clone = ["hpvmclone", "-P", "web", "-N", "new"];
    let shown = host.ok(&[&clone[..], &["--dry-run"]].concat());
    host.ok(&clone);
    let drawn = guest(&host, "new").nics.remove(0).without_mac();
    assert!(shown.contains(&format!(" {drawn} ")), "{shown}");
}

/// Its image lies in the guest's own folder, where no other guest gets anything.
fn a_linked_disk_is_not_shared() {
    let host = with_web();
    host.ok(&["hpvmclone", "-P", "web", "-N", "new", "--linked"]);
    let clone = ["hpvmclone", "-P", "new", "-N", "third"];
    for more in [&["--dry-run"][..], &[]] {
        let said = host.refused(&[&clone[..], more].concat());
        for told in ["is that guest's alone", "--linked", "-b disk:avio_stor:0,1,0:qcow2:/PATH"] {
            assert!(said.contains(told), "{said}");
        }
        assert!(!said.contains("WARNING"), "{said}");
        assert_eq!(registry(&host).all().expect("the guests").len(), 2, "none is made");
    }
    let copy = on(&host.path("copy.qcow2"), "qcow2");
    for (name, way) in
        [("a", &["--linked"][..]), ("b", &["-b", &copy]), ("c", &["-d", "disk:avio_stor:0,1,0"])]
    {
        host.ok(&[&["hpvmclone", "-P", "new", "-N", name], way].concat());
        host.ok(&["hpvmstart", "-P", name]);
        host.ok(&["hpvmstop", "-P", name, "-F"]);
    }
}

/// What would follow from it is told as such, and what does not follow is not told.
fn a_clone_that_is_not_made_leaves_its_base_as_it_is() {
    let host = with_web();
    let taken = host.path("taken.qcow2");
    fs::write(&taken, "something").expect("a file");
    let clone = ["hpvmclone", "-P", "web", "-N", "new", "--linked"];
    let copy = on(&taken, "qcow2");
    let onto_taken = [&clone[..], &["-b", &copy]].concat();
    for line in [&onto_taken[..], &[&onto_taken[..], &["--dry-run"]].concat()] {
        let said = host.refused(line);
        assert!(said.contains("exists and is not empty"), "{said}");
        assert!(!said.contains("only read"), "{said}");
    }
    let said = host.run(&[&clone[..], &["--dry-run"]].concat());
    assert!(said.status.success(), "{said}");
    assert!(
        said.stderr.contains("web.img' would be only read from then on: 'web' could"),
        "{said}"
    );
    host.ok(&["hpvmstart", "-P", "web"]);
}

fn a_linked_clone_keeps_its_base_as_it_is() {
    let host = with_web();
    let said = host.run(&["hpvmclone", "-P", "web", "-N", "new", "--linked"]);
    assert!(said.status.success() && said.stderr.contains("only read from now on"), "{said}");
    let named = on(&host.path("named.qcow2"), "qcow2");
    host.ok(&["hpvmclone", "-P", "web", "-N", "second", "--linked", "-b", &named]);
    assert_eq!(guest(&host, "second").storage[0].to_string(), named);
    for name in ["new", "second"] {
        let device = &guest(&host, name).storage[0];
        assert_eq!(device.layers.len(), 1);
        assert_eq!(device.layers[0].path, host.path("web.img").to_string_lossy());
        let check = Command::new("qemu-img").args(["check", &device.backing.path]).output();
        assert!(check.expect("qemu-img").status.success(), "{}", device.backing.path);
        let same = Command::new("qemu-img")
            .args(["compare", "-F", "qcow2", "-f", "raw"])
            .args([&device.layers[0].path, &device.backing.path])
            .output();
        assert!(same.expect("qemu-img").status.success(), "{}", device.backing.path);
    }
    // Its own copies lie over what it lies over.
    host.ok(&["hpvmclone", "-P", "new", "-N", "third", "--linked"]);
    assert_eq!(guest(&host, "third").storage[0].layers.len(), 2);
    let report = host.refused(&["hpvmstart", "-P", "web"]);
    assert!(report.contains("is the base of the linked clone 'new' (0,1,0)"), "{report}");
    assert!(host.refused(&["hpvmstart", "-P", "new"]).contains("linked clone 'third'"));
    for name in ["second", "third"] {
        host.ok(&["hpvmstart", "-P", name]);
        host.ok(&["hpvmstop", "-P", name, "-F"]);
    }
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
    host.ok(&["hpvm", "doctor", "--rebuild", "-F"]);
    assert!(host.refused(&["hpvmstart", "-P", "web"]).contains("linked clone"));
}

/// Once, before anything is asked, and of no guest but the one that has the disk.
fn who_removes_a_base_is_told_of_its_linked_clones() {
    let host = with_web();
    for name in ["new", "second"] {
        host.ok(&["hpvmclone", "-P", "web", "-N", name, "--linked"]);
    }
    let base = host.path("web.img");
    let told = format!("must stay as it is: '{}' under 'new', 'second'", base.display());
    let remove = "hpvmremove -P web";
    for line in [format!("{remove} --dry-run"), format!("echo y | {remove}")] {
        let said = typed(&host, &line);
        assert!(said.status.success() && said.stderr.matches(&told).count() == 1, "{said}");
        assert!(said.stderr.starts_with("hpvmremove: WARNING (web): "), "{said}");
    }
    let said = host.run(&["hpvmremove", "-P", "second", "-F"]);
    assert!(said.status.success() && said.stderr.is_empty(), "{said}");
}

fn a_base_is_protected_by_removed_clones_too() {
    let host = with_web();
    host.ok(&["hpvmclone", "-P", "web", "-N", "new", "--linked"]);
    host.ok(&["hpvmremove", "-P", "new", "-F"]);
    let report = host.refused(&["hpvmstart", "-P", "web"]);
    assert!(report.contains("'new' (0,1,0), which was removed and is still kept, and"), "{report}");
    let longer = ["hpvmdevmgmt", "-S", "128M", &host.path("web.img").display().to_string()];
    let said = host.refused(&longer);
    assert!(said.contains("'new', which was removed and is still kept, builds on"), "{said}");
    host.ok(&["hpvm", "doctor", "--rebuild", "-F"]);
    let report = host.refused(&["hpvmstart", "-P", "web"]);
    assert!(report.contains("'new' (0,1,0), which was removed and is still kept, and"), "{report}");
    host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
    host.ok(&["hpvmstart", "-P", "web"]);
}

/// `a` has more images over one disk than `b` has over the other, and `b` lies over an image of `a`.
fn what_is_kept_of_clones_can_be_purged_in_the_order_that_is_told() {
    let host = with_web();
    let second = host.disk("second.img", MIB);
    let second = format!("disk:avio_stor:0,2,0:file:{}", second.display());
    host.ok(&["hpvmmodify", "-P", "web", "-a", &second]);
    host.ok(&["hpvmclone", "-P", "web", "-N", "a", "--linked"]);
    let (base, middle, top) =
        (host.path("web.img"), host.path("middle.qcow2"), host.path("top.qcow2"));
    image_over(&base, "raw", &middle);
    image_over(&middle, "qcow2", &top);
    let below = [format!("qcow2:{}", middle.display()), format!("file:{}", base.display())];
    let first = "disk:avio_stor:0,1,0";
    host.ok(&["hpvmmodify", "-P", "a", "-d", first]);
    let image = on(&top, "qcow2");
    let layers = ["--layer", &below[0], "--layer", &below[1]];
    host.ok(&[&["hpvmmodify", "-P", "a", "-a", &image][..], &layers].concat());
    host.ok(&["hpvmclone", "-P", "a", "-N", "b", "--linked", "-d", first]);
    host.ok(&["hpvmremove", "-P", "b", "-F"]);
    host.ok(&["hpvmremove", "-P", "a", "-F"]);
    host.refused(&["hpvmstart", "-P", "web"]);
    let told = host.run(&["hpvm", "why", "web"]).stdout;
    let purges = told.match_indices("hpvmremove -p ").map(|(place, _)| &told[place..]);
    let mut purges: Vec<Vec<&str>> =
        purges.map(|line| line.split([' ', '`', '\n']).take(4).collect()).collect();
    purges.dedup();
    assert_eq!(purges.len(), 2, "{told}");
    for purge in purges {
        host.ok(&[&purge[..], &["-F"]].concat());
    }
    host.ok(&["hpvmstart", "-P", "web"]);
}

/// An image in the folder of one guest, over which a disk of another lies, is there for as long as that guest may need it.
fn a_base_is_not_purged_with_the_guest_it_was_made_for() {
    let mut host = with_web();
    host.ok(&["hpvmclone", "-P", "web", "-N", "new", "--linked"]);
    host.ok(&["hpvmclone", "-P", "new", "-N", "third", "--linked"]);
    let base = guest(&host, "third").storage[0].layers[0].path.clone();
    let is_there = |host: &VmHost| {
        assert!(Path::new(&base).is_file(), "{base} is there");
        assert!(host.ok(&["hpvm", "undelete", "--list"]).contains("new"));
    };
    let purge = ["hpvmremove", "-P", "new", "-F", "--purge"];
    for more in [&["--dry-run"][..], &[]] {
        let said = host.refused(&[&purge[..], more].concat());
        assert!(said.contains("a disk of 'third' lies in its folder"), "{said}");
        assert_eq!(guest(&host, "new").name.as_str(), "new");
    }
    host.set("HPVMKEEPREMOVED", "0");
    host.ok(&["hpvmremove", "-P", "new", "-F"]);
    is_there(&host);
    host.set("HPVMKEEPREMOVED", "");
    let asking = ["hpvmremove", "-P", "new", "--purge"];
    for line in [&purge[..], &[&purge[..], &["--dry-run"]].concat(), &asking] {
        let said = host.refused(line);
        assert!(said.contains("a disk of 'third' lies in its folder"), "{said}");
        assert!(!said.contains("[n/y]"), "nobody is asked about what is refused anyway: {said}");
    }
    host.ok(&["hpvm", "autostart"]);
    is_there(&host);
    host.ok(&["hpvmstart", "-P", "third"]);
    host.ok(&["hpvmstop", "-P", "third", "-F"]);
    host.ok(&["hpvmremove", "-P", "third", "-F"]);
    is_there(&host);
    host.ok(&["hpvmremove", "-P", "third", "-F", "--purge"]);
    host.ok(&["hpvm", "autostart"]);
    assert!(!Path::new(&base).exists(), "nobody needs it");
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
}

fn the_device_database_knows_what_clones_are_built_on() {
    let host = with_web();
    let middle = host.path("middle.qcow2").display().to_string();
    let named = format!("disk:avio_stor:0,1,0:qcow2:{middle}");
    host.ok(&["hpvmclone", "-P", "web", "-N", "new", "--linked", "-b", &named]);
    host.ok(&["hpvmclone", "-P", "new", "-N", "third", "--linked"]);
    host.ok(&["hpvmremove", "-P", "web", "-F", "--purge"]);
    let (base, moved) = (host.path("web.img"), host.path("moved.img"));
    let restricted = host.refused(&["hpvmdevmgmt", "-a", &format!("rdev:{}", base.display())]);
    let user = format!("guest 'new' builds on '{}'", base.display());
    assert!(restricted.contains(&user) && restricted.contains("guest 'third'"), "{restricted}");
    let repair = || host.ok(&["hpvmdevmgmt", "-r"]);
    assert_eq!(repair(), "#!/bin/sh\n# nothing to repair\n");
    fs::rename(&base, &moved).expect("moved");
    let cure = format!("# if that is right: hpvmdevmgmt -n gdev:{}:NEW\n", base.display());
    assert_eq!(repair().matches(&cure).count(), repair().matches("if that is right").count());
    assert!(repair().contains(&cure), "{}", repair());
    fs::rename(&moved, &base).expect("moved back");
    host.ok(&["hpvmdevmgmt", "-a", &format!("gdev:{}", base.display())]);
    let said = host.refused(&["hpvmdevmgmt", "-d", &format!("gdev:{}", base.display())]);
    assert!(said.contains("has dependents") && said.contains(&user), "{said}");

    fs::hard_link(&base, &moved).expect("another name");
    host.ok(&["hpvmdevmgmt", "-n", &format!("gdev:{}:{}", base.display(), moved.display())]);
    fs::remove_file(&base).expect("the old name");
    for name in ["new", "third"] {
        let layers = guest(&host, name).storage.remove(0).layers;
        assert_eq!(layers.last().map(|layer| layer.path.as_str()), moved.to_str());
    }
    for running in [false, true] {
        if running {
            host.ok(&["hpvmstart", "-P", "third"]);
        }
        let said = host.refused(&["hpvmdevmgmt", "-S", "1G", &moved.display().to_string()]);
        assert!(said.contains("is only read, and stays as it is: guest 'new' builds"), "{said}");
    }
    assert!(host.ok(&["hpvmdevmgmt", "-l", &format!("gdev:{middle}")]).contains(":new,third:"));
    host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
    let said = host.refused(&["hpvmdevmgmt", "-S", "1G", &middle]);
    assert!(said.contains("is a qcow2 image (guest 'third' builds on"), "{said}");

    // Who may be brought back needs them too.
    host.ok(&["hpvmstop", "-P", "third", "-F"]);
    host.ok(&["hpvmremove", "-P", "third", "-F"]);
    let extend = |path: &str| host.refused(&["hpvmdevmgmt", "-S", "1G", path]);
    let kept = "guest 'third', which was removed and is still kept, builds on";
    let said = extend(&middle);
    assert!(said.contains(&format!("is a qcow2 image ({kept}")), "{said}");
    let moved = moved.display().to_string();
    let said = extend(&moved);
    assert!(said.contains(&format!("is only read, and stays as it is: {kept}")), "{said}");
    let purge = said.split('`').nth(1).expect("a command");
    assert!(typed(&host, &format!("{purge} -F")).status.success(), "{purge}");
    host.ok(&["hpvmdevmgmt", "-S", "1G", &moved]);
}

/// A copied and a linked one in turn, and the base is as it was.
fn clones_of_real_guests_boot() {
    let host = VmHost::new(Engine::Real);
    let disk = host.copy_of(&image("test-cloud"), "web.img");
    let before = fs::read(&disk).expect("the disk");
    host.ok(&["hpvmcreate", "-P", "web", "-O", "linux", "-r", "512M", "-a", &on(&disk, "file")]);
    let copy = on(&host.path("copy.img"), "file");
    host.ok(&["hpvmclone", "-P", "web", "-N", "copied", "-b", &copy]);
    host.ok(&["hpvmclone", "-P", "web", "-N", "linked", "--linked"]);
    for (number, name) in [(2, "copied"), (3, "linked")] {
        host.ok(&["hpvmstart", "-P", name]);
        let mut console = Console::attach(&host.run_dir(number));
        console.wait_for_shell();
        console.run("echo written > /dev/sda1; sync");
        let read = console.run("dd if=/dev/sda1 bs=7 count=1 2>/dev/null");
        assert_eq!(read, "written", "'{name}' writes its disk");
        host.ok(&["hpvmstop", "-P", name, "-F"]);
    }
    assert!(fs::read(&disk).expect("the disk") == before, "the base is untouched");
}

/// A copy that takes long enough to be met in its middle.
pub(crate) fn with_slow_copy() -> (VmHost, String) {
    let host = VmHost::new(Engine::Fake);
    fill(&host.disk("web.img", 512 * MIB), 512);
    host.ok(&["hpvmcreate", "-P", "web", "-a", &on(&host.path("web.img"), "file")]);
    let copy = on(&host.path("copy.img"), "file");
    (host, copy)
}

fn a_copy_killed_at_any_moment_leaves_nothing() {
    let (host, copy) = with_slow_copy();
    let mut moments = Moments::within(Duration::from_millis(400));
    while let Some(moment) = moments.next() {
        let mut child = host
            .command(&["hpvmclone", "-P", "web", "-N", "new", "-b", &copy])
            .spawn()
            .expect("it starts");
        // Each second moment counts from where the copy has begun, so that enough of them meet it.
        if moments.round().is_multiple_of(2) {
            wait_until(COPYING, "the copy begins", || is_copying(&host));
        }
        pause_for(moment);
        let has_begun = is_copying(&host);
        child.kill().expect("our own child");
        moments.was(match child.wait().expect("our own child").success() {
            true => Met::AfterItsEnd,
            false if has_begun => Met::AtWork,
            false => Met::BeforeItsWork,
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

/// Until a copy has begun.
pub(crate) const COPYING: Duration = Duration::from_secs(10);

/// Whether the copy is begun, or done.
pub(crate) fn is_copying(host: &VmHost) -> bool {
    let mut names = fs::read_dir(host.root()).unwrap().flatten().map(|entry| entry.file_name());
    names.any(|name| name.to_string_lossy().starts_with(".copy.img."))
        || host.path("copy.img").exists()
}

/// Gives a clone Ctrl-C once its copy has begun, and what it says to that. On a busy machine the copy may be there before the
/// signal: then it is tried again, after what `anew` does.
pub(crate) fn interrupted(
    host: &VmHost,
    copies: &[&str],
    answers_within: Duration,
    has_begun: impl Fn() -> bool,
    anew: impl Fn(),
) -> String {
    for _ in 0..10 {
        let mut command = host.command(&["hpvmclone", "-P", "web", "-N", "new"]);
        command.args(copies.iter().flat_map(|copy| ["-b", copy]));
        let child = command.stdin(Stdio::null()).spawn().expect("it starts");
        let number = i32::try_from(child.id()).expect("a number");
        let process = PidFd::open_number(number).expect("a pidfd").expect("it lives");
        wait_until(COPYING, "the copy begins", &has_begun);
        process.signal(Signal::INT).expect("a signal to our own child");
        assert!(process.wait_exit(answers_within).expect("waited"), "Ctrl-C is answered");
        let outcome = child.wait_with_output().expect("our own child");
        if guest_names(host) == ["web"] {
            let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
            assert_eq!(outcome.status.code(), Some(130), "{said}");
            return said;
        }
        host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
        anew();
    }
    panic!("none of ten was met in its middle");
}

fn an_interrupted_copy_leaves_nothing() {
    let (host, copy) = with_slow_copy();
    let anew = || fs::remove_file(host.path("copy.img")).expect("the copy");
    let said = interrupted(&host, &[&copy], Duration::from_secs(2), || is_copying(&host), anew);
    assert!(said.contains("interrupted; nothing was changed"), "{said}");
    nothing_is_left(&host, host.root());
}

/// A copy may be there before the file is a guest's: then it is tried again.
fn a_file_that_became_a_guests_meanwhile_is_not_replaced() {
    let (host, copy) = with_slow_copy();
    let path = host.path("copy.img");
    let copies = || fs::read_dir(host.root()).unwrap().flatten().map(|entry| entry.file_name());
    let is_copying = || copies().any(|name| name.to_string_lossy().starts_with(".copy.img."));
    for _ in 0..10 {
        fs::write(&path, "db's").expect("a file");
        let mut command = host.command(&["hpvmclone", "-P", "web", "-N", "new", "-b", &copy, "-F"]);
        let child = command.stdin(Stdio::null()).spawn().expect("it starts");
        wait_until(COPYING, "the copy begins", is_copying);
        host.run(&["hpvmcreate", "-P", "db", "-r", "64M", "-a", &copy]);
        host.run(&["hpvmstart", "-P", "db"]);
        let outcome = child.wait_with_output().expect("our own child");
        let said = String::from_utf8_lossy(&outcome.stderr);
        if !outcome.status.success() {
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

pub(crate) fn guest_names(host: &VmHost) -> Vec<String> {
    registry(host).all().expect("the guests").into_iter().map(|g| g.name.to_string()).collect()
}

fn no_room_for_a_copy_leaves_nothing() {
    let host = with_web();
    let small = host.path("small");
    fs::create_dir(&small).expect("a folder");
    let _mounted = Mounted::at(&small);
    let copy = on(&small.join("copy.img"), "file");
    let said = host.refused(&["hpvmclone", "-P", "web", "-N", "new", "-b", &copy]);
    assert!(said.contains("No space left"), "{said}");
    nothing_is_left(&host, &small);
}

/// A file system of 4 MiB, until dropped.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn at(folder: &Path) -> Mounted {
        let line = ["-t", "tmpfs", "-o", "size=4m", "none"];
        let status = Command::new("mount").args(line).arg(folder).status().expect("mount runs");
        assert!(status.success(), "{} can be mounted", folder.display());
        Mounted(folder.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}
