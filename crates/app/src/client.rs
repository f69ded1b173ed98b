//! The commands' side of the control protocol: one request, its progress, one answer, each wait bounded.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use hpvm_host::fdpass::{self, DESCRIPTORS_MAX};
use hpvm_host::signals::Interruption;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::protocol::{LINE_BYTES_MAX, Reply, Request};

/// Why a worker could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the guest's worker cannot be reached")]
    Connect(#[source] io::Error),
    #[error("the guest's worker ended in the middle of an answer")]
    Closed,
    #[error("the guest's worker did not answer within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("the request could not be sent to the guest's worker")]
    Send(#[source] io::Error),
    #[error("the guest's worker gave an answer that is not understood")]
    Malformed,
    #[error("{0} devices are too many for one change; make several")]
    TooMany(usize),
    #[error("the guest's worker hangs")]
    Hangs,
    #[error("the wait for the guest's worker was interrupted")]
    Interrupted(Interruption),
}

/// While no answer comes, whoever waits is asked this often whether to go on.
const LOOK: Duration = Duration::from_millis(100);

/// Asks the worker at a control socket. `progress` gets each sentence on the way; the answer must come within `bound`.
pub fn ask(
    control: &Path,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
    bound: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<Reply, ClientError> {
    ask_while(control, request, descriptors, bound, progress, &mut || Ok(()))
}

/// The same for who may give up before: `goes_on` is asked now and then, and its error ends the wait. The worker hears nothing
/// of that, and what it was asked to do goes on.
pub fn ask_while(
    control: &Path,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
    bound: Duration,
    progress: &mut dyn FnMut(&str),
    goes_on: &mut dyn FnMut() -> Result<(), ClientError>,
) -> Result<Reply, ClientError> {
    let deadline = Instant::now() + bound;
    let stream = UnixStream::connect(control).map_err(ClientError::Connect)?;
    send(&stream, request, descriptors)?;
    let mut lines = BufReader::new(&stream);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ClientError::Deadline(bound));
        }
        if lines.buffer().is_empty() && !is_readable(&stream, left.min(LOOK))? {
            goes_on()?;
            continue;
        }
        stream.set_read_timeout(Some(left)).map_err(ClientError::Send)?;
        match read_reply(&mut lines, bound)? {
            Reply::Progress { text } => progress(&text),
            reply => return Ok(reply),
        }
    }
}

/// How long a worker takes at most from a copy that is given up to its last word.
const GIVING_UP: Duration = Duration::from_secs(30);

/// Asks for a copy, which may take as long as it likes as long as something is heard of it within `silence`. `watch` gets
/// what is done and the whole, in bytes, and says whether to go on; who does not waits until the worker has taken back what
/// it did.
pub fn copy(
    control: &Path,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
    silence: Duration,
    watch: &mut dyn FnMut(Option<(u64, u64)>) -> ControlFlow<()>,
) -> Result<Reply, ClientError> {
    let stream = UnixStream::connect(control).map_err(ClientError::Connect)?;
    send(&stream, request, descriptors)?;
    let mut lines = BufReader::new(&stream);
    let (mut bound, mut goes_on) = (silence, true);
    let mut heard_at = Instant::now();
    loop {
        let left = bound.saturating_sub(heard_at.elapsed());
        if left.is_zero() {
            return Err(ClientError::Deadline(bound));
        }
        let mut progress = None;
        if !lines.buffer().is_empty() || is_readable(&stream, left.min(LOOK))? {
            stream.set_read_timeout(Some(left)).map_err(ClientError::Send)?;
            match read_reply(&mut lines, bound)? {
                Reply::Copying { done, whole } => progress = Some((done, whole)),
                Reply::Progress { .. } => {}
                reply => return Ok(reply),
            }
            if goes_on {
                heard_at = Instant::now();
            }
        }
        if goes_on && watch(progress).is_break() {
            stream.shutdown(Shutdown::Write).map_err(ClientError::Send)?;
            (bound, goes_on, heard_at) = (GIVING_UP, false, Instant::now());
        }
    }
}

/// Whether there is something to read, or the end.
fn is_readable(stream: &UnixStream, bound: Duration) -> Result<bool, ClientError> {
    let timeout = Timespec::try_from(bound).unwrap_or_default();
    match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&timeout)) {
        Ok(count) => Ok(count > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(ClientError::Connect(error.into())),
    }
}

fn send(
    stream: &UnixStream,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), ClientError> {
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(ClientError::TooMany(descriptors.len()));
    }
    let mut line = serde_json::to_vec(request).map_err(|e| ClientError::Send(e.into()))?;
    line.push(b'\n');
    let sent = fdpass::send(stream, &line, descriptors).map_err(ClientError::Send)?;
    let mut rest = stream;
    rest.write_all(&line[sent..]).map_err(ClientError::Send)
}

fn read_reply(lines: &mut impl BufRead, bound: Duration) -> Result<Reply, ClientError> {
    let mut line = Vec::new();
    match lines.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line) {
        Ok(_) if line.last() == Some(&b'\n') => {
            serde_json::from_slice(&line).map_err(|_| ClientError::Malformed)
        }
        Ok(_) => Err(ClientError::Closed),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
        {
            Err(ClientError::Deadline(bound))
        }
        Err(_) => Err(ClientError::Closed),
    }
}
