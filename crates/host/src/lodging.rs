//! Where guests live on a VM Host that systemd runs: in the control group of the unit that ends them in an orderly way. What a
//! session starts would else belong to the session, and get SIGTERM with it when the host goes down, before anybody has asked
//! the guest to shut down. Called by whoever starts guests and virtual switches; it knows nothing of them.

use std::fs;
use std::path::{Path, PathBuf};

/// The unit, by its group.
const UNIT: &str = "system.slice/hpvm-guests.service";
/// Below it systemd keeps sessions, and services of users.
const SESSIONS: &str = "/user.slice/";
/// Of cgroup v2 (Linux, Documentation/admin-guide/cgroup-v2.rst): a process number written here moves the process, 0 the
/// writer.
const PROCESSES: &str = "cgroup.procs";

/// While it is held, what this process starts belongs to the unit. Then the process is back in its session.
#[derive(Debug)]
pub struct Lodging {
    back: PathBuf,
}

impl Lodging {
    /// `None`: this process is in no session, the unit does not run, or there is no right to move. All of that is as it was
    /// before there was such a unit.
    #[must_use]
    pub fn enter() -> Option<Lodging> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        Lodging::at(&own, Path::new("/sys/fs/cgroup"))
    }

    fn at(own: &str, hierarchy: &Path) -> Option<Lodging> {
        let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
        let session = own.strip_prefix('/').filter(|_| own.starts_with(SESSIONS))?;
        move_to(&hierarchy.join(UNIT).join(PROCESSES)).ok()?;
        Some(Lodging { back: hierarchy.join(session).join(PROCESSES) })
    }
}

/// Never makes a file: without the unit there is none.
fn move_to(processes: &Path) -> std::io::Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new().write(true).open(processes)?.write_all(b"0\n")
}

impl Drop for Lodging {
    fn drop(&mut self) {
        // A session that ended meanwhile is none to go back to.
        let _ = move_to(&self.back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &str = "user.slice/user-0.slice/session-3.scope";

    /// A hierarchy with these groups, as plain files.
    fn hierarchy(groups: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for group in groups {
            fs::create_dir_all(folder.path().join(group)).unwrap();
            fs::write(folder.path().join(group).join(PROCESSES), "").unwrap();
        }
        folder
    }

    fn moved_to(hierarchy: &tempfile::TempDir, group: &str) -> bool {
        fs::read_to_string(hierarchy.path().join(group).join(PROCESSES)).unwrap() == "0\n"
    }

    #[test]
    fn who_is_in_a_session_goes_and_comes_back() {
        let groups = hierarchy(&[UNIT, SESSION]);
        let lodging = Lodging::at(&format!("1:name=x:/\n0::/{SESSION}\n"), groups.path());
        assert!(lodging.is_some() && moved_to(&groups, UNIT) && !moved_to(&groups, SESSION));
        drop(lodging);
        assert!(moved_to(&groups, SESSION));
    }

    #[test]
    fn everybody_else_stays() {
        let groups = hierarchy(&[UNIT, SESSION]);
        for own in ["0::/system.slice/hpvm.service\n", "0::/\n", "", "3:cpu:/user.slice/x\n"] {
            assert!(Lodging::at(own, groups.path()).is_none(), "{own:?}");
        }
        assert!(!moved_to(&groups, UNIT));
        let without_unit = hierarchy(&[SESSION]);
        assert!(Lodging::at(&format!("0::/{SESSION}\n"), without_unit.path()).is_none());
        assert!(!without_unit.path().join(UNIT).exists());
    }
}
