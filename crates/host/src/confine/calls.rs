//! The system calls of a worker, of the keeper it may start, and of what the C library needs in both; and which of them
//! every confined process has.
//!
//! Three filters, of which the kernel takes the strictest answer: death for what only an attacker calls, 'not there' for
//! clone3 (whose arguments no filter sees; the C library then uses clone, whose arguments it does see), and a refusal for
//! whatever is on no list.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use nix::libc::{self, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter_all_threads,
};

use super::ConfineError;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What every process of ours that is confined may call, whatever the arguments. hpvmnat has nothing beyond it, so what only a
/// worker needs does not belong here.
pub(super) const COMMON: &[c_long] = &[
    // Files it has or may reach.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_stat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    // Sockets; which kind they are of is decided where they are made.
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Waiting and time.
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads, signals, itself.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What a worker may call besides, whatever the arguments.
const WORKER: &[c_long] = &[
    // Files it has or may reach.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_close_range,
    libc::SYS_openat2,
    libc::SYS_lstat,
    libc::SYS_fstatfs,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fadvise64,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_chmod,
    libc::SYS_umask,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    libc::SYS_memfd_create,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    // Many messages at once, as a switch's wire has them.
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    // Waiting and time.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    // A guest's worker watches its switches' wires.
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_clock_getres,
    libc::SYS_nanosleep,
    // Threads, signals, itself.
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_arch_prctl,
    libc::SYS_sched_getaffinity,
    libc::SYS_kill,
    libc::SYS_uname,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    // Starting a successor, and being one.
    libc::SYS_clone3,
    libc::SYS_execve,
    libc::SYS_setsid,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
];

/// Nothing of ours has a use for them, nor any library; who calls them is not us any more.
const HOSTILE: &[c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_acct,
];

/// The requests that files, terminals and pidfds are asked by us and by the standard library.
const IOCTLS: &[u64] =
    &[libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD, libc::TCGETS, PIDFD_GET_INFO];
const PIDFD_GET_INFO: u64 = 0xc040_ff0b;

const PRCTLS: &[i32] = &[
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_SET_CHILD_SUBREAPER,
];

/// Flags of clone that make namespaces.
const NAMESPACES: u64 = 0x7e02_0080;

/// Installs all filters, for this process and what it starts.
pub(super) fn withhold() -> Result<(), ConfineError> {
    let filters = [allowed(), absent(), hostile()];
    for filter in filters {
        let program = filter.map_err(ConfineError::Calls)?;
        apply_filter_all_threads(&program).map_err(ConfineError::Seccomp)?;
    }
    Ok(())
}

fn allowed() -> Result<BpfProgram, BackendError> {
    let mut rules = whatever_arguments(&[COMMON, WORKER].concat());
    let unix = u64::try_from(libc::AF_UNIX).unwrap_or(1);
    rules.insert(libc::SYS_socket, vec![rule(0, SeccompCmpOp::Eq, unix)?]);
    rules.insert(libc::SYS_socketpair, vec![rule(0, SeccompCmpOp::Eq, unix)?]);
    rules.insert(libc::SYS_clone, vec![rule(0, SeccompCmpOp::MaskedEq(NAMESPACES), 0)?]);
    // Reading limits, not setting them.
    let no_new_limit = condition(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![no_new_limit])?]);
    rules.insert(libc::SYS_ioctl, one_of(1, IOCTLS.iter().copied())?);
    let prctls = PRCTLS.iter().map(|option| u64::from(option.unsigned_abs()));
    rules.insert(libc::SYS_prctl, one_of(0, prctls)?);
    let refusal = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    filter(rules, refusal, SeccompAction::Allow)
}

fn absent() -> Result<BpfProgram, BackendError> {
    let not_there = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    filter(whatever_arguments(&[libc::SYS_clone3]), SeccompAction::Allow, not_there)
}

pub(super) fn hostile() -> Result<BpfProgram, BackendError> {
    filter(whatever_arguments(HOSTILE), SeccompAction::Allow, SeccompAction::KillProcess)
}

pub(super) fn whatever_arguments(calls: &[c_long]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

pub(super) fn one_of(
    argument: u8,
    values: impl Iterator<Item = u64>,
) -> Result<Vec<SeccompRule>, BackendError> {
    values.map(|value| rule(argument, SeccompCmpOp::Eq, value)).collect()
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![condition(argument, SeccompCmpArgLen::Dword, operator, value)?])
}

fn condition(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, length, operator, value)
}

/// A filter that answers what its rules match with one action and all else with the other.
pub(super) fn filter(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, matched, ARCH.try_into()?)?.try_into()
}
