//! Locks between real processes: this program, and a shell that holds descriptors.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use hpvm_host::lock::{
    Busy, BusyError, ByteLock, KEEPER_BYTE, WORKER_BYTE, is_held, owner, pause_for,
};
use hpvm_host::removal;
use hpvm_host::supervision::{self, Supervision};

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).append(true).create(true).open(path).expect("the lock file")
}

#[track_caller]
fn until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "not so within ten seconds");
        pause_for(Duration::from_millis(1));
    }
}

/// A process that has a copy of a descriptor, until it is killed.
struct Holder(Child);

impl Holder {
    fn of(file: &File) -> Holder {
        let parent_fd = file.try_clone().expect("a copy").into();
        let mut command = Command::new("/bin/cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.fd_mappings(vec![FdMapping { parent_fd, child_fd: 5 }]).expect("no collision");
        Holder(command.spawn().expect("a process"))
    }

    fn kill(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("our child");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn bytes_are_locked_apart_and_freed_by_death() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("lock");
    let lock = ByteLock::try_acquire(open(&path), WORKER_BYTE).expect("asked").expect("free");
    let reader = File::open(&path).expect("for reading");
    assert!(is_held(&reader, WORKER_BYTE).expect("asked"));
    assert!(!is_held(&reader, KEEPER_BYTE).expect("asked"));
    assert!(ByteLock::try_acquire(open(&path), WORKER_BYTE).expect("asked").is_none());
    let mut holder = Holder::of(lock.file());
    drop(lock);
    assert!(is_held(&reader, WORKER_BYTE).expect("asked"), "the copy in another process keeps it");
    holder.kill();
    // The child of a test beside this one has a copy too until it runs its own program.
    until(|| !is_held(&reader, WORKER_BYTE).expect("asked"));
    assert!(ByteLock::try_acquire(open(&path), WORKER_BYTE).expect("asked").is_some());
}

/// A lock for reading stands in the way of a command, and who may open a file for reading may take one.
#[test]
fn nobody_else_may_read_what_commands_lock() {
    let folder = tempfile::tempdir().expect("a folder");
    let mode = |path: &Path| fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    let [busy, claims] = ["busy", "claims"].map(|name| folder.path().join(name));
    fs::write(&busy, "of an earlier version").expect("a file");
    fs::set_permissions(&busy, fs::Permissions::from_mode(0o644)).expect("a mode");
    Busy::acquire(&busy, "hpvmstart", Duration::ZERO).expect("free");
    assert_eq!(mode(&busy), 0o600);
    ByteLock::acquire(&claims, 7, Duration::ZERO).expect("asked").expect("free");
    assert_eq!(mode(&claims), 0o600);

    let lock = folder.path().join("lock");
    supervision::open(&lock, None).expect("made");
    assert_eq!(mode(&lock), 0o640);
    assert_eq!(Supervision::at(&lock).expect("looked"), Supervision::None);
    let _worker = ByteLock::try_acquire(open(&lock), WORKER_BYTE).expect("asked").expect("free");
    assert_eq!(Supervision::at(&lock).expect("looked"), Supervision::WorkerAlone);
    symlink(&busy, folder.path().join("elsewhere")).expect("a link");
    assert!(supervision::open(&folder.path().join("elsewhere"), None).is_err());
}

/// Who finds both gone starts others: between two keepers nobody does.
#[test]
fn the_next_keeper_is_there_before_it_has_come() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("lock");
    let lock = supervision::open(&path, None).expect("made");
    let dying = ByteLock::try_acquire(open(&path), KEEPER_BYTE).expect("asked").expect("free");
    let ended = thread::spawn(move || drop(dying));
    let hold = || supervision::hold_for_next_keeper(&lock).expect("asked");
    until(hold);
    ended.join().expect("it ends");
    let mut next = Holder::of(&lock);
    drop(lock);
    let shown = || Supervision::at(&path).expect("looked");
    assert_eq!(shown(), Supervision::KeeperAlone);
    next.kill();
    // Another test may be starting a process that has it until it runs its program.
    until(|| shown() == Supervision::None);
}

#[test]
fn who_is_refused_learns_by_whom() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("busy");
    assert_eq!(owner(&path).expect("looked"), None);
    let mut busy = Busy::acquire(&path, "hpvmmodify -P g1", Duration::ZERO).expect("free");
    busy.step("writing\nthe nvram").expect("written");
    let begin = Instant::now();
    let bound = Duration::from_millis(60);
    let error = Busy::acquire(&path, "hpvmstart", bound).expect_err("held");
    assert!(begin.elapsed() >= bound);
    let BusyError::Held { owner: holder, .. } = &error else { panic!("{error}") };
    assert_eq!(holder.pid, std::process::id());
    let said = error.to_string();
    assert!(said.starts_with("hpvmmodify -P g1 (process "), "{said}");
    assert!(said.contains("now at step 'writing the nvram'"), "{said}");
    assert_eq!(owner(&path).expect("looked").as_ref(), Some(holder));
    busy.step("x").expect("written");
    assert_eq!(
        owner(&path).expect("looked").expect("held").step,
        "x",
        "a shorter step leaves no rest"
    );
    drop(busy);
    assert_eq!(owner(&path).expect("looked"), None, "what a file says of the past is not believed");
    Busy::acquire(&path, "hpvmstart", Duration::ZERO).expect("free again");
}

#[test]
fn who_waits_gets_it_when_the_holder_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("busy");
    let busy = Busy::acquire(&path, "first", Duration::ZERO).expect("free");
    thread::scope(|scope| {
        let waiter = scope.spawn(|| Busy::acquire(&path, "second", Duration::from_secs(20)));
        drop(busy);
        waiter.join().expect("no panic").expect("its turn");
    });
}

#[test]
fn one_at_a_time_whatever_happens() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, count) = (folder.path().join("busy"), folder.path().join("count"));
    fs::write(&count, "0").expect("written");
    let add_one = || {
        for _ in 0..20 {
            let _busy = Busy::acquire(&path, "count", Duration::from_secs(30)).expect("its turn");
            let number: u32 = fs::read_to_string(&count).expect("read").parse().expect("a number");
            fs::write(&count, (number + 1).to_string()).expect("written");
        }
    };
    thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(add_one))));
    assert_eq!(fs::read_to_string(&count).expect("read"), "80");
}

#[test]
fn a_guest_that_went_away_is_said_to_be_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("uuid/busy");
    fs::create_dir(folder.path().join("uuid")).expect("a folder");
    let busy = Busy::acquire(&path, "hpvmremove", Duration::ZERO).expect("free");
    thread::scope(|scope| {
        let waiter = scope.spawn(|| Busy::acquire(&path, "hpvmstart", Duration::from_secs(20)));
        removal::folder(&folder.path().join("uuid")).expect("removed");
        drop(busy);
        // Who comes while the folder is being emptied makes a lock of his own, which is removed with the rest.
        let waited = waiter.join().expect("no panic");
        assert!(matches!(waited, Ok(_) | Err(BusyError::Gone { .. })), "{waited:?}");
        assert!(!path.exists(), "{waited:?}");
    });
}
