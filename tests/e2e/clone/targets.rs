//! What a copy may be written to: nothing that is another's, protected, restricted or another copy's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::{MIB, fill, nothing_is_left, on, with_web};
use crate::Test;
use crate::loop_device::{LoopDevice, Partition};

pub(crate) const TESTS: &[Test] = crate::tests![
    what_is_protected_is_not_overwritten,
    what_a_removed_guest_had_is_not_overwritten,
    a_disk_that_was_copied_to_its_place_is_still_its_guests,
    a_file_that_took_a_disks_number_is_nobodys,
    two_copies_are_two_files,
    two_copies_share_no_bytes,
    nothing_is_copied_to_where_guests_may_have_nothing,
    no_copy_is_a_file_among_devices,
    a_device_that_guests_may_not_have_is_not_told_to_be_too_small,
];

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

/// It has another number then, as all files of some file systems have after a boot.
fn a_disk_that_was_copied_to_its_place_is_still_its_guests() {
    let host = with_web();
    let disks = ["kept", "off"].map(|name| {
        let disk = host.disk(&format!("{name}.img"), 8 << 20);
        host.ok(&["hpvmcreate", "-P", name, "-a", &on(&disk, "file")]);
        fs::write(&disk, "precious").expect("a file");
        let copy = host.copy_of(&disk, "copied");
        fs::rename(copy, &disk).expect("it comes back");
        disk
    });
    host.ok(&["hpvmremove", "-P", "kept", "-F"]);
    let link = host.path("link.img");
    symlink(&disks[0], &link).expect("a link");
    for (path, whose) in [
        (&disks[0], "'kept' (0,1,0), which was removed and is still kept,"),
        (&link, "'kept' (0,1,0), which was removed and is still kept,"),
        (&disks[1], "'off' (0,1,0)"),
    ] {
        let said =
            host.refused(&["hpvmclone", "-P", "web", "-N", "new", "-F", "-b", &on(path, "file")]);
        assert!(
            said.contains(&format!("belongs to guest {whose} and is not overwritten")),
            "{said}"
        );
        let told = host.run(&["hpvmcreate", "-P", "other", "-s", "-a", &on(path, "file")]);
        let name = whose.split('\'').nth(1).expect("a name");
        assert!(told.stderr.contains(&format!("guest '{name}'")), "{told}");
    }
    for disk in &disks {
        assert_eq!(fs::read_to_string(disk).expect("a file"), "precious");
    }
}

/// The guest's own has another by now.
fn a_file_that_took_a_disks_number_is_nobodys() {
    let host = with_web();
    let disk = host.disk("off.img", 8 << 20);
    host.ok(&["hpvmcreate", "-P", "off", "-a", &on(&disk, "file")]);
    let numbered = host.path("numbered.img");
    fs::rename(&disk, &numbered).expect("a file with its number");
    let moved =
        host.refused(&["hpvmclone", "-P", "web", "-N", "new", "-F", "-b", &on(&numbered, "file")]);
    assert!(moved.contains("belongs to guest 'off'"), "it may be moved back: {moved}");
    let _its_own = host.disk("off.img", 8 << 20);
    host.ok(&["hpvmclone", "-P", "web", "-N", "new", "-F", "-b", &on(&numbered, "file")]);
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

/// A volume that is not there, say, of which somebody thinks it is: the copy would be in memory.
fn no_copy_is_a_file_among_devices() {
    let host = with_web();
    host.ok(&["hpvmmodify", "-P", "web", "-d", "dvd:avio_stor:0,1,1"]);
    std::os::unix::fs::symlink("/dev", host.path("way")).expect("a link");
    let name = format!("hpvm-test-{}", std::process::id());
    let (copy, linked) = (Path::new("/dev").join(&name), host.path("way").join(&name));
    let (onto, over) = (on(&copy, "file"), on(&linked, "qcow2"));
    for more in [&["-b", &onto][..], &["-b", &onto, "-F"], &["-b", &over, "--linked"]] {
        let line = [&["hpvmclone", "-P", "web", "-N", "new"][..], more].concat();
        let said = host.refused(&line);
        let is_left = fs::remove_file(&copy).is_ok();
        assert!(said.contains("would be a file among the nodes of devices"), "{said}");
        assert!(!is_left, "{line:?} made it");
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
