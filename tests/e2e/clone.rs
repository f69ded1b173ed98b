//! hpvmclone: new identities, disks copied; what is refused; what is left when there is no room. Linked disks, and what copies may
//! be written to, are in the modules below.

pub(crate) mod linked;
pub(crate) mod slow;
pub(crate) mod targets;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use hpvm_model::GuestConfig;
use hpvm_registry::{Access, Outcome, Registry};
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};

use crate::Test;
use crate::mounted::Mounted;
use crate::pool::image;
use crate::refusals::no_control_bytes;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_clone_has_an_identity_of_its_own,
    a_disk_is_copied_with_its_holes,
    what_a03_50_wanted_beside_b_is_taken,
    what_cannot_be_copied_is_refused,
    a_clone_that_starts_with_the_vm_host_is_told_of,
    a_dry_run_makes_nothing,
    a_dry_run_shows_no_address_that_it_drew,
    clones_of_real_guests_boot,
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

pub(crate) fn registry(host: &VmHost) -> Registry {
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

fn no_room_for_a_copy_leaves_nothing() {
    let host = with_web();
    let small = is_told_of_no_room(&host);
    nothing_is_left(&host, small.path());
}

/// Who clones `web` to a file system that is too small; gives that.
#[track_caller]
pub(crate) fn is_told_of_no_room(host: &VmHost) -> Mounted {
    let folder = host.path("small");
    fs::create_dir(&folder).expect("a folder");
    let small = Mounted::tmpfs(&folder, 4 * MIB);
    let copy = on(&folder.join("copy.img"), "file");
    let said = host.refused(&["hpvmclone", "-P", "web", "-N", "new", "-b", &copy]);
    assert!(said.contains("No space left"), "{said}");
    small
}
