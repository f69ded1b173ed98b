//! One place where frames enter and leave, as the forwarding thread has it: rules ready for use, counters, and the peer.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use hpvm_model::{Isolation, LanBoot, MacAddress, PortRules, SpoofGuard};

use crate::avio::{AvioPeer, Bases, Put};
use crate::capture::Capturing;
use crate::counters::Counter;
use crate::device::DevicePeer;
use crate::event::RingFault;
use crate::frame::{Batch, View};
use crate::guard::AddressGuard;
use crate::lan_boot::Answerer;
use crate::options::CaptureId;
use crate::patience::Patience;
use crate::rate::Bucket;
use crate::shared::{PortShared, bits};
use crate::stream::{Backlog, StreamFault, StreamPeer};
use crate::vlan::Membership;

/// Frames' places by number: the wire is 0, a port its own number.
pub(crate) type PlaceIndex = u16;
pub(crate) const WIRE: PlaceIndex = 0;

/// What is unusual about a place. Frames of a place with none of it pass without a look at the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unusual(u8);

impl Unusual {
    pub(crate) const NONE: Unusual = Unusual(0);
    pub(crate) const ADDRESSES: Unusual = Unusual(1);
    pub(crate) const MIRROR: Unusual = Unusual(2);
    pub(crate) const CAPTURE: Unusual = Unusual(4);
    pub(crate) const RATE_IN: Unusual = Unusual(8);
    pub(crate) const RATE_OUT: Unusual = Unusual(16);
    pub(crate) const ISOLATED: Unusual = Unusual(32);
    pub(crate) const LAN_BOOT: Unusual = Unusual(64);

    /// Whether nothing is asked for that concerns what is for the guest, nor what it sends to one station.
    #[inline(always)]
    pub(crate) fn is_plain(self) -> bool {
        self.0 & !Self::LAN_BOOT.0 == 0
    }

    #[inline]
    pub(crate) fn has(self, other: Unusual) -> bool {
        self.0 & other.0 != 0
    }

    fn set(&mut self, other: Unusual, on: bool) {
        self.0 = if on { self.0 | other.0 } else { self.0 & !other.0 };
    }
}

/// Who is at the other end.
pub(crate) enum Peer {
    Absent,
    Avio(Box<AvioPeer>),
    Stream(Box<StreamPeer>),
    Device(Box<DevicePeer>),
}

/// Why a peer is gone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerFault {
    #[error(transparent)]
    Ring(#[from] RingFault),
    #[error(transparent)]
    Stream(#[from] StreamFault),
    #[error("the network interface failed")]
    Device(#[from] io::Error),
}

pub(crate) struct Port {
    pub(crate) membership: Membership,
    pub(crate) unusual: Unusual,
    /// The address the guest may send from alone; none: any.
    pub(crate) own_source: Option<u64>,
    /// The guest's own address, whether or not it is guarded.
    pub(crate) mac: Option<u64>,
    /// The last address a frame came from.
    pub(crate) last_source: u64,
    pub(crate) addresses: Option<AddressGuard>,
    pub(crate) mirror: Option<PlaceIndex>,
    pub(crate) answerer: Option<Box<Answerer>>,
    pub(crate) rate_in: Option<Bucket>,
    pub(crate) rate_out: Option<Bucket>,
    pub(crate) capture: Option<Capturing>,
    pub(crate) shared: Arc<PortShared>,
    pub(crate) listener: Option<UnixListener>,
    pub(crate) peer: Peer,
    /// A receiver without room, for which this place's frames wait where they are.
    pub(crate) waits_for: Option<PlaceIndex>,
    /// What is left of others' patience with this place.
    pub(crate) patience: Patience,
    /// Where the last frame for one station went, while few come at once.
    pub(crate) likely: Option<PlaceIndex>,
    /// Rounds since the last frame.
    pub(crate) quiet_rounds: u32,
    pub(crate) attention: Attention,
    /// Whether frames wait for the peer to have room.
    pub(crate) backlog: Backlog,
    /// Tells that an AVIO guest sent something.
    pub(crate) kick: Option<OwnedFd>,
    /// Where the rings stood in which an AVIO guest wrote nonsense.
    pub(crate) lost: Option<Bases>,
}

/// How the forwarding thread learns that a peer sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attention {
    /// It looks in each round.
    Polled,
    /// It is told by a descriptor.
    Listening,
    /// It does not want to know before this time: the port's rate is used up.
    Paused { until_ns: u64 },
    /// It does not want to know for a moment: the receiver of what waits has no room, or more will come at once.
    Held,
}

impl Port {
    pub(crate) fn wire(shared: Arc<PortShared>) -> Port {
        Port {
            membership: Membership::All,
            unusual: Unusual::NONE,
            own_source: None,
            mac: None,
            last_source: u64::MAX,
            addresses: None,
            mirror: None,
            answerer: None,
            rate_in: None,
            rate_out: None,
            capture: None,
            shared,
            listener: None,
            peer: Peer::Absent,
            waits_for: None,
            patience: Patience::WHOLE,
            likely: None,
            quiet_rounds: 0,
            attention: Attention::Listening,
            backlog: Backlog::Empty,
            kick: None,
            lost: None,
        }
    }

    pub(crate) fn new(
        mac: MacAddress,
        rules: &PortRules,
        shared: Arc<PortShared>,
        listener: Option<UnixListener>,
        now_ns: u64,
    ) -> Port {
        let mut port = Port { mac: Some(bits(mac)), listener, ..Port::wire(shared) };
        port.set_rules(mac, rules, now_ns);
        port
    }

    pub(crate) fn set_rules(&mut self, mac: MacAddress, rules: &PortRules, now_ns: u64) {
        let PortRules {
            vlan,
            rate_in,
            rate_out,
            spoof_guard,
            addresses,
            mirror,
            isolation,
            lan_boot,
        } = rules;
        self.membership = Membership::of(vlan);
        let guarded = *spoof_guard == SpoofGuard::On;
        self.own_source = guarded.then_some(bits(mac));
        self.addresses = AddressGuard::new(mac, addresses).filter(|_| guarded);
        self.mirror = mirror.map(hpvm_model::PortNumber::number);
        self.rate_in = Bucket::kept(self.rate_in.take(), *rate_in, now_ns);
        self.rate_out = Bucket::kept(self.rate_out.take(), *rate_out, now_ns);
        self.answerer = match lan_boot {
            Some(LanBoot::Profile(profile)) => Some(Box::new(Answerer::new(profile.clone(), mac))),
            Some(LanBoot::Dhcp) | None => None,
        };
        self.unusual.set(Unusual::LAN_BOOT, self.answerer.is_some());
        self.unusual.set(Unusual::ADDRESSES, self.addresses.is_some());
        self.unusual.set(Unusual::MIRROR, self.mirror.is_some());
        self.unusual.set(Unusual::RATE_IN, self.rate_in.is_some());
        self.unusual.set(Unusual::RATE_OUT, self.rate_out.is_some());
        self.unusual.set(Unusual::ISOLATED, *isolation == Isolation::On);
    }

    pub(crate) fn set_capture(&mut self, capture: Option<Capturing>) {
        self.unusual.set(Unusual::CAPTURE, capture.is_some());
        self.capture = capture;
    }

    pub(crate) fn end_capture(&mut self, id: CaptureId) {
        if self.capture.as_ref().is_some_and(|capture| capture.id == id) {
            self.set_capture(None);
        }
    }

    /// Lets a capture's writer have the batch's records; a capture that nobody reads any more ends.
    #[inline]
    pub(crate) fn flush_capture(&mut self) {
        if self.unusual.has(Unusual::CAPTURE)
            && !self.capture.as_mut().is_some_and(Capturing::flush)
        {
            self.set_capture(None);
        }
    }

    /// Whether frames can pass.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.peer, Peer::Absent)
    }

    /// What the peer takes unfinished: a mask of [`crate::offload`].
    #[inline]
    pub(crate) fn takes(&self) -> u8 {
        match &self.peer {
            Peer::Avio(peer) => peer.takes(),
            Peer::Device(peer) => peer.takes(),
            Peer::Stream(_) | Peer::Absent => 0,
        }
    }

    /// Tells others the address the guest sent from last.
    pub(crate) fn note_source(&mut self, source: Option<u64>) {
        if let Some(source) = source.filter(|source| *source != self.last_source) {
            self.last_source = source;
            self.shared.set_source(source);
        }
    }

    #[inline]
    pub(crate) fn count(&self, counter: Counter, count: u64) {
        if count > 0 {
            self.shared.cells.add(counter, count);
        }
    }

    /// Gathers what the peer sent.
    #[inline]
    pub(crate) fn gather(
        &mut self,
        batch: &mut Batch,
        limit: usize,
    ) -> Result<(usize, usize), PeerFault> {
        match &mut self.peer {
            Peer::Avio(peer) => Ok(peer.gather(batch, limit)?),
            Peer::Stream(peer) => Ok(peer.gather(batch, limit)?),
            Peer::Device(peer) => Ok(peer.gather(batch, limit)?),
            Peer::Absent => Ok((0, 0)),
        }
    }

    /// The same when frames will likely go to another place.
    pub(crate) fn gather_towards(
        &mut self,
        receiver: &mut Port,
        batch: &mut Batch,
        limit: usize,
    ) -> Result<(usize, usize), PeerFault> {
        match (&mut self.peer, &mut receiver.peer) {
            (Peer::Avio(peer), Peer::Avio(receiver)) => {
                Ok(peer.gather_towards(receiver, batch, limit)?)
            }
            _ => self.gather(batch, limit),
        }
    }

    /// The gathered frames have gone their ways.
    #[inline]
    pub(crate) fn release(&mut self) {
        if let Peer::Avio(peer) = &mut self.peer {
            peer.release();
        }
    }

    /// Leaves the last `frames` of those gathered where they are: they come again.
    pub(crate) fn hold_back(&mut self, frames: usize) {
        match &mut self.peer {
            Peer::Avio(peer) => peer.hold_back(frames),
            Peer::Stream(peer) => peer.hold_back(frames),
            Peer::Device(peer) => peer.hold_back(frames),
            Peer::Absent => {}
        }
    }

    /// Whether there is more room than when a frame found none.
    pub(crate) fn has_more_room(&mut self) -> bool {
        match &mut self.peer {
            Peer::Avio(peer) => peer.has_more_room(),
            Peer::Stream(peer) => peer.is_roomy(),
            Peer::Device(_) | Peer::Absent => true,
        }
    }

    /// Whether there is room for the longest frame, cut into pieces.
    pub(crate) fn is_roomy(&mut self) -> bool {
        match &mut self.peer {
            Peer::Avio(peer) => peer.is_roomy(),
            Peer::Stream(peer) => peer.is_roomy(),
            Peer::Device(_) | Peer::Absent => true,
        }
    }

    #[inline]
    pub(crate) fn prepare(&mut self, count: usize) -> Result<(), PeerFault> {
        match &mut self.peer {
            Peer::Avio(peer) => Ok(peer.prepare(count)?),
            _ => Ok(()),
        }
    }

    #[inline]
    pub(crate) fn put(&mut self, view: &View<'_>) -> Result<Put, PeerFault> {
        match &mut self.peer {
            Peer::Avio(peer) => Ok(peer.put_any(view)?),
            Peer::Stream(peer) => Ok(peer.put(view)),
            Peer::Device(peer) => {
                if peer.full() {
                    let lost = peer.flush()?;
                    self.shared.cells.add(Counter::NoRoom, lost as u64);
                }
                Ok(peer.put(view))
            }
            Peer::Absent => Ok(Put::NoRoom),
        }
    }

    /// Lets the peer have what was put.
    #[inline]
    pub(crate) fn flush(&mut self) -> Result<Backlog, PeerFault> {
        match &mut self.peer {
            Peer::Avio(peer) => peer.flush(),
            Peer::Stream(peer) => return Ok(peer.flush()?),
            Peer::Device(peer) => {
                let lost = peer.flush()?;
                self.count(Counter::NoRoom, lost as u64);
            }
            Peer::Absent => {}
        }
        Ok(Backlog::Empty)
    }
}
