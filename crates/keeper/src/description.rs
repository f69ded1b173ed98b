//! The launch description: NUL-ended strings, each `word value`, in any order. ARCHITECTURE.md lists the words.
//!
//! Read once, at the start. What it does not understand it refuses as a whole: half a guest is worse than none.

use std::ffi::CString;

use crate::kept::KEPT_MAX;
use crate::log::Log;
use crate::program::{Mapping, Program};
use crate::sys::{Fd, Pid, close_all_on_exec, close_between, close_fd};

/// A QEMU that runs already and is not our child.
pub(crate) struct Adopted {
    pub(crate) pid: Pid,
    /// A hold on it that no reuse of its number can mislead, if the launcher had one.
    pub(crate) pidfd: Option<Fd>,
}

/// What is to be done with QEMU.
pub(crate) enum Mission {
    Start(Program),
    Adopt(Adopted),
    /// There is no QEMU: the worker is a virtual switch.
    Nothing,
}

pub(crate) struct Description {
    pub(crate) mission: Mission,
    pub(crate) app: Program,
    /// For the first worker only.
    pub(crate) app_once: Vec<Mapping>,
    pub(crate) lock: Option<Fd>,
    pub(crate) log: Option<Fd>,
    /// What an earlier keeper kept for its workers.
    pub(crate) kept: Vec<(u32, Fd)>,
}

/// One of the two programs, word by word.
#[derive(Default)]
struct Draft {
    path: Option<CString>,
    held: Option<Fd>,
    args: Vec<CString>,
    descriptors: Vec<Mapping>,
    uid: Option<u32>,
    gid: Option<u32>,
    stderr: Option<Fd>,
}

impl Draft {
    fn finish(self) -> Option<Program> {
        let ids = match (self.uid, self.gid) {
            (None, None) => None,
            (Some(uid), Some(gid)) => Some((uid, gid)),
            _ => return None,
        };
        let program = Program::new(self.path?, self.args, self.descriptors, ids, self.stderr);
        Some(program.held_as(self.held))
    }

    fn is_empty(&self) -> bool {
        self.path.is_none()
    }
}

impl Description {
    pub(crate) fn parse(text: &[u8]) -> Option<Description> {
        let (mut qemu, mut app) = (Draft::default(), Draft::default());
        let (mut app_once, mut kept) = (Vec::new(), Vec::new());
        let (mut lock, mut log, mut adopt_pid, mut adopt_pidfd) = (None, None, None, None);
        for line in text.strip_suffix(b"\0")?.split(|byte| *byte == 0) {
            let space = line.iter().position(|byte| *byte == b' ')?;
            let (word, value) = (&line[..space], &line[space + 1..]);
            match word {
                b"qemu-program" => qemu.path = Some(string(value)?),
                b"qemu-arg" => qemu.args.push(string(value)?),
                b"qemu-fd" => qemu.descriptors.push(mapping(value)?),
                b"qemu-uid" => qemu.uid = Some(number(value)?),
                b"qemu-gid" => qemu.gid = Some(number(value)?),
                b"qemu-stderr" => qemu.stderr = Some(number(value)?),
                b"app-program" => app.path = Some(string(value)?),
                b"app-program-fd" => app.held = Some(number(value)?),
                b"app-arg" => app.args.push(string(value)?),
                b"app-fd" | b"keep-launch" => app.descriptors.push(mapping(value)?),
                b"app-uid" => app.uid = Some(number(value)?),
                b"app-gid" => app.gid = Some(number(value)?),
                b"app-once-fd" => app_once.push(mapping(value)?),
                b"kept-fd" => {
                    let Mapping { ours, theirs: tag } = mapping(value)?;
                    kept.push((u32::try_from(tag).ok()?, ours));
                }
                b"lock-fd" => lock = Some(number(value)?),
                b"log-fd" => log = Some(number(value)?),
                b"adopt-pid" => adopt_pid = Some(number(value)?),
                b"adopt-pidfd" => adopt_pidfd = Some(number(value)?),
                _ => return None,
            }
        }
        app.stderr = log;
        let mission = match adopt_pid {
            None if qemu.is_empty() => Mission::Nothing,
            None => Mission::Start(qemu.finish()?),
            Some(pid) if qemu.is_empty() && pid > 0 => {
                Mission::Adopt(Adopted { pid, pidfd: adopt_pidfd })
            }
            Some(_) => return None,
        };
        let description = Description { mission, app: app.finish()?, app_once, lock, log, kept };
        description.fits().then_some(description)
    }

    /// Where to say that a description is not understood, if as much of it is.
    pub(crate) fn log_of(text: &[u8]) -> Log {
        let mut lines = text.split(|byte| *byte == 0);
        let fd = lines.find_map(|line| number::<Fd>(line.strip_prefix(b"log-fd ")?));
        Log(fd.filter(|fd| *fd > 2))
    }

    /// Descriptors have sensible numbers. How many there may be is the kernel's to say.
    fn fits(&self) -> bool {
        let qemu: &[Mapping] = match &self.mission {
            Mission::Start(qemu) => qemu.descriptors(),
            Mission::Adopt(_) | Mission::Nothing => &[],
        };
        let app = self.app.descriptors();
        qemu.iter().chain(app).chain(&self.app_once).all(|one| one.theirs > 2)
            && self.kept.len() <= KEPT_MAX
            && self.descriptors().all(|fd| fd > 2)
    }

    /// Every descriptor the description names.
    fn descriptors(&self) -> impl Iterator<Item = Fd> {
        let (qemu, adopted) = match &self.mission {
            Mission::Start(qemu) => (Some(qemu), None),
            Mission::Adopt(adopted) => (None, adopted.pidfd),
            Mission::Nothing => (None, None),
        };
        let app = self.app.descriptors().iter().chain(&self.app_once);
        qemu.into_iter()
            .flat_map(|qemu| qemu.descriptors().iter().map(|one| one.ours).chain(qemu.stderr()))
            .chain(app.map(|one| one.ours))
            .chain(adopted)
            .chain(self.lock)
            .chain(self.log)
            .chain(self.kept.iter().map(|(_, fd)| *fd))
    }

    /// Closes what the launcher did not mean to hand on: a pipe of some shell kept open here would keep that shell waiting.
    pub(crate) fn close_all_others(&self) {
        let mut named: Vec<Fd> = self.descriptors().collect();
        named.sort_unstable();
        named.dedup();
        let mut next = 3;
        for fd in named {
            close_between(next, fd - 1);
            next = fd + 1;
        }
        close_between(next, Fd::MAX);
        close_all_on_exec();
    }

    /// Closes what only QEMU needed, once it has it.
    pub(crate) fn close_after_start(&self, qemu: &Program) {
        let app = self.app.descriptors();
        let is_kept = |fd: Fd| {
            app.iter().chain(&self.app_once).any(|one| one.ours == fd)
                || self.lock == Some(fd)
                || self.log == Some(fd)
                || self.kept.iter().any(|(_, kept)| *kept == fd)
        };
        qemu.descriptors()
            .iter()
            .map(|one| one.ours)
            .chain(qemu.stderr())
            .filter(|fd| !is_kept(*fd))
            .for_each(close_fd);
    }
}

fn string(value: &[u8]) -> Option<CString> {
    CString::new(value).ok()
}

fn number<N: std::str::FromStr>(value: &[u8]) -> Option<N> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn mapping(value: &[u8]) -> Option<Mapping> {
    let (ours, theirs) = std::str::from_utf8(value).ok()?.split_once('=')?;
    Some(Mapping { ours: ours.parse().ok()?, theirs: theirs.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(words: &[&str]) -> Vec<u8> {
        words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect()
    }

    const WHOLE: [&str; 9] = [
        "app-fd 5=8",
        "qemu-program /usr/bin/qemu",
        "qemu-arg -name",
        "qemu-arg two words",
        "qemu-fd 6=10",
        "app-program /opt/hpvmapp",
        "app-uid 7",
        "app-gid 8",
        "lock-fd 9",
    ];

    #[test]
    fn words_come_in_any_order() {
        let description = Description::parse(&text(&WHOLE)).expect("understood");
        let Mission::Start(qemu) = &description.mission else { panic!("QEMU is to be started") };
        assert_eq!(qemu.descriptors(), [Mapping { ours: 6, theirs: 10 }]);
        assert_eq!(description.app.descriptors(), [Mapping { ours: 5, theirs: 8 }]);
        assert_eq!(description.lock, Some(9));
        assert_eq!(description.descriptors().collect::<Vec<_>>(), [6, 5, 9]);
    }

    #[test]
    fn what_is_not_understood_is_refused_as_a_whole() {
        let refused = |extra: &[&str]| {
            let words: Vec<&str> = WHOLE.iter().chain(extra).copied().collect();
            assert!(Description::parse(&text(&words)).is_none(), "{extra:?}");
        };
        refused(&["surprise 1"]);
        refused(&["adopt-pid 5"]);
        refused(&["app-fd 5"]);
        refused(&["app-fd 5=1"]);
        refused(&["lock-fd x"]);
        refused(&["lock-fd 0"]);
        refused(&["qemu-uid 5"]);
        refused(&["kept-fd 1=1"]);
        refused(&["word-without-value"]);
        assert!(Description::parse(b"").is_none());
        assert!(Description::parse(&text(&WHOLE)[..20]).is_none(), "a torn description");
    }

    /// A virtual switch has a worker and no QEMU; what it keeps outlives its keeper.
    #[test]
    fn a_switch_has_no_engine() {
        let text = text(&["app-program /opt/hpvmnetd", "kept-fd 7=12", "lock-fd 9"]);
        let description = Description::parse(&text).expect("understood");
        assert!(matches!(description.mission, Mission::Nothing));
        assert_eq!(description.kept, [(12, 7)]);
        assert_eq!(description.descriptors().collect::<Vec<_>>(), [9, 7]);
    }

    #[test]
    fn an_adopted_engine_has_no_program() {
        let adopt = text(&["adopt-pid 42", "adopt-pidfd 4", "app-program /opt/hpvmapp"]);
        let description = Description::parse(&adopt).expect("understood");
        assert!(matches!(description.mission, Mission::Adopt(Adopted { pid: 42, pidfd: Some(4) })));
    }
}
