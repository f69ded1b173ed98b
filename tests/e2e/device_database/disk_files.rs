//! `hpvmdevmgmt -S`: a disk's file has the size that was written, and is made nowhere else than where it was said.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use hpvm_host::qcow2;
use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
use crate::layers::image_over;
use crate::refusals::refused;
use crate::shell::typed;
use crate::statements::disk_on;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_link_that_leads_nowhere_is_no_place_for_a_disk,
    a_disk_file_has_the_size_that_was_written,
    an_images_file_is_no_size_of_its_disk,
    of_many_sizes_at_once_the_largest_stays,
    a_disk_that_cannot_start_is_refused_with_the_size_that_can,
];

/// Neither the link nor what it was meant to lead to is made or replaced in silence.
fn a_link_that_leads_nowhere_is_no_place_for_a_disk() {
    let host = VmHost::new(Engine::Fake);
    let disk = disk_on(&host.disk("web.img", 1 << 20));
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &disk]);
    let link = host.path("link.img");
    symlink("nowhere.img", &link).expect("a link");
    let copy = disk_on(&link).replace("::", ":0,0,0:");
    let file = link.display().to_string();
    for line in [
        &["hpvmclone", "-P", "web", "-N", "copy", "-b", &copy][..],
        &["hpvmdevmgmt", "-S", "1M", &file],
    ] {
        let said = refused(&host, line);
        let to = host.path("nowhere.img");
        let told = format!(
            "'{file}' is a symbolic link to '{}', where nothing is; name that, or remove the link",
            to.display()
        );
        assert!(said.contains(&told), "{said}");
        assert!(link.is_symlink() && !to.exists(), "{line:?}");
    }
}

/// Settles 78: a disk of 1.5G has 1.5 GiB, the size made is told, and it is never made smaller.
fn a_disk_file_has_the_size_that_was_written() {
    let host = VmHost::new(Engine::Fake);
    let path = host.path("disk.img");
    it_is_made_as_long_as_was_written(&host, &path);
    it_takes_no_other_size(&host, &path);
    it_grows_where_it_may_be_written(&host, &path);
    its_name_is_what_stands_behind_the_size(&host, &path);
    its_room_is_taken_when_that_is_asked(&host, &path);
    it_is_made_nowhere_else(&host);
    what_a_guest_only_reads_stays(&host);
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).expect("the file").len()
}

fn mode(path: &Path, bits: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).expect("ours");
}

fn it_is_made_as_long_as_was_written(host: &VmHost, path: &Path) {
    let made = host.ok(&["hpvmdevmgmt", "-S", "1.5G", &path.display().to_string()]);
    assert_eq!(size(path), 1_610_612_736);
    assert!(made.contains("1610612736 bytes"), "{made}");
    assert_eq!(fs::metadata(path).expect("the file").permissions().mode() & 0o777, 0o600);
}

fn it_takes_no_other_size(host: &VmHost, path: &Path) {
    let shown = path.display().to_string();
    for junk in ["1.5", "2", "1.5GX", "-1G", "0G", "0.1G", "1G1M", ""] {
        let said = refused(host, &["hpvmdevmgmt", "-S", junk, &shown]);
        assert!(said.contains("Usage: hpvmdevmgmt"), "{junk:?}: {said}");
        assert_eq!(size(path), 1_610_612_736, "{junk:?}");
    }
    // These are sizes, and none for this disk.
    let said = host.refused(&["hpvmdevmgmt", "-S", "12345K", &shown]);
    assert!(said.contains("no multiple of 4096"), "{said}");
    let said = host.refused(&["hpvmdevmgmt", "-S", "1G", &shown]);
    assert!(said.contains("never made smaller"), "{said}");
    host.ok(&["hpvmdevmgmt", "-S", "1537M", &shown, "--dry-run"]);
    assert_eq!(size(path), 1_610_612_736);
}

fn it_grows_where_it_may_be_written(host: &VmHost, path: &Path) {
    let shown = path.display().to_string();
    host.ok(&["hpvmdevmgmt", "-S", "1537M", &shown]);
    assert_eq!(size(path), 1537 << 20);
    mode(path, 0o444);
    for dry in [&["--dry-run"][..], &[]] {
        let said = host.refused(&[&["hpvmdevmgmt", "-S", "1538M", &shown], dry].concat());
        assert!(said.contains(&format!("`chmod u+w {shown}`")), "{said}");
        assert_eq!(size(path), 1537 << 20);
    }
    mode(path, 0o600);
}

fn its_name_is_what_stands_behind_the_size(host: &VmHost, path: &Path) {
    let apart = ["hpvmdevmgmt", "-S", "1538M", "--preallocate", &path.display().to_string()];
    assert!(refused(host, &apart).contains("directly behind it: -S SIZE FILE"));
    fs::create_dir(host.path("disks")).expect("a folder");
    let mut from_there = host.command(&["hpvmdevmgmt", "-S", "1M", "--", "-web.img"]);
    let made = from_there.current_dir(host.path("disks")).status().expect("it runs");
    assert!(made.success() && host.path("disks/-web.img").is_file());
}

fn its_room_is_taken_when_that_is_asked(host: &VmHost, path: &Path) {
    let full = host.path("full.img");
    let shown = full.display().to_string();
    host.ok(&["hpvmdevmgmt", "-S", "1M", &shown, "--preallocate"]);
    let blocks = |path: &Path| fs::metadata(path).expect("the file").blocks() * 512;
    assert!(blocks(&full) >= 1 << 20, "the room is taken");
    assert!(blocks(path) < 1 << 20, "and without that it is not");
    let huge = host.path("huge.img");
    let all = ["hpvmdevmgmt", "-S", "8191P", &huge.display().to_string(), "--preallocate"];
    let said = refused(host, &all);
    assert!(said.contains("choose a smaller size") && !said.contains("os error"), "{said}");
    assert!(!huge.exists());
    let json = ["hpvmdevmgmt", "-S", "1M", &shown, "--json"];
    assert!(refused(host, &json).contains("exclude each other"));
}

fn it_is_made_nowhere_else(host: &VmHost) {
    assert!(refused(host, &["hpvmdevmgmt", "-S", "1M", "/dev/null"]).contains("no regular file"));
    let nowhere = host.path("none/disk.img").display().to_string();
    for dry in [&["--dry-run"][..], &[]] {
        let said = host.refused(&[&["hpvmdevmgmt", "-S", "1M", &nowhere], dry].concat());
        assert!(said.contains("there is no folder") && !said.contains("os error"), "{said}");
    }
    let said = refused(host, &["hpvmdevmgmt", "-S", "1M", "/dev/hpvm-test-disk"]);
    assert!(said.contains("among the nodes of devices"), "{said}");
    let two_lines = host.path("new\nline.img").display().to_string();
    let said = refused(host, &["hpvmdevmgmt", "-S", "1M", &two_lines]);
    assert!(said.contains("no statement could name"), "{said}");
    let said = refused(host, &["hpvmdevmgmt", "-a", "gdev:/dev/null"]);
    assert!(said.contains("a character device, which is nothing"), "{said}");
    let (link, absent) = (host.path("link.img"), host.path("absent.img"));
    symlink(&absent, &link).expect("a link");
    let said = host.refused(&["hpvmdevmgmt", "-S", "1M", &link.display().to_string()]);
    assert!(said.contains(&format!("is a symbolic link to '{}'", absent.display())), "{said}");
    assert!(!absent.exists());
}

/// An image of a dvd is as long as it is; that is no reason to refuse what changes nothing.
fn what_a_guest_only_reads_stays(host: &VmHost) {
    let image = host.disk("cd.iso", 1 << 20).display().to_string();
    host.ok(&["hpvmcreate", "-P", "web", "-a", &format!("dvd:scsi::file:{image}")]);
    host.ok(&["hpvmdevmgmt", "-S", "1M", &image]);
    let said = host.refused(&["hpvmdevmgmt", "-S", "2M", &image]);
    assert!(said.contains("is only read, and stays as it is: guest 'web' uses"), "{said}");
}

/// Its disk would be as large as before, and whoever asked would not know.
fn an_images_file_is_no_size_of_its_disk() {
    let host = VmHost::new(Engine::Fake);
    let image = |name: &str| {
        let path = host.path(name);
        let empty = File::create(&path).expect("a file");
        qcow2::write_empty(&empty, 8 << 20).expect("an image");
        path
    };
    let disk_size =
        |path: &Path| qcow2::disk_size(&File::open(path).expect("an image")).expect("it is read");
    let refused = |path: &Path| {
        let (before, shown) = (size(path), path.display().to_string());
        let line = ["hpvmdevmgmt", "-S", "16M", &shown];
        let said = host.refused(&line);
        assert_eq!(host.refused(&[&line[..], &["--dry-run"]].concat()), said);
        assert_eq!(size(path), before);
        said
    };
    let extended = |path: &Path, insisting: &[&str]| {
        let shown = path.display().to_string();
        host.ok(&[&["hpvmdevmgmt", "-S", "16M", &shown][..], insisting].concat());
        assert_eq!(size(path), 16 << 20);
    };
    let larger_as_told = |path: &Path, said: &str| {
        let told = said.split('`').nth(1).expect("a command");
        assert!(typed(&host, told).status.success(), "{told}");
        assert_eq!(disk_size(path), Some(16 << 20));
    };

    let own = image("own.qcow2");
    let on_own = format!("disk:avio_stor::qcow2:{}", own.display());
    host.ok(&["hpvmcreate", "-P", "web", "-a", &on_own]);
    assert!(refused(&own).contains("is a qcow2 image (guest 'web' uses "));
    host.ok(&["hpvmclone", "-P", "web", "-N", "over", "--linked"]);
    let said = refused(&own);
    assert!(said.contains("is a qcow2 image (guest 'over' builds on "), "{said}");
    assert!(said.contains("only read") && !said.contains("qemu-img"), "{said}");
    host.ok(&["hpvmremove", "-P", "over", "-F", "--purge"]);
    host.ok(&["hpvmremove", "-P", "web", "-F"]);
    let said = refused(&own);
    assert!(said.contains("guest 'web', which was removed and is still kept, uses "), "{said}");
    larger_as_told(&own, &said);

    let nobodys = image("nobodys.qcow2");
    let said = refused(&nobodys);
    assert!(said.contains("begins as a qcow2 image does") && said.contains("--raw"), "{said}");
    larger_as_told(&nobodys, &said);
    extended(&nobodys, &["--raw"]);

    // Opening it would open what it names.
    let naming = host.path("naming.qcow2");
    image_over(&own, "qcow2", &naming);
    let said = refused(&naming);
    assert!(said.contains("none that a guest could have by itself, "), "{said}");
    assert!(!said.contains("qemu-img") && said.contains("--raw"), "{said}");

    // A guest has written this into its raw disk.
    let raw = image("raw.img");
    host.ok(&["hpvmcreate", "-P", "db", "-a", &disk_on(&raw)]);
    extended(&raw, &[]);
}

fn of_many_sizes_at_once_the_largest_stays() {
    let host = VmHost::new(Engine::Fake);
    for round in 0..4 {
        let path = host.path(&format!("disk{round}.img"));
        let shown = path.display().to_string();
        if round % 2 == 0 {
            fs::write(&path, "").expect("a file");
        }
        let extend = |mib: u64| {
            let done = host.run(&["hpvmdevmgmt", "-S", &format!("{mib}M"), &shown]);
            (done.status.success(), mib << 20)
        };
        let outcomes: Vec<(bool, u64)> = std::thread::scope(|scope| {
            let all: Vec<_> = (1..=8).map(|mib| scope.spawn(move || extend(mib))).collect();
            all.into_iter().map(|one| one.join().expect("an outcome")).collect()
        });
        let made = outcomes.iter().filter(|(is_made, _)| *is_made).map(|(_, size)| *size);
        let length = fs::metadata(&path).expect("the file").len();
        assert_eq!(Some(length), made.max(), "{outcomes:?}");
    }
}

/// Whatever the file system makes of a file that begins with a hole, or with data: what is taken starts, and what is not does so
/// once it has the size that is told.
fn a_disk_that_cannot_start_is_refused_with_the_size_that_can() {
    let host = VmHost::new(Engine::Real);
    for (name, head, size) in [
        ("hole", 0, (10 << 20) + 512),
        ("data", 1, (10 << 20) + 512),
        ("short", 0, 700),
        ("even", 0, 10 << 20),
    ] {
        let path = host.disk(&format!("{name}.img"), size);
        let file = File::options().write(true).open(&path).expect("the file");
        file.write_all_at(&vec![7; head << 12], 0).expect("its head");
        let create = ["hpvmcreate", "-P", name, "-r", "64M", "-a", &disk_on(&path)];
        let made = host.run(&create);
        if !made.status.success() {
            let fits = size.next_multiple_of(4096);
            let told =
                format!("no whole number of blocks of its file system; extended to {fits} bytes");
            assert!(made.stderr.contains(&told), "{name}: {made}");
            let fits = format!("{}K", fits >> 10);
            host.ok(&["hpvmdevmgmt", "-S", &fits, &path.display().to_string()]);
            host.ok(&create);
        }
        host.ok(&["hpvmstart", "-P", name]);
        host.ok(&["hpvmstop", "-P", name, "-F"]);
    }
}
