//! The thread of one AVIO port that takes peers one after the other and speaks vhost-user with each.
//!
//! It sleeps in a read nearly always. What a peer says is carried out by a [`Device`]; a peer that breaks the protocol is
//! sent away, and the next is taken.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use hpvm_model::PortNumber;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vhost::vhost_user::{
    BackendReqHandler, Error as ProtocolError, VhostUserBackendReqHandlerMut as _,
};

use crate::command::Commands;
use crate::device_state::Device;
use crate::early;
use crate::event::Event;
use crate::options::GuestMemory;
use crate::shared::PortShared;
use crate::switch::PortLink;

/// A peer that was sent away, or could not be taken, is not taken again sooner, so that one which errs always does not fill the
/// log, and one that waits keeps no processor busy.
const REFUSED_PAUSE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What a conversation is about.
pub(crate) struct Settings {
    pub(crate) switch: String,
    pub(crate) port: PortNumber,
    pub(crate) listener: UnixListener,
    pub(crate) offered: u64,
    pub(crate) memory: GuestMemory,
    pub(crate) shared: Arc<PortShared>,
    pub(crate) commands: Commands,
    pub(crate) events: Sender<Event>,
}

/// A conversation under way. Ends the thread when it ends.
pub(crate) struct Conversation {
    ending: Arc<Ending>,
    thread: JoinHandle<()>,
}

/// How the thread is made to end wherever it waits.
struct Ending {
    wish: OwnedFd,
    /// The peer's connection while there is one: shut down, it ends a read. Taken when the end is wished.
    peer: Mutex<Peer>,
}

enum Peer {
    Absent,
    Present(UnixStream),
    Unwanted,
}

impl Conversation {
    pub(crate) fn start(settings: Settings) -> io::Result<Conversation> {
        settings.listener.set_nonblocking(true)?;
        let wish = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let ending = Arc::new(Ending { wish, peer: Mutex::new(Peer::Absent) });
        let thread = thread::Builder::new()
            .name(format!("{} port {}", settings.switch, settings.port))
            .spawn({
                let ending = Arc::clone(&ending);
                move || converse(&settings, &ending)
            })?;
        Ok(Conversation { ending, thread })
    }

    /// Disconnects the peer and listens no more. The forwarding thread must still answer.
    pub(crate) fn end(self) {
        let _ = rustix::io::write(&self.ending.wish, &1u64.to_ne_bytes());
        if let Peer::Present(peer) = self.ending.replace(Peer::Unwanted) {
            let _ = peer.shutdown(std::net::Shutdown::Both);
        }
        let _ = self.thread.join();
    }
}

impl Ending {
    fn replace(&self, peer: Peer) -> Peer {
        let mut held = self.peer.lock().unwrap_or_else(PoisonError::into_inner);
        match *held {
            Peer::Unwanted => Peer::Unwanted,
            _ => std::mem::replace(&mut *held, peer),
        }
    }

    /// Waits for the wish, for the time given or without end. Returns whether it came.
    fn wished(&self, listener: Option<&UnixListener>, timeout: Option<&Timespec>) -> bool {
        let mut waited = vec![PollFd::from_borrowed_fd(self.wish.as_fd(), PollFlags::IN)];
        waited.extend(listener.map(|listener| PollFd::new(listener, PollFlags::IN)));
        // An interrupted wait is one that found nothing.
        let _ = poll(&mut waited, timeout);
        !waited[0].revents().is_empty()
    }
}

fn converse(settings: &Settings, ending: &Ending) {
    while !ending.wished(Some(&settings.listener), None) {
        let socket = match settings.listener.accept() {
            Ok((socket, _)) => socket,
            // Without a descriptor left there is none a moment later either.
            Err(_) if ending.wished(None, Some(&REFUSED_PAUSE)) => return,
            Err(_) => continue,
        };
        let (Ok(kept), Ok(looked_at)) = (socket.try_clone(), socket.try_clone()) else { continue };
        if socket.set_nonblocking(false).is_err()
            || matches!(ending.replace(Peer::Present(kept)), Peer::Unwanted)
        {
            continue;
        }
        let refused = with_peer(settings, socket, &looked_at);
        ending.replace(Peer::Absent);
        if refused && ending.wished(None, Some(&REFUSED_PAUSE)) {
            return;
        }
    }
}

/// Speaks with one peer until it goes. Returns whether it was sent away.
fn with_peer(settings: &Settings, socket: UnixStream, looked_at: &UnixStream) -> bool {
    let Settings { port, shared, events, .. } = settings;
    shared.set_link(PortLink::Connected);
    let _ = events.send(Event::Connected { port: *port });
    let device = Arc::new(Mutex::new(Device::new(settings)));
    let mut handler = BackendReqHandler::from_stream(socket, Arc::clone(&device));
    let end = loop {
        let request = match take_early(&device, looked_at) {
            Ok(Taken::Yes) => continue,
            Ok(Taken::No) => handler.handle_request(),
            Err(error) => Err(ProtocolError::SocketBroken(error)),
        };
        match request {
            Ok(()) | Err(ProtocolError::SocketRetry(_)) => {}
            Err(end) => break end,
        }
    };
    locked(&device).leave();
    shared.set_link(PortLink::Absent);
    let went = matches!(
        end,
        ProtocolError::Disconnected
            | ProtocolError::SocketBroken(_)
            | ProtocolError::PartialMessage
    );
    if !went {
        let reason = locked(&device).complaint(&end);
        let _ = events.send(Event::Refused { port: *port, reason });
    }
    let _ = events.send(Event::Disconnected { port: *port });
    !went
}

enum Taken {
    Yes,
    No,
}

/// Carries out the request that comes before features are acknowledged, if it is the next.
fn take_early(device: &Mutex<Device<'_>>, socket: &UnixStream) -> io::Result<Taken> {
    if locked(device).has_features() {
        return Ok(Taken::No);
    }
    let Some(enable) = early::take(socket)? else { return Ok(Taken::No) };
    let done = locked(device).set_vring_enable(enable.ring, enable.enable).is_ok();
    early::answer(socket, enable, done)?;
    Ok(Taken::Yes)
}

/// Only this thread has it, and one that panicked ends with it.
fn locked<'a, 'b>(device: &'a Mutex<Device<'b>>) -> MutexGuard<'a, Device<'b>> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
