//! The control side: a handle that starts a switch, changes it and reads from it. hpvmnetd holds one.
//!
//! No call here makes frames wait: commands go to the forwarding thread by a channel, and it takes them between two
//! batches. A call returns when the thread has done it, or says after [`ANSWER_DEADLINE`] that it did not.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hpvm_model::{MacAddress, NicKind, PortNumber, PortRules, SwitchState, VlanId};
use serde::{Deserialize, Serialize};

use crate::command::{ANSWER_DEADLINE, Command, Commands};
use crate::conversation::Conversation;
use crate::counters::Counters;
use crate::event::Event;
use crate::features::FEATURES;
use crate::forward::{self, Forwarder, NewPort};
use crate::options::{Capture, CaptureId, Options, PortOptions, WireOptions};
use crate::shared::PortShared;

/// Why the switch did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    #[error("the switch's thread cannot be started")]
    Start(#[source] io::Error),
    #[error("port {0} is there already")]
    PortInUse(PortNumber),
    #[error("there is no port {0}")]
    NoPort(PortNumber),
    #[error("port {port} cannot have the features {features:#x}; this switch has {FEATURES:#x}")]
    Features { port: PortNumber, features: u64 },
    #[error("port {port} cannot listen on its socket")]
    Listen { port: PortNumber, source: io::Error },
    #[error("the switch has a wire already")]
    WireInUse,
    #[error("the wire cannot be watched")]
    Wire(#[source] io::Error),
    #[error("the capture of port {port} cannot be started")]
    Capture { port: PortNumber, source: io::Error },
    #[error("the switch's thread did not answer within {} s", ANSWER_DEADLINE.as_secs())]
    Silent,
}

/// Whether a port's peer is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortLink {
    /// Nobody is connected.
    #[default]
    Absent,
    /// A peer is connected; its driver has made no rings known.
    Connected,
    /// Frames can pass.
    Started,
    /// The guest wrote nonsense into its rings; nothing passes until its driver makes them anew.
    Lost,
}

/// A port as it is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStatus {
    pub link: PortLink,
    /// The virtio features last offered to the peer of an AVIO port, to be offered exactly so for ever; none before the
    /// first connect.
    pub offered: Option<u64>,
    /// Those its driver acknowledged.
    pub acknowledged: Option<u64>,
    /// The address the guest last sent from, even if the guard refused the frame.
    pub source: Option<MacAddress>,
}

/// Where frames enter and leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Port(PortNumber),
    Wire,
}

/// How the switch knows where a station is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacOrigin {
    /// It is a port's own address.
    Configured,
    /// A frame came from there.
    Learned { age: Duration },
}

/// A line of the table of MAC addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacEntry {
    pub mac: MacAddress,
    pub vlan: Option<VlanId>,
    pub place: Place,
    pub origin: MacOrigin,
}

/// A running switch. Clones are the same switch; when the last is dropped it ends.
#[derive(Clone)]
pub struct Switch(Arc<Inner>);

struct Inner {
    name: String,
    commands: Commands,
    ports: Mutex<BTreeMap<PortNumber, Held>>,
    wire: Arc<PortShared>,
    wire_zero: Mutex<Counters>,
    state: Mutex<SwitchState>,
    /// How many there were.
    captures: AtomicU64,
    events: mpsc::Sender<Event>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// The control side's part of a port.
struct Held {
    shared: Arc<PortShared>,
    /// What the counters stood at when they were last cleared.
    zero: Counters,
    /// Of an AVIO port.
    conversation: Option<Conversation>,
}

impl Switch {
    /// Starts a switch without ports. What happens to it arrives at the receiver; when that is dropped events are lost
    /// and nothing else.
    pub fn start(options: Options) -> Result<(Switch, Receiver<Event>), SwitchError> {
        let (events, receiver) = mpsc::channel();
        let (commands, inbox) = Commands::new().map_err(SwitchError::Start)?;
        let wire = Arc::new(PortShared::default());
        let Options { name, state, clock, beginning } = options;
        let forwarder =
            Forwarder::new(inbox, events.clone(), clock, beginning, state, Arc::clone(&wire))
                .map_err(SwitchError::Start)?;
        let thread = std::thread::Builder::new()
            .name(format!("{name} forward"))
            .spawn(move || forward::run(forwarder))
            .map_err(SwitchError::Start)?;
        let inner = Inner {
            name,
            commands,
            ports: Mutex::default(),
            wire,
            wire_zero: Mutex::default(),
            state: Mutex::new(state),
            captures: AtomicU64::new(0),
            events,
            thread: Some(thread),
        };
        Ok((Switch(Arc::new(inner)), receiver))
    }

    /// Boots or halts the switch.
    pub fn set_state(&self, state: SwitchState) -> Result<(), SwitchError> {
        self.0.commands.ask(|answer| Command::SetState(state, answer))?;
        *locked(&self.0.state) = state;
        Ok(())
    }

    #[must_use]
    pub fn state(&self) -> SwitchState {
        *locked(&self.0.state)
    }

    /// Gives the switch a port, whose peers may connect from now on.
    pub fn add_port(&self, port: PortNumber, options: PortOptions) -> Result<(), SwitchError> {
        let mut ports = locked(&self.0.ports);
        if ports.contains_key(&port) {
            return Err(SwitchError::PortInUse(port));
        }
        if let Some(features) = options.features.filter(|features| features & !FEATURES != 0) {
            return Err(SwitchError::Features { port, features });
        }
        let shared = Arc::new(PortShared::default());
        let PortOptions { kind, listener, mac, features, memory, rules } = options;
        let (avio, stream) = match kind {
            NicKind::AvioLan => (Some(listener), None),
            NicKind::Lan => (None, Some(listener)),
        };
        let new = NewPort { mac, rules, shared: Arc::clone(&shared), listener: stream };
        self.0.commands.ask(|answer| Command::AddPort(port, Box::new(new), answer))??;
        let mut held = Held { shared, zero: Counters::default(), conversation: None };
        if let Some(listener) = avio {
            let conversation = Conversation::start(crate::conversation::Settings {
                switch: self.0.name.clone(),
                port,
                listener,
                offered: features.unwrap_or(FEATURES),
                memory,
                shared: Arc::clone(&held.shared),
                commands: self.0.commands.clone(),
                events: self.0.events.clone(),
            });
            match conversation {
                Ok(conversation) => held.conversation = Some(conversation),
                Err(source) => {
                    self.0.commands.ask(|answer| Command::RemovePort(port, answer))??;
                    return Err(SwitchError::Listen { port, source });
                }
            }
        }
        ports.insert(port, held);
        Ok(())
    }

    /// Gives a port new rules; its peer stays connected and its counters count on.
    pub fn change_port(&self, port: PortNumber, rules: PortRules) -> Result<(), SwitchError> {
        self.0.commands.ask(|answer| Command::ChangePort(port, Box::new(rules), answer))?
    }

    /// Takes a port away. Its peer is disconnected and its socket no longer listened on.
    pub fn remove_port(&self, port: PortNumber) -> Result<(), SwitchError> {
        let held = locked(&self.0.ports).remove(&port).ok_or(SwitchError::NoPort(port))?;
        if let Some(conversation) = held.conversation {
            conversation.end();
        }
        self.0.commands.ask(|answer| Command::RemovePort(port, answer))?
    }

    #[must_use]
    pub fn ports(&self) -> Vec<PortNumber> {
        locked(&self.0.ports).keys().copied().collect()
    }

    pub fn port(&self, port: PortNumber) -> Result<PortStatus, SwitchError> {
        let ports = locked(&self.0.ports);
        Ok(ports.get(&port).ok_or(SwitchError::NoPort(port))?.shared.status())
    }

    /// A port's counters since they were last cleared.
    pub fn counters(&self, port: PortNumber) -> Result<Counters, SwitchError> {
        let ports = locked(&self.0.ports);
        let held = ports.get(&port).ok_or(SwitchError::NoPort(port))?;
        Ok(held.shared.cells.read().since(&held.zero))
    }

    pub fn clear_counters(&self, port: PortNumber) -> Result<(), SwitchError> {
        let mut ports = locked(&self.0.ports);
        let held = ports.get_mut(&port).ok_or(SwitchError::NoPort(port))?;
        held.zero = held.shared.cells.read();
        Ok(())
    }

    /// Gives the switch its wire.
    pub fn attach_wire(&self, wire: WireOptions) -> Result<(), SwitchError> {
        self.0.commands.ask(|answer| Command::AttachWire(wire, answer))?
    }

    /// Takes the wire away, if there is one, and drops it.
    pub fn detach_wire(&self) -> Result<(), SwitchError> {
        self.0.commands.ask(Command::DetachWire)
    }

    /// The wire's counters, seen as if the world beyond it were a guest: out is what came from it.
    #[must_use]
    pub fn wire_counters(&self) -> Counters {
        self.0.wire.cells.read().since(&locked(&self.0.wire_zero))
    }

    pub fn clear_wire_counters(&self) {
        *locked(&self.0.wire_zero) = self.0.wire.cells.read();
    }

    /// The table of MAC addresses, without what has aged.
    pub fn macs(&self) -> Result<Vec<MacEntry>, SwitchError> {
        let mut entries = self.0.commands.ask(Command::Macs)?;
        // Here, where no frame waits for it.
        entries.sort_unstable_by_key(|entry| (entry.place, entry.vlan, entry.mac));
        Ok(entries)
    }

    /// Begins to capture a port's frames, in place of a capture that runs.
    pub fn capture(&self, port: PortNumber, to: Capture) -> Result<CaptureId, SwitchError> {
        let capture = CaptureId(self.0.captures.fetch_add(1, Ordering::Relaxed));
        self.0.commands.ask(|answer| Command::Capture(port, capture, to, answer))??;
        Ok(capture)
    }

    /// Ends a capture of a port, if that very one still runs.
    pub fn end_capture(&self, port: PortNumber, capture: CaptureId) -> Result<(), SwitchError> {
        self.0.commands.ask(|answer| Command::EndCapture(port, capture, answer))
    }

    /// Makes the switch look at its clock; for tests that move it.
    pub fn wake(&self) -> Result<(), SwitchError> {
        self.0.commands.ask(Command::Wake)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for (_, held) in std::mem::take(&mut *locked(&self.ports)) {
            if let Some(conversation) = held.conversation {
                conversation.end();
            }
        }
        self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switch").field("name", &self.0.name).finish_non_exhaustive()
    }
}

/// What a thread that panicked left is whole: each change here is one assignment.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
