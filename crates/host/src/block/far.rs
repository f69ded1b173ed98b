//! What paths lead to that nobody asked about: the kernel names them, of loop devices and in /etc/fstab. Called by `read`. Such a
//! path may lie on a file system whose server is gone, and then no command that looks at other devices is to wait for it.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io};

use super::lead::Lead;
use super::mounts::{self, Mount};
use super::places::{Leads, Places};
use crate::answers;

/// File systems on this machine's own disks and in its memory, which answer. Any other may be on a server, or over one that is.
const NEAR: [&str; 18] = [
    "bcachefs", "btrfs", "devtmpfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660",
    "jfs", "ntfs3", "squashfs", "tmpfs", "udf", "vfat", "xfs", "zfs",
];

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
    mounts: OnceCell<Vec<Mount>>,
    answers: RefCell<BTreeMap<PathBuf, Answer>>,
}

impl<'places> Asker<'places> {
    pub(super) fn new(places: &'places Places) -> Self {
        Self { places, mounts: OnceCell::new(), answers: RefCell::default() }
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

    /// Links are not followed here: one that leads from a near file system to a far one is rare, and costs no more than it did.
    fn is_near(&self, path: &Path) -> bool {
        let is_recorded = matches!(self.places.leads, Leads::Recorded(_));
        is_recorded || path.starts_with("/dev") || is_near(self.mounts(), path)
    }

    fn mounts(&self) -> &[Mount] {
        self.mounts.get_or_init(|| {
            mounts::mounts(&fs::read(self.places.proc.join("self/mountinfo")).unwrap_or_default())
        })
    }
}

/// Whether a path lies on a file system of this machine's own, as it is mounted now.
pub(crate) fn is_near_now(path: &Path) -> bool {
    /// A command looks at many paths, and what is mounted changes rarely.
    const KNOWN_FOR: Duration = Duration::from_secs(1);
    static KNOWN: Mutex<Option<(Instant, Vec<Mount>)>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known.as_ref().is_none_or(|(at, _)| at.elapsed() > KNOWN_FOR) {
        let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
        *known = Some((Instant::now(), mounts::mounts(&text)));
    }
    known.as_ref().is_some_and(|(_, mounts)| is_near(mounts, path))
}

/// The last mount on the longest way is the one that is seen.
fn is_near(mounts: &[Mount], path: &Path) -> bool {
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.at));
    let own = above.max_by_key(|mount| mount.at.components().count());
    own.is_some_and(|mount| NEAR.contains(&mount.file_system.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_near_when_its_own_mount_is() {
        let mounts = mounts::mounts(
            b"1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:30 / /far rw - nfs4 server:/ rw
3 2 8:2 / /far/near rw - xfs /dev/sda2 rw
4 1 8:3 / /srv rw - ext4 /dev/sda3 rw
5 4 0:31 / /srv rw - fuse.sshfs server: rw
6 1 0:32 / /over rw - overlay overlay rw
",
        );
        for (path, near) in [
            ("/a", true),
            ("/far", false),
            ("/far/a", false),
            ("/farther", true),
            ("/far/near/a", true),
            ("/srv/a", false),
            ("/over/a", false),
        ] {
            assert_eq!(is_near(&mounts, Path::new(path)), near, "{path}");
        }
        assert!(!is_near(&[], Path::new("/a")), "nobody knows");
    }
}
