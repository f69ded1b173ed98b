//! The client of hpvmapp: many commands under way at once, events as they come, one task that owns the socket.
//!
//! ```text
//!  execute ──request──► driver ──socket──► QEMU
//!     ▲                   │ ▲
//!     └────answer─────────┘ └── bytes ──── QEMU
//!                         └──event──► Events
//! ```
//!
//! The driver sleeps until the socket or a caller has something: an idle connection costs nothing. A caller that stops
//! waiting (deadline, or its future was dropped) takes its request back when it was not sent yet, and otherwise leaves an
//! id that nobody knows any more, so that the late answer is dropped. Dropping the [`Client`] and its clones ends the
//! driver and closes the socket.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::answer::AddedFd;
use crate::command::{AddFd, Capabilities, Command};
use crate::error::{Error, Refusal};
use crate::event::Event;
use crate::frame::{Decoder, Greeting, Incoming, encode};
use crate::{deadline, passing};

/// Requests between callers and the driver.
const REQUESTS_WAITING: usize = 16;
/// Events between the driver and who reads them. When they are full events are dropped and counted, never waited for:
/// the reader of events may itself wait for an answer.
const EVENTS_WAITING: usize = 256;
const READ_BYTES: usize = 8 << 10;
/// As many as are sent together, so that QEMU is woken once for them.
const LINES_AT_ONCE: usize = 64;

/// Sends commands; clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    requests: mpsc::Sender<Request>,
    next_id: Arc<AtomicU64>,
    is_done: Arc<AtomicBool>,
    end: Arc<OnceLock<End>>,
}

/// What comes unasked.
#[derive(Debug)]
pub struct Events {
    events: mpsc::Receiver<Event>,
    lost: Arc<AtomicU64>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    Event(Event),
    /// So many events had no room: ask QEMU for its state.
    Lost(u64),
}

impl Client {
    /// Connects, passes the greeting and starts the driver on the current runtime.
    pub async fn connect(path: &Path) -> Result<(Client, Events), Error> {
        let until = Instant::now() + deadline::CONNECT;
        let stream = timeout_at(until, UnixStream::connect(path))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| Error::Connect { path: path.to_owned(), source })?;
        Client::greet(stream, until).await
    }

    /// Takes over a connected socket that nothing was read from.
    pub async fn from_stream(stream: UnixStream) -> Result<(Client, Events), Error> {
        Client::greet(stream, Instant::now() + deadline::CONNECT).await
    }

    async fn greet(stream: UnixStream, until: Instant) -> Result<(Client, Events), Error> {
        let (requests, incoming_requests) = mpsc::channel(REQUESTS_WAITING);
        let (events_in, events_out) = mpsc::channel(EVENTS_WAITING);
        let (greeted, greeting) = oneshot::channel();
        let lost = Arc::new(AtomicU64::new(0));
        let end = Arc::new(OnceLock::new());
        let driver = Driver {
            stream,
            decoder: Decoder::default(),
            requests: incoming_requests,
            unsent: VecDeque::new(),
            pending: HashMap::new(),
            events: events_in,
            lost: lost.clone(),
            greeted: Some(greeted),
        };
        tokio::spawn(driver.run(end.clone()));
        let (next_id, is_done) = (Arc::new(AtomicU64::new(1)), Arc::default());
        let client = Client { requests, next_id, is_done, end };
        match timeout_at(until, greeting).await {
            Ok(Ok(_greeting)) => {}
            Ok(Err(_)) => return Err(client.ended()),
            Err(_) => return Err(Error::NoGreeting { after: deadline::CONNECT }),
        }
        client.execute(&Capabilities {}).await?;
        Ok((client, Events { events: events_out, lost }))
    }

    /// Performs a command within its deadline.
    pub async fn execute<C: Command>(&self, command: &C) -> Result<C::Answer, Error> {
        self.perform(command, None, C::DEADLINE).await
    }

    /// The same with a deadline of the caller's.
    pub async fn execute_within<C: Command>(
        &self,
        command: &C,
        after: Duration,
    ) -> Result<C::Answer, Error> {
        self.perform(command, None, after).await
    }

    /// Hands a descriptor to QEMU; our copy is closed as soon as it is sent.
    pub async fn pass(&self, command: &AddFd, fd: OwnedFd) -> Result<AddedFd, Error> {
        self.perform(command, Some(fd), AddFd::DEADLINE).await
    }

    /// Sends a command without waiting for its answer. QEMU performs one after the other in the order in which they were
    /// sent, so that several cost one way there and back. One that is dropped may not have been sent.
    pub async fn send<C: Command>(&self, command: &C) -> Result<Sent<C>, Error> {
        self.begin(command, None, C::DEADLINE).await
    }

    /// From here on nothing more is sent but a last command, by no clone. A QEMU that takes its monitor down may die by a signal of
    /// what it hears meanwhile (10.0.2).
    pub fn be_done(&self) {
        self.is_done.store(true, Ordering::Relaxed);
    }

    /// Whether somebody is done with the connection.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_done.load(Ordering::Relaxed)
    }

    /// Whether QEMU, or an error, has ended the connection.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.end.get().is_some()
    }

    /// Sends a command behind which nothing more is sent, and behind what was sent before.
    pub async fn execute_last<C: Command>(&self, command: &C) -> Result<C::Answer, Error> {
        self.be_done();
        self.submit(command, None, C::DEADLINE).await?.answer().await
    }

    async fn perform<C: Command>(
        &self,
        command: &C,
        fd: Option<OwnedFd>,
        after: Duration,
    ) -> Result<C::Answer, Error> {
        self.begin(command, fd, after).await?.answer().await
    }

    async fn begin<C: Command>(
        &self,
        command: &C,
        fd: Option<OwnedFd>,
        after: Duration,
    ) -> Result<Sent<C>, Error> {
        if self.is_done() {
            return Err(self.ended());
        }
        self.submit(command, fd, after).await
    }

    async fn submit<C: Command>(
        &self,
        command: &C,
        fd: Option<OwnedFd>,
        after: Duration,
    ) -> Result<Sent<C>, Error> {
        let until = Instant::now() + after;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let line = encode(C::NAME, command, id)
            .map_err(|source| Error::Request { command: C::NAME, source })?;
        let (reply, answer) = oneshot::channel();
        let late = |_| Error::Deadline { command: C::NAME, after };
        let request = Request { id, line, fd, reply };
        timeout_at(until, self.requests.send(request))
            .await
            .map_err(late)?
            .map_err(|_| self.ended())?;
        let end = self.end.clone();
        Ok(Sent { answer, end, until, after, command: PhantomData })
    }

    fn ended(&self) -> Error {
        ended(&self.end)
    }
}

fn ended(end: &OnceLock<End>) -> Error {
    match end.get() {
        Some(End::Broken(reason)) => Error::Broken { reason: reason.clone() },
        Some(End::Closed) | None => Error::Closed,
    }
}

/// A command on its way, and its answer back.
#[derive(Debug)]
pub struct Sent<C> {
    answer: oneshot::Receiver<Result<Value, Refusal>>,
    end: Arc<OnceLock<End>>,
    until: Instant,
    /// What `until` was made of.
    after: Duration,
    command: PhantomData<C>,
}

impl<C: Command> Sent<C> {
    /// Waits for the answer, until the command's deadline.
    pub async fn answer(self) -> Result<C::Answer, Error> {
        let Sent { answer, end, until, after, .. } = self;
        match timeout_at(until, answer).await {
            Ok(Ok(Ok(value))) => serde_json::from_value(value)
                .map_err(|source| Error::Answer { command: C::NAME, source }),
            Ok(Ok(Err(refusal))) => Err(Error::Refused { command: C::NAME, refusal }),
            Ok(Err(_)) => Err(ended(&end)),
            Err(_) => Err(Error::Deadline { command: C::NAME, after }),
        }
    }
}

impl Events {
    /// The next event; None when the connection has ended.
    pub async fn next(&mut self) -> Option<Notice> {
        match self.lost.swap(0, Ordering::Relaxed) {
            0 => {}
            lost => return Some(Notice::Lost(lost)),
        }
        self.events.recv().await.map(Notice::Event)
    }
}

type Reply = oneshot::Sender<Result<Value, Refusal>>;

#[derive(Debug)]
struct Request {
    id: u64,
    line: Vec<u8>,
    fd: Option<OwnedFd>,
    reply: Reply,
}

/// A line on its way out.
struct Unsent {
    id: u64,
    line: Vec<u8>,
    sent: usize,
    fd: Option<OwnedFd>,
}

#[derive(Debug)]
enum End {
    Closed,
    Broken(String),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => End::Closed,
            _ => End::Broken(error.to_string()),
        }
    }
}

struct Driver {
    stream: UnixStream,
    decoder: Decoder,
    requests: mpsc::Receiver<Request>,
    unsent: VecDeque<Unsent>,
    pending: HashMap<u64, Reply>,
    events: mpsc::Sender<Event>,
    lost: Arc<AtomicU64>,
    greeted: Option<oneshot::Sender<Greeting>>,
}

impl Driver {
    /// Runs until the connection ends or nobody holds a client. The reason is set before waiting callers are let go.
    async fn run(mut self, end: Arc<OnceLock<End>>) {
        let reason = loop {
            if let Err(reason) = self.step().await {
                break reason;
            }
        };
        let _ = end.set(reason);
    }

    async fn step(&mut self) -> Result<(), End> {
        let interest = match self.unsent.is_empty() {
            true => Interest::READABLE,
            false => Interest::READABLE | Interest::WRITABLE,
        };
        tokio::select! {
            request = self.requests.recv() => match request {
                Some(request) => {
                    self.accept(request);
                    while let Ok(next) = self.requests.try_recv() {
                        self.accept(next);
                    }
                }
                None => return Err(End::Closed),
            },
            ready = self.stream.ready(interest) => {
                let ready = ready?;
                if ready.is_readable() || ready.is_read_closed() {
                    self.read()?;
                }
                if ready.is_writable() {
                    self.write()?;
                }
                return Ok(());
            }
        }
        self.write()
    }

    fn accept(&mut self, request: Request) {
        self.forget_abandoned();
        let Request { id, line, fd, reply } = request;
        self.pending.insert(id, reply);
        self.unsent.push_back(Unsent { id, line, sent: 0, fd });
    }

    /// Drops what nobody waits for, so that a QEMU that answers nothing costs no memory.
    fn forget_abandoned(&mut self) {
        self.pending.retain(|_, reply| !reply.is_closed());
        let pending = &self.pending;
        self.unsent.retain(|unsent| unsent.sent > 0 || pending.contains_key(&unsent.id));
    }

    fn write(&mut self) -> Result<(), End> {
        while let Some(first) = self.unsent.front() {
            let (stream, fd) = (&self.stream, first.fd.as_ref().map(AsFd::as_fd));
            // A descriptor goes with a line of its own.
            let lines = if fd.is_some() { 1 } else { LINES_AT_ONCE };
            let lines =
                self.unsent.iter().take(lines).take_while(|line| fd.is_some() || line.fd.is_none());
            let pieces: Vec<_> = lines.map(|line| IoSlice::new(&line.line[line.sent..])).collect();
            let sent = stream.try_io(Interest::WRITABLE, || send(stream, &pieces, fd));
            match sent {
                Ok(count) => self.sent(count),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn sent(&mut self, mut bytes: usize) {
        while let Some(line) = self.unsent.front_mut().filter(|_| bytes > 0) {
            line.fd = None;
            let now = bytes.min(line.line.len() - line.sent);
            line.sent += now;
            bytes -= now;
            if line.sent == line.line.len() {
                self.unsent.pop_front();
            }
        }
    }

    fn read(&mut self) -> Result<(), End> {
        let mut messages = VecDeque::new();
        let mut bytes = [0; READ_BYTES];
        let decoded = match self.stream.try_read(&mut bytes) {
            Ok(0) => return Err(End::Closed),
            Ok(count) => self.decoder.feed(&bytes[..count], &mut messages),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        for message in messages {
            self.dispatch(message);
        }
        decoded.map_err(|e| End::Broken(e.to_string()))
    }

    fn dispatch(&mut self, message: Incoming) {
        match message {
            Incoming::Greeting(greeting) => {
                if let Some(greeted) = self.greeted.take() {
                    let _ = greeted.send(greeting);
                }
            }
            Incoming::Return { id, value } => self.answer(id, Ok(value)),
            Incoming::Error { id, refusal } => self.answer(id, Err(refusal)),
            Incoming::Event(event) => {
                if let Err(mpsc::error::TrySendError::Full(_)) = self.events.try_send(event) {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn answer(&mut self, id: Option<u64>, answer: Result<Value, Refusal>) {
        if let Some(reply) = id.and_then(|id| self.pending.remove(&id)) {
            let _ = reply.send(answer);
        }
    }
}

fn send(
    stream: &UnixStream,
    pieces: &[IoSlice<'_>],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    loop {
        match passing::send(stream, pieces, fd) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}
