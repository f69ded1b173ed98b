//! A process that was killed and is there all the same: the kernel ends no thread that waits for storage, and what the process
//! has open, with every lock on that, stays until the storage answers. Called by whoever finds a lock held.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};

/// What its threads wait for, as far as /proc tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unending {
    stores: BTreeSet<PathBuf>,
}

/// `None`: nobody killed the process with this number, or it is ending.
#[must_use]
pub fn unending(pid: i32) -> Option<Unending> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let held: Vec<PathBuf> = threads
        .map(|thread| thread.path())
        .filter(|thread| fs::read_to_string(thread.join("status")).is_ok_and(|s| is_held(&s)))
        .collect();
    let stores = held.iter().filter_map(|thread| store(thread)).collect();
    (!held.is_empty()).then_some(Unending { stores })
}

/// By /proc/PID/task/TID/status: a thread that sleeps and no signal wakes, though it is to die of one.
fn is_held(status: &str) -> bool {
    const SIGKILL: u64 = 1 << 8;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let pending = field("SigPnd:").and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    field("State:").is_some_and(|state| state.trim_start().starts_with('D'))
        && pending.is_some_and(|pending| pending & SIGKILL != 0)
}

/// What reads, writes and syncs has the descriptor of its file as its first argument.
fn store(thread: &Path) -> Option<PathBuf> {
    let call = fs::read_to_string(thread.join("syscall")).ok()?;
    let descriptor = call.split(' ').nth(1)?.strip_prefix("0x")?;
    let descriptor = i32::from_str_radix(descriptor, 16).ok()?;
    let path = fs::read_link(thread.join("fd").join(descriptor.to_string())).ok()?;
    path.is_absolute().then_some(path)
}

impl Display for Unending {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let stores: Vec<String> =
            self.stores.iter().map(|path| format!("'{}'", path.display())).collect();
        match &stores[..] {
            [] => f.write_str("a store answers that it waits for"),
            [store] => write!(f, "{store} answers"),
            several => write!(f, "{} answer", several.join(" and ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_killed_and_is_held_by_storage_does_not_end() {
        let status = |state: &str, pending: &str| {
            format!("Name:\thpvm\nState:\t{state}\nThreads:\t2\nSigPnd:\t{pending}\nShdPnd:\t0\n")
        };
        let (killed, not_killed) = ("0000000000000100", "0000000000000000");
        assert!(is_held(&status("D (disk sleep)", killed)));
        assert!(!is_held(&status("D (disk sleep)", not_killed)));
        assert!(!is_held(&status("Z (zombie)", killed)));
        assert!(!is_held(""));
        assert_eq!(unending(std::process::id().cast_signed()), None);
    }

    #[test]
    fn what_it_waits_for_is_told_as_far_as_it_is_known() {
        let told = |paths: &[&str]| {
            Unending { stores: paths.iter().map(PathBuf::from).collect() }.to_string()
        };
        assert_eq!(told(&[]), "a store answers that it waits for");
        assert_eq!(told(&["/a"]), "'/a' answers");
        assert_eq!(told(&["/b", "/a"]), "'/a' and '/b' answer");
    }
}
