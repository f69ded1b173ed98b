//! Roots on a real file system: several side by side, made at once by many, and not taken over from others.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::thread;

use hpvm_host::conf::Conf;
use hpvm_host::paths::RootError;
use hpvm_host::{Root, users};
use tempfile::TempDir;

/// A root that takes its run folder along when it goes.
struct Scratch {
    folder: TempDir,
    root: Root,
}

impl Scratch {
    fn new() -> Scratch {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Root::at(&folder.path().join("host")).expect("a root");
        Scratch { folder, root }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.root.run());
    }
}

#[test]
fn the_real_root_is_where_it_always_was() {
    let root = Root::at(Path::new("/")).expect("a root");
    assert_eq!(root.run(), Path::new("/run/hpvm"));
    assert_eq!(root.run_id(), "");
    assert_eq!(root.db(), Path::new("/var/opt/hpvm/hpvm.db"));
    assert_eq!(root.conf(), Path::new("/etc/opt/hpvm/hpvmconf"));
    assert_eq!(root.guest_link("g1"), Path::new("/var/opt/hpvm/guests/g1"));
    assert_eq!(root.run_dir(7), Path::new("/run/hpvm/7"));
}

#[test]
fn another_root_has_a_short_run_folder_linked_both_ways() {
    let scratch = Scratch::new();
    let root = &scratch.root;
    root.ensure().expect("made");
    let link = root.prefix().join("run/hpvm");
    assert_eq!(fs::read_link(&link).expect("a link"), root.run());
    assert_eq!(fs::read_link(root.run().join("root")).expect("a link"), root.prefix());
    assert!(root.run_dir(10_000).join("control").as_os_str().len() < 60);
    for folder in [root.uuids(), root.guests(), root.common(), root.run().to_owned()] {
        let mode = fs::metadata(&folder).expect("made").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "{}", folder.display());
    }
}

/// What one starts may not touch what another started.
#[test]
fn each_root_has_user_ids_of_its_own_as_long_as_its_run_folder_is_there() {
    if !users::is_root() {
        return;
    }
    let [one, other, old] = [Scratch::new(), Scratch::new(), Scratch::new()];
    let base = |scratch: &Scratch| {
        scratch.root.ensure().expect("made");
        scratch.root.uid_base()
    };
    let (first, second) = (base(&one).expect("a range"), base(&other).expect("a range"));
    assert!(first >= 2_000_000 && first.abs_diff(second) >= 1_000_000, "{first} {second}");
    assert_eq!(base(&one), Some(first), "it stays");
    let conf = |scratch: &Scratch| Conf::load(&scratch.root).expect("read").uid_base();
    assert_eq!(conf(&one).expect("an id"), first);
    // What runs in a folder that an earlier version made has the ids of `/`.
    fs::create_dir(old.root.run()).expect("a folder");
    symlink(old.root.prefix(), old.root.run().join("root")).expect("a link");
    assert_eq!(base(&old), None);
    assert_eq!(conf(&old).expect("an id"), 1_000_000);
    // A range that somebody has is nobody else's.
    let range = fs::read_link(one.root.run().join("uids")).expect("a link");
    fs::remove_dir_all(one.root.run()).expect("gone, as after a boot");
    let taken = tempfile::tempdir_in(one.root.run().parent().expect("/run")).expect("a folder");
    symlink(range, taken.path().join("uids")).expect("a link");
    let moved = base(&one).expect("a range");
    assert!(moved != first && moved != second, "{moved}");
}

#[test]
fn two_spellings_of_a_folder_are_one_root_before_and_after_it_is_made() {
    let scratch = Scratch::new();
    let alias = scratch.folder.path().join("alias");
    symlink(scratch.folder.path(), &alias).expect("a link");
    assert_eq!(Root::at(&alias.join("host")).expect("a root"), scratch.root);
    scratch.root.ensure().expect("made");
    assert_eq!(Root::at(&alias.join("./host")).expect("a root"), scratch.root);
}

#[test]
fn many_may_make_it_at_once() {
    let scratch = Scratch::new();
    thread::scope(|scope| {
        let attempts: Vec<_> = (0..8).map(|_| scope.spawn(|| scratch.root.ensure())).collect();
        for attempt in attempts {
            attempt.join().expect("no panic").expect("made");
        }
    });
}

#[test]
fn a_run_folder_of_another_root_or_user_is_refused() {
    let scratch = Scratch::new();
    let run = scratch.root.run().to_owned();
    fs::create_dir(&run).expect("a folder");
    symlink("/somewhere/else", run.join("root")).expect("a link");
    let error = scratch.root.ensure().expect_err("another root's");
    assert!(
        matches!(&error, RootError::Taken { other, .. } if other == Path::new("/somewhere/else"))
    );
    fs::remove_file(run.join("root")).expect("removed");
    if users::is_root() {
        chown(&run, Some(12345), None).expect("given away");
        let error = scratch.root.ensure().expect_err("another user's");
        assert!(matches!(error, RootError::Foreign { owner: 12345, .. }));
        assert_eq!(fs::metadata(&run).expect("there").uid(), 12345);
    }
}

/// Root sees what an ordinary user has running, and leaves it alone.
#[test]
fn a_vm_host_is_seen_whoever_runs_its_guests_and_changed_by_nobody_else() {
    if !users::is_root() {
        return;
    }
    const USER: u32 = 12345;
    let scratch = Scratch::new();
    scratch.root.ensure().expect("made");
    let prefix = scratch.root.prefix();
    let (link, theirs) = (prefix.join("run/hpvm"), scratch.folder.path().join("theirs"));
    fs::create_dir_all(theirs.join("7")).expect("a guest's folder");
    symlink(prefix, theirs.join("root")).expect("a link");
    fs::remove_file(&link).expect("removed");
    symlink(&theirs, &link).expect("a link");
    chown(&theirs, Some(USER), None).expect("given away");
    let ours = Root::at(prefix).expect("a root");
    assert_eq!(ours.run(), scratch.root.run(), "made by somebody else than the link");

    lchown(&link, Some(USER), None).expect("given away");
    let seen = Root::at(prefix).expect("a root");
    assert_eq!(seen.run(), theirs);
    let error = seen.ensure().expect_err("it is changed by whose it is");
    assert!(matches!(error, RootError::RunByAnother { owner: USER, .. }), "{error}");

    fs::remove_dir(theirs.join("7")).expect("removed");
    let idle = Root::at(prefix).expect("a root");
    idle.ensure().expect("no guest is in the way");
    assert_eq!(idle.run(), scratch.root.run());
}

#[test]
fn the_link_stays_the_truth_when_the_usual_place_changes() {
    let scratch = Scratch::new();
    scratch.root.ensure().expect("made");
    let moved = scratch.folder.path().join("r");
    fs::rename(scratch.root.run(), &moved).expect("moved");
    let link = scratch.root.prefix().join("run/hpvm");
    fs::remove_file(&link).expect("removed");
    symlink(&moved, &link).expect("a link");
    let again = Root::at(scratch.root.prefix()).expect("a root");
    assert_eq!(again.run(), moved);
    fs::remove_file(moved.join("root")).expect("removed");
    let astray = Root::at(scratch.root.prefix()).expect("a root");
    assert_eq!(
        astray.run(),
        scratch.root.run(),
        "a folder that does not lead back is not believed"
    );
}
