//! Files, sockets and descriptors: durable steps, listening sockets, passing.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use hpvm_host::fdpass;
use hpvm_host::listen::{self, ListenError, listen};
use hpvm_host::users::{self, Ids};
use hpvm_host::{durable, process};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn the_longest_name_a_file_system_takes_can_be_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let link = folder.path().join("x".repeat(255));
    durable::replace_symlink(Path::new("../a"), &link).expect("linked");
    durable::replace_symlink(Path::new("../b"), &link).expect("linked again");
    assert_eq!(fs::read_link(&link).expect("a link"), Path::new("../b"));
}

/// To note when it was read, a file system that hangs would have to be waited for.
#[test]
fn an_own_file_is_read_without_a_note_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image");
    fs::write(&path, "content").expect("written");
    let file = durable::open_regular(&path).expect("opened");
    let flags = rustix::fs::fcntl_getfl(&file).expect("its flags");
    assert!(flags.contains(rustix::fs::OFlags::NOATIME), "{flags:?}");
    assert_eq!(durable::read_regular(&path).expect("read"), b"content");
}

/// Who is neither its owner nor privileged opens it as ever.
#[test]
fn the_file_of_another_user_is_read_all_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image");
    fs::write(&path, "content").expect("written");
    for (path, mode) in [(folder.path(), 0o755), (&*path, 0o644)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("readable");
    }
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // Identities are a thread's own to the kernel.
    let nobody = rustix::process::Uid::from_raw(65_534);
    let read = thread::scope(|scope| {
        let as_nobody = || {
            rustix::thread::set_thread_uid(nobody).expect("another user");
            durable::read_regular(&path)
        };
        scope.spawn(as_nobody).join().expect("a thread")
    });
    assert_eq!(read.expect("read"), b"content");
}

#[test]
fn a_reader_sees_the_old_content_or_the_new() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("status");
    let (small, large) = (vec![b'a'; 10], vec![b'b'; 100_000]);
    durable::replace_file(&path, &small, 0o640).expect("made");
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..20 {
                let content = if round % 2 == 0 { &large } else { &small };
                durable::replace_file(&path, content, 0o640).expect("replaced");
            }
        });
        while !writer.is_finished() {
            let seen = fs::read(&path).expect("always there");
            assert!(seen == small || seen == large, "a part of {} bytes", seen.len());
        }
    });
    assert_eq!(names(folder.path()), ["status"]);
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o640);
}

#[test]
fn a_new_file_never_takes_the_place_of_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let (from, to) = (folder.path().join("pristine"), folder.path().join("nvram"));
    fs::write(&from, "variables").expect("written");
    durable::copy_file(&from, &to, 0o600).expect("copied");
    let error = durable::copy_file(&from, &to, 0o600).expect_err("there already");
    assert_eq!(error.to_string(), format!("cannot make {}", to.display()));
    fs::write(&from, "newer").expect("written");
    durable::replace_by_copy(&from, &to, 0o600).expect("replaced");
    assert_eq!(fs::read_to_string(&to).expect("read"), "newer");
}

#[test]
fn a_link_is_turned_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let link = folder.path().join("g1");
    for target in ["../uuids/1", "../uuids/2"] {
        durable::replace_symlink(Path::new(target), &link).expect("linked");
        assert_eq!(fs::read_link(&link).expect("a link"), Path::new(target));
    }
    assert_eq!(names(folder.path()), ["g1"]);
}

#[test]
fn a_socket_has_mode_and_owner_and_follows_a_stale_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("control");
    let owner = users::is_root().then_some(Ids { uid: 1_000_079, gid: 1_000_079 });
    for mode in [0o600, 0o666] {
        let listener = listen(&path, mode, owner).expect("listening");
        let metadata = fs::symlink_metadata(&path).expect("there");
        assert_eq!(metadata.permissions().mode() & 0o7777, mode);
        assert_eq!(metadata.uid(), owner.map_or(users::effective_uid(), |ids| ids.uid));
        let mut client = UnixStream::connect(&path).expect("connected");
        let (mut server, _) = listener.accept().expect("accepted");
        client.write_all(b"x").expect("sent");
        server.read_exact(&mut [0]).expect("received");
    }
}

/// The folder around is another user's, who may have put a link there.
#[test]
fn a_folder_of_sockets_is_made_and_never_led_elsewhere() {
    let place = tempfile::tempdir().expect("a folder");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    let [made, theirs, link] = ["made", "theirs", "link"].map(|name| place.path().join(name));
    for _ in 0..2 {
        listen::folder(&made, 0o750, None).expect("made, or there");
        assert_eq!(mode(&made), 0o750);
    }
    fs::create_dir(&theirs).expect("a folder");
    let before = mode(&theirs);
    assert_ne!(before, 0o750);
    symlink(&theirs, &link).expect("a link");
    assert!(listen::folder(&link, 0o750, None).is_err());
    assert_eq!(mode(&theirs), before);
}

#[test]
fn a_path_too_long_for_a_socket_is_said_to_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let room = 107 - folder.path().as_os_str().len() - 1;
    listen(&folder.path().join("x".repeat(room)), 0o600, None).expect("just fits");
    let error =
        listen(&folder.path().join("x".repeat(room + 1)), 0o600, None).expect_err("too long");
    assert!(matches!(error, ListenError::TooLong { length: 108, .. }));
}

#[test]
fn descriptors_arrive_with_their_bytes_and_close_on_exec() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    fs::write(&path, "content").expect("written");
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let files: Vec<File> = (0..3).map(|_| File::open(&path).expect("opened")).collect();
    let descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    assert_eq!(fdpass::send(&ours, b"line\n", &descriptors).expect("sent"), 5);
    let mut buffer = [0; 64];
    let (length, received) = fdpass::receive(&theirs, &mut buffer).expect("received");
    assert_eq!((&buffer[..length], received.len()), (&b"line\n"[..], 3));
    for fd in received {
        assert!(
            rustix::io::fcntl_getfd(&fd).expect("flags").contains(rustix::io::FdFlags::CLOEXEC)
        );
        let mut text = String::new();
        // All three share nothing but the file: each was opened by itself.
        File::from(fd).read_to_string(&mut text).expect("read");
        assert_eq!(text, "content");
    }
    drop(ours);
    assert_eq!(fdpass::receive(&theirs, &mut buffer).expect("the end").0, 0);
}

#[test]
fn more_descriptors_than_a_message_carries_are_refused() {
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    let many = vec![ours.as_fd(); fdpass::DESCRIPTORS_MAX + 1];
    let error = fdpass::send(&ours, b"x", &many).expect_err("too many");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn the_boot_is_named_and_its_clock_runs() {
    let id = process::boot_id().expect("a boot id");
    assert_eq!((id.len(), id.matches('-').count()), (36, 4));
    let before = process::boottime_ms();
    assert!(before > 0 && process::boottime_ms() >= before);
    process::oom_kills().expect("/proc/vmstat");
}
