//! A copy by a thread of its own, so that a store that falls silent in its middle holds that thread and not whoever asked. Called
//! by hpvmclone. Who gives the copy up leaves the thread there when it does not come back, to end with the process.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

use super::{Aligned, BLOCK_BYTES, LOOK, Progress, Target, go_on};
use crate::answers::ANSWER_BOUND;

/// A copy that stands still for so long has both stores asked, and tells of one that takes as long again for its answer.
const STILL: Duration = Duration::from_secs(1);
/// A store that answers who reads, and has no write come to an end for so long, answers no write: that of a frozen file system, or
/// of a pool that is full.
pub const WRITTEN_WITHIN: Duration = Duration::from_secs(5);
/// The kernel keeps files in parts as large as this at most (a huge page), and forgets only whole ones.
const CACHED_PART_BYTES: Option<NonZeroU64> = NonZeroU64::new(2 << 20);

/// What whoever watches a copy sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Progress(Progress),
    /// The copy waits for what does not answer, told once each time that it comes to stand still.
    Silent(Silent),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silent {
    Source,
    Target,
    Both,
}

enum Told {
    Progress(Progress),
    Over(io::Result<()>),
}

/// As [`super::copy`], while `watch` is asked ten times a second whatever the stores do.
pub fn copy(
    source: &File,
    target: &Target<'_>,
    watch: &mut dyn FnMut(Seen) -> ControlFlow<()>,
) -> io::Result<()> {
    let is_given_up = Arc::<AtomicBool>::default();
    let told = begin(source, target, &is_given_up)?;
    let mut still = Still::now();
    let (mut seen, mut ended) = (Progress { done: 0, whole: 0 }, 0);
    loop {
        let before = (seen, ended);
        match told.recv_timeout(LOOK) {
            Ok(Told::Progress(progress)) => seen = progress,
            Ok(Told::Over(result)) => return result,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("it was given up")),
        }
        ended = target.writes.ended();
        if (seen, ended) != before {
            still = Still::now();
        }
        let silent = still.silent(source, target);
        let told_of =
            silent.map_or(ControlFlow::Continue(()), |silent| watch(Seen::Silent(silent)));
        if told_of.is_break() || watch(Seen::Progress(seen)).is_break() {
            is_given_up.store(true, Ordering::Relaxed);
            until_over(&told);
            return go_on(ControlFlow::Break(()));
        }
    }
}

fn begin(
    source: &File,
    target: &Target<'_>,
    is_given_up: &Arc<AtomicBool>,
) -> io::Result<Receiver<Told>> {
    let (source, file) = (source.try_clone()?, target.file.try_clone()?);
    let (writes, is_given_up) = (Arc::clone(&target.writes), Arc::clone(is_given_up));
    let (tell, told) = channel();
    thread::Builder::new().spawn(move || {
        let target = Target { file: &file, writes };
        // Whoever listened may have given up.
        let mut watch = |progress| match tell.send(Told::Progress(progress)) {
            Ok(()) if !is_given_up.load(Ordering::Relaxed) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        };
        let copied = super::copy(&source, &target, &mut watch).map(drop);
        let _ = tell.send(Told::Over(copied));
    })?;
    Ok(told)
}

/// Until the copy has ended, or is left to itself.
fn until_over(told: &Receiver<Told>) {
    let until = Instant::now() + ANSWER_BOUND;
    while let Ok(Told::Progress(_)) =
        told.recv_timeout(until.saturating_duration_since(Instant::now()))
    {}
}

/// A copy that stands still, perhaps.
struct Still {
    since: Instant,
    asked: Option<Asked>,
    is_told: bool,
}

struct Asked {
    at: Instant,
    source: Receiver<()>,
    target: Receiver<()>,
}

impl Still {
    fn now() -> Still {
        Still { since: Instant::now(), asked: None, is_told: false }
    }

    /// What does not answer, if that is known only now.
    fn silent(&mut self, source: &File, target: &Target<'_>) -> Option<Silent> {
        if self.is_told || self.since.elapsed() < STILL {
            return None;
        }
        let Some(asked) = &self.asked else {
            self.asked = Asked::now(source, target.file);
            return None;
        };
        if asked.at.elapsed() < STILL {
            return None;
        }
        let is_silent = |answer: &Receiver<()>| answer.try_recv() == Err(TryRecvError::Empty);
        let silent = match (is_silent(&asked.source), is_silent(&asked.target)) {
            (true, false) => Silent::Source,
            (false, true) => Silent::Target,
            (true, true) => Silent::Both,
            (false, false) if target.writes.are_under_way() => {
                match self.since.elapsed() < WRITTEN_WITHIN {
                    true => return None,
                    false => Silent::Target,
                }
            }
            (false, false) => {
                // It has much to write out, and both are asked once more.
                *self = Still::now();
                return None;
            }
        };
        self.is_told = true;
        Some(silent)
    }
}

impl Asked {
    fn now(source: &File, target: &File) -> Option<Asked> {
        let (source, target) = (ask(source).ok()?, ask(target).ok()?);
        Some(Asked { at: Instant::now(), source, target })
    }
}

/// Whether the storage behind a file answers, whatever the memory of this machine has of it. What it answers does not matter.
fn ask(file: &File) -> io::Result<Receiver<()>> {
    let file = file.try_clone()?;
    let (tell, answer) = channel();
    thread::Builder::new().spawn(move || {
        let mut memory = Aligned::new();
        let _ = fadvise(&file, 0, CACHED_PART_BYTES, Advice::DontNeed);
        let _ = file.read_at(memory.of(BLOCK_BYTES), 0);
        let _ = tell.send(());
    })?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_arrives_and_what_is_given_up_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("source");
        std::fs::write(&path, vec![7; 5 << 20]).unwrap();
        let source = File::open(&path).unwrap();
        let made = || tempfile::tempfile_in(folder.path()).unwrap();

        let file = made();
        copy(&source, &Target::new(&file), &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 5 << 20);

        let file = made();
        let given_up = copy(&source, &Target::new(&file), &mut |_| ControlFlow::Break(()));
        // It may be complete before anybody looks.
        if let Err(error) = given_up {
            assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        }
    }
}
