//! What paths lead to that nobody asked about: the kernel names them, of loop devices and in /etc/fstab. Called by `read`. Such a
//! path may lie on a file system whose server is gone, and then no command that looks at other devices is to wait for it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::device::DeviceNumber;
use super::lead::Lead;
use super::near;
use super::places::{Leads, Places};
use crate::answers;

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Lead(Lead),
    Nowhere,
    /// Nobody answered in time, now or a moment ago.
    Silent,
}

impl Answer {
    pub(super) fn lead(&self) -> Option<&Lead> {
        match self {
            Self::Lead(lead) => Some(lead),
            Self::Nowhere | Self::Silent => None,
        }
    }
}

impl From<Option<io::Result<Lead>>> for Answer {
    fn from(answered: Option<io::Result<Lead>>) -> Self {
        match answered {
            Some(Ok(lead)) => Self::Lead(lead),
            Some(Err(_)) => Self::Nowhere,
            None => Self::Silent,
        }
    }
}

/// Asks what paths lead to, of each path once.
#[derive(Debug)]
pub(super) struct Asker<'places> {
    pub(super) places: &'places Places,
    answers: RefCell<BTreeMap<PathBuf, Answer>>,
}

impl<'places> Asker<'places> {
    pub(super) fn new(places: &'places Places) -> Self {
        Self { places, answers: RefCell::default() }
    }

    /// Asks about all these at once, so that all that are silent cost the wait for one.
    pub(super) fn prepare(&self, mut paths: Vec<PathBuf>) {
        paths.retain(|path| !self.answers.borrow().contains_key(path));
        let (near, far): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| self.is_near(path));
        let questions = far.iter().map(|path| {
            let places = self.places.clone();
            (path.clone(), move |path: &Path| places.lead(path))
        });
        let answers = answers::all_about(questions);
        let near = near.into_iter().map(|path| {
            let answered = Some(self.places.lead(&path));
            (path, answered)
        });
        let answered = far.into_iter().zip(answers).chain(near);
        let answered = answered.map(|(path, answered)| (path, answered.into()));
        self.answers.borrow_mut().extend(answered);
    }

    pub(super) fn answer(&self, path: &Path) -> Answer {
        self.prepare(vec![path.to_owned()]);
        self.answers.borrow().get(path).cloned().unwrap_or(Answer::Silent)
    }

    /// The file system of a path that lies on a server, by the number that all its files have, and no others.
    pub(super) fn server_of(&self, path: &Path) -> Option<DeviceNumber> {
        if self.is_recorded() { None } else { near::server_of(path) }
    }

    /// Links are not followed here: one that leads from a near file system to a far one is rare, and costs no more than it did.
    fn is_near(&self, path: &Path) -> bool {
        self.is_recorded() || path.starts_with("/dev") || near::is_near(path)
    }

    fn is_recorded(&self) -> bool {
        matches!(self.places.leads, Leads::Recorded(_))
    }
}
