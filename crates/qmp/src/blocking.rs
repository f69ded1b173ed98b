//! The client for those who have nothing else to do meanwhile: a forced stop past the worker, and tests.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::answer::AddedFd;
use crate::command::{AddFd, Capabilities, Command};
use crate::error::Error;
use crate::event::Event;
use crate::frame::{Decoder, Greeting, Incoming, encode};
use crate::{deadline, passing};

/// Events kept while nobody asks for them; the oldest go first.
const EVENTS_KEPT: usize = 256;
const READ_BYTES: usize = 16 << 10;

/// A connection that has passed the greeting.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
    arrived: VecDeque<Incoming>,
    events: VecDeque<Event>,
    greeting: Greeting,
    next_id: u64,
}

impl Client {
    /// Connects to a monitor socket. A monitor that is held by another client sends no greeting.
    pub fn connect(path: &Path) -> Result<Client, Error> {
        let until = Instant::now() + deadline::CONNECT;
        let stream =
            dial(path).map_err(|source| Error::Connect { path: path.to_owned(), source })?;
        Client::greet(stream, until)
    }

    /// Takes over a connected socket that nothing was read from.
    pub fn from_stream(stream: UnixStream) -> Result<Client, Error> {
        Client::greet(stream, Instant::now() + deadline::CONNECT)
    }

    fn greet(stream: UnixStream, until: Instant) -> Result<Client, Error> {
        let mut decoder = Decoder::default();
        let mut arrived = VecDeque::new();
        let greeting = loop {
            match arrived.pop_front() {
                Some(Incoming::Greeting(greeting)) => break greeting,
                Some(_) => {}
                None => {
                    if !receive(&stream, &mut decoder, &mut arrived, until)? {
                        return Err(Error::NoGreeting { after: deadline::CONNECT });
                    }
                }
            }
        };
        let events = VecDeque::new();
        let mut client = Client { stream, decoder, arrived, events, greeting, next_id: 1 };
        client.execute(&Capabilities {})?;
        Ok(client)
    }

    #[must_use]
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// Performs a command within its deadline.
    pub fn execute<C: Command>(&mut self, command: &C) -> Result<C::Answer, Error> {
        self.perform(command, None, C::DEADLINE)
    }

    /// The same with a deadline of the caller's.
    pub fn execute_within<C: Command>(
        &mut self,
        command: &C,
        after: Duration,
    ) -> Result<C::Answer, Error> {
        self.perform(command, None, after)
    }

    /// Hands a descriptor to QEMU.
    pub fn pass(&mut self, command: &AddFd, fd: BorrowedFd<'_>) -> Result<AddedFd, Error> {
        self.perform(command, Some(fd), AddFd::DEADLINE)
    }

    /// The next event, one that came earlier first; None when none came in time.
    pub fn next_event(&mut self, within: Duration) -> Result<Option<Event>, Error> {
        let until = Instant::now() + within;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.arrived.pop_front() {
                Some(incoming) => self.keep_event(incoming),
                None => {
                    if !receive(&self.stream, &mut self.decoder, &mut self.arrived, until)? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn perform<C: Command>(
        &mut self,
        command: &C,
        fd: Option<BorrowedFd<'_>>,
        after: Duration,
    ) -> Result<C::Answer, Error> {
        let until = Instant::now() + after;
        let id = self.next_id;
        self.next_id += 1;
        let line = encode(C::NAME, command, id)
            .map_err(|source| Error::Request { command: C::NAME, source })?;
        if !send(&self.stream, &line, fd, until)? {
            return Err(Error::Deadline { command: C::NAME, after });
        }
        loop {
            match self.arrived.pop_front() {
                Some(Incoming::Return { id: Some(answered), value }) if answered == id => {
                    return serde_json::from_value(value)
                        .map_err(|source| Error::Answer { command: C::NAME, source });
                }
                // Without an id QEMU could not read what we sent last; only one command is under way here.
                Some(Incoming::Error { id: answered, refusal })
                    if answered.is_none_or(|answered| answered == id) =>
                {
                    return Err(Error::Refused { command: C::NAME, refusal });
                }
                Some(other) => self.keep_event(other),
                None => {
                    if !receive(&self.stream, &mut self.decoder, &mut self.arrived, until)? {
                        return Err(Error::Deadline { command: C::NAME, after });
                    }
                }
            }
        }
    }

    /// Answers that nobody waits for any more are dropped here.
    fn keep_event(&mut self, incoming: Incoming) {
        if let Incoming::Event(event) = incoming {
            if self.events.len() == EVENTS_KEPT {
                self.events.pop_front();
            }
            self.events.push_back(event);
        }
    }
}

/// Connects with a bound: a listener whose queue is full, as of a stopped QEMU, would hold us for ever.
fn dial(path: &Path) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(deadline::CONNECT))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// Sends all of it, or says false when time ran out. What was sent in part has spoilt the stream, so that is an error.
fn send(
    stream: &UnixStream,
    line: &[u8],
    mut fd: Option<BorrowedFd<'_>>,
    until: Instant,
) -> Result<bool, Error> {
    let mut sent = 0;
    while sent < line.len() {
        let Some(left) = time_left(until) else { return out_of_time(sent) };
        stream.set_write_timeout(Some(left)).map_err(broken)?;
        match passing::send(stream.as_fd(), &[IoSlice::new(&line[sent..])], fd.take()) {
            Ok(count) => sent += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if is_timeout(&e) => return out_of_time(sent),
            Err(e) if is_hangup(&e) => return Err(Error::Closed),
            Err(e) => return Err(broken(e)),
        }
    }
    Ok(true)
}

fn out_of_time(sent: usize) -> Result<bool, Error> {
    match sent {
        0 => Ok(false),
        _ => {
            Err(Error::Broken { reason: "QEMU stopped reading in the middle of a command".into() })
        }
    }
}

/// Waits for bytes and decodes them; false when time ran out.
fn receive(
    mut stream: &UnixStream,
    decoder: &mut Decoder,
    arrived: &mut VecDeque<Incoming>,
    until: Instant,
) -> Result<bool, Error> {
    let Some(left) = time_left(until) else { return Ok(false) };
    stream.set_read_timeout(Some(left)).map_err(broken)?;
    let mut bytes = [0; READ_BYTES];
    match stream.read(&mut bytes) {
        Ok(0) => Err(Error::Closed),
        Ok(count) => decoder
            .feed(&bytes[..count], arrived)
            .map(|()| true)
            .map_err(|e| Error::Broken { reason: e.to_string() }),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(true),
        Err(e) if is_timeout(&e) => Ok(false),
        Err(e) if is_hangup(&e) => Err(Error::Closed),
        Err(e) => Err(broken(e)),
    }
}

/// None when it is over; never zero, which a socket takes for 'no bound'.
fn time_left(until: Instant) -> Option<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    (!left.is_zero()).then(|| left.max(Duration::from_micros(10)))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn is_hangup(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

#[expect(clippy::needless_pass_by_value, reason = "the form map_err wants")]
fn broken(error: io::Error) -> Error {
    Error::Broken { reason: error.to_string() }
}
