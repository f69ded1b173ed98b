//! The vhost-user conversation of one AVIO port, in a thread of its own.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use hpvm_model::PortNumber;

use crate::command::Commands;
use crate::event::Event;
use crate::options::GuestMemory;
use crate::shared::PortShared;

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

pub(crate) struct Conversation {
    _settings: Settings,
}

impl Conversation {
    pub(crate) fn start(settings: Settings) -> io::Result<Conversation> {
        Ok(Conversation { _settings: settings })
    }

    pub(crate) fn end(self) {}
}
