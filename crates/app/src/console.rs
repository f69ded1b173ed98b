//! The guest's console: the only client of QEMU's serial socket, and the server of console sessions at the door.
//!
//! ```text
//!  QEMU ──serial──► listen_to_guest ──► Fanout ──► a task per session, which alone waits for its client
//!       ◄──────────                 ◄── keyboard
//! ```
//!
//! The guest is always read, or its own output would stand still; a session that does not keep up is told what it lost.
//! All tasks share one fan-out on one thread and wake one another by a notice. Verbs go to the owner.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use hpvm_console::door::{ClientFrame, Decoder, Drive, Ended, Frame, ServerFrame};
use hpvm_console::fanout::{Fanout, Next, Peer, Rights, SessionId, VerbAsked};
use hpvm_console::history::{HISTORY_BYTES, History};
use hpvm_host::names::run_folder;
use hpvm_host::paths::within;
use hpvm_host::users;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::console_log::ConsoleLog;

const READ_BYTES: usize = 4 << 10;
/// Between two attempts at QEMU's serial socket.
const SERIAL_AGAIN: Duration = Duration::from_millis(200);
/// How long after a connection the log is the better source.
const SETTLING: Duration = Duration::from_secs(1);
/// Between two looks at the log meanwhile.
const LOG_AGAIN: Duration = Duration::from_millis(100);
/// QEMU writes to the log right after the socket.
const LOG_FOLLOWS: Duration = Duration::from_millis(1);
/// A client that takes nothing for so long is let go.
const SESSION_STALLED: Duration = Duration::from_secs(60);
/// How long the end of the guest waits for sessions to take its last words.
const FAREWELL: Duration = Duration::from_millis(300);

/// Where the guest's output is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Log,
    Socket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Something,
    Nothing,
    /// The guest's end is closed.
    End,
}

/// Shared by all tasks of the console; the owner holds one too.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    fanout: Rc<RefCell<Fanout>>,
    /// Something in the fan-out has changed.
    changed: Rc<Notify>,
    log: Rc<ConsoleLog>,
}

impl Console {
    /// Begins with the end of the console log, so that a session sees what was before this worker.
    pub(crate) fn new(guest: &str, log: ConsoleLog) -> Console {
        let mut history = History::new(HISTORY_BYTES);
        history.push(&log.tail(HISTORY_BYTES));
        let fanout = Fanout::new(guest, "On", history);
        Console {
            fanout: Rc::new(RefCell::new(fanout)),
            changed: Rc::new(Notify::new()),
            log: Rc::new(log),
        }
    }

    /// Keeps the log within its bound. What cannot be cut now is tried again.
    pub(crate) fn bound_log(&self) {
        let _ = self.log.bound();
    }

    /// Runs the console until the runtime ends.
    pub(crate) fn serve(
        &self,
        door: UnixListener,
        run_folder: OwnedFd,
        owner: mpsc::Sender<VerbAsked>,
    ) {
        spawn_local(self.clone().listen_to_guest(run_folder));
        spawn_local(self.clone().open_the_door(door, owner));
    }

    pub(crate) fn set_state(&self, state: &str) {
        self.change(|fanout| fanout.set_state(state));
    }

    pub(crate) fn verb_done(&self, session: SessionId, result: Result<String, String>) {
        self.change(|fanout| fanout.verb_done(session, result));
    }

    pub(crate) fn drives_known(&self, session: SessionId, drives: Vec<Drive>) {
        self.change(|fanout| fanout.drives_known(session, drives));
    }

    /// Tells every session, and waits a moment until they have taken it.
    pub(crate) async fn guest_ended(&self, how: Ended) {
        self.change(|fanout| fanout.guest_ended(how));
        let _ = timeout(FAREWELL, async {
            while self.fanout.borrow().audience().0 > 0 {
                self.changed.notified().await;
            }
        })
        .await;
    }

    fn change<R>(&self, change: impl FnOnce(&mut Fanout) -> R) -> R {
        let result = change(&mut self.fanout.borrow_mut());
        self.changed.notify_waiters();
        result
    }

    async fn listen_to_guest(self, run_folder: OwnedFd) {
        let path = within(&run_folder, run_folder::SERIAL);
        loop {
            if let Ok(serial) = UnixStream::connect(&path).await {
                // Its end is QEMU's, or another client's fault: either way it is tried again.
                let _ = self.talk_with_guest(&serial).await;
            }
            sleep(SERIAL_AGAIN).await;
        }
    }

    /// QEMU takes the connection some time after we made it, and until then the guest's output goes to the log alone. So
    /// at first all output is taken from the log, and the socket only tells that there is more.
    async fn talk_with_guest(&self, serial: &UnixStream) -> io::Result<()> {
        let settled_at = Instant::now() + SETTLING;
        let mut source = Source::Log;
        let mut look_at = Instant::now();
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let interest = match self.fanout.borrow().guest_input().is_empty() {
                true => Interest::READABLE,
                false => Interest::READABLE | Interest::WRITABLE,
            };
            tokio::select! {
                () = changed => {}
                () = sleep_until(look_at), if source == Source::Log => {
                    if Instant::now() >= settled_at {
                        while self.read_guest(serial, source)? == Heard::Something {}
                        source = Source::Socket;
                    }
                    self.take_from_log();
                    look_at = Instant::now() + LOG_AGAIN;
                }
                ready = serial.ready(interest) => {
                    let ready = ready?;
                    if ready.is_writable() {
                        self.write_to_guest(serial)?;
                    }
                    if ready.is_readable() || ready.is_read_closed() {
                        if self.read_guest(serial, source)? == Heard::End {
                            return Ok(());
                        }
                        look_at = look_at.min(Instant::now() + LOG_FOLLOWS);
                    }
                }
            }
        }
    }

    fn take_from_log(&self) {
        let unread = self.log.unread();
        if !unread.is_empty() {
            self.change(|fanout| fanout.guest_output(&unread));
        }
    }

    fn read_guest(&self, serial: &UnixStream, source: Source) -> io::Result<Heard> {
        let mut part = [0; READ_BYTES];
        let count = match serial.try_read(&mut part) {
            Ok(0) => return Ok(Heard::End),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Heard::Nothing),
            Err(error) => return Err(error),
        };
        if source == Source::Socket {
            self.log.skip(count);
            self.change(|fanout| fanout.guest_output(&part[..count]));
        }
        Ok(Heard::Something)
    }

    fn write_to_guest(&self, serial: &UnixStream) -> io::Result<()> {
        let written = match self.fanout.borrow().guest_input() {
            [] => return Ok(()),
            input => serial.try_write(input),
        };
        match written {
            Ok(count) => self.change(|fanout| fanout.guest_took(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn open_the_door(self, door: UnixListener, owner: mpsc::Sender<VerbAsked>) {
        loop {
            match door.accept().await {
                Ok((stream, _)) => {
                    spawn_local(self.clone().receive_client(stream, owner.clone()));
                }
                // No descriptors left, for a moment: a busy loop would make it worse.
                Err(_) => sleep(SERIAL_AGAIN).await,
            }
        }
    }

    async fn receive_client(self, stream: UnixStream, owner: mpsc::Sender<VerbAsked>) {
        let admitted = match peer_of(&stream) {
            Ok(peer) => self.change(|fanout| fanout.admit(peer)),
            Err(refusal) => Err(refusal),
        };
        match admitted {
            Ok(session) => {
                let session = Session { console: self, session, stream: Rc::new(stream), owner };
                session.run().await;
            }
            Err(refusal) => {
                let mut bytes = Vec::new();
                refusal.encode(&mut bytes);
                let _ = timeout(SESSION_STALLED, write_all(&stream, &bytes)).await;
            }
        }
    }
}

/// One client at the door.
struct Session {
    console: Console,
    session: SessionId,
    stream: Rc<UnixStream>,
    owner: mpsc::Sender<VerbAsked>,
}

impl Session {
    /// Reads and writes at the same time, so that a client that does not read can still leave.
    async fn run(self) {
        tokio::select! {
            () = self.read() => {}
            () = self.write() => {}
        }
        self.console.change(|fanout| fanout.leave(self.session));
    }

    async fn read(&self) {
        let mut decoder = Decoder::default();
        let mut part = [0; READ_BYTES];
        loop {
            self.until_input_is_wanted().await;
            if self.stream.readable().await.is_err() {
                return;
            }
            match self.stream.try_read(&mut part) {
                Ok(0) => return,
                Ok(count) => decoder.push(&part[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => return,
            }
            loop {
                match decoder.take::<ClientFrame>() {
                    Ok(Some(frame)) => self.receive(frame).await,
                    Ok(None) => break,
                    Err(error) => {
                        let what = error.to_string();
                        self.console.change(|fanout| fanout.fault(self.session, &what));
                        // The writer tells the client why, and ends the session.
                        return std::future::pending().await;
                    }
                }
            }
        }
    }

    async fn until_input_is_wanted(&self) {
        loop {
            let changed = self.console.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.console.fanout.borrow().wants_input(self.session) {
                return;
            }
            changed.await;
        }
    }

    async fn receive(&self, frame: ClientFrame) {
        let asked = self.console.change(|fanout| fanout.receive(self.session, frame));
        if let Some(asked) = asked
            && self.owner.send(asked).await.is_err()
        {
            let result = Err("the guest's worker is ending".into());
            self.console.verb_done(self.session, result);
        }
    }

    async fn write(&self) {
        let mut bytes = Vec::new();
        loop {
            let changed = self.console.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let next = self.console.fanout.borrow_mut().next(self.session);
            match next {
                Next::Send(frame) => {
                    bytes.clear();
                    frame.encode(&mut bytes);
                    match timeout(SESSION_STALLED, write_all(&self.stream, &bytes)).await {
                        Ok(Ok(())) => {}
                        _ => return,
                    }
                }
                Next::Wait => changed.await,
                Next::Close => return,
            }
        }
    }
}

async fn write_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Who may come in: root, and the user we run as, who owns this VM Host when it is not root's.
fn peer_of(stream: &UnixStream) -> Result<Peer, ServerFrame> {
    let uid = match stream.peer_cred() {
        Ok(credentials) => credentials.uid(),
        Err(error) => {
            return Err(ServerFrame::Denied(format!("who you are is not known: {error}")));
        }
    };
    if uid != 0 && uid != users::effective_uid() {
        let reason = "only root and the owner of this VM Host may use the console";
        return Err(ServerFrame::Denied(reason.into()));
    }
    Ok(Peer { user: users::local_name(uid), rights: Rights::Operate })
}
