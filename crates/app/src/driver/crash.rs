//! What a wait status means.

use hpvm_app::snapshot::Crash;
use hpvm_host::process;

const SIGKILL: i32 = 9;

/// `oom_kills`: the kernel's count of processes killed for memory, before. A SIGKILL while it grew was the kernel's.
pub(super) fn judge(wait_status: Option<i32>, oom_kills: u64) -> Crash {
    let Some(status) = wait_status else { return Crash::Unseen };
    // As waitpid tells: the low seven bits are the signal, the next byte the exit status.
    match status & 0x7f {
        0 => Crash::Exited { status: (status >> 8) & 0xff },
        SIGKILL if process::oom_kills().is_ok_and(|now| now > oom_kills) => Crash::OutOfMemory,
        signal => Crash::Killed { signal },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_status_is_told_apart() {
        let now = process::oom_kills().unwrap();
        assert_eq!(judge(None, now), Crash::Unseen);
        assert_eq!(judge(Some(1 << 8), now), Crash::Exited { status: 1 });
        assert_eq!(judge(Some(0), now), Crash::Exited { status: 0 });
        assert_eq!(judge(Some(6 | 0x80), now), Crash::Killed { signal: 6 });
        assert_eq!(judge(Some(9), u64::MAX), Crash::Killed { signal: 9 });
        if let Some(before) = now.checked_sub(1) {
            assert_eq!(judge(Some(9), before), Crash::OutOfMemory, "the count grew meanwhile");
            assert_eq!(judge(Some(15), before), Crash::Killed { signal: 15 });
        }
    }
}
