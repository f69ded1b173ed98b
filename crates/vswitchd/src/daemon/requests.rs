//! What commands ask of the owner. A change is written down before it is made, and taken back when it cannot be.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use hpvm_model::{PortNumber, chain};
use hpvm_vswitch::{Capture, MacOrigin, Place, Switch, SwitchError};
use hpvm_vswitchd::protocol::{Reply, Request, Station};
use hpvm_vswitchd::wanted::{Plug, Wanted};

use super::{Daemon, tag};
use crate::Failure;
use crate::control::Asked;

/// Whether the process goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    /// All is done.
    End,
    /// Another process is to go on.
    Renew,
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the descriptor that belongs to the request did not come with it")]
    Alone,
    #[error("the interface cannot be followed")]
    Follow(#[source] std::io::Error),
    #[error(
        "its guest was given the virtio features {0:#x}, which this version of hpvmnetd has not; the version that gave them serves it"
    )]
    Lacking(u64),
    #[error("nobody would notice the end of whoever asks")]
    Watch(#[source] std::io::Error),
    #[error("the socket cannot be kept for the next process")]
    Keep(#[source] std::io::Error),
    #[error("the change cannot be written down")]
    Write(#[from] std::io::Error),
    #[error(transparent)]
    Switch(#[from] SwitchError),
}

impl Daemon {
    /// Does what is asked. A switch whose thread is silent cannot go on: the next process can.
    pub(super) fn answer(&mut self, asked: Asked) -> Result<Next, Failure> {
        let Asked { request, descriptors, replies, connection } = asked;
        let is_detach = matches!(request, Request::Detach { .. });
        let is_renewal = matches!(request, Request::Renew);
        let (reply, silent) = match self.perform(request, descriptors, connection) {
            Ok(reply) => (reply, None),
            Err(Refused::Switch(SwitchError::Silent)) => {
                let silent = SwitchError::Silent;
                (Reply::Failed { error: silent.to_string() }, Some(silent))
            }
            Err(refused) => (Reply::Failed { error: chain(&refused) }, None),
        };
        // The status is right by the time the asker knows.
        self.publish();
        let _ = replies.send(reply);
        match silent {
            Some(silent) => Err(silent.into()),
            None if is_detach && self.wanted.ports.is_empty() => Ok(Next::End),
            None if is_renewal => Ok(Next::Renew),
            None => Ok(Next::GoOn),
        }
    }

    fn perform(
        &mut self,
        request: Request,
        descriptors: Vec<OwnedFd>,
        connection: UnixStream,
    ) -> Result<Reply, Refused> {
        let descriptor = descriptors.into_iter().next();
        match request {
            Request::Ping | Request::Publish | Request::Renew => {}
            Request::Attach { plug } => self.attach(&plug, descriptor.ok_or(Refused::Alone)?)?,
            Request::Detach { guest, port } => {
                let is_meant = |plug: &&Plug| {
                    plug.number == guest && port.is_none_or(|port| port == plug.port)
                };
                let ports: Vec<PortNumber> =
                    self.wanted.ports.iter().filter(is_meant).map(|plug| plug.port).collect();
                ports.into_iter().try_for_each(|port| self.detach(port))?;
            }
            Request::Rules { port, rules } => {
                let asked = rules.clone();
                let wish = |wanted: &mut Wanted| {
                    if let Some(plug) = wanted.ports.iter_mut().find(|plug| plug.port == port) {
                        plug.rules = asked;
                    }
                };
                self.change(wish, |switch| switch.change_port(port, rules))?;
            }
            Request::State { state } => {
                self.change(|wanted| wanted.state = state, |switch| switch.set_state(state))?;
                self.log.say(&format!("virtual switch {} is {}", self.wanted.name, state.as_str()));
            }
            Request::Wire { kind, interface } => {
                self.change_wire(kind, interface, descriptor)?;
            }
            Request::Rename { name } => self.change(|wanted| wanted.name = name, |_| Ok(()))?,
            Request::Clear { port: Some(port) } => self.switch.clear_counters(port)?,
            Request::Clear { port: None } => {
                for port in self.switch.ports() {
                    self.switch.clear_counters(port)?;
                }
                self.switch.clear_wire_counters();
            }
            Request::Macs => return Ok(Reply::Macs { stations: self.stations()? }),
            Request::Capture { port, snap_bytes } => {
                let file = descriptor.ok_or(Refused::Alone)?;
                self.capture(port, Capture { file, snap_bytes }, connection)?;
            }
        }
        Ok(Reply::Done)
    }

    /// Writes down what the switch is to be, then makes it so; what cannot be is taken back.
    pub(super) fn change(
        &mut self,
        wish: impl FnOnce(&mut Wanted),
        make: impl FnOnce(&Switch) -> Result<(), SwitchError>,
    ) -> Result<(), Refused> {
        let before = self.wanted.clone();
        wish(&mut self.wanted);
        let written = self.write_down().map_err(Refused::from);
        let made = written.and_then(|()| make(&self.switch).map_err(Refused::from));
        if made.is_err() {
            self.wanted = before;
            // What led here is the thing to tell.
            let _ = self.write_down();
        }
        made
    }

    fn attach(&mut self, plug: &Plug, listener: OwnedFd) -> Result<(), Refused> {
        let port = plug.port;
        if self.wanted.plug(port).is_some() {
            self.detach(port)?;
        }
        self.wanted.put(plug.clone());
        let attached = self.link.keep(tag(port), listener.as_fd()).map_err(Refused::Keep);
        let attached = attached.and_then(|()| {
            let copy = listener.try_clone().map_err(Refused::Keep)?;
            self.kept.insert(tag(port), copy);
            self.write_down()?;
            self.add(plug, listener)
        });
        if attached.is_err() {
            self.forget(port);
            // What led here is the thing to tell.
            let _ = self.write_down();
        }
        attached
    }

    fn detach(&mut self, port: PortNumber) -> Result<(), Refused> {
        let wish = |wanted: &mut Wanted| wanted.ports.retain(|plug| plug.port != port);
        self.change(wish, |switch| match switch.remove_port(port) {
            Err(SwitchError::NoPort(_)) => Ok(()),
            removed => removed,
        })?;
        self.forget(port);
        Ok(())
    }

    fn stations(&self) -> Result<Vec<Station>, SwitchError> {
        let stations = self.switch.macs()?.into_iter().map(|entry| Station {
            mac: entry.mac,
            vlan: entry.vlan,
            port: match entry.place {
                Place::Port(port) => Some(port),
                Place::Wire => None,
            },
            age_seconds: match entry.origin {
                MacOrigin::Configured => None,
                MacOrigin::Learned { age } => Some(age.as_secs()),
            },
        });
        Ok(stations.collect())
    }
}
