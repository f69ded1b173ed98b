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
