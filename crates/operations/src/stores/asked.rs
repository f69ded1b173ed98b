//! Questions about paths whose file system may never answer. A thread asks, which is left there when it does not come back:
//! the end of the command ends it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use std::{io, mem};

use hpvm_host::answers::{self, Wait};

use super::way::{self, Way, Ways};
use crate::helper::{Task, by_a_thread};

/// Some paths that a thread is asking about: where their folders lead, and a question about each. The folders are asked
/// first: one may answer where what lies in it does not, and where none does there is nothing more to ask.
#[derive(Debug)]
pub(super) struct Asking<T>(Arc<Asked<T>>);

/// The answers that came in time, by path.
pub(super) struct Answers<T> {
    pub(super) folders: BTreeMap<String, Option<Way>>,
    pub(super) own: BTreeMap<String, T>,
}

impl<T> Answers<T> {
    /// The way to a path, whose own part was asked for with the rest, and to its folder.
    pub(super) fn ways(&self, path: &str, own: Option<Way>) -> Ways {
        Ways { own, folder: way::folder(path).and_then(|folder| self.folders.get(folder)?.clone()) }
    }
}

impl<T: Send + 'static> Asking<T> {
    pub(super) fn begin(paths: &BTreeSet<String>, own: fn(&Path) -> T) -> Asking<T> {
        Asking::begin_by(paths, own, by_a_thread)
    }

    /// The same, by whoever takes the task.
    pub(super) fn begin_by(
        paths: &BTreeSet<String>,
        own: fn(&Path) -> T,
        give: impl FnOnce(Task) -> io::Result<()>,
    ) -> Asking<T> {
        let folders: BTreeSet<&str> = paths.iter().filter_map(|path| way::folder(path)).collect();
        let folders = folders.into_iter().map(|path| Question::Way(path.to_owned()));
        let asked = folders.chain(paths.iter().cloned().map(Question::Own));
        let is_asked = |question: &Question| !answers::is_given_up(Path::new(question.path()));
        let asked = Arc::new(Asked::new(asked.filter(is_asked).collect(), own));
        asked.begin(give);
        Asking(asked)
    }

    /// Waits until all have answered, or have not in time.
    pub(super) fn answers(self) -> Answers<T> {
        let Asking(mut asked) = self;
        let mut answers = Answers { folders: BTreeMap::new(), own: BTreeMap::new() };
        loop {
            let (came, silent) = asked.in_time();
            let silent = silent.map(Wait::give_up);
            let mut questions = asked.questions.iter();
            for (answer, question) in came.into_iter().zip(&mut questions) {
                let path = question.path().to_owned();
                match answer {
                    Answer::Way(way) => drop(answers.folders.insert(path, way)),
                    Answer::Own(answer) => drop(answers.own.insert(path, answer)),
                }
            }
            let Some(silent) = silent else { return answers };
            let is_elsewhere =
                |question: &&Question| !Path::new(question.path()).starts_with(&silent);
            let rest = questions.filter(is_elsewhere).cloned().collect();
            asked = Arc::new(Asked::new(rest, asked.own));
            asked.begin(by_a_thread);
        }
    }
}

#[derive(Clone, Debug)]
enum Question {
    /// Where a path leads.
    Way(String),
    /// The caller's own.
    Own(String),
}

#[derive(Debug)]
enum Answer<T> {
    Way(Option<Way>),
    Own(T),
}

impl Question {
    fn path(&self) -> &str {
        let (Question::Way(path) | Question::Own(path)) = self;
        path
    }

    fn ask<T>(&self, own: fn(&Path) -> T) -> Answer<T> {
        match self {
            Question::Way(path) => Answer::Way(Way::to(Path::new(path))),
            Question::Own(path) => Answer::Own(own(Path::new(path))),
        }
    }
}

/// Questions that a thread puts one after the other.
#[derive(Debug)]
struct Asked<T> {
    questions: Vec<Question>,
    own: fn(&Path) -> T,
    progress: Mutex<Progress<T>>,
    all_asked: Condvar,
}

/// How far it has come.
#[derive(Debug)]
struct Progress<T> {
    answers: Vec<Answer<T>>,
    /// When the question was put that has no answer yet. `None`: whoever is to ask is still at something else.
    asked_at: Option<Instant>,
}

impl<T> Asked<T> {
    fn new(questions: Vec<Question>, own: fn(&Path) -> T) -> Asked<T> {
        let begun = Progress { answers: Vec::new(), asked_at: None };
        Asked { questions, own, progress: Mutex::new(begun), all_asked: Condvar::new() }
    }

    /// Has a thread put them.
    fn begin(self: &Arc<Self>, give: impl FnOnce(Task) -> io::Result<()>)
    where
        T: Send + 'static,
    {
        let asked = Arc::clone(self);
        let ask = Box::new(move || asked.ask());
        if !self.questions.is_empty() && give(ask).is_err() {
            // Without a thread nobody can tell, and the questions themselves have to be risked.
            self.ask();
        }
    }

    fn ask(&self) {
        self.lock().asked_at = Some(Instant::now());
        for question in &self.questions {
            if !answers::may_be_asked(Path::new(question.path())) {
                return;
            }
            let answer = question.ask(self.own);
            let mut progress = self.lock();
            progress.answers.push(answer);
            progress.asked_at = Some(Instant::now());
        }
        // Once, not for each answer: the two would take turns on one processor.
        self.all_asked.notify_one();
    }

    /// The answers, up to the first that does not come in time, the wait for which is the other thing given.
    fn in_time(&self) -> (Vec<Answer<T>>, Option<Wait<'_>>) {
        let waiting_since = Instant::now();
        let mut progress = self.lock();
        loop {
            let number = progress.answers.len();
            let Some(question) = self.questions.get(number) else {
                return (mem::take(&mut progress.answers), None);
            };
            let asked_at = progress.asked_at.unwrap_or(waiting_since);
            let mut wait = Wait::since(asked_at, Path::new(question.path()));
            while progress.answers.len() == number {
                let Some(left) = wait.left() else {
                    return (mem::take(&mut progress.answers), Some(wait));
                };
                let woken = self.all_asked.wait_timeout(progress, left);
                progress = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Progress<T>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use hpvm_host::answers::ANSWER_BOUND;

    use super::*;

    /// A path's own answer, which some paths never give.
    fn length(path: &Path) -> usize {
        if path.ends_with("silent") {
            loop {
                thread::park();
            }
        }
        path.as_os_str().len()
    }

    /// What comes after a path that does not answer is asked by another thread, but what lies below it.
    #[test]
    fn a_silent_path_takes_none_but_those_below_it_with_it() {
        let paths = ["/a", "/b/silent", "/b/silent/c", "/b/silent-not", "/d/e"];
        let paths = paths.map(str::to_owned).into();
        let before = Instant::now();
        let answers = Asking::begin(&paths, length).answers();
        let whole = before.elapsed();
        assert!(ANSWER_BOUND <= whole && whole < 4 * ANSWER_BOUND, "{whole:?}");
        assert_eq!(
            answers.own,
            BTreeMap::from([("/a".into(), 2), ("/b/silent-not".into(), 13), ("/d/e".into(), 4)])
        );
        // Asked again, it is not waited for.
        let before = Instant::now();
        assert_eq!(Asking::begin(&paths, length).answers().own, answers.own);
        assert_eq!(answers::about(Path::new("/b/silent/d"), length), None);
        assert!(before.elapsed() < ANSWER_BOUND, "{:?}", before.elapsed());
        // A way is asked for by its own question, which here leads nowhere below the root.
        let named: Vec<(&str, bool)> =
            answers.folders.iter().map(|(path, way)| (path.as_str(), way.is_some())).collect();
        assert_eq!(named, [("/", true), ("/b", false), ("/b/silent", false), ("/d", false)]);
    }
}
