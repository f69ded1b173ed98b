//! Linked clones: their base stays as it is, and is there for as long as anybody may need it.

use std::fs;
use std::path::Path;
use std::process::Command;

use hpvm_testkit::vm_host::VmHost;

use super::{MIB, guest, on, registry, with_web};
use crate::Test;
use crate::layers::image_over;
use crate::shell::typed;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_linked_clone_keeps_its_base_as_it_is,
    a_linked_disk_is_not_shared,
    a_linked_disk_that_was_taken_away_comes_back,
    who_removes_a_base_is_told_of_its_linked_clones,
    a_clone_that_is_not_made_leaves_its_base_as_it_is,
    a_base_is_protected_by_removed_clones_too,
    a_base_is_not_purged_with_the_guest_it_was_made_for,
    what_is_kept_of_clones_can_be_purged_in_the_order_that_is_told,
    the_device_database_knows_what_clones_are_built_on,
    an_image_that_was_made_to_stand_alone_is_not_laid_over_its_base,
];

/// What the clone emptied the image no longer holds, and its base still has.
fn an_image_that_was_made_to_stand_alone_is_not_laid_over_its_base() {
    let host = with_web();
    let (image, whole) = (host.path("new.qcow2"), host.path("whole.qcow2"));
    let statement = on(&image, "qcow2");
    host.ok(&["hpvmclone", "-P", "web", "-N", "new", "--linked", "-b", &statement]);
    let converted =
        Command::new("qemu-img").args(["convert", "-O", "qcow2"]).args([&image, &whole]).status();
    assert!(converted.expect("qemu-img").success());
    fs::rename(&whole, &image).expect("in its place");
    let said = host.refused(&["hpvmstart", "-P", "new"]);
    let told = format!("'{}' says that nothing lies below it", image.display());
    assert!(said.contains(&told), "{said}");
    let screen = host.ok(&["hpvm", "why", "new"]);
    assert!(screen.contains(&told) && screen.contains("without --layer"), "{screen}");
    host.ok(&["hpvmmodify", "-P", "new", "-d", &statement]);
    host.ok(&["hpvmmodify", "-P", "new", "-a", &statement]);
    host.ok(&["hpvmstart", "-P", "new"]);
    host.ok(&["hpvmstart", "-P", "web"]);
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

/// With what it lies over; who forgets that is told what is missing, and not that the folder is the VM Host's.
fn a_linked_disk_that_was_taken_away_comes_back() {
    let host = with_web();
    host.ok(&["hpvmclone", "-P", "web", "-N", "new", "--linked"]);
    let disk = guest(&host, "new").storage.remove(0);
    let statement = on(Path::new(&disk.backing.path), "qcow2");
    host.ok(&["hpvmmodify", "-P", "new", "-d", &statement]);
    let bare = ["hpvmmodify", "-P", "new", "-a", &statement];
    let said = host.refused(&bare);
    assert!(said.contains("in the guest's own folder"), "{said}");
    assert!(said.contains("--layer STORAGE:LOCATION"), "{said}");
    let base = format!("file:{}", host.path("web.img").display());
    host.ok(&[&bare[..], &["--layer", &base]].concat());
    assert_eq!(guest(&host, "new").storage[0].layers, disk.layers);
    host.ok(&["hpvmstart", "-P", "new"]);
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
