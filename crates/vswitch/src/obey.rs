//! What the forwarding thread does when it is asked.

use std::sync::Arc;

use hpvm_model::{PortNumber, PortRules};

use crate::avio::{AvioPeer, Bases, Rings};
use crate::capture::{Capturing, Over};
use crate::command::{Command, NewPeer};
use crate::device::DevicePeer;
use crate::event::Event;
use crate::forward::{Forwarder, NewPort, watch_listener};
use crate::memory::Memory;
use crate::options::{Capture, CaptureId, WireOptions};
use crate::port::{Peer, PlaceIndex, Port, WIRE};
use crate::shared::address;
use crate::switch::{MacEntry, MacOrigin, Place, PortLink, SwitchError};
use crate::vlan;
use crate::watch::{Interest, Token};

/// An AVIO peer that was taken away: where its rings stand, and the memory they are in, for the asker to unmap.
pub(crate) struct Detached {
    pub(crate) bases: Bases,
    pub(crate) lost: bool,
    pub(crate) _memory: Option<Arc<Memory>>,
}

impl Forwarder {
    /// Takes every command that waits. Whoever asked and went away needs no answer.
    pub(crate) fn obey(&mut self) {
        while let Some(command) = self.inbox.take() {
            match command {
                Command::SetState(state, answer) => {
                    self.state = state;
                    let _ = answer.send(());
                }
                Command::AddPort(port, new, answer) => {
                    let _ = answer.send(self.add_port(port, *new));
                }
                Command::ChangePort(port, rules, answer) => {
                    let _ = answer.send(self.change_port(port, &rules));
                }
                Command::RemovePort(port, answer) => {
                    let _ = answer.send(self.remove_port(port));
                }
                Command::Attach(port, new, answer) => {
                    let _ = answer.send(self.attach(port, *new));
                }
                Command::Detach(port, answer) => {
                    let _ = answer.send(self.detach(port));
                }
                Command::Forget(port) => self.table.forget(port.number()),
                Command::AttachWire(wire, answer) => {
                    let _ = answer.send(self.attach_wire(wire));
                }
                Command::DetachWire(answer) => {
                    self.detach_wire();
                    let _ = answer.send(());
                }
                Command::Capture(port, id, capture, answer) => {
                    let _ = answer.send(self.capture(port, id, capture));
                }
                Command::EndCapture(port, id, answer) => {
                    if let Some(port) = self.port(port.number()) {
                        port.end_capture(id);
                    }
                    let _ = answer.send(());
                }
                Command::Macs(answer) => {
                    let _ = answer.send(self.macs());
                }
                Command::Wake(answer) => {
                    self.look_at_clock();
                    let _ = answer.send(());
                }
                Command::Stop => self.stopped = true,
            }
        }
    }

    fn add_port(&mut self, port: PortNumber, new: NewPort) -> Result<(), SwitchError> {
        let place = port.number();
        let NewPort { mac, rules, shared, listener } = new;
        if let Some(listener) = &listener {
            watch_listener(&self.watch, listener, place)
                .map_err(|source| SwitchError::Listen { port, source })?;
        }
        self.macs[usize::from(place)] = mac;
        let made = Port::new(mac, &rules, shared, listener, self.now_ns);
        self.ports[usize::from(place)] = Some(Box::new(made));
        Ok(())
    }

    fn change_port(&mut self, port: PortNumber, rules: &PortRules) -> Result<(), SwitchError> {
        let (mac, now_ns) = (self.macs[usize::from(port.number())], self.now_ns);
        let changed = self.port(port.number()).ok_or(SwitchError::NoPort(port))?;
        let before = (changed.membership.clone(), changed.own_source);
        changed.set_rules(mac, rules, now_ns);
        let stays = before == (changed.membership.clone(), changed.own_source);
        // Nor does anybody's next frame go ahead to where it may not go now.
        self.ports.iter_mut().flatten().for_each(|port| port.likely = None);
        // What was learned may be in a VLAN that the port has left, or not the guest's own. What stays is not flooded.
        if !stays {
            self.table.forget(port.number());
        }
        // A rate that is gone no longer pauses it.
        self.resume(port.number());
        Ok(())
    }

    fn remove_port(&mut self, port: PortNumber) -> Result<(), SwitchError> {
        let place = port.number();
        self.close(place);
        self.table.forget(place);
        let removed = self.ports[usize::from(place)].take().ok_or(SwitchError::NoPort(port))?;
        if let Some(listener) = &removed.listener {
            self.watch.remove(listener);
        }
        if let Some(kick) = &removed.kick {
            self.watch.remove(kick);
        }
        Ok(())
    }

    /// Begins to serve a driver's rings.
    fn attach(&mut self, port: PortNumber, new: NewPeer) -> Result<(), SwitchError> {
        let place = port.number();
        let NewPeer { receive, transmit, memory, log, features, kick } = new;
        if self.port(place).is_none() {
            return Err(SwitchError::NoPort(port));
        }
        if let Some(kick) = &kick {
            self.watch
                .add(kick, Token::Kick(place), Interest::News)
                .map_err(|source| SwitchError::Listen { port, source })?;
        }
        let rings = Rings { receive, transmit, memory, log, features };
        self.open(place, Peer::Avio(Box::new(AvioPeer::new(rings))))
            .map_err(|source| SwitchError::Listen { port, source })?;
        if let Some(port) = self.port(place) {
            port.kick = kick;
            port.lost = None;
        }
        Ok(())
    }

    /// Stops serving them. None: there are none.
    fn detach(&mut self, port: PortNumber) -> Option<Detached> {
        let place = port.number();
        let peer = self.close(place);
        let kick = self.port(place).and_then(|port| port.kick.take());
        if let Some(kick) = kick {
            self.watch.remove(kick);
        }
        let lost = self.port(place).and_then(|port| port.lost.take());
        match (peer, lost) {
            (Peer::Avio(peer), _) => {
                let bases = peer.bases();
                Some(Detached { bases, lost: false, _memory: Some(peer.into_memory()) })
            }
            (_, Some(bases)) => Some(Detached { bases, lost: true, _memory: None }),
            _ => None,
        }
    }

    fn attach_wire(&mut self, wire: WireOptions) -> Result<(), SwitchError> {
        let port = self.port(WIRE).ok_or(SwitchError::WireInUse)?;
        if port.is_open() || port.listener.is_some() {
            return Err(SwitchError::WireInUse);
        }
        match wire {
            WireOptions::Device(wire) => self
                .open(WIRE, Peer::Device(Box::new(DevicePeer::new(wire))))
                .map_err(SwitchError::Wire),
            WireOptions::Stream(socket) => {
                self.connect(WIRE, socket);
                Ok(())
            }
            WireOptions::StreamListener(listener) => {
                watch_listener(&self.watch, &listener, WIRE).map_err(SwitchError::Wire)?;
                if let Some(port) = self.port(WIRE) {
                    port.listener = Some(listener);
                }
                Ok(())
            }
        }
    }

    fn detach_wire(&mut self) {
        self.close(WIRE);
        self.table.forget(WIRE);
        let Some(port) = self.port(WIRE) else { return };
        port.shared.set_link(PortLink::Absent);
        if let Some(listener) = port.listener.take() {
            self.watch.remove(&listener);
        }
    }

    fn capture(
        &mut self,
        port: PortNumber,
        id: CaptureId,
        capture: Capture,
    ) -> Result<(), SwitchError> {
        let events = self.events.clone();
        let captured = self.port(port.number()).ok_or(SwitchError::NoPort(port))?;
        let over = move |Over { lost, failure }| {
            let _ = events.send(Event::CaptureOver { port, capture: id, lost, failure });
        };
        let capturing = Capturing::start(id, capture, over)
            .map_err(|source| SwitchError::Capture { port, source })?;
        captured.set_capture(Some(capturing));
        Ok(())
    }

    fn macs(&self) -> Vec<MacEntry> {
        let place = |place: PlaceIndex| PortNumber::new(place).map_or(Place::Wire, Place::Port);
        let listed = self.table.list(self.now_seconds()).into_iter();
        let entries = listed.map(|listed| MacEntry {
            mac: address(listed.station.address()),
            vlan: vlan::name(listed.station.domain()),
            place: place(listed.place),
            origin: match listed.age_seconds {
                Some(seconds) => {
                    MacOrigin::Learned { age: std::time::Duration::from_secs(seconds.into()) }
                }
                None => MacOrigin::Configured,
            },
        });
        entries.collect()
    }
}
