//! The forwarding thread.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use hpvm_model::{MacAddress, PortRules};

use crate::command::{Command, Inbox};
use crate::event::Event;
use crate::options::{Clock, SwitchState};
use crate::shared::PortShared;

/// A port to be.
pub(crate) struct NewPort {
    pub(crate) mac: MacAddress,
    pub(crate) rules: PortRules,
    pub(crate) shared: Arc<PortShared>,
    /// Of a stream port; an AVIO port's peer is listened for by its conversation.
    pub(crate) listener: Option<UnixListener>,
}

pub(crate) struct Forwarder {
    inbox: Inbox,
    state: SwitchState,
}

impl Forwarder {
    pub(crate) fn new(
        inbox: Inbox,
        _events: Sender<Event>,
        _clock: Clock,
        state: SwitchState,
        _wire: Arc<PortShared>,
    ) -> io::Result<Forwarder> {
        Ok(Forwarder { inbox, state })
    }
}

pub(crate) fn run(mut forwarder: Forwarder) {
    loop {
        let mut waiting = [rustix::event::PollFd::from_borrowed_fd(
            forwarder.inbox.descriptor(),
            rustix::event::PollFlags::IN,
        )];
        let _ = rustix::event::poll(&mut waiting, None);
        while let Some(command) = forwarder.inbox.take() {
            match command {
                Command::SetState(state, answer) => {
                    forwarder.state = state;
                    let _ = answer.send(());
                }
                Command::AddPort(_, _, answer)
                | Command::ChangePort(_, _, answer)
                | Command::RemovePort(_, answer)
                | Command::AttachWire(_, answer)
                | Command::Capture(_, _, answer) => {
                    let _ = answer.send(Ok(()));
                }
                Command::DetachWire(answer) | Command::Wake(answer) => {
                    let _ = answer.send(());
                }
                Command::Macs(answer) => {
                    let _ = answer.send(Vec::new());
                }
                Command::Stop => return,
            }
        }
    }
}
