//! A file server of the test's own: one folder with one file, whose server answers all but what it is told to leave unanswered.
//! Used by tests of stores that fall silent at one exact step.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hpvm_testkit::wait::wait_until;

use crate::fuse::{
    Attributes, EINTR, ENOENT, ENOSYS, ROOT, Reply, Request, Served, long, number, opcode, opened,
    words,
};

const BOUND: Duration = Duration::from_secs(20);
const FILE: u64 = 2;

/// What its server leaves unanswered from now on.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    /// To open the file for writing.
    pub(crate) opening: AtomicBool,
    /// To look at it, and whether it is there.
    pub(crate) looking: AtomicBool,
    /// To read from it, until [`FileServer::answer_again`].
    pub(crate) reading: AtomicBool,
    /// To write to it, until then too.
    pub(crate) writing: AtomicBool,
    /// To read from the second half of it, or to write to that, until then.
    pub(crate) far_half: AtomicBool,
    /// That who asked was killed meanwhile, and wants no answer any more. Network file systems of the kernel let such a process
    /// go, and so does a server that answers this; many servers do not.
    pub(crate) interrupts: AtomicBool,
}

/// A folder with the file `disk.img`, full of zeros whatever is written to it.
pub(crate) struct FileServer {
    served: Served,
    pub(crate) file: PathBuf,
    pub(crate) silence: Arc<Silence>,
}

impl FileServer {
    pub(crate) fn over(folder: &Path, file_bytes: u64) -> FileServer {
        fs::create_dir(folder).expect("a folder");
        let silence = Arc::<Silence>::default();
        let told = Arc::clone(&silence);
        let served = Served::over(folder, move |request| answer(request, file_bytes, &told));
        let file = folder.join("disk.img");
        wait_until(BOUND, "it is served", || length(&file) == Some(file_bytes));
        FileServer { served, file, silence }
    }

    pub(crate) fn leave_unanswered(&self, what: impl FnOnce(&Silence) -> &AtomicBool) {
        what(&self.silence).store(true, Ordering::SeqCst);
    }

    /// Whether somebody waits for an answer that was held back.
    pub(crate) fn is_holding(&self) -> bool {
        self.served.is_holding()
    }

    /// Answers what was read and written meanwhile, and from now on.
    pub(crate) fn answer_again(&self) {
        self.silence.reading.store(false, Ordering::SeqCst);
        self.silence.writing.store(false, Ordering::SeqCst);
        self.silence.far_half.store(false, Ordering::SeqCst);
        self.served.let_go();
    }
}

fn length(file: &Path) -> Option<u64> {
    fs::metadata(file).ok().map(|metadata| metadata.len())
}

fn answer(request: &Request<'_>, file_bytes: u64, silence: &Silence) -> Reply {
    let Request { asked, node, body } = *request;
    let is_left = match asked {
        opcode::OPEN => silence.opening.load(Ordering::SeqCst) && number(body, 0) & 0b11 != 0,
        opcode::LOOKUP | opcode::GETATTR => silence.looking.load(Ordering::SeqCst),
        opcode::INTERRUPT => silence.interrupts.load(Ordering::SeqCst),
        _ => false,
    };
    if is_left {
        return Reply::Never;
    }
    let is_far = |offset| silence.far_half.load(Ordering::SeqCst) && offset >= file_bytes / 2;
    match asked {
        opcode::INTERRUPT => Reply::ErrorOf(long(body, 0), EINTR),
        opcode::LOOKUP if body.starts_with(b"disk.img\0") => {
            Reply::With(attributes(FILE, file_bytes).entry())
        }
        opcode::LOOKUP => Reply::Error(ENOENT),
        opcode::GETATTR => Reply::With(attributes(node, file_bytes).answer()),
        opcode::OPEN => Reply::With(opened()),
        opcode::READ => {
            let (offset, size) = (long(body, 8), u64::from(number(body, 16)));
            let there = file_bytes.saturating_sub(offset).min(size);
            let read = vec![0; usize::try_from(there).expect("a short read")];
            held_if(silence.reading.load(Ordering::SeqCst) || is_far(offset), read)
        }
        opcode::WRITE => {
            let is_held = silence.writing.load(Ordering::SeqCst) || is_far(long(body, 8));
            held_if(is_held, words(&[number(body, 16), 0]))
        }
        opcode::RELEASE | opcode::FLUSH => Reply::With(Vec::new()),
        _ => Reply::Error(ENOSYS),
    }
}

fn held_if(is_held: bool, answer: Vec<u8>) -> Reply {
    match is_held {
        true => Reply::Held(answer),
        false => Reply::With(answer),
    }
}

fn attributes(node: u64, file_bytes: u64) -> Attributes {
    let (size, mode) = if node == ROOT { (0, 0o40755) } else { (file_bytes, 0o100_600) };
    Attributes { node, size, mode, names: 1, owner: [0, 0] }
}
