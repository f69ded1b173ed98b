//! A file server of the test's own, over FUSE (Linux, include/uapi/linux/fuse.h, version 7.31): one folder with one file, whose
//! server answers all but what it is told to leave unanswered. Used by tests of stores that fall silent at one exact step.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hpvm_testkit::wait::wait_until;

const BOUND: Duration = Duration::from_secs(20);
const FOLDER: u64 = 1;
const FILE: u64 = 2;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

const ENOENT: i32 = -2;
const EINTR: i32 = -4;
const ENOSYS: i32 = -38;

/// Of a request: its length, what is asked, its number, of which node; then who asks, which nobody here wants to know.
const HEAD_BYTES: usize = 40;
/// Room for a request of the kernel's largest write, which this server never gets.
const REQUEST_BYTES: usize = 256 << 10;

/// What its server leaves unanswered from now on.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    /// To open the file for writing.
    pub(crate) opening: AtomicBool,
    /// To look at it, and whether it is there.
    pub(crate) looking: AtomicBool,
    /// To read from it.
    pub(crate) reading: AtomicBool,
}

/// A folder with the file `disk.img`, full of zeros.
pub(crate) struct FileServer {
    folder: PathBuf,
    pub(crate) file: PathBuf,
    pub(crate) silence: Arc<Silence>,
}

impl FileServer {
    pub(crate) fn over(folder: PathBuf, file_bytes: u64) -> FileServer {
        fs::create_dir(&folder).expect("a folder");
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("FUSE");
        let mut mount = Command::new("mount");
        mount.args(["-i", "-t", "fuse", "-o"]);
        mount.args(["fd=0,rootmode=40000,user_id=0,group_id=0,allow_other", "far"]);
        let ours = device.try_clone().expect("its descriptor");
        let mounted = mount.arg(&folder).stdin(device).status().expect("mount");
        assert!(mounted.success(), "{mounted}");
        let silence = Arc::<Silence>::default();
        let told = Arc::clone(&silence);
        // It ends when the folder is no file system any more.
        std::thread::spawn(move || serve(ours, file_bytes, &told));
        let file = folder.join("disk.img");
        wait_until(BOUND, "it is served", || length(&file) == Some(file_bytes));
        FileServer { folder, file, silence }
    }

    pub(crate) fn leave_unanswered(&self, what: impl FnOnce(&Silence) -> &AtomicBool) {
        what(&self.silence).store(true, Ordering::SeqCst);
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        // All who still wait for an answer are told that there will be none.
        let _ = Command::new("umount").args(["--force", "--lazy"]).arg(&self.folder).status();
    }
}

fn length(file: &Path) -> Option<u64> {
    fs::metadata(file).ok().map(|metadata| metadata.len())
}

fn serve(mut device: File, file_bytes: u64, silence: &Silence) {
    let mut request = vec![0; REQUEST_BYTES];
    while let Ok(length) = device.read(&mut request) {
        let Some((head, body)) = request[..length].split_at_checked(HEAD_BYTES) else { return };
        let (asked, node) = (number(&head[4..8]), long(&head[16..24]));
        if asked == INTERRUPT {
            // Who is killed while it waits goes, as with the network file systems that may hang.
            let _ = device.write(&reply(&body[..8], EINTR, &[]));
            continue;
        }
        let is_left = match asked {
            OPEN => silence.opening.load(Ordering::SeqCst) && number(&body[..4]) & 0b11 != 0,
            LOOKUP | GETATTR => silence.looking.load(Ordering::SeqCst),
            READ => silence.reading.load(Ordering::SeqCst),
            FORGET | BATCH_FORGET => true,
            _ => false,
        };
        if is_left {
            continue;
        }
        let (error, answer) = match answer(asked, node, body, file_bytes) {
            Ok(answer) => (0, answer),
            Err(error) => (error, Vec::new()),
        };
        // Who asked may be gone.
        let _ = device.write(&reply(&head[8..16], error, &answer));
    }
}

/// To the request of this number.
fn reply(number: &[u8], error: i32, answer: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + answer.len()).expect("a short answer");
    [&length.to_le_bytes()[..], &error.to_le_bytes(), number, answer].concat()
}

fn answer(asked: u32, node: u64, body: &[u8], file_bytes: u64) -> Result<Vec<u8>, i32> {
    let long_lived = [0_u8; 24];
    match asked {
        // The version, no read-ahead, no capabilities; the largest write; the rest at its least.
        INIT => Ok(words(&[7, 31, 0, 0, 0, 4096, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        LOOKUP if body.starts_with(b"disk.img\0") => {
            // The node, its generation, and for how long this is true: for no time.
            let node = [FILE.to_le_bytes(), 0_u64.to_le_bytes()].concat();
            Ok([&node[..], &long_lived, &attributes(FILE, file_bytes)].concat())
        }
        LOOKUP => Err(ENOENT),
        GETATTR => Ok([&long_lived[..16], &attributes(node, file_bytes)].concat()),
        OPEN => Ok(vec![0; 16]),
        READ => {
            let (offset, size) = (long(&body[8..16]), u64::from(number(&body[16..20])));
            let there = file_bytes.saturating_sub(offset).min(size);
            Ok(vec![0; usize::try_from(there).expect("a short read")])
        }
        RELEASE | FLUSH => Ok(Vec::new()),
        _ => Err(ENOSYS),
    }
}

/// Of a node: number, size, blocks, three times and their nanoseconds, mode, links, user, group, device, block size, flags.
fn attributes(node: u64, file_bytes: u64) -> Vec<u8> {
    let (size, mode) = if node == FOLDER { (0, 0o40755) } else { (file_bytes, 0o100_600) };
    let longs = [node, size, size / 512, 0, 0, 0].map(u64::to_le_bytes).concat();
    [longs, words(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0])].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes"))
}

fn long(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}
