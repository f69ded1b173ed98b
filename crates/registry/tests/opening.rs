//! Whatever is found in the registry's place, and wherever it lies, opening says what is wrong and what to do, at once, and
//! destroys nothing.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use common::{Place, add, files, guest, number, player, role};
use hpvm_registry::{Access, Registry, RegistryError};
use jiff::Timestamp;
use rusqlite::Connection;

const BOTH: [Access; 2] = [Access::ReadOnly, Access::ReadWrite];

/// The error of opening and, where that passes, of reading everything.
fn open_and_read(path: &Path, access: Access) -> Result<usize, RegistryError> {
    let registry = Registry::open(path, access)?;
    let listed = registry.list()?.len();
    assert_eq!(registry.all()?.len(), listed);
    Ok(listed)
}

fn assert_damaged(path: &Path, word: &str) {
    for access in BOTH {
        let error = open_and_read(path, access).unwrap_err();
        assert!(matches!(error, RegistryError::Damaged { .. }), "{access:?}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(word) && text.contains("hpvm doctor --rebuild"), "{text}");
        assert!(text.contains(&path.display().to_string()), "{text}");
    }
}

#[test]
fn a_missing_registry_reads_as_empty_and_is_made_by_the_first_change() {
    let place = Place::new();
    let path = place.folder.path().join("var/opt/hpvm.db");
    assert_eq!(open_and_read(&path, Access::ReadOnly).unwrap(), 0);
    let mut nothing = Registry::open(&path, Access::ReadOnly).unwrap();
    let tried = nothing.change().unwrap();
    assert!(tried.insert(&guest(1), &files(&guest(1))).is_err(), "a change that is tried only");
    drop(tried);
    assert!(!path.exists());
    assert_eq!(open_and_read(&path, Access::ReadWrite).unwrap(), 0);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn odd_paths_are_paths() {
    let place = Place::new();
    let path = place.folder.path().join("a b?mode=memory#c%41é");
    add(&mut Registry::open(&path, Access::ReadWrite).unwrap(), &guest(1));
    assert_eq!(open_and_read(&path, Access::ReadOnly).unwrap(), 1);
}

/// As an upgrade keeps one, which is a file with a journal.
#[test]
fn who_goes_back_to_a_copy_works_with_a_log_again() {
    let mode = |path: &Path| {
        let connection = Connection::open(path).unwrap();
        connection.pragma_query_value(None, "journal_mode", |row| row.get::<_, String>(0)).unwrap()
    };
    let place = Place::new();
    let kept = place.folder.path().join("kept.db");
    add(&mut Registry::open(&place.path(), Access::ReadWrite).unwrap(), &guest(1));
    let copied = Connection::open(place.path()).unwrap();
    copied.execute("VACUUM INTO ?1", [kept.to_str().unwrap()]).unwrap();
    assert_eq!(mode(&kept), "delete");
    add(&mut Registry::open(&kept, Access::ReadWrite).unwrap(), &guest(2));
    assert_eq!(mode(&kept), "wal");
    assert_eq!(open_and_read(&kept, Access::ReadOnly).unwrap(), 2);
}

#[test]
fn a_link_is_followed_to_where_the_log_is() {
    let place = Place::new();
    let (elsewhere, link) = (place.folder.path().join("elsewhere"), place.path());
    fs::create_dir(&elsewhere).unwrap();
    let target = elsewhere.join("real.db");
    add(&mut Registry::open(&target, Access::ReadWrite).unwrap(), &guest(1));
    symlink(&target, &link).unwrap();
    add(&mut Registry::open(&link, Access::ReadWrite).unwrap(), &guest(2));
    assert_eq!(open_and_read(&target, Access::ReadOnly).unwrap(), 2);
    fs::remove_file(&target).unwrap();
    let error = open_and_read(&link, Access::ReadWrite).unwrap_err();
    assert!(error.to_string().contains("only its log is left"), "{error}");
    fs::remove_file(elsewhere.join("real.db-wal")).unwrap();
    add(&mut Registry::open(&link, Access::ReadWrite).unwrap(), &guest(1));
    assert_eq!(open_and_read(&target, Access::ReadOnly).unwrap(), 1, "made where the link leads");
}

#[test]
fn what_is_no_registry_is_told_so_and_left_alone() {
    let place = Place::new();
    let path = place.path();
    let text = "This is no database, but it is long enough to be taken for one.\n".repeat(100);
    fs::write(&path, &text).unwrap();
    assert_damaged(&path, "not a database");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);

    fs::write(&path, "").unwrap();
    assert_damaged(&path, "empty");
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_damaged(&path, "folder");

    fs::remove_dir(&path).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE guest (name TEXT); PRAGMA user_version = 1").unwrap();
    drop(other);
    assert_damaged(&path, "another program's");
}

#[test]
fn a_pipe_in_its_place_holds_nobody_up() {
    let place = Place::new();
    assert!(Command::new("mkfifo").arg(place.path()).status().unwrap().success());
    assert_damaged(&place.path(), "no plain file");
}

#[test]
fn a_newer_version_is_left_to_the_newer_hpvm() {
    let place = Place::new();
    add(&mut place.open(), &guest(1));
    Connection::open(place.path()).unwrap().pragma_update(None, "user_version", 7).unwrap();
    for access in BOTH {
        let error = open_and_read(&place.path(), access).unwrap_err();
        assert!(matches!(error, RegistryError::Newer { found: 7, known: 4, .. }), "{error:?}");
        assert!(error.to_string().contains("version 7"), "{error}");
        assert!(error.to_string().contains("version 4"), "{error}");
    }
}

/// A registry with everything in the main file.
fn settled(guests: u32) -> (Place, Vec<u8>) {
    let place = Place::new();
    let mut registry = place.open();
    let change = registry.change().unwrap();
    for n in 1..=guests {
        change.insert(&guest(n), &files(&guest(n))).unwrap();
    }
    change.commit().unwrap();
    drop(registry);
    let plain = Connection::open(place.path()).unwrap();
    plain.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(plain);
    let content = fs::read(place.path()).unwrap();
    (place, content)
}

#[test]
fn a_cut_file_is_damaged_and_never_half_read() {
    let (place, content) = settled(100);
    let path = place.path();
    for cut in [1, 50, 99, 100, 511, 4096, 5000, content.len() / 2, content.len() - 4096] {
        fs::write(&path, &content[..cut]).unwrap();
        for access in BOTH {
            let error = open_and_read(&path, access).unwrap_err();
            assert!(matches!(error, RegistryError::Damaged { .. }), "cut at {cut}: {error:?}");
        }
    }
}

#[test]
fn a_stored_value_that_cannot_be_is_damage() {
    let (place, _) = settled(1);
    let other = Connection::open(place.path()).unwrap();
    other.execute_batch("UPDATE guest SET name = '../etc'").unwrap();
    drop(other);
    let error = open_and_read(&place.path(), Access::ReadOnly).unwrap_err();
    assert!(matches!(error, RegistryError::Damaged { .. }), "{error:?}");
}

#[test]
fn a_log_without_its_file_is_a_lost_registry_and_no_new_one() {
    let place = Place::new();
    add(&mut place.open(), &guest(1));
    fs::remove_file(place.path()).unwrap();
    assert_damaged(&place.path(), "only its log is left");
    assert!(!place.path().exists());
}

#[test]
fn who_waits_too_long_is_told_so() {
    let place = Place::new();
    let mut holder = place.open();
    let _change = holder.change().unwrap();
    let mut waiter = place.open();
    let began = Instant::now();
    let error = waiter.change().unwrap_err();
    assert!(matches!(error, RegistryError::Busy { .. }), "{error:?}");
    let waited = began.elapsed();
    assert!((10..30).contains(&waited.as_secs()), "{waited:?}");
    // Readers do not wait at all.
    let began = Instant::now();
    assert_eq!(open_and_read(&place.path(), Access::ReadOnly).unwrap(), 0);
    assert!(began.elapsed() < Duration::from_secs(5));
}

/// Plays another user; in the test's own process there is nothing to play. The role says what should happen.
#[test]
fn play() {
    let Some((role, path)) = role() else { return };
    let read = open_and_read(&path, Access::ReadOnly);
    let write = open_and_read(&path, Access::ReadWrite);
    match role.as_str() {
        "may read" => assert_eq!(read.unwrap(), 1),
        _ => assert!(matches!(read, Err(RegistryError::Permission { .. })), "{read:?}"),
    }
    assert!(matches!(write, Err(RegistryError::Permission { .. })), "{write:?}");
}

/// Runs the player as a user without rights: another one when the test is root, itself otherwise.
fn play_without_rights(role: &str, place: &Place) -> ExitStatus {
    let mut player = player("play", role, &place.path());
    if rustix::process::geteuid().is_root() {
        player.uid(65_534).gid(65_534).current_dir("/");
    }
    player.status().unwrap()
}

#[test]
fn rights_decide_who_reads_and_who_changes() {
    let place = Place::new();
    add(&mut place.open(), &guest(1));
    let set = |path: PathBuf, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let set_files = |mode| {
        for suffix in ["", "-wal", "-shm"] {
            set(place.folder.path().join(format!("hpvm.db{suffix}")), mode);
        }
    };
    set_files(0o444);
    set(place.folder.path().to_owned(), 0o555);
    assert!(play_without_rights("may read", &place).success());
    set_files(0o000);
    assert!(play_without_rights("may not read", &place).success());
    set(place.folder.path().to_owned(), 0o000);
    assert!(play_without_rights("may not read", &place).success());
    set(place.folder.path().to_owned(), 0o755);
}

/// A small file system of its own, unmounted at the end.
struct Mount {
    point: tempfile::TempDir,
}

impl Mount {
    /// `None` where the kernel does not let us mount.
    fn new() -> Option<Mount> {
        let point = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=0755", "hpvm-test"])
            .arg(point.path())
            .status();
        match mounted {
            Ok(status) if status.success() => Some(Mount { point }),
            _ => {
                eprintln!("skipped: this needs the right to mount a small file system");
                None
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.point.path().join("hpvm.db")
    }

    /// A process that a test beside this one has just forked has our files open until it executes its program, and as long the
    /// file system is busy.
    fn remount(&self, option: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let remounted = || {
            let mut mount = Command::new("mount");
            mount.args(["-o", &format!("remount,{option}")]).arg(self.point.path());
            mount.status().unwrap().success()
        };
        while !remounted() {
            assert!(Instant::now() < deadline, "it cannot be mounted {option}");
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.point.path()).status();
    }
}

#[test]
fn a_read_only_file_system_can_be_read() {
    let Some(mount) = Mount::new() else { return };
    let path = mount.path();
    assert_eq!(open_and_read(&path, Access::ReadWrite).unwrap(), 0);
    let (log, index) =
        (mount.point.path().join("hpvm.db-wal"), mount.point.path().join("hpvm.db-shm"));
    let check = |guests: usize| {
        mount.remount("ro");
        assert_eq!(open_and_read(&path, Access::ReadOnly).unwrap(), guests);
        let error = open_and_read(&path, Access::ReadWrite).unwrap_err();
        assert!(matches!(error, RegistryError::ReadOnlyFileSystem { .. }), "{error:?}");
        // A change can be tried as far as nothing is written.
        let mut reader = Registry::open(&path, Access::ReadOnly).unwrap();
        let tried = reader.change().unwrap();
        assert_eq!(tried.list().unwrap().len(), guests);
        let error = tried.insert(&guest(2), &files(&guest(2))).unwrap_err();
        assert!(matches!(error, RegistryError::ReadOnlyFileSystem { .. }), "{error:?}");
        drop(tried);
        drop(reader);
        mount.remount("rw");
    };
    // What is in the log alone counts.
    add(&mut Registry::open(&path, Access::ReadWrite).unwrap(), &guest(1));
    assert!(fs::metadata(&log).unwrap().len() > 0);
    check(1);
    // Without the index the log cannot be read, and the file without it would be the past.
    fs::remove_file(&index).unwrap();
    mount.remount("ro");
    let error = open_and_read(&path, Access::ReadOnly).unwrap_err();
    assert!(matches!(error, RegistryError::LogUnreadable { .. }), "{error:?}");
    mount.remount("rw");
    assert_eq!(open_and_read(&path, Access::ReadWrite).unwrap(), 1);
    // A file by itself, as a restored backup has it.
    let plain = Connection::open(&path).unwrap();
    plain.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(plain);
    assert!(!log.exists() && !index.exists());
    check(1);
}

#[test]
fn a_read_only_file_system_without_a_registry_reads_as_empty() {
    let Some(mount) = Mount::new() else { return };
    mount.remount("ro");
    assert_eq!(open_and_read(&mount.path(), Access::ReadOnly).unwrap(), 0);
    let error = open_and_read(&mount.path(), Access::ReadWrite).unwrap_err();
    assert!(matches!(error, RegistryError::ReadOnlyFileSystem { .. }), "{error:?}");
}

#[test]
fn a_full_file_system_loses_nothing() {
    let Some(mount) = Mount::new() else { return };
    let path = mount.path();
    let filler = mount.point.path().join("filler");
    let fill = || {
        let _ = fs::write(&filler, vec![1; 2 << 20]);
    };
    // Not even the first registry fits: nothing of it is left, and later all is well.
    fill();
    let error = open_and_read(&path, Access::ReadWrite).unwrap_err();
    assert!(matches!(error, RegistryError::Full { .. }), "{error:?}");
    fs::remove_file(&filler).unwrap();
    assert_eq!(fs::read_dir(mount.point.path()).unwrap().count(), 0);

    add(&mut Registry::open(&path, Access::ReadWrite).unwrap(), &guest(1));
    fill();
    let error = fill_by_inserting(&path);
    assert!(matches!(error, RegistryError::Full { .. }), "{error:?}");
    let listed = open_and_read(&path, Access::ReadOnly).unwrap();
    assert!(listed >= 1);
    fs::remove_file(&filler).unwrap();
    let mut registry = Registry::open(&path, Access::ReadWrite).unwrap();
    assert_eq!(registry.all().unwrap().len(), listed);
    assert_eq!(registry.check().unwrap(), Vec::<String>::new());
    add(&mut registry, &guest(90_000));
    assert_eq!(open_and_read(&path, Access::ReadOnly).unwrap(), listed + 1);
}

/// Who removes a guest makes room.
#[test]
fn a_full_file_system_takes_a_removal() {
    let Some(mount) = Mount::new() else { return };
    let path = mount.path();
    let mut registry = Registry::open(&path, Access::ReadWrite).unwrap();
    (1..=3).for_each(|n| add(&mut registry, &guest(n)));
    drop(registry);
    let _ = fs::write(mount.point.path().join("filler"), vec![1; 2 << 20]);
    let mut registry = Registry::open(&path, Access::ReadWrite).unwrap();
    for n in 1..=3 {
        let change = registry.change().unwrap();
        change.remove(number(n), Timestamp::now()).unwrap();
        change.purge(number(n)).unwrap();
        change.commit().unwrap();
    }
    assert_eq!(open_and_read(&path, Access::ReadOnly).unwrap(), 0);
}

/// Nobody is told to get rights that he has.
#[test]
fn what_keeps_root_from_writing_is_named() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (place, _) = settled(1);
    let path = place.path();
    let log = place.folder.path().join("hpvm.db-wal");
    let _ = fs::remove_file(&log);
    fs::create_dir(&log).unwrap();
    let error = open_and_read(&path, Access::ReadWrite).unwrap_err();
    assert!(matches!(&error, RegistryError::NoLog(at) if *at == log), "{error:?}");
    fs::remove_dir(&log).unwrap();
    let change = |flag: &str| {
        let status = Command::new("chattr").arg(flag).arg(&path).status().unwrap();
        assert!(status.success(), "the temporary folder is on a file system with such flags");
    };
    change("+i");
    let error = open_and_read(&path, Access::ReadWrite).map(drop);
    change("-i");
    let error = error.unwrap_err();
    assert!(matches!(&error, RegistryError::Immutable(at) if *at == path), "{error:?}");
    assert_eq!(open_and_read(&path, Access::ReadWrite).unwrap(), 1);
}

/// Adds guests until one finds no room.
fn fill_by_inserting(path: &Path) -> RegistryError {
    (2..1000)
        .map(|n| -> Result<(), RegistryError> {
            let mut registry = Registry::open(path, Access::ReadWrite)?;
            let change = registry.change()?;
            change.insert(&guest(n), &files(&guest(n)))?;
            change.commit()
        })
        .find_map(Result::err)
        .expect("a thousand guests need more than a megabyte")
}

#[test]
fn a_registry_that_others_own_tells_its_group_all() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    let mut registry = place.open();
    add(&mut registry, &guest(1));
    let change = registry.change().unwrap();
    change.remove(number(1), Timestamp::MAX).unwrap();
    drop(change);
    for suffix in ["", "-wal", "-shm"] {
        let file = place.folder.path().join(format!("hpvm.db{suffix}"));
        chown(&file, None, Some(65_534)).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    }
    fs::set_permissions(place.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(play_without_rights("may read", &place).success());
}
