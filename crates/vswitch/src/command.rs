//! What other threads ask of the forwarding thread, which takes it between two batches.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::time::Duration;

use hpvm_model::{PortNumber, PortRules, SwitchState};
use rustix::event::{EventfdFlags, eventfd};

use crate::forward::NewPort;
use crate::memory::{DirtyLog, Memory};
use crate::obey::Detached;
use crate::options::{Capture, CaptureId, WireOptions};
use crate::ring::Ring;
use crate::switch::{MacEntry, SwitchError};

/// The forwarding thread answers within microseconds; this long it takes only when it is stopped or has ended.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// One request and where its answer goes.
pub(crate) enum Command {
    SetState(SwitchState, SyncSender<()>),
    AddPort(PortNumber, Box<NewPort>, SyncSender<Result<(), SwitchError>>),
    ChangePort(PortNumber, Box<PortRules>, SyncSender<Result<(), SwitchError>>),
    RemovePort(PortNumber, SyncSender<Result<(), SwitchError>>),
    AttachWire(WireOptions, SyncSender<Result<(), SwitchError>>),
    DetachWire(SyncSender<()>),
    Capture(PortNumber, CaptureId, Capture, SyncSender<Result<(), SwitchError>>),
    EndCapture(PortNumber, CaptureId, SyncSender<()>),
    Macs(SyncSender<Vec<MacEntry>>),
    Attach(PortNumber, Box<NewPeer>, SyncSender<Result<(), SwitchError>>),
    Detach(PortNumber, SyncSender<Option<Detached>>),
    /// The stations behind the port are gone.
    Forget(PortNumber),
    Wake(SyncSender<()>),
    Stop,
}

/// The rings of a driver that is ready, and what tells of frames in them.
pub(crate) struct NewPeer {
    pub(crate) receive: Ring,
    pub(crate) transmit: Ring,
    pub(crate) memory: Arc<Memory>,
    pub(crate) log: Option<Arc<DirtyLog>>,
    pub(crate) features: u64,
    pub(crate) kick: Option<OwnedFd>,
}

/// The asking end.
#[derive(Clone)]
pub(crate) struct Commands {
    sender: Sender<Command>,
    bell: Arc<Bell>,
}

/// The answering end.
pub(crate) struct Inbox {
    receiver: Receiver<Command>,
    bell: Arc<Bell>,
}

/// Says that a command waits: by a flag to a thread that is busy, by a descriptor to one that sleeps.
struct Bell {
    rung: AtomicBool,
    descriptor: OwnedFd,
}

impl Commands {
    pub(crate) fn new() -> io::Result<(Commands, Inbox)> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let bell = Arc::new(Bell { rung: AtomicBool::new(false), descriptor });
        let (sender, receiver) = mpsc::channel();
        Ok((Commands { sender, bell: Arc::clone(&bell) }, Inbox { receiver, bell }))
    }

    /// Sends a command and waits for its answer. What is not answered in time may be done yet, but before all that is asked
    /// later.
    pub(crate) fn ask<T>(
        &self,
        command: impl FnOnce(SyncSender<T>) -> Command,
    ) -> Result<T, SwitchError> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.send(command(answer));
        answered.recv_timeout(ANSWER_DEADLINE).map_err(|_| SwitchError::Silent)
    }

    /// Nobody hears it when the thread has ended; the asker's deadline tells him.
    pub(crate) fn send(&self, command: Command) {
        let _ = self.sender.send(command);
        self.bell.rung.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.bell.descriptor, &1u64.to_ne_bytes());
    }
}

impl Inbox {
    /// Whether [`Inbox::take`] may find something; one load.
    pub(crate) fn rung(&self) -> bool {
        self.bell.rung.load(Ordering::Relaxed)
    }

    /// Takes back what the descriptor tells; the flag was set before it.
    pub(crate) fn silence(&self) {
        let _ = rustix::io::read(&self.bell.descriptor, &mut [0; 8]);
    }

    /// The next command. The flag is lowered first, so that one sent meanwhile raises it again.
    pub(crate) fn take(&self) -> Option<Command> {
        self.bell.rung.swap(false, Ordering::Acquire);
        let command = self.receiver.try_recv().ok();
        if command.is_some() {
            self.bell.rung.store(true, Ordering::Relaxed);
        }
        command
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.bell.descriptor.as_fd()
    }
}
