//! A client's end of the door: a Unix stream that never blocks, its frames, and what is still to be sent.
//!
//! The session uses [`Attachment`] under its poll. [`request_drives`] and [`request_medium`] are for who wants one verb of the
//! worker and nothing else.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::door::{
    ClientFrame, Decoder, DoorError, Drive, Frame, Hello, MediumRequest, ServerFrame, VERSION, Want,
};

/// From so many unsent bytes on a client takes no more input.
pub const UNSENT_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum DoorFailure {
    #[error("the stream to the guest's console broke")]
    Stream(#[from] io::Error),
    #[error("the guest's worker sent what this hpvmconsole does not understand")]
    Frame(#[from] DoorError),
    #[error("the guest's worker refused: {0}")]
    Denied(String),
    #[error("the guest's worker did not answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("the guest's worker closed the console before it answered")]
    Closed,
}

#[derive(Debug)]
pub struct Attachment {
    stream: UnixStream,
    decoder: Decoder,
    unsent: Vec<u8>,
    closed: bool,
}

impl Attachment {
    /// # Errors
    /// When the stream cannot be made non-blocking.
    pub fn new(stream: UnixStream, want: Want, history_bytes: u32) -> io::Result<Attachment> {
        stream.set_nonblocking(true)?;
        let mut attachment =
            Attachment { stream, decoder: Decoder::default(), unsent: Vec::new(), closed: false };
        attachment.say(&ClientFrame::Hello(Hello { version: VERSION, want, history_bytes }));
        Ok(attachment)
    }

    /// Queues a frame; [`Attachment::send`] sends it.
    pub fn say(&mut self, frame: &ClientFrame) {
        frame.encode(&mut self.unsent);
    }

    #[must_use]
    pub fn unsent(&self) -> usize {
        self.unsent.len()
    }

    /// Sends as much as goes without waiting.
    pub fn send(&mut self) {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Nobody hears us any more. What the other end said before is still to be read, and ends in the end of
                // the stream.
                Err(_) => return self.unsent.clear(),
            }
        }
    }

    /// Reads once what has come.
    pub fn receive(&mut self) {
        let mut part = [0; 8192];
        match self.stream.read(&mut part) {
            Ok(0) => self.closed = true,
            Ok(length) => self.decoder.push(&part[..length]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            // ECONNRESET: the worker is gone and had not read all we sent.
            Err(_) => self.closed = true,
        }
    }

    /// The next frame that was received.
    ///
    /// # Errors
    /// When the bytes are no frame.
    pub fn take(&mut self) -> Result<Option<ServerFrame>, DoorError> {
        self.decoder.take()
    }

    /// Whether the other end is gone. Frames received before are still to be taken.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Leaves in order. A worker that reads nothing learns it from the end of the stream.
    pub fn detach(mut self) {
        self.say(&ClientFrame::Detach);
        self.send();
    }
}

impl AsFd for Attachment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Asks the worker behind `stream` for another medium in a drive, and waits for what became of it: what was done, or why not.
///
/// # Errors
/// When the worker does not answer the question at all.
pub fn request_medium(
    stream: UnixStream,
    request: MediumRequest,
    patience: Duration,
) -> Result<Result<String, String>, DoorFailure> {
    ask(stream, &ClientFrame::Medium(request), patience, &mut |_| {})
}

/// Asks for the guest's drives and what can be put into them.
///
/// # Errors
/// When the worker does not answer the question at all.
pub fn request_drives(
    stream: UnixStream,
    patience: Duration,
) -> Result<Result<Vec<Drive>, String>, DoorFailure> {
    let mut drives = Vec::new();
    let answer = ask(stream, &ClientFrame::Drives, patience, &mut |drive| drives.push(drive))?;
    Ok(answer.map(|_| drives))
}

fn ask(
    mut stream: UnixStream,
    verb: &ClientFrame,
    patience: Duration,
    told: &mut dyn FnMut(Drive),
) -> Result<Result<String, String>, DoorFailure> {
    let deadline = Instant::now() + patience;
    let mut asked = Vec::new();
    let hello = Hello { version: VERSION, want: Want::Watch, history_bytes: 0 };
    ClientFrame::Hello(hello).encode(&mut asked);
    verb.encode(&mut asked);
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(patience))?;
    // A worker that refuses closes early: then the write fails, and its reason is still to be read.
    let _ = stream.write_all(&asked);
    let mut decoder = Decoder::default();
    let mut part = [0; 8192];
    loop {
        while let Some(frame) = decoder.take::<ServerFrame>()? {
            match frame {
                ServerFrame::Answer(result) => return Ok(result),
                ServerFrame::Drive(drive) => told(drive),
                ServerFrame::Denied(reason) => return Err(DoorFailure::Denied(reason)),
                _ => {}
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(DoorFailure::Late(patience));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part) {
            Ok(0) => return Err(DoorFailure::Closed),
            Ok(length) => decoder.push(&part[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}
