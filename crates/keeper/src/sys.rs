//! The system calls the keeper needs, declared here so that it depends on nothing but the C library.
//!
//! Each wrapper is one call. Descriptors are plain numbers: they come by number from the launch description and live as
//! long as the keeper, except where the caller closes one.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::io::{self, Error};

pub(crate) type Fd = c_int;
pub(crate) type Pid = c_int;

pub(crate) const POLLIN: i16 = 0x1;

const SIGHUP: c_int = 1;
const SIGINT: c_int = 2;
const SIGKILL: c_int = 9;
const SIGPIPE: c_int = 13;
const SIGTERM: c_int = 15;
const SIGCHLD: c_int = 17;
const SIG_DFL: usize = 0;
const SIG_IGN: usize = 1;
const SIG_BLOCK: c_int = 0;
const SIG_SETMASK: c_int = 2;

const F_OFD_SETLK: c_int = 37;
const F_WRLCK: i16 = 1;
const EINTR: c_int = 4;
const EAGAIN: c_int = 11;
const EACCES: c_int = 13;
const WNOHANG: c_int = 1;
const CLOSE_RANGE_CLOEXEC: c_int = 4;
const O_CLOEXEC: c_int = 0o2_000_000;
const O_NONBLOCK: c_int = 0o4_000;
const AF_UNIX: c_int = 1;
const SOCK_SEQPACKET: c_int = 5;
const MSG_DONTWAIT: c_int = 0x40;
const MSG_NOSIGNAL: c_int = 0x4000;
const MSG_CMSG_CLOEXEC: c_int = 0x4000_0000;
const SOL_SOCKET: c_int = 1;
const SCM_RIGHTS: c_int = 1;
const PR_SET_NAME: c_int = 15;
const PR_SET_CHILD_SUBREAPER: c_int = 36;
const PR_SET_NO_NEW_PRIVS: c_int = 38;
const CLOCK_REALTIME: c_int = 0;
const CLOCK_MONOTONIC: c_int = 1;
const SYS_PIDFD_SEND_SIGNAL: c_long = 424;
const SYS_PIDFD_OPEN: c_long = 434;
/// `_IOWR(0xff, 11, struct pidfd_info)` of 64 bytes, Linux 6.13.
const PIDFD_GET_INFO: c_ulong = 0xc040_ff0b;
/// The exit status, once the process was collected by its parent; Linux 6.15.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// The C library's set of signals: 1,024 bits.
#[repr(C)]
struct SignalSet([c_ulong; 16]);

#[repr(C)]
struct Flock {
    kind: i16,
    whence: i16,
    start: i64,
    length: i64,
    pid: Pid,
}

#[repr(C)]
struct Time {
    seconds: i64,
    nanoseconds: c_long,
}

/// One descriptor to wait for.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) fd: Fd,
    pub(crate) events: i16,
    pub(crate) happened: i16,
}

/// A buffer of a message (`struct iovec`).
#[repr(C)]
struct Buffer {
    start: *mut c_void,
    length: usize,
}

/// A message and what travels beside it (`struct msghdr`, Linux on 64 bits).
#[repr(C)]
struct MessageHeader {
    name: *mut c_void,
    name_length: c_uint,
    buffers: *mut Buffer,
    buffer_count: usize,
    control: *mut c_void,
    control_length: usize,
    flags: c_int,
}

/// One descriptor beside a message (`struct cmsghdr` and its data, filled up to a multiple of 8).
#[repr(C)]
struct Rights {
    length: usize,
    level: c_int,
    kind: c_int,
    fd: Fd,
    filler: c_int,
}

impl Rights {
    /// Without the filler (CMSG_LEN).
    const LENGTH: usize = size_of::<Rights>() - size_of::<c_int>();
}

/// The first 64 bytes of what the kernel tells of a process.
#[repr(C)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_status: i32,
}

unsafe extern "C" {
    fn read(fd: Fd, buffer: *mut c_void, length: usize) -> isize;
    fn pread(fd: Fd, buffer: *mut c_void, length: usize, offset: i64) -> isize;
    fn write(fd: Fd, buffer: *const c_void, length: usize) -> isize;
    fn close(fd: Fd) -> c_int;
    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
    fn dup2(from: Fd, to: Fd) -> c_int;
    fn dup3(from: Fd, to: Fd, flags: c_int) -> c_int;
    fn fcntl(fd: Fd, command: c_int, ...) -> c_int;
    fn ioctl(fd: Fd, request: c_ulong, ...) -> c_int;
    fn poll(wanted: *mut Wanted, count: c_ulong, timeout_ms: c_int) -> c_int;
    fn fork() -> Pid;
    fn execve(path: *const c_char, args: *const *const c_char, env: *const *const c_char) -> c_int;
    fn _exit(status: c_int) -> !;
    fn waitpid(pid: Pid, status: *mut c_int, options: c_int) -> Pid;
    fn kill(pid: Pid, signal: c_int) -> c_int;
    fn setsid() -> Pid;
    fn umask(mask: c_uint) -> c_uint;
    fn setgroups(count: usize, groups: *const c_uint) -> c_int;
    fn setresgid(real: c_uint, effective: c_uint, saved: c_uint) -> c_int;
    fn setresuid(real: c_uint, effective: c_uint, saved: c_uint) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn signal(signal: c_int, handler: usize) -> usize;
    fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn signalfd(fd: Fd, set: *const SignalSet, flags: c_int) -> Fd;
    fn socketpair(domain: c_int, kind: c_int, protocol: c_int, ends: *mut Fd) -> c_int;
    fn send(fd: Fd, bytes: *const c_void, length: usize, flags: c_int) -> isize;
    fn sendmsg(fd: Fd, message: *const MessageHeader, flags: c_int) -> isize;
    fn recvmsg(fd: Fd, message: *mut MessageHeader, flags: c_int) -> isize;
    fn clock_gettime(clock: c_int, time: *mut Time) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn counted(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| Error::last_os_error())
}

/// Everything a file holds, from its start, whatever the position of its description.
pub(crate) fn read_whole(fd: Fd) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut part = [0_u8; 4096];
    loop {
        let offset = i64::try_from(text.len()).map_err(Error::other)?;
        // SAFETY: the buffer is ours and as long as said.
        let length = unsafe { pread(fd, part.as_mut_ptr().cast(), part.len(), offset) };
        match counted(length)? {
            0 => return Ok(text),
            length => text.extend_from_slice(&part[..length]),
        }
    }
}

/// Writes what it can at once; what reports has nobody to report a failure to.
pub(crate) fn write_some(fd: Fd, bytes: &[u8]) {
    // SAFETY: the bytes are ours and as many as said.
    unsafe { write(fd, bytes.as_ptr().cast(), bytes.len()) };
}

pub(crate) fn close_fd(fd: Fd) {
    // SAFETY: the caller gives a descriptor that nothing uses any more; closing twice would be EBADF and no more.
    unsafe { close(fd) };
}

/// Closes all descriptors from `first` to `last`.
pub(crate) fn close_between(first: Fd, last: Fd) {
    if let (Ok(first), Ok(last)) = (c_uint::try_from(first), c_uint::try_from(last))
        && first <= last
    {
        // SAFETY: called at the start, when no descriptor but those of the description is in use.
        unsafe { close_range(first, last, 0) };
    }
}

/// Lets no descriptor but the standard three through an exec that does not ask for it.
pub(crate) fn close_all_on_exec() {
    // SAFETY: only flags change.
    unsafe { close_range(3, c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
}

/// Locks byte 0 of a file for this open description. `false`: another has it.
pub(crate) fn lock_first_byte(fd: Fd) -> io::Result<bool> {
    let lock = Flock { kind: F_WRLCK, whence: 0, start: 0, length: 1, pid: 0 };
    // SAFETY: the kernel reads the structure, which has the layout of struct flock on 64-bit Linux.
    match checked(unsafe { fcntl(fd, F_OFD_SETLK, &raw const lock) }) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(EAGAIN | EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits until something happens, or `timeout_ms` passed (-1: for ever), or a signal came.
pub(crate) fn wait_for(wanted: &mut [Wanted], timeout_ms: c_int) -> io::Result<()> {
    // SAFETY: the slice is ours and as long as said.
    match checked(unsafe { poll(wanted.as_mut_ptr(), wanted.len() as c_ulong, timeout_ms) }) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(EINTR) => {
            wanted.iter_mut().for_each(|one| one.happened = 0);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Whether a descriptor has something for us already.
pub(crate) fn is_ready(fd: Fd) -> bool {
    let mut wanted = [Wanted { fd, events: POLLIN, happened: 0 }];
    wait_for(&mut wanted, 0).is_ok() && wanted[0].happened != 0
}

/// Makes this process what it is to be for its children and for the system: their collector to the last, leader of its own
/// session, deaf to what is meant for people's programs. Returns a descriptor that is readable when a child ended.
pub(crate) fn settle() -> io::Result<Fd> {
    for ignored in [SIGHUP, SIGINT, SIGTERM, SIGPIPE] {
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { signal(ignored, SIG_IGN) };
    }
    // Whoever started us may have left it ignored: children would end unseen then, for their children too.
    // SAFETY: the default runs no code of ours.
    unsafe { signal(SIGCHLD, SIG_DFL) };
    // SAFETY: no pointers; the only refusal is that we lead a session already.
    unsafe { setsid() };
    // Started through a descriptor we would be called by its number; a name that cannot be set stands in nobody's way.
    // SAFETY: the name is a C string shorter than the 16 bytes the kernel takes.
    let _ = unsafe { prctl(PR_SET_NAME, c"hpvmkeeper".as_ptr()) };
    // SAFETY: an option with one number.
    checked(unsafe { prctl(PR_SET_CHILD_SUBREAPER, 1 as c_ulong) })?;
    let mut children = SignalSet([0; 16]);
    children.0[0] = 1 << (SIGCHLD - 1);
    // SAFETY: the set has the size and layout of the C library's, and the old one is not asked for.
    checked(unsafe { sigprocmask(SIG_BLOCK, &raw const children, std::ptr::null_mut()) })?;
    // SAFETY: as above.
    checked(unsafe { signalfd(-1, &raw const children, O_CLOEXEC | O_NONBLOCK) })
}

/// Empties the descriptor of [`settle`].
pub(crate) fn drain(fd: Fd) {
    let mut record = [0_u8; 128];
    // SAFETY: the buffer is ours and as long as said.
    while unsafe { read(fd, record.as_mut_ptr().cast(), record.len()) } > 0 {}
}

/// A child that has ended, and its wait status.
pub(crate) fn ended_child() -> Option<(Pid, u32)> {
    let mut status = 0;
    // SAFETY: the kernel writes one number.
    match unsafe { waitpid(-1, &raw mut status, WNOHANG) } {
        pid if pid > 0 => Some((pid, status.cast_unsigned())),
        _ => None,
    }
}

/// Two ends of a link that keeps messages apart.
pub(crate) fn link() -> io::Result<(Fd, Fd)> {
    let mut ends = [-1; 2];
    // SAFETY: the kernel writes two numbers.
    checked(unsafe { socketpair(AF_UNIX, SOCK_SEQPACKET | O_CLOEXEC, 0, ends.as_mut_ptr()) })?;
    Ok((ends[0], ends[1]))
}

/// Sends a message if there is room; a worker that reads nothing gets nothing.
pub(crate) fn send_message(fd: Fd, message: &[u8; 16]) {
    // SAFETY: the bytes are ours and as many as said.
    unsafe { send(fd, message.as_ptr().cast(), message.len(), MSG_DONTWAIT | MSG_NOSIGNAL) };
}

/// Where a link may be full.
#[derive(Clone, Copy)]
pub(crate) enum Room {
    /// The message is lost then.
    Now,
    /// A worker begins by reading what is kept for it, and one that ends ends the wait.
    AwaitedFor,
}

/// Sends a message with a descriptor.
pub(crate) fn send_descriptor(fd: Fd, message: &[u8; 16], passed: Fd, room: Room) {
    let flags = match room {
        Room::Now => MSG_DONTWAIT | MSG_NOSIGNAL,
        Room::AwaitedFor => MSG_NOSIGNAL,
    };
    let mut bytes = *message;
    let mut buffer = Buffer { start: bytes.as_mut_ptr().cast(), length: bytes.len() };
    let mut rights = Rights {
        length: Rights::LENGTH,
        level: SOL_SOCKET,
        kind: SCM_RIGHTS,
        fd: passed,
        filler: 0,
    };
    let header = header(&mut buffer, &mut rights);
    // SAFETY: the header leads to a buffer and a control message of ours, which live until the call returns.
    unsafe { sendmsg(fd, &raw const header, flags) };
}

fn header(buffer: &mut Buffer, rights: &mut Rights) -> MessageHeader {
    MessageHeader {
        name: std::ptr::null_mut(),
        name_length: 0,
        buffers: buffer,
        buffer_count: 1,
        control: std::ptr::from_mut(rights).cast(),
        control_length: size_of::<Rights>(),
        flags: 0,
    }
}

/// What came over a link.
pub(crate) enum Received {
    /// Whole, and the descriptor that came along.
    Message([u8; 16], Option<Fd>),
    Nothing,
    Closed,
}

pub(crate) fn receive_message(fd: Fd) -> Received {
    let mut message = [0_u8; 16];
    let mut buffer = Buffer { start: message.as_mut_ptr().cast(), length: message.len() };
    let mut rights = Rights { length: 0, level: 0, kind: 0, fd: -1, filler: 0 };
    let mut header = header(&mut buffer, &mut rights);
    // SAFETY: the header leads to a buffer and room for one control message, ours and as long as said; the kernel closes
    // descriptors beyond that room.
    let length = unsafe { recvmsg(fd, &raw mut header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) };
    let is_ours = (rights.level, rights.kind) == (SOL_SOCKET, SCM_RIGHTS)
        && header.control_length >= Rights::LENGTH
        && rights.length == Rights::LENGTH;
    let passed = is_ours.then_some(rights.fd);
    match counted(length) {
        Ok(16) => Received::Message(message, passed),
        // A short message is no message of ours; one of no bytes and the end of the link look the same.
        Ok(0) => Received::Closed,
        Ok(_) => {
            if let Some(fd) = passed {
                close_fd(fd);
            }
            Received::Nothing
        }
        Err(error) if matches!(error.raw_os_error(), Some(EAGAIN | EINTR)) => Received::Nothing,
        Err(_) => Received::Closed,
    }
}

/// Milliseconds on a clock that nobody sets.
pub(crate) fn now_ms() -> u64 {
    let (seconds, nanoseconds) = clock(CLOCK_MONOTONIC);
    seconds * 1_000 + nanoseconds / 1_000_000
}

/// Seconds since 1970.
pub(crate) fn wall_clock_seconds() -> u64 {
    clock(CLOCK_REALTIME).0
}

fn clock(which: c_int) -> (u64, u64) {
    let mut time = Time { seconds: 0, nanoseconds: 0 };
    // SAFETY: the kernel writes the structure, which has the layout of struct timespec on 64-bit Linux.
    unsafe { clock_gettime(which, &raw mut time) };
    (u64::try_from(time.seconds).unwrap_or(0), u64::try_from(time.nanoseconds).unwrap_or(0))
}

/// A hold on a process that is not our child.
pub(crate) fn hold(pid: Pid) -> io::Result<Fd> {
    // SAFETY: a number of a process and no flags.
    let fd = unsafe { syscall(SYS_PIDFD_OPEN, c_long::from(pid), 0 as c_long) };
    checked(c_int::try_from(fd).unwrap_or(-1))
}

/// Kills a child, which keeps its number until we collect it.
pub(crate) fn kill_child(pid: Pid) -> bool {
    // SAFETY: two numbers.
    unsafe { kill(pid, SIGKILL) == 0 }
}

/// Kills a process that is held.
pub(crate) fn kill_held(pidfd: Fd) -> bool {
    let info: *const c_void = std::ptr::null();
    // SAFETY: without an info structure and with no flags it is kill(2) by descriptor.
    unsafe {
        syscall(
            SYS_PIDFD_SEND_SIGNAL,
            c_long::from(pidfd),
            c_long::from(SIGKILL),
            info,
            0 as c_long,
        ) == 0
    }
}

/// The wait status of a process that ended and is not our child, where the kernel tells it.
///
/// It does once the parent has collected it, which is waited for: half a second at most.
pub(crate) fn status_of_held(pidfd: Fd) -> Option<u32> {
    let mut collected = [Wanted { fd: pidfd, events: 0, happened: 0 }];
    wait_for(&mut collected, 500).ok()?;
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, cgroup: 0, ids: [0; 11], exit_status: 0 };
    // SAFETY: the request carries the size of the structure, which the kernel reads and fills.
    let answer = unsafe { ioctl(pidfd, PIDFD_GET_INFO, &raw mut info) };
    (answer == 0 && info.mask & PIDFD_INFO_EXIT != 0).then(|| info.exit_status.cast_unsigned())
}

/// Starts a child, which goes on in `child` and never returns from it.
pub(crate) fn fork_into(child: impl FnOnce() -> Refusal) -> io::Result<Pid> {
    // SAFETY: this process has one thread, so the child finds every lock of the C library free.
    match checked(unsafe { fork() })? {
        0 => {
            let Refusal = child();
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { _exit(127) }
        }
        pid => Ok(pid),
    }
}

/// What a child is left with when it could not become its program.
pub(crate) struct Refusal;

/// In a child: a session of its own, signals as every program expects them, files for their owner only, no new rights.
///
/// The session is not for tidiness. When the keeper dies while a process of its group is stopped, the kernel sends the group
/// SIGHUP and SIGCONT; in a session of their own QEMU and worker are spared.
pub(crate) fn become_a_program() -> io::Result<()> {
    // SAFETY: no pointers.
    checked(unsafe { setsid() })?;
    for ignored in [SIGHUP, SIGINT, SIGTERM, SIGPIPE] {
        // SAFETY: the default runs no code of ours.
        unsafe { signal(ignored, SIG_DFL) };
    }
    let none = SignalSet([0; 16]);
    // SAFETY: the set has the size and layout of the C library's, and the old one is not asked for.
    checked(unsafe { sigprocmask(SIG_SETMASK, &raw const none, std::ptr::null_mut()) })?;
    // SAFETY: one number, cannot fail.
    unsafe { umask(0o077) };
    let (yes, unused): (c_ulong, c_ulong) = (1, 0);
    // SAFETY: an option with numbers, of which the last three must be 0.
    checked(unsafe { prctl(PR_SET_NO_NEW_PRIVS, yes, unused, unused, unused) })?;
    Ok(())
}

/// In a child: gives up the rights of the keeper for good.
pub(crate) fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: an empty list is not read.
    checked(unsafe { setgroups(0, std::ptr::null()) })?;
    // SAFETY: three numbers.
    checked(unsafe { setresgid(gid, gid, gid) })?;
    // SAFETY: three numbers.
    checked(unsafe { setresuid(uid, uid, uid) })?;
    Ok(())
}

/// Copies a descriptor to this very number, which is another one, closed on exec.
pub(crate) fn copy_closed_on_exec(fd: Fd, number: Fd) -> io::Result<()> {
    // SAFETY: numbers; in a child before exec nothing else uses either descriptor.
    checked(unsafe { dup3(fd, number, O_CLOEXEC) }).map(|_| ())
}

/// Copies a descriptor to this very number, open in the program to come.
pub(crate) fn copy_to(fd: Fd, number: Fd) -> io::Result<()> {
    // SAFETY: two numbers; in a child before exec nothing else uses either.
    checked(unsafe { dup2(fd, number) }).map(|_| ())
}

/// In a child: becomes the program, without an environment. Returns only when it could not.
///
/// # Safety
///
/// `args` must point to C strings that live on, and end with a null pointer.
pub(crate) unsafe fn execute(path: &CStr, args: &[*const c_char]) -> Error {
    let environment: [*const c_char; 1] = [std::ptr::null()];
    // SAFETY: the path is a C string, the environment is empty, and the caller answers for the arguments.
    unsafe { execve(path.as_ptr(), args.as_ptr(), environment.as_ptr()) };
    Error::last_os_error()
}
