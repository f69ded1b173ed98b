//! The connection to an agent, and conversations over it that are always in step.
//!
//! ```text
//!  converse ──► 0xFF sync 4711 ──►            cuts off half a line of ours
//!               ◄── junk, late answers ──     passed over
//!               ◄── 0xFF 4711 ──────────      in step
//!  execute  ──► command ──►
//!               ◄── answer ─────────────      the first one is ours
//! ```
//!
//! An agent names no command in its answer. So a command whose answer did not come leaves us out of step, and the next one
//! syncs first. The connection stays, since an agent without one looks for it ten times a second; it is given up when it
//! broke or when the guest talks without end.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use crate::Error;
use crate::command::{Command, Sync};
use crate::frame::{DELIMITER, Decoder, Incoming, encode};
use crate::words::printable;

/// What a guest may say in one conversation, answers and all. Whoever says more is not talking with us.
pub const CONVERSATION_BYTES_MAX: usize = 1 << 20;
const READ_BYTES: usize = 8 << 10;

/// The way to the agent of one guest.
#[derive(Debug)]
pub struct Channel {
    path: PathBuf,
    connected: Option<Connected>,
}

#[derive(Debug)]
struct Connected {
    stream: UnixStream,
    decoder: Decoder,
    heard: VecDeque<Incoming>,
}

/// Whether the next answer is to the command sent last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    In,
    Out,
}

/// Commands in a row. The guest's agent may do nothing else meanwhile.
#[derive(Debug)]
pub struct Conversation<'a> {
    channel: &'a mut Channel,
    step: Step,
    bytes_left: usize,
}

impl Channel {
    /// A way that leads through a socket at which QEMU listens. Nothing is done yet.
    #[must_use]
    pub fn new(path: &Path) -> Channel {
        Channel { path: path.to_owned(), connected: None }
    }

    /// Makes sure that somebody talks with us.
    pub async fn converse(&mut self) -> Result<Conversation<'_>, Error> {
        let mut conversation =
            Conversation { channel: self, step: Step::Out, bytes_left: CONVERSATION_BYTES_MAX };
        conversation.sync(Instant::now() + Sync::DEADLINE).await?;
        Ok(conversation)
    }

    /// QEMU listens from its start on and is never slow to be connected to: a Unix socket's queue takes us at once.
    async fn connected(&mut self) -> Result<&mut Connected, Error> {
        if self.connected.is_none() {
            let stream = UnixStream::connect(&self.path).await.map_err(Error::Connect)?;
            let (decoder, heard) = (Decoder::default(), VecDeque::new());
            self.connected = Some(Connected { stream, decoder, heard });
        }
        self.connected.as_mut().ok_or(Error::Closed)
    }
}

impl Conversation<'_> {
    /// Performs a command within its deadline.
    pub async fn execute<C: Command>(&mut self, command: &C) -> Result<C::Answer, Error> {
        self.execute_within(command, C::DEADLINE).await
    }

    /// The same with a deadline of the caller's, which holds for getting in step too.
    pub async fn execute_within<C: Command>(
        &mut self,
        command: &C,
        after: Duration,
    ) -> Result<C::Answer, Error> {
        let until = Instant::now() + after;
        if self.step == Step::Out {
            self.sync(until).await?;
        }
        let late = || Error::Deadline { command: C::NAME, after };
        let line = encode(C::NAME, command)
            .map_err(|source| Error::Answer { command: C::NAME, source })?;
        self.step = Step::Out;
        self.send(&line, until).await?.ok_or_else(late)?;
        loop {
            let answer = match self.next(until).await?.ok_or_else(late)? {
                Incoming::Return(value) => serde_json::from_value(value)
                    .map_err(|source| Error::Answer { command: C::NAME, source }),
                Incoming::Error(words) => {
                    Err(Error::Refused { command: C::NAME, words: printable(&words) })
                }
                Incoming::Delimiter | Incoming::Garbage => continue,
            };
            self.step = Step::In;
            return answer;
        }
    }

    /// Leaves a command with a guest that does not answer, for the moment it wakes.
    pub async fn leave_behind<C: Command>(&mut self, command: &C) -> Result<(), Error> {
        self.step = Step::Out;
        let mut line = vec![DELIMITER];
        line.extend(
            encode(C::NAME, command)
                .map_err(|source| Error::Answer { command: C::NAME, source })?,
        );
        let after = C::DEADLINE;
        match self.send(&line, Instant::now() + after).await? {
            Some(()) => Ok(()),
            None => Err(Error::Deadline { command: C::NAME, after }),
        }
    }

    async fn sync(&mut self, until: Instant) -> Result<(), Error> {
        let id = fresh_id();
        let after = until.saturating_duration_since(Instant::now());
        let late = || Error::Deadline { command: Sync::NAME, after };
        let mut line = vec![DELIMITER];
        line.extend(
            encode(Sync::NAME, &Sync { id })
                .map_err(|source| Error::Answer { command: Sync::NAME, source })?,
        );
        self.send(&line, until).await?.ok_or_else(late)?;
        let mut follows_delimiter = false;
        loop {
            match self.next(until).await?.ok_or_else(late)? {
                Incoming::Delimiter => follows_delimiter = true,
                Incoming::Return(value) if follows_delimiter && value.as_u64() == Some(id) => {
                    self.step = Step::In;
                    return Ok(());
                }
                Incoming::Return(_) | Incoming::Error(_) | Incoming::Garbage => {
                    follows_delimiter = false;
                }
            }
        }
    }

    /// `None`: the guest does not take it in time.
    async fn send(&mut self, mut line: &[u8], until: Instant) -> Result<Option<()>, Error> {
        let connected = self.channel.connected().await?;
        while !line.is_empty() {
            let Ok(ready) = timeout_at(until, connected.stream.writable()).await else {
                return Ok(None);
            };
            match ready.and_then(|()| connected.stream.try_write(line)) {
                Ok(count) => line = &line[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(self.give_up(Error::Closed)),
            }
        }
        Ok(Some(()))
    }

    /// The next message; `None` when there is none in time.
    async fn next(&mut self, until: Instant) -> Result<Option<Incoming>, Error> {
        loop {
            let connected = self.channel.connected().await?;
            if let Some(message) = connected.heard.pop_front() {
                return Ok(Some(message));
            }
            // A guest that talks without end is always ready, so that the time is looked at here too.
            let waited = timeout_at(until, connected.stream.readable()).await;
            if waited.is_err() || Instant::now() >= until {
                return Ok(None);
            }
            let mut bytes = [0; READ_BYTES];
            match connected.stream.try_read(&mut bytes) {
                Ok(0) => return Err(self.give_up(Error::Closed)),
                Ok(count) if count > self.bytes_left => return Err(self.give_up(Error::Nonsense)),
                Ok(count) => {
                    self.bytes_left -= count;
                    connected.decoder.feed(&bytes[..count], &mut connected.heard);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(self.give_up(Error::Closed)),
            }
        }
    }

    /// What is still unread goes with the connection.
    fn give_up(&mut self, error: Error) -> Error {
        self.channel.connected = None;
        self.step = Step::Out;
        error
    }
}

/// A number that no earlier conversation had, also not one of a worker before us. 52 bits, since a JSON number may be read
/// as a floating point one.
fn fresh_id() -> u64 {
    RandomState::new().build_hasher().finish() >> 12
}
