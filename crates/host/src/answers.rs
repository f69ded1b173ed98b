//! Questions to the kernel that it may never answer, such as what a path leads to whose file system has lost its server. Called
//! by whoever looks at or opens what backs a guest. A thread asks, which is left there when it does not come back: the end of
//! the command ends it. Of a path on a file system that may have no server any more a process of its own asks first, since not
//! every such server lets a thread of ours end.

mod scout;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::fs::{AtFlags, CWD, OFlags, StatxFlags, statx};

use self::scout::Errand;
use crate::block;

/// A file system on a disk under load answers within a fraction of this; one whose server is gone never does.
pub const ANSWER_BOUND: Duration = Duration::from_secs(2);

/// A question that took longer is late: its folder is asked for, for which there is time enough.
const SOON: Duration = Duration::from_millis(250);

/// What no folder has.
const NOTHING: &str = ".hpvm-is-never-there";

/// A command that asks about one path several times waits for it once.
const REMEMBERED: Duration = Duration::from_secs(10);

/// The paths at which nobody answered, and when they were given up.
static GIVEN_UP: Mutex<BTreeMap<PathBuf, Instant>> = Mutex::new(BTreeMap::new());

fn given_up() -> MutexGuard<'static, BTreeMap<PathBuf, Instant>> {
    GIVEN_UP.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wait for an answer at a path. One that is late has the folder asked beside it: what is given up, when no answer comes, is
/// the folder where that is silent too, so that nobody waits for the same file system again by another name in it.
#[derive(Debug)]
pub struct Wait<'a> {
    path: &'a Path,
    asked_at: Instant,
    /// Once it is late.
    late: Option<Late>,
}

#[derive(Debug)]
struct Late {
    /// The folder's answer; `None`: it cannot be asked.
    folder: Option<Receiver<()>>,
}

impl<'a> Wait<'a> {
    #[must_use]
    pub fn since(asked_at: Instant, path: &'a Path) -> Wait<'a> {
        Wait { path, asked_at, late: None }
    }

    /// How long to wait from now: until the answer is late, and when it is, until nobody waits any more (`None`).
    pub fn left(&mut self) -> Option<Duration> {
        let waited = self.asked_at.elapsed();
        let left = |bound: Duration| bound.checked_sub(waited).filter(|left| !left.is_zero());
        if self.late.is_none() {
            if let Some(left) = left(SOON) {
                return Some(left);
            }
            self.late = Some(Late { folder: asked_for_folder(self.path) });
        }
        left(ANSWER_BOUND)
    }

    /// Nobody answered in time. Gives what is remembered as silent.
    pub fn give_up(self) -> PathBuf {
        let folder = self.late.and_then(|late| late.folder);
        let is_silent = folder.is_some_and(|folder| folder.try_recv().is_err());
        let silent = self.path.parent().filter(|_| is_silent).unwrap_or(self.path).to_owned();
        given_up().insert(silent.clone(), Instant::now());
        silent
    }
}

/// Whether nobody answered at this path, or at a folder above it, a moment ago.
#[must_use]
pub fn is_given_up(path: &Path) -> bool {
    let recent =
        |(silent, at): (&PathBuf, &Instant)| at.elapsed() < REMEMBERED && path.starts_with(silent);
    given_up().iter().any(recent)
}

/// Whether a path may lie on a file system that loses its server.
#[must_use]
pub fn may_fall_silent(path: &Path) -> bool {
    !block::is_near(path)
}

/// The same of a device, whose storage may lie anywhere but for that of a loop device on a file of this machine's own.
#[must_use]
pub fn device_may_fall_silent(device: &Path) -> bool {
    let device = fs::canonicalize(device).unwrap_or_default();
    let Some(name) = device.file_name() else { return true };
    let own = Path::new("/sys/class/block").join(name);
    // A partition lies below its disk.
    let mut behind = ["", ".."].map(|disk| own.join(disk).join("loop/backing_file")).into_iter();
    let file = behind.find_map(|place| fs::read_to_string(place).ok());
    file.is_none_or(|file| may_fall_silent(Path::new(file.trim_end())))
}

/// Whether a thread of ours may ask at a path. Takes as long as the answer to that, and [`ANSWER_BOUND`] at most.
#[must_use]
pub fn may_be_asked(path: &Path) -> bool {
    block::is_near(path) || scout::comes_back_from(path, Errand::Look(OFlags::RDONLY))
}

/// Whether a thread of ours may open a path to write there: a server that lets everybody read may keep such a one.
#[must_use]
pub fn may_be_written(path: &Path) -> bool {
    block::is_near(path) || scout::comes_back_from(path, Errand::Look(OFlags::RDWR))
}

/// Whether a folder takes changes now. A file system that is frozen (fsfreeze(8)) lets everybody look, and keeps who changes
/// anything until it is thawed, with all that he holds; it may be one of this machine's own.
#[must_use]
pub fn may_be_changed(folder: &Path) -> bool {
    scout::comes_back_from(&folder.join(NOTHING), Errand::Change)
}

/// What is said of a path at which nobody answers.
#[must_use]
pub fn silence() -> String {
    format!("its file system has not answered for {} s", ANSWER_BOUND.as_secs())
}

/// The same as an error (`TimedOut`), for who has a path to tell it of.
#[must_use]
pub fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, silence())
}

/// The answer to a question about a path; `None` when there is none in time, now or a moment ago.
pub fn about<T: Send + 'static>(
    path: &Path,
    question: impl FnOnce(&Path) -> T + Send + 'static,
) -> Option<T> {
    all_about([(path.to_owned(), question)]).pop().flatten()
}

/// The same for many that are asked at once, in their order: all that are silent cost the wait for one.
pub fn all_about<T: Send + 'static>(
    questions: impl IntoIterator<Item = (PathBuf, impl FnOnce(&Path) -> T + Send + 'static)>,
) -> Vec<Option<T>> {
    let (sender, told) = channel();
    let (mut paths, mut asked) = (Vec::new(), Vec::new());
    for (number, (path, question)) in questions.into_iter().enumerate() {
        let (about, sender) = (path.clone(), sender.clone());
        let ask = move || {
            let answer = may_be_asked(&about).then(|| question(&about));
            // Who asked may have given up.
            let _ = sender.send((number, answer));
        };
        if !is_given_up(&path) && thread::Builder::new().spawn(ask).is_ok() {
            asked.push(number);
        }
        paths.push(path);
    }
    // The threads have it alone: when all have ended, nobody answers any more.
    drop(sender);
    let now = Instant::now();
    let waits = asked.into_iter().map(|number| (number, Wait::since(now, &paths[number])));
    let mut waits: BTreeMap<usize, Wait<'_>> = waits.collect();
    let mut answers: Vec<Option<T>> = paths.iter().map(|_| None).collect();
    while !waits.is_empty() {
        let left = waits.values_mut().map(Wait::left).min().flatten();
        // What came before the time was over counts, whenever we look.
        match told.recv_timeout(left.unwrap_or_default()) {
            Ok((number, Some(answer))) => {
                answers[number] = Some(answer);
                waits.remove(&number);
            }
            // It could not ask, which its wait tells.
            Ok((_, None)) => {}
            Err(RecvTimeoutError::Timeout) if left.is_some() => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    for wait in waits.into_values() {
        wait.give_up();
    }
    answers
}

/// Whether the folder of a path answers now, whatever the kernel remembers of it.
fn asked_for_folder(path: &Path) -> Option<Receiver<()>> {
    let folder = path.parent()?.to_owned();
    asked(move || {
        if !may_be_asked(&folder) {
            return;
        }
        // Whatever it answers.
        let _ = statx(CWD, &folder, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
    })
}

/// The answer to a question; `None` when there is none in time.
pub fn in_time<T: Send + 'static>(question: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    asked(question).and_then(|answer| answer.recv_timeout(ANSWER_BOUND).ok())
}

/// The answers to questions that are asked at once, in their order; `None` where there is none in time. One that hangs holds
/// no other one up, and all together take no longer than one.
pub fn all_in_time<T: Send + 'static>(
    questions: impl IntoIterator<Item = impl FnOnce() -> T + Send + 'static>,
) -> Vec<Option<T>> {
    let answers: Vec<Option<Receiver<T>>> = questions.into_iter().map(asked).collect();
    let deadline = Instant::now() + ANSWER_BOUND;
    answers.into_iter().map(|answer| until(deadline, &answer?)).collect()
}

fn until<T>(deadline: Instant, answer: &Receiver<T>) -> Option<T> {
    answer.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
}

fn asked<T: Send + 'static>(question: impl FnOnce() -> T + Send + 'static) -> Option<Receiver<T>> {
    let (sender, answer) = channel();
    // Who asked may have given up.
    let ask = move || drop(sender.send(question()));
    thread::Builder::new().spawn(ask).ok()?;
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_hangs_holds_no_other_up() {
        let ask = |number: usize| {
            move || {
                if number % 2 == 1 {
                    loop {
                        thread::park();
                    }
                }
                number
            }
        };
        let before = Instant::now();
        let answers = all_in_time((0..6).map(ask));
        let whole = before.elapsed();
        assert_eq!(answers, [Some(0), None, Some(2), None, Some(4), None]);
        assert!(ANSWER_BOUND <= whole && whole < 2 * ANSWER_BOUND, "{whole:?}");
        assert_eq!(in_time(ask(8)), Some(8));
    }

    /// Neither what was asked about is asked again, nor what lies below it; what lies beside it is.
    #[test]
    fn a_silent_path_is_waited_for_once() {
        let length = |path: &Path| {
            while path.ends_with("silent") {
                thread::park();
            }
            path.as_os_str().len()
        };
        let paths = ["/once/a", "/once/silent", "/once/b/silent", "/once/c"].map(PathBuf::from);
        let answers = || all_about(paths.clone().map(|path| (path, length)));
        let before = Instant::now();
        assert_eq!(answers(), [Some(7), None, None, Some(7)]);
        let once = before.elapsed();
        assert!(ANSWER_BOUND <= once && once < 2 * ANSWER_BOUND, "{once:?}");
        let before = Instant::now();
        assert_eq!(answers(), [Some(7), None, None, Some(7)]);
        assert_eq!(about(Path::new("/once/silent/below"), length), None);
        assert_eq!(about(Path::new("/once/beside"), length), Some(12));
        assert!(before.elapsed() < ANSWER_BOUND, "{:?}", before.elapsed());
    }
}
