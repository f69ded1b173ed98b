//! What a wait status means.

use hpvm_app::snapshot::Crash;

const SIGKILL: i32 = 9;

/// The kernel's count of processes killed for memory. A SIGKILL while it grew was the kernel's.
#[derive(Clone, Copy, Debug)]
pub(super) struct OomKills {
    pub(super) before: u64,
    /// `None`: not known.
    pub(super) now: Option<u64>,
}

pub(super) fn judge(wait_status: Option<i32>, oom_kills: OomKills) -> Crash {
    let Some(status) = wait_status else { return Crash::Unseen };
    // As waitpid tells: the low seven bits are the signal, the next byte the exit status.
    match status & 0x7f {
        0 => Crash::Exited { status: (status >> 8) & 0xff },
        SIGKILL if oom_kills.now.is_some_and(|now| now > oom_kills.before) => Crash::OutOfMemory,
        signal => Crash::Killed { signal },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_status_is_told_apart() {
        let same = OomKills { before: 3, now: Some(3) };
        assert_eq!(judge(None, same), Crash::Unseen);
        assert_eq!(judge(Some(1 << 8), same), Crash::Exited { status: 1 });
        assert_eq!(judge(Some(0), same), Crash::Exited { status: 0 });
        assert_eq!(judge(Some(6 | 0x80), same), Crash::Killed { signal: 6 });
        assert_eq!(judge(Some(9), same), Crash::Killed { signal: 9 });
        let grew = OomKills { before: 3, now: Some(4) };
        assert_eq!(judge(Some(9), grew), Crash::OutOfMemory);
        assert_eq!(judge(Some(15), grew), Crash::Killed { signal: 15 });
        let unknown = OomKills { before: 3, now: None };
        assert_eq!(judge(Some(9), unknown), Crash::Killed { signal: 9 });
    }
}
