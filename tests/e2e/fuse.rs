//! A file system that a test serves itself, over FUSE: what the kernel asks and how it is answered (Linux,
//! include/uapi/linux/fuse.h, version 7.31).

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

/// Of a request: its length, what is asked, its number, of which node; then who asks, which nobody here wants to know.
const HEAD_BYTES: usize = 40;
/// Room for the largest write that is asked for, and its head.
const REQUEST_BYTES: usize = 256 << 10;
/// Of one request.
const WRITE_BYTES_MAX: u32 = 128 << 10;
/// So that writes are as long as that.
const BIG_WRITES: u32 = 1 << 5;

pub(crate) const ROOT: u64 = 1;

pub(crate) const ENOENT: i32 = -2;
pub(crate) const EINTR: i32 = -4;
pub(crate) const EEXIST: i32 = -17;
pub(crate) const ENOTEMPTY: i32 = -39;
pub(crate) const ENOSYS: i32 = -38;

pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const RENAME2: u32 = 45;
}

pub(crate) struct Request<'a> {
    /// What is asked, see [`opcode`].
    pub(crate) asked: u32,
    pub(crate) node: u64,
    pub(crate) body: &'a [u8],
}

pub(crate) enum Reply {
    With(Vec<u8>),
    Error(i32),
    /// To another request, which this one is about.
    ErrorOf(u64, i32),
    /// This, once [`Served::let_go`] is called.
    Held(Vec<u8>),
    Never,
}

/// A folder that a test serves, until it is dropped.
pub(crate) struct Served {
    folder: PathBuf,
    device: File,
    held: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Served {
    /// A thread answers, until the folder is no file system any more.
    pub(crate) fn over(
        folder: &Path,
        mut answer: impl FnMut(&Request<'_>) -> Reply + Send + 'static,
    ) -> Served {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("FUSE");
        let mut mount = Command::new("mount");
        mount.args(["-i", "-t", "fuse", "-o"]);
        mount.args(["fd=0,rootmode=40000,user_id=0,group_id=0,allow_other", "far"]);
        let ours = device.try_clone().expect("its descriptor");
        let mounted = mount.arg(folder).stdin(device).status().expect("mount");
        assert!(mounted.success(), "{mounted}");
        let device = ours.try_clone().expect("its descriptor");
        let held = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let holding = Arc::clone(&held);
        std::thread::spawn(move || serve(ours, &holding, &mut answer));
        Served { folder: folder.to_owned(), device, held }
    }

    /// Whether any answer is held back.
    pub(crate) fn is_holding(&self) -> bool {
        !self.held.lock().expect("nobody panics over it").is_empty()
    }

    /// Sends the answers that were held back.
    pub(crate) fn let_go(&self) {
        for answer in self.held.lock().expect("nobody panics over it").drain(..) {
            // Who asked may be gone.
            let _ = (&self.device).write(&answer);
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // All who still wait for an answer are told that there will be none.
        let _ = Command::new("umount").args(["--force", "--lazy"]).arg(&self.folder).status();
    }
}

fn serve(
    mut device: File,
    held: &Mutex<Vec<Vec<u8>>>,
    answer: &mut impl FnMut(&Request<'_>) -> Reply,
) {
    let mut request = vec![0; REQUEST_BYTES];
    while let Ok(length) = device.read(&mut request) {
        let Some((head, body)) = request[..length].split_at_checked(HEAD_BYTES) else { return };
        let request = Request { asked: number(head, 4), node: long(head, 16), body };
        let own = long(head, 8);
        let reply = match request.asked {
            opcode::INIT => bytes(own, 0, &init()),
            opcode::FORGET | opcode::BATCH_FORGET => continue,
            _ => match answer(&request) {
                Reply::With(answer) => bytes(own, 0, &answer),
                Reply::Error(error) => bytes(own, error, &[]),
                Reply::ErrorOf(other, error) => bytes(other, error, &[]),
                Reply::Held(answer) => {
                    held.lock().expect("nobody panics over it").push(bytes(own, 0, &answer));
                    continue;
                }
                Reply::Never => continue,
            },
        };
        // Who asked may be gone.
        let _ = device.write(&reply);
    }
}

/// The version, no read-ahead, long writes; the rest at its least.
fn init() -> Vec<u8> {
    words(&[7, 31, 0, BIG_WRITES, 0, WRITE_BYTES_MAX, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// To the request of this number.
fn bytes(number: u64, error: i32, answer: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + answer.len()).expect("a short answer");
    [&length.to_le_bytes()[..], &error.to_le_bytes(), &number.to_le_bytes(), answer].concat()
}

/// What is told of a node.
pub(crate) struct Attributes {
    pub(crate) node: u64,
    pub(crate) size: u64,
    /// With what kind of file it is.
    pub(crate) mode: u32,
    pub(crate) names: u32,
    pub(crate) owner: [u32; 2],
}

impl Attributes {
    /// Number, size, blocks, three times and their nanoseconds, mode, links, user, group, device, block size, flags.
    fn bytes(&self) -> Vec<u8> {
        let longs = [self.node, self.size, self.size.div_ceil(512), 0, 0, 0].map(u64::to_le_bytes);
        let [user, group] = self.owner;
        let rest = words(&[0, 0, 0, self.mode, self.names, user, group, 0, 4096, 0]);
        [longs.concat(), rest].concat()
    }

    /// The answer to a look at the node; true for no time.
    pub(crate) fn answer(&self) -> Vec<u8> {
        [vec![0; 16], self.bytes()].concat()
    }

    /// The answer to who asks for it by name: the node, its generation, and for how long this is true.
    pub(crate) fn entry(&self) -> Vec<u8> {
        [self.node.to_le_bytes().to_vec(), vec![0; 32], self.bytes()].concat()
    }
}

/// The answer to who opens something.
pub(crate) fn opened() -> Vec<u8> {
    vec![0; 16]
}

pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(crate) fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
